# SPDX-License-Identifier: MIT
"""Draw the frontiers of the cells that training.py keeps: clean accuracy against the area, and against W_inf.

    python -m benchmarks.frontier.figure docs/results/frontier_*.json --figure docs/results/frontier.png

One row of panels a file. Filled markers are last weights, hollow ones their averages, and lines follow a method's knob.
Panels show what lies near the start. A quick run takes the cells of docs/results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from art_wdro._storage.files import write_atomically
from art_wdro.evaluation._report import empty_figure
from benchmarks._command import command, parsed
from benchmarks._files import ROOT, keep
from benchmarks._tables import Table
from benchmarks.frontier._cells import AVERAGED, LAST
from benchmarks.frontier._curves import Point, curves_of, points_of
from benchmarks.frontier._settings import START

PANELS = {"area": "area under the knapsack's curve in %", "winf": "W_inf at eps by least distances in %"}
SHOWN = {
    "TRADES": ("#000000", "o"),
    "TRADES, 1.5 eps": ("#7f5539", "p"),
    "TRADES, 2 eps": ("#b08968", "h"),
    "TRADES-AWP": ("#999999", "s"),
    "AT": ("#56b4e9", "v"),
    "MMA": ("#cc79a7", "D"),
    "paper": ("#0072b2", "^"),
    "longer steps": ("#e69f00", ">"),
    "combined": ("#009e73", "<"),
    "margin": ("#d55e00", "P"),
    "margin, one side": ("#f4a582", "d"),
}
"""Colour and marker of the methods that are drawn unless others are named."""
OTHERS = ("#f0e442", "X")
LEFT, RIGHT, BELOW = 5.0, 2.0, 4.0
"""How far from the start panels reach, in points; what lies further off is in the table alone."""


def draw(files: dict[str, list[Point]], methods: Sequence[str], file: Path) -> None:
    """Draw a row of panels for each list of points.

    :param files: Points by the title of their row.
    :param methods: What is drawn beside the start.
    :param file: Where the figure goes.
    """
    figure = empty_figure((10, 4.6 * len(files)))
    rows = figure.subplots(len(files), len(PANELS), squeeze=False)
    for axes, (title, points) in zip(rows, files.items(), strict=True):
        for panel, (name, label) in zip(axes, PANELS.items(), strict=True):
            draw_panel(panel, points, methods, name)
            panel.set(title=title, xlabel="clean accuracy in %", ylabel=label)
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    write_atomically(file, partial(figure.savefig, dpi=120))


def draw_panel(axes: Any, points: Sequence[Point], methods: Sequence[str], name: str) -> None:
    """Draw one figure over clean accuracy."""
    for point in points:
        if point.method == START:
            x, y = point.mean("clean"), point.mean(name)
            axes.plot(x, y, "k*", markersize=12, label=START)
            axes.set(xlim=(x - LEFT, x + RIGHT))
            highest = max(point.mean(name) for point in points)
            axes.set(ylim=(y - BELOW, highest + BELOW / 5))
    for method in methods:
        colour, marker = SHOWN.get(method, OTHERS)
        label = method
        for weights, filling in ((LAST, colour), (AVERAGED, "none")):
            for curve in curves_of(points, method, weights):
                along = ([point.mean(key) for point in curve] for key in ("clean", name))
                style = {"color": colour, "marker": marker, "markerfacecolor": filling, "markersize": 5}
                axes.plot(*along, linewidth=0.8, alpha=0.9, label=label, **style)
                label = "_"  # one entry of the legend for all


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("cells", nargs="*", type=Path)
    found.add_argument("--figure", type=Path)
    found.add_argument("--methods", nargs="+", default=list(SHOWN))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read cells, print and draw their points."""
    args = parsed(parser(), arguments)
    found = {}
    for file in args.cells or sorted((ROOT / "docs/results").glob("frontier_*.json")):
        title = file.stem.removeprefix("frontier_").replace("_", "-")
        found[title] = points_of(json.loads(file.read_text(encoding="utf-8")))
    table, rows = Table("", "", "", "clean", "area", "W_inf"), []
    for title, points in found.items():
        for point in points:
            if point.method in (START, *args.methods):
                means = {name: round(point.mean(name), 2) for name in ("clean", "area", "winf")}
                rows.append(
                    {"data": title, "method": point.method, "knob": point.knob, "weights": point.weights, **means}
                )
                table.row(title, point.method, f"{point.knob or ''}, {point.weights}", *means.values())
    if args.figure is not None:
        draw(found, args.methods, args.figure)
    keep(args.json, rows)


if __name__ == "__main__":
    main()
