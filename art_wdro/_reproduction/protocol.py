# SPDX-License-Identifier: MIT
"""The training paper's protocol: what experiments share, what one of them is, its images and its attacks.

Source: Bai, He, Jiang, Obloj, Wasserstein distributional adversarial training for deep neural networks, 2025,
arXiv:2502.09352, sections 6 and 7.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_wdro._sources.data import Split, load_data
from art_wdro.attacks._pgd import WassersteinPGD
from art_wdro.evaluation._accuracy import adversarial_accuracy
from art_wdro.trainers._trades import DistributionalTRADESTrainer


@dataclass(frozen=True)
class Protocol:
    """What the cells of one run share; the defaults are the paper's.

    :param data: Training images, as for `load_data`.
    :param test_data: Test images where `data` is a file or folder; None holds out a sixth of it.
    :param train_samples: Images to train on, after a split by seed.
    :param validation_samples: Further training images, to select the epoch on.
    :param test_samples: Test images to use, a random part; None takes all.
    :param strong_samples: Test images for the strongest W-PGD, the knapsack and AutoAttack; 0 leaves them out.
    :param autoattack: Whether AutoAttack is among them; None takes it where it is installed.
    :param trainer: Further parameters of :class:`DistributionalTRADESTrainer`, other than the paper's.
    """

    data: str = "torchvision:CIFAR10"
    test_data: str | None = None
    train_samples: int = 40000
    validation_samples: int = 10000
    test_samples: int | None = None
    strong_samples: int = 0
    autoattack: bool | None = None
    eps: float = 8 / 255
    beta: float = 6.0
    max_iter: int = 20
    epochs: int = 20
    batch_size: int = 512
    upsilon: str = "resample"
    noise: float = 0.01
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One experiment.

    :param kind: "before": the network as it comes; "budget": its minibatches attacked with their own budgets;
        "upsilon": Upsilon from samples of the training set; "after": the network fine-tuned; "curves": the same, with
        figures after every epoch.
    :param network: What `load_classifier` takes, or a name in RobustBench's zoo.
    :param seed: Seed of the split, the start and the training.
    :param start: "whole": all weights perturbed; "last-layer": the last layer drawn anew and trained alone; "none".
    :param tau: Learning rate.
    :param eta: Update rate of Upsilon.
    """

    kind: str
    network: str
    seed: int = 0
    start: str | None = None
    tau: float | None = None
    eta: float | None = None

    @property
    def name(self) -> str:
        """Name of the cell's files."""
        parts = [self.kind, self.network, self.start, self.tau and f"tau{self.tau:g}", self.eta and f"eta{self.eta:g}"]
        return re.sub(r"[^\w.]+", "-", "-".join([str(part) for part in parts if part] + [f"seed{self.seed}"]))


class PaperTrainer(DistributionalTRADESTrainer):
    """The trainer, its epochs measured and selected under the attacks of the paper's tables."""

    def _validate(self, data: Any) -> dict[str, float | None]:
        found = {} if data is None else paper_figures(self._classifier, Split(*data), self._common.eps)
        return {f"{key}_accuracy": found.get(key) for key in ("clean", "winf", "wp")}


def paper_attack(classifier: PyTorchClassifier, p: float, eps: float) -> WassersteinPGD:
    """Return the attack of the paper's tables: 20 steps of eps / 20, cross-entropy for W_inf and ReDLR for W_2."""
    loss, step = "ce" if math.isinf(p) else "redlr", eps / 20 if eps > 0 else None
    return WassersteinPGD(
        classifier, p=p, eps=eps, eps_step=step, max_iter=20, loss=loss, batch_size=250, verbose=False
    )


def paper_figures(classifier: PyTorchClassifier, data: Split, eps: float) -> dict[str, float]:
    """Measure accuracy as the paper does: clean, under W_inf and under W_2."""
    return {
        "clean": adversarial_accuracy(classifier, *data, eps=0.0),
        "winf": adversarial_accuracy(classifier, *data, paper_attack(classifier, math.inf, eps)),
        "wp": adversarial_accuracy(classifier, *data, paper_attack(classifier, 2.0, eps)),
    }


class Images:
    """The images of a protocol, read when they are first asked for."""

    def __init__(self, protocol: Protocol, data_dir: str, download: bool) -> None:
        """Name the images.

        :param protocol: Which, and how many.
        :param data_dir: Where torchvision finds its data sets.
        :param download: Let torchvision fetch the data set.
        """
        self._protocol, self._data_dir, self._download = protocol, data_dir, download
        self._split: tuple[int, Split, Split] | None = None

    @cached_property
    def _parts(self) -> tuple[Split, Split]:
        setting = self._protocol
        whole = load_data(setting.data, True, self._data_dir, self._download)
        if setting.test_data is not None or setting.data.startswith("torchvision:"):
            return whole, load_data(setting.test_data or setting.data, False, self._data_dir, self._download)
        rows = np.random.default_rng(0).permutation(len(whole.x))
        return whole.choose(rows[len(rows) // 6 :]), whole.choose(rows[: len(rows) // 6])

    @cached_property
    def test(self) -> Split:
        """The test images."""
        whole = self._parts[1]
        return whole.choose(np.random.default_rng(0).permutation(len(whole.x))[: self._protocol.test_samples])

    def train(self, seed: int) -> tuple[Split, Split]:
        """Return the images to train on, at most four fifths, and those to select the epoch on."""
        if self._split is None or self._split[0] != seed:
            setting, whole = self._protocol, self._parts[0]
            rows = np.random.default_rng(seed).permutation(len(whole.x))
            train, rest = np.split(rows, [min(setting.train_samples, len(rows) * 4 // 5)])
            self._split = seed, whole.choose(train), whole.choose(rest[: setting.validation_samples])
        return self._split[1:]
