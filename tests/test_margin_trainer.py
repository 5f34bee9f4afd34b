# SPDX-License-Identifier: MIT
"""The margin trainer: closed forms on linear models, the knapsack's dual, real training on digits, ART's contract."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator
from art.defences.trainer import AdversarialTrainerTRADES, AdversarialTrainerTRADESPyTorch, Trainer
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.nn.functional import cross_entropy

from art_wdro import WassersteinKnapsack, WassersteinMarginTrainer, knapsack_accuracy
from art_wdro._solvers.boundary import boundary
from art_wdro._threat.knapsack import knapsack
from art_wdro._threat.norms import dual_exponent
from art_wdro.trainers._dual import RunningThresholds, dual_accuracy, hinge_loss, slopes_of_hinges
from tests.conftest import NORMS, ORDERS, digits, linear_problem, make_classifier, on_device, on_host, same, weights

(X, Y), (X_TEST, Y_TEST) = digits()
FIGURES = {
    "epoch",
    "loss",
    "clean_loss",
    "margin_loss",
    "anchor_loss",
    "train_clean_accuracy",
    "train_adversarial_accuracy",
    "tau",
    "learning_rate",
    "skipped_batches",
    "seconds",
    "clean_accuracy",
    "winf_accuracy",
    "wp_accuracy",
}


def trainer(classifier: PyTorchClassifier, **settings) -> WassersteinMarginTrainer:
    settings = {"eps": 0.1, "max_iter": 4, "seed": 0, "verbose": False} | settings
    return WassersteinMarginTrainer(classifier, **settings)


def linear_distances(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, y: torch.Tensor, r: float):
    """Least l_r distances of a linear model without a box, differentiable in its weights; 0 where misclassified."""
    logits = x @ weight.T + bias
    rows = torch.arange(len(x), device=x.device)
    gaps = logits[rows, y][:, None] - logits
    slopes = torch.linalg.vector_norm(weight[None] - weight[y][:, None], ord=dual_exponent(r), dim=2)
    own = nn.functional.one_hot(y, logits.shape[1]).bool()
    distances = torch.where(own, torch.inf, gaps / torch.where(own, 1.0, slopes)).amin(1)
    return distances.clamp(min=0.0)


def linear(classes: int, r: float, seed: int = 0):
    """A linear model, samples that it classifies correctly but for one in ten, and their least distances."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 12, generator=generator, dtype=torch.float64)
    bias = 0.1 * torch.randn(classes, generator=generator, dtype=torch.float64)
    x = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    y = (x @ weight.T + bias).argmax(1)
    y[::10] = (y[::10] + 1) % classes
    placed = tuple(map(on_device, (weight, bias, x, y)))
    return *placed, linear_distances(*placed, r)


@pytest.mark.parametrize(("r", "steps", "tolerance"), [(math.inf, 10, 0.01), (2.0, 10, 0.01), (1.0, 60, 0.05)])
def test_boundary_points_of_two_classes_are_the_closed_form(r, steps, tolerance):
    weight, bias, x, y, expected = linear(2, r)
    reach = expected.median().item()
    found = boundary(lambda z: z @ weight.T + bias, x, y, r, reach=reach, max_iter=steps)
    near, far = (expected > 0) & (expected < reach * (1 - tolerance)), expected > reach * (1 + 1e-6)
    assert near.sum() > 50
    assert far.sum() > 50
    torch.testing.assert_close(found.distances[near], expected[near], rtol=tolerance, atol=0)
    assert (found.distances[expected == 0] == 0).all()
    assert torch.isinf(found.distances[far]).all()
    assert torch.equal(found.x[far], x[far])
    slope = torch.linalg.vector_norm(weight[1] - weight[0], ord=dual_exponent(r))
    torch.testing.assert_close(found.slopes[near], slope.expand(int(near.sum())))
    assert found.gradients == steps * len(x)
    predicted = (found.x @ weight.T + bias).argmax(1)
    assert (predicted != y)[torch.isfinite(found.distances)].all()


def test_boundary_points_stay_in_the_box_and_bound_the_distance_from_above():
    problem = linear_problem()
    x, y = on_device(problem.x), on_device(problem.y)
    layer = problem.classifier.model[-1]
    expected = linear_distances(layer.weight.detach().double(), layer.bias.detach().double(), x.double(), y, math.inf)
    box = on_device(torch.tensor(0.0)), on_device(torch.tensor(1.0))
    found = boundary(problem.classifier.model, x, y, math.inf, reach=0.3, max_iter=10, box=box)
    assert (found.x >= 0).all()
    assert (found.x <= 1).all()
    assert (found.distances >= expected - 1e-6).all()
    moved = torch.isfinite(found.distances)
    assert (found.distances[moved] <= 1.3 * expected[moved] + 1e-6).double().mean() > 0.9


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("r", [2.0, math.inf])
def test_the_gradient_is_that_of_the_closed_form(p, r):
    """d_i from the boundary search and the implicit function theorem, against autograd through the formula of d_i."""
    weight, bias, x, y, _ = linear(2, r)
    right = (x @ weight.T + bias).argmax(1) == y
    x, y = x[right], y[right]
    weight, bias = 20 * weight, 20 * bias  # so steep that no margin reaches the largest weight
    weight.requires_grad_()
    bias.requires_grad_()
    distances = linear_distances(weight, bias, x, y, r)
    middle = distances.detach().sort().values[80:120]
    widest = middle.diff().argmax()  # so that the search's errors put no sample on the other side of tau
    tau = (middle[widest] + middle[widest + 1]) / 2
    ratios = (distances / tau).clamp(max=1.0)
    expected = (1 - (ratios if math.isinf(p) else ratios.pow(p))).mean()
    expected_gradients = torch.autograd.grad(expected, (weight, bias))
    found = boundary(lambda z: z @ weight.detach().T + bias.detach(), x, y, r, reach=1.3 * tau, max_iter=40)
    assert (slopes_of_hinges(found.distances, tau[None], p) < found.slopes).all()
    loss = hinge_loss(found.x @ weight.T + bias, y, found.distances, found.slopes, tau[None], p)
    assert loss.item() == pytest.approx(expected.item(), abs=2e-3)
    for got, wanted in zip(torch.autograd.grad(loss, (weight, bias)), expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=0.03 * wanted.abs().max().item(), rtol=0.03)


@pytest.mark.parametrize("p", ORDERS)
def test_the_threshold_makes_the_dual_equal_to_the_knapsack(p):
    distances = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.4
    distances[:50], distances[50:80] = 0.0, torch.inf
    threshold = RunningThresholds(0.05, p, 1, window=3, device="cpu")
    for part in torch.randn(100, generator=torch.Generator().manual_seed(1)).split(100):
        threshold.update(part.abs().double())  # which the window forgets
    for part in (distances[:100], distances[100:300], distances[300:]):
        (tau,) = threshold.update(part)
    wanted = knapsack_accuracy(distances.numpy(), 0.05, p)
    assert dual_accuracy(distances, tau, 0.05, p).item() == pytest.approx(wanted, abs=1e-9)
    if math.isinf(p):
        assert tau == 0.05
        return
    for other in (0.8 * tau, 1.2 * tau):  # the dual is a minimum
        assert dual_accuracy(distances, other, 0.05, p).item() < wanted
    logits = torch.zeros(500, 2, dtype=torch.float64)
    labels = torch.zeros(500, dtype=torch.long)
    value = hinge_loss(logits, labels, distances, torch.ones_like(distances), tau[None], p)
    assert value.item() + (0.05 / tau.item()) ** p == pytest.approx(1 - wanted, abs=1e-9)


def test_the_threshold_starts_at_twice_the_budget_and_grows_where_nothing_is_out_of_reach():
    threshold = RunningThresholds(0.1, 2.0, 2, window=2, device="cpu")
    assert threshold.values.tolist() == [0.1, 0.2]
    assert threshold.update(torch.tensor([0.01, 0.02, torch.inf], dtype=torch.float64)).tolist() == [0.02, 0.02]
    pointwise = RunningThresholds(0.1, math.inf, 2, window=2, device="cpu")
    assert pointwise.update(torch.zeros(3, dtype=torch.float64)).tolist() == [0.05, 0.1]


def test_the_threshold_is_the_reach_where_what_is_in_reach_does_not_take_up_the_budget():
    threshold, infinite = RunningThresholds(0.1, 2.0, 2, window=2, device="cpu"), torch.inf
    distances = torch.tensor([0.0, 0.05, infinite, infinite], dtype=torch.float64)
    assert threshold.update(distances, 0.13).tolist() == [0.1, 0.13]  # the first at its most, 0.05 sqrt(4)
    assert threshold.update(distances, 0.169).tolist() == pytest.approx([0.05 * 8**0.5, 0.169])
    assert threshold.update(distances, 1e9).tolist() == pytest.approx([0.05 * 8**0.5, 0.1 * 8**0.5])
    assert threshold.update(distances + 0.08, 0.1).tolist() == [0.13, 0.13]  # what was found counts where it lies


def test_the_threshold_grows_over_a_gap_between_distances():
    problem = linear_problem(classes=2)
    model = problem.classifier.model
    x, right = on_device(problem.x), problem.classifier.predict(problem.x).argmax(1)
    layer = model[-1]
    distances = on_host(linear_distances(layer.weight, layer.bias, x, on_device(right), math.inf).detach())
    far = distances > np.median(distances)
    eps = float(np.median(distances)) / 3  # none is in reach at first, up to 2.6 eps
    classifier = make_classifier(model, (30,), 2, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    fine_tuning = trainer(classifier, eps=eps, max_iter=10, window=3)  # an epoch
    fine_tuning.fit(problem.x[far], right[far], batch_size=10, nb_epochs=6)
    record = fine_tuning.history[-1]
    assert record["tau"] == pytest.approx(knapsack(distances[far], eps, 2.0).threshold, rel=1e-2)
    assert record["train_adversarial_accuracy"] == pytest.approx(knapsack_accuracy(distances[far], eps, 2), abs=1e-2)


@pytest.mark.parametrize("slope", [0.0, 1.0, torch.inf])
def test_only_samples_within_tau_move(slope):
    logits = torch.zeros(4, 3, dtype=torch.float64)
    logits[0, 1] = 1e9  # far on the other side, whatever the slope
    logits.requires_grad_()
    distances = torch.tensor([0.0, 0.5, 1.5, torch.inf], dtype=torch.float64)
    slopes = torch.full((4,), slope, dtype=torch.float64)
    hinge_loss(logits, torch.tensor([0, 1, 2, 0]), distances, slopes, distances.new_tensor([0.1, 1.0]), 2.0).backward()
    assert logits.grad.abs().sum(1).gt(0).tolist() == [False, math.isfinite(slope), False, False]


def test_a_misclassified_sample_is_drawn_back_as_one_as_far_before_the_boundary_is_pushed_off():
    margins, slopes = torch.tensor([[0.5, 0.0, 4.0, 0.0, -0.1], [2.0, 2.0, 2.0, 0.0, 2.0]], dtype=torch.float64)
    distances = torch.tensor([0.0, 0.25, 0.0, 0.0, 0.0], dtype=torch.float64)
    logits = torch.stack([-margins, 0 * margins], 1).requires_grad_()
    loss = hinge_loss(logits, torch.zeros(5, dtype=torch.long), distances, slopes, distances.new_tensor([1.0]), 1.5)
    loss.backward()
    weight = 1.5 * 0.25**0.5 / 2
    # what is wrong by more than tau is given up; in train mode a margin may have changed its sign
    torch.testing.assert_close(5 * logits.grad[:, 1], distances.new_tensor([weight, weight, 0.0, 0.0, 0.0]))
    assert loss.item() == pytest.approx((4 + 1 - 0.25**1.5) / 5)


@pytest.mark.parametrize(
    ("p", "taus", "expected"),
    [
        (2.0, [1.0], [1.0, 1.0, 1.0, 0.25]),
        (2.0, [1.0, 0.1], [1.0, 1.0, 0.5, 0.125]),  # the mean over thresholds is bounded, not each of them
        (math.inf, [1.0], [1.0, 1.0, 1.0, 0.25]),
    ],
)
def test_a_flat_margin_weighs_no_more_than_in_the_cross_entropy(p, taus, expected):
    logits = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    distances, slopes = torch.tensor([[0.5] * 4, [0.0, 1e-6, 1.0, 4.0]], dtype=torch.float64)
    taus = distances.new_tensor(taus)
    loss = hinge_loss(logits, torch.zeros(4, dtype=torch.long), distances, slopes, taus, p)
    loss.backward()
    torch.testing.assert_close(4 * logits.grad[:, 1], distances.new_tensor(expected))
    steep = hinge_loss(logits, torch.zeros(4, dtype=torch.long), distances, 1e3 + slopes, taus, p)
    assert loss.item() == steep.item()  # the bound is one of the gradient


def test_an_untrained_network_with_batch_norm_learns():
    """Its running statistics fit nothing yet, and its margins are flat in eval mode."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    body += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(32, 10))
    classifier = make_classifier(
        model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    )
    fine_tuning = trainer(classifier, anchor=0, beta=3)
    fine_tuning.fit(X, Y, batch_size=64, nb_epochs=3)
    assert fine_tuning.history[-1]["train_clean_accuracy"] > 0.6


def test_an_anchor_of_a_network_that_predicts_like_chance_is_warned_of_once(digits_classifier, tmp_path):
    torch.nn.init.zeros_([*digits_classifier.model.parameters()][-2])
    fit = {"batch_size": 64, "checkpoint": tmp_path / "run.ckpt"}
    with pytest.warns(UserWarning, match=r"was right on \d+ % of the first minibatch, .* pass anchor=0") as said:
        trainer(digits_classifier).fit(X[:64], Y[:64], **fit, nb_epochs=2)
    assert len(said) == 1
    trainer(digits_classifier).fit(X[:64], Y[:64], **fit, nb_epochs=3)  # warnings are errors
    trainer(digits_classifier, anchor=0).fit(X[:64], Y[:64], batch_size=64, nb_epochs=1)


def test_a_network_that_is_right_on_all_of_few_samples_is_not_said_to_predict_like_chance():
    problem = linear_problem(classes=2)
    model = problem.classifier.model
    classifier = make_classifier(model, (30,), 2, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    x = problem.x[:4]
    trainer(classifier).fit(x, classifier.predict(x).argmax(1), nb_epochs=1)  # warnings are errors
    with pytest.warns(UserWarning, match="was right on 0 % of the first minibatch"):
        trainer(classifier).fit(x, classifier.predict(x).argmin(1), nb_epochs=1)


def test_an_anchor_holds_what_the_network_says():
    problem, moved = linear_problem(), {}
    model = problem.classifier.model
    start, said = copy.deepcopy(model.state_dict()), problem.classifier.predict(problem.x)
    for anchor in (0, 0.5, 1):
        model.load_state_dict(start)
        classifier = make_classifier(model, (30,), 5, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
        fine_tuning = trainer(classifier, beta=0, anchor=anchor)
        fine_tuning.fit(problem.x, problem.y, batch_size=16, nb_epochs=2)
        moved[anchor] = np.abs(classifier.predict(problem.x) - said).mean()
    assert fine_tuning.history[-1]["anchor_loss"] == pytest.approx(0, abs=1e-7)
    assert moved[1] < 1e-5
    assert 1e-2 < moved[0.5] < moved[0]


@pytest.mark.slow
def test_training_raises_held_out_knapsack_accuracy_by_ten_points(digits_classifier):
    def knapsack() -> tuple[float, float]:
        attack = WassersteinKnapsack(digits_classifier, eps=0.1, max_iter=100, verbose=False)
        attack.generate(X_TEST[:300], Y_TEST[:300])
        return tuple(knapsack_accuracy(attack.distances_, [0.0, 0.1]))

    before = knapsack()
    trainer(digits_classifier, max_iter=10).fit(X, Y, batch_size=64, nb_epochs=6)
    after = knapsack()
    assert after[1] > before[1] + 0.1
    assert after[0] > before[0] - 0.02


def test_one_minibatch_is_the_objective():
    """A step on the whole data set, by hand: clean losses plus beta times the hinges at the boundary points."""
    problem = linear_problem()
    model = problem.classifier.model
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 2.5  # so that the largest weight holds for half of the margins
    classifier = make_classifier(model, (30,), 5, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    x, y = on_device(problem.x), on_device(problem.y)
    box = on_device(torch.tensor(0.0)), on_device(torch.tensor(1.0))
    found = boundary(model, x, y, math.inf, reach=1.3 * 2 * 0.05, max_iter=6, box=box)
    whole = on_host(found.distances)
    taus = [knapsack(whole, 0.025, 2.0).threshold, knapsack(whole, 0.05, 2.0).threshold]
    value = np.mean([(1 - (found.distances / tau).clamp(max=1.0) ** 2).mean().item() for tau in taus])
    for budget, tau in zip((0.025, 0.05), taus, strict=True):
        hinge = (1 - (found.distances / tau).clamp(max=1.0) ** 2).mean().item()
        assert 1 - (budget / tau) ** 2 - hinge == pytest.approx(knapsack_accuracy(whole, budget, 2), abs=1e-9)
    logits = model(found.x)
    margins = logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]
    of_margins = torch.zeros_like(found.distances)
    far = torch.where(found.distances > 0, found.distances, margins.detach() / found.slopes)
    for tau in taus:
        near = (far > 0) & (far < tau)
        assert 5 < near.sum() < 54
        of_margins[near] += 2 * far[near] / tau**2 / found.slopes[near] / len(taus)
    assert 5 < (of_margins > 1).sum() < (of_margins > 0).sum() - 5
    assert ((found.distances == 0) & (of_margins > 0)).any()
    said = model(x).softmax(1).detach()
    held = (said * (said.log() - model(x).log_softmax(1))).sum(1).mean()  # 0, and so is its gradient
    clean_loss = cross_entropy(model(x), y)
    (0.4 * held + 0.6 * clean_loss + 1.5 * (of_margins.clamp(max=1) * margins).mean()).backward()
    clean_loss = clean_loss.item()
    expected = {name: (w - 0.5 * w.grad).detach() for name, w in model.named_parameters()}
    fine_tuning = trainer(classifier, eps=0.05, max_iter=6, beta=1.5, budgets=2, anchor=0.4)
    fine_tuning.fit(problem.x, problem.y, batch_size=100, nb_epochs=1)
    record = fine_tuning.history[0]
    assert record["tau"] == taus[-1]
    assert record["margin_loss"] == pytest.approx(value, rel=1e-5)
    assert record["loss"] == pytest.approx(0.6 * clean_loss + 1.5 * value, rel=1e-5)
    assert record["train_adversarial_accuracy"] == pytest.approx(knapsack_accuracy(whole, 0.05, 2), abs=1e-6)
    for name, weight in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("p", [1.5, 2.0, np.inf])
@pytest.mark.parametrize("norm", NORMS)
def test_every_threat_trains(digits_classifier, p, norm):
    eps = {1.0: 2.0, 2.0: 0.5, math.inf: 0.1}[norm]
    before = weights(digits_classifier)
    fine_tuning = trainer(digits_classifier, p=p, norm=norm, eps=eps)
    fine_tuning.fit(X[:128], Y[:128], validation_data=(X_TEST[:40], Y_TEST[:40]), batch_size=64, nb_epochs=1)
    record = fine_tuning.history[0]
    assert record.keys() == FIGURES
    assert record["loss"] == pytest.approx(record["anchor_loss"] + 0.5 * record["margin_loss"], rel=1e-6)
    assert record["anchor_loss"] > 0
    assert record["margin_loss"] > 0
    assert record["tau"] == eps if math.isinf(p) else record["tau"] > eps
    assert not same(before, weights(digits_classifier))


def test_where_all_is_misclassified_labels_alone_train(digits_classifier):
    wrong, start, results = digits_classifier.predict(X[:40]).argmin(1), weights(digits_classifier), []
    for beta in (0.0, 100.0):
        digits_classifier.model.load_state_dict(start)
        torch.manual_seed(0)
        fine_tuning = trainer(digits_classifier, beta=beta, anchor=0)
        fine_tuning.fit(X[:40], wrong, nb_epochs=1)
        results.append(weights(digits_classifier))
    record = fine_tuning.history[0]
    assert record["tau"] == 0
    assert record["train_adversarial_accuracy"] == 0
    assert record["margin_loss"] == 1
    assert same(*results)
    assert not same(start, results[0])


def test_zero_budget_is_clean_training(digits_classifier):
    fine_tuning = trainer(digits_classifier, eps=0.0)
    fine_tuning.fit(X[:64], Y[:64], nb_epochs=1)
    record = fine_tuning.history[0]
    assert record["margin_loss"] == pytest.approx(1 - record["train_adversarial_accuracy"])
    assert record["train_adversarial_accuracy"] > 0.9


def test_a_run_goes_on_from_its_checkpoint_with_the_same_bits(digits_classifier, tmp_path):
    start, settings = weights(digits_classifier), {"batch_size": 32, "validation_data": (X_TEST[:40], Y_TEST[:40])}
    results = []
    for stops in ([3], [1, 2, 3]):
        digits_classifier.model.load_state_dict(start)
        digits_classifier.optimizer.state.clear()
        torch.manual_seed(0)
        for stop in stops:
            fine_tuning = trainer(digits_classifier, window=3)
            fine_tuning.fit(X[:96], Y[:96], **settings, nb_epochs=stop, checkpoint=tmp_path / f"{len(stops)}.ckpt")
            torch.manual_seed(stop + 1)  # which the checkpoint overrules
        figures = [{k: v for k, v in record.items() if k != "seconds"} for record in fine_tuning.history]
        results.append((weights(digits_classifier), fine_tuning.final_state, figures))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]
    with pytest.raises(ValueError, match="was made with window = 3, and now it is 16"):
        trainer(digits_classifier).fit(X[:96], Y[:96], **settings, nb_epochs=3, checkpoint=tmp_path / "1.ckpt")


def test_fit_generator_equals_fit(digits_classifier, monkeypatch):
    digits_classifier.model.dropout.p = 0.0
    start = weights(digits_classifier)
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    first = trainer(digits_classifier)
    first.fit(X[:64], Y[:64], batch_size=32, nb_epochs=2)
    expected = weights(digits_classifier)
    digits_classifier.model.load_state_dict(start)
    second = trainer(digits_classifier)
    second.fit_generator(NumpyDataGenerator(X[:64], np.eye(10)[Y[:64]], batch_size=32, shuffle=False), nb_epochs=2)
    assert same(expected, weights(digits_classifier))
    assert [r["tau"] for r in first.history] == [r["tau"] for r in second.history]


def test_it_is_a_trainer_of_art(digits_classifier):
    fine_tuning = trainer(digits_classifier)
    for cls in (Trainer, AdversarialTrainerTRADES, AdversarialTrainerTRADESPyTorch):
        assert isinstance(fine_tuning, cls)
    assert fine_tuning.get_classifier() is digits_classifier
    np.testing.assert_array_equal(fine_tuning.predict(X[:9]), digits_classifier.predict(X[:9]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": -0.1}, "eps is -0.1; allowed"),
        ({"p": 1}, "p is 1"),
        ({"norm": 3}, "norm is 3"),
        ({"max_iter": 1}, "max_iter is 1; allowed"),
        ({"beta": -1.0}, "beta is -1.0; allowed"),
        ({"budgets": 0}, "budgets is 0; allowed"),
        ({"anchor": -0.1}, "anchor is -0.1; allowed is a number >= 0 and <= 1"),
        ({"anchor": 1.5}, "anchor is 1.5; allowed"),
        ({"window": 0}, "window is 0; allowed"),
        ({"precision": "float8"}, "precision is 'float8'; allowed"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite is 'ignore'; allowed"),
    ],
)
def test_bad_values_are_named(digits_classifier, settings, message):
    with pytest.raises(ValueError, match=message):
        trainer(digits_classifier, **settings)


def test_a_loss_that_is_not_finite_stops_training_or_is_skipped(digits_classifier):
    x = X[:96]
    with torch.no_grad():
        digits_classifier.model.head.bias[3] = torch.nan
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 0, batch 0, and the weights are"):
        trainer(digits_classifier).fit(x, Y[:96], batch_size=32, nb_epochs=1)
    with pytest.raises(FloatingPointError, match="no batch of epoch 0 has a finite loss"):
        trainer(digits_classifier, on_nonfinite="skip").fit(x, Y[:96], batch_size=32, nb_epochs=1)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains(digits_classifier, precision):
    fine_tuning = trainer(digits_classifier, precision=precision)
    fine_tuning.fit(X[:64], Y[:64], nb_epochs=1)
    assert math.isfinite(fine_tuning.history[0]["loss"])
