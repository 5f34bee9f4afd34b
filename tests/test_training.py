# SPDX-License-Identifier: MIT
"""The parts of Algorithm 1: consistency terms, batch budgets, Upsilon along training, train mode."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro import DistributionalTRADESTrainer, sensitivity
from art_wdro._threat.norms import dual_exponent, power_mean
from art_wdro.trainers._consistency import CONSISTENCIES, ce_consistency, kl_consistency
from art_wdro.trainers._modes import set_training_mode
from art_wdro.trainers._trades import AlgorithmOne
from art_wdro.trainers._update import Updates
from art_wdro.trainers._upsilon import RunningUpsilon, batch_budget
from tests.conftest import linear_problem, make_classifier, on_device, same


def scalars(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_consistency_terms_are_the_formulas():
    generator = torch.Generator().manual_seed(0)
    clean, adversarial = (torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    soft, softer = clean.softmax(1), adversarial.softmax(1)
    kl = (soft * (soft / softer).log()).sum(1).mean()
    ce = -(soft * softer.log()).sum(1).mean()
    torch.testing.assert_close(kl_consistency(clean, adversarial), kl)
    torch.testing.assert_close(ce_consistency(clean, adversarial), ce)
    torch.testing.assert_close(kl_consistency(clean, clean), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("consistency", CONSISTENCIES.values())
def test_the_gradient_goes_through_both_arguments(consistency):
    clean, adversarial = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    consistency(clean, adversarial).backward()
    assert clean.grad.any()
    assert adversarial.grad.any()


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0, math.inf])
def test_batch_budgets_add_up_to_the_whole(p):
    batches = scalars(0.5, 1.0, 3.0)
    whole = power_mean(batches, dual_exponent(p))
    budgets = torch.stack([batch_budget(0.1, batch, whole, p) for batch in batches])
    assert power_mean(budgets, p).item() == pytest.approx(0.1)
    if math.isinf(p):
        assert budgets.tolist() == pytest.approx([0.1] * 3)
    if p == 2:
        torch.testing.assert_close(budgets, 0.1 * batches / whole)


@pytest.mark.parametrize("p", [1.5, 2.0, math.inf])
def test_nothing_to_attack_gets_no_budget(p):
    zero, one = scalars(0.0, 1.0)
    assert batch_budget(0.1, zero, one, p) == 0
    assert batch_budget(0.1, one, zero, p) == 0
    assert batch_budget(0.1, zero, zero, p) == 0


def test_running_upsilon_starts_at_the_first_estimate_and_moves_by_eta():
    running = RunningUpsilon(eta=0.1, p=2, window=4)
    assert running.update(torch.tensor(5.0)).item() == 5
    assert running.update(torch.tensor(10.0)).item() == pytest.approx(5.5)


def test_running_upsilon_starts_above_zero():
    running = RunningUpsilon(eta=0.1, p=2, window=4)
    assert running.update(torch.tensor(0.0)).item() == 0
    assert running.update(torch.tensor(10.0)).item() == 10


def test_streaming_is_the_weighted_q_mean_of_the_window():
    running = RunningUpsilon(eta=1.0, p=3, window=2)
    q = 1.5
    assert running.stream(scalars(4.0)[0], 10).item() == pytest.approx(4)
    running.stream(scalars(1.0)[0], 10)
    expected = ((10 * 1.0**q + 30 * 2.0**q) / 40) ** (1 / q)
    assert running.stream(scalars(2.0)[0], 30).item() == pytest.approx(expected)


def test_what_is_restored_replaces_what_was_streamed():
    running, other = (RunningUpsilon(eta=1.0, p=2, window=3) for _ in range(2))
    other.stream(scalars(5.0)[0], 7)
    running.stream(scalars(2.0)[0], 10)
    other.set_state(running.state(), torch.device("cpu"))
    assert other.stream(scalars(4.0)[0], 10).item() == pytest.approx(math.sqrt(10))
    other.set_state(RunningUpsilon(eta=1.0, p=2, window=3).state(), torch.device("cpu"))
    assert other.value is None


def trainable(clip_values=(0.0, 1.0)) -> tuple[torch.Tensor, torch.Tensor, PyTorchClassifier]:
    """Samples and labels of a linear model, and it with an optimiser."""
    problem = linear_problem()
    optimiser = torch.optim.SGD(problem.classifier.model.parameters(), lr=0.1)
    classifier = make_classifier(problem.classifier.model, (30,), 5, optimizer=optimiser, clip_values=clip_values)
    return on_device(problem.x), on_device(problem.y), classifier


class Returned:
    """Updates that return the batches that they are given."""

    frozen = nullcontext

    def __call__(self, _, batches, *__):
        return batches


def algorithm_one(classifier: PyTorchClassifier, **settings) -> AlgorithmOne:
    """Algorithm 1 with the budget 0.1 and one step, and updates that return the batches that they are given."""
    trainer = DistributionalTRADESTrainer(classifier, eps=0.1, max_iter=1, verbose=False, **settings)
    return AlgorithmOne(trainer, Returned(), None)


def test_the_budget_of_an_epoch_is_the_mean_over_its_samples():
    """Of minibatches of 16 and 8 samples, between whose Upsilon the running one moves by halves."""
    x, y, classifier = trainable()
    parts = slice(0, 16), slice(16, 24)
    first, second = (sensitivity(classifier, x[part], y[part]) for part in parts)
    assert second != pytest.approx(first, rel=0.01)
    method = algorithm_one(classifier, eta=0.5, window=1)
    for part in parts:
        method.step(x[part], y[part], "")
    whole = (first + second) / 2
    expected = math.sqrt((16 + 8 * (second / whole) ** 2) / 24)
    assert method.finish_epoch()["budget_ratio"] == pytest.approx(expected, rel=1e-5)
    method.step(x[:16], y[:16], "")
    assert method.finish_epoch()["budget_ratio"] == pytest.approx(first / ((whole + first) / 2), rel=1e-5)


def test_the_pointwise_term_moves_every_sample_by_the_whole_budget():
    x, y, classifier = trainable(clip_values=None)
    _, shared, pointwise = algorithm_one(classifier, gamma=1.0).step(x, y, "")
    torch.testing.assert_close((pointwise - x).abs(), torch.full_like(x, 0.1))
    assert (shared - x).abs().amax(1).max() > 0.11


class Tent(nn.Module):
    """Two logits, 1 and a / 2 - |x - 1 / 2|, of which the second one's peak lies at 1 / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.ones_like(x), self.a / 2 - (x - 0.5).abs()], 1)


def test_training_takes_the_last_iterate():
    """Here a step from before the peak of the loss to beyond it, where it is lower."""
    model = Tent()
    classifier = make_classifier(model, (1,), 2, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    _, attacked = algorithm_one(classifier).step(on_device(torch.tensor([[0.49]])), on_device(torch.tensor([0])), "")
    assert attacked.item() == pytest.approx(0.59)


def test_a_minibatch_that_is_skipped_leaves_running_statistics():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = DistributionalTRADESTrainer(
        make_classifier(model, (2,), 2, optimizer=optimiser), on_nonfinite="skip", verbose=False
    )
    updates = Updates(trainer._classifier, trainer._common)
    before = copy.deepcopy(model.state_dict())
    x, y = on_device(torch.rand(8, 2)), on_device(torch.arange(8) % 2)
    for factor in (math.inf, 1.0):
        with updates.prepared():
            figures = updates(y, [x], lambda clean, factor=factor: (factor * clean.square().sum(), {}), "")
        assert (figures is None) == math.isinf(factor)
        assert same(before, model.state_dict()) == math.isinf(factor)


def test_train_mode_leaves_frozen_parts_in_eval_mode():
    frozen = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model = nn.Sequential(frozen, nn.Dropout(), nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    for weight in frozen.parameters():
        weight.requires_grad_(False)
    set_training_mode(model)
    assert not any(m.training for m in frozen.modules())
    assert all(m.training for m in (model[1], model[2], model[3]))


def test_a_network_of_one_layer_that_is_not_frozen_is_trained_as_a_whole():
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Dropout(), nn.Linear(2, 2)).eval()
    set_training_mode(model)
    assert all(m.training for m in model.modules())


def test_with_one_trained_layer_all_the_rest_is_in_eval_mode():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Dropout(), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    set_training_mode(model)
    assert [m.training for m in model] == [False, False, False, True]
