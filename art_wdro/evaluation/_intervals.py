# SPDX-License-Identifier: MIT
"""How far figures of a sample of images may be from those of all images: intervals, and tests of a difference.

The knapsack's accuracy is no mean over the samples, which share one budget: samples are drawn anew with replacement,
and the budget is spent anew on each of these draws (the bootstrap).

Sources: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927; Efron, Bootstrap
methods: another look at the jackknife, Annals of Statistics 1979; McNemar, Note on the sampling error of the difference
between correlated proportions, Psychometrika 1947; Holm, A simple sequentially rejective multiple test procedure,
Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.special import ndtri
from scipy.stats import binom

from art_wdro._threat.knapsack import ROUNDING

LEVEL = 0.95
"""Probability with which an interval holds the accuracy on all images."""
RESAMPLES = 2000
"""Draws of the bootstrap."""
FEWEST = 200
"""Draws that are left of them for a very large data set."""
DRAWN = 2**26
"""Samples drawn in all, above which there are fewer draws."""
AT_ONCE = 2**20
"""Samples drawn at once."""

Figure = Callable[[np.ndarray], np.ndarray]
"""A figure of draws: of how often each sample is in each of them, (draws, N), it makes (draws,)."""


def wilson(accuracy: float, samples: int) -> tuple[float, float]:
    """Return Wilson's interval for a mean of independent samples in [0, 1], too wide where they are not 0 or 1.

    It has the p with |accuracy - p| <= z sqrt(p (1 - p) / N).

    :param accuracy: The mean.
    :param samples: N.
    """
    z2 = float(ndtri((1 + LEVEL) / 2)) ** 2 / samples
    centre = (accuracy + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * accuracy * (1 - accuracy) + z2 * z2 / 4) / (1 + z2)
    return max(0.0, min(accuracy, centre - half)), min(1.0, max(accuracy, centre + half))


def knapsack_of(distances: np.ndarray, eps: float, p: float) -> Figure:
    """Return the knapsack's accuracy as a figure of draws.

    :param distances: Least distances, (N,), in input units.
    :param eps: Budget in input units.
    :param p: Order, in [1, inf].
    """
    if math.isinf(p) or eps == 0.0:
        return mean_of(distances > eps)
    with np.errstate(over="ignore"):
        costs = (distances / eps) ** p
    order = np.argsort(costs, kind="stable")
    order = order[np.isfinite(costs[order])]
    costs = costs[order]

    def figure(counts: np.ndarray) -> np.ndarray:
        samples = counts.shape[1]
        chosen = counts[:, order]
        none = np.zeros((len(counts), 1))
        spent = np.hstack([none, np.cumsum(chosen * costs, axis=1)])
        flipped = np.hstack([none, np.cumsum(chosen, axis=1)])
        whole = (spent[:, 1:] <= samples * (1 + ROUNDING)).sum(1)
        rows = np.arange(len(counts))
        left = np.maximum(samples - spent[rows, whole], 0.0)
        following = np.append(costs, math.inf)[whole]  # above 0, or it would have been flipped whole
        return np.asarray(1 - (flipped[rows, whole] + left / following) / samples)

    return figure


def mean_of(values: np.ndarray) -> Figure:
    """Return the mean of numbers of the samples, (N,), as a figure of draws."""
    numbers = np.asarray(values, dtype=np.float64)
    return lambda counts: np.asarray(counts @ numbers / len(numbers))


def resampled(figures: Sequence[Figure], samples: int, seed: int) -> np.ndarray:
    """Return figures of the same draws with replacement, (figures, draws).

    :param figures: The figures.
    :param samples: N.
    :param seed: Seed of the draws.
    """
    found = [[figure(counts) for figure in figures] for counts in _draws(samples, seed)]
    return np.concatenate([np.stack(part) for part in found], axis=1)


def _draws(samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw with replacement: how often each sample is in each draw, (draws, N), a part of the draws at a time."""
    generator = np.random.default_rng(seed)
    left, size = max(FEWEST, min(RESAMPLES, DRAWN // samples)), max(1, AT_ONCE // samples)
    while left > 0:
        size = min(size, left)
        chosen = generator.integers(samples, size=(size, samples)) + samples * np.arange(size)[:, None]
        yield np.bincount(chosen.reshape(-1), minlength=size * samples).reshape(size, samples)
        left -= size


def ends(drawn: np.ndarray, accuracy: float, samples: int) -> tuple[float, float]:
    """Return the interval of an accuracy from draws: their quantiles; Wilson's, where the draws are all the same.

    :param drawn: The accuracy of each draw, (draws,).
    :param accuracy: That of the samples themselves.
    :param samples: N.
    """
    if np.ptp(drawn) == 0.0:
        return wilson(accuracy, samples)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return min(float(low), accuracy), max(float(high), accuracy)


def written(accuracy: float, interval: tuple[float, float]) -> str:
    """Write an accuracy in percent with the distance to the farther end of its interval: 15.0 ± 2.1."""
    return f"{100 * accuracy:.1f} ± {100 * max(interval[1] - accuracy, accuracy - interval[0]):.1f}"


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the p-value of McNemar's exact test: of the samples that only one of two has right, each has half.

    :param first: Which samples one has right, boolean, (N,).
    :param second: Which the other, (N,).
    """
    only = int((first & ~second).sum()), int((second & ~first).sum())
    return float(min(1.0, 2 * binom.cdf(min(only), sum(only), 0.5)))


def p_value(differences: np.ndarray) -> float:
    """Return the p-value of no difference from differences of draws: twice the share on the rarer side of 0.

    Source: Efron and Tibshirani, An introduction to the bootstrap, 1993, chapter 15: the level of the interval that
    ends at 0.
    """
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(differences) + 1)))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values raised so that of all true null hypotheses any is rejected with the chance of one."""
    order = np.argsort(values, kind="stable")
    raised = np.minimum(1.0, np.maximum.accumulate(np.asarray(values)[order] * np.arange(len(values), 0, -1)))
    found = np.empty(len(values))
    found[order] = raised
    return [float(value) for value in found]
