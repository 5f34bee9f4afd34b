# SPDX-License-Identifier: MIT
"""What recipes add to a training: schedules by minibatch, averaged and perturbed weights, bounded gradients."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.data_generators import NumpyDataGenerator
from art.defences.trainer import AdversarialTrainerAWPPyTorch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from art_wdro import DistributionalTRADESTrainer, WassersteinMarginTrainer
from art_wdro.trainers._schedule import Schedule
from art_wdro.trainers._update import Updates
from tests.conftest import digits, make_classifier, same, trainer, weights

(X, Y), (X_TEST, Y_TEST) = digits()
HELD = (X_TEST[:40], Y_TEST[:40])
both = pytest.mark.parametrize("kind", [DistributionalTRADESTrainer, WassersteinMarginTrainer])


def after_updates(monkeypatch: pytest.MonkeyPatch, look: Any) -> list[Any]:
    """Collect what is seen after every update."""
    seen, update = [], Updates.__call__

    def watched(updates: Updates, *args: Any) -> Any:
        figures = update(updates, *args)
        seen.append(look())
        return figures

    monkeypatch.setattr(Updates, "__call__", watched)
    return seen


def fitted(training: Any, call: str, **settings: Any) -> None:
    """Train on three minibatches an epoch, in the order of the samples."""
    if call == "fit":
        training.fit(X[:96], Y[:96], batch_size=32, **settings)
    else:
        training.fit_generator(NumpyDataGenerator(X[:96], Y[:96], batch_size=32), **settings)


# --- schedules ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("call", ["fit", "fit_generator"])
def test_a_cycle_by_minibatch_ends_at_its_last_value(digits_classifier, kind, call, monkeypatch):
    optimiser = torch.optim.SGD(digits_classifier.model.parameters(), lr=0.1, momentum=0.9)
    digits_classifier.set_params(optimizer=optimiser)
    scheduler = lr_scheduler.OneCycleLR(optimiser, 0.2, total_steps=6)
    twin = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    expected, by_hand = [], lr_scheduler.OneCycleLR(twin, 0.2, total_steps=6)
    for _ in range(6):
        expected.append((by_hand.get_last_lr()[0], twin.param_groups[0]["momentum"]))
        twin.step()
        by_hand.step()
    rates = after_updates(monkeypatch, lambda: (optimiser.param_groups[0]["lr"], optimiser.param_groups[0]["momentum"]))
    fitted(trainer(kind, digits_classifier), call, nb_epochs=2, scheduler=scheduler, scheduler_step="batch")
    assert rates == expected
    assert optimiser.param_groups[0]["lr"] == expected[-1][0] == pytest.approx(0.2 / 25 / 1e4)


@both
def test_a_scheduler_by_epoch_is_not_stepped_by_minibatch(digits_classifier, kind, monkeypatch):
    scheduler = lr_scheduler.StepLR(digits_classifier.optimizer, 1, gamma=0.5)
    rates = after_updates(monkeypatch, lambda: digits_classifier.optimizer.param_groups[0]["lr"])
    fitted(trainer(kind, digits_classifier), "fit", nb_epochs=2, scheduler=scheduler)
    assert rates == [0.05] * 3 + [0.025] * 3
    rates.clear()
    fitted(trainer(kind, digits_classifier), "fit", nb_epochs=1, scheduler=scheduler, scheduler_step="batch")
    assert rates == [0.0125, 0.00625, 0.003125]


@both
@pytest.mark.parametrize(
    ("total", "step", "needed"), [(7, "batch", 6), (5, "batch", 6), (2, "batch", 6), (6, "epoch", 2), (1, "epoch", 2)]
)
def test_a_cycle_of_another_length_is_told_before_training(digits_classifier, kind, total, step, needed):
    scheduler = lr_scheduler.OneCycleLR(digits_classifier.optimizer, 0.1, total_steps=total, cycle_momentum=False)
    start = weights(digits_classifier)
    of = " of 3 minibatches" if step == "batch" else ""
    message = rf"total_steps={total}; needed with scheduler_step='{step}' are {needed}, for 2 epochs{of}"
    for call in ("fit", "fit_generator"):
        with pytest.raises(ValueError, match=message):
            fitted(trainer(kind, digits_classifier), call, nb_epochs=2, scheduler=scheduler, scheduler_step=step)
    assert same(start, weights(digits_classifier))


@both
def test_a_scheduler_that_cannot_be_stepped_so_is_told(digits_classifier, kind):
    plateau = lr_scheduler.ReduceLROnPlateau(digits_classifier.optimizer)
    for scheduler, step, message in (
        (plateau, "batch", "scheduler is a ReduceLROnPlateau, which wants a figure of the epoch; allowed with it is"),
        (None, "minibatch", "scheduler_step is 'minibatch'; allowed is one of 'epoch', 'batch'"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted(trainer(kind, digits_classifier), "fit", nb_epochs=2, scheduler=scheduler, scheduler_step=step)


def test_a_skipped_minibatch_counts_in_a_cycle():
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = Schedule(lr_scheduler.StepLR(optimiser, 1, 0.5), "batch")
    schedule.after_minibatch(updated=False)  # before any step of the optimiser, which torch warns of
    optimiser.step()
    schedule.after_minibatch(updated=True)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.025)


# --- averaged weights ---------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("call", ["fit", "fit_generator"])
def test_averaged_weights_are_torchs(digits_classifier, kind, call, monkeypatch):
    """Without validation the classifier keeps the average, buffers too, and `final_state` its own weights."""
    average = AveragedModel(digits_classifier.model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    by_hand: dict[str, torch.Tensor] = {}

    def look() -> dict[str, torch.Tensor]:
        average.update_parameters(digits_classifier.model)
        for name, value in weights(digits_classifier).items():
            before = by_hand.get(name, value)
            by_hand[name] = 0.7 * before + 0.3 * value if value.is_floating_point() else value
        return weights(digits_classifier)

    seen = after_updates(monkeypatch, look)
    training = trainer(kind, digits_classifier, ema=0.7)
    fitted(training, call, nb_epochs=2)
    found = weights(digits_classifier)
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(found[name], value)
            torch.testing.assert_close(found[name], by_hand[name])
    assert found["features.1.num_batches_tracked"] == seen[-1]["features.1.num_batches_tracked"]
    assert same(training.final_state, seen[-1])
    mean = "features.1.running_mean"
    assert not torch.equal(found[mean].cpu(), training.final_state[mean])


@both
def test_the_average_is_validated_selected_and_shown(digits_classifier, kind, monkeypatch):
    """Raw weights are far off in the second epoch; `on_epoch` and validation see the average."""
    shown, seen = [], after_updates(monkeypatch, lambda: weights(digits_classifier))
    training = trainer(kind, digits_classifier, ema=0.9)
    validate = training._validate
    validated = []

    def watched(data: Any) -> Any:
        validated.append(weights(digits_classifier))
        return validate(data) | {"wp_accuracy": [0.5, 0.9, 0.7][len(validated) - 1]}

    training._validate = watched
    settings = {"validation_data": HELD, "on_epoch": lambda *_: shown.append(weights(digits_classifier))}
    training.fit(X[:96], Y[:96], batch_size=32, nb_epochs=3, **settings)
    assert training.best_epoch == 1
    assert same(weights(digits_classifier), validated[1])
    for own, other in zip(validated, shown, strict=True):
        assert same(own, other)
    for own, raw in zip(validated, seen[2::3], strict=True):
        assert not same(own, raw)
    assert same(training.final_state, seen[-1])


def test_an_average_without_a_past_is_the_network(digits_classifier):
    start, results = weights(digits_classifier), []
    for ema in (0.0, None):
        digits_classifier.model.load_state_dict(start)
        torch.manual_seed(0)
        training = trainer(DistributionalTRADESTrainer, digits_classifier, ema=ema)
        training.fit(X[:96], Y[:96], HELD, batch_size=32, nb_epochs=2)
        figures = [{k: v for k, v in record.items() if k != "seconds"} for record in training.history]
        results.append((weights(digits_classifier), training.final_state, figures))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


@both
@pytest.mark.parametrize("validation", [None, HELD])
@pytest.mark.parametrize("mode", ["ema", "perturbation", "cycle", "all"])
def test_a_run_goes_on_from_its_checkpoint_with_the_same_bits(digits_classifier, kind, validation, mode, tmp_path):
    start, results = weights(digits_classifier), []
    settings = {
        "ema": {"ema": 0.8},
        "perturbation": {"weight_perturbation": 0.01},
        "cycle": {},
        "all": {"ema": 0.8, "weight_perturbation": 0.01, "max_grad_norm": 0.5, "update_precision": "bfloat16"},
    }[mode]
    if mode == "all":
        settings |= {"precision": "bfloat16"}
    for stops in ([3], [1, 2, 3]):
        digits_classifier.model.load_state_dict(start)
        torch.manual_seed(0)
        for stop in stops:
            optimiser = torch.optim.SGD(digits_classifier.model.parameters(), lr=0.1, momentum=0.9)
            digits_classifier.set_params(optimizer=optimiser)
            cycle = lr_scheduler.CyclicLR(optimiser, 0.01, 0.1, 4)
            training = trainer(kind, digits_classifier, **settings)
            training.fit(
                X[:96],
                Y[:96],
                validation,
                batch_size=32,
                nb_epochs=stop,
                checkpoint=tmp_path / f"{len(stops)}.ckpt",
                scheduler=cycle if mode in ("cycle", "all") else None,
                scheduler_step="batch" if mode in ("cycle", "all") else "epoch",
            )
            torch.manual_seed(stop + 1)  # which the checkpoint overrules
        figures = [{k: v for k, v in record.items() if k != "seconds"} for record in training.history]
        results.append((weights(digits_classifier), training.final_state, figures, training.best_epoch))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])
    assert results[0][2:] == results[1][2:]


# --- perturbed weights --------------------------------------------------------------------------------------------


def smooth() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Softplus(), nn.BatchNorm1d(24), nn.Linear(24, 10))


def test_a_step_at_perturbed_weights_is_that_of_art(monkeypatch):
    """The pointwise case: the same attack, the same outer loss, one minibatch, and another step without it."""
    monkeypatch.setattr(np.random, "shuffle", lambda indices: None)
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    found = {}
    for name, size in (("ART", 0.05), ("ours", 0.05), ("without", 0.0)):
        model = smooth()
        classifier = make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
        attack = ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.05, max_iter=3, verbose=False)
        if name == "ART":
            proxy = copy.deepcopy(model)
            optimiser = torch.optim.SGD(proxy.parameters(), lr=0.01)
            other = make_classifier(proxy, (1, 8, 8), 10, optimizer=optimiser)
            training = AdversarialTrainerAWPPyTorch(classifier, other, attack, "TRADES", size, 6.0, warmup=0)
        else:
            with pytest.warns(UserWarning, match="pointwise TRADES with it"):
                training = DistributionalTRADESTrainer(classifier, attack, 6.0, weight_perturbation=size, verbose=False)
        training.fit(X[:64], Y[:64], batch_size=64, nb_epochs=1)
        found[name] = weights(classifier)
    for name, value in found["ART"].items():
        torch.testing.assert_close(found["ours"][name], value, rtol=1e-4, atol=2e-6)
    gap = max((found["ART"][name] - found["without"][name]).abs().max() for name in found["ART"])
    assert gap > 1e-3


@both
def test_perturbed_weights_are_worse_and_come_back(kind, monkeypatch):
    """The perturbation has its length, raises the loss, leaves biases and norms, and figures are without it."""
    model = smooth()
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    losses, states, descend = [], [], Updates._descend

    def watched(updates: Updates, *args: Any) -> Any:
        states.append({name: value.detach().clone() for name, value in model.named_parameters()})
        figures = descend(updates, *args)
        losses.append(figures["loss"].item())
        return figures

    monkeypatch.setattr(Updates, "_descend", watched)
    training = trainer(kind, classifier, weight_perturbation=0.02)
    training.fit(X[:64], Y[:64], batch_size=64, nb_epochs=1)
    plain, worse = losses
    assert worse > plain
    assert training.history[0]["loss"] == plain
    for name, value in model.named_parameters():
        moved = (states[1][name] - states[0][name]).norm()
        if value.dim() > 1:
            assert moved.item() == pytest.approx(0.02 * states[0][name].norm().item(), rel=1e-4)
        else:
            assert moved == 0
        assert torch.equal(value, states[0][name])


@both
def test_an_update_at_perturbed_weights_that_fails_leaves_no_trace(kind):
    model = smooth()
    model[-1].register_forward_hook(lambda *args: args[2] * (torch.nan if model.training else 1.0))
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    start = weights(classifier)
    with pytest.raises(FloatingPointError, match="the weights are still those before it"):
        trainer(kind, classifier, weight_perturbation=0.1).fit(X[:64], Y[:64], nb_epochs=1)
    assert same(start, weights(classifier))


def test_statistics_are_of_one_pass_alone(digits_classifier):
    """Batch norm counts the minibatch once, clean and attacked, though its gradient is taken twice."""
    counted = []
    for size in (0.0, 0.01):
        model = copy.deepcopy(digits_classifier.model)
        classifier = make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        before = model.features[1].num_batches_tracked.item()
        trainer(DistributionalTRADESTrainer, classifier, weight_perturbation=size).fit(X[:64], Y[:64], nb_epochs=1)
        counted.append(model.features[1].num_batches_tracked.item() - before)
    assert counted == [2, 2]


# --- bounded gradients --------------------------------------------------------------------------------------------


@both
def test_a_long_gradient_is_cut_and_a_short_one_is_not(digits_classifier, kind):
    start, steps = weights(digits_classifier), {}
    for bound in (None, 1e3, 0.01):
        digits_classifier.model.load_state_dict(start)
        torch.manual_seed(0)
        trainer(kind, digits_classifier, max_grad_norm=bound).fit(X[:64], Y[:64], batch_size=64, nb_epochs=1)
        moved = [value - start[name] for name, value in digits_classifier.model.named_parameters()]
        steps[bound] = torch.cat([part.detach().flatten() for part in moved])
    assert torch.equal(steps[None], steps[1e3])
    assert steps[0.01].norm().item() == pytest.approx(0.05 * 0.01, rel=1e-2)
    cosine = torch.nn.functional.cosine_similarity(steps[None], steps[0.01], dim=0)
    assert cosine.item() == pytest.approx(1, abs=1e-4)


@both
@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("ema", 1.0, "a number >= 0 and < 1"),
        ("ema", -0.1, "a number >= 0 and < 1"),
        ("ema", np.nan, "a number >= 0 and < 1"),
        ("weight_perturbation", -0.1, "a number >= 0"),
        ("weight_perturbation", np.inf, "a number >= 0"),
        ("max_grad_norm", 0.0, "a number > 0"),
    ],
)
def test_bad_values_are_named(digits_classifier, kind, name, value, allowed):
    with pytest.raises(ValueError, match=rf"{name} is {value}; allowed is {allowed}$"):
        trainer(kind, digits_classifier, **{name: value})
    for other in ("much", True):
        with pytest.raises(TypeError, match=rf"{name} is {other!r}; allowed is {allowed}"):
            trainer(kind, digits_classifier, **{name: other})


@both
@pytest.mark.parametrize(("name", "value"), [("ema", 0.5), ("weight_perturbation", 0.1), ("max_grad_norm", 2.0)])
def test_a_checkpoint_of_another_recipe_is_refused(digits_classifier, kind, name, value, tmp_path):
    file = tmp_path / "run.ckpt"
    trainer(kind, digits_classifier).fit(X[:64], Y[:64], nb_epochs=1, checkpoint=file)
    with pytest.raises(ValueError, match=rf"was made with {name} = .*, and now it is {value}"):
        trainer(kind, digits_classifier, **{name: value}).fit(X[:64], Y[:64], nb_epochs=1, checkpoint=file)


def test_everything_works_with_everything(digits_classifier):
    for kind, options in itertools.product(
        [DistributionalTRADESTrainer, WassersteinMarginTrainer],
        itertools.product([None, 0.9], [0.0, 0.01], [None, 1.0]),
    ):
        ema, size, bound = options
        training = trainer(kind, digits_classifier, ema=ema, weight_perturbation=size, max_grad_norm=bound)
        training.fit(X[:64], Y[:64], HELD, batch_size=32, nb_epochs=1)
        assert np.isfinite(training.history[0]["loss"])
