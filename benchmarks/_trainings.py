# SPDX-License-Identifier: MIT
"""Cells that train a network: what they are told, how a training may end, and what least distances say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np

from art_wdro import knapsack_accuracy
from benchmarks._cells import Content
from benchmarks._settings import SHARES
from benchmarks._timing import timed

GRID = np.linspace(0, 1, 41)
"""Budgets of the area, in eps."""
PRINTED = ("clean", "winf", "area", "wpgd")
"""Figures that are printed when a cell is done."""


def worded(options: Content) -> Content:
    """Return options as JSON has them, which has no inf."""
    return {name: "inf" if value == math.inf else value for name, value in options.items()}


def attempted(work: Callable[[], Content]) -> tuple[Content, float]:
    """Return what a cell gives, and in how many seconds: the error, in none, where its training diverged."""
    try:
        return timed(work)
    except FloatingPointError as error:
        return {"failed": str(error)}, 0.0


def show(cell: Content, found: Content, seconds: float) -> None:
    """Print what tells a cell from the others, and its figures in %, if it has any."""
    figures = {key: round(100 * found[key], 2) for key in PRINTED if key in found}
    print(json.dumps({**cell, **figures, "seconds": round(seconds)}), flush=True)


def figures_of(distances: np.ndarray, eps: float) -> Content:
    """Return what least distances say: clean and pointwise accuracy, and the knapsack's under W_2."""
    return {
        "clean": float((distances > 0).mean()),
        "winf": float((distances > eps).mean()),
        "curve": knapsack_accuracy(distances, np.array(SHARES) * eps).tolist(),
        "area": float(np.trapezoid(knapsack_accuracy(distances, GRID * eps), GRID)),
    }
