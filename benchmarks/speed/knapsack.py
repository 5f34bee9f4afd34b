# SPDX-License-Identifier: MIT
"""What equal least distances cost: the search of the knapsack against FMN and bisected Auto-PGD.

    pip install foolbox==3.3.4; pip install --no-deps adv-lib==0.2.8
    python -m benchmarks.speed.knapsack fashion-mnist --data-dir DIR

For each rival the search gets the fewest gradient evaluations, of a ladder, at which its median distance is the rival's
or less; then both run interleaved on the same images, and their gradients a sample and times are compared.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from art_wdro._reproduction.machine import machine
from benchmarks._cells import Cells, cells_of
from benchmarks._command import command, parsed, with_data
from benchmarks._files import documented, keep
from benchmarks._tables import Table
from benchmarks._timing import interleaved, ratio
from benchmarks.attacks._rivals import (
    NORMS,
    Images,
    Searches,
    art_searches,
    correct_images,
    installed,
    knapsack,
    library_searches,
    scored,
)

LADDER = (5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300)
"""Gradient evaluations a sample."""
EQUAL = 1.001
"""Medians that differ by a thousandth are equal."""
RIVALS = ("foolbox FMN", "adv-lib FMN", "Auto-PGD bisected", "ART DeepFool")
"""How the names of rivals begin; the last one takes part in quick runs alone, which may have no other."""


def rivals(images: Images, r: float, libraries: set[str], quick: bool) -> Searches:
    """Return the rivals under a ground norm."""
    found = library_searches(images, r, libraries) | (art_searches(images, r, max_iter=10) if quick else {})
    return {name: run for name, run in found.items() if name.startswith(RIVALS)}


def climbed(images: Images, r: float, ladder: Sequence[int]) -> dict[str, Any]:
    """Score our search at every step of the ladder."""
    return {str(steps): scored(images, partial(knapsack, images, r, steps), r) for steps in ladder}


def raced(images: Images, r: float, rival: Callable[[], Any], ours: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Score a rival, find the fewest gradients at which our median is its or less, and time both."""
    theirs = scored(images, rival, r)
    row: dict[str, Any] = {"median": theirs["median"], "gradients": theirs["gradients"]}
    steps = next((int(n) for n in ours if ours[n]["median"] <= EQUAL * theirs["median"]), None)
    contestants: dict[str, Callable[[], object]] = {"rival": rival}
    if steps is not None:
        contestants["ours"] = partial(knapsack, images, r, steps)
    times = interleaved(contestants, repeats)
    row |= {"seconds": statistics.median(times["rival"]), "our_max_iter": steps}
    if steps is not None:
        own = ours[str(steps)]
        row |= {"our_median": own["median"], "our_gradients": own["gradients"]}
        row |= {"our_seconds": statistics.median(times["ours"]), "time_over_ours": ratio(times, "rival", "ours")}
    return row


def compared(images: Images, args: argparse.Namespace, libraries: set[str], cells: Cells) -> list[dict[str, Any]]:
    """Print and return one row a rival and norm."""
    table = Table("norm", "rival", "its median", "its gradients", "our median", "our gradients", "its time over ours")
    rows = []
    for r in NORMS:
        cell = {"norm": f"l_{r:g}"}
        ours = cells.run({**cell, "rival": "none"}, partial(climbed, images, r, args.ladder))
        for name, run in rivals(images, r, libraries, args.quick).items():
            row: dict[str, Any] = {**cell, "rival": name}
            row |= cells.run(row, partial(raced, images, r, run, ours, args.repeats))
            rows.append(row)
            figures = [row["norm"], name, f"{row['median']:.4f}", f"{row['gradients']:.0f}"]
            if row["our_max_iter"] is None:
                most = str(args.ladder[-1])
                table.row(*figures, f"not reached (at {most}: {ours[most]['median']:.4f})")
            else:
                own = f"{row['our_median']:.4f}", f"{row['our_gradients']:.0f}", f"{row['time_over_ours']:.1f}"
                table.row(*figures, *own)
    return rows


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__))
    found.add_argument("--samples", type=int, default=200)
    found.add_argument("--repeats", type=int, default=3)
    found.add_argument("--ladder", type=int, nargs="+", default=list(LADDER), help="gradient evaluations to try")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison on one network: print a table, write JSON."""
    args = parsed(parser(), arguments, samples=8, repeats=2, ladder=[5, 20])
    libraries = installed(args.quick)
    images = correct_images(args.name, args.data_dir, args.samples)
    print(f"{args.name}: {len(images.x)} correctly classified images")
    print(machine())
    setting = {"network": args.name, "images": len(images.x), "repeats": args.repeats}
    with cells_of(args, "speed_knapsack") as cells:
        keep(args.json, documented(setting, rows=compared(images, args, libraries, cells)))


if __name__ == "__main__":
    main()
