# SPDX-License-Identifier: MIT
"""The dual of the knapsack as something to train on: its thresholds tau along training, its value and its gradient.

    1 - A_eps = min over tau > 0 of  (eps / tau)^p + mean_i (1 - (d_i / tau)^p)_+

with d_i the least distance of sample i to another class. At the optimum tau is the distance of the last sample that the
budget flips, so only samples with d_i < tau matter. A distance moves with the weights theta as

    grad_theta d_i = -grad_theta m(x*_i) / ||grad_x m(x*_i)||_s,        m = max_{j != y} z_j - z_y,

x*_i the boundary point at that distance: the implicit function theorem on m(x*) = 0. Where the slope in the denominator
is tiny, as where a network predicts one class for all, a few samples would outweigh all others. So a margin weighs no
more in the mean hinge than it can in the cross-entropy, and the step is the gradient's but for those samples.

Sources: linear programming duality of the knapsack, docs/evaluation.md; for the gradient of a distance Ding et al., MMA
training, 2020, arXiv:1812.02637.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

from art_wdro._ranks import all_rows
from art_wdro._threat.knapsack import thresholds
from art_wdro.losses import as_float, margins

HEAVIEST = 1.0
"""Largest weight of a sample's margin in the mean hinge; in the cross-entropy it lies between 0 and 1."""


class RunningThresholds:
    """tau along training, for several budgets: the distance of the last sample each flips, in recent minibatches.

    Attributes: `values`, one threshold a budget, (K,), float64, on the device of the distances.
    """

    def __init__(self, eps: float, p: float, budgets: int, window: int, device: torch.device | str) -> None:
        """Start without a minibatch, at twice the budgets; p = inf has tau = eps for good.

        :param eps: Largest budget in input units.
        :param p: Order of the Wasserstein distance.
        :param budgets: Number of budgets, evenly spaced up to `eps`.
        :param window: Number of recent minibatches that are remembered.
        :param device: Where the distances will lie.
        """
        self._p = p
        shares = [eps * (number + 1) / budgets for number in range(budgets)]
        self._budgets = torch.tensor(shares, dtype=torch.float64, device=device)
        self.values = self._budgets if math.isinf(p) else 2 * self._budgets
        self._recent: deque[Tensor] = deque(maxlen=window)

    def update(self, distances: Tensor, reach: Tensor | float = math.inf) -> Tensor:
        """Add a minibatch's least distances, and return the new values.

        What lies out of reach is at least so far. Where the samples in reach do not take up a budget, its threshold is
        the reach, and so grows over a gap between distances, at most to where all of the budget brings one sample.

        :param distances: Least distances, (n,), of this rank's part of the minibatch.
        :param reach: How far they were searched for, in input units.
        """
        if not math.isinf(self._p):
            self._recent.append(all_rows(distances)[0])
            recent = torch.cat([*self._recent])
            found, least = (thresholds(known, self._budgets, self._p) for known in (recent, recent.clamp(max=reach)))
            self.values = torch.maximum(found, torch.minimum(least, self._budgets * len(recent) ** (1 / self._p)))
        return self.values

    def state(self) -> dict[str, Any]:
        """Return all that it remembers, as tensors."""
        return {"values": self.values, "recent": [*self._recent]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        device = self._budgets.device
        self.values = state["values"].to(device)
        self._recent.clear()
        self._recent.extend(distances.to(device) for distances in state["recent"])


def dual_accuracy(distances: Tensor, tau: Tensor, eps: float, p: float) -> Tensor:
    """Compute 1 - (eps / tau)^p - mean_i (1 - (d_i / tau)^p)_+, the accuracy under W_p if tau is the optimum.

    For any other tau it is lower, and below 0 where the budget flips all. p = inf gives the share of distances above
    eps.

    :param distances: Least distances, (n,).
    :param tau: Threshold, in input units, a scalar tensor.
    :param eps: Budget, in input units.
    :param p: Order of the Wasserstein distance.
    :return: A scalar tensor.
    """
    beyond = (distances > eps).double().mean()
    if math.isinf(p):
        return beyond
    return torch.where(tau > 0, 1 - (eps / tau).pow(p) - hinges(distances, tau[None], p).mean(), beyond)


def hinges(distances: Tensor, taus: Tensor, p: float) -> Tensor:
    """Compute (1 - (d_i / tau)^p)_+, averaged over thresholds; for p = inf, where that is a step, (1 - d_i / tau)_+.

    :param distances: Least distances, (n,).
    :param taus: Thresholds, (K,), in input units; 0 counts the misclassified.
    :param p: Order of the Wasserstein distance.
    :return: Values in [0, 1], (n,).
    """
    return 1 - _ratios(distances, taus).pow(_exponent(p)).mean(1)


def slopes_of_hinges(distances: Tensor, taus: Tensor, p: float) -> Tensor:
    """Compute how fast each of :func:`hinges` falls, the mean of p d_i^(p-1) / tau^p over the thresholds above d_i > 0.

    :param distances: Least distances, (n,).
    :param taus: Thresholds, (K,), in input units.
    :param p: Order of the Wasserstein distance.
    :return: Slopes, (n,); 0 for misclassified samples too.
    """
    exponent, ratios = _exponent(p), _ratios(distances, taus)
    inside = (ratios > 0) & (ratios < 1)
    each = exponent * ratios.pow(exponent - 1) / torch.where(taus > 0, taus, 1.0)
    return torch.where(inside, each, 0.0).mean(1)


def hinge_loss(logits: Tensor, labels: Tensor, distances: Tensor, slopes: Tensor, taus: Tensor, p: float) -> Tensor:
    """Return the mean of the hinges, with the gradient that the logits at the boundary points give it.

    A sample's margin has the weight slope of the hinge / slope of the margin, at most `HEAVIEST`. A misclassified one,
    whose hinge is 1, is drawn back with the weight of one as far before the boundary, margin / slope to first order.

    :param logits: Logits at the boundary points, (n, K), differentiable.
    :param labels: Class indices, (n,).
    :param distances: Least distances, (n,): 0 where a sample is misclassified, inf where no boundary is in reach.
    :param slopes: ||grad_x m||_s at the boundary points, (n,).
    :param taus: Thresholds, (K,), in input units.
    :param p: Order of the Wasserstein distance.
    :return: A scalar tensor.
    """
    own, steepness = margins(as_float(logits), labels), slopes.clamp(min=torch.finfo(slopes.dtype).tiny)
    beyond = own.detach().to(steepness).clamp(min=0) / steepness
    weights = slopes_of_hinges(torch.where(distances > 0, distances, beyond), taus, p) / steepness
    moving: Tensor = (weights.clamp(max=HEAVIEST).to(own.dtype) * own).mean()
    return moving - moving.detach() + hinges(distances, taus, p).mean().to(moving.dtype)


def _ratios(distances: Tensor, taus: Tensor) -> Tensor:
    """Return min(d_i / tau, 1) for every threshold, (n, K); where tau is 0, 0 or 1."""
    return (distances[:, None] / taus.clamp(min=torch.finfo(distances.dtype).tiny)).clamp(max=1.0)


def _exponent(p: float) -> float:
    return 1.0 if math.isinf(p) else p
