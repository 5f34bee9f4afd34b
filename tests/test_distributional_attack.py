# SPDX-License-Identifier: MIT
"""The Wasserstein distributional attack: feasible by mass, exact on linear models, counted by mass; and WDA++."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from art_wdro import WassersteinDistributionalAttack, WassersteinKnapsack, adversarial_accuracy, knapsack_accuracy
from art_wdro._threat.norms import sample_norms
from tests.conftest import BUDGETS, NORMS, digits, dual, linear_problem, on_host


def lengths(x, adversarial, r):
    return sample_norms(torch.from_numpy(adversarial).double() - torch.from_numpy(x).double(), r).numpy()


def exact_distances(problem, r):
    """The least distances of a linear model without a box: least margin over dual norm."""
    layer = problem.classifier.model[1]
    weight, bias = (on_host(part).astype(np.float64) for part in (layer.weight, layer.bias))
    logits = problem.x.astype(float) @ weight.T + bias
    own = logits[np.arange(len(problem.y)), problem.y]
    s = dual(r)
    slopes = np.linalg.norm(weight[None] - weight[problem.y][:, None], ord=s, axis=2)
    slopes[np.arange(len(problem.y)), problem.y] = np.nan
    return np.maximum(np.nanmin((own[:, None] - logits) / slopes, 1), 0)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("r", NORMS)
@pytest.mark.parametrize("kappa", [1.0, 2.5, 8.0])
def test_the_distribution_lies_in_the_ball(digits_classifier, p, r, kappa):
    x, y = digits()[1]
    x, y = x[:60], y[:60]
    attack = WassersteinDistributionalAttack(
        digits_classifier, p=p, norm=r, eps=BUDGETS[r], kappa=kappa, max_iter=5, verbose=False
    )
    adversarial = attack.generate(x, y)
    moved = lengths(x, adversarial, r)
    assert np.mean(attack.mass_ * moved**p) ** (1 / p) <= BUDGETS[r] * (1 + 1e-6)
    assert moved.max() <= attack.radius * (1 + 1e-6)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    standing = digits_classifier.predict(x).argmax(1) == y
    np.testing.assert_array_equal(attack.mass_, standing / kappa)
    np.testing.assert_array_equal(adversarial[~standing], x[~standing])


@pytest.mark.parametrize("r", NORMS)
@pytest.mark.parametrize(("p", "kappa"), [(1.0, 1.0), (1.0, 4.0), (2.0, 3.0), (np.inf, 1.0)])
def test_a_linear_model_falls_where_the_radius_says(r, p, kappa):
    problem = linear_problem(clip_values=None)
    distances = exact_distances(problem, r)
    eps = float(np.median(distances)) / kappa ** (1 / p)
    attack = WassersteinDistributionalAttack(
        problem.classifier, p=p, norm=r, eps=eps, kappa=kappa, classes=5, verbose=False
    )
    adversarial = attack.generate(problem.x, problem.y)
    fell = problem.classifier.predict(adversarial).argmax(1) != problem.y
    # l_1 steps along the gradient, as l_2 does, and gets near the best corner of its ball only
    clear = np.abs(distances / attack.radius - 1) > (0.05 if r == 1.0 else 1e-3)
    np.testing.assert_array_equal(fell[clear], (distances <= attack.radius)[clear])


def test_accuracy_counts_by_mass(digits_classifier):
    x, y = digits()[1]
    x, y = x[:100], y[:100]
    attack = WassersteinDistributionalAttack(digits_classifier, p=1, eps=0.1, kappa=2.0, verbose=False)
    adversarial = attack.generate(x, y)
    clean = digits_classifier.predict(x).argmax(1) == y
    attacked = digits_classifier.predict(adversarial).argmax(1) == y
    expected = clean.mean() / 2 + attacked.mean() / 2
    found = adversarial_accuracy(digits_classifier, x, y, attack)
    assert found == pytest.approx(expected)
    assert attacked.mean() < found < clean.mean()


def test_no_setting_beats_the_knapsack(digits_classifier):
    x, y = digits()[1]
    x, y = x[:100], y[:100]
    knapsack = WassersteinKnapsack(digits_classifier, p=1, eps=0.05, max_iter=100, verbose=False)
    adversarial_accuracy(digits_classifier, x, y, knapsack)
    least = knapsack_accuracy(knapsack.distances_, 0.05, 1)
    for kappa in (1, 2, 4, 8):
        attack = WassersteinDistributionalAttack(digits_classifier, p=1, eps=0.05, kappa=kappa, verbose=False)
        assert adversarial_accuracy(digits_classifier, x, y, attack) >= least


def test_batches_masks_and_probes(digits_classifier):
    x, y = digits()[1]
    x, y = x[:30], y[:30]
    whole = WassersteinDistributionalAttack(digits_classifier, p=2, eps=0.1, kappa=2, verbose=False)
    parts = WassersteinDistributionalAttack(digits_classifier, p=2, eps=0.1, kappa=2, batch_size=7, verbose=False)
    np.testing.assert_allclose(whole.generate(x, y), parts.generate(x, y), atol=1e-5)
    mask = np.zeros((8, 8))
    mask[:, :4] = 1.0
    held = whole.generate(x, y, mask=mask)
    np.testing.assert_array_equal(held[..., 4:], x[..., 4:])
    assert (held != x).any()
    few, many = (
        WassersteinDistributionalAttack(digits_classifier, p=2, eps=0.1, classes=n, verbose=False) for n in (1, 9)
    )
    assert adversarial_accuracy(digits_classifier, x, y, many) <= adversarial_accuracy(digits_classifier, x, y, few)
    assert many.gradients_ > few.gradients_


def test_gradients_are_those_of_all_probes_and_of_the_pursuit(linear):
    """One sample in ten is misclassified and costs nothing; within a tiny radius every other one needs all steps."""
    attack = WassersteinDistributionalAttack(linear.classifier, eps=1e-6, classes=3, max_iter=7, verbose=False)
    adversarial = attack.generate(linear.x, linear.y)
    assert adversarial_accuracy(linear.classifier, adversarial, linear.y, eps=0.0) == pytest.approx(0.9)
    assert attack.gradients_ == pytest.approx(0.9 * (3 * 4 + 7))
    # who falls to a probe is not pursued
    attack.set_params(eps=0.9)
    adversarial = attack.generate(linear.x, linear.y)
    assert adversarial_accuracy(linear.classifier, adversarial, linear.y, eps=0.0) == 0
    assert attack.gradients_ == pytest.approx(0.9 * 3 * 4)


def test_the_end_of_the_way_counts(linear):
    """A single step to the corner of a ball that holds all classes."""
    attack = WassersteinDistributionalAttack(linear.classifier, eps=0.9, classes=1, max_iter=1, verbose=False)
    adversarial = attack.generate(linear.x, linear.y)
    assert adversarial_accuracy(linear.classifier, adversarial, linear.y, eps=0.0) == 0
    assert attack.gradients_ == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kappa": 0.5}, "kappa is 0.5; allowed is"),
        ({"p": np.inf, "kappa": 2.0}, "kappa is 2 with p = inf; allowed is 1"),
        ({"p": 0.5}, "p is 0.5; allowed is"),
        ({"max_iter": 0}, "max_iter is 0; allowed is"),
        ({"classes": 0}, "classes is 0; allowed is"),
    ],
)
def test_bad_input(digits_classifier, parameters, message):
    with pytest.raises(ValueError, match=message):
        WassersteinDistributionalAttack(digits_classifier, **parameters)
    attack = WassersteinDistributionalAttack(digits_classifier, p=2)
    before = dict(attack.__dict__)
    with pytest.raises(ValueError, match=message):
        attack.set_params(**parameters)
    assert attack.__dict__ == before


# --- WDA++: stepping out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", NORMS)
def test_stepping_out_is_exact_on_a_linear_model(r):
    problem = linear_problem(clip_values=None)
    exact = exact_distances(problem, r)
    attack = WassersteinKnapsack(
        problem.classifier, norm=r, eps=BUDGETS[r], max_iter=200, search="stepping-out", verbose=False
    )
    attack.generate(problem.x, problem.y)
    standing = exact > 0
    np.testing.assert_array_equal(attack.distances_[~standing], 0.0)
    # l_1 steps as l_2 does, along the gradient, so its distances are only bounded from below
    assert (attack.distances_[standing] >= exact[standing] * (1 - 1e-3)).all()
    if r != 1.0:
        assert np.median(attack.distances_[standing] / exact[standing]) < 1.01


def test_stepping_out_finds_points_that_are_misclassified(digits_classifier):
    x, y = digits()[1]
    x, y = x[:100], y[:100]
    attacks = [
        WassersteinKnapsack(digits_classifier, eps=0.1, max_iter=50, search=search, verbose=False)
        for search in ("newton", "stepping-out")
    ]
    accuracy = [adversarial_accuracy(digits_classifier, x, y, attack) for attack in attacks]
    coarse = attacks[1]
    found = np.isfinite(coarse.distances_) & (coarse.distances_ > 0)
    assert found.mean() > 0.9
    assert (digits_classifier.predict(coarse.nearest_).argmax(1) != y)[found].all()
    np.testing.assert_allclose(lengths(x, coarse.nearest_, np.inf)[found], coarse.distances_[found], rtol=1e-6)
    assert accuracy[0] <= accuracy[1]
    assert coarse.gradients_ < attacks[0].gradients_ / 3


def test_stepping_out_that_goes_nowhere(digits_classifier):
    x, y = digits()[1]
    attack = WassersteinKnapsack(digits_classifier, eps=1e-3, max_iter=1, search="stepping-out", verbose=False)
    x_adv = attack.generate(x[:20], y[:20])
    standing = digits_classifier.predict(x[:20]).argmax(1) == y[:20]
    assert np.isinf(attack.distances_[standing]).all()
    np.testing.assert_array_equal(x_adv[standing], x[:20][standing])
    with pytest.raises(ValueError, match="search is 'out'; allowed is one of"):
        WassersteinKnapsack(digits_classifier, search="out")
