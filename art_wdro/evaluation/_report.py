# SPDX-License-Identifier: MIT
"""The report of an evaluation: its figures, and the forms in which they leave."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from art_wdro._host.extras import install
from art_wdro.certificates._confidence import accuracy_left
from art_wdro.evaluation import _forms as forms
from art_wdro.evaluation._figure import draw
from art_wdro.evaluation._first_order import AccuracyBounds
from art_wdro.evaluation._intervals import LEVEL, ends, knapsack_of, resampled, wilson
from art_wdro.evaluation._knapsack import knapsack_accuracy

FORMAT = 1
"""Format of a report as JSON; a file without one is older than its intervals and digests."""
KNAPSACK = "knapsack"
"""Name of the attack that searches least distances and spends the budget on the cheapest."""


@dataclass(frozen=True)
class Row:
    """One attack in a report.

    :param attack: Its name and setting.
    :param order: Order of the threat: p, inf for a pointwise one, None for clean data.
    :param accuracy: Accuracy in [0, 1] that it leaves.
    :param spent: D_order between the inputs and what the attack made of them, in input units.
    :param seconds: Wall time.
    :param gradients: Gradient evaluations a sample, on average.
    :param failure: Why the attack made nothing, with NaN for its figures; None where it made something.
    :param installed: Whether there was an attack; where not, `failure` says what to install.
    """

    attack: str
    order: float | None
    accuracy: float
    spent: float
    seconds: float
    gradients: float
    failure: str | None = None
    installed: bool = True

    @property
    def threat(self) -> str:
        """The threat as text: clean, W_inf, W_2, ..."""
        return "clean" if self.order is None else f"W_{self.order:g}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {"threat": self.threat} | {key: _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Report:
    """What :func:`evaluate` found.

    :param p: Order of the Wasserstein distance.
    :param norm: Exponent of the ground norm.
    :param eps: Budget in input units.
    :param samples: Number of samples.
    :param rows: One row an attack, clean data first.
    :param upsilon: Sensitivity for ReDLR, in loss per input unit.
    :param bounds: First-order bounds on the accuracy under W_p, by loss; asymptotic, no certificates.
    :param distances: Least distance of every sample, (N,), in input units, over the points of all rows.
    :param radii: Certified radius of every sample, (N,), in input units, no larger than its distance; None where they
        were not computed. Of a smoothed classifier each holds with probability 1 - alpha.
    :param uncertified: Why they were not; None where they were not wanted.
    :param warnings: What makes a figure doubtful, one sentence each.
    :param arrays: Adversarial arrays by attack, if they were asked for; the figures can be computed from them.
    :param mass: Which part of each sample's mass is where the array of the attack that splits it (WDA) says, (N,).
    :param surer: Shorter radii of a smoothed classifier, (N,), which all hold at once; None of others.
    :param failed: How many of `radii` do not hold, at most.
    :param confidence: Probability with which that, and the distances, are so; None where bounds are certain.
    :param standing: Which share of each sample's mass every attack leaves classified correctly, (N,), by attack.
    :param indices: Which samples of the data set were drawn, ascending, (N,); None where all were taken.
    :param drawn_from: Number of samples of that data set; None where it is not known.
    :param seed: Seed of that draw, and of the draws behind intervals.
    :param provenance: Versions, device, shape of inputs, number of classes, digests of data and weights.
    """

    p: float
    norm: float
    eps: float
    samples: int
    rows: tuple[Row, ...]
    upsilon: float
    bounds: dict[str, AccuracyBounds]
    distances: np.ndarray
    radii: np.ndarray | None = None
    uncertified: str | None = None
    warnings: tuple[str, ...] = ()
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    mass: np.ndarray | None = None
    surer: np.ndarray | None = None
    failed: int = 0
    confidence: float | None = None
    standing: dict[str, np.ndarray] = field(default_factory=dict)
    indices: np.ndarray | None = None
    drawn_from: int | None = None
    seed: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Intervals of 95 % for the accuracy on all images, by attack, and by "certified" where radii are.

        For the knapsack and the certificate the budget is spent anew on samples drawn with replacement, the other
        intervals are Wilson's. An attack that failed has none.
        """
        found = {row.attack: wilson(row.accuracy, self.samples) for row in self.rows if not math.isnan(row.accuracy)}
        row = next((row for row in self.rows if row.attack == KNAPSACK and row.order != math.inf), None)
        figures = {} if row is None or row.failure else {KNAPSACK: (self.distances, row.accuracy)}
        if self.radii is not None:
            figures["certified"] = self.radii, self.certified_accuracy(self.eps)
        if figures:
            spent = [knapsack_of(values, self.eps, self.p) for values, _ in figures.values()]
            for (name, (values, shown)), drawn in zip(
                figures.items(), resampled(spent, self.samples, self.seed), strict=True
            ):
                # of votes a few radii may fail, for which the certificate takes off the same of every draw
                moved = np.clip(drawn + shown - knapsack_accuracy(values, self.eps, self.p), 0.0, 1.0)
                found[name] = ends(moved, shown, self.samples)
        return found

    def accuracy(self, eps: Any, p: float | None = None) -> Any:
        """Return the knapsack accuracy at other budgets and orders, from the same distances.

        :param eps: Budget in input units, or an array of budgets.
        :param p: Order; None takes the report's.
        """
        return knapsack_accuracy(self.distances, eps, self.p if p is None else p)

    def certified_accuracy(self, eps: Any, p: float | None = None) -> Any:
        """Return an accuracy below which no distribution in the ball goes, 0 where no radii were computed.

        :param eps: Budget in input units, or an array of budgets.
        :param p: Order; None takes the report's.
        """
        radii, order = np.zeros_like(self.distances) if self.radii is None else self.radii, self.p if p is None else p
        if self.surer is None:
            return knapsack_accuracy(radii, eps, order)
        found = [accuracy_left(self.surer, radii, self.failed, budget, order) for budget in np.asarray(eps).flat]
        return found[0] if np.ndim(eps) == 0 else np.array(found).reshape(np.shape(eps))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays as plain values that JSON can hold: inf as "inf", NaN as None."""
        return {
            "p": _plain(self.p),
            "norm": _plain(self.norm),
            "eps": self.eps,
            "samples": self.samples,
            "attacks": [row.to_dict() | {"interval": self._interval(row.attack)} for row in self.rows],
            "upsilon": _plain(self.upsilon),
            "bounds": {loss: {k: _plain(v) for k, v in b._asdict().items()} for loss, b in self.bounds.items()},
            "certified": None if self.radii is None else self.certified_accuracy(self.eps),
            "certified_interval": self._interval("certified"),
            "radii": None if self.radii is None else [_plain(float(radius)) for radius in self.radii],
            "surer_radii": None if self.surer is None else [float(radius) for radius in self.surer],
            "failed_radii": self.failed,
            "confidence": self.confidence,
            "distances": [_plain(float(d)) for d in self.distances],
            "warnings": list(self.warnings),
            "format": FORMAT,
            "interval_level": LEVEL,
            "seed": self.seed,
            "drawn_from": self.drawn_from,
            "indices": None if self.indices is None else self.indices.tolist(),
            "standing": {name: [_short(share) for share in shares.tolist()] for name, shares in self.standing.items()},
            **self.provenance,
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_markdown(self) -> str:
        """Return a table in Markdown."""
        return forms.markdown(self)

    _repr_markdown_ = to_markdown

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        return forms.html(self)

    def __str__(self) -> str:
        """Return a table for a terminal."""
        return forms.terminal(self)

    def plot(self, orders: Sequence[float] = ()) -> Any:
        """Draw accuracy over eps, from the distances and radii, and at which distances the budget was spent.

        :param orders: Further orders to draw, beside the report's and W_inf.
        :return: The figure, of matplotlib; a notebook shows it.
        :raises ImportError: If matplotlib is not installed.
        """
        figure = empty_figure((11, 5.5))
        draw(self, figure, orders)
        figure._repr_png_ = partial(_png, figure)  # a notebook knows figures only once pyplot has been imported
        return figure

    def save_figure(self, path: str | Path, orders: Sequence[float] = ()) -> None:
        """Save what `plot` draws.

        :param path: File to write, its ending the format.
        :param orders: Further orders to draw.
        :raises ImportError: If matplotlib is not installed.
        """
        self.plot(orders).savefig(path, format=Path(path).suffix[1:] or "png")

    def _interval(self, name: str) -> list[float] | None:
        found = self.intervals.get(name)
        return None if found is None else list(found)


def empty_figure(size: tuple[float, float] = (6, 4)) -> Any:
    """Return a figure of matplotlib to draw on.

    :param size: Width and height in inches.
    :raises ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"a figure needs matplotlib: {install('plots')}") from None
    return Figure(figsize=size, layout="constrained")


def _png(figure: Any) -> bytes:
    stream = BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _short(share: float) -> float:
    """Return a share of mass, as a whole number where it is one."""
    return int(share) if share in (0.0, 1.0) else share


def _plain(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "inf"
