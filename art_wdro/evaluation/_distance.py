# SPDX-License-Identifier: MIT
"""The distance D_p between a data set and what an attack made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host.inputs import as_numbers
from art_wdro._ranks import shards
from art_wdro._storage.arrays import Rows, parts, staged
from art_wdro._threat.norms import sample_norms, whole_power_mean


def wasserstein_distance(x: Any, x_adv: Any, p: float = 2, norm: float | str = np.inf) -> float:
    """Compute D_p = (mean_i ||x_adv_i - x_i||_r^p)^(1/p), in float64.

    D_p keeps every sample paired with its own copy, so it is an upper bound on the W_p distance of the
    two data sets. (SciPy's function of the same name is the true distance of one-dimensional samples.)

    :param x: Inputs, (N, ...).
    :param x_adv: The same samples, moved; same shape.
    :param p: Order, in [1, inf].
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :return: D_p in input units.
    :raises ValueError: If the shapes differ or are empty, values are not finite, or p or norm is not allowed.

    >>> round(wasserstein_distance([[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.5], [0.0, 7.0]]), 6)
    5.0
    """
    p, r = arguments.order(p, one=True), arguments.ground_norm(norm)
    first, second = (as_numbers(a, name).cpu() for a, name in ((x, "x"), (x_adv, "x_adv")))
    if first.shape != second.shape:
        raise ValueError(f"x_adv has the shape {tuple(second.shape)} and x {tuple(first.shape)}; needed are equal ones")
    if first.dim() < 2 or (first.numel() == 0 and shards() is None):
        raise ValueError(f"x has the shape {tuple(first.shape)}; needed is (N, ...) with at least one sample")
    return distance_of_mass(first, second, None, p, r)


def distance_of_mass(x: Tensor, x_adv: Tensor, mass: np.ndarray | None, p: float, r: float) -> float:
    """Return (mean_i mass_i ||x_adv_i - x_i||_r^p)^(1/p), where the rest of each sample's mass stays.

    :param x: Inputs, (N, ...).
    :param x_adv: The same samples, moved.
    :param mass: Which part of each moved, (N,); None means all of it.
    :param p: Order, in [1, inf].
    :param r: Exponent of the ground norm.
    :raises ValueError: If values are not finite.
    """
    lengths = lengths_between(x, x_adv, r)
    if mass is not None:
        lengths *= torch.from_numpy(mass) ** (1 / p)
    return whole_power_mean(lengths, p).item()


def lengths_between(x: Tensor, x_adv: Tensor, r: float) -> Tensor:
    """Return ||x_adv_i - x_i||_r of every sample, (N,), in float64, some of them at a time.

    :raises ValueError: If values are not finite.
    """
    before, after = (Rows(values, values.device) for values in (x, x_adv))
    lengths = torch.empty(len(x), dtype=torch.float64)
    for rows, *pair in staged(parts(len(before), before.at_once(len(before))), before, after):
        for name, values in zip(("x", "x_adv"), pair, strict=True):
            if not torch.isfinite(values).all():
                raise ValueError(f"{name} holds NaN or inf; allowed are finite numbers")
        lengths[rows] = sample_norms(pair[1].double() - pair[0].double(), r)
    return lengths
