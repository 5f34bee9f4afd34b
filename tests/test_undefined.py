# SPDX-License-Identifier: MIT
"""Networks that put out NaN somewhere: NaN is no class, and a search goes around it."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from art_wdro import (
    WassersteinDistributionalAttack,
    WassersteinKnapsack,
    WassersteinPGD,
    adversarial_accuracy,
    evaluate,
    functional,
)
from art_wdro._solvers.boundary import boundary
from art_wdro.evaluation._attempts import Attempt, Case, Outcome, Pool
from tests.conftest import NORMS, linear_problem, make_classifier, on_device, on_host

ROOTS = on_device(torch.tensor([[2.0], [4.0], [9.0], [16.0], [25.0], [10.0**4], [1.5]]))
LABELS = on_device(torch.zeros(len(ROOTS), dtype=torch.int64))


def root(x: torch.Tensor) -> torch.Tensor:
    """Logits (t, -t) with t = sqrt(x) - 1: the border lies at 1, and below 0 there is nothing."""
    t = x.sqrt() - 1
    return torch.cat([t, -t], 1)


class Root(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return root(x)


class Broken(nn.Module):
    """A linear network that puts out NaN for some inputs."""

    def __init__(self, inner: nn.Module, swapped: bool = False) -> None:
        super().__init__()
        self.inner, self.swapped = inner, swapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.where((x[:, :1] - 0.5).abs() > 0.1, torch.nan, self.inner(x))
        return logits.flip(1) if self.swapped else logits


@pytest.mark.parametrize("r", NORMS)
def test_least_distances_beside_nan(r):
    distances, points, _ = functional.least_distances(root, ROOTS, LABELS, r=r, box=None, max_iter=300)
    np.testing.assert_allclose(on_host(distances), on_host(ROOTS[:, 0] - 1), rtol=0.05)
    assert (root(points).argmax(1) == 1).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("search", ["newton", "stepping-out"])
def test_the_knapsack_beside_nan(norm, search):
    classifier = make_classifier(Root(), (1,), 2, clip_values=None)
    attack = WassersteinKnapsack(classifier, norm=norm, eps=30.0, max_iter=100, verbose=False, search=search)
    attack.generate(ROOTS[:5], LABELS[:5])
    np.testing.assert_allclose(attack.distances_, [1, 3, 8, 15, 24], rtol=0.05)


@pytest.mark.parametrize("r", NORMS)
def test_the_boundary_in_training_beside_nan(r):
    found = boundary(root, ROOTS[:5], LABELS[:5], r, reach=100.0, max_iter=40)
    np.testing.assert_allclose(on_host(found.distances), [1, 3, 8, 15, 24], rtol=0.05)


def test_attacks_in_balls_beside_nan():
    classifier = make_classifier(Root(), (1,), 2, clip_values=None)
    attack = WassersteinDistributionalAttack(classifier, eps=30.0, verbose=False)
    points = torch.from_numpy(attack.generate(ROOTS[:5], LABELS[:5]))
    assert (root(points).argmax(1)[~root(points).isnan().any(1)] == 1).all()
    assert (~root(points).isnan().any(1)).sum() >= 4


@pytest.mark.parametrize("swapped", [False, True])
def test_nan_is_no_class(swapped):
    problem = linear_problem(classes=2)
    classifier = make_classifier(Broken(problem.classifier.model, swapped), (30,), 2)
    y = 1 - problem.y if swapped else problem.y
    defined = np.abs(problem.x[:, 0] - 0.5) <= 0.1
    right = problem.classifier.predict(problem.x).argmax(1) == problem.y
    assert (right & ~defined).any()
    assert adversarial_accuracy(classifier, problem.x, y, eps=0.0) == pytest.approx(np.mean(right & defined))
    knapsack = WassersteinKnapsack(classifier, eps=0.01, max_iter=20, verbose=False)
    knapsack.generate(problem.x, y)
    assert (knapsack.distances_[~(right & defined)] == 0).all()
    assert (knapsack.distances_[right & defined] > 0).all()
    with pytest.raises(ValueError, match=r"y is None, and the classifier puts out NaN for sample \d+"):
        WassersteinPGD(classifier, verbose=False).generate(problem.x)


def test_the_row_with_most_nan_counts():
    pool = Pool(Case(make_classifier(Root(), (1,), 2, clip_values=None), ROOTS, LABELS, 2.0, math.inf, 1.0, 8))
    for points in (torch.where(ROOTS > 10, -ROOTS, ROOTS), ROOTS):
        pool.attempted(Attempt("given", 2.0, lambda _, points=points: Outcome(points, 0.0)))
        assert pool.undefined == 3


def test_a_report_looks_for_nan_everywhere():
    problem = linear_problem(samples=200)
    x = problem.x.copy()
    x[:, 0] = 0.5
    x[-1, 0] = 0.7  # not in the first batch
    classifier = make_classifier(Broken(problem.classifier.model), (30,), 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = evaluate(classifier, x, problem.y, eps=0.001, batch_size=50, knapsack_iter=20, verbose=False)
        assert any("logits are NaN, of up to 1 samples" in text for text in found.warnings)
        beyond = evaluate(classifier, x[:-1], problem.y[:-1], eps=0.3, p=math.inf, knapsack_iter=20, verbose=False)
    assert any("logits are NaN" in text for text in beyond.warnings)  # only where an attack goes
    right = problem.classifier.predict(x).argmax(1) == problem.y
    assert found.rows[0].accuracy == pytest.approx(right[:-1].sum() / 200)
