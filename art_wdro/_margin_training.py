# SPDX-License-Identifier: MIT
"""The dual of the knapsack as something to train on: its threshold tau along training, its value and its gradient.

    1 - A_eps = min over tau > 0 of  (eps / tau)^p + mean_i (1 - (d_i / tau)^p)_+

with d_i the least distance of sample i to another class. At the optimum tau is the distance of the last sample that the
budget flips, so only samples with d_i < tau matter. A distance moves with the weights theta as

    grad_theta d_i = -grad_theta m(x*_i) / ||grad_x m(x*_i)||_s,        m = max_{j != y} z_j - z_y,

x*_i the boundary point at that distance: the implicit function theorem on m(x*) = 0.

Sources: linear programming duality of the knapsack, docs/evaluation.md; for the gradient of a distance Ding et al., MMA
training, 2020, arXiv:1812.02637.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

from art_wdro._coupling import all_rows
from art_wdro._knapsack import fill
from art_wdro._losses import as_float


class RunningThreshold:
    """tau along training: the distance of the last sample that the budget flips, among those of recent minibatches."""

    def __init__(self, eps: float, p: float, window: int) -> None:
        """Start without a minibatch, at twice the budget; p = inf has tau = eps for good.

        :param eps: Budget in input units.
        :param p: Order of the Wasserstein distance.
        :param window: Number of recent minibatches that are remembered.
        """
        self.value = eps if math.isinf(p) else 2 * eps
        self._eps, self._p = eps, p
        self._recent: deque[Tensor] = deque(maxlen=window)

    def update(self, distances: Tensor) -> float:
        """Add a minibatch's least distances, (n,), of this rank's part of it, and return the new value."""
        if not math.isinf(self._p):
            self._recent.append(all_rows(distances)[0].cpu())
            self.value = fill(torch.cat([*self._recent]).numpy(), self._eps, self._p).threshold
        return self.value

    def state(self) -> dict[str, Any]:
        """Return all that it remembers, as tensors and plain values."""
        return {"value": self.value, "recent": [*self._recent]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.value = float(state["value"])
        self._recent.clear()
        self._recent.extend(state["recent"])


def dual_accuracy(distances: Tensor, tau: float, eps: float, p: float) -> Tensor:
    """Compute 1 - (eps / tau)^p - mean_i (1 - (d_i / tau)^p)_+, the accuracy under W_p if tau is the optimum.

    For any other tau it is lower, and below 0 where the budget flips all. p = inf gives the share of distances above
    eps.

    :param distances: Least distances, (n,).
    :param tau: Threshold, in input units.
    :param eps: Budget, in input units.
    :param p: Order of the Wasserstein distance.
    :return: A scalar tensor.
    """
    if math.isinf(p) or tau == 0.0:
        return (distances > eps).double().mean()
    value: Tensor = 1 - (eps / tau) ** p - hinges(distances, tau, p).mean()
    return value


def hinges(distances: Tensor, tau: float, p: float) -> Tensor:
    """Compute (1 - (d_i / tau)^p)_+, (n,); for p = inf, where that is a step, (1 - d_i / tau)_+."""
    return 1 - (distances / tau).clamp(max=1.0).pow(_exponent(p)) if tau > 0 else torch.zeros_like(distances)


def hinge_loss(logits: Tensor, labels: Tensor, distances: Tensor, slopes: Tensor, tau: float, p: float) -> Tensor:
    """Return the mean of the hinges, with the gradient that the logits at the boundary points give it.

    A hinge falls by p d_i^(p-1) / tau^p with its distance, and the distance by 1 / ||grad_x m||_s with the margin m.

    :param logits: Logits at the boundary points, (n, K), differentiable.
    :param labels: Class indices, (n,).
    :param distances: Least distances, (n,): 0 where a sample is misclassified, inf where no boundary is in reach.
    :param slopes: ||grad_x m||_s at the boundary points, (n,).
    :param tau: Threshold, in input units.
    :param p: Order of the Wasserstein distance.
    :return: A scalar tensor.
    """
    value = hinges(distances, tau, p).mean()
    exponent = _exponent(p)
    moved = (distances > 0) & (distances < tau) & (slopes > 0)
    ratios = torch.where(moved, distances, 0.0) / (tau or 1.0)
    speeds = exponent * ratios.pow(exponent - 1) / (torch.where(moved, slopes, 1.0) * (tau or 1.0))
    logits = as_float(logits)
    own = logits.gather(1, labels[:, None])[:, 0]
    margins = logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own
    loss: Tensor = (torch.where(moved, speeds, 0.0).to(margins.dtype) * margins).mean()
    return loss - loss.detach() + value.to(loss.dtype)


def _exponent(p: float) -> float:
    return 1.0 if math.isinf(p) else p
