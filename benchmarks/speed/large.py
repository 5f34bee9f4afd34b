# SPDX-License-Identifier: MIT
"""Resident memory while a mapped file larger than memory is attacked, measured and trained on.

    python -m benchmarks.speed.large --gigabytes 20 --directory DIR

The file is sparse and holds black images of 3 x 224 x 224; what the attack makes from it lies in TMPDIR, which needs
1.25 times as much room. Resident memory is sampled every 50 milliseconds.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from art_wdro import DistributionalTRADESTrainer, WassersteinPGD, sensitivity, wasserstein_distance
from art_wdro._reproduction.machine import machine
from benchmarks._cells import cells_of
from benchmarks._command import command, parsed
from benchmarks._files import documented, keep
from benchmarks._tables import Table
from benchmarks._timing import timed
from benchmarks.networks._architectures import CLASSES, classifier_of
from benchmarks.speed._memory import memory

SHAPE = (3, 224, 224)
Work = dict[str, Callable[[], object]]


def sampled(run: Callable[[], object]) -> tuple[float, int]:
    """Return the seconds that a call takes, and the peak growth of resident memory in bytes."""
    done, peak, before = threading.Event(), [0], memory("VmRSS")

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], memory("VmRSS") - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _, seconds = timed(run)
    finally:
        done.set()
        watcher.join()
    return seconds, peak[0]


def measured(work: Work) -> dict[str, Any]:
    """Return a row for each piece of work."""
    found = {name: sampled(run) for name, run in work.items()}
    return {"rows": [{"work": name, "seconds": taken, "growth": growth} for name, (taken, growth) in found.items()]}


def pieces(x: np.ndarray) -> list[Work]:
    """Return what is measured: pieces of work that follow one another, and such that stand alone."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    classifier = classifier_of(nn.Sequential(*layers), SHAPE, lr=1e-3)
    y = np.zeros(len(x), dtype=int)
    attack = WassersteinPGD(classifier, p=np.inf, loss="ce", max_iter=1, batch_size=32, verbose=False)
    trainer = DistributionalTRADESTrainer(classifier, max_iter=1, verbose=False)
    attack.generate(x[:64], y[:64])
    found: list[np.ndarray] = []
    return [
        {"sensitivity": lambda: sensitivity(classifier, x, y, batch_size=32)},
        {
            "PGD, 1 step": lambda: found.append(attack.generate(x, y)),
            "wasserstein_distance": lambda: wasserstein_distance(x, found.pop()),
        },
        {"fit, 1 epoch": lambda: trainer.fit(x, y, batch_size=64, nb_epochs=1)},
    ]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("--gigabytes", type=float, default=20.0)
    found.add_argument("--directory", type=Path, help="where the mapped file goes")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write JSON."""
    args = parsed(parser(), arguments, gigabytes=0.05)
    count = int(args.gigabytes * 1e9 / (4 * np.prod(SHAPE)))
    with tempfile.NamedTemporaryFile(dir=args.directory) as file, cells_of(args, "large") as cells:
        x = np.memmap(file.name, np.float32, "w+", shape=(count, *SHAPE))
        print(f"{count} images, {x.nbytes / 1e9:.1f} GB")
        print(machine())
        table, rows = Table("", "seconds", "growth of resident memory, GB"), []
        for number, work in enumerate(pieces(x)):
            for row in cells.run({"piece": number}, partial(measured, work))["rows"]:
                rows.append(row)
                table.row(row["work"], f"{row['seconds']:.0f}", f"{row['growth'] / 1e9:.2f}")
        keep(args.json, documented({"gigabytes": args.gigabytes, "images": count}, rows=rows))


if __name__ == "__main__":
    main()
