# SPDX-License-Identifier: MIT
"""What upsilon_estimates.py fine-tunes: data sets, networks, and how a fine-tuning starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_wdro import DistributionalTRADESTrainer, adversarial_accuracy, perturb_weights, reinitialise_last_layer
from benchmarks._settings import DATA
from benchmarks.networks._architectures import CLASSES, classifier_of
from benchmarks.networks._data import stored

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Training images and labels, test images and labels."""
SOURCES = {"digits": "digits", "fashion": "fashion-mnist"}
"""Data sets by the names that cases have for them."""


@dataclass(frozen=True)
class Case:
    """A data set, a way to start the fine-tuning, and how long to do what.

    :param data: Name in `SOURCES`.
    :param last_layer: Whether the last layer is drawn anew and trained alone, or all weights are perturbed and trained.
    :param every: Minibatches from one measurement of the true Upsilon to the next.
    :param complete: Whether part 2 runs too.
    """

    name: str
    data: str
    last_layer: bool
    learning_rate: float
    batch_size: int
    epochs: int
    pretraining_epochs: int
    seeds: tuple[int, ...]
    every: int
    complete: bool
    train_size: int
    test_size: int
    eps: float = DATA["digits"].eps
    max_iter: int = 20


CASES = (
    Case("digits, whole network", "digits", False, 0.05, 32, 3, 15, (0, 1, 2, 3, 4), 1, True, 1297, 500),
    Case("digits, last layer", "digits", True, 0.1, 32, 3, 15, (0, 1, 2, 3, 4), 1, True, 1297, 500),
    Case("Fashion-MNIST, whole network", "fashion", False, 0.05, 64, 3, 6, (0, 1, 2), 4, True, 4800, 1000),
    Case("Fashion-MNIST, last layer", "fashion", True, 0.1, 64, 3, 6, (0, 1, 2), 4, False, 4800, 1000),
)


def quick(case: Case) -> Case:
    """Shrink a case to a second."""
    return replace(case, epochs=1, pretraining_epochs=6, seeds=(0,), train_size=320, test_size=40, max_iter=3, every=4)


def load(case: Case, folder: Path, seed: int) -> Data:
    """Return training and test images in [0, 1] with labels, drawn by the seed."""
    rng = np.random.default_rng(seed)
    if case.data == "digits":
        whole = stored(case.data, None, train=True)
        order = rng.permutation(len(whole.x))
        return *whole.choose(order[: case.train_size]), *whole.choose(order[-case.test_size :])
    parts = []
    for train, size in ((True, case.train_size), (False, case.test_size)):
        whole = stored(SOURCES[case.data], folder, train)
        parts.append(whole.choose(rng.permutation(len(whole.x))[:size]))
    return *parts[0], *parts[1]


def network(data: str) -> nn.Module:
    """Build the small convolutional network of a data set."""
    if data == "digits":
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1)]
        features = 32 * 4 * 4
    else:
        layers = [nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1)]
        features = 32 * 7 * 7
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(features, 100), nn.ReLU(), nn.Linear(100, CLASSES))


def classifier_for(model: nn.Module, data: Data, learning_rate: float, momentum: float = 0.0) -> PyTorchClassifier:
    """Wrap a network with a fresh SGD optimiser."""
    return classifier_of(model, data[0].shape[1:], lr=learning_rate, momentum=momentum)


def pretrained(case: Case, data: Data, seed: int) -> dict[str, Tensor]:
    """Return the weights of a network that pointwise TRADES made robust."""
    torch.manual_seed(seed)
    classifier = classifier_for(network(case.data), data, 0.05, momentum=0.9)
    trainer = DistributionalTRADESTrainer(
        classifier, eps=case.eps, p=math.inf, loss="ce", max_iter=5, eps_step=case.eps / 2.5, seed=seed, verbose=False
    )
    trainer.fit(data[0], data[1], batch_size=case.batch_size, nb_epochs=case.pretraining_epochs)
    state: dict[str, Tensor] = classifier.model.state_dict()
    return state


def start(case: Case, data: Data, weights: dict[str, Tensor], seed: int) -> PyTorchClassifier:
    """Return the classifier with which every fine-tuning of a seed starts."""
    model = network(case.data)
    model.load_state_dict(weights)
    classifier = classifier_for(model, data, case.learning_rate)
    if case.last_layer:
        reinitialise_last_layer(classifier, seed=seed)
    else:
        perturb_weights(classifier, seed=seed)
    return classifier


def held_out(case: Case, classifier: PyTorchClassifier, data: Data) -> dict[str, float]:
    """Measure held-out accuracy, clean and under W-PGD with its default steps."""
    return {
        "clean": adversarial_accuracy(classifier, data[2], data[3], eps=0.0),
        "w2": adversarial_accuracy(classifier, data[2], data[3], eps=case.eps),
    }
