# SPDX-License-Identifier: MIT
"""Resident memory while a mapped file larger than memory is attacked, measured and trained on.

    python -m benchmarks.speed.large --gigabytes 20 --directory DIR

The file is sparse and holds black images of 3 x 224 x 224; what the attack makes from it lies in TMPDIR, which needs
1.25 times as much room. Resident memory is sampled every 50 milliseconds.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro import DistributionalTRADESTrainer, WassersteinPGD, sensitivity, wasserstein_distance
from art_wdro._reproduction.machine import machine
from benchmarks._timing import keep


def resident() -> int:
    """Return this process's resident memory in bytes."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def sampled(run: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a call takes, and the peak growth of resident memory in bytes."""
    done, peak, before = threading.Event(), [0], resident()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, peak[0]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--directory", type=Path, help="where the mapped file goes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    shape, loss = (3, 224, 224), nn.CrossEntropyLoss()
    classifier = PyTorchClassifier(model, loss, shape, 10, optimiser, clip_values=(0, 1), device_type="cpu")
    count = int(args.gigabytes * 1e9 / (4 * 3 * 224**2))
    with tempfile.NamedTemporaryFile(dir=args.directory) as file:
        x = np.memmap(file.name, np.float32, "w+", shape=(count, *shape))
        y = np.zeros(count, dtype=int)
        attack = WassersteinPGD(classifier, p=np.inf, loss="ce", max_iter=1, batch_size=32, verbose=False)
        trainer = DistributionalTRADESTrainer(classifier, max_iter=1, verbose=False)
        attack.generate(x[:64], y[:64])
        found: list[np.ndarray] = []
        work: dict[str, Callable[[], object]] = {
            "sensitivity": lambda: sensitivity(classifier, x, y, batch_size=32),
            "PGD, 1 step": lambda: found.append(attack.generate(x, y)),
            "wasserstein_distance": lambda: wasserstein_distance(x, found.pop()),
            "fit, 1 epoch": lambda: trainer.fit(x, y, batch_size=64, nb_epochs=1),
        }
        print(f"{count} images, {x.nbytes / 1e9:.1f} GB")
        print(machine())
        print("| | seconds | growth of resident memory, GB |\n| --- | --- | --- |")
        rows = []
        for name, run in work.items():
            seconds, growth = sampled(run)
            rows.append({"work": name, "seconds": seconds, "growth": growth})
            print(f"| {name} | {seconds:.0f} | {growth / 1e9:.2f} |", flush=True)
    keep(args.json, {"gigabytes": args.gigabytes, "images": count}, rows=rows)


if __name__ == "__main__":
    main()
