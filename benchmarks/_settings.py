# SPDX-License-Identifier: MIT
"""The one table of settings: every data set, its budgets, and how each network on it is trained."""

from __future__ import annotations

import math
from typing import NamedTuple

QUICK = "quick"
"""The data set of quick runs: scikit-learn's digits, and networks that are trained for a second and not kept."""
SEEDS = (0, 1, 2)
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Budgets of the knapsack's curve, in eps: 1, 2, 4, 6 and 8 of 255 where eps is 8/255."""
LONGER = 1.875
"""Length of all steps of the training's attack together, in eps, that serves the paper's method best."""


class Robust(NamedTuple):
    """How the adversarially trained network is made, by trainers of ART.

    :param samples: Training images.
    :param epochs: Passes over them.
    :param pgd_steps: Steps of the trainer of Madry et al.; None takes the single-step trainer.
    """

    samples: int
    epochs: int
    pgd_steps: int | None


class Pretrained(NamedTuple):
    """How the network that fine-tunings start from is made, by TRADES.

    :param epochs: Passes over the data.
    :param steps: Steps of the attack.
    :param rate: Highest learning rate of the cycle.
    :param augment: Whether images are shifted by up to 4 pixels and flipped.
    :param left_out: Training images left out. The fine-tunings split all images anew, so most of those they validate on
        were seen here, as those of the paper were.
    """

    epochs: int
    steps: int
    rate: float
    augment: bool
    left_out: int


class Certified(NamedTuple):
    """How long networks are trained of which much can be certified.

    :param epochs: By interval bounds; on clean images a quarter of it.
    :param orthogonal_epochs: With orthogonal layers; fewer, since torch's parametrisation takes most of the time there.
    """

    epochs: int
    orthogonal_epochs: int


class Noisy(NamedTuple):
    """How the network is made that is smoothed by noise.

    :param scale: Standard deviation of the noise, in training and in votes.
    :param epochs: Passes over the data.
    """

    scale: float
    epochs: int


class DataSet(NamedTuple):
    """A data set.

    :param shape: Shape of an image, (C, H, W).
    :param budgets: Budget by ground norm, in input units; that of l_inf is what networks are trained for.
    :param robust: The adversarially trained network.
    :param noisy: The network that is smoothed.
    :param pretrained: The network that fine-tunings start from, if there is one.
    :param certified: The networks for certificates, if there are any.
    """

    shape: tuple[int, int, int]
    budgets: dict[float, float]
    robust: Robust
    noisy: Noisy
    pretrained: Pretrained | None = None
    certified: Certified | None = None

    @property
    def eps(self) -> float:
        """The budget under l_inf."""
        return self.budgets[math.inf]


DATA = {
    "digits": DataSet(
        shape=(1, 8, 8),
        budgets={math.inf: 0.1, 2.0: 0.5, 1.0: 1.5},
        robust=Robust(1297, 20, 7),
        noisy=Noisy(0.25, 60),
        certified=Certified(80, 80),
    ),
    "fashion-mnist": DataSet(
        shape=(1, 28, 28),
        budgets={math.inf: 0.1},
        robust=Robust(20000, 6, 7),
        noisy=Noisy(0.25, 4),
        pretrained=Pretrained(10, 5, 0.05, augment=False, left_out=5000),
        certified=Certified(8, 3),
    ),
    "cifar10": DataSet(
        shape=(3, 32, 32),
        budgets={math.inf: 8 / 255},
        robust=Robust(25000, 14, None),
        noisy=Noisy(0.25, 8),
        pretrained=Pretrained(12, 2, 0.2, augment=True, left_out=5000),
    ),
    QUICK: DataSet(
        shape=(1, 8, 8),
        budgets={math.inf: 0.1, 2.0: 0.5},
        robust=Robust(1297, 8, None),
        noisy=Noisy(0.25, 20),
        pretrained=Pretrained(20, 1, 0.2, augment=False, left_out=297),
        certified=Certified(8, 1),
    ),
}
CERTIFIED_BUDGETS = {math.inf: (0.025, 0.05, 0.1), 2.0: (0.125, 0.25, 0.5)}
"""Budgets at which networks are certified, by ground norm, in input units."""
