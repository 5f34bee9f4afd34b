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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro import WassersteinPGD
from art_wdro._reproduction.machine import machine
from art_wdro._sources.data import Split
from benchmarks._cells import cells_of
from benchmarks._command import command, parsed, with_data
from benchmarks._files import documented, keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks._timing import compared, interleaved
from benchmarks.networks._architectures import CLASSES, classifier_of
from benchmarks.networks._data import load
from benchmarks.networks.robust import robust_network
from benchmarks.speed._floor import bare_attack


class Contest:
    """The attacks that are compared, all on the same images in the same batches."""

    def __init__(self, classifier: PyTorchClassifier, data: Split, **shared: Any) -> None:
        """Name what all of them share.

        :param classifier: The network.
        :param data: The images.
        :param shared: Parameters of all attacks.
        """
        self._classifier, self._data, self._shared = classifier, data, shared
        self.contestants: dict[str, Callable[[], object]] = {}
        self.left: dict[str, float] = {}

    def add_floor(self) -> None:
        """Enter the bare loop."""
        sizes = self._shared["batch_size"], self._shared["max_iter"]
        model, device = self._classifier.model, self._classifier.device
        self.contestants["bare loop"] = lambda: bare_attack(model, *self._data, *sizes, device)

    def add(self, name: str, change: Callable[[nn.Module], Any] | None = None, **setting: Any) -> None:
        """Enter W-PGD with a setting, perhaps on a changed copy of the network."""
        classifier = self._classifier
        if change is not None:
            changed = change(copy.deepcopy(classifier.model))
            classifier = classifier_of(changed, classifier.input_shape, device_type="gpu")

        def run() -> None:
            adversarial = WassersteinPGD(classifier, **self._shared, **setting).generate(*self._data)
            if name not in self.left:  # in the round to warm up
                self.left[name] = float(np.mean(self._classifier.predict(adversarial).argmax(1) == self._data.y))

        self.contestants[name] = run

    def add_options(self) -> None:
        """Enter number formats, memory layouts and torch.compile."""

        def channels_last(model: nn.Module) -> nn.Module:
            return model.to(memory_format=torch.channels_last)

        self.add("W-PGD, cross-entropy, channels_last", channels_last, loss="ce")
        self.add("W-PGD, cross-entropy, torch.compile", torch.compile, loss="ce")
        self.add("W-PGD, cross-entropy, bfloat16", loss="ce", precision="bfloat16")
        self.add("W-PGD, cross-entropy, p = inf, bfloat16", loss="ce", p=np.inf, precision="bfloat16")
        self.add("W-PGD, ReDLR, channels_last", channels_last)
        self.add("W-PGD, ReDLR, torch.compile", torch.compile)
        self.add("W-PGD, ReDLR, bfloat16", precision="bfloat16")
        if self._classifier.device.type == "cuda":  # processors without it emulate the format, at many times the cost
            self.add("W-PGD, ReDLR, float16", precision="float16")

    def add_art(self) -> None:
        """Enter ART's PGD."""
        setting = {"norm": np.inf, "eps_step": self._shared["eps"] / 8, **self._shared}
        one_hot = np.eye(CLASSES, dtype=np.float32)[self._data.y]
        self.contestants["ART's PGD"] = lambda: ProjectedGradientDescentPyTorch(self._classifier, **setting).generate(
            self._data.x, one_hot
        )


def table(times: dict[str, list[float]], left: dict[str, float]) -> list[dict[str, Any]]:
    """Print and return one row a contestant."""
    shown = Table("attack", "seconds", "of the bare loop", "ART's PGD over it", "accuracy left in %")
    rows = compared(times, "attack", of_bare_loop=("bare loop", False), art_over_it=("ART's PGD", True))
    for row in rows:
        row["accuracy_left"] = found = left.get(row["attack"])
        figures = (f"{row[key]:.2f}" for key in ("seconds", "of_bare_loop", "art_over_it"))
        shown.row(row["attack"], *figures, "" if found is None else f"{100 * found:.1f}")
    return rows


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__))
    found.add_argument("--samples", type=int, default=512)
    found.add_argument("--batch-size", type=int, default=128)
    found.add_argument("--steps", type=int, default=20)
    found.add_argument("--repeats", type=int, default=7)
    found.add_argument("--options", action="store_true", help="also number formats, memory layouts and torch.compile")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the attacks on one network."""
    args = parsed(parser(), arguments, samples=32, batch_size=16, steps=3, repeats=2)
    classifier, eps = robust_network(args.name, args.data_dir), DATA[args.name].eps
    data = Split(*(part[: args.samples] for part in load(args.name, args.data_dir, train=False)))
    contest = Contest(classifier, data, eps=eps, max_iter=args.steps, batch_size=args.batch_size, verbose=False)
    contest.add_floor()
    contest.add("W-PGD, cross-entropy", loss="ce")
    contest.add("W-PGD, cross-entropy, p = inf", loss="ce", p=np.inf)
    contest.add("W-PGD, ReDLR")
    contest.add("W-PGD, ReDLR, the paper's step", eps_step=eps / args.steps)
    if args.options:
        contest.add_options()
    contest.add_art()
    setting = {"network": args.name, "samples": len(data.x), "batch_size": args.batch_size, "steps": args.steps}
    setting["repeats"] = args.repeats
    with cells_of(args, "speed_attacks") as cells:
        times = interleaved(contest.contestants, args.repeats, cells)
        print(setting)
        print(machine())
        keep(args.json, documented(setting, rows=table(times, contest.left), seconds=times))


if __name__ == "__main__":
    main()
