# SPDX-License-Identifier: MIT
"""Per-sample gradients of an attack's loss, and Upsilon, the sensitivity of the expected loss.

Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, Theorem 4.1: V(eps) = V(0) + eps Upsilon + o(eps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._ranks import Gather, alone
from art_wdro._threat.norms import dual_exponent, dual_norms, mean_of_sums, merged_sums, power_sums
from art_wdro.losses import RECTIFIED, PerSampleLoss, as_float


class Value(NamedTuple):
    """An attack's loss at some inputs, and where the attack has not succeeded yet; (N,) each."""

    losses: Tensor
    standing: Tensor


@dataclass(frozen=True)
class Objective:
    """What an attack ascends: a per-sample loss of a classifier's logits.

    :param logits_of: Maps inputs (N, ...) to logits (N, K), sample by sample.
    :param loss: Maps logits and class indices to per-sample losses, (N,).
    :param targeted: Whether the labels are targets: then a sample stands until it reaches its target,
        otherwise until it leaves its label.
    :param scale: Factor on the loss inside the backward pass, where half precision would lose small gradients.
    """

    logits_of: Callable[[Tensor], Tensor]
    loss: PerSampleLoss
    targeted: bool = False
    scale: float = 1.0

    @property
    def rectified(self) -> bool:
        """Whether the loss is flat for every sample that no longer stands."""
        return self.loss in RECTIFIED

    def value(self, x: Tensor, labels: Tensor) -> Value:
        """Evaluate without a gradient."""
        with torch.no_grad():
            return self._value(x, labels)

    def gradient(self, x: Tensor, labels: Tensor) -> tuple[Value, Tensor]:
        """Evaluate with the gradient of each sample's own loss, never of a mean over the batch.

        Differentiates with respect to the inputs alone, so parameters gain no `.grad`.

        :param x: Inputs, (N, ...).
        :param labels: Class indices, (N,).
        :return: The value, and the gradients, shaped as `x`.
        :raises ValueError: If the logits do not depend on the inputs differentiably.
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = self._value(x, labels)
            if not value.losses.requires_grad:
                raise ValueError("the classifier's logits do not depend differentiably on x")
            (gradient,) = torch.autograd.grad(self.scale * value.losses.sum(), x)
        return Value(value.losses.detach(), value.standing), gradient if self.scale == 1.0 else gradient / self.scale

    def _value(self, x: Tensor, labels: Tensor) -> Value:
        logits = as_float(self.logits_of(x))
        hit = logits.detach().argmax(dim=1) == labels
        return Value(self.loss(logits, labels), ~hit if self.targeted else hit)


def upsilon(
    objective: Objective, batches: Iterable[tuple[Tensor, Tensor]], p: float, r: float, gather: Gather = alone
) -> Tensor:
    """Compute Upsilon = (mean_i ||g_i||_s^q)^(1/q) over all batches.

    :param objective: The attack's objective.
    :param batches: Pairs of inputs (n, ...) and class indices (n,).
    :param p: Order of the Wasserstein distance, q its dual; p = 1 gives the largest norm.
    :param r: Exponent of the ground norm, s its dual.
    :param gather: Gathers numbers where the batches are a shard of all.
    :return: A scalar tensor, in loss per input unit.
    """
    q = dual_exponent(p)
    # a list of norms would keep small blocks of memory between the large ones, and the heap would grow with the data
    sums = None
    for x, labels in batches:
        own = power_sums(dual_norms(objective.gradient(x, labels)[1], r), q)
        sums = own if sums is None else merged_sums(torch.stack([sums, own]), q)
    if sums is None:
        sums = torch.zeros(3, dtype=torch.float64)
    return mean_of_sums(merged_sums(gather(sums), q), q)
