# SPDX-License-Identifier: MIT
"""The search for least distances on small random networks, where a fine grid tells the truth, and its promises."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from art_wdro import functional
from art_wdro._solvers.margins import CERTAIN, LEADING, Margins
from tests.conftest import NORMS, digits, on_device

pytestmark = pytest.mark.slow

NETWORKS, POINTS, UNITS, CLASSES, APART = 24, 25, 12, 5, 10.0


class Networks(NamedTuple):
    """Many small networks as one: the third coordinate of an input, which a mask holds still, says which it is for."""

    layers: list[tuple[Tensor, Tensor]]
    dims: list[int]

    def __call__(self, x: Tensor) -> Tensor:
        which = (x[:, 2] / APART).round().long()
        values = torch.cat([x[:, :2], x.new_zeros(len(x), UNITS - 2)], 1)
        for number, (weight, bias) in enumerate(self.layers):
            values = torch.einsum("noi,ni->no", weight[which], values) + bias[which]
            values = values.relu() if number < len(self.layers) - 1 else values
        return values


class Problem(NamedTuple):
    networks: Networks
    x: Tensor
    labels: Tensor
    mask: Tensor
    truth: dict[float, Tensor]


def random_networks(seed: int = 0) -> Networks:
    """ReLU networks of 1 to 3 hidden layers of 2 to 12 units, with 2 to 5 classes and 1 or 2 inputs."""
    rng = np.random.default_rng(seed)
    layers = [(torch.zeros(NETWORKS, UNITS, UNITS), torch.zeros(NETWORKS, UNITS)) for _ in range(3)]
    layers.append((torch.zeros(NETWORKS, CLASSES, UNITS), torch.full((NETWORKS, CLASSES), -1e3)))
    dims = rng.integers(1, 3, NETWORKS).tolist()
    for k, dim in enumerate(dims):
        sizes = [dim, *rng.integers(2, UNITS + 1, rng.integers(1, 4)).tolist()]
        for number in range(3):
            weight, bias = layers[number]
            if number + 1 < len(sizes):
                before, after = sizes[number : number + 2]
                weight[k, :after, :before] = torch.from_numpy(rng.normal(size=(after, before)) * math.sqrt(2 / before))
                bias[k, :after] = torch.from_numpy(rng.normal(size=after) / 2)
            else:
                weight[k] = torch.eye(UNITS)
        classes = rng.integers(2, CLASSES + 1)
        weight, bias = layers[3]
        weight[k, :classes, : sizes[-1]] = torch.from_numpy(
            rng.normal(size=(classes, sizes[-1])) * math.sqrt(2 / sizes[-1])
        )
        bias[k, :classes] = torch.from_numpy(rng.normal(size=classes) / 2)
    return Networks(layers, dims)


def true_distances(networks: Networks, x: Tensor, label: Tensor, dim: int) -> dict[float, float]:
    """Least distances to another class by grids that become finer towards the point, and then around the best."""
    axis = torch.linspace(-1, 1, 41 if dim == 2 else 401)
    grid = torch.zeros(len(axis) ** dim, 3)
    grid[:, :dim] = torch.cartesian_prod(*[axis] * dim).view(-1, dim)
    points = torch.cat([x + grid * 2.0**-scale for scale in range(8)])

    def of_another_class(points: Tensor) -> Tensor:
        points = torch.cat([points[:, :2].clamp(0, 1), x[2].expand(len(points), 1)], 1)
        logits = networks(points)
        own = logits[:, label]
        other = logits.index_fill(1, label, -math.inf).amax(1)
        return points[other - own > CERTAIN * torch.maximum(own.abs(), other.abs())]

    beyond = of_another_class(points)
    found = {}
    for r in NORMS:
        near = beyond
        for scale in range(5 if len(near) > 0 else 0):
            norms = torch.linalg.vector_norm(near - x, ord=r, dim=1)
            best = near[norms.topk(min(4, len(near)), largest=False).indices]
            size = 4 * norms.min() / len(axis) / 3**scale
            near = torch.cat([best, of_another_class((best[:, None] + size * grid[::4]).view(-1, 3))])
        found[r] = torch.linalg.vector_norm((near - x).double(), ord=r, dim=1).min().item() if len(near) else math.inf
    return found


@functools.cache
def problem() -> Problem:
    networks = random_networks()
    rng = np.random.default_rng(1)
    x = torch.zeros(NETWORKS, POINTS, 3)
    mask = torch.zeros(NETWORKS, POINTS, 3, dtype=torch.bool)
    for k, dim in enumerate(networks.dims):
        x[k, :, :dim] = torch.from_numpy(rng.uniform(size=(POINTS, dim)))
        x[k, :, 2], mask[k, :, :dim] = APART * k, True
    x, mask = x.flatten(0, 1), mask.flatten(0, 1)
    labels = networks(x).argmax(1)
    rows = [true_distances(networks, x[i], labels[i], networks.dims[i // POINTS]) for i in range(len(x))]
    placed = Networks([(on_device(weight), on_device(bias)) for weight, bias in networks.layers], networks.dims)
    truth = {r: on_device(torch.tensor([row[r] for row in rows])) for r in NORMS}
    return Problem(placed, on_device(x), on_device(labels), on_device(mask), truth)


def search(given: Problem, r: float, rows: slice | Tensor = slice(None), **settings) -> functional.least_distances:
    box = np.zeros(3, np.float32), np.array([1, 1, APART * NETWORKS], np.float32)
    settings = {"max_iter": 300, "batch_size": 4096} | settings
    x, labels, mask = given.x[rows], given.labels[rows], given.mask[rows]
    return functional.least_distances(given.networks, x, labels, r=r, box=box, mask=mask, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("r", NORMS)
def test_what_is_near_is_found(r):
    given = problem()
    distances, points, gradients = search(given, r)
    exists = torch.isfinite(given.truth[r])
    count = exists.sum().item()
    assert count > 200
    ratio = distances / given.truth[r]
    assert (exists & torch.isinf(distances)).sum() < 0.005 * count
    assert (exists & torch.isfinite(distances) & (ratio > 1.1)).sum() < 0.005 * count
    assert gradients <= 300 * len(given.x)
    found = torch.isfinite(distances)
    assert (given.networks(points).argmax(1)[found] != given.labels[found]).all()
    assert torch.equal(points[~given.mask], given.x[~given.mask])
    assert ((points[:, :2] >= 0) & (points[:, :2] <= 1)).all()


@pytest.mark.parametrize("r", NORMS)
def test_no_sample_depends_on_its_batch_nor_on_chance(r):
    given = problem()
    whole, again = (search(given, r, max_iter=110).distances for _ in range(2))
    assert torch.equal(whole, again)
    cut = search(given, r, max_iter=110, batch_size=350).distances
    assert torch.isclose(cut, whole, rtol=1e-3).double().mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("r", NORMS)
def test_more_gradients_never_give_a_longer_distance(r, digits_classifier):
    given = problem()
    model = digits_classifier.model.eval()
    x, y = (on_device(part[:20]) for part in digits()[1])
    cases = [lambda n: search(given, r, max_iter=n), lambda n: functional.least_distances(model, x, y, r=r, max_iter=n)]
    for case in cases:
        before = torch.tensor(torch.inf)
        for max_iter in (1, 5, 19, 20, 24, 33, 51, 100, 130, 175):
            found = case(max_iter)
            assert (found.distances <= before).all()
            assert found.gradients <= max_iter * len(found.distances)
            before = found.distances


def flat(x: Tensor) -> Tensor:
    """Two classes that meet at 0.5, in steps without a slope."""
    step = (x[:, :1] > 0.5).float() + 0 * x[:, :1]
    return torch.cat([1 - step, step], 1)


def test_flat_regions_are_left_by_way_of_other_samples():
    x = torch.tensor([[0.1], [0.2], [0.9]])
    labels = torch.tensor([0, 0, 1])
    # with a single gradient there is no run from elsewhere: the other sample itself is what was found
    few = functional.least_distances(flat, x, labels, max_iter=1)
    np.testing.assert_allclose(few.distances, [0.8, 0.7, 0.7], rtol=1e-6)
    many = functional.least_distances(flat, x, labels)
    np.testing.assert_allclose(many.distances, [0.4, 0.3, 0.4], rtol=0.02)
    # a mask that holds all still lets no sample become another one
    held = functional.least_distances(flat, x, labels, mask=torch.zeros(3, 1, dtype=torch.bool))
    assert torch.isinf(held.distances).all()


def test_flat_regions_without_other_samples_are_left_by_random_starts():
    found = functional.least_distances(flat, torch.tensor([[0.1], [0.3]]), torch.tensor([0, 0]))
    np.testing.assert_allclose(found.distances, [0.4, 0.2], rtol=0.02)


def test_a_margin_that_rounding_could_undo_is_no_other_class():
    def barely(x: Tensor) -> Tensor:
        other = 1 + (x - 0.5).clamp(max=0.0) + CERTAIN / 2 * (x > 0.5) + (x - 0.8).clamp(min=0.0)
        return torch.cat([torch.ones_like(x), other], 1)

    found = functional.least_distances(barely, torch.tensor([[0.2]]), torch.tensor([0]))
    assert barely(torch.tensor([[0.7]])).argmax(1) == 1
    assert found.distances.item() == pytest.approx(0.6, rel=1e-3)


def test_each_class_is_searched_in_its_turn():
    """The nearest to first order saturate; the last one that is worthwhile is reached."""

    def logits_of(x: Tensor) -> Tensor:
        dead = [0.9 * torch.tanh(8 * x[:, k : k + 1]) - 1 for k in range(3)]
        reached = 2 * x[:, 3:4] - 1 - 4 * x[:, :3].abs().sum(1, keepdim=True)
        return torch.cat([torch.zeros_like(reached), *dead, reached], 1)

    found = functional.least_distances(logits_of, torch.zeros(1, 4), torch.tensor([0]), r=2.0, box=None, max_iter=300)
    assert found.distances.item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(("max_iter", "fruitless"), [(299, 2), (300, 2), (350, 4), (600, 14)])
def test_gradients_allowed_buy_runs_from_elsewhere(max_iter, fruitless):
    """Two classes on a line need 18 + 1 + 16 gradients; what comes after brings nothing."""
    x = torch.tensor([[0.2]])
    found = functional.least_distances(lambda x: torch.cat([-x, x - 1], 1), x, torch.tensor([0]), max_iter=max_iter)
    assert found.gradients == 18 + 1 + 16 + 25 * fruitless


@pytest.mark.parametrize(
    ("max_iter", "spent"), [(1, 1), (2, 2), (10, 10), (20, 20), (29, 20), (30, 30), (35, 35), (45, 45), (69, 45)]
)
def test_no_more_gradients_are_spent_than_allowed(max_iter, spent):
    """Ten classes: two are compared before 18 steps, nine before 16, and a run more takes 25."""
    torch.manual_seed(0)
    network, x = torch.nn.Linear(30, 10), torch.rand(5, 30)
    found = functional.least_distances(network, x, network(x).argmax(1), box=None, max_iter=max_iter)
    assert found.gradients == 5 * spent


def test_the_leading_class_is_the_largest_of_the_others():
    box = torch.zeros(()), torch.ones(())
    margins = Margins(lambda x: x, torch.rand(3, 4), torch.tensor([0, 3, 1]), 2.0, box, None)
    logits = torch.tensor([[9.0, 1.0, 3.0, 2.0], [4.0, 6.0, 5.0, 7.0], [8.0, 0.0, 1.0, 2.0]])
    target = torch.tensor([LEADING, LEADING, 2])
    assert margins.margins_to(target, logits).tolist() == [3.0 - 9.0, 6.0 - 7.0, 1.0 - 0.0]


def test_a_class_beyond_what_is_worthwhile_costs_nothing():
    def logits_of(far: float):
        return lambda x: torch.cat([0 * x, x - 0.1, -x - 0.1 * far], 1)

    spent = []
    for far in (1.6, 2.4):
        found = functional.least_distances(logits_of(far), torch.zeros(1, 1), torch.tensor([0]), box=(-1, 1))
        assert found.distances.item() == pytest.approx(0.1, rel=1e-2)
        spent.append(found.gradients)
    assert spent[0] == spent[1] + 50


@pytest.mark.parametrize("before", [1, 2])
def test_a_class_that_is_nearer_than_to_first_order_is_found_in_its_turn(before):
    """Classes are reached along axes of their own: the last one bends towards the sample, the others are straight."""
    estimates = [*[0.1, 0.12][:before], 0.18]

    def logits_of(x: Tensor) -> Tensor:
        gains = [*x[:, :before].unbind(1), x[:, before] + 100 * x[:, before] ** 2]
        aside = 10 * x[:, before + 1 :].abs().sum(1)  # a random point reaches the straight classes alone
        others = [gain - away for gain, away in zip(gains, estimates, strict=True)]
        return torch.stack([torch.zeros_like(aside), *others[:-1], others[-1] - aside], 1)

    # the runs up to the last class, and no gradient for one from elsewhere
    spent = 2 + 18 + (before + 1) + 16 + 50 * before + 50 * (before > 1)
    x = torch.zeros(1, 1000)
    found = functional.least_distances(logits_of, x, torch.tensor([0]), r=2.0, box=None, max_iter=spent)
    nearest = (math.sqrt(1 + 400 * 0.18) - 1) / 200
    assert found.distances.item() == pytest.approx(nearest, rel=0.02)
    assert found.points.argmax(1).item() == before
    assert found.gradients == spent
