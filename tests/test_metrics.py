# SPDX-License-Identifier: MIT
"""Distance, sensitivity and adversarial accuracy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from torch import nn

from art_wdro import WassersteinPGD, adversarial_accuracy, sensitivity, wasserstein_distance
from tests.conftest import make_classifier


def test_distance_by_hand():
    x = np.zeros((2, 1, 2))
    x_adv = np.array([[[3.0, 4.0]], [[0.0, 1.0]]])
    expected = {(1, 1): 4, (1, 2): 3, (2, 1): math.sqrt(25), (2, 2): math.sqrt(13), (2, np.inf): math.sqrt(8.5)}
    expected |= {(np.inf, 1): 7, (np.inf, 2): 5, ("inf", "inf"): 4}
    for (p, norm), value in expected.items():
        assert wasserstein_distance(x, x_adv, p, norm) == pytest.approx(value)
    assert wasserstein_distance(torch.from_numpy(x), x_adv.tolist()) == pytest.approx(math.sqrt(8.5))
    assert wasserstein_distance(x, x) == 0.0
    assert wasserstein_distance(x[::-1], np.broadcast_to(x[:1], x.shape)) == 0.0


def test_distance_is_computed_in_double_precision():
    x = np.full((1, 1), 1.0)
    assert wasserstein_distance(x, x + 1e-12) == pytest.approx(1e-12, rel=1e-3, abs=0)


def test_sensitivity_does_not_depend_on_batches(linear):
    values = [sensitivity(linear.classifier, linear.x, linear.y, batch_size=size) for size in (1, 7, 1000)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_sensitivity_of_order_one_is_the_largest_gradient(linear):
    each = [sensitivity(linear.classifier, linear.x[i : i + 1], linear.y[i : i + 1]) for i in range(len(linear.x))]
    assert sensitivity(linear.classifier, linear.x, linear.y, p=1) == pytest.approx(max(each), rel=1e-6)
    assert sensitivity(linear.classifier, linear.x, linear.y, p=np.inf) == pytest.approx(np.mean(each), rel=1e-6)
    assert sensitivity(linear.classifier, linear.x, linear.y, p=2) == pytest.approx(
        np.sqrt(np.mean(np.square(each))), rel=1e-6
    )


def test_sensitivity_without_labels_takes_the_predictions(linear):
    predicted = linear.classifier.predict(linear.x)
    assert sensitivity(linear.classifier, linear.x) == sensitivity(linear.classifier, linear.x, predicted)
    assert sensitivity(linear.classifier, linear.x) != sensitivity(linear.classifier, linear.x, linear.y)


def test_sensitivity_is_zero_where_all_is_misclassified(linear):
    wrong = linear.classifier.predict(linear.x).argmin(1)
    assert sensitivity(linear.classifier, linear.x, wrong) == 0.0


def test_adversarial_accuracy_warns_of_probabilities(linear):
    model = nn.Sequential(*linear.classifier.model, nn.Softmax(dim=1))
    with pytest.warns(UserWarning, match="puts out probabilities"):
        adversarial_accuracy(make_classifier(model, (30,), 5), linear.x, linear.y, eps=0.02)
    adversarial_accuracy(linear.classifier, linear.x, linear.y, eps=0.02)  # warnings are errors


def test_adversarial_accuracy(linear):
    x, y = linear.x, linear.y
    assert adversarial_accuracy(linear.classifier, x, y, eps=0.0) == pytest.approx(0.9)
    attack = WassersteinPGD(linear.classifier, eps=0.05, verbose=False)
    expected = (linear.classifier.predict(attack.generate(x, y)).argmax(1) == y).mean()
    assert adversarial_accuracy(linear.classifier, x, y, attack) == expected
    assert adversarial_accuracy(linear.classifier, x, np.eye(5)[y], eps=0.05) == expected
    theirs = FastGradientMethod(linear.classifier, eps=0.05)
    assert adversarial_accuracy(linear.classifier, x, y, theirs) < 0.9


def test_the_mode_comes_back(digits_classifier):
    digits_classifier.model.train()
    x = np.random.default_rng(0).uniform(0, 1, (9, 1, 8, 8))
    adversarial_accuracy(digits_classifier, x, np.zeros(9), max_iter=1)
    sensitivity(digits_classifier, x)
    assert all(m.training for m in digits_classifier.model.modules())
