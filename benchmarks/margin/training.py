# SPDX-License-Identifier: MIT
"""The margin trainer against the paper's method and its kin, fine-tuning and from scratch (docs/results/margin.md).

    python -m benchmarks.margin.training run fashion-mnist --data-dir DIR
    python -m benchmarks.margin.training autoattack fashion-mnist --data-dir DIR
    python -m benchmarks.margin.training table fashion-mnist

DIR is as for paper/experiments.py. Every cell, one method and one seed, is kept in runs/margin; a run that is stopped
goes on where it was. Methods see the same images in the same order, with at most 10 gradient evaluations a sample in
each inner problem, but where a name says so (the combined objective has two, and perturbed weights cost one more pass).
Each has the learning rates of the data set and the variants that are listed for it to choose from: the first seed and
validation images decide, the other seeds follow, and the table is of other test images.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from art_wdro._storage.files import write_text
from art_wdro.evaluation._autoattack import autoattack_runner
from benchmarks.margin._cells import classifier_for, data_of, file_of, read, run_cell
from benchmarks.margin._choices import chosen, chosen_groups, group_of, in_table, method_of
from benchmarks.margin._settings import REMEDIES, SEEDS, SETTINGS
from benchmarks.paper.summary import SHARES, compact, spread

AUTOATTACK_IMAGES = 200
"""Test images of AutoAttack, among those of the knapsack."""


def run(name: str, folder: Path, data_dir: str, methods: Sequence[str] | None, seeds: list[int]) -> None:
    """Run the first seed with all variants, and other seeds with the chosen one; cells that are there stay."""
    setting = SETTINGS[name]
    known = list(dict.fromkeys(map(method_of, setting.methods)))
    unknown = [method for method in methods or () if method not in known]
    if unknown:
        raise SystemExit(f"--methods is {unknown[0]!r}; allowed for {name} are {', '.join(map(repr, known))}")
    data = data_of(setting, data_dir)
    start = run_cell(name, {"method": "start", "rate": None, "seed": None}, folder, data)
    for method in methods or known:
        found = [
            run_cell(name, {"method": m, "rate": rate, "seed": SEEDS[0]}, folder, data)
            for m in setting.methods
            if method_of(m) == method
            for rate in setting.rates_of(m)
        ]
        best = chosen(found, start)
        for seed in () if method in REMEDIES or best is None else seeds:
            run_cell(name, {**best["cell"], "seed": seed}, folder, data)


def autoattack(name: str, folder: Path, data_dir: str) -> None:
    """Run AutoAttack, standard, on images that the searches leave standing, in the first seed's cells of the table."""
    setting = SETTINGS[name]
    test = data_of(setting, data_dir)[1].choose(np.arange(AUTOATTACK_IMAGES))
    for cell in in_table(read(folder / name)):
        file = file_of(folder / name, cell["cell"])
        if "autoattack" in cell or "failed" in cell or cell["cell"]["seed"] not in (SEEDS[0], None):
            continue
        classifier = classifier_for(name, 0.0)
        classifier.model.load_state_dict(torch.load(file.with_suffix(".pt"), weights_only=True))
        standing = np.flatnonzero(np.array(cell["distances"][:AUTOATTACK_IMAGES]) > setting.eps)
        x, y = (torch.from_numpy(part[standing]) for part in test)
        right = np.zeros(0, bool)
        if len(standing):
            adversarial, _ = autoattack_runner(classifier, x, y, math.inf, setting.eps, 250)()
            right = classifier.predict(adversarial).argmax(1) == y.numpy()
        cell["autoattack"] = float(right.sum() / AUTOATTACK_IMAGES)
        write_text(file, json.dumps(cell, indent=1))
        print(json.dumps({**cell["cell"], **both(cell)}), flush=True)


def both(cell: dict[str, Any]) -> dict[str, float]:
    """Return W_inf accuracy in % on AutoAttack's images: by the searches, and by AutoAttack on top of them."""
    found = np.array(cell["distances"][:AUTOATTACK_IMAGES])
    searches = float((found > cell["setting"]["eps"]).mean())
    return {"searches": round(100 * searches, 1), "autoattack": round(100 * cell["autoattack"], 1)}


def table(name: str, folder: Path, out: Path | None) -> None:
    """Print mean and standard deviation over seeds of the chosen cells, in bold, and the choices; keep all cells."""
    cells = read(folder / name)
    bold = chosen_groups(cells)
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in in_table(cells):
        if "failed" in cell:
            print(f"{cell['cell']} failed: {cell['failed']}")
            continue
        group = group_of(cell)
        groups.setdefault(f"**{group}**" if group in bold else group, []).append(cell)
    print("| | clean | W_inf | searches / AutoAttack | " + " | ".join(f"{share:g} eps" for share in SHARES), end=" | ")
    print("area | W-PGD-20 | clean, more | W_inf, more | area, more | gradients | seconds |")
    print("| --- " * (len(SHARES) + 11) + "|")
    for group, rows in sorted(groups.items(), key=lambda item: statistics.mean(row["area"] for row in item[1])):
        columns = [[100 * row[key] for row in rows] for key in ("clean", "winf")]
        pair = next((" / ".join(map(str, both(row).values())) for row in rows if "autoattack" in row), "")
        columns += [[100 * row["curve"][place] for row in rows] for place in range(len(SHARES))]
        columns += [[100 * row[key] for row in rows] for key in ("area", "wpgd")]
        columns += [[100 * row["more"][key] for row in rows] for key in ("clean", "winf", "area")]
        columns += [[row[key] for row in rows if row.get(key)] for key in ("gradients", "seconds")]
        entries = [*map(spread, columns)]
        print(f"| {group} | " + " | ".join([*entries[:2], pair, *entries[2:]]) + " |")
    print("\n| choices, first seed, validation images | clean | W_inf | area |\n| --- | --- | --- | --- |")
    for cell in cells:
        if cell["cell"]["seed"] in (SEEDS[0], None):
            shown = ["failed"] * 3
            if "validation" in cell:
                shown = [f"{100 * cell['validation'][key]:.1f}" for key in ("clean", "winf", "area")]
            print(f"| {group_of(cell)} | " + " | ".join(shown) + " |")
    if out is not None:
        write_text(out, json.dumps([compact(cell) for cell in cells], separators=(",", ":")) + "\n")


def main() -> None:
    """Run cells, or print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "autoattack", "table"))
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--folder", type=Path, default=Path("runs/margin"))
    parser.add_argument("--methods", nargs="+", help="with all variants of each; all of the data set, unless given")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--out", type=Path, help="file that keeps all cells, for `table`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.action == "run":
        run(args.name, args.folder, args.data_dir, args.methods, args.seeds)
    elif args.action == "autoattack":
        autoattack(args.name, args.folder, args.data_dir)
    else:
        table(args.name, args.folder, args.out)


if __name__ == "__main__":
    main()
