# SPDX-License-Identifier: MIT
"""The papers' attacks beside those here: what is left, gradients and passes, and whether the array lies in the budget.

    python -m benchmarks.attacks.published fashion-mnist --data-dir DIR
    python -m benchmarks.attacks.published cifar10 --data-dir DIR

Under (W_2, l_inf), at the whole of the budget that the network was trained for and at half of it. The papers' attacks
are those of `_published.py`, written from their descriptions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from art_wdro import WassersteinKnapsack, WassersteinPGD, wasserstein_distance
from art_wdro._threat.knapsack import knapsack
from benchmarks._cells import cells_of
from benchmarks._command import command, parsed, with_data
from benchmarks._counting import Counter
from benchmarks._files import documented, keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks._timing import timed
from benchmarks.attacks._published import Stepping, published_w_pgd, published_wda
from benchmarks.networks._architectures import classifier_of
from benchmarks.networks._data import load
from benchmarks.networks.robust import robust_network

P, R = 2.0, math.inf
SHARES = (1.0, 0.5)
"""Budgets, as parts of the one that the network was trained for."""
Outcome = tuple[Tensor, Any]
"""The array, and the least distances behind it, or None."""


class Setting:
    """A network, images, and the count of what it is asked."""

    def __init__(self, name: str, directory: Any, samples: int) -> None:
        """Load the network of a data set and some test images."""
        self.model = robust_network(name, directory).model.cpu().eval().requires_grad_(False)
        self.classifier, self.counter = classifier_of(self.model, DATA[name].shape), Counter(self.model)
        self.x, self.y = (torch.from_numpy(part[:samples]) for part in load(name, directory, train=False))
        self.passed = 0
        self.model.register_forward_hook(self._watch)

    def _watch(self, _: object, inputs: tuple[Tensor, ...], __: object) -> None:
        self.passed += len(inputs[0])

    def measured(self, eps: float, run: Callable[[], Outcome]) -> dict[str, Any]:
        """Run an attack; return what it leaves in %, what it asked a sample, and how far its array is, in budgets."""
        self.counter.gradients = self.passed = 0
        (points, distances), seconds = timed(run)
        gradients, passes = self.counter.gradients / len(self.x), self.passed / len(self.x)
        left = float((self.model(points).argmax(1) == self.y).double().mean())
        spent = wasserstein_distance(self.x.numpy(), points.numpy(), p=P, norm=R)
        found = {"left": 100 * left, "gradients": gradients, "passes": passes, "spent": spent / eps, "seconds": seconds}
        return {**found, "mixture": found["left"] if distances is None else 100 * knapsack(distances, eps, P).accuracy}

    def attacks(self, eps: float) -> dict[str, Callable[[], Outcome]]:
        """Return the attacks by name."""
        threat: dict[str, Any] = {"p": P, "norm": R, "eps": eps, "batch_size": 250, "verbose": False}

        def ours(attack: Any) -> Outcome:
            found = torch.from_numpy(attack.generate(self.x.numpy(), self.y.numpy()))
            return found, getattr(attack, "distances_", None)

        def paper() -> Outcome:
            step = 1.875 * eps / 50
            return published_w_pgd(self.model, self.x, self.y, p=P, r=R, eps=eps, steps=50, eps_step=step), None

        def greedy(whole: bool) -> Outcome:
            distances, points = published_wda(self.model, self.x, self.y, r=R, stepping=Stepping(eps / 4))
            moved = np.isfinite(distances.numpy()) if whole else knapsack(distances, eps, P).flipped
            return torch.where(torch.from_numpy(moved)[:, None, None, None], points, self.x), distances

        pgd, least = partial(WassersteinPGD, self.classifier), partial(WassersteinKnapsack, self.classifier)
        return {
            "W-PGD-50, as published": paper,
            "W-PGD-50": lambda: ours(pgd(max_iter=50, **threat)),
            "W-PGD-100, linear": lambda: ours(pgd(max_iter=100, schedule="linear", **threat)),
            "WDA++, all points": lambda: greedy(True),
            "WDA++, those that the budget flips": lambda: greedy(False),
            "stepping-out": lambda: ours(least(max_iter=50, search="stepping-out", **threat)),
            "knapsack, 30": lambda: ours(least(max_iter=30, **threat)),
            "knapsack, 100": lambda: ours(least(max_iter=100, **threat)),
        }


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__))
    found.add_argument("--samples", type=int, default=250)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what each attack leaves."""
    args = parsed(parser(), arguments, samples=24)
    setting = Setting(args.name, args.data_dir, args.samples)
    head = ("eps", "attack", "array leaves, %", "mixture, %", "gradients", "forward passes", "D_2 in eps", "seconds")
    table, rows = Table(*head), []
    with cells_of(args, "published") as cells:
        for eps in (share * DATA[args.name].eps for share in SHARES):
            for name, run in setting.attacks(eps).items():
                row = cells.run({"eps": f"{eps:.4f}", "attack": name}, partial(setting.measured, eps, run))
                rows.append({"eps": eps, "attack": name, **row})
                percent = f"{row['left']:.1f}", f"{row['mixture']:.1f}"
                asked = f"{row['gradients']:.0f}", f"{row['passes']:.0f}", f"{row['spent']:.2f}"
                table.row(f"{eps:.4f}", name, *percent, *asked, f"{row['seconds']:.1f}")
        keep(args.json, documented({"name": args.name, "samples": args.samples}, rows=rows))


if __name__ == "__main__":
    main()
