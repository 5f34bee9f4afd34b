# SPDX-License-Identifier: MIT
"""What training.py compares: methods, data sets, budgets and learning rates."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from art_wdro import DistributionalTRADESTrainer
from art_wdro.trainers._base import FineTuner
from benchmarks._one_side import OneSide
from benchmarks._settings import DATA, LONGER, QUICK

MAX_ITER = 10


class Setting(NamedTuple):
    """What the cells of one data set share.

    :param data: Training images, as for `load_data`, or a name in `DATA` that needs no folder.
    :param test_data: Test images.
    :param network: Name of the data set in `DATA`, and of its network in networks/pretrained.py.
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
        return OWN_RATES.get(method, self.rates)


PAPER, MARGIN = DistributionalTRADESTrainer, OneSide
BETA = 1.5
"""The margin trainer's beta where a name has none."""
METHODS: dict[str, tuple[type[FineTuner], dict[str, Any]]] = {
    "TRADES": (PAPER, {"p": math.inf, "loss": "ce"}),
    "max-margin": (MARGIN, {"p": math.inf, "budgets": 1, "beta": BETA}),
    "paper": (PAPER, {}),
    "paper, its rate": (PAPER, {}),
    "paper, combined": (PAPER, {"gamma": 3.0}),
    "paper, longer steps": (PAPER, {"longer": LONGER}),
    "paper, longer steps, beta 3": (PAPER, {"longer": LONGER, "beta": 3.0}),
    "paper, longer steps, beta 12": (PAPER, {"longer": LONGER, "beta": 12.0}),
    "paper, longer steps, 16 of them": (PAPER, {"longer": LONGER, "max_iter": 16}),
    "margin": (MARGIN, {"beta": BETA}),
    "margin, beta 2": (MARGIN, {"beta": 2.0}),
    "margin, beta 4": (MARGIN, {"beta": 4.0}),
    "margin, one budget": (MARGIN, {"budgets": 1, "beta": 1.0}),
    "margin, augmented": (MARGIN, {"beta": BETA, "augmented": True}),
    "margin, weights perturbed": (MARGIN, {"beta": BETA, "weight_perturbation": 0.01}),
}
"""Classes and their options; names that differ after ", beta" are variants of one method.

Options are those of the trainer, but for two: `longer`, the length of all steps of its attack together, in eps, and
`augmented`, whether images are shifted and flipped.
"""
COMPARED = ("TRADES", "max-margin", "paper", "paper, combined", "paper, longer steps", "margin")
REMEDIES = ("margin, one budget", "margin, augmented", "margin, weights perturbed")
"""What was tried against overfitting."""
OWN_RATES = {"paper, its rate": ("constant",), **dict.fromkeys(REMEDIES, ("cosine 0.1",))}
"""Methods that do not choose among the rates of a data set."""
RATES = {"constant": 0.01, "cosine 0.03": 0.03, "cosine 0.1": 0.1}
"""The paper's learning rate, and the highest of rates that fall to 0 along a cosine."""
FASHION = Setting(
    data="torchvision:FashionMNIST",
    test_data="torchvision:FashionMNIST",
    network="fashion-mnist",
    scratch=False,
    momentum=0.0,
    eps=DATA["fashion-mnist"].eps,
    fresh=False,
    images=4000,
    epochs=8,
    batch=128,
    test_images=1000,
    more_images=8000,
    validation_images=2000,
    gradients=(300, 60, 60),
    reaches=(1.2, 2.0, 3.0),
    precision="float32",
    methods=(
        *COMPARED,
        "paper, longer steps, beta 3",
        "paper, longer steps, beta 12",
        "paper, longer steps, 16 of them",
        "paper, its rate",
        "margin, beta 2",
        "margin, beta 4",
        *REMEDIES,
    ),
    rates=("cosine 0.03", "cosine 0.1"),
)
CIFAR = Setting(
    data="train.npz",
    test_data="test.npz",
    network="cifar10",
    scratch=False,
    momentum=0.0,
    eps=DATA["cifar10"].eps,
    fresh=True,
    images=3000,
    epochs=4,
    batch=256,
    test_images=500,
    more_images=2000,
    validation_images=1000,
    gradients=(100, 60, 20),
    reaches=(1.2, 2.0),
    precision="bfloat16",
    methods=(*COMPARED, "paper, longer steps, beta 12", "paper, its rate", "margin, beta 4"),
    rates=("cosine 0.03", "cosine 0.1"),
)
SETTINGS = {
    "fashion-mnist": FASHION,
    "fashion-mnist-scratch": FASHION._replace(
        scratch=True,
        momentum=0.9,
        epochs=20,
        methods=(*COMPARED, "paper, longer steps, 16 of them"),
        rates=("cosine 0.03",),
    ),
    "cifar10": CIFAR,
    "cifar10-scratch": CIFAR._replace(
        scratch=True,
        momentum=0.9,
        epochs=15,
        methods=(*COMPARED, "paper, longer steps, beta 12", "margin, beta 4"),
        rates=("cosine 0.1",),
    ),
    QUICK: FASHION._replace(
        data=QUICK,
        test_data=QUICK,
        network=QUICK,
        images=160,
        epochs=1,
        batch=32,
        test_images=24,
        more_images=60,
        validation_images=60,
        gradients=(30, 10, 10),
        reaches=(1.2, 2.0),
        methods=("paper", "margin", "margin, beta 2", "margin, augmented", "margin, weights perturbed"),
        rates=("cosine 0.1",),
    ),
}
