# SPDX-License-Identifier: MIT
"""Certificates of odd networks: many classes in little memory, numbers that are none, ranks without samples."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from art_wdro import certified_accuracy, certified_radii, evaluate, lipschitz_certificate, loss_certificate
from art_wdro._bounds import branch_and_bound, certified, crown, random_search
from art_wdro._bounds.branch_and_bound import largest_jacobian
from art_wdro._bounds.certified import PairConstants, worst_mean
from art_wdro._bounds.jacobians import jacobians, propagate
from art_wdro._bounds.operator_norms import JacobianNorms
from art_wdro._bounds.pairs import differences, other_classes, pair_count, pairs_at
from art_wdro._bounds.random_search import LowerBound, reach
from art_wdro._bounds.tracing import graph_of
from art_wdro._threat.norms import dual_exponent
from art_wdro.certificates._problem import why_uncertified
from tests import rank_worker
from tests.conftest import NORMS, make_classifier, on_device
from tests.test_certificates import Forward, class_pairs, dense, linear_layer, unit_box, whole
from tests.test_ranks import GLOO, ROOT, torchrun


def samples(classifier, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Inputs in the unit box, and what the classifier takes them for."""
    x = np.random.default_rng(0).uniform(size=(count, *classifier.input_shape)).astype(np.float32)
    return x, classifier.predict(x).argmax(1)


@pytest.mark.parametrize("classes", [2, 3, 7, 12])
def test_pairs_made_on_demand_are_the_rows_of_all_at_once(classes):
    numbers = torch.arange(pair_count(classes)).flip(0)
    assert torch.equal(differences(*pairs_at(numbers, classes), classes), class_pairs(classes).flip(0))
    labels = torch.arange(classes)
    others = other_classes(labels, classes)
    rows = differences(labels[:, None], others, classes)
    for label in range(classes):
        expected = [other for other in range(classes) if other != label]
        assert others[label].tolist() == expected
        assert torch.equal(rows[label], torch.eye(classes).double()[label] - torch.eye(classes).double()[expected])


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_pair_by_pair_are_those_of_all_pairs_at_once(norm, monkeypatch):
    classes, generator = 9, torch.Generator().manual_seed(0)
    nodes = graph_of(dense((5, 8, 6, classes), nn.ReLU(), 0), (5,))
    box, rows = unit_box(5), class_pairs(classes)
    region = propagate(nodes, box)
    norms = JacobianNorms(nodes, region, norm)
    at_once = norms.bound(jacobians(nodes, region.repeated(len(rows)), rows))
    constants = PairConstants(nodes, box, classes, norm)
    first, second = torch.triu_indices(classes, classes, 1)
    for place, bound in enumerate(at_once):
        j, k = int(first[place]), int(second[place])
        for y, other in ((j, k), (k, j)):
            assert constants.of(y)[other - (other > y)].item() == pytest.approx(bound.item(), rel=1e-12)

    ball = whole(box, norm)
    lower = LowerBound(nodes, ball, classes, reach(nodes, region), math.inf)
    x = ball.draw(20, generator).requires_grad_()
    logits = dense((5, 8, 6, classes), nn.ReLU(), 0)(x)
    gradients = torch.stack([torch.autograd.grad(z.sum(), x, retain_graph=True)[0] for z in logits.unbind(1)], 1)
    expected = torch.linalg.vector_norm(rows @ gradients, dual_exponent(norm), dim=2).amax(1)
    assert lower.visit(x.detach()) == pytest.approx(expected.tolist(), rel=1e-12)

    for count in (64, 4):  # all pairs in one pass, and in nine
        monkeypatch.setattr(branch_and_bound, "AT_ONCE", count)
        ends = largest_jacobian(nodes, ball, classes, branches=pair_count(classes), seconds=math.inf)
        largest = torch.minimum(at_once, norms.product(rows)).max().item()
        assert ends.upper == pytest.approx(max(largest, ends.lower), rel=1e-8)
    begun = largest_jacobian(nodes, ball, classes, branches=1, seconds=math.inf)  # of four pairs alone
    assert begun.upper == pytest.approx(norms.product(rows).max().item(), rel=1e-8)


@pytest.mark.parametrize("norm", NORMS)
def test_blocks_of_any_size_give_the_same(norm, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Softplus(), nn.Linear(6, 7))
    classifier = make_classifier(model, (5,), 7)
    x, y = samples(classifier, 6)

    def figures():
        ends = lipschitz_certificate(classifier, norm=norm, branches=10, seconds=math.inf)
        loss = loss_certificate(classifier, x, y, norm=norm, eps=0.02, constant=ends.upper)
        return np.concatenate([certified_radii(classifier, x, y, norm), ends, loss])

    expected = figures()
    assert (expected[:6] > 0).any()
    for size in (64, 1000):
        for module, name in ((crown, "AT_ONCE"), (certified, "ENTRIES"), (random_search, "ENTRIES")):
            monkeypatch.setattr(module, name, size)
        # the guess from a slope over a millionth of the radius magnifies what summing in another order changes
        np.testing.assert_allclose(figures(), expected, rtol=1e-8)


MEMORY = """
import resource, sys
import numpy as np, torch
from torch import nn
from art_wdro import certified_radii, lipschitz_certificate, loss_certificate
from tests.conftest import make_classifier
classes = int(sys.argv[1])
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, classes))
classifier = make_classifier(model, (8,), classes, device_type="cpu")
x = np.random.default_rng(0).uniform(size=(2, 8)).astype(np.float32)
y = classifier.predict(x).argmax(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert (certified_radii(classifier, x, y) > 0).all()
ends = lipschitz_certificate(classifier, seconds=2)
assert 0 < ends.lower <= ends.upper
assert lipschitz_certificate(classifier, x, 0.1, seconds=0.5).upper.max() < np.inf
assert loss_certificate(classifier, x, y, eps=0.01, constant=ends.upper).bound < np.inf
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_many_classes_take_little_memory():
    """All pairs of 1,500 classes are 1.1e6, as combinations of the logits 13.5 GB."""
    command = [sys.executable, "-c", MEMORY, "1500"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout) < 250  # in MiB


@pytest.mark.parametrize(
    ("features", "hidden", "classes", "affordable", "too_many"),
    [
        (64, 128, 10, 4000, 10000),
        (784, 512, 10, 100, 200),
        (784, 512, 100, 100, 150),
        (64, 128, 1000, 100, 300),
        (784, 512, 1000, 30, 50),
        (64, 128, 5000, 5, 20),
        (8, 8, 5000, 5, 100),
    ],
)
def test_what_a_report_computes_unasked_depends_on_units_samples_and_classes(
    features, hidden, classes, affordable, too_many
):
    model = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    classifier = make_classifier(model, (features,), classes)
    assert why_uncertified(classifier, affordable, None) is None
    reason = why_uncertified(classifier, too_many, None)
    assert f"{too_many} samples, {classes} classes and a network of" in reason
    assert "certified=True computes it" in reason
    assert why_uncertified(classifier, too_many, True) is None
    assert why_uncertified(classifier, affordable, False) == "it was not wanted"


def test_a_large_network_is_not_even_looked_at():
    classifier = make_classifier(nn.Sequential(nn.Linear(1024, 1024), nn.MaxPool1d(2)), (1024,), 512)
    assert "a network of 1049600 weights takes long" in why_uncertified(classifier, 1, None)
    small = make_classifier(nn.Sequential(nn.Linear(64, 64), nn.LPPool1d(2, 2)), (64,), 32)
    assert "the network holds LPPool1d" in why_uncertified(small, 1, None)


SHAPE = (2, 4, 4)
"""Shape of the inputs of the odd networks."""


def spoiled(layer: nn.Module, name: str, value: float) -> nn.Module:
    """A layer one number of which is another."""
    getattr(layer, name).data.view(-1)[0] = value
    return layer


def around(*layers: nn.Module) -> nn.Module:
    """Layers, and a linear one that puts out three logits."""
    torch.manual_seed(0)
    body = on_device(nn.Sequential(*layers, nn.Flatten()).eval())
    return nn.Sequential(body, nn.Linear(body(on_device(torch.zeros(1, *SHAPE))).shape[1], 3)).eval()


def functional(function) -> nn.Module:
    return around(Forward(function))


BAD = "NaN, inf or a division by 0"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (around(spoiled(nn.Conv2d(2, 2, 3), "weight", math.nan)), f"the network's Conv2d.*{BAD}"),
        (around(spoiled(nn.Conv2d(2, 2, 3), "weight", math.inf)), f"the network's Conv2d.*{BAD}"),
        (around(spoiled(nn.Conv2d(2, 2, 3), "bias", -math.inf), nn.ReLU()), f"the network's Conv2d.*{BAD}"),
        (around(spoiled(nn.Conv2d(2, 2, 3, padding="same"), "bias", math.nan)), f"the network's Conv2d.*{BAD}"),
        (around(spoiled(nn.BatchNorm2d(2), "running_var", -1.0)), f"the network's BatchNorm2d.*{BAD}"),
        (around(spoiled(nn.BatchNorm2d(2, eps=0.0), "running_var", 0.0)), f"the network's BatchNorm2d.*{BAD}"),
        (around(spoiled(nn.BatchNorm2d(2), "running_mean", math.inf)), f"the network's BatchNorm2d.*{BAD}"),
        (around(spoiled(nn.BatchNorm2d(2), "running_var", math.nan)), f"the network's BatchNorm2d.*{BAD}"),
        (around(nn.LeakyReLU(math.nan)), f"the network's LeakyReLU.*{BAD}"),
        (around(nn.LeakyReLU(math.inf)), f"the network's LeakyReLU.*{BAD}"),
        (around(nn.Softplus(0.0)), "Softplus with beta=0; allowed is any other number"),
        (around(nn.Softplus(math.inf)), f"the network's Softplus.*{BAD}"),
        (around(nn.Softplus(1.0, math.nan)), "Softplus with threshold=nan; allowed is 20 or more"),
        (around(nn.Softplus(1.0, 100.0)), "Softplus with threshold=100; allowed is 88 or less"),
        (functional(lambda x: F.hardtanh(x, math.nan, 1.0)), f"the network's hardtanh holds {BAD}"),
        (functional(lambda x: x / 0.0), f"the network's truediv holds {BAD}"),
        (functional(lambda x: x * math.inf), f"the network's mul holds {BAD}"),
        (functional(lambda x: math.nan - x), f"the network's sub holds {BAD}"),
        (functional(lambda x: (9 * x).sum(1, dtype=torch.int64) * 0.1), "the network holds sum with dtype=torch.int64"),
        (functional(lambda x: torch.mean(x, 1, dtype=torch.float16).abs()), "mean with dtype=torch.float16"),
        (nn.Sequential(around(nn.Conv2d(2, 2, 1)), nn.Linear(3, 3), nn.Linear(3, 3)), "puts out NaN or inf"),
    ],
)
def test_numbers_that_are_none_are_refused_before_any_work(model, message):
    if "puts out" in message:
        for layer in list(model)[1:]:
            layer.weight.data *= 1e30
    classifier = make_classifier(model, SHAPE, 3)
    x, y = np.full((3, *SHAPE), 0.5, np.float32), [0, 1, 2]
    for certificate in (certified_radii, certified_accuracy, loss_certificate):
        with pytest.raises(ValueError, match=message):
            certificate(classifier, x, y)
    for ball in ((), (x, 0.1)):
        with pytest.raises(ValueError, match=message):
            lipschitz_certificate(classifier, *ball)
    assert why_uncertified(classifier, 3, None) is not None
    with pytest.raises(ValueError, match=message):
        evaluate(classifier, x, y, certified=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"clip_values": (0.0, np.inf)}, "needed are finite ones"),
        ({"clip_values": (np.nan, 1.0)}, "needed are finite ones"),
        (
            {"clip_values": (np.zeros(SHAPE), np.where(np.arange(32).reshape(SHAPE) == 5, np.nan, 1.0))},
            "needed are finite",
        ),
        ({"preprocessing": (0.5, 0.0)}, f"preprocessing=.mean, std. holds {BAD}"),
        ({"preprocessing": (np.nan, 1.0)}, f"preprocessing=.mean, std. holds {BAD}"),
        ({"preprocessing": (np.array([0.0, np.inf]), np.ones(2))}, f"preprocessing=.mean, std. holds {BAD}"),
    ],
)
def test_boxes_and_preprocessing_that_are_none_are_refused(kwargs, message):
    classifier = make_classifier(around(nn.ReLU()), SHAPE, 3, **kwargs)
    with pytest.raises(ValueError, match=message):
        lipschitz_certificate(classifier)
    assert why_uncertified(classifier, 3, None) is not None


def twins(first: nn.Module, second: nn.Module, sign: float = 1.0) -> list:
    """Classifiers whose last layers have the same weights, one of them times a sign."""
    models = [around(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), layer) for layer in (first, second)]
    models[1].load_state_dict(models[0].state_dict())
    models[1][-1].weight.data *= sign
    return [make_classifier(model, SHAPE, 3) for model in models]


POOLS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 3, "padding": 1, "count_include_pad": False},
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("first", "second", "sign"),
    [(nn.AvgPool2d(divisor_override=-4, **pool), nn.AvgPool2d(divisor_override=4, **pool), -1.0) for pool in POOLS]
    + [(Forward(lambda x: F.avg_pool2d(x, 2, divisor_override=-4)), nn.AvgPool2d(2), -1.0)]
    + [(nn.AvgPool3d((3, 2, 2), divisor_override=-12), nn.AvgPool3d((3, 2, 2)), -1.0)]
    + [(nn.Hardtanh(*ends), nn.Identity(), 1.0) for ends in ((-math.inf, math.inf), (-1e30, math.inf), (-1e38, 1e38))]
    + [(nn.Hardtanh(-math.inf, 1e30), nn.Identity(), 1.0)]
    + [(Forward(lambda x: x / -0.25), Forward(lambda x: x * 4.0), -1.0)],
)
def test_odd_layers_are_what_plain_ones_are(first, second, sign, norm):
    figures = []
    for classifier in twins(first, second, sign):
        x, y = samples(classifier)
        ends = lipschitz_certificate(classifier, norm=norm, branches=20, seconds=math.inf)
        loss = loss_certificate(classifier, x, y, norm=norm, eps=0.05, constant=ends.upper)
        figures.append(np.concatenate([certified_radii(classifier, x, y, norm), ends[:2], loss]))
    assert (figures[0] > 0).all()
    np.testing.assert_allclose(*figures, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-18, 1e-9, 1.0, 1e9])
def test_a_bias_takes_no_digits_of_the_weights(scale, norm):
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.0, 1.0]]) * scale
    classifier = make_classifier(linear_layer(weight.tolist(), [1.0, 2.0, 3.0]), (2,), 3)
    x = np.full((1, 2), 0.5, np.float32)
    slopes = torch.linalg.vector_norm(class_pairs(3) @ weight.double(), dual_exponent(norm), dim=1)
    assert lipschitz_certificate(classifier, norm=norm).upper == pytest.approx(slopes.max().item(), rel=1e-6)
    constants = PairConstants(graph_of(classifier.model, (2,)), unit_box(2), 3, norm)
    assert constants.of(2).tolist() == pytest.approx(slopes[1:].tolist(), rel=1e-6)
    assert (certified_radii(classifier, x, classifier.predict(x).argmax(1), norm) > 0).all()


@pytest.mark.parametrize("constant", [torch.tensor([1.0, -2.0, 3.0]), torch.zeros(1, 3)])
@pytest.mark.parametrize("function", [lambda x, c: x + c, lambda x, c: x - c, lambda x, c: c - x])
def test_a_constant_may_be_larger_than_what_it_is_added_to(function, constant):
    torch.manual_seed(0)
    layers, constant = (nn.Linear(2, 1), nn.Linear(3, 3)), on_device(constant)
    classifier = make_classifier(Forward(lambda x, a, b: b(function(a(x), constant)), *layers), (2,), 3)
    sums = class_pairs(3) @ layers[1].weight.cpu().double().sum(1)
    expected = (sums.abs().max() * torch.linalg.vector_norm(layers[0].weight)).item()
    assert lipschitz_certificate(classifier, norm=2) == pytest.approx((expected, expected, True), rel=1e-6)
    x, y = samples(classifier)
    assert (certified_radii(classifier, x, y) > 0).any()


HUGE = [
    (0.0, *[1e38] * 9),
    (1e38,) * 9,
    (1e38, 1e38, 1e-38, 1e-38) * 3,
    (1e-38, 1e38) * 6,
    (1e38, 0.0) * 5,
    (1e20, 1e19),
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Hardtanh(), nn.Softplus()])
@pytest.mark.parametrize("scales", HUGE)
def test_bounds_that_overflow_are_numbers_and_hold(scales, activation, norm):
    """Below the checks of the classifier, on the layers alone; a sum of two branches overflows in both."""
    torch.manual_seed(0)
    layers = [part for _ in scales for part in (nn.Linear(4, 4), activation)]
    for layer, scale in zip(layers[::2], scales, strict=True):
        layer.weight.data *= scale
    model = Forward(lambda x, a, b, c: c(a(x) + b(a(x))), nn.Sequential(*layers), nn.Linear(4, 4), nn.Linear(4, 3))
    nodes, box = graph_of(model, (4,)), unit_box(4)
    ball, labels = whole(box, norm), torch.tensor([0])
    points = ball.draw(50, torch.Generator().manual_seed(0)).requires_grad_()
    out = copy.deepcopy(model).double()(points)
    gradients = torch.stack([torch.autograd.grad(z.sum(), points, retain_graph=True)[0] for z in out.unbind(1)], 1)
    steepest = torch.linalg.vector_norm(class_pairs(3) @ gradients, dual_exponent(norm), dim=2).nan_to_num(0.0, 0.0)

    region = propagate(nodes, box)
    for bounds in (*region.values, *region.slopes.values()):
        assert (bounds.lower <= bounds.upper).all()
    assert not ((out < region.values[-1].lower) | (out > region.values[-1].upper)).any()
    if not torch.isfinite(model(points.float())).all():
        assert torch.isinf(region.values[-1].upper).any()
        assert math.isinf(PairConstants(nodes, box, 3, norm).of(0).max())
    jacobian = jacobians(nodes, region.repeated(3), class_pairs(3))
    assert (jacobian.bounds.lower <= jacobian.bounds.upper).all()
    norms = JacobianNorms(nodes, region, norm)
    for found in (norms.bound(jacobian), norms.product(class_pairs(3))):
        assert (found >= steepest.amax(0)).all()
    for radius in (0.0, 1e-6, 1.0):
        balls = ball._replace(radius=torch.tensor([radius]).double())
        lowest = certified.margin_bounds(nodes, balls, labels, 3)
        behind = out.detach()[:, :1] - out.detach()[:, 1:]
        assert not torch.isnan(lowest).any()
        assert radius < 1 or (lowest <= behind.nan_to_num(math.inf).amin(0)).all()
    ends = largest_jacobian(nodes, ball, 3, branches=20, seconds=math.inf)
    assert 0 <= ends.lower <= ends.upper
    assert steepest.max() <= ends.upper
    assert not (ends.exact and math.isinf(ends.upper))


CHAINS = [(0.0, *[1e38] * 9), (1e-38, 1e38) * 5, (1e38, 1e-38) * 5, (1e20, 1e18, 1e-38), (1e-20,) * 3, (1e37, 1.0)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.GELU(), nn.LeakyReLU(-1e5)])
@pytest.mark.parametrize("scales", CHAINS)
def test_certificates_of_layers_that_overflow_or_vanish_hold(scales, activation, norm):
    torch.manual_seed(0)
    layers = [part for _ in scales for part in (nn.Linear(4, 4), activation)]
    for layer, scale in zip(layers[::2], scales, strict=True):
        layer.weight.data *= scale
        layer.bias.data *= min(scale, 1.0)
    hold(nn.Sequential(*layers, nn.Linear(4, 3)), (4,), {}, norm, np.random.default_rng(0))


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
@pytest.mark.parametrize("eps", [5e-324, 1e-3, 1.0])
@pytest.mark.parametrize("constant", [5e-324, 1.0, 1e308, math.inf])
@pytest.mark.parametrize("beyond", [2.0, math.inf])
def test_bounds_on_the_mean_loss_are_numbers(p, eps, constant, beyond):
    radii, losses = torch.tensor([eps, 1.0, 1e38]).double(), torch.tensor([0.5, -1.0]).double()
    worst = torch.tensor([[0.6, 0.7, beyond], [-0.5, math.inf, math.inf]]).double()
    found = worst_mean(worst, radii, losses, constant, eps, p)
    assert found >= losses.mean().item()


def test_the_loss_of_the_least_budget_is_that_of_the_data():
    classifier = make_classifier(around(nn.ReLU()), SHAPE, 3)
    x, y = samples(classifier)
    for p in (1.0, 2.0, math.inf):
        found = loss_certificate(classifier, x, y, p, eps=5e-324, seconds=0.1)
        assert found.clean == found.bound == found.by_lipschitz
        assert found.by_radii == pytest.approx(found.clean)


def hold(model: nn.Module, shape: tuple[int, ...], kwargs: dict, norm: float, rng: np.random.Generator) -> None:
    """See that all certificates are numbers that hold on samples, or refuse the network; "holds" means in float64."""
    classifier = make_classifier(model.eval(), shape, 3, **kwargs)
    low, high = (np.broadcast_to(np.asarray(end, np.float64), shape) for end in classifier.clip_values)
    x = rng.uniform(low, high, size=(3, *shape)).astype(np.float32).clip(*classifier.clip_values)
    y = np.nan_to_num(classifier.predict(x)).argmax(1)
    reason = why_uncertified(classifier, 3, None)
    if reason is not None:
        for call in (lambda: certified_radii(classifier, x, y, norm), lambda: lipschitz_certificate(classifier)):
            with pytest.raises(ValueError, match=rf"{BAD}|puts out NaN|something else than|allowed is") as refusal:
                call()
            assert str(refusal.value) == reason
        return
    radii = certified_radii(classifier, x, y, norm)
    assert (radii >= 0).all()
    exact = copy.deepcopy(model).double()

    def logits(points: np.ndarray) -> torch.Tensor:
        return exact(on_device(torch.as_tensor(points, dtype=torch.float64))).cpu()

    for place in np.flatnonzero(radii):
        step = rng.choice([-1.0, 0.0, 1.0], (100, *shape)) * rng.uniform(size=(100, *[1] * len(shape)))
        sizes = np.linalg.norm(step.reshape(100, -1), norm, axis=1).reshape(-1, *[1] * len(shape))
        reach_ = min(radii[place], np.linalg.norm((high - low).ravel(), norm))
        points = (x[place] + step / np.maximum(sizes, 1e-300) * reach_).clip(low, high)
        found = logits(points).detach()
        behind = found - found[:, [y[place]]]
        assert (behind <= 1e-9 * found.abs().amax(1, keepdim=True)).all()
        rounded = torch.from_numpy(classifier.predict(points.astype(np.float32).clip(*classifier.clip_values)))
        assert torch.isfinite(rounded).all()
        behind = rounded - rounded[:, [y[place]]]
        assert (behind <= 1e-4 * rounded.abs().amax(1, keepdim=True)).all()

    ends = lipschitz_certificate(classifier, norm=norm, seconds=math.inf, branches=20)
    assert 0 <= ends.lower <= ends.upper
    local = lipschitz_certificate(classifier, x, 0.1, norm, seconds=math.inf, branches=20)
    assert (local.lower <= local.upper).all()
    points = torch.from_numpy(rng.uniform(low, high, size=(50, *shape))).requires_grad_()
    out = logits(points)
    gradients = [torch.autograd.grad(z.sum(), points, retain_graph=True)[0].flatten(1) for z in out.unbind(1)]
    steepest = torch.linalg.vector_norm(class_pairs(3) @ torch.stack(gradients, 1), dual_exponent(norm), dim=2)
    assert steepest[torch.isfinite(steepest)].max() <= ends.upper * (1 + 1e-9)

    for p, eps in ((1.0, 0.0), (2.0, 0.05), (math.inf, 1e300)):
        given_ = ends.upper if rng.integers(2) and math.isfinite(ends.upper) else None
        found = loss_certificate(classifier, x, y, p, norm, eps, "margin", constant=given_, seconds=0.05)
        assert not any(map(math.isnan, found))
        assert found.clean <= found.bound <= min(found.by_lipschitz, found.by_radii)
        if math.isinf(p):
            found_logits = logits(rng.uniform(low, high, size=x.shape)).detach()
            own = found_logits.gather(1, torch.from_numpy(y)[:, None])
            margins = (found_logits - own).scatter(1, torch.from_numpy(y)[:, None], -math.inf).amax(1)
            assert margins.mean() <= found.bound + 1e-9 * found_logits.abs().max()


def drawn_layer(rng: np.random.Generator) -> nn.Module:
    """A layer for two channels, odd as like as not."""

    def pick(*values):
        return values[rng.integers(len(values))]

    def convolution() -> nn.Module:
        layer = nn.Conv2d(2, 2, 3, padding=pick(1, "same"), bias=pick(True, False))
        if rng.integers(3) == 0:
            layer.weight.data *= pick(1e38, 1e20, 1e-20, 0.0)
        return spoiled(layer, "weight", pick(math.nan, math.inf, 1e38, -1e30)) if rng.integers(5) == 0 else layer

    def norm() -> nn.Module:
        layer = nn.BatchNorm2d(2, eps=pick(1e-5, 0.0, 1.0), affine=pick(True, False))
        return spoiled(layer, "running_var", pick(0.25, 0.0, -0.5, -1.0, math.inf, math.nan, 1e38))

    def pool() -> nn.Module:
        kwargs = {"ceil_mode": pick(True, False), "count_include_pad": pick(True, False)}
        return nn.AvgPool2d(2, 1, pick(0, 1), divisor_override=pick(None, 3, -4, -1, 10**9), **kwargs)

    def activation() -> nn.Module:
        softplus = nn.Softplus(pick(1.0, -2.0, 1e-30, 1e30, math.nan), pick(20.0, 88.0, 100.0))
        hardtanh = nn.Hardtanh(pick(-0.5, -math.inf, -1e30), pick(0.5, math.inf, 1e38))
        leaky = nn.LeakyReLU(pick(-1.0, 0.2, 2.0, -1e30, math.nan))
        return pick(nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), softplus, hardtanh, leaky)

    def constant() -> nn.Module:
        value = pick(-2.0, 0.0, 1e30, -1e-30, math.inf, on_device(torch.tensor([-1.0, 2.0]).view(2, 1, 1)))
        return Forward(pick(lambda x: x * value, lambda x: x / value, lambda x: x + value, lambda x: value - x))

    def residual() -> nn.Module:
        return Forward(lambda x, a, b: a(x) + b(x), activation(), convolution())

    return pick(convolution, norm, pool, activation, activation, constant, residual)()


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(NORMS))
def test_odd_networks_get_certificates_that_hold_or_are_refused(seed, norm):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    kwargs = {} if rng.integers(3) else {"clip_values": [(-1.0, 2.0), (-1e30, 1e30), (0.0, 1e-30)][rng.integers(3)]}
    hold(around(*(drawn_layer(rng) for _ in range(rng.integers(1, 5)))), SHAPE, kwargs, norm, rng)


@pytest.mark.slow
@GLOO
def test_a_rank_without_samples_has_the_figures_of_the_whole(tmp_path):
    """The second of three ranks has none; the constants that the ranks give differ, and the least counts."""
    done = torchrun(tmp_path, 3, "certificates")
    assert done.returncode == 0, done.stderr[-3000:]
    found = [dict(np.load(tmp_path / f"certificates-{rank}.npz")) for rank in range(3)]
    problem = rank_worker.linear_problem()
    alone = rank_worker.certify(problem.x, problem.y, 0)
    assert [len(part["radii"]) for part in found] == rank_worker.SHARDS[3]
    for name, expected in alone.items():
        if name in ("radii", "exact", "votes"):
            whole_ = np.concatenate([part[name] for part in found])
            assert whole_.dtype == expected.dtype
            np.testing.assert_allclose(whole_, expected, rtol=1e-6, err_msg=name)
        else:
            for part in found:
                np.testing.assert_allclose(part[name], expected, rtol=1e-9, err_msg=name)
    for part in found:
        assert list(part["said"]) == ["x has no samples on any rank; needed is at least one"] * 2
