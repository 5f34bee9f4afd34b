# SPDX-License-Identifier: MIT
"""Least distances: our search beside the minimum-norm attacks of foolbox, adversarial-library and ART.

    pip install foolbox==3.3.4; pip install --no-deps adv-lib==0.2.8
    python -m benchmarks.attacks.least_distances cifar10 --data-dir DIR

Every method attacks the same correctly classified images, one after the other in one run. Distances are computed from
the points that it returns, and a point that is not misclassified counts as infinitely far. Gradient evaluations are
counted in the backward pass, one a sample.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks._cells import cells_of
from benchmarks._command import command, parsed, with_data
from benchmarks._files import keep
from benchmarks._tables import Table
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


def methods(images: Images, r: float, libraries: set[str], with_art: bool, **steps: int) -> Searches:
    """Return what is compared under a ground norm."""
    ours = {f"art-wdro, {most}": partial(knapsack, images, r, most) for most in (100, 300)}
    return ours | library_searches(images, r, libraries) | (art_searches(images, r, **steps) if with_art else {})


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__))
    found.add_argument("--samples", type=int, default=200)
    found.add_argument("--without-art", dest="with_art", action="store_false", help="leave out ART's, which are slow")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison on one network: print a table, write JSON."""
    args = parsed(parser(), arguments, samples=4)
    libraries = installed(args.quick)
    images = correct_images(args.name, args.data_dir, args.samples)
    print(f"{args.name}: {len(images.x)} correctly classified images")
    table, rows = Table("norm", "method", "median", "mean", "found", "gradients a sample", "seconds"), []
    with cells_of(args, "least_distances") as cells, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for r in NORMS:
            steps = {"max_iter": 2} if args.quick else {}
            for name, run in methods(images, r, libraries, args.with_art, **steps).items():
                row: dict[str, Any] = {"norm": f"l_{r:g}", "method": name}
                row |= cells.run(row, partial(scored, images, run, r))
                rows.append(row)
                figures = "{median:.4f} | {mean:.4f} | {found:.1%} | {gradients:.0f} | {seconds:.1f}".format(**row)
                table.row(f"l_{r:g}", name, *figures.split(" | "))
        keep(args.json, {"network": args.name, "images": len(images.x), "rows": rows})


if __name__ == "__main__":
    main()
