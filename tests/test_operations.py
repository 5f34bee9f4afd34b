# SPDX-License-Identifier: MIT
"""Every step that bounds know, against the network itself; and what is said of those that they do not know."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from art_wdro import WassersteinKnapsack, certified_radii, lipschitz_certificate
from art_wdro._bounds.crown import output_bounds
from art_wdro._bounds.intervals import Ball, Interval
from art_wdro._bounds.jacobians import jacobians, propagate
from art_wdro._bounds.layers import run
from art_wdro._bounds.operations import name_of
from art_wdro._bounds.tracing import graph_of
from tests.conftest import make_classifier
from tests.test_certificates import Forward

IMAGE, ROW = (2, 4, 4), (5,)


def conv(outputs: int = 2, **setting) -> nn.Conv2d:
    return nn.Conv2d(2, outputs, 3, **{"padding": 1} | setting)


CASES = {
    "max pool": lambda: (nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)), IMAGE),
    "overlapping, padded": lambda: (nn.Sequential(conv(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 3)), IMAGE),
    "to the ceiling": lambda: (nn.Sequential(nn.MaxPool2d((3, 2), 2, ceil_mode=True), nn.Flatten()), IMAGE),
    "dilated": lambda: (nn.Sequential(nn.MaxPool2d(2, 1, dilation=2), nn.Flatten()), IMAGE),
    "in one dimension": lambda: (nn.Sequential(nn.Linear(5, 6), nn.MaxPool1d(3)), ROW),
    "function": lambda: (Forward(lambda x: F.max_pool2d(x, 2, stride=1).flatten(1)), IMAGE),
    "zero pad": lambda: (nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.Flatten(), nn.Linear(70, 3)), IMAGE),
    "constant": lambda: (Forward(lambda x, a: a(F.pad(x, (1, 1), value=-2.0).flatten(1)), nn.Linear(48, 3)), IMAGE),
    "reflected": lambda: (Forward(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect").flatten(1)), IMAGE),
    "replicated": lambda: (nn.Sequential(nn.ReplicationPad2d(1), nn.Flatten(), nn.Linear(72, 3)), IMAGE),
    "permute": lambda: (Forward(lambda x, a: a(x.permute(0, 2, 3, 1).flatten(1)), nn.Linear(32, 3)), IMAGE),
    "transpose": lambda: (Forward(lambda x, a: a(torch.transpose(x, 1, 2).flatten(1)), nn.Linear(32, 3)), IMAGE),
    "roll and flip": lambda: (Forward(lambda x, a: a(x.roll(1, 2).flip(3).flatten(1)), nn.Linear(32, 3)), IMAGE),
    "indexed": lambda: (Forward(lambda x, a: a(x[:, 1:4]), nn.Linear(3, 3)), ROW),
    "one channel": lambda: (Forward(lambda x, a: a(x[:, 0].flatten(1)), nn.Linear(16, 3)), IMAGE),
    "repeated": lambda: (Forward(lambda x, a: a(x.repeat(1, 2)), nn.Linear(10, 3)), ROW),
    "clamp": lambda: (Forward(lambda x, a: torch.clamp(a(x), -0.2, 0.3), nn.Linear(5, 3)), ROW),
    "clamp from below": lambda: (Forward(lambda x, a: a(x).clamp(min=0.1), nn.Linear(5, 3)), ROW),
    "clamp from above": lambda: (Forward(lambda x, a: a(x).clamp_max(0.1), nn.Linear(5, 3)), ROW),
    "neg": lambda: (Forward(lambda x, a: -a(-x), nn.Linear(5, 3)), ROW),
    "elu": lambda: (nn.Sequential(nn.Linear(5, 6), nn.ELU(), nn.Linear(6, 3)), ROW),
    "elu that jumps": lambda: (Forward(lambda x, a: F.elu(a(x), 0.5), nn.Linear(5, 3)), ROW),
    "elu that falls": lambda: (nn.Sequential(nn.Linear(5, 6), nn.ELU(2.0), nn.Linear(6, 3)), ROW),
    "difference": lambda: (Forward(lambda x, a, b: a(x) - torch.relu(b(x)), nn.Linear(5, 3), nn.Linear(5, 3)), ROW),
    "cat": lambda: (Forward(lambda x, a, b: b(torch.cat([x, a(x).relu()], 1)), nn.Linear(5, 3), nn.Linear(8, 3)), ROW),
    "channels": lambda: (Forward(lambda x, a: torch.cat((x, a(x).relu(), x), dim=1).flatten(1), conv()), IMAGE),
    "maximum": lambda: (Forward(lambda x, a, b: torch.maximum(a(x), b(x)), nn.Linear(5, 3), nn.Linear(5, 3)), ROW),
    "minimum": lambda: (Forward(lambda x, a, b: torch.min(a(x), b(x)), nn.Linear(5, 3), nn.Linear(5, 3)), ROW),
    "maxout": lambda: (Forward(lambda x, a: torch.maximum(*a(x).chunk(2, 1)), nn.Linear(5, 6)), ROW),
    "matrix": lambda: (Forward(lambda x, a: x @ a.weight, nn.Linear(3, 5)), ROW),
    "linear": lambda: (Forward(lambda x, a: F.linear(x, a.weight, a.bias), nn.Linear(5, 3)), ROW),
    "convolution": lambda: (
        Forward(lambda x, a: F.conv2d(x, a.weight, a.bias, stride=2, padding=1).flatten(1), conv()),
        IMAGE,
    ),
    "batch norm": lambda: (
        Forward(lambda x, a: F.batch_norm(x, a.running_mean, a.running_var, a.weight, a.bias), nn.BatchNorm1d(5)),
        ROW,
    ),
    "shapes": lambda: (Forward(lambda x, a: a(x.view(x.shape[0], -1)) if len(x) else x, nn.Linear(32, 3)), IMAGE),
}


@pytest.mark.parametrize("name", CASES)
def test_bounds_of_a_step_hold(name):
    torch.manual_seed(0)
    model, shape = CASES[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    model.eval()
    nodes = graph_of(model, shape)
    model.double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, *shape, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        logits = model(x)
    torch.testing.assert_close(run(nodes, x)[-1], logits, rtol=1e-9, atol=1e-9)
    classes = logits.shape[1]
    ball = Ball(x, torch.full((6,), 0.3).double(), math.inf, Interval(torch.zeros_like(x), torch.ones_like(x)))
    rows = torch.cat([torch.eye(classes), -torch.eye(classes)]).double()
    lower = output_bounds(nodes, ball, lambda part: rows[part].expand(6, -1, -1), 2 * classes)
    region = propagate(nodes, ball.hull())
    slopes = jacobians(nodes, region, rows[:1].expand(6, -1)).bounds
    for _ in range(60):
        point = (x + 0.3 * (2 * torch.rand(x.shape, dtype=torch.float64, generator=generator) - 1)).clamp(0, 1)
        point.requires_grad_()
        found = model(point)
        assert (torch.cat([found, -found], 1) >= lower - 1e-9).all()
        (gradient,) = torch.autograd.grad(found[:, 0].sum(), point)
        assert (gradient >= slopes.lower - 1e-9).all()
        assert (gradient <= slopes.upper + 1e-9).all()


def test_names_are_those_of_what_is_done():
    names = [torch.add, "add_", "add", torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor]
    assert {name_of(target) for target in names} == {"add"}
    assert name_of(F.max_pool2d) == name_of(torch.ops.aten.max_pool2d.default) == "max_pool2d"


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Forward(lambda x, a: a(x.flip(0)), nn.Linear(5, 3)), ROW, "moves numbers from one sample to another"),
        (Forward(lambda x, a: a(x)[:1], nn.Linear(5, 3)), ROW, "moves numbers from one sample to another"),
        (Forward(lambda x, a: torch.cat([a(x), a(x)]), nn.Linear(5, 3)), ROW, "the network holds cat"),
        (Forward(lambda x, a: a(x).half().float(), nn.Linear(5, 3)), ROW, "the network holds half"),
        (
            Forward(lambda x, a: a(x).to(torch.bfloat16), nn.Linear(5, 3)),
            ROW,
            "holds to to torch.bfloat16; allowed are",
        ),
        (
            Forward(lambda x, a: a(x).clamp(1, 0), nn.Linear(5, 3)),
            ROW,
            "clamp with min=1 and max=0; needed is min < max",
        ),
        (Forward(lambda x, a: F.selu(a(x)), nn.Linear(5, 3)), ROW, "the network holds selu; allowed are linear"),
        (
            nn.Sequential(nn.MaxPool2d(2, padding=1, dilation=2)),
            (1, 4, 4),
            "padding=.* and dilation=.*; allowed is one",
        ),
        (Forward(lambda x, a: a(x) @ a(x).T, nn.Linear(5, 3)), ROW, "the network holds"),
    ],
)
def test_steps_without_bounds_are_named(model, shape, message):
    with pytest.raises(ValueError, match=message):
        graph_of(model, shape)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_torchscript_is_refused_in_one_sentence():
    scripted = torch.jit.trace(nn.Linear(5, 3), torch.rand(2, 5))
    with pytest.raises(ValueError, match=r"the network is a TorchScript module, of which torch\.fx sees no layers"):
        graph_of(scripted, ROW)


def test_programs_of_torch_export_have_bounds(tmp_path):
    model, shape = CASES["max pool"]()
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(
        torch.export.export(model, (torch.zeros(2, *shape),), dynamic_shapes=(batch,)), tmp_path / "network.pt2"
    )
    program = torch.export.load(tmp_path / "network.pt2").module()
    x = torch.rand(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(run(graph_of(program, shape), x.double())[-1].float(), model(x))


class OnnxReshape(nn.Module):
    """A reshape as that of onnx2torch: it looks at the sizes that it is given."""

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        if torch.any(sizes == 0):
            raise ValueError("no such size")
        return torch.reshape(x, torch.Size(sizes))


def test_reshapes_of_onnx2torch_are_steps(monkeypatch):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.reshape, self.last = OnnxReshape(), nn.Linear(32, 3)
            self.register_buffer("sizes", torch.tensor([-1, 32]))

        def forward(self, x):
            x = x / 2 if x.is_floating_point() else x // 2
            return self.last(self.reshape(x, self.sizes))

    monkeypatch.setattr(OnnxReshape, "__module__", "onnx2torch.node_converters.reshape")
    model = Network()
    x = torch.rand(3, *IMAGE)
    torch.testing.assert_close(run(graph_of(model, IMAGE), x.double())[-1].float(), model(x))


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_max_pools_are_certified_below_what_an_attack_finds(norm):
    torch.manual_seed(1)
    model = nn.Sequential(conv(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    classifier = make_classifier(model, IMAGE, 3)
    x = np.random.default_rng(0).uniform(size=(12, *IMAGE)).astype(np.float32)
    y = classifier.predict(x).argmax(1)
    attack = WassersteinKnapsack(classifier, norm=norm, max_iter=60, verbose=False)
    attack.generate(x, y)
    radii = certified_radii(classifier, x, y, norm)
    assert (radii <= attack.distances_).all()
    assert (radii > 0.3 * attack.distances_)[np.isfinite(attack.distances_)].mean() > 0.8
    bounds = lipschitz_certificate(classifier, x[:1], 0.01, norm, seconds=2)
    assert 0 < bounds.lower[0] <= bounds.upper[0] < math.inf
