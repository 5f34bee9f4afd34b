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
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro import WassersteinPGD
from art_wdro._reproduction.machine import machine
from benchmarks._timing import keep
from benchmarks.speed.attacks import bare_loop

CELLS = [(count, 32) for count in (1000, 4000, 16000, 64000)] + [(1000, side) for side in (64, 112, 160, 224)]
STEPS = 5


def network(side: int) -> PyTorchClassifier:
    """Return one convolution, a ReLU, an average pool and a linear layer for images (3, side, side)."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)
    loss = nn.CrossEntropyLoss()
    return PyTorchClassifier(nn.Sequential(*layers), loss, (3, side, side), 10, clip_values=(0, 1), device_type="cpu")


def memory(field: str) -> int:
    """Read a figure of this process's memory, in bytes."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def cell(count: int, side: int) -> dict[str, float]:
    """Measure one cell in this process."""
    classifier = network(side)
    x = np.random.default_rng(0).random((count, 3, side, side), dtype=np.float32)
    y = classifier.predict(x).argmax(1)
    settings = {"loss": "ce", "eps": 8 / 255, "batch_size": 128, "verbose": False}
    WassersteinPGD(classifier, max_iter=1, **settings).generate(x[:256], y[:256])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    attack = WassersteinPGD(classifier, max_iter=STEPS, **settings)
    started = time.perf_counter()
    attack.generate(x, y)
    seconds = (time.perf_counter() - started) / STEPS
    copies = (memory("VmHWM") - before) / x.nbytes
    bare = bare_loop(classifier.model, x, y, 128, STEPS, torch.device("cpu"))
    started = time.perf_counter()
    bare()
    floor = (time.perf_counter() - started) / STEPS
    return {"seconds": seconds, "floor": floor, "copies": copies, "bytes": x.nbytes}


def draw(rows: list[dict[str, float]], file: Path) -> None:
    """Draw time against numbers attacked, both ways of growing."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 3.6))
    for label, chosen in (
        ("more images of 32 x 32", [row for row in rows if row["side"] == 32]),
        ("1,000 images, larger", [row for row in rows if row["count"] == 1000]),
    ):
        numbers = [row["bytes"] / 4e6 for row in chosen]
        axes.loglog(numbers, [row["seconds"] for row in chosen], "o-", label=label)
    ends = np.array([rows[0]["bytes"] / 4e6, max(row["bytes"] for row in rows) / 4e6])
    axes.loglog(ends, rows[0]["seconds"] * ends / ends[0], "k:", label="linear")
    axes.set_xlabel("numbers in the attacked array, millions")
    axes.set_ylabel("seconds a step")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure every cell, print a table, draw a figure, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cell", type=int, nargs=2, metavar=("COUNT", "SIDE"), help="one cell alone, as JSON")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(cell(*args.cell)))
        return
    print(machine())
    found: dict[tuple[int, int], list[dict[str, float]]] = {key: [] for key in CELLS}
    for _ in range(args.repeats):
        for count, side in CELLS:
            command = [sys.executable, "-m", "benchmarks.speed.growth", "--cell", str(count), str(side)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[count, side].append(json.loads(done.stdout.splitlines()[-1]))
    print("| images | side | seconds a step | nanoseconds a number | of the bare loop | peak memory in arrays |")
    print("| --- " * 6 + "|")
    rows = []
    for (count, side), runs in found.items():
        row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        row |= {"count": count, "side": side, "of_bare_loop": row["seconds"] / row["floor"]}
        row["nanoseconds"] = 4e9 * row["seconds"] / row["bytes"]
        rows.append(row)
        text = "| {count} | {side} | {seconds:.3f} | {nanoseconds:.1f} | {of_bare_loop:.2f} | {copies:.2f} |"
        print(text.format(**row))
    if args.figure:
        draw(rows, args.figure)
    keep(args.json, {"steps": STEPS, "repeats": args.repeats}, rows=rows)


if __name__ == "__main__":
    main()
