# SPDX-License-Identifier: MIT
"""Norms of samples and power means over data sets.

Per-sample quantities come back as float64 tensors of shape (N,), so that sums over a whole data set keep their digits;
they stay on the device of their input and nothing here waits for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from art_wdro._ranks import gathered, shards

SMALL_EXPONENT = 4.0
"""Exponent up to which powers of float32 numbers stay within the range of float64."""


def dual_exponent(exponent: float) -> float:
    """Return the exponent s with 1/r + 1/s = 1.

    :param exponent: r in [1, inf].
    :return: s in [1, inf].

    >>> dual_exponent(2.0), dual_exponent(math.inf), dual_exponent(1.0)
    (2.0, 1.0, inf)
    """
    if exponent == 1.0:
        return math.inf
    if math.isinf(exponent):
        return 1.0
    return exponent / (exponent - 1.0)


def sample_norms(delta: Tensor, r: float) -> Tensor:
    """Compute ||delta_i||_r of every sample.

    :param delta: Perturbations or gradients, (N, ...).
    :param r: Exponent of the norm, in [1, inf].
    :return: Norms, (N,), float64.
    """
    flat = delta.flatten(1)
    if flat.shape[1] == 0:
        return torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
    if not flat.is_cuda:  # where torch's own norm takes five times as long; sums by parts lose no digit either
        if math.isinf(r):
            return flat.abs().amax(dim=1).double()
        if r == 1.0:
            return flat.abs().sum(dim=1).double()
    norms: Tensor = torch.linalg.vector_norm(flat, ord=r, dim=1, dtype=torch.float64)
    return norms


def dual_norms(gradient: Tensor, r: float) -> Tensor:
    """Compute ||g_i||_s, and 0 where it is NaN or infinite.

    An attack leaves such a sample alone; through Upsilon it would otherwise reach every other one.

    :param gradient: Gradients, (N, ...).
    :param r: Exponent of the ground norm, s its dual.
    :return: Dual norms, (N,), float64.
    """
    return sample_norms(gradient, dual_exponent(r)).nan_to_num(nan=0.0, posinf=0.0)


def power_mean(values: Tensor, exponent: float, weights: Tensor | None = None) -> Tensor:
    """Compute (mean_i values_i^exponent)^(1/exponent), the maximum for exponent = inf.

    The largest value is factored out first where a large exponent might overflow or underflow.

    :param values: Non-negative values, (N,), numbers of float32 in float64.
    :param exponent: In [1, inf].
    :param weights: Non-negative weights of the mean, (N,); None weighs all alike.
    :return: A scalar tensor; 0 where all values are 0.

    >>> round(power_mean(torch.tensor([1.0, 7.0], dtype=torch.float64), 2.0).item(), 6)
    5.0
    """
    if weights is None and exponent <= SMALL_EXPONENT:
        mean: Tensor = torch.linalg.vector_norm(values, exponent) * max(1, len(values)) ** (-1.0 / exponent)
        return mean
    return mean_of_sums(power_sums(values, exponent, weights), exponent)


def whole_power_mean(values: Tensor, exponent: float) -> Tensor:
    """Compute :func:`power_mean` over the whole data set, of whose values, (N,), this process may have a shard."""
    if shards() is None:
        return power_mean(values, exponent)
    return mean_of_sums(whole_sums(power_sums(values, exponent), exponent), exponent)


def power_sums(values: Tensor, exponent: float, weights: Tensor | None = None) -> Tensor:
    """Return what a power mean needs to know of values: the largest, the sum of (v / largest)^exponent, the count.

    :param values: Non-negative values, (N,).
    :param exponent: In [1, inf].
    :param weights: Non-negative weights, (N,); None weighs all alike.
    :return: Three numbers, (3,).
    """
    largest = values.amax() if len(values) else values.new_zeros(())
    weights = torch.ones_like(values) if weights is None else weights
    ratios = values / torch.where(largest > 0, largest, 1.0)
    return torch.stack([largest, (_power(ratios, exponent) * weights).sum(), weights.sum()])


def merged_sums(sums: Tensor, exponent: float) -> Tensor:
    """Merge what :func:`power_sums` returned for several sets of values, (sets, 3), into that of their union, (3,)."""
    maxima, powers, counts = sums.unbind(1)
    largest = maxima.amax()
    ratios = maxima / torch.where(largest > 0, largest, 1.0)
    return torch.stack([largest, (powers * _power(ratios, exponent)).sum(), counts.sum()])


def whole_sums(sums: Tensor, exponent: float) -> Tensor:
    """Merge what :func:`power_sums` returned on every rank, (3,), into that of the whole data set, (3,)."""
    return merged_sums(gathered(sums), exponent)


def mean_of_sums(sums: Tensor, exponent: float) -> Tensor:
    """Return the power mean that :func:`power_sums` describes."""
    largest, powers, count = sums
    mean: Tensor = largest if math.isinf(exponent) else largest * (powers / count).pow(1.0 / exponent)
    return mean


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Shape (N,) values so that they multiply the rows of `like`, in its dtype."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def _power(ratios: Tensor, exponent: float) -> Tensor:
    return torch.zeros_like(ratios) if math.isinf(exponent) else ratios.pow(exponent)
