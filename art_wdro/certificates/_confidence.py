# SPDX-License-Identifier: MIT
"""What counts of votes say with confidence: of one probability, of one radius, and of the accuracy of many samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import bdtrc, betaincinv, ndtri

SAFETY = 1e-9
"""Relative amount by which probabilities and radii are lowered, for what float64 rounds."""
GOLDEN = (5**0.5 - 1) / 2
"""Ratio of the golden section."""
NARROWINGS = 40
"""Steps of the search for the best multiplier between two kinks."""


def least_probability(hits: np.ndarray, draws: int, alpha: float) -> np.ndarray:
    """Return the lower ends of one-sided Clopper-Pearson intervals: the p with P(Bin(draws, p) >= hits) = alpha.

    :param hits: Counts, (N,).
    :param draws: Of how many.
    :param alpha: Probability with which an end may exceed its p, in (0, 1).
    :return: Lower ends, (N,), 0 where nothing was hit.

    Source: Clopper, Pearson, The use of confidence or fiducial limits, Biometrika 1934.
    """
    hits = np.asarray(hits, dtype=np.float64)
    found = betaincinv(np.maximum(hits, 1.0), draws - np.maximum(hits, 1.0) + 1.0, alpha)
    return np.where(hits > 0, found * (1 - SAFETY), 0.0)


def radii_of_probabilities(least: np.ndarray, scale: float, kind: str) -> np.ndarray:
    """Return the radius within which the class of probability p stays the likeliest: l_2 or, for uniform noise, l_1.

    :param least: Lower bounds on p, (N,).
    :param scale: Standard deviation of the noise in every coordinate.
    :param kind: "gaussian": scale Phi^-1(p); "uniform", on [-a, a] with a = sqrt(3) scale: 2 a (p - 1/2).
    :return: Radii, (N,), 0 where p may be at most 1/2.

    Sources: Cohen et al., 2019, arXiv:1902.02918, theorem 1; Yang et al., 2020, arXiv:2002.08118, section 4.
    """
    above = np.maximum(least, 0.5)
    far = ndtri(above) if kind == "gaussian" else math.sqrt(3.0) * (2 * above - 1)
    return np.asarray(scale * far * (1 - SAFETY))


def failures(count: int, alpha: float, risk: float) -> int:
    """Return how many of `count` radii, each too long with probability alpha at most, are so but with the risk."""
    more = bdtrc(np.arange(count + 1.0), count, alpha)  # the probability of more failures than each number
    return int(np.argmax(more <= risk))


def accuracy_left(surer: np.ndarray, longer: np.ndarray, failed: int, eps: float, p: float) -> float:
    """Bound the accuracy under W_p where all least distances exceed some radii, and all but a few longer ones.

    By duality the attacker flips at most the share
        lambda eps^p + mean_i (1 - lambda longer_i^p)_+
            + 1/N (sum of the largest `failed` of (1 - lambda surer_i^p)_+ - (1 - lambda longer_i^p)_+)
    for every lambda >= 0. It is convex in lambda, and the least is searched.

    :param surer: Radii that all hold, (N,).
    :param longer: Radii of which all but `failed` hold, (N,); where shorter than `surer`, that counts.
    :param failed: How many do not.
    :param eps: Budget in input units.
    :param p: Order, in [1, inf].
    :return: Accuracy in [0, 1], at least that of either radii alone with the failed ones flipped.
    """
    longer = np.maximum(surer, longer)
    failed = min(failed, len(surer))
    if math.isinf(p) or eps == 0.0:
        lost = min(failed, int(((surer <= eps) & (longer > eps)).sum()))
        return float((longer > eps).sum() - lost) / len(surer)
    with np.errstate(over="ignore"):
        near, far = (surer / eps) ** p, (longer / eps) ** p

    def flipped(multiplier: float) -> float:
        with np.errstate(invalid="ignore"):
            kept, more = (np.maximum(1 - np.nan_to_num(multiplier * cost), 0.0) for cost in (far, near))
        gains = np.sort(more - kept)[len(near) - failed :]
        return multiplier + float(kept.sum() + gains.sum()) / len(near)

    costs = np.concatenate([near, far])
    kinks = np.unique(1 / costs[(costs >= 1) & np.isfinite(costs)])
    return max(0.0, 1.0 - _least(flipped, np.concatenate([[0.0], kinks, [1.0]])))


def _least(convex: Callable[[float], float], kinks: np.ndarray) -> float:
    """Return nearly the least value of a convex function of one number, which is linear between few other kinks."""
    low, high = 0, len(kinks) - 1
    while high - low > 2:
        middle = (low + high) // 2
        if convex(kinks[middle]) <= convex(kinks[middle + 1]):
            high = middle + 1
        else:
            low = middle
    start, end = kinks[low], kinks[high]
    values = [convex(kink) for kink in kinks[low : high + 1]]
    for _ in range(NARROWINGS):
        left, right = end - GOLDEN * (end - start), start + GOLDEN * (end - start)
        at = convex(left), convex(right)
        values += at
        start, end = (start, right) if at[0] <= at[1] else (left, end)
    return min(values)
