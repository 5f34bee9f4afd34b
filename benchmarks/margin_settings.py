# SPDX-License-Identifier: MIT
"""What margin_training.py compares: methods, data sets, budgets and learning rates."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from remedies import Augmented, WeightPerturbed

from art_wdro import DistributionalTRADESTrainer, WassersteinMarginTrainer

SEEDS = (0, 1, 2)
MAX_ITER = 10


class Setting(NamedTuple):
    """What the cells of one data set share.

    :param data: Training images, as for `load_data`.
    :param test_data: Test images.
    :param network: Name of the network, as in pretrained.py.
    :param scratch: Whether training starts from the untrained network.
    :param momentum: Momentum of SGD.
    :param eps: Budget.
    :param fresh: Whether every epoch has images of its own, shifted and flipped.
    :param images: Images of an epoch.
    :param epochs: Number of epochs.
    :param batch: Images in a minibatch.
    :param test_images: Random test images, for the knapsack and W-PGD.
    :param more_images: Random test images, for clean accuracy and distances from a short search.
    :param validation_images: Further test images, for choices; they are in no figure of the table.
    :param gradients: Gradients a sample of the knapsack's search, and of each of the other searches, and of that on
        validation images.
    :param reaches: Reaches of those other searches, in eps.
    :param precision: Number format of the training's attacks.
    :param methods: What is compared.
    :param rates: Learning rates to choose from.
    """

    data: str
    test_data: str
    network: str
    scratch: bool
    momentum: float
    eps: float
    fresh: bool
    images: int
    epochs: int
    batch: int
    test_images: int
    more_images: int
    validation_images: int
    gradients: tuple[int, int, int]
    reaches: tuple[float, ...]
    precision: str
    methods: tuple[str, ...]
    rates: tuple[str, ...]

    def rates_of(self, method: str) -> tuple[str, ...]:
        """Return the learning rates of a method, among which it chooses."""
        if method == "paper, its rate":
            return ("constant",)
        return self.rates[-1:] if method in REMEDIES else self.rates


LONGER = 1.875
"""Length of all steps of the attack together, in eps, that serves the paper's method best."""
PAPER, MARGIN = DistributionalTRADESTrainer, WassersteinMarginTrainer
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "TRADES": (PAPER, {"p": math.inf, "loss": "ce"}),
    "max-margin": (MARGIN, {"p": math.inf, "budgets": 1}),
    "paper": (PAPER, {}),
    "paper, its rate": (PAPER, {}),
    "paper, combined": (PAPER, {"gamma": 3.0}),
    "paper, longer steps": (PAPER, {"longer": LONGER}),
    "paper, longer steps, beta 3": (PAPER, {"longer": LONGER, "beta": 3.0}),
    "paper, longer steps, beta 12": (PAPER, {"longer": LONGER, "beta": 12.0}),
    "paper, longer steps, 16 of them": (PAPER, {"longer": LONGER, "max_iter": 16}),
    "margin": (MARGIN, {}),
    "margin, beta 2": (MARGIN, {"beta": 2.0}),
    "margin, beta 4": (MARGIN, {"beta": 4.0}),
    "margin, one budget": (MARGIN, {"budgets": 1, "beta": 1.0}),
    "margin, augmented": (type("AugmentedMargin", (Augmented, MARGIN), {}), {}),
    "margin, weights perturbed": (type("PerturbedMargin", (WeightPerturbed, MARGIN), {}), {}),
}
"""Classes and their options; names that differ after ", beta" are choices within one method."""
COMPARED = ("TRADES", "max-margin", "paper", "paper, combined", "paper, longer steps", "margin")
REMEDIES = ("margin, one budget", "margin, augmented", "margin, weights perturbed")
RATES = {"constant": 0.01, "cosine 0.03": 0.03, "cosine 0.1": 0.1}
"""The paper's learning rate, and the highest of rates that fall to 0 along a cosine."""
FASHION, FASHION_EPS = ("torchvision:FashionMNIST", "torchvision:FashionMNIST", "fashion-mnist"), 0.1
CIFAR, CIFAR_EPS = ("train.npz", "test.npz", "cifar10"), 8 / 255
FASHION_SEARCH, CIFAR_SEARCH = ((300, 60, 60), (1.2, 2.0, 3.0)), ((100, 60, 20), (1.2, 2.0))
SETTINGS = {
    "fashion-mnist": Setting(
        *(*FASHION, False, 0.0, FASHION_EPS, False, 4000, 8, 128, 1000, 8000, 2000, *FASHION_SEARCH, "float32"),
        (
            *COMPARED,
            "paper, longer steps, beta 3",
            "paper, longer steps, beta 12",
            "paper, longer steps, 16 of them",
            "paper, its rate",
            "margin, beta 2",
            "margin, beta 4",
            *REMEDIES,
        ),
        ("cosine 0.03", "cosine 0.1"),
    ),
    "fashion-mnist-scratch": Setting(
        *(*FASHION, True, 0.9, FASHION_EPS, False, 4000, 20, 128, 1000, 8000, 2000, *FASHION_SEARCH, "float32"),
        (*COMPARED, "paper, longer steps, 16 of them"),
        ("cosine 0.03",),
    ),
    "cifar10": Setting(
        *(*CIFAR, False, 0.0, CIFAR_EPS, True, 3000, 4, 256, 500, 2000, 1000, *CIFAR_SEARCH, "bfloat16"),
        (*COMPARED, "paper, its rate"),
        ("cosine 0.03", "cosine 0.1"),
    ),
    "cifar10-scratch": Setting(
        *(*CIFAR, True, 0.9, CIFAR_EPS, True, 3000, 15, 256, 500, 2000, 1000, *CIFAR_SEARCH, "bfloat16"),
        COMPARED,
        ("cosine 0.1",),
    ),
}
