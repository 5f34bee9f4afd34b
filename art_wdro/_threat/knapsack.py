# SPDX-License-Identifier: MIT
"""The worst distribution for the 0-1 loss: a knapsack over least adversarial distances, computed in NumPy.

The attacker has the budget N eps^p, flipping sample i costs d_i^p and gains 1/N: the optimum takes the cheapest samples
first, the last one in part (mass may be split), and equals min over lambda >= 0 of lambda eps^p + mean (1 - lambda
d_i^p)_+ by linear programming duality.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-9
"""Relative excess of the budget that counts as rounding."""


class Filling(NamedTuple):
    """How the budget is spent.

    :param flipped: Which samples flip whole, boolean, (N,).
    :param partial: Index of the sample of which a part flips, or None.
    :param fraction: Which part of it, in [0, 1).
    :param threshold: Distance of the last sample flipped, in whole or in part; 0 where none is.
    """

    flipped: np.ndarray
    partial: int | None
    fraction: float
    threshold: float

    @property
    def accuracy(self) -> float:
        """The share of the mass that is left, in [0, 1]."""
        return float(1.0 - (self.flipped.sum() + self.fraction) / len(self.flipped))

    def __float__(self) -> float:
        """Return the accuracy."""
        return self.accuracy


def knapsack(distances: Any, eps: float, p: float = 2.0) -> Filling:
    """Spend the budget on the cheapest samples: the worst distribution in the W_p ball for the 0-1 loss.

    :param distances: Least distances, (N,), in input units, an array or a tensor; 0 costs nothing, inf cannot be had.
    :param eps: Budget in input units.
    :param p: Order, in [1, inf]; inf flips every sample within eps.
    :return: The filling, the optimum over all distributions in the ball; `accuracy` is what it leaves.

    A budget of 4 * 1 flips the second sample and three quarters of the third:

    >>> filling = knapsack([0.0, 1.0, 4.0, float("inf")], eps=1.0, p=1)
    >>> filling.flipped.tolist(), filling.partial, filling.fraction, filling.accuracy
    ([True, True, False, False], 2, 0.75, 0.3125)
    """
    distances = np.asarray(distances.cpu() if isinstance(distances, Tensor) else distances, dtype=np.float64)
    if math.isinf(p) or eps == 0.0:
        flipped = distances <= eps
        return Filling(flipped, None, 0.0, float(distances[flipped].max(initial=0.0)))
    order = np.argsort(distances, kind="stable")
    sorted_distances = distances[order]
    with np.errstate(over="ignore"):
        costs = (sorted_distances / eps) ** p
    spent = np.cumsum(costs)
    whole = int(np.searchsorted(spent, len(distances) * (1 + ROUNDING), side="right"))
    flipped = np.zeros(len(distances), bool)
    flipped[order[:whole]] = True
    threshold = float(sorted_distances[whole - 1]) if whole else 0.0
    if whole == len(distances) or not math.isfinite(costs[whole]):
        return Filling(flipped, None, 0.0, threshold)
    left = len(distances) - (spent[whole - 1] if whole else 0.0)
    fraction = float(left / costs[whole])
    if fraction <= 0.0:
        return Filling(flipped, None, 0.0, threshold)
    return Filling(flipped, int(order[whole]), fraction, float(sorted_distances[whole]))


def thresholds(distances: Tensor, budgets: Tensor, p: float) -> Tensor:
    """Return the thresholds of :func:`knapsack` for several budgets, computed where the distances lie without a wait.

    :param distances: Least distances, (N,), float64, in input units.
    :param budgets: Budgets in input units, (K,), float64.
    :param p: Order, in [1, inf).
    :return: Distances of the last sample that each flips, in whole or in part, (K,); 0 where it flips none.

    >>> distances, budgets = torch.tensor([0.0, 1.0, 4.0, torch.inf]).double(), torch.tensor([0.0, 0.1, 1.0]).double()
    >>> thresholds(distances, budgets, p=1).tolist()
    [0.0, 1.0, 4.0]
    """
    # one that costs nothing before all others, and one that cannot be had behind
    ends = distances.new_zeros(1), distances.new_full((1,), torch.inf)
    ordered = torch.cat([ends[0], distances.sort().values, ends[1]])
    costs = (ordered / budgets.clamp(min=torch.finfo(budgets.dtype).tiny)[:, None]).pow(p)
    spent = costs.cumsum(1)
    whole = (spent <= len(distances) * (1 + ROUNDING)).sum(1, keepdim=True)
    in_part = (spent.gather(1, whole - 1) < len(distances)) & torch.isfinite(costs.gather(1, whole))
    return torch.where(budgets > 0, ordered[(whole - 1 + in_part.long())[:, 0]], 0.0)
