# SPDX-License-Identifier: MIT
"""Geometry: Hoelder's equality, unit length, projection inside, on and outside of the ball."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from art_wdro._threat import geometry
from art_wdro._threat.norms import dual_exponent, power_mean, sample_norms

NORMS = st.sampled_from(geometry.GROUND_NORMS)
ORDERS = st.one_of(st.floats(1.05, 50.0), st.just(math.inf))
VALUES = st.floats(-100, 100, width=32).filter(lambda v: v == 0 or abs(v) > 1e-6)
ARRAYS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=VALUES)


def norms(array: np.ndarray, r: float) -> np.ndarray:
    return np.linalg.norm(array.reshape(len(array), -1).astype(np.float64), ord=r, axis=1)


def distance(array: np.ndarray, p: float, r: float) -> float:
    sizes = norms(array, r)
    return sizes.max() if math.isinf(p) else sizes.max() * np.mean((sizes / max(sizes.max(), 1e-300)) ** p) ** (1 / p)


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 4.0, math.inf])
def test_dual_exponents_are_conjugate(exponent):
    dual = dual_exponent(exponent)
    assert 1 / exponent + 1 / dual == pytest.approx(1)
    assert dual_exponent(dual) == pytest.approx(exponent)


@given(ARRAYS, NORMS, ORDERS)
def test_the_mean_of_the_norms_is_the_formula(array, r, p):
    norms = sample_norms(torch.from_numpy(array), r)
    assert power_mean(norms, p).item() == pytest.approx(distance(array, p, r))


@given(ARRAYS, NORMS, ORDERS)
def test_steepest_direction_has_unit_length_and_reaches_upsilon(array, r, p):
    gradient = torch.from_numpy(array).double()
    direction = geometry.steepest_direction(gradient, p, r)
    if not array.any():
        assert not direction.any()
        return
    upsilon = distance(array, dual_exponent(p), dual_exponent(r))
    if not math.isinf(p):  # at p = inf a sample without gradient stays, and the maximum is over the others
        assert distance(direction.numpy(), p, r) == pytest.approx(1, rel=1e-6)
    assert (gradient * direction).sum().item() / len(array) == pytest.approx(upsilon, rel=1e-6)


@given(ARRAYS, ARRAYS, NORMS, ORDERS)
def test_no_direction_of_unit_length_is_steeper(array, other, r, p):
    gradient, other = np.resize(array, (4, 5)).astype(np.float64), np.resize(other, (4, 5)).astype(np.float64)
    length = distance(other, p, r)
    if length == 0:
        return
    best = (gradient * geometry.steepest_direction(torch.from_numpy(gradient), p, r).numpy()).mean(0).sum()
    assert (gradient * other / length).mean(0).sum() <= best * (1 + 1e-6) + 1e-12


def test_samples_without_gradient_stay():
    gradient = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    for p in (1.5, 2.0, math.inf):
        for r in geometry.GROUND_NORMS:
            direction = geometry.steepest_direction(gradient, p, r)
            assert not direction[0].any()
            assert direction[1].any()


def test_large_orders_neither_overflow_nor_underflow():
    tiny = torch.full((3,), 1e-200, dtype=torch.float64)
    assert power_mean(tiny, 101.0).item() == pytest.approx(1e-200, abs=0)
    assert power_mean(tiny * 1e300, 501.0).item() == pytest.approx(1e100)


@settings(max_examples=200)
@example(np.array([[0.0, 65.0]], dtype=np.float32), 1.0, math.inf, 1e-9)
@example(np.array([[0.0] * 4] * 3 + [[1.0, 1.0, 98.0, 100.0]], dtype=np.float32), 1.0, 48.0, 191.0)
@given(ARRAYS, NORMS, ORDERS, st.floats(0, 300))
def test_projection_is_feasible_idempotent_and_leaves_feasible_points(array, r, p, eps):
    delta = torch.from_numpy(array)
    projected = geometry.project(delta, eps, p, r)
    assert distance(projected.numpy(), p, r) <= eps * (1 + 1e-6) + 1e-30
    # l_1 takes the same from all coordinates, so that a small one bears the rounding of the largest
    atol = max(1e-6, 2.0**-23 * np.abs(array).max(initial=0.0))
    torch.testing.assert_close(geometry.project(projected, eps, p, r), projected, rtol=2e-6, atol=atol)
    if distance(array, p, r) < eps * (1 - 1e-6):
        torch.testing.assert_close(projected, delta, rtol=0, atol=0)


@pytest.mark.parametrize("r", geometry.GROUND_NORMS)
def test_projection_on_balls_is_the_nearest_point(r):
    rng = np.random.default_rng(0)
    delta = rng.normal(size=(5, 4))
    radii = 0.6 * norms(delta, r)
    projected = geometry.project_on_balls(torch.from_numpy(delta), torch.from_numpy(radii), r).numpy()
    others = rng.normal(size=(2000, 5, 4))
    sizes = np.linalg.norm(others, ord=r, axis=-1, keepdims=True)
    others = np.concatenate([others / sizes * radii[:, None] * rng.uniform(0.7, 1, sizes.shape), projected[None]])
    nearest = np.linalg.norm(others - delta, axis=-1).min(axis=0)
    np.testing.assert_allclose(np.linalg.norm(projected - delta, axis=-1), nearest)
    np.testing.assert_allclose(norms(projected, r), radii)


def test_l1_direction_takes_the_largest_coordinate_that_can_move():
    gradient = torch.tensor([[3.0, -2.0, 1.0], [3.0, -2.0, 1.0], [1.0, 0.0, 0.0]])
    movable = torch.tensor([[True, True, True], [False, True, True], [False, True, True]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(geometry.sample_direction(gradient, 1.0, movable), expected)


def test_a_coordinate_within_float_noise_of_its_bound_is_full():
    lower, upper = torch.tensor(0.0), torch.tensor(1.0)
    x = torch.tensor([[1 - 2.0**-24, 0.999, 2.0**-24, 0.001]])
    for sign in (1.0, -1.0):
        movable = geometry.movable_coordinates(x, torch.full_like(x, sign), lower, upper)
        assert movable.tolist() == [[sign < 0, True, sign > 0, True]]


@given(ARRAYS, st.floats(2.0**-30, 1.0, width=32))
def test_displace_never_overshoots(array, scale):
    x = torch.from_numpy(array)
    delta = torch.flip(x, (1,)) * scale
    moved = geometry.displace(x, delta)
    assert ((moved.double() - x.double()).abs() <= delta.double().abs() * (1 + 1e-7)).all()
    torch.testing.assert_close(moved, x + delta)
