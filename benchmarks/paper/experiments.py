# SPDX-License-Identifier: MIT
"""The experiments of docs/results: the paper's grid, its claim under stronger attacks, and what each choice is worth.

    python -m benchmarks.paper.experiments grid --data-dir DIR
    python -m benchmarks.paper.experiments decisive --data-dir DIR
    python -m benchmarks.paper.experiments ablations --data-dir DIR
    python -m benchmarks.paper.experiments combined --data-dir DIR
    python -m benchmarks.paper.experiments cifar10 --data-dir DIR

All but the last take Fashion-MNIST as torchvision keeps it in DIR, the last one DIR/train.npz and DIR/test.npz.
`networks/pretrained.py` makes the networks they start from. A run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from art_wdro._reproduction.laboratory import Laboratory
from art_wdro._reproduction.protocol import Cell, PaperTrainer, Protocol
from art_wdro._reproduction.reproduction import Reproduction

SEEDS = (0, 1, 2)
FASHION_NETWORK, CIFAR10_NETWORK, DIGITS_NETWORK = (
    f"benchmarks.networks.pretrained:{name}" for name in ("fashion_mnist", "cifar10", "untrained_digits")
)
FASHION = Protocol(
    data="torchvision:FashionMNIST",
    train_samples=4000,
    validation_samples=500,
    test_samples=1000,
    strong_samples=500,
    autoattack=False,
    eps=0.1,
    max_iter=10,
    epochs=8,
    batch_size=128,
)
SHORT = replace(FASHION, train_samples=3000, epochs=4, upsilon="streaming")
CIFAR10 = Protocol(
    data="train.npz",
    test_data="test.npz",
    train_samples=3000,
    validation_samples=200,
    test_samples=500,
    strong_samples=250,
    autoattack=False,
    max_iter=10,
    epochs=4,
    batch_size=256,
    trainer={"precision": "bfloat16"},
)
SCRATCH = Protocol(
    data="digits.npz",
    train_samples=1000,
    validation_samples=200,
    strong_samples=299,
    autoattack=False,
    eps=0.1,
    max_iter=10,
    epochs=60,
    batch_size=64,
    upsilon="streaming",
)
POINTWISE = {"p": "inf", "loss": "ce"}
"""The trainer's setting that is TRADES as ART has it: a pointwise attack on the cross-entropy."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "no-perturbation": {},
    "eta-0.1": {},
    "consistency-ce": {"consistency": "ce"},
    "label-predicted": {"attack_label": "predicted"},
    "window-4": {"window": 4},
    "resample-0.05": {"upsilon": "resample", "sample_fraction": 0.05},
    "resample-0.1": {"upsilon": "resample"},
    "resample-0.2": {"upsilon": "resample", "sample_fraction": 0.2},
    "path-1.875": {"eps_step": 0.01875},
    "path-4": {"eps_step": 0.04},
    "loss-dlr": {"loss": "dlr"},
    "loss-ce": {"loss": "ce"},
    "p-1.5": {"p": 1.5},
    "p-3": {"p": 3},
    "p-inf": {"p": "inf"},
    "without-budgets": {},
    "gamma-3": {"gamma": 3.0},
    "gamma-6": {"gamma": 6.0},
}
"""Trainer parameters that differ from the paper's, by name."""


class WithoutBudgets(PaperTrainer):
    """Every minibatch gets the whole eps for itself, whatever its share of Upsilon."""

    def _budget(self, own: Tensor, count: int) -> Tensor:
        return torch.full_like(own, self._eps)


class LaboratoryWithoutBudgets(Laboratory):
    """Trains without budgets."""

    trainer = WithoutBudgets


def grid(options: dict[str, Any], out: Path) -> None:
    """Run tables 1 to 5 and figures 7.1 to 7.4 on Fashion-MNIST."""
    laboratory = Laboratory(FASHION, out / "grid", **options)
    targets = ("table1", "table2", "table3", "table4", "table5", "fig7.1", "fig7.2", "fig7.3", "fig7.4")
    reproduction = Reproduction(laboratory, targets, out / "grid", SEEDS, FASHION_NETWORK)
    for cell in sorted(reproduction.planned, key=lambda cell: cell.seed):
        run(laboratory, cell)
    reproduction.write(targets)


def decisive(options: dict[str, Any], out: Path) -> None:
    """Run the compared cells of Fashion-MNIST again, with AutoAttack, beside a pointwise attack for as long."""
    network, protocol = FASHION_NETWORK, replace(FASHION, autoattack=True, strong_samples=300)
    run(Laboratory(protocol, out / "decisive", **options), Cell("before", network))
    for name, trainer in (("paper", {}), ("pointwise", POINTWISE)):
        laboratory = Laboratory(replace(protocol, trainer=trainer), out / "decisive" / name, **options)
        run(laboratory, Cell("after", network, 0, "whole", 0.01, 1.0))


def ablations(options: dict[str, Any], out: Path) -> None:
    """Change one choice at a time, on Fashion-MNIST."""
    for seed in SEEDS:
        for name, trainer in ABLATIONS.items():
            kind = LaboratoryWithoutBudgets if name == "without-budgets" else Laboratory
            laboratory = kind(replace(SHORT, trainer=trainer), out / "ablations" / name, **options)
            start = "none" if name == "no-perturbation" else "whole"
            eta = 0.1 if name == "eta-0.1" else 1.0
            run(laboratory, Cell("after", FASHION_NETWORK, seed, start, 0.01, eta))


def cifar10(options: dict[str, Any], out: Path) -> None:
    """Run the decisive cells on CIFAR-10: the paper's, a pointwise attack, longer steps, and the combined objective."""
    out, network = out.resolve(), CIFAR10_NETWORK
    os.chdir(options.pop("data_dir"))
    run(Laboratory(CIFAR10, out / "cifar10", **options), Cell("before", network))
    longer = {"eps_step": 1.875 * CIFAR10.eps / CIFAR10.max_iter}
    settings = {"paper": {}, "pointwise": POINTWISE, "path-1.875": longer, "combined": {"gamma": 3.0}}
    for seed in SEEDS:
        for name, trainer in settings.items():
            if name != "combined" or seed == 0:
                protocol = replace(CIFAR10, trainer={**CIFAR10.trainer, **trainer})
                laboratory = Laboratory(protocol, out / "cifar10" / name, **options)
                run(laboratory, Cell("after", network, seed, "whole", 0.01, 1.0))


def combined(options: dict[str, Any], out: Path) -> None:
    """Add the pointwise term where fine-tuning loses W_inf accuracy, tau = 0.1, and in training from scratch."""
    for seed in SEEDS:
        for gamma in (0.0, 3.0, 6.0):
            protocol = replace(SHORT, trainer={"gamma": gamma})
            laboratory = Laboratory(protocol, out / "combined" / f"gamma-{gamma:g}", **options)
            run(laboratory, Cell("after", FASHION_NETWORK, seed, "whole", 0.1, 1.0))
    (out / "scratch").mkdir(parents=True, exist_ok=True)
    os.chdir(out / "scratch")
    digits = load_digits()
    np.savez("digits.npz", x=(digits.images / 16).astype(np.float32), y=digits.target)
    settings = {f"gamma-{gamma:g}": {"gamma": gamma} for gamma in (0.0, 1.0, 3.0, 6.0)} | {"pointwise": POINTWISE}
    for seed in SEEDS:
        for name, trainer in settings.items():
            laboratory = Laboratory(replace(SCRATCH, trainer=trainer), Path(name), **options)
            run(laboratory, Cell("after", DIGITS_NETWORK, seed, "none", 0.1, 1.0))


def run(laboratory: Laboratory, cell: Cell) -> None:
    """Run a cell and print its figures."""
    found = laboratory.run(cell)
    strong = found.get("strong") or {"attacks": []}
    figures = {f"{row['threat']} {row['attack']}": round(100 * row["accuracy"], 1) for row in strong["attacks"]}
    shown = {key: found[key] for key in ("test", "train", "reference") if key in found}
    print(json.dumps({"cell": cell.name, "seconds": round(found["seconds"]), **shown, "strong": figures}), flush=True)


def main() -> None:
    """Run one set of experiments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    experiments = {f.__name__: f for f in (grid, decisive, ablations, combined, cifar10)}
    parser.add_argument("name", choices=tuple(experiments))
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--device")
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = {"data_dir": args.data_dir, "device": args.device, "verbose": False}
    experiments[args.name](options, args.out)


if __name__ == "__main__":
    main()
