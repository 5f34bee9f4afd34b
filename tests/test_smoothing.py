# SPDX-License-Identifier: MIT
"""Randomised smoothing against halfspaces, whose smoothed versions are known, lines of intervals, and enumeration."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr
from scipy.stats import binom, binomtest, kstest
from torch import nn

from art_wdro import certified_accuracy, certified_radii, evaluate, knapsack_accuracy
from art_wdro._threat.knapsack import knapsack
from art_wdro.certificates import _votes
from art_wdro.certificates._confidence import accuracy_left, failures, least_probability, radii_of_probabilities
from art_wdro.certificates._votes import Noise, Stage, votes
from tests.conftest import linear_problem

SETTINGS = {"clip_values": (0.0, 1.0), "device_type": "cpu", "sample_size": 50, "scale": 0.25, "alpha": 0.001}


def smoothed(model: nn.Module, shape: tuple[int, ...], classes: int, **setting) -> PyTorchRandomizedSmoothing:
    return PyTorchRandomizedSmoothing(model, nn.CrossEntropyLoss(), shape, classes, **SETTINGS | setting)


class Halfspace(nn.Module):
    """Two classes with a plane between them: its smoothed version, by any symmetric noise, is itself."""

    def __init__(self, normal: torch.Tensor, offset: float) -> None:
        super().__init__()
        self.normal, self.offset = nn.Parameter(normal), offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.flatten(1) @ self.normal - self.offset
        return torch.stack([-score, score], 1)


class Intervals(nn.Module):
    """Classes 0, 1, 2, 0, 1, ... between borders on a line."""

    def __init__(self, borders: list[float]) -> None:
        super().__init__()
        self.borders = nn.Parameter(torch.tensor(borders))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = (x > self.borders).sum(1)
        return nn.functional.one_hot(place % 3, 3).to(x) + 0 * x


def halfspace(samples: int = 12, features: int = 20, seed: int = 0):
    """A halfspace, samples with labels on their side of it, and their exact l_2 distances."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (samples, features)).astype(np.float32)
    normal = rng.normal(size=features).astype(np.float32)
    offset = float(np.median(x.astype(float) @ normal.astype(float)))
    score = x.astype(float) @ normal.astype(float) - offset
    return Halfspace(torch.from_numpy(normal), offset), x, (score > 0).astype(int), abs(score) / np.linalg.norm(normal)


# --- one probability, one radius ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize(("hits", "draws"), [(0, 9), (1, 9), (5, 9), (9, 9), (31, 40), (40, 40)])
def test_the_least_probability_is_where_the_tail_is_alpha(hits, draws, alpha):
    found = least_probability(np.array([hits]), draws, alpha)[0]
    if hits == 0:
        assert found == 0.0
        return
    p = Fraction(float(found))
    tail = sum(math.comb(draws, k) * p**k * (1 - p) ** (draws - k) for k in range(hits, draws + 1))
    assert alpha * (1 - 1e-6) < tail <= alpha


def test_the_least_probability_is_that_of_scipy_for_many_draws():
    draws, alpha = 10_000, 0.001
    hits = np.array([1, 4_999, 5_200, 9_000, 9_990, 9_999, 10_000])
    wanted = [binomtest(k, draws).proportion_ci(1 - 2 * alpha, "exact").low for k in hits.tolist()]
    found = least_probability(hits, draws, alpha)
    np.testing.assert_allclose(found, wanted, rtol=2e-9, atol=1e-11)  # scipy searches to 2e-12


def test_radii_of_probabilities_have_their_closed_forms():
    least = np.array([0.0, 0.5, 0.6, 0.999, 1 - 1e-12])
    gaussian = radii_of_probabilities(least, 0.5, "gaussian")
    np.testing.assert_allclose(ndtr(gaussian / 0.5)[1:], least[1:], rtol=1e-8)
    uniform = radii_of_probabilities(least, 0.5, "uniform")
    np.testing.assert_allclose(uniform, math.sqrt(3) * 0.5 * (2 * np.maximum(least, 0.5) - 1), rtol=1e-8)
    assert gaussian[0] == uniform[0] == 0.0


def test_a_radius_is_too_long_as_often_as_alpha_says_and_no_more():
    alpha, draws, repeats = 0.1, 200, 4000
    for distance in (0.0, 0.1, 0.3):
        hits = np.random.default_rng(0).binomial(draws, ndtr(distance / 0.25), repeats)
        radii = radii_of_probabilities(least_probability(hits, draws, alpha), 0.25, "gaussian")
        failed = int((radii > distance).sum())
        # up to alpha, and not idle: the steps of a binomial of 200 leave at least half of it
        assert binomtest(failed, repeats, alpha, "greater").pvalue > 1e-3
        assert binomtest(failed, repeats, alpha / 2, "less").pvalue > 1e-3


# --- the accuracy of many samples ---------------------------------------------------------------------------------


@st.composite
def radii_pairs(draw):
    size = draw(st.integers(1, 7))
    number = st.floats(0, 3, allow_nan=False).map(lambda value: round(value, 3))
    surer = np.array(draw(st.lists(number, min_size=size, max_size=size)))
    more = np.array(draw(st.lists(number, min_size=size, max_size=size)))
    return surer, surer + more


@given(radii_pairs(), st.integers(0, 3), st.sampled_from([0.0, 0.05, 0.4, 1.3]), st.sampled_from([1, 2, 3.5, math.inf]))
def test_the_accuracy_is_below_that_of_every_way_in_which_radii_fail(pair, failed, eps, p):
    surer, longer = pair
    failed = min(failed, len(surer))
    found = accuracy_left(surer, longer, failed, eps, p)
    worst = 1.0
    for which in itertools.combinations(range(len(surer)), failed):
        mixed = longer.copy()
        mixed[list(which)] = surer[list(which)]
        worst = min(worst, knapsack(mixed, eps, p).accuracy)
    assert found <= worst + 1e-9
    assert found >= worst - 1 / len(surer) - 1e-9
    # neither reading alone says more
    assert found >= knapsack(surer, eps, p).accuracy - 1e-9
    assert found >= knapsack(longer, eps, p).accuracy - failed / len(surer) - 1e-9
    none = accuracy_left(surer, longer, 0, eps, p)
    assert none == pytest.approx(knapsack(longer, eps, p).accuracy, abs=1e-9)


@given(radii_pairs(), st.integers(0, 3), st.sampled_from([0.05, 0.4, 1.3]), st.sampled_from([1, 2, math.inf]))
def test_failed_radii_of_which_nothing_is_known_cost_one_sample_each(pair, failed, eps, p):
    _, longer = pair
    found = accuracy_left(np.zeros_like(longer), longer, failed, eps, p)
    lost = min(failed, len(longer)) / len(longer)
    assert found == pytest.approx(max(0.0, knapsack(longer, eps, p).accuracy - lost), abs=1e-9)


def test_failures_are_the_quantile_of_a_binomial():
    for count, alpha, risk in ((100, 0.001, 5e-4), (10_000, 0.001, 5e-4), (7, 0.2, 0.05)):
        found = failures(count, alpha, risk)
        assert binom.sf(found, count, alpha) <= risk < binom.sf(found - 1, count, alpha)
    assert failures(0, 0.5, 0.1) == 0


def test_the_bounds_hold_as_often_as_their_confidence_says():
    """Halfspaces, whose distances are known; a small confidence and few draws, so that failures are seen."""
    rng = np.random.default_rng(0)
    distances, scale, draws, alpha, confidence = rng.exponential(0.2, 40), 0.25, 100, 0.05, 0.8
    truth = {eps: knapsack(distances, eps, 2).accuracy for eps in (0.05, 0.2)}
    repeats, risk = 400, (1 - confidence) / 2
    failed = failures(40, alpha, risk)
    missed = dict.fromkeys(("at once", "but few", "both"), 0)
    for _ in range(repeats):
        hits = rng.binomial(draws, ndtr(distances / scale))
        surer, longer = (
            radii_of_probabilities(least_probability(hits, draws, level), scale, "gaussian")
            for level in (risk / 40, alpha)
        )
        bounds = {
            "at once": (surer, surer, 0),
            "but few": (np.zeros(40), longer, failed),
            "both": (surer, longer, failed),
        }
        for name, bound in bounds.items():
            missed[name] += any(accuracy_left(*bound, eps, 2) > exact + 1e-9 for eps, exact in truth.items())
    for name, count in missed.items():
        allowed = 1 - confidence if name == "both" else risk
        assert binomtest(count, repeats, allowed, "greater").pvalue > 1e-3, (name, count)


def test_taking_the_alpha_of_one_radius_for_the_mean_of_many_is_wrong():
    """What the two readings are for: the knapsack over radii of alpha each exceeds the truth far more often."""
    rng = np.random.default_rng(0)
    distances, draws, alpha = np.full(100, 0.3), 400, 0.1
    missed = 0
    for _ in range(300):
        hits = rng.binomial(draws, ndtr(distances / 0.25))
        radii = radii_of_probabilities(least_probability(hits, draws, alpha), 0.25, "gaussian")
        # a budget that takes every sample, but not where a few cost more
        missed += knapsack(radii, 0.3, math.inf).accuracy > knapsack(distances, 0.3, math.inf).accuracy
    assert missed > 0.9 * 300


# --- votes --------------------------------------------------------------------------------------------------------


def counts_of(classifier, x, batch_size=64, seed=0, draws=150, **setting):
    noise = Noise("gaussian", classifier.scale, seed)
    return votes(classifier, torch.from_numpy(x), noise, Stage(1, draws, np.arange(len(x))), batch_size, **setting)


def test_votes_are_whole_numbers_that_depend_on_the_seed_and_not_on_batches():
    problem = linear_problem(samples=7)
    classifier = smoothed(problem.classifier.model, (30,), 5)
    found = counts_of(classifier, problem.x)
    assert found.dtype == np.int64
    assert (found.sum(1) == 150).all()
    for batch_size in (1, 37, 64, 5000):
        assert np.array_equal(counts_of(classifier, problem.x, batch_size), found)
    assert not np.array_equal(counts_of(classifier, problem.x, seed=1), found)
    assert np.array_equal(counts_of(classifier, problem.x[:3]), found[:3])


def test_more_draws_begin_with_the_fewer():
    problem = linear_problem(samples=3)
    classifier = smoothed(problem.classifier.model, (30,), 5)
    fewer, more = (counts_of(classifier, problem.x, draws=draws) for draws in (100, 164))
    assert (more - fewer >= 0).all()
    assert ((more - fewer).sum(1) == 64).all()


def test_copies_have_the_noise_that_they_say_on_a_grid():
    x = torch.full((500,), 0.3)
    for kind, law in (("gaussian", "norm"), ("uniform", "uniform")):
        noise = Noise(kind, 0.25, 0)
        copies = torch.cat([*_votes._copies(x, noise, Stage(0, 130, np.arange(1)), 0)])
        assert copies.shape == (130, 500)
        assert torch.equal(copies / noise.step, (copies / noise.step).round())
        standard = ((copies - 0.3) / 0.25).flatten().numpy()
        arguments = () if kind == "gaussian" else (-math.sqrt(3), 2 * math.sqrt(3))
        assert kstest(standard, law, arguments).pvalue > 1e-3
        assert 0.25 / 8192 <= noise.step <= 0.25 / 4096


def test_copies_off_the_grid_of_real_arithmetic_are_rarer_than_the_bound():
    """Errors a million times larger than those of float64, so that some are seen."""
    rng = np.random.default_rng(0)
    noise, x, larger = Noise("gaussian", 0.25, 0), torch.full((1, 1000), 0.9), 2**22
    exact = 0.9 + 0.25 * rng.standard_normal((400, 1000))
    error = _votes.DRAWING * larger * (0.9 + _votes.REACH * 0.25)
    rough = exact + rng.uniform(-error, error, exact.shape)
    differ = (np.round(exact / noise.step) != np.round(rough / noise.step)).sum(1)
    bound = larger * noise.miscount(x)[0]
    assert 0.1 * bound < differ.mean() <= bound
    assert noise.miscount(x)[0] < 1e-7


def test_a_copy_of_which_a_logit_is_nan_votes_for_nothing():
    class Sometimes(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return torch.where(x[:, :1] > 0.6, torch.nan, self.model(x))

    model, x, y, _ = halfspace()
    x[:, 0] = 0.5
    found = counts_of(smoothed(Sometimes(model), (20,), 2), x)
    assert (found.sum(1) < 150).all()
    assert (found.sum(1) > 0).all()
    certain = certified_radii(smoothed(model, (20,), 2), x, y, norm=2, n=500)
    doubtful = certified_radii(smoothed(Sometimes(model), (20,), 2), x, y, norm=2, n=500)
    assert (doubtful <= certain).all()
    assert doubtful.max() < certain.max()

    class Never(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 2), torch.nan)

    assert not certified_radii(smoothed(Never(), (20,), 2), x, np.zeros(12, int), norm=2, n=50).any()


# --- radii of networks --------------------------------------------------------------------------------------------


def test_radii_of_a_halfspace_approach_its_distances_from_below():
    model, x, y, distances = halfspace()
    classifier = smoothed(model, (20,), 2, sample_size=3000)  # so that samples near the plane get their own class
    few, many = (certified_radii(classifier, x, y, norm=2, n=n) for n in (200, 20_000))
    for radii in (few, many):
        assert radii.dtype == np.float64
        assert (radii <= distances).all()
    near = distances < 0.5
    assert (many[near] > distances[near] - 0.03).all()
    assert many.sum() > few.sum()


def test_radii_in_other_norms_follow_from_l2():
    model, x, y, _ = halfspace()
    found = {norm: certified_radii(smoothed(model, (20,), 2), x, y, norm=norm, n=400) for norm in (1, 2, "inf")}
    assert np.array_equal(found[1], found[2])
    np.testing.assert_allclose(found["inf"], found[2] / math.sqrt(20), rtol=1e-12)


def test_uniform_noise_certifies_l1_exactly_across_one_coordinate():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (30, 6)).astype(np.float32)
    normal = torch.zeros(6)
    normal[2] = 1.0
    distances = abs(x[:, 2].astype(float) - 0.5)
    classifier = smoothed(Halfspace(normal, 0.5), (6,), 2, sample_size=3000)
    radii = certified_radii(classifier, x, (x[:, 2] > 0.5).astype(int), norm=1, noise="uniform", n=20_000)
    width = math.sqrt(3) * 0.25
    assert (radii <= distances).all()
    inside = distances < width
    assert (radii[inside] > distances[inside] - 0.05 * width).all()
    assert radii.max() <= width


def test_noise_comes_before_preprocessing():
    model, x, y, distances = halfspace()
    scaled = Halfspace(model.normal.detach() * 4, (model.offset - 0.5 * model.normal.sum().item()))
    classifier = smoothed(scaled, (20,), 2, preprocessing=(0.5, 4.0))
    radii = certified_radii(classifier, x, y, norm=2, n=5000)
    assert (radii <= distances).all()
    np.testing.assert_allclose(radii, certified_radii(smoothed(model, (20,), 2), x, y, norm=2, n=5000), atol=0.03)


def test_samples_of_another_class_have_radius_zero_and_cost_nothing_further():
    model, x, y, _ = halfspace()
    passed = []
    model.register_forward_hook(lambda module, inputs, output: passed.append(len(output)))
    y[:4] = 1 - y[:4]
    x[1:4] = x[0]  # far from the plane, where votes are no matter of luck
    y[1:4] = y[0]
    radii = certified_radii(smoothed(model, (20,), 2), x[:4], y[:4], norm=2, n=300)
    assert not radii.any()
    assert sum(passed) == 4 * 50
    radii = certified_radii(smoothed(model, (20,), 2), x[:4], 1 - y[:4], norm=2, n=300)
    assert (radii > 0).all()
    assert sum(passed) == 4 * 50 + 4 * 50 + 4 * 300


def test_radii_are_cut_at_the_largest():
    model, x, y, _ = halfspace()
    largest = np.linspace(0, 0.2, 12)
    radii = certified_radii(smoothed(model, (20,), 2), x, y, norm=2, n=300, largest=largest)
    assert (radii <= largest).all()


def test_half_precision_certifies_the_network_in_half_precision():
    model, x, y, _ = halfspace()
    full, half = (
        certified_radii(smoothed(model, (20,), 2), x, y, norm=2, n=2000, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, atol=0.05)


# --- brackets -----------------------------------------------------------------------------------------------------


def probabilities(borders: np.ndarray, points: np.ndarray, scale: float) -> np.ndarray:
    """The exact probabilities of the three classes of :class:`Intervals` at points on the line, (points, 3)."""
    below = ndtr((np.append(borders, np.inf) - points[:, None]) / scale)
    pieces = np.diff(below, prepend=0.0)
    return np.stack([pieces[:, start::3].sum(1) for start in range(3)], 1)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_what_is_certified_on_a_line_is_below_the_truth(p):
    borders = np.array([-0.4, 0.1, 0.35, 0.6, 1.1])
    classifier = smoothed(Intervals(borders.tolist()), (1,), 3, scale=0.1, clip_values=None)
    x = np.linspace(-0.5, 1.2, 40, dtype=np.float32)[:, None]
    grid = np.linspace(-3, 4, 70_001)
    classes = probabilities(borders, grid, 0.1).argmax(1)
    own = probabilities(borders, x[:, 0].astype(float), 0.1).argmax(1)
    own[::7] = (own[::7] + 1) % 3
    distances = np.array(
        [abs(grid[classes != label] - at).min() for at, label in zip(x[:, 0].astype(float), own, strict=True)]
    )
    # the grid has a step of 1e-4; a sample of another class is at distance 0
    truth = np.where(distances < 1e-4, 0.0, distances)
    eps = np.array([0.0, 0.02, 0.05, 0.1, 0.2])
    certified = certified_accuracy(classifier, x, own, p, 2, eps, n=2000)
    exact = knapsack_accuracy(truth, eps, p)
    assert certified.shape == (5,)
    assert (certified <= exact + 1e-9).all()
    assert certified[1] > 0.5 * exact[1] > 0
    assert certified_accuracy(classifier, x, own, p, 2, 0.05, n=2000) == certified[2]


def test_more_confidence_certifies_less():
    model, x, y, _ = halfspace(samples=40)
    classifier = smoothed(model, (20,), 2)
    found = [certified_accuracy(classifier, x, y, 2, 2, 0.1, n=500, confidence=c) for c in (0.9, 0.999, 1 - 1e-9)]
    assert found[0] > found[1] > found[2]


class Plane(NamedTuple):
    """A network of two inputs with its smoothed classes on a fine grid, and samples with their distances there."""

    classifier: PyTorchRandomizedSmoothing
    x: np.ndarray
    y: np.ndarray
    distances: np.ndarray


STEP = 0.01


@pytest.fixture(scope="module")
def plane() -> Plane:
    """The smoothed classes by a filter over the network's classes: what infinitely many votes would say."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3))
    model[0].weight.data *= 5
    scale = 0.2
    axis = np.arange(-1.5, 2.5, STEP)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    with torch.no_grad():
        hard = model(torch.from_numpy(points).float()).argmax(1).numpy().reshape(len(axis), len(axis))
    soft = [gaussian_filter((hard == k).astype(float), scale / STEP, mode="nearest", truncate=6) for k in range(3)]
    classes = np.argmax(soft, 0)
    x = np.random.default_rng(0).uniform(0.05, 0.95, (25, 2)).astype(np.float32)
    places = np.rint((x - axis[0]) / STEP).astype(int)
    y = classes[places[:, 0], places[:, 1]]
    y[::6] = (y[::6] + 1) % 3
    inside = (points >= 0).all(1) & (points <= 1).all(1)
    distances = np.array(
        [
            np.linalg.norm(points[inside & (classes.ravel() != label)] - at, axis=1).min(initial=math.inf)
            for at, label in zip(x.astype(float), y, strict=True)
        ]
    )
    return Plane(smoothed(model, (2,), 3, scale=scale), x, y, np.where(distances < STEP, 0.0, distances))


@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_the_truth_lies_in_the_bracket(plane, norm):
    report = evaluate(plane.classifier, plane.x, plane.y, p=1, norm=norm, eps=0.1, n=4000, knapsack_iter=60)
    eps = np.array([0.02, 0.1, 0.2])
    assert (report.radii <= report.distances).all()
    for p in (1, 2, math.inf):
        assert (report.certified_accuracy(eps, p) <= report.accuracy(eps, p)).all()
    if norm != 2:
        return
    # distances on the grid may be off by its diagonal
    wrong = plane.distances == 0
    below, above = (np.where(wrong, 0.0, np.maximum(plane.distances + off, 0.0)) for off in (-2 * STEP, 2 * STEP))
    known = np.isfinite(report.distances)
    assert (report.radii <= above).all()
    assert (report.distances >= below).all()
    assert known.sum() > 20
    assert (report.distances[known] <= above[known] + 0.1).all()
    for p in (1, 2, math.inf):
        low, high = report.certified_accuracy(eps, p), report.accuracy(eps, p)
        assert (low <= knapsack_accuracy(above, eps, p)).all()
        assert (high >= knapsack_accuracy(below, eps, p)).all()
        assert low[0] > 0.5 * knapsack_accuracy(below, eps, p)[0]
        assert high[2] < 1.0


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_attack_finds_points_of_another_class_just_beyond_the_border():
    model, x, y, distances = halfspace(samples=20)
    rows = []
    report = evaluate(
        *(smoothed(model, (20,), 2), x, y),
        norm=2,
        eps=0.1,
        n=5000,
        knapsack_iter=30,
        on_row=lambda row, array: rows.append((row.attack, array.shape)),
    )
    known = np.isfinite(report.distances)
    assert known.sum() >= 18
    assert (report.distances[known] >= distances[known]).all()
    assert np.median(report.distances[known] - distances[known]) < 0.1
    assert rows == [("none", (20, 20)), ("knapsack", (20, 20))]
    assert report.arrays == {}


def test_a_report_of_votes_prints_its_bracket_and_keeps_what_it_is_made_of():
    model, x, y, _ = halfspace()
    classifier = smoothed(model, (20,), 2)
    before = x.copy()
    report = evaluate(classifier, x, y, norm=2, eps=0.1, n=500, knapsack_iter=20, confidence=0.99, keep_arrays=True)
    assert np.array_equal(x, before)
    low, high = report.certified_accuracy(0.1), report.accuracy(0.1)
    sentence = (
        f"[certified, knapsack] = [{100 * low:.1f}, {100 * high:.1f}] %: the truth lies between, with a confidence"
    )
    assert f"{sentence} of 99 %" in str(report)
    assert "Upsilon" not in str(report)
    assert low <= high
    assert report.certified_accuracy([0.05, 0.1])[1] == low
    data = json.loads(report.to_json())
    assert data["certified"] == low
    assert data["confidence"] == 0.99
    assert data["surer_radii"] == report.surer.tolist()
    assert np.array_equal(report.arrays["none"], x)
    assert len(report.arrays["knapsack"]) == 12
    # half of the risk is the certificate's, half the attack's
    assert low == certified_accuracy(classifier, x, y, 2, 2, 0.1, n=500, confidence=0.995)
    silent = evaluate(classifier, x, y, norm=2, eps=0.1, n=200, knapsack_iter=20, certified=False)
    assert silent.radii is None
    assert "certified" not in str(silent)


def test_votes_and_confidence_are_checked_in_reports():
    model, x, y, _ = halfspace()
    with pytest.raises(ValueError, match="n is 0"):
        evaluate(smoothed(model, (20,), 2), x, y, norm=2, n=0)
    with pytest.raises(ValueError, match="confidence is 1"):
        evaluate(smoothed(model, (20,), 2), x, y, norm=2, confidence=1)
    problem = linear_problem()
    with pytest.raises(ValueError, match="n is 100 for a classifier that does not vote under noise"):
        evaluate(problem.classifier, problem.x, problem.y, n=100)


# --- bad input ----------------------------------------------------------------------------------------------------


class OwnNoise(PyTorchRandomizedSmoothing):
    def _noisy_samples(self, x, n=None):
        return np.repeat(x[None], n, 0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scale": 0.0}, "classifier.scale is 0.0; allowed is a number > 0"),
        ({"scale": math.nan}, "classifier.scale is nan"),
        ({"alpha": 0.0}, "classifier.alpha is 0.0; allowed is a number between 0 and 1, without the ends"),
        ({"alpha": 1.0}, "classifier.alpha is 1.0; allowed"),
        ({"sample_size": 0}, "classifier.sample_size is 0; allowed is a whole number >= 1"),
    ],
)
def test_a_smoothed_classifier_that_makes_no_sense_is_refused(setting, message):
    model, x, y, _ = halfspace()
    for call in (certified_radii, certified_accuracy):
        with pytest.raises(ValueError, match=message):
            call(smoothed(model, (20,), 2, **setting), x, y, norm=2)


def test_other_noise_than_that_of_art_is_refused():
    model, x, y, _ = halfspace()
    other = OwnNoise(model, nn.CrossEntropyLoss(), (20,), 2, **SETTINGS)
    with pytest.raises(ValueError, match="is a OwnNoise with a _noisy_samples of its own; allowed is the one of ART"):
        certified_radii(other, x, y, norm=2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"norm": 3}, "norm is 3; allowed is one of 1, 2, inf"),
        ({"norm": 2, "noise": "uniform"}, "norm is 2 with noise='uniform', whose radii are in l_1"),
        ({"norm": 2, "noise": "laplace"}, "noise is 'laplace'; allowed is one of 'gaussian', 'uniform'"),
        ({"norm": 2, "n": 0}, "n is 0; allowed is a whole number >= 1"),
        ({"norm": 2, "batch_size": 0}, "batch_size is 0"),
        ({"norm": 2, "precision": "int8"}, "precision is 'int8'; allowed is one of 'float32'"),
        ({"norm": 2, "seed": -1}, "seed is -1"),
    ],
)
def test_arguments_of_smoothing_are_checked(setting, message):
    model, x, y, _ = halfspace()
    for call in (certified_radii, certified_accuracy):
        with pytest.raises(ValueError, match=message):
            call(smoothed(model, (20,), 2), x, y, **setting)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5, math.nan])
def test_confidence_is_a_probability(confidence):
    model, x, y, _ = halfspace()
    with pytest.raises(ValueError, match="confidence is"):
        certified_accuracy(smoothed(model, (20,), 2), x, y, norm=2, confidence=confidence)


def test_draws_are_for_smoothed_classifiers():
    problem = linear_problem()
    for setting in ({"n": 100}, {"noise": "gaussian"}):
        with pytest.raises(ValueError, match="for a classifier that does not vote under noise; allowed is None"):
            certified_radii(problem.classifier, problem.x, problem.y, **setting)


def test_networks_take_many_budgets_too():
    problem = linear_problem()
    eps = np.array([[0.0, 0.01], [0.02, 0.05]])
    found = certified_accuracy(problem.classifier, problem.x, problem.y, 2, 2, eps)
    radii = certified_radii(problem.classifier, problem.x, problem.y, norm=2)
    assert np.array_equal(found, knapsack_accuracy(radii, eps, 2))
