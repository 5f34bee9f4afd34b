# SPDX-License-Identifier: MIT
"""The frontier of every trainer: clean accuracy against accuracy under a shared budget (docs/results/frontier.md).

    python -m benchmarks.frontier.training run fashion-mnist --data-dir DIR
    python -m benchmarks.frontier.training run cifar10-resnet18 --data-dir DIR --network MODULE:FUNCTION --device gpu
    python -m benchmarks.frontier.training autoattack fashion-mnist --data-dir DIR --only "margin, beta 3"
    python -m benchmarks.frontier.training table fashion-mnist --json FILE

DIR is as for networks/robust.py. Every cell, one method, one value of its knob and one seed, is kept in runs/frontier
as soon as it is done; a run that is stopped goes on where it was. `--shard 0/3`, `1/3` and `2/3` share the cells among
three processes, and `--minutes` begins no cell after so many. All methods have the same network to start from, the same
images, in the same order with the same seed, the same optimiser and cycle, and at most 10 gradient evaluations a sample
in the inner problem; every training gives two points, its last weights and their average.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._autoattack import attack_standing, both
from benchmarks._cells import file_of, read_cells
from benchmarks._command import command, parsed, share, with_data, with_shard
from benchmarks._files import keep_cells
from benchmarks._settings import QUICK, SEEDS
from benchmarks._tables import Table, spread
from benchmarks.frontier._cells import Bench, bench_of, restored, run_point, shown_name
from benchmarks.frontier._curves import FIGURES, WEIGHTS, Point, at_clean, curves_of, points_of
from benchmarks.frontier._settings import METHODS, QUICK_POINTS, SETTINGS, START, cells_of, point_of

LEVELS = (-4, -3, -2, -1, 0, 1, 2)
"""Clean accuracies at which methods are compared, in points from the start's."""
MINUTE = 60


def run(bench: Bench, cells: Sequence[dict[str, Any]], minutes: float) -> None:
    """Run cells that are not there, and begin none after so many minutes."""
    end = time.monotonic() + MINUTE * minutes
    for cell in cells:
        if time.monotonic() > end:
            print(f"{minutes:g} minutes are over before {cell}", flush=True)
            return
        run_point(bench, cell)


def autoattack(bench: Bench, cells: Sequence[dict[str, Any]]) -> None:
    """Run AutoAttack for all weights of cells that were run."""
    for own in cells:
        file = file_of(bench.folder, own)
        if not file.exists():
            continue
        cell = json.loads(file.read_text(encoding="utf-8"))
        for weights, point in cell.get("points", {}).items():
            if "autoattack" in point:
                continue
            classifier = restored(bench, own, weights)
            shown = attack_standing(file, cell, point, classifier, bench.test, bench.setting.at_once)
            print(json.dumps({**own, "weights": weights, **shown}), flush=True)


def table(cells: Sequence[dict[str, Any]]) -> None:
    """Print every point, mean and standard deviation over seeds, and the figures at equal clean accuracy."""
    points = points_of(cells)
    shown = Table("", "seeds", "clean", "W_inf", "area", "W-PGD-20")
    for point in points:
        cell = {"method": point.method, "knob": point.knob}
        own = [spread([*point.figures[name]]) for name in FIGURES]
        shown.row(shown_name(cell, point.weights), len(point.figures["clean"]), *own)
    for cell in cells:
        if "failed" in cell:
            print(f"{cell['cell']} failed: {cell['failed']}")
    attacked(cells)
    start = next(point for point in points if point.method == START)
    for name, title in (("area", "area"), ("winf", "W_inf")):
        compare(points, start.mean("clean"), name, title)


def attacked(cells: Sequence[dict[str, Any]]) -> None:
    """Print W_inf on AutoAttack's images, by the search and by AutoAttack on top of it, where that was run."""
    rows = [
        (shown_name(cell["cell"], weights), *both(point, cell["setting"]["eps"]).values())
        for cell in cells
        for weights, point in cell.get("points", {}).items()
        if "autoattack" in point
    ]
    if rows:
        print()
        shown = Table("W_inf on few images", "search", "AutoAttack")
        for row in rows:
            shown.row(*row)


def compare(points: Sequence[Point], clean: float, name: str, title: str) -> None:
    """Print a figure of every method at clean accuracies around one."""
    rows = []
    for weights in WEIGHTS:
        for method in METHODS:
            curves = curves_of(points, method, weights)
            found = [at_clean(curves, clean + level, name) for level in LEVELS]
            if any(value is not None for value in found):
                texts = ["" if value is None else f"{value:.1f}" for value in found]
                rows.append((shown_name({"method": method, "knob": None}, weights), *texts))
    if rows:
        print()
        shown = Table(f"{title} at clean", *(f"{clean + level:.1f}" for level in LEVELS))
        for row in rows:
            shown.row(*row)


def wanted(args: argparse.Namespace) -> Sequence[dict[str, Any]]:
    """Return this process's share of the cells that the command line names."""
    only = QUICK_POINTS if args.quick and not args.only else args.only
    names = [*METHODS, START, *map(point_of, cells_of((0,)))]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise SystemExit(f"--only is {unknown[0]!r}; allowed are methods and their points, {', '.join(names)}")
    found = [c for c in cells_of(tuple(args.seeds)) if not only or {c["method"], point_of(c)} & set(only)]
    return share(found, args.shard)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("action", nargs="?", choices=("run", "autoattack", "table"), help="run and table with --quick")
    with_data(found, [name for name in SETTINGS if name != QUICK])
    found.add_argument("--folder", type=Path, default=Path("runs/frontier"))
    found.add_argument(
        "--network", help="the start, as `art-wdro evaluate --model`; else that of networks/pretrained.py"
    )
    found.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    found.add_argument("--minutes", type=float, default=math.inf, help="begin no cell after so many")
    found.add_argument("--only", nargs="+", help='methods or points, as "TRADES" or "TRADES, beta 3"; all unless given')
    found.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS[:1]))
    return with_shard(found, "the cells")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run cells, or print their table."""
    args = parsed(parser(), arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(passing) if args.quick else args.folder / args.name
        if args.quick or args.action != "table":
            bench = bench_of(SETTINGS[args.name], args.network, args.device, folder, args.data_dir)
            if args.action == "autoattack":
                autoattack(bench, wanted(args))
            else:
                run(bench, wanted(args), args.minutes)
        if args.quick or args.action == "table":
            cells = read_cells(folder)
            table(cells)
            keep_cells(args.json, cells)


if __name__ == "__main__":
    main()
