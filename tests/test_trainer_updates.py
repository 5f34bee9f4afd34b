# SPDX-License-Identifier: MIT
"""One update of both trainers: what it reads back, what it switches, and the number format of its passes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from art_wdro import DistributionalTRADESTrainer, WassersteinMarginTrainer
from art_wdro.trainers._copies import Copies, copy_all
from art_wdro.trainers._modes import Modes, set_training_mode
from art_wdro.trainers._trades import AlgorithmOne
from art_wdro.trainers._update import Updates, _is_finite
from tests.conftest import DigitsNetwork, digits, make_classifier, same, trainer, weights

(X, Y), (X_TEST, Y_TEST) = digits()
both = pytest.mark.parametrize("kind", [DistributionalTRADESTrainer, WassersteinMarginTrainer])


class ReadBacks(TorchDispatchMode):
    """Counts what makes the host wait for values of the device, as a GPU would see it."""

    ALWAYS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
        if name in self.ALWAYS or any(isinstance(mask, torch.Tensor) and mask.dtype == torch.bool for mask in masks):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_read_backs_are_seen():
    x = torch.arange(4.0)
    with ReadBacks() as seen:
        x.sum().item()
        x[x > 1]
        x.nonzero()
        bool((x > 1).any())
        x[torch.tensor([1, 2])]
        torch.where(x > 1, x, 0.0)
    assert seen.found == ["_local_scalar_dense", "index", "nonzero", "_local_scalar_dense"]


def test_a_step_reads_back_one_value(digits_classifier, monkeypatch):
    """Only whether loss and gradient are finite; the loss of the attack is one of which it reads nothing back."""
    counts, step = [], AlgorithmOne.step

    def watched(method: AlgorithmOne, *args: Any) -> Any:
        with ReadBacks() as seen:
            figures = step(method, *args)
        counts.append(seen.found)
        return figures

    monkeypatch.setattr(AlgorithmOne, "step", watched)
    trainer(DistributionalTRADESTrainer, digits_classifier, loss="ce", gamma=0.5).fit(
        X[:96], Y[:96], batch_size=32, nb_epochs=1
    )
    assert counts == [["_local_scalar_dense"]] * 3


def test_beside_the_attack_a_step_reads_back_one_value(digits_classifier, monkeypatch):
    counts, step, ascend = [], AlgorithmOne.step, AlgorithmOne._ascend

    def watched(method: AlgorithmOne, *args: Any) -> Any:
        with ReadBacks() as seen:
            figures = step(method, *args)
        counts.append(seen.found)
        return figures

    def unseen(method: AlgorithmOne, *args: Any) -> Any:
        with _disable_current_modes():
            return ascend(method, *args)

    monkeypatch.setattr(AlgorithmOne, "step", watched)
    monkeypatch.setattr(AlgorithmOne, "_ascend", unseen)
    recipe = {"ema": 0.9, "weight_perturbation": 0.01, "max_grad_norm": 1.0, "update_precision": "bfloat16"}
    for settings in ({}, recipe):
        trainer(DistributionalTRADESTrainer, digits_classifier, **settings).fit(
            X[:64], Y[:64], batch_size=32, nb_epochs=1
        )
    assert counts == [["_local_scalar_dense"]] * 4


@both
def test_an_update_reads_back_one_value(digits_classifier, kind, monkeypatch):
    counts, update = [], Updates.__call__

    def watched(updates: Updates, *args: Any) -> Any:
        with ReadBacks() as seen:
            figures = update(updates, *args)
        counts.append(seen.found)
        return figures

    monkeypatch.setattr(Updates, "__call__", watched)
    trainer(kind, digits_classifier).fit(X[:64], Y[:64], batch_size=32, nb_epochs=1)
    assert counts == [["_local_scalar_dense"]] * 2


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["loss", "first", "last"])
def test_anything_that_is_not_finite_is_found(bad, where):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).double())
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 1e38)  # whose square overflows
    loss = torch.tensor(1.0)
    assert _is_finite(loss, model)
    if where == "loss":
        loss = torch.tensor(bad)
    else:
        (model[0].weight if where == "first" else model[1].bias).grad.view(-1)[1] = bad
    assert not _is_finite(loss, model)


def test_a_loss_without_a_gradient_is_looked_at_alone():
    model = nn.ParameterList([torch.zeros(2, 0)])
    model[0].grad = torch.zeros(2, 0)
    assert _is_finite(torch.tensor(0.0), model)
    assert not _is_finite(torch.tensor(torch.nan), nn.Linear(2, 2))


@both
def test_a_skipped_minibatch_leaves_no_trace(digits_classifier, kind):
    """The statistics of batch norm are those before it, too."""
    x = X[:64].copy()
    model = digits_classifier.model
    model.head.register_forward_hook(lambda *args: args[2] * (torch.nan if model.training else 1.0))
    start = weights(digits_classifier)
    training = trainer(kind, digits_classifier, on_nonfinite="skip")
    with pytest.raises(FloatingPointError, match="no batch of epoch 0 has a finite loss"):
        training.fit(x, Y[:64], batch_size=32, nb_epochs=1)
    assert same(start, weights(digits_classifier))


def test_copies_are_of_all_types_and_shapes():
    tensors = [torch.ones(2), torch.tensor(3), torch.zeros(2, 3).bfloat16(), torch.ones(0)]
    expected = [tensor.clone() for tensor in tensors]
    copies = Copies(lambda: tensors)
    for _ in range(2):
        copies.take()
        for tensor in tensors:
            tensor.fill_(7)
        copies.put_back()
        assert all(torch.equal(*pair) for pair in zip(tensors, expected, strict=True))
    tensors[0] = torch.ones(5)  # a module may register another one
    copies.take()
    tensors[0].fill_(2)
    copies.put_back()
    assert tensors[0].tolist() == [1.0] * 5
    copy_all([], [])


def test_modes_are_switched_where_they_differ():
    model = DigitsNetwork()
    model.features[0].requires_grad_(False)
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    expected = copy.deepcopy(model)
    set_training_mode(expected)
    modes = Modes(classifier)
    assert not any(module.training for module in model.modules())
    for _ in range(2):
        with modes.training():
            assert [m.training for m in model.modules()] == [m.training for m in expected.modules()]
            assert model.training
            assert not model.features[0].training
        assert not any(module.training for module in model.modules())
    with modes.frozen():
        assert not any(weight.requires_grad for weight in model.parameters())
    assert [w.requires_grad for w in model.parameters()] == [w.requires_grad for w in expected.parameters()]


@both
def test_a_module_hears_of_its_modes_where_it_wants_to(kind):
    heard = []

    class Merging(nn.Linear):
        """A layer that does something when the mode changes, as adapters do that merge their weights."""

        def train(self, mode: bool = True):
            heard.append(mode)
            return super().train(mode)

    model = nn.Sequential(nn.Flatten(), Merging(64, 10))
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    training = trainer(kind, classifier)
    training.fit(X[:64], Y[:64], batch_size=32, nb_epochs=0)
    heard.clear()
    training.fit(X[:64], Y[:64], batch_size=32, nb_epochs=1)
    assert heard.count(True) >= 2
    assert heard[-1] is False


@both
def test_updates_run_in_bfloat16_with_weights_in_float32(digits_classifier, kind):
    start, seen, found = weights(digits_classifier), [], {}
    model = digits_classifier.model
    digits_classifier.set_params(optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    model.head.register_forward_hook(lambda module, _, out: seen.append((module.training, out.dtype)))
    for name in ("float32", "bfloat16"):
        model.load_state_dict(start)
        digits_classifier.optimizer.state.clear()
        torch.manual_seed(0)
        seen.clear()
        training = trainer(kind, digits_classifier, update_precision=name)
        training.fit(X[:64], Y[:64], batch_size=64, nb_epochs=1)
        assert {dtype for in_training, dtype in seen if in_training} == {getattr(torch, name)}
        assert {dtype for in_training, dtype in seen if not in_training} == {torch.float32}
        assert {value.dtype for value in weights(digits_classifier).values()} == {torch.float32, torch.int64}
        momenta = [state["momentum_buffer"] for state in digits_classifier.optimizer.state.values()]
        assert {momentum.dtype for momentum in momenta} == {torch.float32}
        found[name] = weights(digits_classifier)
        assert np.isfinite(training.history[-1]["loss"])
    assert not same(found["float32"], found["bfloat16"])
    for name, value in found["float32"].items():
        torch.testing.assert_close(found["bfloat16"][name], value, rtol=0.05, atol=0.01)


@both
def test_an_update_is_in_one_of_two_formats(digits_classifier, kind):
    for value in ("float16", None, 16):
        message = rf"update_precision is {value!r}; allowed is one of 'float32', 'bfloat16'"
        with pytest.raises(ValueError, match=message):
            trainer(kind, digits_classifier, update_precision=value)
