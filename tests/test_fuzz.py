# SPDX-License-Identifier: MIT
"""Whatever goes in: an answer in the ball and in the box, or a documented error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import nn

from art_wdro import (
    WassersteinFGM,
    WassersteinKnapsack,
    WassersteinPGD,
    adversarial_accuracy,
    knapsack_accuracy,
    sensitivity,
)
from art_wdro._threat.geometry import GROUND_NORMS
from tests.conftest import Problem, make_classifier

SHAPES = [(1,), (4,), (1, 1, 3), (2, 3, 2), (3, 2)]
BOXES = [None, (0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-3.0, -1.0), "array"]
DTYPES = [np.float32, np.float64, np.float16, np.uint8, np.int64, "list", "tensor"]
IMAGES = ["any", "constant", "duplicates", "at the bounds"]
LABELS = ["any", "one class", "all wrong", "all right", "predicted", "one-hot"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:x has one sample", "ignore:the classifier puts out probabilities"),
]


@st.composite
def problems(draw) -> tuple[Problem, object, tuple[float, float] | None]:
    """Draw a network, its box, inputs of some dtype and kind, and labels of some form."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape, classes, samples = draw(st.sampled_from(SHAPES)), draw(st.integers(2, 5)), draw(st.integers(1, 9))
    box = draw(st.sampled_from(BOXES))
    features = math.prod(shape)
    bounds = (rng.uniform(-2, 0, shape), rng.uniform(0, 2, shape)) if box == "array" else box
    low, high = (-5.0, 5.0) if bounds is None else bounds
    kind = draw(st.sampled_from(IMAGES))
    x = rng.uniform(low, high, (samples, *shape))
    if kind == "constant":
        x = np.broadcast_to(np.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True), x.shape)
        x = np.clip(x, low, high)
    if kind == "duplicates":
        x = np.broadcast_to(x[:1], x.shape)
    if kind == "at the bounds" and bounds is not None:
        x = np.where(x > np.add(low, high) / 2, high, low) * np.ones_like(x)
    dtype = draw(st.sampled_from(DTYPES))
    if dtype in (np.uint8, np.int64):
        x = np.trunc(np.abs(x)) if box in (None, (0.0, 1.0), (0.0, 255.0)) else x
        dtype = dtype if (x == np.trunc(x)).all() and (x >= 0).all() else np.float32
    if dtype == np.float16 and bounds is not None:
        dtype = np.float32  # rounding would leave the box
    x = np.asarray(x, dtype=np.float32)
    x = x if bounds is None else np.clip(x, *np.float32(bounds))
    given = x.tolist() if dtype == "list" else torch.from_numpy(x) if dtype == "tensor" else x.astype(dtype)

    torch.manual_seed(draw(st.integers(0, 99)))
    width = draw(st.sampled_from([0, 3]))
    layers = [nn.Linear(features, classes)] if width == 0 else [nn.Linear(features, width), nn.ReLU()]
    model = nn.Sequential(nn.Flatten(), *layers, *([nn.Linear(width, classes)] if width else []))
    if draw(st.booleans()):
        with torch.no_grad():  # saturated, or without any gradient
            model[-1].weight *= draw(st.sampled_from([0.0, 1e-20, 1e6]))
    classifier = make_classifier(model, shape, classes, clip_values=bounds)
    form = draw(st.sampled_from(LABELS))
    predicted = classifier.predict(np.asarray(given, dtype=np.float32)).argmax(1)
    y = rng.integers(0, classes, samples)
    if form == "one class":
        y[:] = 0
    if form in ("all wrong", "all right"):
        y = (predicted + (form == "all wrong")) % classes
    labels = None if form == "predicted" else np.eye(classes)[y] if form == "one-hot" else y
    event(f"{form}, {kind}")
    return Problem(classifier, np.asarray(given, dtype=np.float32).copy(), labels), given, bounds


BUDGETS = st.one_of(st.just(0.0), st.sampled_from([1e-12, 1e-6, 1e3, 1e8]), st.floats(1e-3, 2.0))
ORDERS = st.one_of(st.sampled_from([1.001, 2.0, 50.0, np.inf]), st.floats(1.01, 8.0))
NORMS = st.sampled_from([*GROUND_NORMS, 1, 2, "inf"])
LOSSES = st.sampled_from(["ce", "redlr", "dlr"])


def assert_feasible(found, x, bounds, p, norm, eps, mask=None):
    assert found.dtype == np.float32
    assert found.shape == x.shape
    assert np.isfinite(found).all()
    if bounds is not None:
        low, high = np.float32(bounds)
        assert (found >= low).all()
        assert (found <= high).all()
    delta = (found.astype(np.float64) - x.astype(np.float64)).reshape(len(x), -1)
    if mask is not None:
        assert (delta[np.broadcast_to(~mask, x.shape).reshape(len(x), -1)] == 0).all()
    lengths = np.linalg.norm(delta, ord=float(norm), axis=1)
    longest = max(lengths.max(), 1e-300)
    distance = longest if np.isinf(p) else longest * np.mean((lengths / longest) ** p) ** (1 / p)
    assert distance <= max(eps * (1 + 1e-6), 1e-300)


@settings(max_examples=1200, suppress_health_check=list(HealthCheck))
@given(problems(), ORDERS, NORMS, BUDGETS, LOSSES, st.integers(1, 12), st.booleans(), st.data())
def test_attacks_stay_in_the_ball_and_in_the_box(problem, p, norm, eps, loss, batch_size, one_step, data):
    (classifier, x, y), given, bounds = problem
    mask = None
    if data.draw(st.booleans(), label="mask"):
        mask = np.random.default_rng(0).random(data.draw(st.sampled_from([x.shape, x.shape[1:], (1,)]))) < 0.5
    shared = {"p": p, "norm": norm, "eps": eps, "loss": loss, "batch_size": batch_size, "verbose": False}
    steps = {"max_iter": data.draw(st.integers(0, 4)), "schedule": data.draw(st.sampled_from(["constant", "linear"]))}
    attack = WassersteinFGM(classifier, **shared) if one_step else WassersteinPGD(classifier, **shared, **steps)
    found = attack.generate(given, y, mask)
    assert_feasible(found, x, bounds, p, norm, eps, mask)
    np.testing.assert_array_equal(np.asarray(given, dtype=np.float32), x)
    assert sensitivity(classifier, given, y, p, norm, loss, batch_size) >= 0.0


@settings(max_examples=800, suppress_health_check=list(HealthCheck))
@given(problems(), st.one_of(ORDERS, st.just(1.0)), NORMS, BUDGETS, st.integers(1, 12), st.integers(1, 25))
def test_the_knapsack_stays_in_the_ball_and_agrees_with_its_distances(problem, p, norm, eps, batch_size, max_iter):
    (classifier, x, y), given, bounds = problem
    attack = WassersteinKnapsack(
        classifier, p=p, norm=norm, eps=eps, max_iter=max_iter, batch_size=batch_size, verbose=False
    )
    found = attack.generate(given, y)
    assert_feasible(found, x, bounds, p, norm, eps)
    assert (attack.distances_ >= 0).all()
    assert not np.isnan(attack.distances_).any()
    labels = classifier.predict(x).argmax(1) if y is None else y
    accuracy = adversarial_accuracy(classifier, found, labels, eps=0.0)
    bound = knapsack_accuracy(attack.distances_, eps, p)
    assert bound <= accuracy + 1e-9
    assert accuracy - bound <= 1 / len(x) + 1e-9  # the part of one more sample
