# SPDX-License-Identifier: MIT
"""The margin trainer against the paper's method and its kin, fine-tuning and from scratch (docs/results/margin.md).

    python -m benchmarks.margin.training run fashion-mnist --data-dir DIR
    python -m benchmarks.margin.training autoattack fashion-mnist --data-dir DIR
    python -m benchmarks.margin.training table fashion-mnist --json FILE

DIR is as for paper/experiments.py. Every cell, one method and one seed, is kept in runs/margin; a run that is stopped
goes on where it was. Methods see the same images in the same order, with at most 10 gradient evaluations a sample in
each inner problem, but where a name says so (the combined objective has two, and perturbed weights cost one more pass).
Each has the learning rates of the data set and the variants that are listed for it to choose from: the first seed and
validation images decide, the other seeds follow, and the table is of other test images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._autoattack import attack_standing, both
from benchmarks._cells import file_of, read_cells
from benchmarks._command import command, parsed, with_data
from benchmarks._files import keep_cells
from benchmarks._settings import QUICK, SEEDS, SHARES
from benchmarks._tables import Table, spread
from benchmarks.margin._cells import AT_ONCE, data_of, restored, run_method
from benchmarks.margin._choices import chosen, chosen_groups, group_of, in_table, method_of
from benchmarks.margin._settings import REMEDIES, SETTINGS


def run(name: str, folder: Path, data_dir: Path, methods: Sequence[str] | None, seeds: Sequence[int]) -> None:
    """Run the first seed with all variants, and other seeds with the chosen one; cells that are there stay."""
    setting = SETTINGS[name]
    known = list(dict.fromkeys(map(method_of, setting.methods)))
    unknown = [method for method in methods or () if method not in known]
    if unknown:
        raise SystemExit(f"--methods is {unknown[0]!r}; allowed for {name} are {', '.join(map(repr, known))}")
    data = data_of(setting, data_dir)
    start = run_method(name, {"method": "start", "rate": None, "seed": None}, folder, data)
    for method in methods or known:
        found = [
            run_method(name, {"method": m, "rate": rate, "seed": SEEDS[0]}, folder, data)
            for m in setting.methods
            if method_of(m) == method
            for rate in setting.rates_of(m)
        ]
        best = chosen(found, start)
        if best is not None and method not in REMEDIES:
            for seed in seeds:
                run_method(name, {**best["cell"], "seed": seed}, folder, data)


def autoattack(name: str, folder: Path, data_dir: Path) -> None:
    """Run AutoAttack for the first seed's cells of the table."""
    _, test = data_of(SETTINGS[name], data_dir)
    for cell in in_table(read_cells(folder / name)):
        file = file_of(folder / name, cell["cell"])
        if "autoattack" in cell or "failed" in cell or cell["cell"]["seed"] not in (SEEDS[0], None):
            continue
        shown = attack_standing(file, cell, cell, restored(name, file), test, AT_ONCE)
        print(json.dumps({**cell["cell"], **shown}), flush=True)


def table(name: str, folder: Path, out: Path | None) -> None:
    """Print mean and standard deviation over seeds of the chosen cells, in bold, and the choices; keep all cells."""
    cells = read_cells(folder / name)
    bold = chosen_groups(cells)
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in in_table(cells):
        if "failed" in cell:
            print(f"{cell['cell']} failed: {cell['failed']}")
            continue
        group = group_of(cell)
        groups.setdefault(f"**{group}**" if group in bold else group, []).append(cell)
    curve = (f"{share:g} eps" for share in SHARES)
    more = "area", "W-PGD-20", "clean, more", "W_inf, more", "area, more", "gradients", "seconds"
    shown = Table("", "clean", "W_inf", "searches / AutoAttack", *curve, *more)
    for group, rows in sorted(groups.items(), key=lambda item: statistics.mean(row["area"] for row in item[1])):
        shown.row(group, *entries(rows))
    print()
    shown = Table("choices, first seed, validation images", "clean", "W_inf", "area")
    for cell in cells:
        if cell["cell"]["seed"] in (SEEDS[0], None):
            found = ["failed"] * 3
            if "validation" in cell:
                found = [f"{100 * cell['validation'][key]:.1f}" for key in ("clean", "winf", "area")]
            shown.row(group_of(cell), *found)
    keep_cells(out, cells)


def entries(rows: list[dict[str, Any]]) -> list[str]:
    """Return what the table shows of cells that differ in the seed alone."""
    columns = [[100 * row[key] for row in rows] for key in ("clean", "winf")]
    pairs = [both(row, row["setting"]["eps"]) for row in rows if "autoattack" in row]
    pair = " / ".join(map(str, pairs[0].values())) if pairs else ""
    columns += [[100 * row["curve"][place] for row in rows] for place in range(len(SHARES))]
    columns += [[100 * row[key] for row in rows] for key in ("area", "wpgd")]
    columns += [[100 * row["more"][key] for row in rows] for key in ("clean", "winf", "area")]
    columns += [[row[key] for row in rows if row.get(key)] for key in ("gradients", "seconds")]
    found = [*map(spread, columns)]
    return [*found[:2], pair, *found[2:]]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("action", nargs="?", choices=("run", "autoattack", "table"), help="run and table with --quick")
    with_data(found, [name for name in SETTINGS if name != QUICK])
    found.add_argument("--folder", type=Path, default=Path("runs/margin"))
    found.add_argument("--methods", nargs="+", help="with all variants of each; all of the data set, unless given")
    found.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run cells, or print their table."""
    args = parsed(parser(), arguments, seeds=[0, 1])
    torch.set_num_threads(1)
    data_dir = args.data_dir or Path("data")
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            run(args.name, Path(folder), data_dir, args.methods, args.seeds)
            table(args.name, Path(folder), args.json)
    elif args.action == "run":
        run(args.name, args.folder, data_dir, args.methods, args.seeds)
    elif args.action == "autoattack":
        autoattack(args.name, args.folder, data_dir)
    else:
        table(args.name, args.folder, args.json)


if __name__ == "__main__":
    main()
