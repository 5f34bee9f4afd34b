# SPDX-License-Identifier: MIT
"""How the cost of an attack grows with the number of images and with their size.

    python -m benchmarks.speed.growth --figure FILE

A network of one convolution, so that the attack's own work and memory weigh as much as they ever do. Every cell runs
in a process of its own, several times over: the median time of one step, of one step of the bare loop (a forward pass
and an input gradient of every image, nothing else), and the peak of the resident memory above what the process held
before, in arrays of the size of the images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro import WassersteinPGD
from art_wdro._reproduction.machine import machine
from art_wdro._storage.files import write_atomically
from art_wdro.evaluation._report import empty_figure
from benchmarks._cells import cells_of
from benchmarks._command import command, parsed
from benchmarks._files import ROOT, documented, keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks._timing import timed
from benchmarks.networks._architectures import CLASSES, classifier_of
from benchmarks.speed._floor import bare_attack
from benchmarks.speed._memory import forget_peak, memory

CELLS = [(count, 32) for count in (1000, 4000, 16000, 64000)] + [(1000, side) for side in (64, 112, 160, 224)]
"""Numbers of images, and their sides."""
FEW = [(128, 16), (256, 16)]
"""Those of a quick run."""
STEPS = 5


def network(side: int) -> PyTorchClassifier:
    """Return one convolution, a ReLU, an average pool and a linear layer for images (3, side, side)."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, CLASSES)
    return classifier_of(nn.Sequential(*layers), (3, side, side))


def measured(count: int, side: int) -> dict[str, float]:
    """Measure one cell in this process."""
    classifier = network(side)
    x = np.random.default_rng(0).random((count, 3, side, side), dtype=np.float32)
    y = classifier.predict(x).argmax(1)
    settings: dict[str, Any] = {"loss": "ce", "eps": DATA["cifar10"].eps, "batch_size": 128, "verbose": False}
    WassersteinPGD(classifier, max_iter=1, **settings).generate(x[:256], y[:256])
    forget_peak()
    before = memory("VmRSS")
    attack = WassersteinPGD(classifier, max_iter=STEPS, **settings)
    _, seconds = timed(lambda: attack.generate(x, y))
    copies = (memory("VmHWM") - before) / x.nbytes
    _, floor = timed(lambda: bare_attack(classifier.model, x, y, 128, STEPS, torch.device("cpu")))
    return {"seconds": seconds / STEPS, "floor": floor / STEPS, "copies": copies, "bytes": x.nbytes}


def apart(count: int, side: int) -> dict[str, Any]:
    """Measure one cell in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.growth", "--cell", str(count), str(side)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summarised(runs: list[dict[str, float]], count: int, side: int) -> dict[str, float]:
    """Return the medians over the runs of a cell, and what follows from them."""
    row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    row |= {"count": count, "side": side, "of_bare_loop": row["seconds"] / row["floor"]}
    row["nanoseconds"] = 4e9 * row["seconds"] / row["bytes"]
    return row


def draw(rows: list[dict[str, float]], file: Path) -> None:
    """Draw time against numbers attacked, both ways of growing."""
    figure = empty_figure()
    figure.set_size_inches(5.2, 3.6)
    axes = figure.subplots()
    few, small = rows[0]["count"], rows[0]["side"]
    for label, chosen in (
        (f"more images of {small} x {small}", [row for row in rows if row["side"] == small]),
        (f"{few:,} images, larger", [row for row in rows if row["count"] == few]),
    ):
        numbers = [row["bytes"] / 4e6 for row in chosen]
        axes.loglog(numbers, [row["seconds"] for row in chosen], "o-", label=label)
    ends = np.array([rows[0]["bytes"] / 4e6, max(row["bytes"] for row in rows) / 4e6])
    axes.loglog(ends, rows[0]["seconds"] * ends / ends[0], "k:", label="linear")
    axes.set_xlabel("numbers in the attacked array, millions")
    axes.set_ylabel("seconds a step")
    axes.legend()
    write_atomically(file, partial(figure.savefig, dpi=120))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("--repeats", type=int, default=3)
    found.add_argument("--cell", type=int, nargs=2, metavar=("COUNT", "SIDE"), help="one cell alone, as JSON")
    found.add_argument("--figure", type=Path)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every cell, print a table, draw a figure, write JSON."""
    args = parsed(parser(), arguments, repeats=1)
    if args.cell:
        print(json.dumps(measured(*args.cell)))
        return
    print(machine())
    sizes = FEW if args.quick else CELLS
    found: dict[tuple[int, int], list[dict[str, float]]] = {size: [] for size in sizes}
    with cells_of(args, "growth") as cells:
        for number in range(args.repeats):
            for size in sizes:
                cell = dict(zip(("count", "side", "round"), (*size, number), strict=True))
                found[size].append(cells.run(cell, partial(apart, *size)))
        rows = [summarised(runs, *size) for size, runs in found.items()]
        table = Table(
            "images", "side", "seconds a step", "nanoseconds a number", "of the bare loop", "peak memory in arrays"
        )
        for row in rows:
            figures = f"{row['seconds']:.3f}", f"{row['nanoseconds']:.1f}", f"{row['of_bare_loop']:.2f}"
            table.row(row["count"], row["side"], *figures, f"{row['copies']:.2f}")
        if args.figure:
            draw(rows, args.figure)
        keep(args.json, documented({"steps": STEPS, "repeats": args.repeats}, rows=rows))


if __name__ == "__main__":
    main()
