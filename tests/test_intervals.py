# SPDX-License-Identifier: MIT
"""Intervals, tests and subsets, each against a simulation or a value that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from art_wdro import knapsack_accuracy
from art_wdro.evaluation import _intervals
from art_wdro.evaluation._intervals import (
    ends,
    holm,
    knapsack_of,
    mcnemar,
    mean_of,
    p_value,
    resampled,
    wilson,
    written,
)
from art_wdro.evaluation._subset import stratified

SAMPLES, REPEATS = 200, 200
COST = 8.0
"""Costs (d / eps)^p are uniform on [0, COST]: the budget flips all below sqrt(2 COST) = COST / 2, half of them."""
SPREAD = math.sqrt(1 / 6 - 1 / 16)
"""Standard deviation of (1 - lambda d^p)_+ at the best lambda, which is that of the accuracy times sqrt(N)."""


@pytest.fixture
def few(monkeypatch):
    """Fewer draws, for tests that make many intervals."""
    monkeypatch.setattr(_intervals, "RESAMPLES", 400)


def drawn_distances(rng: np.random.Generator, samples: int = SAMPLES) -> np.ndarray:
    """Distances for eps = 1 and p = 2 whose accuracy on all samples there are is 1/2."""
    return np.sqrt(rng.uniform(0, COST, samples))


def test_wilson_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.15, 0.5):
        found = [wilson(hits / SAMPLES, SAMPLES) for hits in rng.binomial(SAMPLES, share, 4000)]
        assert 0.93 < np.mean([low <= share <= high for low, high in found]) < 0.975


def test_wilson_at_known_values():
    low, high = wilson(0.0, 10)
    assert low == 0.0
    assert high == pytest.approx(0.27753, abs=1e-5)  # 3.8415 / 13.8415
    assert wilson(1.0, 10) == (pytest.approx(1 - high), 1.0)
    # Newcombe, Two-sided confidence intervals for the single proportion, 1998: 81 of 263
    assert wilson(81 / 263, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert written(0.15, (0.13, 0.171)) == "15.0 ± 2.1"


def test_the_bootstrap_of_distances_covers_the_accuracy_on_all_samples(few):
    rng = np.random.default_rng(1)
    covered, spreads, found = [], [], []
    for seed in range(REPEATS):
        distances = drawn_distances(rng)
        found.append(knapsack_accuracy(distances, 1.0))
        drawn = resampled([knapsack_of(distances, 1.0, 2.0)], SAMPLES, seed)[0]
        low, high = ends(drawn, found[-1], SAMPLES)
        covered.append(low <= 0.5 <= high)
        spreads.append(drawn.std())
    assert np.mean(found) == pytest.approx(0.5, abs=0.01)
    assert 0.9 < np.mean(covered) < 0.99
    assert np.mean(spreads) == pytest.approx(SPREAD / math.sqrt(SAMPLES), rel=0.05)
    assert np.mean(spreads) == pytest.approx(np.std(found), rel=0.15)
    assert np.mean(spreads) < 0.7 * math.sqrt(0.25 / SAMPLES)  # that of single samples is another


@pytest.mark.parametrize(("eps", "p"), [(1.0, 2.0), (0.7, 1.0), (1.5, 3.0), (1.0, math.inf), (0.0, 2.0), (1e-200, 2.0)])
def test_draws_spend_the_budget_as_the_knapsack_does(eps, p):
    rng = np.random.default_rng(2)
    distances = np.concatenate([drawn_distances(rng, 20), [0.0, 0.0, math.inf, math.inf, eps, 1.0, 1.0]])
    counts = np.stack([np.bincount(rng.integers(27, size=27), minlength=27) for _ in range(30)])
    expected = [knapsack_accuracy(np.repeat(distances, row), eps, p) for row in counts]
    np.testing.assert_allclose(knapsack_of(distances, eps, p)(counts), expected, atol=1e-12)


def test_draws_are_those_of_the_seed_and_of_the_number_of_samples(monkeypatch):
    figure = knapsack_of(drawn_distances(np.random.default_rng(3), 50), 1.0, 2.0)
    first = resampled([figure], 50, 0)
    assert first.shape == (1, _intervals.RESAMPLES)
    assert np.array_equal(first, resampled([figure], 50, 0))
    assert not np.array_equal(first, resampled([figure], 50, 1))
    monkeypatch.setattr(_intervals, "AT_ONCE", 700)  # 14 draws at once
    assert np.array_equal(first, resampled([figure], 50, 0))
    monkeypatch.setattr(_intervals, "DRAWN", 50 * 300)
    assert resampled([figure], 50, 0).shape == (1, 300)
    monkeypatch.setattr(_intervals, "DRAWN", 1)
    assert resampled([figure], 50, 0).shape == (1, _intervals.FEWEST)


def test_where_all_draws_are_the_same_the_interval_is_wilsons():
    none = resampled([knapsack_of(np.full(30, 0.1), 1.0, 2.0)], 30, 0)[0]
    assert ends(none, 0.0, 30) == wilson(0.0, 30)
    assert ends(none, 0.0, 30)[1] > 0.1


def test_mcnemar_at_known_values():
    first, second = np.zeros(100, bool), np.zeros(100, bool)
    first[:10] = second[10:12] = first[50:] = second[50:] = True
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert mcnemar(first, first) == 1.0
    first[11] = second[0] = True  # 9 and 1
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 10) / 2**10)


def test_no_difference_is_rarely_called_one_and_a_difference_is_seen(few):
    """Of two networks with distances that differ by chance alone, and of one whose are longer by a twentieth."""
    rng = np.random.default_rng(4)
    false, paired, single = [], [], []
    for seed in range(REPEATS):
        base = drawn_distances(rng)
        one, other = (base * rng.lognormal(0, 0.1, SAMPLES) for _ in range(2))
        figures = [knapsack_of(values, 1.0, 2.0) for values in (one, other, 1.05 * other)]
        drawn = resampled(figures, SAMPLES, seed)
        false.append(p_value(drawn[1] - drawn[0]))
        paired.append(p_value(drawn[2] - drawn[0]))
        apart = resampled([knapsack_of(1.05 * drawn_distances(rng), 1.0, 2.0)], SAMPLES, seed + REPEATS)
        single.append(p_value(apart[0] - drawn[0]))
    assert 0.01 < np.mean(np.array(false) < 0.05) < 0.1
    assert np.mean(np.array(paired) < 0.05) > 0.9
    assert np.mean(np.array(single) < 0.05) < 0.4  # of other images the same difference is mostly noise


def test_p_values_of_draws():
    assert p_value(np.zeros(1999)) == 1.0
    assert p_value(np.ones(1999)) == 2 / 2000
    assert p_value(np.concatenate([np.ones(1900), -np.ones(99)])) == 2 * 100 / 2000
    assert mean_of(np.array([0.0, 0.5, 1.0]))(np.array([[3, 0, 0], [1, 1, 1], [0, 0, 3]])).tolist() == [0.0, 0.5, 1.0]


def test_holm_at_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_subset_has_every_class_in_proportion_and_every_sample_alike():
    labels = np.repeat([0, 1, 2, 5], [50, 30, 13, 7])
    expected = np.array([50, 30, 13, 7]) * 0.3
    chosen = np.zeros(100)
    for seed in range(3000):
        indices = stratified(labels, 30, seed)
        assert len(set(indices.tolist())) == 30
        assert (np.diff(indices) > 0).all()
        counts = np.bincount(labels[indices], minlength=6)[[0, 1, 2, 5]]
        assert (abs(counts - expected) < 1).all()
        chosen[indices] += 1
    # of 3000 draws each sample is in 900, give or take five standard deviations
    assert abs(chosen - 900).max() < 5 * math.sqrt(3000 * 0.3 * 0.7)
    assert np.array_equal(stratified(labels, 30, 7), stratified(labels, 30, 7))
    assert stratified(labels, 100, 0).tolist() == list(range(100))
    with pytest.raises(ValueError, match="samples is 101; allowed is at most 100, the size of the data set"):
        stratified(labels, 101, 0)
