# SPDX-License-Identifier: MIT
"""Summarise the cells that paper/experiments.py has run: one table in Markdown and one JSON file an experiment.

python -m benchmarks.paper.summary runs/experiments/grid docs/results/grid.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from art_wdro import knapsack_accuracy

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Budgets of the curve, in eps: 1, 2, 4, 6 and 8 of 255 where eps is 8/255."""
COLUMNS = {
    "clean": "clean",
    "winf": "W_inf, PGD-20",
    "W_inf AutoAttack, standard": "W_inf, AutoAttack",
    "W_inf knapsack's distances": "W_inf, distances",
    "wp": "W_2, W-PGD-20",
    "W_2 W-PGD-100, ReDLR, linear": "W_2, W-PGD-100",
    "W_2 knapsack": "W_2, knapsack",
}


def main() -> None:
    """Read a folder of cells, print its table and keep its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    cells, groups = [], defaultdict(list)
    for file in sorted(args.folder.rglob("*.json")):
        cell = json.loads(file.read_text(encoding="utf-8"))
        if "cell" not in cell:
            continue
        cell["variant"] = str(file.parent.relative_to(args.folder))
        cells.append(compact(cell))
        if "test" in cell:
            groups[name(cell)].append(figures(cell))
    curve = [f"knapsack at {share:g} eps" for share in SHARES[:-1]]
    columns = {k: v for k, v in COLUMNS.items() if any(k in row for rows in groups.values() for row in rows)}
    print("| | seeds | " + " | ".join([*columns.values(), *curve, "seconds"]) + " |")
    print("| --- " * (len(columns) + len(curve) + 3) + "|")
    for group, rows in groups.items():
        entries = [spread([row[key] for row in rows if key in row]) for key in (*columns, *curve, "seconds")]
        print(f"| {group} | {len(rows)} | " + " | ".join(entries) + " |")
    paired(groups)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(cells, separators=(",", ":")) + "\n", encoding="utf-8")


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


def spread(values: list[float]) -> str:
    """Return the mean and the standard deviation over seeds."""
    if not values:
        return ""
    more = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{more}"


def paired(groups: dict[str, list[dict[str, float]]]) -> None:
    """Print differences to the group named base, seed by seed."""
    base = next((rows for group, rows in groups.items() if group.startswith("base")), None)
    if base is None:
        return
    known = {row["seed"]: row for row in base}
    keys = ("clean", "W_inf knapsack's distances", "wp", "W_2 W-PGD-100, ReDLR, linear", "W_2 knapsack")
    print("\n| differences to base | " + " | ".join(COLUMNS[key] for key in keys) + " |\n" + "| --- " * 6 + "|")
    for group, rows in groups.items():
        pairs = [(row, known[row["seed"]]) for row in rows if row["seed"] in known]
        if rows is not base and pairs:
            entries = [spread([row[key] - other[key] for row, other in pairs]) for key in keys]
            print(f"| {group} | " + " | ".join(entries) + " |")


def compact(cell: dict[str, Any]) -> dict[str, Any]:
    """Round what nobody needs to sixteen digits."""
    return json.loads(json.dumps(cell), parse_float=lambda text: float(f"{float(text):.5g}"))


if __name__ == "__main__":
    main()
