# SPDX-License-Identifier: MIT
"""Per-sample gradients of an attack's loss, and Upsilon, the sensitivity of the expected loss.

Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, Theorem 4.1: V(eps) = V(0) + eps Upsilon + o(eps).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._solvers.passes import input_gradient, owning
from art_wdro._storage.arrays import Rows, parts
from art_wdro._threat.norms import dual_exponent, dual_norms, mean_of_sums, merged_sums, power_sums, whole_sums
from art_wdro.losses import RECTIFIED, PerSampleLoss, as_float, attack_objective, predicted


class Value(NamedTuple):
    """An attack's loss at some inputs, and where the attack has not succeeded yet; (N,) each."""

    losses: Tensor
    standing: Tensor


class Gradient(NamedTuple):
    """Logits, (N, K), an attack's loss, (N,), and the gradient of each sample's loss, shaped as the inputs."""

    logits: Tensor
    losses: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Objective:
    """What an attack ascends: a per-sample loss of a classifier's logits.

    :param logits_of: Maps inputs (N, ...) to logits (N, K), sample by sample.
    :param loss: Maps logits and class indices to per-sample losses, (N,).
    :param targeted: Whether the labels are targets: then a sample stands until it reaches its target,
        otherwise until it leaves its label.
    :param whole: Whether all samples are evaluated, those too for which the loss is flat.
    """

    logits_of: Callable[[Tensor], Tensor]
    loss: PerSampleLoss
    targeted: bool = False
    whole: bool = False

    @classmethod
    def of(cls, logits_of: Callable[[Tensor], Tensor], loss: str | PerSampleLoss, targeted: bool = False) -> Objective:
        """Return the objective of an attack whose loss has a name, or is a module or a callable."""
        return cls(logits_of, attack_objective(loss, targeted), targeted)

    @property
    def rectified(self) -> bool:
        """Whether the loss is flat for every sample that no longer stands, and such ones may be left out."""
        return self.loss in RECTIFIED and not self.whole

    def value(self, x: Tensor, labels: Tensor) -> Value:
        """Evaluate without a gradient."""
        with torch.no_grad():
            logits = as_float(self.logits_of(x))
            return Value(self.loss(logits, labels), self.standing(logits, labels))

    def gradient(self, x: Tensor, labels: Tensor) -> Gradient:
        """Evaluate with the gradient of each sample's own loss, never of a mean over the batch.

        Differentiates with respect to the inputs alone, so parameters gain no `.grad`.

        :param x: Inputs, (N, ...).
        :param labels: Class indices, (N,).
        :raises ValueError: If the logits do not depend on the inputs differentiably.
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = as_float(self.logits_of(x))
            losses = self.loss(logits, labels)
            gradient = input_gradient(losses, x)
        return Gradient(logits.detach(), losses.detach(), gradient)

    def standing(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Tell from logits, (N, K), where the attack has not succeeded yet, boolean, (N,)."""
        hit = predicted(logits) == labels
        return ~hit if self.targeted else hit


def upsilon(
    logits_of: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    p: float = 2.0,
    r: float = math.inf,
    loss: str | PerSampleLoss = "redlr",
    batch_size: int = 128,
) -> Tensor:
    """Compute Upsilon = (mean_i ||grad J(x_i)||_s^q)^(1/q), the slope of the worst expected loss at eps = 0.

    :param logits_of: Maps inputs (N, ...) to logits (N, K), sample by sample, differentiably.
    :param x: Inputs, (N, ...), on the device that computes or on the host.
    :param labels: Class indices, (N,), on the device that computes.
    :param p: Order of the Wasserstein distance, in [1, inf], q its dual.
    :param r: Exponent of the ground norm, s its dual.
    :param loss: As for :func:`w_pgd`.
    :param batch_size: Samples in one forward and backward pass.
    :return: A scalar tensor, float64, in loss per input unit.

    A loss of slope 3 in one input and of slope 4 in another, on one sample each:

    >>> import torch
    >>> x, labels = torch.eye(2), torch.tensor([0, 0])
    >>> loss = lambda logits, _: logits @ torch.tensor([3.0, 4.0])
    >>> round(upsilon(lambda x: x**2 / 2, x, labels, loss=loss).item() ** 2, 6)
    12.5
    """
    data = Rows(x, labels.device)
    batches = ((data[rows], labels[rows]) for rows in parts(len(data), batch_size))
    return sensitivity_of(Objective.of(owning(logits_of), loss), batches, p, r)


def sensitivity_of(objective: Objective, batches: Iterable[tuple[Tensor, Tensor]], p: float, r: float) -> Tensor:
    """Compute Upsilon = (mean_i ||g_i||_s^q)^(1/q) over all batches, of all ranks.

    :param objective: The attack's objective.
    :param batches: Pairs of inputs (n, ...) and class indices (n,).
    :param p: Order of the Wasserstein distance, q its dual; p = 1 gives the largest norm.
    :param r: Exponent of the ground norm, s its dual.
    :return: A scalar tensor, in loss per input unit.
    """
    q = dual_exponent(p)
    # a list of norms would keep small blocks of memory between the large ones, and the heap would grow with the data
    sums = None
    for x, labels in batches:
        own = power_sums(dual_norms(objective.gradient(x, labels).gradient, r), q)
        sums = own if sums is None else merged_sums(torch.stack([sums, own]), q)
    if sums is None:
        sums = torch.zeros(3, dtype=torch.float64)
    return mean_of_sums(whole_sums(sums, q), q)
