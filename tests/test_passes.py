# SPDX-License-Identifier: MIT
"""Which batches the network sees: few sizes, full ones, and nothing of that in what comes out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from art_wdro import (
    DistributionalTRADESTrainer,
    WassersteinDistributionalAttack,
    WassersteinFGM,
    WassersteinKnapsack,
    WassersteinMarginTrainer,
    WassersteinPGD,
)
from art_wdro._solvers.ascent import ascend, step_lengths
from art_wdro._solvers.batches import Samples
from art_wdro._solvers.objective import Objective
from art_wdro._solvers.passes import Passes, cut
from art_wdro._storage.arrays import falling
from art_wdro._threat.threat import Threat
from art_wdro.functional import least_distances, w_pgd
from art_wdro.trainers._update import Updates
from tests.conftest import NORMS, digits, make_classifier, on_device


@pytest.fixture
def network(digits_classifier):
    return digits_classifier.model.eval()


@pytest.fixture
def shown(digits_classifier):
    """Sizes of all batches that the network of the digits sees."""
    sizes: Counter = Counter()
    digits_classifier.model.register_forward_hook(lambda module, inputs, output: sizes.update([len(inputs[0])]))
    return sizes


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("count", [300, 97, 33, 5])
def test_the_network_sees_few_sizes(digits_classifier, shown, count, labelled):
    x, y = (part[:count] for part in digits()[1])
    settings = {"eps": 0.1, "batch_size": 64, "verbose": False}
    for most, attack in (
        (3, WassersteinPGD(digits_classifier, **settings)),
        (5, WassersteinKnapsack(digits_classifier, max_iter=100, **settings)),
        (5, WassersteinKnapsack(digits_classifier, max_iter=10, search="stepping-out", **settings)),
        (5, WassersteinDistributionalAttack(digits_classifier, **settings)),
        (5, WassersteinFGM(digits_classifier, lengths="least", **settings)),
    ):
        shown.clear()
        attack.generate(x, y if labelled else None)
        assert 1 <= len(shown) <= most


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_searches_fill_their_batches(network, norm):
    """Some samples take 45 gradients and some 300; only the last ones leave places free."""
    x, y = (on_device(part[:160]) for part in digits()[1])
    function = Passes(network)
    found = least_distances(function, x, y, r=norm, batch_size=8)
    assert found.gradients < 280 * len(x)
    assert sum(count * size for size, count in function.counts.items()) >= 0.9 * 8 * function.counts.total()


@pytest.mark.parametrize("norm", NORMS)
def test_full_batches_change_nothing(network, norm):
    x, y = (on_device(part[:90]) for part in digits()[1])
    together, alone = (least_distances(network, x, y, r=norm, batch_size=size) for size in (32, 90))
    torch.testing.assert_close(together.distances, alone.distances, rtol=1e-3, atol=1e-6)
    assert together.gradients == pytest.approx(alone.gradients, rel=0.02)


def test_padding_never_shows():
    """A network that lets nobody see its neighbours, and that counts what it is shown."""
    sizes = []

    def logits_of(x):
        sizes.append(len(x))
        return torch.stack([x.sum(1), 1 / (x.sum(1) - 3.0)], 1)

    function = Passes(logits_of, falling(8, 3, 2))
    x = torch.arange(14.0).reshape(7, 2)[:, :1].repeat(1, 3).requires_grad_()
    for count in (7, 5, 3, 1, 0):
        sizes.clear()
        logits = function(x[:count])
        assert set(sizes) <= ({8, 4, 2} if count else {0})
        torch.testing.assert_close(logits, logits_of(x[:count]))
        (gradient,) = torch.autograd.grad(logits.sum(), x)
        (expected,) = torch.autograd.grad(logits_of(x[:count]).sum(), x)
        torch.testing.assert_close(gradient, expected)
    assert function.gradients == 7 + 5 + 3 + 1
    assert function.counts == {7: 1, 5: 1, 3: 1, 1: 1, 0: 1}


@pytest.mark.parametrize("count", range(1, 200))
def test_cutting_pads_little(count):
    sizes = falling(64, 5, 2)
    pieces = cut(count, sizes, 8.0)
    assert [row for piece in pieces for row in range(piece.start, piece.stop)] == [*range(count)]
    padded = sum(min(size for size in sizes if size >= piece.stop - piece.start) for piece in pieces)
    assert padded + 8 * len(pieces) <= 72 * math.ceil(count / 64)
    assert len(cut(count, sizes, math.inf)) == math.ceil(count / 64)


def test_gradients_are_counted_without_padding(digits_classifier):
    x, y = (part[:70] for part in digits()[1])
    attack = WassersteinPGD(digits_classifier, loss="ce", max_iter=3, batch_size=64, verbose=False)
    attack.generate(x, y)
    assert attack.gradients_ == 3
    sparse = WassersteinPGD(digits_classifier, eps=1e-6, max_iter=3, batch_size=64, verbose=False)
    sparse.generate(x, y)
    standing = np.mean(digits_classifier.predict(x).argmax(1) == y)
    assert sparse.gradients_ == pytest.approx(1 + 2 * standing)


def test_an_ascent_of_few_sizes_is_the_same(network):
    x, y = (on_device(part[:90]) for part in digits()[1])
    found = [w_pgd(network, x, y, eps=0.1, batch_size=size) for size in (64, 90)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


class Operators(TorchDispatchMode):
    """Notes the operators that run outside of the network, views apart, one list between two passes each."""

    READ_BACKS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.between, self._inside = [[]], False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_view = any(alias.alias_info and not alias.alias_info.is_write for alias in function._schema.arguments)
        if not (self._inside or is_view):
            self.between[-1].append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))

    def watched(self, network):
        """The network, whose own operators do not count."""

        def logits_of(x):
            self._inside = True
            logits = network(x)
            self._inside = False
            self.between.append([])
            return logits

        return logits_of


@pytest.mark.parametrize(("batch_size", "keep_best", "most"), [(8, True, 17), (64, False, 38), (64, True, 63)])
def test_few_operators_run_between_two_passes(batch_size, keep_best, most):
    """In batches of an eighth of the data, and in one; backward passes of a linear network take two."""
    network = torch.nn.Linear(30, 5).requires_grad_(False)
    x = torch.rand(64, 30)
    labels = network(x).argmax(1)
    with Operators() as operators:
        function = operators.watched(network)
        w_pgd(function, x, labels, eps=0.1, steps=4, loss="ce", batch_size=batch_size, keep_best=keep_best)
    passes = operators.between[1:-1]
    assert sum(map(len, passes)) / len(passes) <= most
    assert not {name for names in passes for name in names} & {*Operators.READ_BACKS}


def test_an_objective_that_is_evaluated_whole_reads_nothing_back():
    """As on a GPU in training; the iterates are those of one that leaves flat samples out."""
    network, x = torch.nn.Linear(30, 5).requires_grad_(False), torch.rand(64, 30)
    labels, found = network(x).argmax(1), []
    for whole in (False, True):
        with Operators() as operators:
            objective = replace(Objective.of(operators.watched(network), "redlr"), whole=whole)
            ascent = ascend(
                objective,
                Samples(x, labels, None, batch_size=64),
                Threat(2.0, math.inf, None),
                budget=lambda upsilon: 0.05 + 0 * upsilon,
                steps=step_lengths(0.5, 4),
                keep_best=False,
            )
        found.append(ascent.x)
        read = {name for names in operators.between for name in names} & {*Operators.READ_BACKS}
        assert bool(read) != whole
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


class Waits(TorchDispatchMode):
    """Notes what waits for a device, which torch's `meta` stands for: numbers read back, true ones, and copies.

    No other number of that device can be had: what reads one in another way fails.
    """

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "_local_scalar_dense" and args[0].is_meta:
            self.names.append(name)
            return True
        found = function(*args, **(kwargs or {}))
        if name == "_to_copy" and args[0].device != found.device:
            self.names.append(name)
        return found


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [DistributionalTRADESTrainer, WassersteinMarginTrainer])
def test_a_training_step_waits_for_a_device_once(monkeypatch, kind, norm):
    """To ask whether loss and gradient are finite."""
    model = torch.nn.Linear(30, 5)
    classifier = make_classifier(model, (30,), 5)
    monkeypatch.setattr(classifier, "_device", torch.device("meta"))
    monkeypatch.setattr(classifier, "_optimizer", torch.optim.SGD(model.to("meta").parameters(), momentum=0.9))
    monkeypatch.setattr(torch.Tensor, "new_tensor", lambda *_: pytest.fail("numbers come from the host"))
    trainer = kind(classifier, norm=norm, max_iter=4, verbose=False)
    updates = Updates(classifier, trainer._common)
    x, y = torch.empty(16, 30, device="meta"), torch.empty(16, dtype=torch.int64, device="meta")
    with updates.prepared():
        method = trainer._method(updates, None)
        for _ in range(2):
            with Waits() as waits:
                method.step(x, y, "a minibatch")
                method.watched()
            assert waits.names == ["_local_scalar_dense"]


def test_what_torch_compiled_is_differentiated_once():
    module = torch.nn.Linear(2, 2)
    assert not Passes(module).differentiable_once
    assert Passes(torch.compile(module, backend="aot_eager")).differentiable_once
    assert Passes(torch.compile(torch.relu, backend="aot_eager")).differentiable_once
