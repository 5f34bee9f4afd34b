# SPDX-License-Identifier: MIT
"""The report of an evaluation: its figures, and the forms in which they leave."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from art_wdro._host.extras import install
from art_wdro.certificates._confidence import accuracy_left
from art_wdro.evaluation._first_order import AccuracyBounds
from art_wdro.evaluation._knapsack import knapsack_accuracy


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
    """

    attack: str
    order: float | None
    accuracy: float
    spent: float
    seconds: float
    gradients: float
    failure: str | None = None

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
            "attacks": [row.to_dict() for row in self.rows],
            "upsilon": _plain(self.upsilon),
            "bounds": {loss: {k: _plain(v) for k, v in b._asdict().items()} for loss, b in self.bounds.items()},
            "certified": None if self.radii is None else self.certified_accuracy(self.eps),
            "radii": None if self.radii is None else [_plain(float(radius)) for radius in self.radii],
            "surer_radii": None if self.surer is None else [float(radius) for radius in self.surer],
            "failed_radii": self.failed,
            "confidence": self.confidence,
            "distances": [_plain(float(d)) for d in self.distances],
            "warnings": list(self.warnings),
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_markdown(self) -> str:
        """Return a table in Markdown."""
        head = ["threat", "attack", "accuracy in %", "spent / eps", "gradients a sample", "seconds"]
        return "\n".join([*markdown_lines(head, self._cells()), "", *(f"{note}  " for note in self._notes())])

    def __str__(self) -> str:
        """Return a table for a terminal."""
        head = ["threat", "attack", "acc. %", "spent/eps", "gradients", "seconds"]
        table = [head, *self._cells()]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(head))]
        lines = [
            "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
            for cells in table
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *self._notes()])

    def save_figure(self, path: str | Path, orders: Sequence[float] = ()) -> None:
        """Draw the knapsack accuracy over eps, for the report's order, W_inf and others, with the attacks as points.

        :param path: File to write, its ending the format.
        :param orders: Further orders to draw.
        :raises ImportError: If matplotlib is not installed.
        """
        figure = empty_figure()
        axes = figure.subplots()
        finite = self.distances[np.isfinite(self.distances)]
        budgets = np.linspace(0, max(2 * self.eps, float(np.quantile(finite, 0.9)) if len(finite) else 0.0), 200)
        for order in sorted({self.p, math.inf, *orders}):
            name = "\\infty" if math.isinf(order) else f"{order:g}"
            axes.plot(budgets, 100 * self.accuracy(budgets, order), label=f"knapsack, $W_{{{name}}}$")
            if self.radii is not None:
                certified = 100 * self.certified_accuracy(budgets, order)
                axes.plot(
                    budgets, certified, "--", color=axes.lines[-1].get_color(), label=f"certified, $W_{{{name}}}$"
                )
        for row in self.rows:
            if row.order is not None and not row.failure and not row.attack.startswith("knapsack"):
                axes.plot(self.eps, 100 * row.accuracy, "x", label=f"{row.attack}, {row.threat}")
        axes.set(xlabel="eps, in input units", ylabel="accuracy in %", ylim=(0, None), xlim=(0, None))
        axes.legend(fontsize=8)
        figure.savefig(path, format=Path(path).suffix[1:] or "png")

    def _cells(self) -> list[list[str]]:
        scale = self.eps if self.eps > 0 else 1.0
        return [
            [
                row.threat,
                row.attack,
                "failed" if row.failure else f"{100 * row.accuracy:.1f}",
                "" if row.order is None or row.failure else f"{row.spent / scale:.3f}",
                "" if row.failure else f"{row.gradients:.0f}",
                f"{row.seconds:.1f}",
            ]
            for row in self.rows
        ]

    def _notes(self) -> list[str]:
        notes = [f"{self.samples} samples, (W_{self.p:g}, l_{self.norm:g}), eps = {self.eps:.6g}"]
        notes += [f"{row.attack} failed: {row.failure}" for row in self.rows if row.failure]
        if self.surer is None:
            notes.append(f"Upsilon (ReDLR) = {self.upsilon:.6g}")
        notes += [
            f"first-order bounds ({loss}; asymptotic, no certificate): [{100 * b.lower:.1f}, {100 * b.upper:.1f}] %"
            for loss, b in self.bounds.items()
        ]
        if self.radii is not None:
            ends = self.certified_accuracy(self.eps), self.accuracy(self.eps)
            sure = "" if self.confidence is None else f", with a confidence of {100 * self.confidence:g} %"
            bracket = (
                f"[certified, knapsack] = [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}] %: the truth lies between{sure}"
            )
            # below nothing lies no accuracy
            notes.append(bracket if ends[0] > 0 or ends[1] == 0 else "nothing is certified at this eps")
        elif self.uncertified is not None:
            notes.append(f"no certificate: {self.uncertified}")
        return notes + [f"Warning: {text}" for text in self.warnings]


def markdown_lines(head: list[str], body: list[list[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]


def empty_figure() -> Any:
    """Return a figure of matplotlib to draw on.

    :raises ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"a figure needs matplotlib: {install('plots')}") from None
    return Figure(figsize=(6, 4), layout="constrained")


def _plain(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "inf"
