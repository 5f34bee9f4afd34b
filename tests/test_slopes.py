# SPDX-License-Identifier: MIT
"""Better lines and the box: minima over a ball in a box against their closed forms, slopes, and time that is over."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from art_wdro import certified_accuracy, certified_radii
from art_wdro._bounds import certified, crown
from art_wdro._bounds.certified import margin_bounds
from art_wdro._bounds.crown import _lowest_over
from art_wdro._bounds.intervals import Ball, Interval
from art_wdro._bounds.tracing import graph_of
from tests.conftest import NORMS, make_classifier
from tests.test_certificates import dense


def ball_in_box(r: float, seed: int, radius: float, size: int = 6, count: int = 8) -> tuple[Ball, torch.Tensor]:
    """A ball in the unit box around a point of which some coordinates lie on its faces, and linear functions."""
    generator = torch.Generator().manual_seed(seed)
    centre = (1.6 * torch.rand(1, size, dtype=torch.float64, generator=generator) - 0.3).clamp(0, 1)
    box = Interval(torch.zeros_like(centre), torch.ones_like(centre))
    slopes = torch.randn(1, count, size, dtype=torch.float64, generator=generator)
    return Ball(centre, torch.tensor([radius], dtype=torch.float64), r, box), slopes


def exact(ball: Ball, slope: np.ndarray) -> float:
    """The least value: in l_2 by bisection of the multiplier, in l_1 and l_inf by a linear programme."""
    centre, radius = ball.centre[0].numpy(), ball.radius.item()
    if ball.r == 2:
        low, high = 0.0, 1e9
        for _ in range(200):
            middle = (low + high) / 2
            point = np.clip(centre - middle * slope, 0, 1)
            low, high = (low, middle) if np.linalg.norm(point - centre) > radius else (middle, high)
        return float(slope @ np.clip(centre - low * slope, 0, 1))
    size = len(slope)
    steps = np.concatenate([np.eye(size), -np.eye(size)], 1)  # x = centre + up - down
    rows = np.ones((1, 2 * size)) if ball.r == 1 else np.eye(2 * size)
    bounds = [(0, room) for room in (*(1 - centre), *centre)]
    found = linprog(slope @ steps, rows, np.full(len(rows), radius), bounds=bounds)
    return float(slope @ centre + found.fun)


@given(st.sampled_from(NORMS), st.integers(0, 10**6), st.sampled_from([1e-9, 0.05, 0.4, 1.1, 3.0, 50.0]))
def test_the_least_value_over_a_ball_in_a_box_is_nearly_found(r, seed, radius):
    ball, slopes = ball_in_box(r, seed, radius)
    found, size = _lowest_over(ball, slopes)
    assert torch.isfinite(size).all()
    for row, bound in zip(slopes[0].numpy(), found[0].tolist(), strict=True):
        least = exact(ball, row)
        assert bound <= least + 1e-7
        # in l_2 two steps towards the multiplier leave little
        assert bound >= least - (1e-7 if r != 2 else 0.1 * min(radius, 3.0))


@pytest.mark.parametrize("r", NORMS)
def test_no_point_of_the_ball_in_the_box_is_lower(r):
    for radius in (0.1, 0.7):
        ball, slopes = ball_in_box(r, 0, radius, size=20)
        found, _ = _lowest_over(ball, slopes)
        points = ball.draw(2000, torch.Generator().manual_seed(1))
        assert ((points @ slopes[0].T).amin(0) >= found[0] - 1e-12).all()


def margins(model: nn.Sequential, radius: float, r: float, steps: int) -> tuple[torch.Tensor, Ball, torch.Tensor]:
    nodes = graph_of(model, (6,))
    x = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ball = Ball(x, torch.full((5,), radius).double(), r, Interval(torch.zeros_like(x), torch.ones_like(x)))
    with torch.no_grad():
        labels = model(x).argmax(1)
    return margin_bounds(nodes, ball, labels, 4, steps=steps), ball, labels


@pytest.mark.parametrize("r", NORMS)
def test_better_slopes_raise_bounds_and_keep_them_sound(r):
    model = dense((6, 16, 16, 4), nn.ReLU(), 0)
    radius = {1.0: 0.5, 2.0: 0.3, math.inf: 0.15}[r]
    plain, ball, labels = margins(model, radius, r, 0)
    raised, *_ = margins(model, radius, r, 20)
    assert (raised >= plain).all()
    assert (raised[plain < 0] > plain[plain < 0] + 1e-3).double().mean() > 0.5
    generator = torch.Generator().manual_seed(0)
    for row in range(5):
        points = ball.rows(torch.arange(5) == row).draw(2000, generator)
        with torch.no_grad():
            logits = model(points)
        own = logits[:, labels[row]]
        others = logits[:, [k for k in range(4) if k != labels[row]]]
        assert ((own[:, None] - others).amin(0) >= raised[row] - 1e-9).all()


def test_radii_are_longer_with_better_slopes(monkeypatch):
    model = dense((6, 24, 24, 24, 4), nn.ReLU(), 1)
    classifier = make_classifier(model.float(), (6,), 4)
    x = np.random.default_rng(0).uniform(size=(12, 6)).astype(np.float32)
    y = classifier.predict(x).argmax(1)
    longer = certified_radii(classifier, x, y)
    monkeypatch.setattr(certified, "SLOPE_STEPS", 0)
    plain = certified_radii(classifier, x, y)
    assert longer.sum() > 1.02 * plain.sum()
    assert (longer > 0.97 * plain).all()  # each search ends within 1 % of its own bounds


@pytest.mark.parametrize("r", NORMS)
def test_time_that_is_over_leaves_shorter_radii_and_says_so(r):
    model = dense((6, 24, 24, 4), nn.ReLU(), 0)
    classifier = make_classifier(model.float(), (6,), 4)
    x = np.random.default_rng(0).uniform(size=(8, 6)).astype(np.float32)
    y = classifier.predict(x).argmax(1)
    whole = certified_radii(classifier, x, y, r, seconds=1e6)
    assert np.array_equal(whole, certified_radii(classifier, x, y, r))
    with pytest.warns(UserWarning, match="seconds is 0, which was not enough for 8 of 8 samples; their radii hold"):
        none = certified_radii(classifier, x, y, r, seconds=0)
    assert (none > 0).all()  # the margin over its Lipschitz constant is there at once
    assert (none < whole).all()
    with pytest.warns(UserWarning, match="not enough"):
        assert certified_accuracy(classifier, x, y, 2, r, 0.01, seconds=0) <= 1.0


def test_time_is_looked_at_inside_of_a_bound(monkeypatch):
    model = dense((6, 24, 24, 4), nn.ReLU(), 0)
    nodes = graph_of(model, (6,))
    x = torch.full((1, 6), 0.5, dtype=torch.float64)
    ball = Ball(x, torch.tensor([0.2]).double(), math.inf, Interval(torch.zeros_like(x), torch.ones_like(x)))
    asked = []
    found = crown.lowest
    monkeypatch.setattr(crown, "lowest", lambda *given: asked.append(1) or found(*given))
    late = margin_bounds(nodes, ball, torch.tensor([0]), 4, deadline=time.monotonic() - 1)
    assert len(asked) == 1  # that of the margins
    in_time = margin_bounds(nodes, ball, torch.tensor([0]), 4)
    assert len(asked) > 3
    assert (in_time > late).all()


def test_seconds_are_checked():
    classifier = make_classifier(nn.Linear(4, 3), (4,), 3)
    for call in (certified_radii, certified_accuracy):
        with pytest.raises(ValueError, match="seconds is -1"):
            call(classifier, np.zeros((1, 4), np.float32), [0], seconds=-1)
