# SPDX-License-Identifier: MIT
"""A report read from a file, as two of them are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from art_wdro.evaluation._intervals import Figure, knapsack_of, mean_of, written
from art_wdro.evaluation._knapsack import knapsack_accuracy
from art_wdro.evaluation._report import FORMAT, KNAPSACK

CERTIFIED = "certified"
"""Name of the row of the certificate."""


class Loaded(NamedTuple):
    """A report that was read from a file.

    :param name: The file.
    :param data: What it holds.
    :param distances: Least distances, (N,).
    :param rows: What is known of each row, by threat and attack.
    """

    name: str
    data: dict[str, Any]
    distances: np.ndarray
    rows: dict[tuple[str, str], Standing]


class Standing(NamedTuple):
    """A row of a report.

    :param accuracy: Its accuracy, NaN where the attack failed.
    :param interval: The accuracy's interval, where the report has one.
    :param figure: The accuracy of draws.
    :param shares: Which share of each sample's mass stands, (N,), where each sample does so on its own; None elsewhere.
    :param installed: Whether the attack was there.
    """

    accuracy: float
    interval: tuple[float, float] | None
    figure: Figure
    shares: np.ndarray | None
    installed: bool = True

    def __str__(self) -> str:
        """Return the accuracy in percent."""
        return f"{100 * self.accuracy:.1f}" if self.interval is None else written(self.accuracy, self.interval)


def load_report(path: Path) -> Loaded:
    """Read a report.

    :param path: A file that `Report.to_json` or `art-wdro evaluate --json` wrote.
    :raises ValueError: If it is none, or not a whole one, or of a later format.
    :raises OSError: If it cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is no report: it is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"'{path}' is no report: it holds a {type(data).__name__}; needed is an object")
    if data.get("complete") is False:
        raise ValueError(f"'{path}' is no whole report: its evaluation did not come to the end")
    if not isinstance(data.get("format", 0), int) or data.get("format", 0) > FORMAT:
        raise ValueError(f"'{path}' has the format {data['format']!r}; this version reads formats up to {FORMAT}")
    try:
        distances = _numbers(data["distances"], data["samples"], "distances")
        _require(len(distances) > 0, "it has no samples")
        _require(isinstance(data.get("versions", {}), dict), "its versions are no object")
        _require(isinstance(data.get("warnings", []), list), "its warnings are no list")
        float(data["norm"])
        return Loaded(str(path), data, distances, dict(_rows(data, distances)))
    except KeyError as error:
        raise ValueError(f"'{path}' is no report: it lacks {error}") from error
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"'{path}' is no report: {error}") from error


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _numbers(values: Any, samples: Any, name: str) -> np.ndarray:
    """Return numbers of the samples, (N,), "inf" included."""
    found = np.array([float(value) for value in values])
    _require(len(found) == samples, f"it has {len(found)} {name} for {samples} samples")
    _require(bool((found >= 0).all()), f"its {name} are not all numbers >= 0")
    return found


def _rows(data: dict[str, Any], distances: np.ndarray) -> Iterator[tuple[tuple[str, str], Standing]]:
    """Read the rows, that of the certificate too."""
    samples, eps, p = data["samples"], float(data["eps"]), float(data["p"])
    _require(eps >= 0 and p >= 1, f"its eps is {eps} and its p {p}")
    for row in data["attacks"]:
        accuracy = math.nan if row["accuracy"] is None else float(row["accuracy"])
        _require(not (accuracy < 0 or accuracy > 1), f"an accuracy of it is {accuracy}")
        interval, alone = _interval(row.get("interval")), row["threat"] in ("clean", "W_inf")
        if row["attack"] == KNAPSACK:
            figure, shares = _filled(distances, accuracy, eps, p)
        elif "format" in data and not math.isnan(accuracy):
            shares = _numbers(data["standing"][row["attack"]], samples, "shares")
            figure, shares = mean_of(shares), shares if alone else None
        else:  # samples unknown, compared with those of no other report one by one
            figure, shares = mean_of(np.arange(samples) < np.rint(accuracy * samples)), None
        known = Standing(accuracy, interval, figure, shares, bool(row.get("installed", True)))
        yield (row["threat"], row["attack"]), known
    if data.get("radii") is not None:
        accuracy, radii = float(data["certified"]), _numbers(data["radii"], samples, "radii")
        interval = _interval(data.get("certified_interval"))
        yield (f"W_{p:g}", CERTIFIED), Standing(accuracy, interval, *_filled(radii, accuracy, eps, p))


def _interval(ends: Any) -> tuple[float, float] | None:
    return None if ends is None else (float(ends[0]), float(ends[1]))


def _filled(distances: np.ndarray, accuracy: float, eps: float, p: float) -> tuple[Figure, np.ndarray | None]:
    """Return the knapsack's accuracy as a figure of draws, moved to that of the report, and shares that stand alone."""
    figure, by = knapsack_of(distances, eps, p), accuracy - knapsack_accuracy(distances, eps, p)
    return lambda counts: figure(counts) + by, (distances > eps).astype(float) if math.isinf(p) else None
