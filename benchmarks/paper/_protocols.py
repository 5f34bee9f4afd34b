# SPDX-License-Identifier: MIT
"""What the cells of experiments.py share, where they are run, and on which images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from art_wdro._reproduction.laboratory import Laboratory
from art_wdro._reproduction.protocol import Images, PaperTrainer, Protocol
from art_wdro._storage.files import write_atomically
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._trades import AlgorithmOne
from art_wdro.trainers._update import Updates
from benchmarks._settings import DATA, LONGER, QUICK, SEEDS
from benchmarks.networks._data import stored

T = TypeVar("T")
NETWORKS = {
    "fashion-mnist": "benchmarks.networks.pretrained:fashion_mnist",
    "cifar10": "benchmarks.networks.pretrained:cifar10",
    "digits": "benchmarks.networks.pretrained:untrained_digits",
    QUICK: "benchmarks.networks.pretrained:quick",
}
"""Factories of the networks that cells start from, by data set."""
DIGITS = "digits.npz"
FASHION = Protocol(
    data="torchvision:FashionMNIST",
    train_samples=4000,
    validation_samples=500,
    test_samples=1000,
    strong_samples=500,
    autoattack=False,
    eps=DATA["fashion-mnist"].eps,
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
    eps=DATA["cifar10"].eps,
    max_iter=10,
    epochs=4,
    batch_size=256,
    trainer={"precision": "bfloat16"},
)
SCRATCH = Protocol(
    data=DIGITS,
    train_samples=1000,
    validation_samples=200,
    strong_samples=299,
    autoattack=False,
    eps=DATA["digits"].eps,
    max_iter=10,
    epochs=60,
    batch_size=64,
    upsilon="streaming",
)
POINTWISE: dict[str, Any] = {"p": "inf", "loss": "ce"}
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
    "path-1.875": {"eps_step": LONGER * FASHION.eps / FASHION.max_iter},
    "path-4": {"eps_step": 0.04},
    "loss-dlr": {"loss": "dlr"},
    "loss-ce": {"loss": "ce"},
    "p-1.5": {"p": 1.5},
    "p-3": {"p": 3},
    "p-inf": {"p": "inf"},
    "gamma-3": {"gamma": 3.0},
    "gamma-6": {"gamma": 6.0},
    "without-budgets": {},
}
"""Trainer parameters that differ from the paper's, by name."""


class LocalLaboratory(Laboratory):
    """A laboratory whose protocol names files by their names in the data folder, wherever that is."""

    verbose = False

    def __init__(self, protocol: Protocol, folder: Path, *, data_dir: str, **options: Any) -> None:
        """Set up the experiments of one protocol; parameters are those of :class:`Laboratory`."""
        super().__init__(protocol, folder, data_dir=data_dir, **options)
        self.images = Images(
            replace(protocol, data=_placed(protocol.data, data_dir), test_data=_placed(protocol.test_data, data_dir)),
            data_dir,
            False,
        )


def _placed(source: Any, data_dir: str) -> Any:
    return str(Path(data_dir) / source) if source is not None and source.endswith(".npz") else source


class WithoutBudgets(PaperTrainer):
    """Every minibatch gets the whole eps for itself, whatever its share of Upsilon."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> AlgorithmOne:
        return _WholeBudgets(self, updates, minibatches)


class _WholeBudgets(AlgorithmOne):
    """Algorithm 1 without shares."""

    def _budget(self, own: Tensor, samples: int) -> Tensor:
        return torch.full_like(own, self._eps)


class LaboratoryWithoutBudgets(LocalLaboratory):
    """Trains without budgets."""

    trainer = WithoutBudgets


class Site:
    """Where experiments are run: a folder, data, a device, and how many seeds."""

    def __init__(self, out: Path, data_dir: Path | None, device: str | None, quick: bool) -> None:
        """Name the site.

        :param out: Folder for what the cells give.
        :param data_dir: Folder of the data sets.
        :param device: A torch device; None takes CUDA where it is.
        :param quick: Whether protocols shrink to some images of digits and one seed.
        """
        self.out, self._device, self._quick = out, device, quick
        self._data_dir = data_dir
        self.seeds = SEEDS[:1] if quick else SEEDS

    def network(self, name: str) -> str:
        """Return the factory of the network for a data set."""
        return NETWORKS[QUICK if self._quick else name]

    def some(self, items: Iterable[T]) -> list[T]:
        """Return all of them, or the first and the last in a quick run."""
        found = list(items)
        return [found[0], found[-1]] if self._quick else found

    def laboratory(
        self, protocol: Protocol, folder: str, kind: type[LocalLaboratory] = LocalLaboratory, **trainer: Any
    ) -> LocalLaboratory:
        """Return the laboratory of a protocol.

        :param protocol: What its cells share.
        :param folder: Its folder in that of the site.
        :param kind: Its class.
        :param trainer: Parameters of the trainer beside the protocol's.
        """
        data_dir = self._data_dir
        if self._quick:
            protocol = tiny(protocol)
        if protocol.data == DIGITS:
            data_dir = self.out / "scratch"
            keep_digits(data_dir / DIGITS)
        if data_dir is None:
            raise SystemExit("--data-dir is missing")
        protocol = replace(protocol, trainer={**protocol.trainer, **trainer})
        return kind(protocol, self.out / folder, data_dir=str(data_dir), device=self._device)


def tiny(protocol: Protocol) -> Protocol:
    """Shrink a protocol to some images of digits, and to two for strong attacks where AutoAttack is wanted."""
    return replace(
        protocol,
        data=DIGITS,
        test_data=None,
        train_samples=64,
        validation_samples=16,
        test_samples=12,
        strong_samples=2 if protocol.autoattack else 0,
        autoattack=False,
        max_iter=2,
        epochs=1,
        batch_size=32,
    )


def keep_digits(file: Path) -> None:
    """Write scikit-learn's digits, unless they are there."""
    if not file.exists():
        x, y = stored("digits", None, train=True)
        write_atomically(file, lambda path: np.savez(path, x=x[:, 0], y=y))
