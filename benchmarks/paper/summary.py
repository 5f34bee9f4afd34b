# SPDX-License-Identifier: MIT
"""Summarise the cells that experiments.py has run: one table in Markdown and one JSON file an experiment.

python -m benchmarks.paper.summary runs/experiments/grid --json docs/results/grid.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from art_wdro import knapsack_accuracy
from benchmarks._cells import whole_files
from benchmarks._command import command, parsed
from benchmarks._files import keep_cells
from benchmarks._settings import SHARES
from benchmarks._tables import Table, spread
from benchmarks.paper._protocols import Site
from benchmarks.paper.experiments import decisive

COLUMNS = {
    "clean": "clean",
    "winf": "W_inf, PGD-20",
    "W_inf AutoAttack, standard": "W_inf, AutoAttack",
    "W_inf knapsack's distances": "W_inf, distances",
    "wp": "W_2, W-PGD-20",
    "W_2 W-PGD-100, ReDLR, linear": "W_2, W-PGD-100",
    "W_2 knapsack": "W_2, knapsack",
}


def name(cell: dict[str, Any]) -> str:
    """Return what cells that differ in the seed alone have in common."""
    own = cell["cell"]
    parts = [
        "before" if own["kind"] == "before" else "after",
        own["start"],
        own["tau"] and f"tau {own['tau']}",
        own["eta"] and f"eta {own['eta']}",
    ]
    variant = [] if cell["variant"] == "." else [cell["variant"]]
    return ", ".join([*variant, *(str(part) for part in parts if part)])


def figures(cell: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a cell: accuracies in percent, and seconds."""
    found = {key: 100 * value for key, value in cell["test"].items()}
    if cell["strong"]:
        found |= {f"{row['threat']} {row['attack']}": 100 * row["accuracy"] for row in cell["strong"]["attacks"]}
        distances = np.array([np.inf if d == "inf" else d for d in cell["strong"]["distances"]])
        for share in SHARES[:-1]:
            found[f"knapsack at {share:g} eps"] = 100 * knapsack_accuracy(distances, share * cell["protocol"]["eps"])
    return {**found, "seconds": cell["seconds"], "seed": cell["cell"]["seed"]}


def paired(groups: dict[str, list[dict[str, float]]]) -> None:
    """Print differences to the group named base, seed by seed."""
    base = next((rows for group, rows in groups.items() if group.startswith("base")), None)
    if base is None:
        return
    known = {row["seed"]: row for row in base}
    keys = ("clean", "W_inf knapsack's distances", "wp", "W_2 W-PGD-100, ReDLR, linear", "W_2 knapsack")
    print()
    table = Table("differences to base", *(COLUMNS[key] for key in keys))
    for group, rows in groups.items():
        pairs = [(row, known[row["seed"]]) for row in rows if row["seed"] in known]
        if rows is not base and pairs:
            table.row(group, *(spread([row[key] - other[key] for row, other in pairs]) for key in keys))


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the cells in a folder and in those below it, which are variants."""
    for file in whole_files(folder):
        cell = json.loads(file.read_text(encoding="utf-8"))
        if "cell" in cell:
            yield {**cell, "variant": str(file.parent.relative_to(folder))}


def summarise(cells: Sequence[dict[str, Any]]) -> None:
    """Print a row for all cells that differ in the seed alone."""
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for cell in cells:
        if "test" in cell:
            groups[name(cell)].append(figures(cell))
    curve = [f"knapsack at {share:g} eps" for share in SHARES[:-1]]
    columns = {k: v for k, v in COLUMNS.items() if any(k in row for rows in groups.values() for row in rows)}
    table = Table("", "seeds", *columns.values(), *curve, "seconds")
    for group, rows in groups.items():
        entries = [spread([row[key] for row in rows if key in row]) for key in (*columns, *curve, "seconds")]
        table.row(group, len(rows), *entries)
    paired(groups)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("folder", nargs="?", type=Path, help="not with --quick, which runs the decisive cells")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read a folder of cells, print its table and keep its figures."""
    line = parser()
    args = parsed(line, arguments)
    with tempfile.TemporaryDirectory() as passing:
        folder = args.folder
        if args.quick:
            list(decisive(Site(Path(passing), None, "cpu", quick=True)))
            folder = Path(passing) / "decisive"
        elif folder is None:
            line.error("a folder is missing, or --quick")
        cells = list(read(folder))
    summarise(cells)
    keep_cells(args.json, cells)


if __name__ == "__main__":
    main()
