# SPDX-License-Identifier: MIT
"""Least distances: our search beside the minimum-norm attacks of foolbox, adversarial-library and ART.

    pip install foolbox==3.3.4; pip install --no-deps adv-lib==0.2.8
    python -m benchmarks.attacks.least_distances cifar10 --data-dir DIR

Every method attacks the same correctly classified images, one after the other in one run. Distances are computed from
the points that it returns, and a point that is not misclassified counts as infinitely far. Gradient evaluations are
counted in the backward pass, one a sample.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.attacks.evasion import CarliniL2Method, CarliniLInfMethod, DeepFool, ElasticNet
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_wdro import WassersteinKnapsack
from benchmarks.networks.robust import SETTINGS, load, robust_network

sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # adversarial-library imports it to draw, which we do not
import foolbox  # noqa: E402
from adv_lib.attacks import ddn, fmn  # noqa: E402
from adv_lib.attacks.auto_pgd import minimal_apgd  # noqa: E402
from adv_lib.attacks.fast_adaptive_boundary import fab  # noqa: E402

MOST = {1.0: 50.0, 2.0: 5.0, np.inf: 0.5}
"""Where the bisection of Auto-PGD starts."""
FOOLBOX = {
    1.0: foolbox.attacks.L1FMNAttack,
    2.0: foolbox.attacks.L2FMNAttack,
    np.inf: foolbox.attacks.LInfFMNAttack,
}


class Counted(nn.Module):
    """A network that counts the samples of its backward passes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.gradients = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits = self.inner(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)


def methods(
    classifier: PyTorchClassifier, x: Tensor, y: Tensor, r: float, with_art: bool
) -> dict[str, Callable[[], Any]]:
    """Return what is compared under a ground norm."""
    model = classifier.model
    numpy = x.numpy(), y.numpy()

    def knapsack(steps: int) -> np.ndarray:
        attack = WassersteinKnapsack(classifier, norm=r, max_iter=steps, batch_size=len(x), verbose=False)
        attack.generate(*numpy)
        return attack.nearest_

    found: dict[str, Callable[[], Any]] = {
        "art-wdro, 100": lambda: knapsack(100),
        "art-wdro, 300": lambda: knapsack(300),
        "foolbox FMN, 100": lambda: FOOLBOX[r](steps=100)(
            foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None
        )[0],
        "adv-lib FMN, 100": lambda: fmn(model, x, y, norm=r, steps=100),
        "adv-lib FMN, 300": lambda: fmn(model, x, y, norm=r, steps=300),
        "adv-lib FAB, 11": lambda: fab(model, x, y, norm=r, n_iter=11),
        "adv-lib FAB, 100": lambda: fab(model, x, y, norm=r, n_iter=100),
        "Auto-PGD bisected, 5 x 20": lambda: minimal_apgd(
            model, x, y, norm=r, max_eps=MOST[r], binary_search_steps=5, n_iter=20
        ),
        "Auto-PGD bisected, 10 x 30": lambda: minimal_apgd(
            model, x, y, norm=r, max_eps=MOST[r], binary_search_steps=10, n_iter=30
        ),
    }
    if r == 2.0:
        found["adv-lib DDN, 100"] = lambda: ddn(model, x, y, steps=100)
    if not with_art:
        return found
    settings: dict[str, Any] = {"batch_size": len(x), "verbose": False}
    if r == np.inf:
        found["ART Carlini L_inf"] = lambda: CarliniLInfMethod(classifier, **settings).generate(*numpy)
    if r == 2.0:
        found["ART Carlini L_2"] = lambda: CarliniL2Method(classifier, **settings).generate(*numpy)
        found["ART DeepFool"] = lambda: DeepFool(classifier, nb_grads=10, **settings).generate(*numpy)
    if r == 1.0:
        found["ART ElasticNet"] = lambda: ElasticNet(classifier, **settings).generate(*numpy)
    return found


def scored(counted: Counted, run: Callable[[], Any], x: Tensor, y: Tensor, r: float) -> dict[str, float]:
    """Run a method once and score the points it returns."""
    torch.manual_seed(0)
    np.random.seed(0)
    counted.gradients, started = 0, time.perf_counter()
    points = torch.as_tensor(run()).detach().float()
    seconds = time.perf_counter() - started
    gradients = counted.gradients / len(x)
    flipped = counted(points).argmax(1) != y
    lengths = torch.linalg.vector_norm((points - x).flatten(1).double(), ord=r, dim=1)
    lengths[~flipped] = torch.inf
    return {
        "median": lengths.median().item(),
        "mean": lengths[flipped].mean().item(),
        "found": flipped.double().mean().item(),
        "gradients": gradients,
        "seconds": seconds,
    }


def main() -> None:
    """Run the comparison on one network: print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--without-art", dest="with_art", action="store_false", help="leave out ART's, which are slow")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    trained = robust_network(args.name, args.data_dir)
    counted = Counted(trained.model).eval()
    for parameter in counted.parameters():
        parameter.requires_grad_(False)
    shape = trained.input_shape
    classifier = PyTorchClassifier(counted, nn.CrossEntropyLoss(), shape, 10, clip_values=(0, 1), device_type="cpu")
    data = load(args.name, args.data_dir, train=False)
    x, y = torch.from_numpy(data.x[: args.samples]), torch.from_numpy(data.y[: args.samples])
    correct = counted(x).argmax(1) == y
    x, y = x[correct], y[correct]
    print(f"{args.name}: {len(x)} correctly classified images")
    print("| norm | method | median | mean | found | gradients a sample | seconds |\n" + "| --- " * 7 + "|")
    rows = []
    for r in (np.inf, 2.0, 1.0):
        for name, run in methods(classifier, x, y, r, args.with_art).items():
            row = {"norm": f"l_{r:g}", "method": name} | scored(counted, run, x, y, r)
            rows.append(row)
            figures = "{median:.4f} | {mean:.4f} | {found:.1%} | {gradients:.0f} | {seconds:.1f}".format(**row)
            print(f"| l_{r:g} | {name} | {figures} |", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"network": args.name, "images": len(x), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
