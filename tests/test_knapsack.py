# SPDX-License-Identifier: MIT
"""The knapsack: filling against brute force and its dual, distances against closed forms, the attack as a whole."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from art.attacks.evasion import AutoProjectedGradientDescent
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog
from torch import nn

from art_wdro import WassersteinKnapsack, WassersteinPGD, adversarial_accuracy, knapsack_accuracy, wasserstein_distance
from art_wdro._threat.geometry import _lowered, _scaled, project_in_box, project_on_balls
from art_wdro._threat.knapsack import ROUNDING, knapsack, thresholds
from art_wdro._threat.norms import sample_norms
from tests.conftest import BUDGETS, NORMS, digits, linear_problem, make_classifier, on_device, on_host

DISTANCES = st.lists(st.one_of(st.just(0.0), st.floats(0.1, 10), st.just(math.inf)), min_size=1, max_size=8)


# --- the filling ------------------------------------------------------------------------------------------------


@given(DISTANCES, st.floats(0.3, 5), st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_filling_is_the_optimum_of_the_linear_programme(distances, eps, p):
    finite = [(d / eps) ** p for d in distances if math.isfinite(d)]
    count = len(distances)
    flipped = 0.0
    if finite:
        flipped = -linprog(-np.ones(len(finite)), [finite], [count], bounds=(0, 1)).fun
    assert knapsack_accuracy(distances, eps, p) == pytest.approx(1 - flipped / count, abs=1e-6)


@given(DISTANCES, st.floats(1e-2, 5), st.sampled_from([1.0, 2.0, 3.0]))
def test_filling_equals_its_dual(distances, eps, p):
    d = np.array(distances)
    rates = [0.0, *(1 / x**p for x in distances if 0 < x < math.inf)]  # the minimum lies at a kink

    def dual(rate: float) -> float:
        hinge = np.where(np.isinf(d), 0.0 if rate > 0 else 1.0, 1 - rate * np.where(np.isinf(d), 0, d) ** p)
        return rate * eps**p + np.maximum(hinge, 0).mean()

    # with infinite distances the limit of rates towards 0 is wanted, where those samples never flip
    rates[0] = 1e-12 if np.isinf(d).any() else 0.0
    assert 1 - knapsack_accuracy(d, eps, p) == pytest.approx(min(map(dual, rates)), abs=1e-8)


@given(DISTANCES, st.lists(st.one_of(st.just(0.0), st.floats(1e-2, 5)), min_size=1), st.sampled_from([1.0, 1.5, 2.0]))
def test_thresholds_are_those_of_the_fillings(distances, budgets, p):
    found = thresholds(torch.tensor(distances).double(), torch.tensor(budgets).double(), p)
    expected = [knapsack(torch.tensor(distances).double(), eps, p).threshold for eps in budgets]
    assert found.tolist() == expected


def test_pointwise_order_counts_the_samples_beyond_eps():
    d = [0.0, 0.1, 0.2, 0.3, np.inf]
    assert knapsack_accuracy(d, 0.2, np.inf) == pytest.approx(0.4)
    assert knapsack_accuracy(d, 0.0, 2) == pytest.approx(0.8)
    assert knapsack_accuracy(d, 1e6, 2) == pytest.approx(0.2)
    assert isinstance(knapsack_accuracy(d, 0.2), float)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_a_budget_that_just_suffices_flips_all(p):
    """Where sums of costs round up, too, and up to the very end of what counts as rounding."""
    for d in np.random.default_rng(0).exponential(size=(50, 7)):
        filling = knapsack(d, np.mean(d**p) ** (1 / p), p)
        assert filling.flipped.all()
        assert (filling.partial, filling.fraction, filling.accuracy) == (None, 0.0, 0.0)
        assert filling.threshold == d.max()
    assert knapsack([1 + ROUNDING], 1.0, 1.0).flipped.all()
    assert not knapsack([1 + 2 * ROUNDING], 1.0, 1.0).flipped.any()


def test_one_run_answers_many_budgets_and_accuracy_falls_with_them():
    d = np.random.default_rng(0).exponential(size=50)
    eps = np.linspace(0, 2, 9).reshape(3, 3)
    curve = knapsack_accuracy(d, eps, 2)
    assert curve.shape == (3, 3)
    assert (np.diff(curve.ravel()) <= 0).all()
    assert curve[1, 1] == knapsack_accuracy(d, eps[1, 1], 2)
    # a larger order is a smaller ball
    assert knapsack_accuracy(d, 0.3, 1) <= knapsack_accuracy(d, 0.3, 2) <= knapsack_accuracy(d, 0.3, np.inf)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], 1), ValueError, r"distances have the shape \(0,\)"),
        (([[1.0]], 1), ValueError, r"distances have the shape \(1, 1\)"),
        (([-1.0], 1), ValueError, "distances hold negative or NaN values"),
        (([np.nan], 1), ValueError, "distances hold negative or NaN values"),
        (([1.0], -1), ValueError, "eps is -1; allowed is a number >= 0"),
        (([1.0], [1, np.nan]), ValueError, "eps is nan"),
        (([1.0], 1, 0.5), ValueError, "p is 0.5; allowed is a number >= 1"),
        (([1.0], "1"), TypeError, "eps is '1'"),
    ],
)
def test_bad_input_of_the_filling(arguments, error, message):
    with pytest.raises(error, match=message):
        knapsack_accuracy(*arguments)


# --- the projection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_projection_in_a_box(norm):
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(40, 12, generator=generator)
    lower, upper = -torch.rand(40, 12, generator=generator), torch.rand(40, 12, generator=generator)
    radii = torch.rand(40, generator=generator, dtype=torch.float64) * 2
    z = project_in_box(delta, radii, norm, lower, upper)
    assert (z >= lower).all()
    assert (z <= upper).all()
    assert (sample_norms(z, norm) <= radii * (1 + 1e-6)).all()
    torch.testing.assert_close(project_in_box(z, radii * (1 + 1e-5), norm, lower, upper), z, atol=1e-6, rtol=1e-5)
    # no feasible point is nearer: the variational inequality <delta - z, other - z> <= 0
    for _ in range(50):
        other = lower + (upper - lower) * torch.rand(40, 12, generator=generator)
        other = project_on_balls(other, radii, norm)
        assert (((delta - z) * (other - z)).sum(1) <= 1e-5).all()
    # nor is a part of the radius left unused
    cut = sample_norms(torch.where(delta > 0, upper, lower).abs().minimum(delta.abs()), norm) > radii
    assert cut.sum() > 10
    torch.testing.assert_close(sample_norms(z, norm)[cut], radii[cut], rtol=1e-6, atol=1e-6)
    free = torch.full_like(delta, torch.inf)
    torch.testing.assert_close(
        project_in_box(delta, radii, norm, -free, free), project_on_balls(delta, radii, norm), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("longest", [1.0, 1e-4])
@pytest.mark.parametrize(("project", "norm"), [(_lowered, 1.0), (_scaled, 2.0)])
def test_a_projection_in_a_box_that_asks_nothing_is_the_same(project, norm, longest):
    """As on a GPU, where radii are short beside what the box lets samples move."""
    generator = torch.Generator().manual_seed(0)
    size, room = torch.randn(40, 300, generator=generator).abs(), torch.rand(40, 300, generator=generator)
    room[:, :50], room[:, 50:100] = 0.0, torch.inf
    radii = longest * torch.rand(40, generator=generator, dtype=torch.float64)
    asking, found = (project(size, room, radii, asks) for asks in (True, False))
    torch.testing.assert_close(found, asking, atol=1e-6, rtol=0)
    for moved in (asking, found):
        assert (moved <= room).all()
        assert (sample_norms(moved, norm) <= radii * (1 + 1e-6)).all()


# --- least distances --------------------------------------------------------------------------------------------


def closed_form(problem, norm: float) -> np.ndarray:
    """Least distance to another class of a linear model, inside the box, in float64."""
    layer = problem.classifier.model[-1]
    w, b = (on_host(part).astype(np.float64) for part in (layer.weight, layer.bias))
    found = np.full(len(problem.x), np.inf)
    for i, (x, y) in enumerate(zip(problem.x.astype(float), problem.y, strict=True)):
        scores = w @ x + b
        if scores.argmax() != y:
            found[i] = 0
            continue
        for j in set(range(len(w))) - {y}:
            slope = w[j] - w[y]
            room = np.full(len(x), np.inf)
            if problem.classifier.clip_values is not None:
                room = np.where(slope > 0, 1 - x, x)
            found[i] = min(found[i], distance_to_plane(np.abs(slope), scores[y] - scores[j], room, norm))
    return found


def distance_to_plane(slope: np.ndarray, gap: float, room: np.ndarray, norm: float) -> float:
    """min ||z||_r with <slope, z> >= gap and 0 <= z <= room, for slope >= 0."""
    if norm == 1:  # steepest coordinates first
        length = 0.0
        for k in np.argsort(-slope):
            step = min(room[k], gap / slope[k])
            gap, length = gap - step * slope[k], length + step
        return length if gap <= 1e-9 else np.inf

    def point(t: float) -> np.ndarray:
        return np.minimum(t if norm == np.inf else t * slope, room)

    if slope @ point(1e3) < gap:
        return np.inf
    return np.linalg.norm(point(brentq(lambda t: slope @ point(t) - gap, 0, 1e3)), norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("clip_values", [None, (0.0, 1.0)])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("max_iter", [40, 100, 200])
def test_distances_of_a_linear_model(norm, clip_values, classes, max_iter):
    problem = linear_problem(classes=classes, clip_values=clip_values)
    exact = closed_form(problem, norm)
    attack = WassersteinKnapsack(problem.classifier, norm=norm, max_iter=max_iter, verbose=False)
    attack.generate(problem.x, problem.y)
    np.testing.assert_array_equal(attack.distances_ == 0, exact == 0)
    ratio = attack.distances_[exact > 0] / exact[exact > 0]
    assert ratio.min() >= 1 - 1e-6
    assert np.median(ratio) <= 1.03
    assert np.quantile(ratio, 0.95) <= 1.06
    assert attack.gradients_ <= max_iter


@pytest.mark.parametrize("norm", NORMS)
def test_distances_are_those_of_points_of_another_class(digits_classifier, norm):
    x, y = (part[:60] for part in digits()[1])
    attack = WassersteinKnapsack(digits_classifier, norm=norm, max_iter=60, batch_size=16, verbose=False)
    attack.generate(x, y)
    found = np.isfinite(attack.distances_) & (attack.distances_ > 0)
    assert found.mean() > 0.9
    assert (digits_classifier.predict(attack.nearest_[found], batch_size=7).argmax(1) != y[found]).all()
    for i in np.flatnonzero(found)[:10]:
        own = wasserstein_distance(x[i : i + 1], attack.nearest_[i : i + 1], 1, norm)
        assert own == pytest.approx(attack.distances_[i], rel=1e-9)
    np.testing.assert_array_equal(attack.nearest_[~found], x[~found])
    alone = WassersteinKnapsack(digits_classifier, norm=norm, max_iter=60, batch_size=3, verbose=False)
    alone.generate(x[20:40], y[20:40])
    np.testing.assert_allclose(alone.distances_, attack.distances_[20:40], rtol=2e-2)


@pytest.mark.parametrize("max_iter", [1, 2, 3])
def test_one_gradient_finds_the_boundary_of_two_classes(max_iter):
    problem = linear_problem(classes=2, clip_values=None)
    for norm in (2, np.inf):
        attack = WassersteinKnapsack(problem.classifier, norm=norm, max_iter=max_iter, verbose=False)
        attack.generate(problem.x, problem.y)
        assert attack.gradients_ <= max_iter
        close = np.isclose(attack.distances_, closed_form(problem, norm), rtol=1e-3)
        assert close.mean() > 0.95
        assert max_iter == 1 or np.isfinite(attack.distances_).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "change",
    [
        lambda z: torch.cat([z, torch.full_like(z[:, :1], -1e9)], 1),
        lambda z: torch.cat([z, torch.full_like(z[:, :1], -torch.inf)], 1),
        lambda z: z + 1e3,
        lambda z: 1e-25 * z,
        lambda z: 1e6 * z,
    ],
)
def test_distances_do_not_depend_on_the_scale_of_the_logits(norm, change):
    problem = linear_problem()

    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = problem.classifier.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return change(self.inner(x))

    model = Changed()
    classes = model(on_device(torch.zeros(1, 30))).shape[1]
    attack = WassersteinKnapsack(make_classifier(model, (30,), classes), norm=norm, max_iter=100, verbose=False)
    attack.generate(problem.x, problem.y)
    exact = closed_form(problem, norm)
    assert np.isfinite(attack.distances_).all()
    assert np.median(attack.distances_[exact > 0] / exact[exact > 0]) < 1.05


def test_the_run_along_the_leading_class_finds_what_the_nearest_class_misses():
    class DeadEnd(nn.Module):
        """To first order class 1 is the nearest, but its logit saturates; class 2 leads and is reached at 0.5."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([0 * x, 0.9 * torch.tanh(10 * x) - 1, x - 0.5], 1)

    attack = WassersteinKnapsack(make_classifier(DeadEnd(), (1,), 3), max_iter=100, verbose=False)
    attack.generate(np.zeros((3, 1), np.float32), np.zeros(3))
    np.testing.assert_allclose(attack.distances_, 0.5, rtol=1e-2)


def test_mask_holds_coordinates_still(linear):
    mask = np.arange(30) % 2 == 0
    attack = WassersteinKnapsack(linear.classifier, eps=1.0, verbose=False)
    moved = attack.generate(linear.x, linear.y, mask=mask) != linear.x
    assert moved[:, mask].any()
    assert not moved[:, ~mask].any()


@pytest.mark.filterwarnings("ignore:the classifier puts out probabilities")
def test_a_constant_classifier_has_no_distance():
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    attack = WassersteinKnapsack(make_classifier(model, (4,), 3), verbose=False)
    x = np.full((5, 4), 0.5, np.float32)
    np.testing.assert_array_equal(attack.generate(x, np.array([0, 0, 0, 1, 2])), x)
    np.testing.assert_array_equal(attack.distances_, [np.inf, np.inf, np.inf, 0, 0])
    assert attack.fraction_ == 0


# --- the attack -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "norm"), list(itertools.product([1, 1.5, 2, np.inf], NORMS)))
def test_array_is_feasible_and_as_accurate_as_the_filling_says(linear, p, norm):
    eps = BUDGETS[norm]
    attack = WassersteinKnapsack(linear.classifier, p=p, norm=norm, eps=eps, verbose=False)
    adversarial = attack.generate(linear.x, linear.y)
    assert adversarial.dtype == np.float32
    assert wasserstein_distance(linear.x, adversarial, p, norm) <= eps * (1 + 1e-6)
    hit = linear.classifier.predict(adversarial).argmax(1) == linear.y
    moved = (adversarial != linear.x).any(1)
    assert not hit[moved].any()
    accuracy = knapsack_accuracy(attack.distances_, eps, p)
    assert hit.mean() - attack.fraction_ / len(hit) == pytest.approx(accuracy)
    assert 0 <= attack.fraction_ < 1


def test_is_stronger_than_w_pgd_and_pointwise_as_strong_as_auto_pgd(digits_classifier):
    x, y = (part[:200] for part in digits()[1])
    for p, eps in ((2, 0.05), (np.inf, 0.1)):
        knapsack = WassersteinKnapsack(digits_classifier, p=p, eps=eps, verbose=False)
        accuracy = adversarial_accuracy(digits_classifier, x, y, knapsack)
        if p == 2:
            other = WassersteinPGD(digits_classifier, eps=eps, max_iter=50, verbose=False)
        else:
            other = AutoProjectedGradientDescent(
                digits_classifier,
                eps=eps,
                eps_step=eps / 4,
                max_iter=50,
                nb_random_init=1,
                loss_type=None,
                verbose=False,
            )
        assert accuracy <= adversarial_accuracy(digits_classifier, x, y, other) + 0.01
        assert accuracy < adversarial_accuracy(digits_classifier, x, y, eps=0)


def test_labels_none_are_the_predictions_and_parameters_are_checked(linear):
    attack = WassersteinKnapsack(linear.classifier, verbose=False)
    attack.generate(linear.x)
    assert (attack.distances_ > 0).all()
    attack.set_params(p="inf", max_iter=3)
    assert (attack.p, attack.max_iter) == (math.inf, 3)
    for name, value in (("max_iter", 0), ("eps", -1), ("norm", 3), ("p", 0.5), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}; allowed is"):
            attack.set_params(**{name: value})
        with pytest.raises(ValueError, match=f"{name} is {value}; allowed is"):
            WassersteinKnapsack(linear.classifier, **{name: value})
    assert (attack.p, attack.max_iter) == (math.inf, 3)


def test_leaves_the_classifier_as_it_was(digits_classifier):
    x, y = (part[:20] for part in digits()[1])
    digits_classifier.model.train()
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    before = {k: v.clone() for k, v in digits_classifier.model.state_dict().items()}
    WassersteinKnapsack(digits_classifier, max_iter=200, verbose=False).generate(x, y)
    assert digits_classifier.model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert all(parameter.grad is None for parameter in digits_classifier.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in digits_classifier.model.state_dict().items())
