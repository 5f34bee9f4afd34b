# SPDX-License-Identifier: MIT
"""The functions of callables and tensors: what the classes compute, and the classes call no others."""

from __future__ import annotations

import inspect
import logging

import numpy as np
import pytest

import art_wdro
from art_wdro import WassersteinKnapsack, WassersteinPGD, evaluation, functional, knapsack_accuracy, sensitivity
from art_wdro.attacks import _knapsack, _pgd
from art_wdro.evaluation import _first_order
from tests.conftest import BUDGETS, NORMS, digits, on_device, on_host


@pytest.fixture
def problem(digits_classifier):
    x, y = (on_device(part[:60]) for part in digits()[1])
    return digits_classifier, digits_classifier.model.eval(), x, y


@pytest.mark.parametrize("r", NORMS)
@pytest.mark.parametrize("p", [2.0, np.inf])
def test_w_pgd_is_the_attack(problem, p, r):
    classifier, model, x, y = problem
    attack = WassersteinPGD(classifier, p=p, norm=r, eps=BUDGETS[r], max_iter=5, verbose=False)
    found = functional.w_pgd(model, x, y, p=p, r=r, eps=BUDGETS[r], steps=5)
    np.testing.assert_allclose(on_host(found), attack.generate(x, y), atol=1e-6)


@pytest.mark.parametrize("r", NORMS)
def test_least_distances_and_the_knapsack_are_the_attack(problem, r):
    classifier, model, x, y = problem
    attack = WassersteinKnapsack(classifier, norm=r, eps=BUDGETS[r], max_iter=30, verbose=False)
    attack.generate(x, y)
    distances, points, gradients = functional.least_distances(model, x, y, r=r, max_iter=30)
    np.testing.assert_allclose(on_host(distances), attack.distances_, rtol=1e-4)
    np.testing.assert_allclose(on_host(points), attack.nearest_, atol=1e-5)
    assert gradients / len(x) == pytest.approx(attack.gradients_)
    filling = functional.knapsack(distances, BUDGETS[r], p=2)
    assert filling.accuracy == float(filling) == knapsack_accuracy(distances, BUDGETS[r], 2)
    assert filling.fraction == pytest.approx(attack.fraction_)


def test_without_a_box_points_may_leave_it(problem):
    _, model, x, y = problem
    free = functional.least_distances(model, x, y, r=2.0, max_iter=30, box=None)
    boxed = functional.least_distances(model, x, y, r=2.0, max_iter=30)
    assert (free.points < 0).any()
    assert (boxed.points >= 0).all()
    assert (boxed.points <= 1).all()


@pytest.mark.parametrize("r", NORMS)
def test_upsilon_is_the_sensitivity(problem, r):
    classifier, model, x, y = problem
    expected = sensitivity(classifier, x, y, p=2, norm=r)
    assert functional.upsilon(model, x, y, p=2, r=r, batch_size=7).item() == pytest.approx(expected, rel=1e-5)


def test_the_shells_call_these_very_functions():
    assert _pgd.w_pgd is functional.w_pgd
    assert _knapsack.least_distances is functional.least_distances
    assert _knapsack.knapsack is functional.knapsack
    assert _first_order.upsilon is functional.upsilon
    assert evaluation._knapsack.knapsack is functional.knapsack


def test_every_function_says_shapes_units_and_shows_an_example():
    for name in functional.__all__:
        text = inspect.getdoc(getattr(functional, name))
        assert ">>> " in text, name
        assert "(N,)" in text, name
        assert "unit" in text, name


# --- the logger -------------------------------------------------------------------------------------------------


def test_the_package_is_silent_by_default():
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("art_wdro").handlers)
    assert logging.getLogger("art_wdro").level == logging.NOTSET


def test_steps_batches_and_epochs_are_logged(digits_classifier, caplog):
    x, y = (part[:40] for part in digits()[0])
    with caplog.at_level(logging.DEBUG, "art_wdro"):
        WassersteinPGD(digits_classifier, eps=0.05, max_iter=3, verbose=False).generate(x, y)
        steps = [record.getMessage() for record in caplog.records]
        caplog.clear()
        WassersteinKnapsack(digits_classifier, max_iter=12, batch_size=20, verbose=False).generate(x, y)
        runs = [record.getMessage() for record in caplog.records]
    assert [text.partition(":")[0] for text in steps] == ["step 0", "step 1", "step 2"]
    assert all("Upsilon" in text and "D_p" in text and "standing" in text for text in steps)
    assert runs
    assert all("runs end" in text and "with another class" in text for text in runs)
    caplog.clear()
    with caplog.at_level(logging.INFO, "art_wdro"):
        trainer = art_wdro.DistributionalTRADESTrainer(digits_classifier, max_iter=1, verbose=False)
        trainer.fit(x, y, batch_size=20, nb_epochs=2)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "'epoch': 1" in caplog.records[1].getMessage()
