# SPDX-License-Identifier: MIT
"""Why the area moves or does not, in the networks that margin/training.py has trained with the first seed.

    python -m benchmarks.margin.analysis fashion-mnist --data-dir DIR

Prints, for each method of the table: least distances at quantiles of the test images, in eps; the area on images that
the training saw and on as many test images, by the same search; the area that the search of the training, with its few
gradients, would report on those test images; and the threshold tau of the margin trainer after every epoch, in eps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from art_wdro._sources.data import Split
from art_wdro.trainers._margin import REACH
from benchmarks.margin._cells import classifier_for, data_of, figures, file_of, read, searched
from benchmarks.margin._choices import group_of, in_table
from benchmarks.margin._settings import MAX_ITER, SEEDS, SETTINGS

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def row(name: str, folder: Path, cell: dict[str, Any], train: Split, test: Split) -> list[str]:
    """Return what is printed of a cell."""
    setting = SETTINGS[name]
    classifier = classifier_for(name, 0.0)
    weights = file_of(folder, cell["cell"]).with_suffix(".pt")
    classifier.model.load_state_dict(torch.load(weights, weights_only=True))
    found = np.array(cell["distances"]) / setting.eps
    seen = np.random.default_rng(SEEDS[0]).permutation(len(train.x))[: setting.test_images]
    test = test.choose(np.arange(setting.test_images))
    areas = [
        figures(searched(classifier, data, reach * setting.eps, max_iter), setting.eps)["area"]
        for data, reach, max_iter in (
            (train.choose(seen), 2.0, 60),
            (test, 2.0, 60),
            (test, REACH * max([1.0, *(record["tau"] / setting.eps for record in taus(cell)[-1:])]), MAX_ITER),
        )
    ]
    quantiles = np.quantile(found, QUANTILES, method="lower")
    course = " ".join(f"{record['tau'] / setting.eps:.2f}" for record in taus(cell))
    return [group_of(cell), *(f"{value:.2f}" for value in quantiles), *(f"{100 * area:.1f}" for area in areas), course]


def taus(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the epochs that have a threshold."""
    return [record for record in cell.get("history", []) if "tau" in record]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--folder", type=Path, default=Path("runs/margin"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.folder / args.name
    train, test = data_of(SETTINGS[args.name], args.data_dir)
    heads = [f"distance at {quantile:.0%}" for quantile in QUANTILES]
    print("| | " + " | ".join([*heads, "area, seen", "area, test", "area, training's search", "tau"]) + " |")
    print("| --- " * (len(heads) + 5) + "|")
    for cell in in_table(read(folder)):
        if cell["cell"]["seed"] in (SEEDS[0], None) and "failed" not in cell:
            print("| " + " | ".join(row(args.name, folder, cell, train, test)) + " |", flush=True)


if __name__ == "__main__":
    main()
