# SPDX-License-Identifier: MIT
"""Draw accuracy over the budget from the figures that training.py keeps: means over seeds, and their range.

    python -m benchmarks.margin.figure docs/results/margin_fashion_mnist.json --figure docs/results/margin.png

A quick run takes the cells of docs/results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from art_wdro import knapsack_accuracy
from art_wdro._storage.files import write_atomically
from art_wdro.evaluation._report import empty_figure
from benchmarks._command import command, parsed
from benchmarks._files import ROOT, keep
from benchmarks._settings import SHARES
from benchmarks._tables import Table
from benchmarks.margin._choices import chosen_groups, group_of, method_of

BUDGETS = np.linspace(0, 1.5, 61)
"""Budgets of the curves, in eps."""
SHOWN = ("TRADES", "paper", "paper, longer steps", "margin")
COLOURS = ("#000000", "#0072b2", "#e69f00", "#d55e00", "#009e73")


def curves_of(cells: list[dict[str, Any]], name: str, budgets: np.ndarray) -> np.ndarray:
    """Return accuracies in %, a row a seed: (S, budgets), the budgets in eps."""
    own = [cell for cell in cells if group_of(cell) == name and "failed" not in cell]
    return 100 * np.array([knapsack_accuracy(np.array(c["distances"], float), budgets * eps_of(c)) for c in own])


def eps_of(cell: dict[str, Any]) -> float:
    """Return the budget of a cell, in input units."""
    eps: float = cell["setting"]["eps"]
    return eps


def draw(cells: list[dict[str, Any]], shown: Sequence[str], file: Path) -> None:
    """Draw the curves of some methods."""
    figure = empty_figure()
    figure.set_size_inches(6.2, 4)
    axes, eps = figure.subplots(), eps_of(cells[0])
    for name, colour in zip(shown, cycle(COLOURS), strict=False):
        curves = curves_of(cells, name, BUDGETS)
        axes.plot(BUDGETS * eps, curves.mean(0), color=colour, label=name)
        axes.fill_between(BUDGETS * eps, curves.min(0), curves.max(0), color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="budget eps of (W_2, l_inf), in input units", ylabel="accuracy under the knapsack in %")
    axes.set(xlim=(0, BUDGETS[-1] * eps), ylim=(0, None))
    axes.legend()
    write_atomically(file, partial(figure.savefig, dpi=120))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("cells", nargs="?", type=Path, default=ROOT / "docs/results/margin_fashion_mnist.json")
    found.add_argument("--figure", type=Path)
    found.add_argument(
        "--methods",
        nargs="+",
        help="names of the table; unless given, the start and what the margin trainer and its nearest rivals chose",
    )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read cells, print and draw those of some methods."""
    args = parsed(parser(), arguments)
    cells = json.loads(args.cells.read_text(encoding="utf-8"))
    chosen = sorted(group for group in chosen_groups(cells) if method_of(group.rpartition(", ")[0]) in SHOWN)
    shown = args.methods or [*chosen, "start"]
    table, rows = Table("", "seeds", *(f"{share:g} eps" for share in SHARES)), []
    for name in shown:
        curves = curves_of(cells, name, np.array(SHARES))
        rows.append({"method": name, "seeds": len(curves), "curve": curves.mean(0).tolist()})
        table.row(name, len(curves), *(f"{value:.1f}" for value in rows[-1]["curve"]))
    if args.figure is not None:
        draw(cells, shown, args.figure)
    keep(args.json, rows)


if __name__ == "__main__":
    main()
