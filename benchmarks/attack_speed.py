# SPDX-License-Identifier: MIT
"""The cost of an attack as a multiple of the bare loop: forwards and input gradients, nothing else.

    python benchmarks/attack_speed.py digits
    python benchmarks/attack_speed.py cifar10 --data-dir DIR

All contestants take the same steps on the same images in the same batches; they run interleaved, several times, and
the medians of their times are divided by that of the bare loop.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import art
import numpy as np
import torch
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from networks import SETTINGS, load, robust_network
from torch.nn.functional import cross_entropy

from art_wdro import WassersteinPGD


def main() -> None:
    """Time the attacks on one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    classifier = robust_network(args.name, args.data_dir)
    data = load(args.name, args.data_dir, train=False)
    x, y, eps = data.x[: args.samples], data.y[: args.samples], SETTINGS[args.name].eps
    model, one_hot = classifier.model, np.eye(10, dtype=np.float32)[y]
    shared = {"eps": eps, "max_iter": args.steps, "batch_size": args.batch_size, "verbose": False}

    def bare() -> None:
        model.eval().requires_grad_(False)
        for start in range(0, len(x), args.batch_size):
            batch = torch.from_numpy(x[start : start + args.batch_size])
            labels = torch.from_numpy(y[start : start + args.batch_size])
            for _ in range(args.steps):
                batch.requires_grad_(True)
                torch.autograd.grad(cross_entropy(model(batch), labels, reduction="sum"), batch)
                batch = batch.detach()
        model.requires_grad_(True)

    def ours(**settings: object) -> Callable[[], object]:
        return lambda: WassersteinPGD(classifier, **shared, **settings).generate(x, y)

    contestants: dict[str, Callable[[], object]] = {
        "bare loop": bare,
        "W-PGD, cross-entropy": ours(loss="ce"),
        "W-PGD, ReDLR": ours(),
        "W-PGD, ReDLR, the paper's step": ours(eps_step=eps / args.steps),
        "ART's PGD": lambda: ProjectedGradientDescentPyTorch(
            classifier, norm=np.inf, eps_step=eps / 8, **shared
        ).generate(x, one_hot),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(args.repeats + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if repeat > 0:  # the first one warms up
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{args.name}: {len(x)} images, batches of {args.batch_size}, {args.steps} steps, {args.repeats} repeats")
    print(f"torch {torch.__version__}, ART {art.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    print("| attack | seconds | of the bare loop | ART's PGD over it |\n| --- | --- | --- | --- |")
    for name, seconds in medians.items():
        against = medians["ART's PGD"] / seconds
        print(f"| {name} | {seconds:.2f} | {seconds / medians['bare loop']:.2f} | {against:.2f} |")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        setting = {"network": args.name, "samples": len(x), "batch_size": args.batch_size, "steps": args.steps}
        args.json.write_text(json.dumps(setting | {"seconds": times}, indent=1))


if __name__ == "__main__":
    main()
