# SPDX-License-Identifier: MIT
"""Draw accuracy over the budget from the figures that margin/training.py keeps: means over seeds, and their range.

python -m benchmarks.margin.figure docs/results/margin_fashion_mnist.json docs/results/margin.png
"""

from __future__ import annotations

import argparse
import json
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from art_wdro import knapsack_accuracy
from benchmarks.margin._choices import chosen_groups, group_of, method_of

BUDGETS = np.linspace(0, 1.5, 61)
"""Budgets of the curves, in eps."""
SHOWN = ("TRADES", "paper", "paper, longer steps", "margin")
COLOURS = ("#000000", "#0072b2", "#e69f00", "#d55e00", "#009e73")


def main() -> None:
    """Read cells and draw those of some methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--methods",
        nargs="+",
        help="names of the table; unless given, the start and what the margin trainer and its nearest rivals chose",
    )
    args = parser.parse_args()
    cells = json.loads(args.cells.read_text(encoding="utf-8"))
    figure = Figure(figsize=(6.2, 4), layout="constrained")
    axes = figure.subplots()
    chosen = sorted(group for group in chosen_groups(cells) if method_of(group.rpartition(", ")[0]) in SHOWN)
    shown = args.methods or [*chosen, "start"]
    for name, colour in zip(shown, cycle(COLOURS), strict=False):
        own = [cell for cell in cells if group_of(cell) == name and "failed" not in cell]
        eps = own[0]["setting"]["eps"]
        curves = 100 * np.array([knapsack_accuracy(np.array(c["distances"], float), BUDGETS * eps) for c in own])
        axes.plot(BUDGETS * eps, curves.mean(0), color=colour, label=name)
        axes.fill_between(BUDGETS * eps, curves.min(0), curves.max(0), color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="budget eps of (W_2, l_inf), in input units", ylabel="accuracy under the knapsack in %")
    axes.set(xlim=(0, BUDGETS[-1] * eps), ylim=(0, None))
    axes.legend()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
