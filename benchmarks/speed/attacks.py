# SPDX-License-Identifier: MIT
"""The cost of an attack as a multiple of the bare loop: forwards and input gradients, nothing else.

    python -m benchmarks.speed.attacks digits
    python -m benchmarks.speed.attacks cifar10 --data-dir DIR --options

All contestants take the same steps on the same images in the same batches; they run interleaved, several times, and
the median of the ratios within a round counts. `--options` adds number formats, memory layouts and torch.compile, with
the accuracy that each leaves.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.nn.functional import cross_entropy

from art_wdro import WassersteinPGD
from art_wdro._reproduction.machine import machine
from benchmarks._timing import compared, interleaved, keep
from benchmarks.networks.robust import SETTINGS, load, robust_network


def bare_loop(
    model: nn.Module, x: np.ndarray, y: np.ndarray, batch_size: int, steps: int, device: torch.device
) -> Callable[[], None]:
    """Return the floor: K forwards and K backwards to the input, in eval mode, parameters frozen."""

    def run() -> None:
        model.eval().requires_grad_(False)
        for start in range(0, len(x), batch_size):
            batch = torch.from_numpy(x[start : start + batch_size]).to(device)
            labels = torch.from_numpy(y[start : start + batch_size]).to(device)
            for _ in range(steps):
                batch.requires_grad_(True)
                torch.autograd.grad(cross_entropy(model(batch), labels, reduction="sum"), batch)
                batch = batch.detach()
        model.requires_grad_(True)

    return run


def rewrapped(classifier: PyTorchClassifier, change: Callable[[nn.Module], nn.Module]) -> PyTorchClassifier:
    """Return a classifier with a changed copy of the network."""
    model = change(copy.deepcopy(classifier.model))
    shape = classifier.input_shape
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, classifier.nb_classes, clip_values=(0, 1))


def main() -> None:
    """Time the attacks on one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--options", action="store_true", help="also number formats, memory layouts and torch.compile")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    classifier = robust_network(args.name, args.data_dir)
    data = load(args.name, args.data_dir, train=False)
    x, y, eps = data.x[: args.samples], data.y[: args.samples], SETTINGS[args.name].eps
    shared = {"eps": eps, "max_iter": args.steps, "batch_size": args.batch_size, "verbose": False}
    one_hot = np.eye(10, dtype=np.float32)[y]
    left: dict[str, float] = {}
    contestants: dict[str, Callable[[], object]] = {
        "bare loop": bare_loop(classifier.model, x, y, args.batch_size, args.steps, classifier.device)
    }

    def enter(name: str, on: PyTorchClassifier = classifier, **settings: Any) -> None:
        def run() -> None:
            adversarial = WassersteinPGD(on, **shared, **settings).generate(x, y)
            if name not in left:  # in the round to warm up
                left[name] = float(np.mean(classifier.predict(adversarial).argmax(1) == y))

        contestants[name] = run

    enter("W-PGD, cross-entropy", loss="ce")
    enter("W-PGD, cross-entropy, p = inf", loss="ce", p=np.inf)
    enter("W-PGD, ReDLR")
    enter("W-PGD, ReDLR, the paper's step", eps_step=eps / args.steps)
    if args.options:
        layout = {"memory_format": torch.channels_last}
        enter("W-PGD, cross-entropy, channels_last", rewrapped(classifier, lambda m: m.to(**layout)), loss="ce")
        enter("W-PGD, cross-entropy, torch.compile", rewrapped(classifier, torch.compile), loss="ce")
        enter("W-PGD, cross-entropy, bfloat16", loss="ce", precision="bfloat16")
        enter("W-PGD, cross-entropy, p = inf, bfloat16", loss="ce", p=np.inf, precision="bfloat16")
        enter("W-PGD, ReDLR, channels_last", rewrapped(classifier, lambda m: m.to(**layout)))
        enter("W-PGD, ReDLR, torch.compile", rewrapped(classifier, torch.compile))
        enter("W-PGD, ReDLR, bfloat16", precision="bfloat16")
        if classifier.device.type == "cuda":  # processors without it emulate the format, at many times the cost
            enter("W-PGD, ReDLR, float16", precision="float16")
    art_pgd = {"norm": np.inf, "eps_step": eps / 8, **shared}
    contestants["ART's PGD"] = lambda: ProjectedGradientDescentPyTorch(classifier, **art_pgd).generate(x, one_hot)

    times = interleaved(contestants, args.repeats)
    setting = {"network": args.name, "samples": len(x), "batch_size": args.batch_size, "steps": args.steps}
    setting["repeats"] = args.repeats
    print(setting)
    print(machine())
    keep(args.json, setting, rows=table(times, left), seconds=times)


def table(times: dict[str, list[float]], left: dict[str, float]) -> list[dict[str, Any]]:
    """Print and return one row a contestant."""
    print("| attack | seconds | of the bare loop | ART's PGD over it | accuracy left in % |\n" + "| --- " * 5 + "|")
    rows = compared(times, "attack", of_bare_loop=("bare loop", False), art_over_it=("ART's PGD", True))
    for row in rows:
        row["accuracy_left"] = found = left.get(row["attack"])
        accuracy = "" if found is None else f"{100 * found:.1f}"
        print("| {attack} | {seconds:.2f} | {of_bare_loop:.2f} | {art_over_it:.2f} |".format(**row), accuracy, "|")
    return rows


if __name__ == "__main__":
    main()
