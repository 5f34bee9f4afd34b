# SPDX-License-Identifier: MIT
"""Points on frontiers: means over seeds, curves along a knob, and what a method leaves at a wanted clean accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.frontier._cells import AVERAGED, LAST
from benchmarks.frontier._settings import METHODS, START

WEIGHTS = (LAST, AVERAGED)
FIGURES = ("clean", "winf", "area", "wpgd")
APART = "epochs"
"""A knob whose values cost more gradients than others: on no curve, in the table of points alone."""


class Point(NamedTuple):
    """One value of a method's knob: every figure in %, a value a seed.

    :param method: Name of the method.
    :param knob: Name of the value; None for the start.
    :param weights: Which weights.
    :param figures: Values by name, (seeds,).
    """

    method: str
    knob: str | None
    weights: str
    figures: dict[str, np.ndarray]

    def mean(self, name: str) -> float:
        """Return the mean of a figure over the seeds."""
        return float(self.figures[name].mean())


def points_of(cells: Sequence[dict[str, Any]]) -> list[Point]:
    """Return the points of cells that did not fail, in the order of the settings."""
    groups: dict[tuple[str, str | None, str], list[dict[str, Any]]] = {}
    for cell in cells:
        for weights, found in cell.get("points", {}).items():
            groups.setdefault((cell["cell"]["method"], cell["cell"]["knob"], weights), []).append(found)
    found = [
        Point(*key, {name: np.array([100 * one[name] for one in group]) for name in FIGURES})
        for key, group in groups.items()
    ]
    order = [START, *METHODS]
    return sorted(found, key=lambda point: (order.index(point.method), point.weights == AVERAGED, _place(point)))


def curves_of(points: Sequence[Point], method: str, weights: str) -> list[list[Point]]:
    """Return a method's curves, one a knob along its values; the default is a value of each."""
    own = {point.knob: point for point in points if (point.method, point.weights) == (method, weights)}
    knobs = {knob.split()[0] for knob in METHODS[method].knobs} - {APART}
    default = next(iter(METHODS[method].knobs))
    curves = []
    for name in sorted(knobs):
        along = [point for knob, point in own.items() if knob is not None and knob.split()[0] == name]
        if default in own and own[default] not in along:
            along.append(own[default]._replace(knob=f"{name} {_usual(method, name):g}"))
        curves.append(sorted(along, key=lambda point: _number(point.knob)))
    return curves


def at_clean(curves: Sequence[Sequence[Point]], clean: float, name: str) -> float | None:
    """Interpolate a figure between neighbours on curves at a clean accuracy in %: the largest, None out of reach."""
    found = []
    for curve in curves:
        for one, other in itertools.pairwise(curve):
            low, high = sorted((one, other), key=lambda point: point.mean("clean"))
            x = [point.mean("clean") for point in (low, high)]
            if x[0] <= clean <= x[1]:
                found.append(float(np.interp(clean, x, [point.mean(name) for point in (low, high)])))
    return max(found, default=None)


def _usual(method: str, knob: str) -> float:
    """Return the value of another knob at a method's default."""
    options: dict[str, Any] = METHODS[method].options
    return float(options.get(knob, 1.0))


def _place(point: Point) -> tuple[str, float]:
    return ("", 0.0) if point.knob is None else (point.knob.split()[0], _number(point.knob))


def _number(knob: str | None) -> float:
    assert knob is not None
    return float(knob.split()[1])
