# SPDX-License-Identifier: MIT
"""The accuracy that least distances leave under a W_p budget."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._threat.knapsack import knapsack


def knapsack_accuracy(distances: Any, eps: Any, p: float = 2) -> Any:
    """Compute the adversarial accuracy under W_p that least distances leave, for one budget or many.

    With least distances this is the exact minimum over all distributions in the W_p ball; with distances that an attack
    found, an upper bound on it; with certified radii, a lower bound.

    :param distances: Distance of every sample to another class, (N,), in input units: 0 where it is misclassified
        already, inf where no such point is known.
    :param eps: Budget in input units, or an array of budgets.
    :param p: Order of the Wasserstein distance, in [1, inf]; inf gives the pointwise robust accuracy.
    :return: Accuracy in [0, 1]: a float for one budget, an array shaped as `eps` for many.
    :raises ValueError: If distances are empty, negative or NaN, or eps or p is not allowed.
    :raises TypeError: If a value is of the wrong type.

    A budget of 4 * 1 flips the second sample and three quarters of the third:

    >>> knapsack_accuracy([0.0, 1.0, 4.0, float("inf")], eps=1.0, p=1)
    0.3125
    >>> knapsack_accuracy([0.0, 1.0, 4.0, float("inf")], eps=[0.0, 0.5, 4.0], p=float("inf")).tolist()
    [0.75, 0.75, 0.25]
    """
    p = arguments.order(p, one=True)
    values = np.asarray(distances.cpu() if isinstance(distances, Tensor) else distances, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"distances have the shape {values.shape}; needed is (N,) with at least one sample")
    if not (values >= 0).all():
        raise ValueError("distances hold negative or NaN values; allowed are numbers >= 0, inf included")
    if np.ndim(eps) == 0:
        return knapsack(values, arguments.real("eps", eps, 0.0), p).accuracy
    budgets = np.asarray(eps)
    found = [knapsack(values, arguments.real("eps", e, 0.0), p).accuracy for e in budgets.flat]
    return np.array(found).reshape(budgets.shape)
