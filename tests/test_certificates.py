# SPDX-License-Identifier: MIT
"""Certificates against enumeration of all cells, closed forms of linear models, samples, and every attack."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from art.defences.preprocessor import FeatureSqueezing
from art.exceptions import EstimatorError
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn
from torch.nn import functional as F

from art_wdro import (
    WassersteinDistributionalAttack,
    WassersteinKnapsack,
    WassersteinPGD,
    adversarial_accuracy,
    certified_accuracy,
    certified_radii,
    evaluate,
    knapsack_accuracy,
    lipschitz_certificate,
    loss_certificate,
    sensitivity,
    wasserstein_distance,
)
from art_wdro._bounds import branch_and_bound
from art_wdro._bounds.branch_and_bound import largest_jacobian
from art_wdro._bounds.cells import Cell
from art_wdro._bounds.certified import PairConstants, certain_radii, margin_bounds, worst_mean
from art_wdro._bounds.crown import _lines, output_bounds
from art_wdro._bounds.intervals import Ball, Interval
from art_wdro._bounds.jacobians import jacobians, propagate
from art_wdro._bounds.operator_norms import JacobianNorms, lipschitz_constants, operator_norms
from art_wdro._bounds.tracing import graph_of
from art_wdro._threat.norms import dual_exponent
from art_wdro.certificates._loss import _rings
from tests.conftest import BUDGETS, NORMS, digits, linear_problem, make_classifier, on_device, on_host

ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.2),
    "hardtanh": nn.Hardtanh(-0.5, 0.5),
    "relu6": nn.ReLU6(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "tanh": nn.Tanh(),
    "softplus": nn.Softplus(2.0),
    "sigmoid": nn.Sigmoid(),
}
PIECES = {"relu": [(0.0, None), (1.0, None)], "leaky": [(0.2, None), (1.0, None)]}


def dense(sizes: tuple[int, ...], activation: nn.Module, seed: int, gain: float = 2.0) -> nn.Sequential:
    """A stack of linear layers; the gain makes its cells small."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), activation]
    model = nn.Sequential(*layers[:-1]).double()
    for layer in model[::2]:
        layer.weight.data *= gain
    return model


class Residual(nn.Module):
    """Convolutions with a batch norm, a residual sum, an average pool, constants, functions and methods."""

    def __init__(self, activation: nn.Module, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding="same", bias=False)
        self.norm, self.pool, self.last = nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Linear(12, 4)
        self.activation, self.dropout = activation, nn.Dropout(0.5)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - 0.3) / 0.5
        x = self.activation(self.norm(self.first(x)))
        x = x + self.second(self.activation(x))
        x = F.leaky_relu(self.pool(x), 0.3).view(x.shape[0], -1)
        return self.last(self.dropout(torch.relu(x))) * 2.0


def class_pairs(classes: int) -> torch.Tensor:
    """The differences of every two logits as their combinations, (K (K - 1) / 2, K)."""
    first, second = torch.triu_indices(classes, classes, 1)
    return torch.eye(classes, dtype=torch.float64)[first] - torch.eye(classes, dtype=torch.float64)[second]


def unit_box(*shape: int) -> Interval:
    return Interval(torch.zeros(1, *shape, dtype=torch.float64), torch.ones(1, *shape, dtype=torch.float64))


def whole(box: Interval, r: float) -> Ball:
    half = (box.upper - box.lower) / 2
    radius = torch.linalg.vector_norm(half.flatten(1), r, dim=1) * (1 + 1e-9)
    return Ball(box.lower + half, radius, r, box)


def enumerated(
    model: nn.Sequential, activation: str, lower: float, upper: float, rows: torch.Tensor, r: float
) -> float:
    """The largest dual norm over all cells of the box [lower, upper]^d that have an inside, one programme a pattern."""
    layers = list(model[::2])
    widths = [layer.out_features for layer in layers[:-1]]
    slopes = [slope for slope, _ in PIECES[activation]]
    features, found = layers[0].in_features, 0.0
    for pattern in itertools.product((0, 1), repeat=sum(widths)):
        pieces, limits, sizes = [], [], []
        weight, offset = torch.eye(features, dtype=torch.float64), torch.zeros(features, dtype=torch.float64)
        rest = list(pattern)
        for layer in layers[:-1]:
            weight, offset = layer.weight @ weight, layer.weight @ offset + layer.bias
            active = torch.tensor([rest.pop(0) for _ in range(layer.out_features)], dtype=torch.float64)
            sign = 2 * active - 1
            pieces.append(-sign[:, None] * weight)
            limits.append(sign * offset)
            sizes.append(weight.norm(dim=1))
            slope = torch.tensor(slopes, dtype=torch.float64)[active.long()]
            weight, offset = slope[:, None] * weight, slope * offset
        matrix = torch.cat([torch.cat(pieces), torch.cat(sizes)[:, None]], 1).detach().numpy()
        bounds = [(lower, upper)] * features + [(None, 1.0)]
        inside = linprog([0.0] * features + [-1.0], matrix, torch.cat(limits).detach().numpy(), bounds=bounds)
        if inside.x is not None and inside.x[-1] > 1e-9:
            jacobian = rows @ layers[-1].weight @ weight
            found = max(found, torch.linalg.vector_norm(jacobian, dual_exponent(r), dim=1).max().item())
    return found


@pytest.mark.parametrize("activation", list(PIECES))
@pytest.mark.parametrize("sizes", [(3, 4, 3), (2, 3, 3, 3), (2, 7, 2)])
def test_the_search_finds_what_the_enumeration_of_all_cells_finds(sizes, activation):
    for seed in range(2):
        model = dense(sizes, ACTIVATIONS[activation], seed)
        rows = class_pairs(sizes[-1])
        nodes = graph_of(model, sizes[:1])
        for lower, upper in ((0.0, 1.0), (0.4, 0.6)):
            box = unit_box(sizes[0])
            part = Interval(box.lower + lower, box.lower + upper)
            for r in NORMS:
                bounds = largest_jacobian(nodes, whole(part, r), sizes[-1])
                assert bounds.exact
                expected = enumerated(model, activation, lower, upper, rows, r)
                assert bounds.upper == pytest.approx(expected, rel=1e-7)
                assert bounds.lower == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("r", [1.0, 2.0])
def test_a_round_ball_in_the_plane_meets_the_cells_that_a_fine_grid_meets(r):
    grid = torch.linspace(-0.3, 0.3, 801, dtype=torch.float64)
    for seed in range(6):
        model = dense((2, 5, 4, 3), nn.ReLU(), seed, gain=3.0)
        nodes, rows = graph_of(model, (2,)), class_pairs(3)
        ball = Ball(torch.full((1, 2), 0.5, dtype=torch.float64), torch.tensor([0.3]).double(), r, unit_box(2))
        points = (0.5 + torch.cartesian_prod(grid, grid)).requires_grad_()
        inside = ball.outside(points.detach()) <= 0
        largest = 0.0
        for row in rows:
            (gradient,) = torch.autograd.grad((model(points) @ row).sum(), points)
            norms = torch.linalg.vector_norm(gradient[inside], dual_exponent(r), dim=1)
            largest = max(largest, norms.max().item())
        bounds = largest_jacobian(nodes, ball, 3)
        assert bounds.exact
        assert bounds.upper == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize(("norm", "farthest"), [(1.0, 0.3), (2.0, 0.3 * math.sqrt(2))])
@pytest.mark.parametrize("share", [0.97, 1.03])
def test_a_cell_is_met_where_the_ball_reaches_it(norm, farthest, share):
    """A half-plane that begins at a share of the way from the centre to where the sums x_1 + x_2 of the ball end."""
    nodes = graph_of(nn.Sequential(linear_layer([[1.0, 1.0]], [-1.0 - share * farthest]), nn.ReLU()), (2,))
    ends = torch.tensor([0.0]).double(), torch.tensor([math.inf]).double()
    ball = Ball(torch.full((1, 2), 0.5).double(), torch.tensor([0.3]).double(), norm, unit_box(2))
    room, point = Cell(nodes, {len(nodes) - 1: ends}, torch.Size([2])).deepest(ball, 10.0)
    assert (room > 0) == (share < 1)
    assert share > 1 or (ball.outside(point) <= 1e-9 and point.sum() >= 1 + share * farthest)


def test_the_upper_bound_holds_where_no_steep_input_is_known(monkeypatch):
    """Without the random search, around a slope of 1 at 0.7; and where no programme says that the cells are met."""
    monkeypatch.setattr(branch_and_bound.LowerBound, "climb", lambda self: None)
    ball = whole(unit_box(1), math.inf)
    smooth = nn.Sequential(linear_layer([[4.0]], [-2.8]), nn.Tanh(), linear_layer([[0.25], [0.0]]))
    bounds = largest_jacobian(graph_of(smooth, (1,)), ball, 2, branches=20, seconds=math.inf)
    assert 0.9 < bounds.lower < 1.0 <= bounds.upper < 1.05
    assert not bounds.exact

    monkeypatch.setattr(branch_and_bound.Cell, "deepest", lambda self, ball, seconds: (0.0, ball.centre[0]))
    steep = nn.Sequential(
        linear_layer([[1.0], [1.0]], [-0.7, -0.71]), nn.ReLU(), linear_layer([[1.0, -1.0], [0.0, 0.0]])
    )
    bounds = largest_jacobian(graph_of(steep, (1,)), ball, 2, seconds=math.inf)
    assert bounds.lower == 0.0
    assert bounds.upper == pytest.approx(1.0)


@pytest.mark.slow
def test_no_sampled_gradient_exceeds_the_upper_bound_on_thousands_of_networks():
    """Some with a budget of few branches, so that unfinished searches are among them."""
    generator = torch.Generator().manual_seed(0)
    names, finished = list(ACTIVATIONS), 0
    for seed in range(2000):
        sizes = [(2, 4, 3), (3, 5, 4, 3), (6, 8, 4), (4, 3, 3, 3, 3)][seed % 4]
        model = dense(sizes, ACTIVATIONS[names[seed % len(names)]], seed, gain=1 + seed % 3)
        r, rows = NORMS[seed % len(NORMS)], class_pairs(sizes[-1])
        radius = (0.01, 0.1, 0.3, 2.0)[(seed // 4) % 4]
        centre = torch.rand(1, sizes[0], dtype=torch.float64, generator=generator)
        ball = Ball(centre, torch.tensor([radius], dtype=torch.float64), r, unit_box(sizes[0]))
        nodes = graph_of(model, sizes[:1])
        bounds = largest_jacobian(nodes, ball, sizes[-1], branches=(1, 20)[seed % 2])
        x = ball.draw(200, generator).requires_grad_()
        logits = model(x)
        gradients = torch.stack([torch.autograd.grad(z.sum(), x, retain_graph=True)[0] for z in logits.unbind(1)], 1)
        norms = torch.linalg.vector_norm(rows @ gradients, dual_exponent(r), dim=2)
        assert norms.max().item() <= bounds.upper
        assert bounds.lower <= bounds.upper
        product = JacobianNorms(nodes, propagate(nodes, ball.hull()), r).product(rows).max().item()
        assert bounds.upper <= product * (1 + 1e-9)
        finished += bounds.exact
    assert 200 < finished < 1900  # both kinds were there


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_bounds_of_values_jacobians_and_outputs_hold_on_samples(activation):
    for seed in range(8):
        model = Residual(ACTIVATIONS[activation], seed).double().eval()
        nodes = graph_of(model, (1, 4, 4))
        generator = torch.Generator().manual_seed(seed)
        centre = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=generator)
        rows = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
        radius = torch.full((2,), (1e-9, 0.01, 0.1, 0.5)[seed % 4], dtype=torch.float64)
        box = Interval(torch.zeros_like(centre), torch.ones_like(centre))
        for r in NORMS:
            ball = Ball(centre, radius, r, box)
            region = propagate(nodes, ball.hull())
            jacobian = jacobians(nodes, region, rows[:, 0])
            norms = JacobianNorms(nodes, propagate(nodes, whole(unit_box(1, 4, 4), r).hull()), r).bound(jacobian)
            lowest = output_bounds(nodes, ball, lambda part, rows=rows: rows[:, part], 3)
            for place in range(2):
                single = Ball(centre[place : place + 1], radius[:1], r, unit_box(1, 4, 4))
                x = single.draw(100, generator).requires_grad_()
                logits = model(x)
                (gradient,) = torch.autograd.grad((logits @ rows[place, 0]).sum(), x)
                for values, bounds in ((gradient, jacobian.bounds), (logits, region.values[-1])):
                    assert (values >= bounds.lower[place]).all()
                    assert (values <= bounds.upper[place]).all()
                own = torch.linalg.vector_norm(gradient.flatten(1), dual_exponent(r), dim=1)
                assert own.max() <= norms[place]
                assert ((logits @ rows[place].T).amin(0) >= lowest[place]).all()


@pytest.mark.parametrize(("norm", "lowest"), [(1.0, 0.6 - 0.3), (2.0, 0.5 - math.sqrt(0.08)), (math.inf, 0.2)])
def test_the_bound_of_a_sum_is_the_least_over_the_ball_in_the_box(norm, lowest):
    """Around (0.1, 0.5) with the radius 0.3: the box ends the first step at 0.1, and the second has what is left."""
    centre, radius = torch.tensor([[0.1, 0.5]]).double(), torch.tensor([0.3]).double()
    nodes = graph_of(linear_layer([[1.0, 1.0]]), (2,))
    ball = Ball(centre, radius, norm, unit_box(2))
    found = output_bounds(nodes, ball, lambda part: torch.ones(1, 1, 1).double()[:, part], 1)
    assert found.item() == pytest.approx(lowest, abs=1e-6)


@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "softplus", "sigmoid"])
def test_lines_around_an_activation_lie_where_those_of_extreme_slopes_cross(name):
    operation = graph_of(nn.Sequential(nn.Identity(), ACTIVATIONS[name]), (1,))[-1].operation
    ends = Interval(*torch.tensor([[-2.0, -0.5, 1.0], [-1.0, 3.0, 1.5]], dtype=torch.float64))
    (first, last), (least, most) = map(operation.apply, ends), operation.slopes(*ends)
    lines = _lines(operation, ends)
    x = ends.lower + (ends.upper - ends.lower) * torch.linspace(0, 1, 10001, dtype=torch.float64)[:, None]
    above = torch.minimum(first + most * (x - ends.lower), last - least * (ends.upper - x))
    below = torch.maximum(first + least * (x - ends.lower), last - most * (ends.upper - x))
    torch.testing.assert_close(lines.upper_offset, (above - lines.upper_slope * x).amax(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(lines.lower_offset, (below - lines.lower_slope * x).amin(0), rtol=0, atol=1e-3)


@given(st.integers(0, 10**6), st.sampled_from(list(ACTIVATIONS)), st.sampled_from([1e-6, 1.0, 30.0, 1e6]))
def test_slopes_and_values_of_activations_stay_inside_their_bounds(seed, name, scale):
    generator = torch.Generator().manual_seed(seed)
    ends = (scale * torch.randn(2, 50, dtype=torch.float64, generator=generator)).sort(0).values
    nodes = graph_of(nn.Sequential(nn.Identity(), ACTIVATIONS[name]), (50,))
    operation = nodes[-1].operation
    x = (ends[0] + (ends[1] - ends[0]) * torch.rand(100, 50, dtype=torch.float64, generator=generator)).requires_grad_()
    y = ACTIVATIONS[name](x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    region = propagate(nodes, Interval(ends[:1], ends[1:]))
    slopes = region.slopes[len(nodes) - 1]
    cut = 3e-9 if name == "softplus" else 0.0  # torch cuts its tail off
    assert torch.allclose(operation.slope(x.detach()), slope, atol=1e-12 + cut)
    assert ((slope >= slopes.lower - 1e-12 - cut) & (slope <= slopes.upper + 1e-12 + cut)).all()
    slack = 1e-12 * scale + cut
    assert ((y >= region.values[-1].lower - slack) & (y <= region.values[-1].upper + slack)).all()


@pytest.mark.parametrize(("dense", "spectral"), [(2**25, 5.0), (0, math.sqrt(4 * 7))])
def test_operator_norms_of_a_row(monkeypatch, dense, spectral):
    """The spectral one of a matrix too large for it is bounded by the sums of rows and columns."""
    monkeypatch.setattr("art_wdro._bounds.operator_norms.DENSE", dense)
    (found,) = operator_norms(graph_of(linear_layer([[3.0, -4.0]]), (2,)), [torch.Size([2]), torch.Size([1])]).values()
    assert found == pytest.approx({1.0: 4.0, 2.0: spectral, math.inf: 7.0})


@pytest.mark.parametrize(
    ("function", "expected"),
    [(lambda x, a: x + torch.relu(a(x)), 1.0 + 2.0), (lambda x, a: F.leaky_relu(a(x) - 9.0, -3.0), 3.0 * 2.0)],
)
def test_lipschitz_constants_of_sums_and_of_falling_activations(function, expected):
    nodes = graph_of(Forward(function, linear_layer([[2.0]])), (1,))
    region = propagate(nodes, unit_box(1))
    norms = operator_norms(nodes, [values.lower.shape[1:] for values in region.values])
    for r in NORMS:
        assert lipschitz_constants(nodes, region, r, norms)[-1] == pytest.approx(expected)


def test_a_bound_beyond_float32_is_none():
    bounds = Interval(*(sign * torch.tensor([1e38, 1e39], dtype=torch.float64) for sign in (-1.0, 1.0)))
    assert [bound.tolist() for bound in bounds.within_range()] == [[-1e38, -math.inf], [1e38, math.inf]]


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_has_one_cell(norm):
    classifier, x, _ = linear_problem()
    weight = classifier.model[1].weight.detach().double()
    differences = weight[:, None] - weight[None]
    expected = torch.linalg.vector_norm(differences, dual_exponent(norm), dim=2).max().item()
    assert lipschitz_certificate(classifier, norm=norm) == pytest.approx((expected, expected, True), rel=1e-8)
    local = lipschitz_certificate(classifier, x[:3], radius=[0.1, 0.2, 0.0], norm=norm)
    assert local.exact.all()
    assert local.upper == pytest.approx([expected] * 3, rel=1e-8)


@pytest.mark.parametrize("norm", NORMS)
def test_radii_of_a_linear_model_are_its_distances(norm):
    classifier, x, y = linear_problem()
    weight = classifier.model[1].weight.detach().double()
    logits = classifier.model(on_device(x)).detach().double()
    rows = torch.arange(len(y))
    slopes = torch.linalg.vector_norm(weight[y][:, None] - weight[None], dual_exponent(norm), dim=2)
    ratio = ((logits[rows, y, None] - logits) / slopes).nan_to_num(nan=math.inf)
    expected = on_host(ratio.amin(1).clamp(min=0))  # without a box, which can only help
    radii = certified_radii(classifier, x, y, norm)
    knapsack = WassersteinKnapsack(classifier, p=2, norm=norm, eps=0.1, verbose=False)
    knapsack.generate(x, y)
    assert (radii[::10] == 0).all()
    assert (radii >= 0.99 * expected).all()
    assert (radii <= knapsack.distances_ * (1 + 1e-9)).all()
    capped = certified_radii(classifier, x, y, norm, largest=expected / 2)
    assert capped == pytest.approx(expected / 2, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_radius_ends_where_the_bounds_of_the_margin_cross_zero(seed):
    """Here without Lipschitz constants; found by bisection, which takes three times as many bounds."""
    model = dense((5, 8, 6, 4), nn.ReLU(), seed)
    x = torch.rand(10, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    nodes, labels, largest = graph_of(model, (5,)), model(x).argmax(1), torch.ones(10).double()
    ball = Ball(x, largest, math.inf, Interval(torch.zeros_like(x), torch.ones_like(x)))
    radii = certain_radii(nodes, ball, labels, torch.full((10, 3), math.inf).double(), largest).radii
    low, high = torch.zeros_like(largest), largest
    for _ in range(30):
        middle = (low + high) / 2
        holds = margin_bounds(nodes, ball._replace(radius=middle), labels, 4).amin(1) > 0
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    assert (low > 0).all()
    assert (radii > 0.98 * low).all()  # slopes that are optimised at the end may let them go further


def test_a_sample_that_rounds_to_another_class_has_no_radius():
    """The second logit is larger by 2^-30, which float32 has beside 0 and not beside 1."""
    classifier = make_classifier(linear_layer([[1.0], [1.0]], [0.0, 2.0**-30]), (1,), 2)
    x = np.array([[0.0], [1.0]], np.float32)
    assert classifier.predict(x).argmax(1).tolist() == [1, 0]
    assert certified_radii(classifier, x, [1, 1]).tolist() == [math.inf, 0.0]


@pytest.fixture
def small_digits():
    """A network trained on clean digits, small enough for all bounds."""
    (x, y), (x_test, y_test) = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=optimizer)
    np.random.seed(0)
    classifier.fit(x, y, batch_size=128, nb_epochs=6)
    return classifier, x_test[:60], y_test[:60]


@pytest.mark.parametrize("norm", NORMS)
def test_no_attack_passes_the_certificates(small_digits, norm):
    classifier, x, y = small_digits
    eps = BUDGETS[norm]
    radii = certified_radii(classifier, x, y, norm)
    assert np.median(radii) > 0.1 * eps
    for p in (1.5, 2.0, math.inf):
        certified = certified_accuracy(classifier, x, y, p, norm, eps)
        assert certified == knapsack_accuracy(radii, eps, p)
        threat = {"p": p, "norm": norm, "eps": eps, "verbose": False}
        attacks = [
            WassersteinPGD(classifier, max_iter=20, **threat),
            WassersteinKnapsack(classifier, **threat),
            WassersteinDistributionalAttack(classifier, kappa=1.0 if math.isinf(p) else 4.0, **threat),
        ]
        for attack in attacks:
            assert certified <= adversarial_accuracy(classifier, x, y, attack)
        assert (attacks[1].distances_ >= radii).all()
    assert 0 < certified_accuracy(classifier, x, y, 2, norm, eps / 8) < 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("p", [1.5, 2.0, math.inf])
def test_no_attack_passes_the_loss_certificates(small_digits, norm, p):
    classifier, x, y = small_digits
    rows = torch.arange(len(y))
    lipschitz = lipschitz_certificate(classifier, norm=norm, seconds=0.5)

    def losses(array, loss):
        logits = classifier.model(on_device(array)).detach().double()
        if loss == "ce":
            return F.cross_entropy(logits, on_device(y)).item()
        own = logits[rows, y]
        logits[rows, y] = -math.inf
        return (logits.amax(1) - own).mean().item()

    for loss in ("ce", "margin"):
        before = -math.inf
        for eps in (0.0, BUDGETS[norm] / 4, BUDGETS[norm]):
            found = loss_certificate(classifier, x, y, p, norm, eps, loss, constant=lipschitz.upper)
            assert found.clean == pytest.approx(losses(x, loss), rel=1e-5)
            assert found.by_lipschitz == pytest.approx(found.clean + eps * lipschitz.upper)
            assert found.bound == min(found.by_lipschitz, found.by_radii) >= before
            if eps > 0:
                attack = WassersteinPGD(classifier, p=p, norm=norm, eps=eps, loss="ce", max_iter=20, verbose=False)
                adversarial = attack.generate(x, y)
                assert wasserstein_distance(x, adversarial, p, norm) <= eps * (1 + 1e-6)
                assert found.bound >= losses(adversarial, loss)
            before = found.bound
        assert found.by_radii < found.by_lipschitz
    slope = sensitivity(classifier, x, y, p, norm, "ce")
    assert slope <= lipschitz.upper


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_the_dual_over_rings_is_the_optimum_over_their_masses(p):
    """The primal: mass of every sample at many distances, each with the least bound on the loss there."""
    rng = np.random.default_rng(0)
    radii = np.array([0.1, 0.3, 0.7, 2.0])
    worst, losses, constant = np.sort(rng.uniform(0, 3, (7, 4)), axis=1), rng.uniform(-1, 0, 7), 4.0
    given = tuple(map(torch.from_numpy, (worst, radii, losses)))
    distances = np.linspace(0, 2, 401)
    ring = np.searchsorted(radii, distances).clip(max=3)
    gains = np.minimum(worst[:, ring], losses[:, None] + constant * distances)
    for eps in (0.05, 0.2, 0.6):
        mass = np.kron(np.eye(7), np.ones(401))
        primal = linprog(-gains.ravel() / 7, np.tile(distances**p, 7)[None] / 7, [eps**p], mass, np.ones(7))
        dual = worst_mean(*given, constant, eps, p)
        assert -primal.fun - 1e-9 <= dual <= -primal.fun + 0.01
    whole = worst_mean(*given, constant, 0.3, math.inf)
    assert whole == pytest.approx(np.minimum(worst[:, 1], losses + 0.3 * constant).mean())


def test_preprocessing_batch_norm_and_parametrised_weights_are_part_of_the_network():
    torch.manual_seed(0)
    orthogonal = nn.utils.parametrizations.orthogonal
    spectral = nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(orthogonal(nn.Linear(4, 4)), nn.BatchNorm1d(4), nn.ReLU(), spectral(nn.Linear(4, 3))).eval()
    model[1].running_var.fill_(0.25)
    mean, std = np.full(4, 0.5, np.float32), np.full(4, 0.2, np.float32)
    classifier = make_classifier(model, (4,), 3, preprocessing=(mean, std))
    first, second = (model[place].weight.detach().cpu().double() for place in (0, 3))
    bound = lipschitz_certificate(classifier, norm=2)
    assert bound.exact
    patterns = itertools.product((0.0, 1.0), repeat=4)  # an affine map onto a box of all signs: every cell is met
    jacobians_ = [second @ torch.diag(torch.tensor(d, dtype=torch.float64)) @ first for d in patterns]
    pairs = class_pairs(3)
    scale = 1 / (0.2 * math.sqrt(0.25 + model[1].eps))
    largest = max(torch.linalg.vector_norm(pairs @ j, dim=1).max().item() for j in jacobians_) * scale
    assert bound.upper <= largest * (1 + 1e-6)
    plain = make_classifier(model, (4,), 3, clip_values=(-2.5, 2.5))
    assert lipschitz_certificate(plain, norm=2).upper == pytest.approx(bound.upper * 0.2, rel=1e-5)


def test_the_constants_of_all_pairs_bound_every_search(small_digits):
    classifier, _, _ = small_digits
    for norm in NORMS:
        nodes = graph_of(classifier.model, (1, 8, 8))
        constants = PairConstants(nodes, unit_box(1, 8, 8), 10, norm)
        largest = max(constants.of(label).max().item() for label in range(10))
        found = lipschitz_certificate(classifier, norm=norm, seconds=math.inf, branches=1)
        assert found.upper <= largest * (1 + 1e-9)


def test_the_search_stops_in_time_and_repeats_itself(small_digits):
    classifier, x, _ = small_digits
    at_once = lipschitz_certificate(classifier, seconds=0)
    longer = lipschitz_certificate(classifier, branches=200, seconds=math.inf)
    assert longer == lipschitz_certificate(classifier, branches=200, seconds=math.inf)
    assert at_once.lower <= longer.lower <= longer.upper <= at_once.upper
    assert not at_once.exact
    local = lipschitz_certificate(classifier, x[:2], 0.01, branches=500, seconds=math.inf)
    assert (local.upper <= longer.upper).all()


def test_the_classifier_is_left_as_it_was(small_digits):
    classifier, x, y = small_digits
    classifier.model.train()
    before = copy.deepcopy(classifier.model.state_dict())
    certified_radii(classifier, x[:2], y[:2])
    lipschitz_certificate(classifier, seconds=0)
    assert classifier.model.training
    assert all(weight.requires_grad for weight in classifier.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in classifier.model.state_dict().items())


@pytest.mark.filterwarnings("ignore:other attacks came nearer")
@pytest.mark.filterwarnings("ignore:W-PGD:UserWarning")
def test_the_report_brackets_the_truth(small_digits):
    classifier, x, y = small_digits
    report = evaluate(classifier, x, y, eps=0.01, autoattack=False, knapsack_iter=50, verbose=False)
    found = report.to_dict()
    assert found["certified"] == report.certified_accuracy(0.01) <= report.accuracy(0.01)
    assert (report.radii <= report.distances).all()
    assert "[certified, knapsack] = [" in str(report)
    wide = evaluate(classifier, x, y, eps=0.9, autoattack=False, knapsack_iter=1, verbose=False)
    assert wide.certified_accuracy(0.9) == 0.0
    says = "nothing is certified at this eps" in str(wide)
    assert says == (wide.accuracy(0.9) > 0)
    silent = evaluate(classifier, x, y, certified=False, autoattack=False, knapsack_iter=5, verbose=False)
    assert silent.radii is None
    assert silent.to_dict()["certified"] is None
    assert silent.certified_accuracy(0.01) == 0.0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_report_says_why_it_has_no_certificate():
    model = nn.Sequential(nn.LPPool2d(2, 2), nn.Flatten(), nn.Linear(4, 3))
    classifier = make_classifier(model, (1, 4, 4), 3)
    x = np.random.default_rng(0).uniform(size=(6, 1, 4, 4)).astype(np.float32)
    report = evaluate(classifier, x, [0, 1, 2, 0, 1, 2], autoattack=False, knapsack_iter=5, verbose=False)
    assert report.radii is None
    assert "no certificate: the network holds LPPool2d" in str(report)


class Branching(nn.Module):
    """A network that torch.fx cannot follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Noisy(nn.Linear):
    """A layer whose noise torch.fx takes for a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(())


def hooked() -> nn.Module:
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda module, inputs, output: output * 2)
    return layer


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), "the network holds Softmax"),
        (nn.Sequential(nn.Linear(4, 3), nn.GELU(approximate="tanh")), "GELU with approximate='tanh'"),
        (nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), "the network holds BatchNorm1d"),
        (Branching(), "cannot be traced by torch.fx"),
        (hooked(), "Linear has forward hooks"),
    ],
)
def test_networks_without_bounds_are_refused(model, message):
    classes = model(torch.rand(2, 4)).shape[1]
    with pytest.raises(ValueError, match=message):
        lipschitz_certificate(make_classifier(model, (4,), classes))


class Mixing(nn.Linear):
    """A layer that mixes samples."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.mean(0, keepdim=True)


class Writing(nn.Module):
    """A residual sum over a value that an activation writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.activation = nn.Linear(3, 3), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        return self.activation(x) + x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Noisy(3, 3), "something else than"),
        (Mixing(3, 3), "adds layers of unequal shapes"),
        (Writing(), "in place, by _0_0_activation, that a later step reads"),
    ],
)
def test_a_network_that_is_not_what_was_traced_is_refused(model, message):
    classifier = make_classifier(nn.Sequential(model), (3,), 3)
    with pytest.raises(ValueError, match=message):
        certified_radii(classifier, np.random.default_rng(0).uniform(size=(5, 3)).astype(np.float32), [0] * 5)


class Forward(nn.Module):
    """A network given by its function of the input and two layers."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        x = self.function(x, *self.layers)
        return x if skip is None else x + skip


def linear_layer(weight, bias=None) -> nn.Linear:
    weight = torch.tensor(weight, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=torch.float32)
    return layer


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("scale", "gain"), [(1.0, 1.0), (1e9, 1.0), (1e11, 1.0), (1.0, 1e18)])
def test_the_scale_of_inputs_and_weights_changes_no_cell(scale, gain, norm):
    """Between the two kinks, a thousandth of the box, the slope is a hundred times that elsewhere."""
    first = linear_layer([[0, gain / scale], [0, gain / scale], [gain, 0]], [-0.3 * gain, -0.3005 * gain, -0.5 * gain])
    last = linear_layer([[scale / gain, -scale / gain, 0.01 / gain], [0, 0, 0]])
    box = np.array([0, 0], np.float32), np.array([1, scale], np.float32)
    classifier = make_classifier(nn.Sequential(first, nn.ReLU(), last), (2,), 2, clip_values=box)
    bounds = lipschitz_certificate(classifier, norm=norm)
    assert bounds.upper >= (1.0 if norm != math.inf else 1.01) * (1 - 1e-5)


@pytest.mark.parametrize(
    ("function", "layers", "largest"),
    [
        (lambda x, a, b: b(a(x) + (-1.0) * torch.relu(a(x))), ([[10.0]], [[1.0], [0.0]]), 0.0),
        (lambda x, a, b: b(F.leaky_relu(a(x), -3.0)), (np.eye(3).tolist(), [[1.0] * 3, [0.0] * 3]), 3.0),
    ],
)
def test_derivatives_at_kinks_on_the_faces_do_not_count(function, layers, largest):
    model = Forward(function, *map(linear_layer, layers))
    bounds = lipschitz_certificate(make_classifier(model, (len(layers[0]),), 2))
    assert bounds.lower == pytest.approx(largest, rel=1e-6)
    assert bounds.upper >= largest


def test_networks_of_unusual_shape():
    layer, last = linear_layer([[1e3, 1.0], [1e3, 0.0]]), linear_layer([[1.0, -1.0], [0.0, 0.0]])
    without = make_classifier(nn.Sequential(layer, last), (2,), 2)
    assert lipschitz_certificate(without).upper >= 1.0 - 1e-6
    unused = make_classifier(Forward(lambda x, a, b: (torch.relu(a(x)), b(torch.tanh(x)))[1], layer, last), (2,), 2)
    assert lipschitz_certificate(unused).upper == pytest.approx(2.0, rel=1e-3)
    alone = make_classifier(nn.Linear(2, 2), (2,), 2)
    assert lipschitz_certificate(alone).exact
    x = np.full((4, 2), 0.5, np.float32)
    constant = make_classifier(linear_layer([[0.0, 0.0], [0.0, 0.0]], [1.0, 0.0]), (2,), 2)
    assert np.isinf(certified_radii(constant, x, [0] * 4)).all()
    assert certified_accuracy(constant, x, [0, 0, 0, 1], eps=10.0) == 0.75
    found = loss_certificate(constant, x, [0, 0, 0, 1], p=2, eps=0.1)
    assert found.bound == pytest.approx(found.clean)


@pytest.mark.parametrize("p", [1.0, 1.001, 1.01, 500.0, math.inf])
@pytest.mark.parametrize("eps", [1e-300, 1e-3, 1e300])
def test_loss_certificates_at_the_ends_of_their_range(linear, p, eps):
    found = loss_certificate(linear.classifier, linear.x, linear.y, p, 2, eps)
    assert found.clean <= found.bound <= found.by_lipschitz < math.inf


@pytest.mark.parametrize("eps", [1e-3, 0.3, 0.6, 1.0])
def test_losses_are_bounded_at_the_budget_and_at_the_size_of_the_box(eps):
    rings = _rings(eps, 1.0)
    assert (rings.diff() > 0).all()
    assert rings[-1] == 1.0
    assert (rings - eps).abs().min() < 1e-12


def test_a_budget_beyond_the_box_is_that_of_the_box(linear):
    found = loss_certificate(linear.classifier, linear.x, linear.y, 2, 2, 1e3, constant=0.5)
    assert found.by_lipschitz == pytest.approx(found.clean + 0.5 * math.sqrt(30))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Softplus(1.0, 1.0)), "Softplus with threshold=1; allowed is 20 or more"),
        (Forward(lambda x, a: a(x) + a(x).mean(1, keepdim=True), nn.Linear(4, 4)), "unequal shapes"),
        (Forward(lambda x, a: a(x) * a(x), nn.Linear(4, 4)), "the network holds mul"),
        (Forward(lambda x, a: x * x, nn.Linear(4, 4)), "the network holds mul"),
        (Forward(lambda x, a: a(x).relu_() + x.add_(1.0) + x, nn.Linear(4, 4)), "in place, by"),
    ],
)
def test_steps_that_bounds_do_not_know_are_refused_by_name(model, message):
    classifier = make_classifier(model, (4,), 4)
    with pytest.raises(ValueError, match=message):
        certified_radii(classifier, np.full((4, 4), 0.5, np.float32), [0] * 4)
    with pytest.raises(ValueError, match=message):
        evaluate(classifier, np.full((4, 4), 0.5, np.float32), [0] * 4, certified=True)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_convolutions_and_hooks_without_bounds_are_refused_by_name():
    circular = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), nn.Flatten())
    with pytest.raises(ValueError, match="Conv2d with padding_mode='circular'; allowed is 'zeros'"):
        lipschitz_certificate(make_classifier(circular, (1, 2, 2), 4))
    hooks = make_classifier(nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3))), (4,), 3)
    with pytest.raises(ValueError, match=r"Linear has forward hooks.*parametrizations"):
        lipschitz_certificate(hooks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 0.1}, "x is None and radius is 0.1; allowed are both"),
        ({"x": True}, "x is given and radius is None"),
        ({"x": True, "radius": -1.0}, "radius is -1.0"),
        ({"x": True, "radius": [0.1]}, r"radius is \[0.1\]; allowed is a number >= 0, or 60 of them"),
        ({"norm": 3}, "norm is 3"),
        ({"seconds": -1}, "seconds is -1"),
        ({"branches": 0}, "branches is 0"),
    ],
)
def test_bad_arguments_of_the_lipschitz_certificate(linear, change, message):
    if "x" in change:
        change = change | {"x": linear.x}
    with pytest.raises(ValueError, match=message):
        lipschitz_certificate(linear.classifier, **change)


def test_bad_arguments_of_the_other_certificates(linear):
    classifier, x, y = linear
    for function, change, message in (
        (certified_accuracy, {"p": 0.5}, "p is 0.5"),
        (certified_accuracy, {"eps": -0.1}, "eps is -0.1"),
        (certified_radii, {"norm": 3}, "norm is 3"),
        (certified_radii, {"batch_size": 0}, "batch_size is 0"),
        (certified_radii, {"largest": math.nan}, "largest is nan"),
        (certified_radii, {"y": None}, "y is None; needed are 60 labels"),
        (loss_certificate, {"constant": -1.0}, "constant is -1.0"),
        (loss_certificate, {"seconds": -1.0}, "seconds is -1.0"),
        (evaluate, {"certified": "yes"}, "certified is 'yes'; allowed is True or False"),
        (loss_certificate, {"loss": "dlr"}, "loss is 'dlr'; allowed is one of 'ce', 'margin'"),
        (loss_certificate, {"eps": math.inf}, "eps is inf"),
    ):
        with pytest.raises(ValueError, match=message):
            function(classifier, x, **{"y": y} | change)
    with pytest.raises(ValueError, match="NaN"):
        certified_radii(classifier, np.full_like(x, np.nan), y)
    with pytest.raises(EstimatorError):
        certified_radii(object(), x, y)
    for clip_values in (None, (0.0, np.inf)):
        unbounded = make_classifier(classifier.model, (30,), 5, clip_values=clip_values)
        with pytest.raises(ValueError, match="clip_values"):
            certified_radii(unbounded, x, y)
    squeezed = make_classifier(
        classifier.model, (30,), 5, preprocessing_defences=FeatureSqueezing(clip_values=(0, 1), bit_depth=4)
    )
    with pytest.raises(ValueError, match="FeatureSqueezing"):
        certified_radii(squeezed, x, y)
