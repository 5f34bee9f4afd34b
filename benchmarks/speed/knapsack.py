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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro import WassersteinKnapsack
from art_wdro._reproduction.machine import machine
from benchmarks._timing import interleaved, keep, ratio
from benchmarks.attacks.least_distances import Counted, methods, scored
from benchmarks.networks.robust import SETTINGS, load, robust_network

LADDER = (5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300)
EQUAL = 1.001
"""Medians that differ by a thousandth are equal."""
RIVALS = ("foolbox FMN", "adv-lib FMN", "Auto-PGD bisected")


def main() -> None:
    """Run the comparison on one network: print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    trained = robust_network(args.name, args.data_dir)
    counted = Counted(trained.model).eval().requires_grad_(False)
    classifier = PyTorchClassifier(counted, nn.CrossEntropyLoss(), trained.input_shape, 10, clip_values=(0, 1))
    data = load(args.name, args.data_dir, train=False)
    x, y = torch.from_numpy(data.x[: args.samples]), torch.from_numpy(data.y[: args.samples])
    correct = counted(x).argmax(1) == y
    x, y = x[correct], y[correct]
    print(f"{args.name}: {len(x)} correctly classified images")
    print(machine())
    print("| norm | rival | its median | its gradients | our median | our gradients | its time over ours |")
    print("| --- " * 7 + "|")
    rows = []
    for r in (np.inf, 2.0, 1.0):

        def search(steps: int, r: float = r) -> np.ndarray:
            attack = WassersteinKnapsack(classifier, norm=r, max_iter=steps, batch_size=len(x), verbose=False)
            attack.generate(x, y)
            return attack.nearest_

        ours = {steps: scored(counted, lambda steps=steps: search(steps), x, y, r) for steps in LADDER}
        for name, run in methods(classifier, x, y, r, with_art=False).items():
            if not name.startswith(RIVALS):
                continue
            rival = scored(counted, run, x, y, r)
            steps = next((n for n in LADDER if ours[n]["median"] <= EQUAL * rival["median"]), None)
            row = {"norm": f"l_{r:g}", "rival": name, "median": rival["median"], "gradients": rival["gradients"]}
            contestants: dict[str, Callable[[], object]] = {"rival": run}
            if steps is not None:
                contestants["ours"] = lambda steps=steps: search(steps)
            times = interleaved(contestants, args.repeats)
            row["seconds"] = statistics.median(times["rival"])
            text = "| {norm} | {rival} | {median:.4f} | {gradients:.0f} |".format(**row)
            if steps is None:
                rows.append(row | {"our_max_iter": None})
                print(text, f"not reached (at {LADDER[-1]}: {ours[LADDER[-1]]['median']:.4f}) | | |", flush=True)
                continue
            row |= {
                "our_max_iter": steps,
                "our_median": ours[steps]["median"],
                "our_gradients": ours[steps]["gradients"],
            }
            row |= {"our_seconds": statistics.median(times["ours"]), "time_over_ours": ratio(times, "rival", "ours")}
            rows.append(row)
            print(text, "{our_median:.4f} | {our_gradients:.0f} | {time_over_ours:.1f} |".format(**row), flush=True)
    keep(args.json, {"network": args.name, "images": len(x), "repeats": args.repeats}, rows=rows)


if __name__ == "__main__":
    main()
