# SPDX-License-Identifier: MIT
"""Why the area moves or does not, in the networks that margin/training.py has trained with the first seed.

    python -m benchmarks.margin.analysis fashion-mnist --data-dir DIR

Prints, for each method of the table: least distances at quantiles of the test images, in eps; the area on images that
the training saw and on as many test images, by the same search; the area that the search of the training, with its few
gradients, would report on those test images; and the threshold tau of the margin trainer after every epoch, in eps.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from art_wdro._sources.data import Split
from art_wdro.trainers._margin import REACH
from benchmarks._cells import file_of, read_cells
from benchmarks._command import command, parsed, with_data
from benchmarks._files import keep
from benchmarks._settings import QUICK, SEEDS
from benchmarks._tables import Table
from benchmarks._trainings import figures_of
from benchmarks.margin._cells import data_of, restored, searched
from benchmarks.margin._choices import group_of, in_table
from benchmarks.margin._settings import MAX_ITER, SETTINGS
from benchmarks.margin.training import run

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def analysed(name: str, folder: Path, cell: dict[str, Any], train: Split, test: Split) -> dict[str, Any]:
    """Return the figures of a cell."""
    setting = SETTINGS[name]
    classifier = restored(name, file_of(folder, cell["cell"]))
    found = np.array(cell["distances"]) / setting.eps
    seen = np.random.default_rng(SEEDS[0]).permutation(len(train.x))[: setting.test_images]
    test = test.choose(np.arange(setting.test_images))
    course = [record["tau"] / setting.eps for record in cell.get("history", []) if "tau" in record]
    areas = [
        figures_of(searched(classifier, data, reach * setting.eps, max_iter), setting.eps)["area"]
        for data, reach, max_iter in (
            (train.choose(seen), 2.0, 60),
            (test, 2.0, 60),
            (test, REACH * max([1.0, *course[-1:]]), MAX_ITER),
        )
    ]
    quantiles = np.quantile(found, QUANTILES, method="lower").tolist()
    return {"cell": group_of(cell), "quantiles": quantiles, "areas": areas, "tau": course}


def table(name: str, folder: Path, data_dir: Path) -> list[dict[str, Any]]:
    """Print and return a row a method of the table."""
    train, test = data_of(SETTINGS[name], data_dir)
    heads = [f"distance at {quantile:.0%}" for quantile in QUANTILES]
    shown, rows = Table("", *heads, "area, seen", "area, test", "area, training's search", "tau"), []
    for cell in in_table(read_cells(folder)):
        if cell["cell"]["seed"] in (SEEDS[0], None) and "failed" not in cell:
            row = analysed(name, folder, cell, train, test)
            rows.append(row)
            quantiles, areas = (f"{value:.2f}" for value in row["quantiles"]), (f"{100 * a:.1f}" for a in row["areas"])
            shown.row(row["cell"], *quantiles, *areas, " ".join(f"{tau:.2f}" for tau in row["tau"]))
    return rows


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__), [name for name in SETTINGS if name != QUICK])
    found.add_argument("--folder", type=Path, default=Path("runs/margin"))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = parsed(parser(), arguments)
    torch.set_num_threads(1)
    data_dir = args.data_dir or Path("data")
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(passing) if args.quick else args.folder
        if args.quick:
            run(args.name, folder, data_dir, ["margin"], SEEDS[:1])
        keep(args.json, table(args.name, folder / args.name, data_dir))


if __name__ == "__main__":
    main()
