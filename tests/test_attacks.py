# SPDX-License-Identifier: MIT
"""W-PGD and W-FGSM: closed forms on linear models, a slow reference, ART's PGD, and the ART contract."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.defences.preprocessor import GaussianAugmentation, SpatialSmoothing
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier, SklearnClassifier
from art.exceptions import EstimatorError
from art.summary_writer import SummaryWriter
from sklearn.linear_model import LogisticRegression
from torch import nn

from art_wdro import (
    WassersteinFGM,
    WassersteinKnapsack,
    WassersteinPGD,
    adversarial_accuracy,
    sensitivity,
    wasserstein_distance,
)
from art_wdro._host.preprocessing import preprocessing
from art_wdro._solvers.ascent import ascend, relative_steps, step_lengths
from art_wdro._solvers.batches import Samples
from art_wdro._solvers.iterate import Best
from art_wdro._solvers.objective import Objective
from art_wdro._solvers.passes import Passes
from art_wdro._storage.arrays import Rows
from art_wdro._threat.threat import Threat
from art_wdro.losses import attack_objective
from tests.conftest import (
    BUDGETS,
    NORMS,
    ORDERS,
    Problem,
    digits,
    dual,
    linear_problem,
    make_classifier,
    on_device,
    on_host,
)

THREATS = list(itertools.product(ORDERS, NORMS))


def attack(problem: Problem, x: np.ndarray | None = None, **settings) -> np.ndarray:
    settings = {"verbose": False} | settings
    return WassersteinPGD(problem.classifier, **settings).generate(problem.x if x is None else x, problem.y)


def negative_label_logit(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A loss linear in the logits, so linear in the inputs of a linear model."""
    return -logits.gather(1, labels[:, None]).squeeze(1)


def weights(problem: Problem) -> np.ndarray:
    return on_host(problem.classifier.model[-1].weight).astype(np.float64)


# --- closed forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "norm"), THREATS)
def test_upsilon_is_the_closed_form_and_the_loss_rises_by_eps_upsilon(p, norm):
    problem = linear_problem(clip_values=None)
    w = weights(problem)[problem.y]
    s = dual(norm)
    q = 1.0 if math.isinf(p) else p / (p - 1)
    expected = np.mean(np.linalg.norm(w, ord=s, axis=1) ** q) ** (1 / q)
    upsilon = sensitivity(problem.classifier, problem.x, problem.y, p, norm, loss=negative_label_logit)
    assert upsilon == pytest.approx(expected, rel=1e-6)

    eps = BUDGETS[norm]
    step = WassersteinFGM(problem.classifier, p=p, norm=norm, eps=eps, loss=negative_label_logit, verbose=False)
    adversarial = step.generate(problem.x, problem.y)
    rise = -((adversarial.astype(np.float64) - problem.x) * w).sum(1).mean()
    assert rise == pytest.approx(eps * upsilon, rel=1e-5)
    assert wasserstein_distance(problem.x, adversarial, p, norm) == pytest.approx(eps, rel=1e-5)


@pytest.mark.parametrize(("p", "norm"), THREATS)
@pytest.mark.parametrize("clip_values", [None, (0.0, 1.0)])
def test_equals_a_slow_reference(p, norm, clip_values):
    problem = linear_problem(clip_values=clip_values)
    eps, steps = BUDGETS[norm], 7
    alpha = 1.875 * eps / steps
    w, b = weights(problem), on_host(problem.classifier.model[-1].bias).astype(np.float64)
    x = problem.x.astype(np.float64)
    s = dual(norm)
    q = 1.0 if math.isinf(p) else p / (p - 1)
    current, best, best_key = x.copy(), None, None
    for step in range(steps + 1):
        z = current @ w.T + b
        prob = np.exp(z - z.max(1, keepdims=True))
        prob /= prob.sum(1, keepdims=True)
        key = ((z.argmax(1) == problem.y).mean(), np.log(prob[np.arange(len(x)), problem.y]).mean())
        if best_key is None or key < best_key or math.isinf(p):  # pointwise, the last iterate counts, as in ART
            best, best_key = current.copy(), key
        if step == steps:
            break
        g = (prob - np.eye(5)[problem.y]) @ w
        size = np.linalg.norm(g, ord=s, axis=1)
        upsilon = np.mean(size**q) ** (1 / q)
        for i in range(len(x)):
            if norm == np.inf:
                h = np.sign(g[i])
            elif norm == 2:
                h = g[i] / size[i]
            else:
                free = np.ones(len(g[i]), bool)
                if clip_values is not None:
                    free = np.where(g[i] > 0, current[i] < 1 - 1e-6, current[i] > 1e-6)
                j = np.argmax(np.abs(g[i]) * free)
                h = np.eye(len(g[i]))[j] * np.sign(g[i][j])
            current[i] += alpha * h * (size[i] / upsilon) ** (q - 1)
        delta = current - x
        lengths = np.linalg.norm(delta, ord=norm, axis=1)
        radii = np.minimum(lengths, eps) if math.isinf(p) else lengths * min(1, eps / np.mean(lengths**p) ** (1 / p))
        for i in range(len(x)):
            if norm == np.inf:
                delta[i] = np.clip(delta[i], -radii[i], radii[i])
            elif norm == 2:
                delta[i] *= radii[i] / max(lengths[i], 1e-300)
            elif radii[i] < lengths[i]:  # bisect the threshold of the l1 projection
                low, high = 0.0, np.abs(delta[i]).max()
                for _ in range(80):
                    middle = (low + high) / 2
                    too_long = np.maximum(np.abs(delta[i]) - middle, 0).sum() > radii[i]
                    low, high = (middle, high) if too_long else (low, middle)
                delta[i] = np.sign(delta[i]) * np.maximum(np.abs(delta[i]) - high, 0)
        current = x + delta
        if clip_values is not None:
            current = np.clip(current, *clip_values)
    result = attack(problem, p=p, norm=norm, eps=eps, max_iter=steps, loss="ce")
    np.testing.assert_allclose(result, best, atol=2e-6)


@pytest.mark.parametrize(("p", "norm"), THREATS)
@pytest.mark.parametrize("loss", ["ce", "redlr"])
def test_feasible_and_spends_at_least_half(p, norm, loss):
    problem = linear_problem()
    eps = BUDGETS[norm]
    adversarial = attack(problem, p=p, norm=norm, eps=eps, loss=loss)
    spent = wasserstein_distance(problem.x, adversarial, p, norm)
    assert eps / 2 <= spent <= eps * (1 + 1e-6)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@pytest.mark.parametrize(("p", "norm"), THREATS)
def test_batch_size_changes_nothing(linear, p, norm):
    results = [attack(linear, p=p, norm=norm, eps=BUDGETS[norm], batch_size=size) for size in (1, 7, 60, 1000)]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-4)


@pytest.mark.parametrize("eps", [1e-6, 1e-3, 0.5, 100.0])
@pytest.mark.parametrize(("p", "norm"), THREATS)
def test_feasible_for_tiny_and_huge_budgets(linear, eps, p, norm):
    adversarial = attack(linear, p=p, norm=norm, eps=eps, loss="ce", max_iter=5)
    assert wasserstein_distance(linear.x, adversarial, p, norm) <= eps * (1 + 1e-6)


def test_pointwise_equals_arts_pgd(digits_classifier):
    x = np.random.default_rng(0).uniform(0, 1, (40, 1, 8, 8)).astype(np.float32)
    y = digits_classifier.predict(x).argmax(1)
    settings = {"eps": 0.1, "eps_step": 0.015, "max_iter": 8, "verbose": False}
    theirs = ProjectedGradientDescentPyTorch(digits_classifier, norm=np.inf, **settings).generate(x, y)
    ours = WassersteinPGD(digits_classifier, p=np.inf, norm=np.inf, loss="ce", **settings).generate(x, y)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_pointwise_equals_arts_pgd_where_the_last_iterate_is_not_the_best():
    rng = np.random.default_rng(0)
    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 4))
        classifier = make_classifier(model, (2, 5, 5), 4)
        x, y = rng.uniform(0, 1, (20, 2, 5, 5)).astype(np.float32), rng.integers(0, 4, 20)
        settings = {"eps": 0.2, "eps_step": 0.05, "max_iter": 10, "verbose": False}
        theirs = ProjectedGradientDescentPyTorch(classifier, norm=np.inf, **settings).generate(x, y)
        for loss in ("ce", nn.CrossEntropyLoss()):
            ours = WassersteinPGD(classifier, p=np.inf, loss=loss, **settings).generate(x, y)
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_redlr_saves_the_budget_for_samples_still_classified_correctly(linear):
    adversarial = WassersteinFGM(linear.classifier, eps=0.05, loss="redlr", verbose=False).generate(linear.x, linear.y)
    wrong = linear.classifier.predict(linear.x).argmax(1) != linear.y
    assert 0 < wrong.sum() < len(wrong)
    moved = np.abs(adversarial - linear.x).max(1) > 0
    assert not moved[wrong].any()
    assert moved[~wrong].all()


def test_keeps_the_whole_iterate_with_the_lowest_accuracy(linear):
    """With absurdly long steps later iterates are worse; the kept one is as good as any prefix of steps finds."""
    accuracies = [
        np.mean(linear.classifier.predict(attack(linear, eps=0.05, eps_step=5.0, max_iter=steps)).argmax(1) == linear.y)
        for steps in range(1, 12)
    ]
    assert accuracies == sorted(accuracies, reverse=True)


def test_the_best_iterate_has_the_fewest_standing_samples_then_the_highest_loss():
    """One figure for each iterate in turn: the standing samples, the mean loss, and which iterate is kept after it."""
    x = torch.zeros(3, 2)
    best = Best(Rows(x, x.device))
    iterates = [
        (2, 1.0, 0),
        (1, 0.5, 1),  # fewer count more than any loss, and its own loss is the one to reach
        (1, 0.7, 2),
        (1, 0.7 * (1 - 1e-9), 3),  # equal to float noise, and later
        (1, 0.6, 3),
        (2, 9.0, 3),
        (1, 0.8, 6),  # more standing samples raise no bar
    ]
    for number, (count, loss, kept) in enumerate(iterates):
        losses = torch.full((3,), loss, dtype=torch.float64)
        best.compare(losses, torch.arange(3) < count)
        best.offer(slice(0, 3), torch.full_like(x, number))
        assert best.x.whole().unique().tolist() == [kept]


@pytest.mark.parametrize("loss", ["ce", "dlr", "redlr"])
def test_targeted_attack_reaches_targets_and_leaves_those_that_are_there(linear, loss):
    predictions = linear.classifier.predict(linear.x).argmax(1)
    targets = (predictions + 1) % 5
    targets[:20] = predictions[:20]
    attack = WassersteinPGD(linear.classifier, eps=0.3, loss=loss, targeted=True, verbose=False)
    adversarial = attack.generate(linear.x, targets)
    reached = linear.classifier.predict(adversarial).argmax(1) == targets
    assert reached[:20].all()
    assert reached[20:].mean() > 0.8
    if loss == "redlr":
        np.testing.assert_array_equal(adversarial[:20], linear.x[:20])


def test_zero_budget_or_no_steps_return_the_inputs(linear):
    np.testing.assert_array_equal(attack(linear, eps=0), linear.x)
    np.testing.assert_array_equal(attack(linear, max_iter=0), linear.x)


# --- masks, labels, boxes, preprocessing ------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("form", ["sample", "feature", "bool", "float64"])
def test_masked_coordinates_do_not_move(linear, norm, form):
    mask = np.random.default_rng(1).integers(0, 2, linear.x.shape if form != "feature" else linear.x.shape[1:])
    mask = mask.astype({"bool": bool, "float64": np.float64}.get(form, np.float32))
    attack = WassersteinPGD(linear.classifier, norm=norm, eps=BUDGETS[norm], verbose=False)
    moved = attack.generate(linear.x, linear.y, mask=mask) != linear.x
    assert not moved[np.broadcast_to(mask, moved.shape) == 0].any()
    assert moved.any()


def test_label_forms_agree(linear):
    attack = WassersteinPGD(linear.classifier, eps=0.05, verbose=False)
    expected = attack.generate(linear.x, linear.y)
    one_hot = np.eye(5)[linear.y]
    one_hots = (one_hot, one_hot.astype(int), one_hot.astype(bool), on_device(one_hot).bool())
    forms = (*one_hots, linear.y.astype(np.uint64), linear.y[:, None], linear.y.astype(np.float32), linear.y.tolist())
    for form in (*forms, on_device(linear.y)):
        np.testing.assert_array_equal(attack.generate(linear.x, form), expected)
        np.testing.assert_array_equal(attack.generate(x=linear.x, y=form), expected)


def test_without_labels_takes_the_predictions(linear):
    attack = WassersteinPGD(linear.classifier, eps=0.05, verbose=False)
    expected = attack.generate(linear.x, linear.classifier.predict(linear.x))
    for result in (attack.generate(linear.x), attack.generate(linear.x, None), attack.generate(linear.x, y=None)):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("convert", [np.float64, np.float16, torch.from_numpy, np.ndarray.tolist, np.asfortranarray])
def test_input_forms(linear, convert):
    x = linear.x.astype(np.float16).astype(np.float32)
    form = convert(x)
    attack = WassersteinPGD(linear.classifier, eps=0.05, verbose=False)
    result = attack.generate(form, linear.y)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, attack.generate(x, linear.y))


def test_bytes_and_read_only_arrays():
    problem = linear_problem(clip_values=(0, 255), preprocessing=(0.0, 255.0))
    x = (problem.x * 255).astype(np.uint8)
    x.flags.writeable = False
    result = WassersteinPGD(problem.classifier, eps=8, verbose=False).generate(x, problem.y)
    assert result.dtype == np.float32
    assert 4 <= wasserstein_distance(x.astype(float), result) <= 8 * (1 + 1e-6)


def test_numpy_scalars_as_numbers(linear):
    plain = attack(linear, p=2, norm=np.inf, eps=0.25, eps_step=0.125, max_iter=3, batch_size=16, targeted=False)
    scalars = attack(
        linear,
        p=np.int64(2),
        norm=np.float32(np.inf),
        eps=np.float32(0.25),
        eps_step=np.float64(0.125),
        max_iter=np.int16(3),
        batch_size=np.uint8(16),
        targeted=np.bool_(False),
    )
    np.testing.assert_array_equal(plain, scalars)
    named = attack(linear, norm="inf", eps=0.25, eps_step=0.125, max_iter=3, batch_size=16)
    np.testing.assert_array_equal(plain, named)


@pytest.mark.parametrize(
    "clip_values",
    [
        (np.full(30, 0.1), np.full(30, 0.9)),
        (np.linspace(0.0, 0.15, 30), np.linspace(0.85, 1.0, 30)),
        (0.1, 0.9),
        (-np.inf, np.inf),
        None,
    ],
)
def test_every_kind_of_clip_values(clip_values):
    problem = linear_problem(clip_values=clip_values)
    adversarial = attack(problem, eps=0.3, loss="ce")
    assert wasserstein_distance(problem.x, adversarial) <= 0.3 * (1 + 1e-6)
    if clip_values is not None:
        lower, upper = np.float32(clip_values[0]), np.float32(clip_values[1])
        assert (adversarial >= lower).all()
        assert (adversarial <= upper).all()


def test_arrays_of_clip_values_fit_images(digits_classifier):
    per_channel = make_classifier(
        digits_classifier.model, (1, 8, 8), 10, clip_values=(np.full((1, 1, 1), 0.0), np.full((1, 1, 1), 1.0))
    )
    x = np.random.default_rng(0).uniform(0, 1, (5, 1, 8, 8)).astype(np.float32)
    results = [WassersteinPGD(c, eps=0.1, verbose=False).generate(x) for c in (digits_classifier, per_channel)]
    np.testing.assert_array_equal(*results)


def test_preprocessing_is_part_of_the_classifier():
    plain, mean, std = linear_problem(), 0.3, 0.7
    layer = plain.classifier.model[-1]
    folded = nn.Linear(30, 5)
    with torch.no_grad():
        folded.weight.copy_(layer.weight * std)
        folded.bias.copy_(layer.bias + (layer.weight * mean).sum(1))
    standardised = make_classifier(nn.Sequential(folded), (30,), 5, preprocessing=(mean, std))
    other = WassersteinPGD(standardised, eps=0.05, loss="ce", verbose=False).generate(plain.x, plain.y)
    np.testing.assert_allclose(other, attack(plain, eps=0.05, loss="ce"), atol=1e-5)


class Blur(PreprocessorPyTorch):
    """A defence written in torch."""

    params = ()

    def __init__(self) -> None:
        super().__init__(is_fitted=True, apply_fit=True, apply_predict=True, device_type="cpu")

    def forward(self, x, y=None):
        return nn.functional.avg_pool2d(x, 3, stride=1, padding=1), y


@pytest.mark.parametrize("defence", [Blur(), SpatialSmoothing(window_size=3, channels_first=True)])
def test_preprocessing_defences(digits_classifier, defence):
    """Differentiable ones are differentiated, NumPy ones bring their own gradient estimate."""
    defended = make_classifier(
        digits_classifier.model,
        (1, 8, 8),
        10,
        preprocessing_defences=defence,
    )
    x = np.random.default_rng(0).uniform(0, 1, (20, 1, 8, 8)).astype(np.float32)
    y = defended.predict(x).argmax(1)
    adversarial = WassersteinPGD(defended, eps=0.2, verbose=False).generate(x, y)
    assert (defended.predict(adversarial).argmax(1) == y).mean() < 0.8


@pytest.mark.filterwarnings("ignore:two forward passes differ")
def test_random_preprocessing_leaves_the_random_state(digits_classifier):
    noisy = make_classifier(
        digits_classifier.model,
        (1, 8, 8),
        10,
        preprocessing_defences=GaussianAugmentation(sigma=0.01, augmentation=False, apply_predict=True),
    )
    state = np.random.get_state()[1].copy()
    WassersteinPGD(noisy, eps=0.1, max_iter=2, verbose=False).generate(np.zeros((3, 1, 8, 8)))
    np.testing.assert_array_equal(np.random.get_state()[1], state)


# --- the user's objects, the ART contract -----------------------------------------------------------------------


def test_the_users_objects_come_back_as_they_were(digits_classifier):
    model = digits_classifier.model
    model.train()
    model.features.eval()
    model.head.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    modes = [m.training for m in model.modules()]
    grads = {n: (w.requires_grad, w.grad if w.grad is None else w.grad.clone()) for n, w in model.named_parameters()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x = np.random.default_rng(0).uniform(0, 1, (20, 1, 8, 8)).astype(np.float32)
    before = x.copy()
    random_states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    WassersteinPGD(digits_classifier, eps=0.1, max_iter=3, verbose=False).generate(x)

    np.testing.assert_array_equal(x, before)
    assert [m.training for m in model.modules()] == modes
    for name, weight in model.named_parameters():
        assert weight.requires_grad == grads[name][0]
        assert (weight.grad is None) == (grads[name][1] is None)
        assert weight.grad is None or torch.equal(weight.grad, grads[name][1])
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], random_states[1])
    assert random.getstate() == random_states[2]


def test_state_is_restored_after_an_error(digits_classifier):
    digits_classifier.model.train()
    attack = WassersteinPGD(digits_classifier, loss=lambda logits, labels: logits.sum(), verbose=False)
    with pytest.raises(ValueError, match="loss returned the shape"):
        attack.generate(np.zeros((2, 1, 8, 8)))
    assert all(m.training for m in digits_classifier.model.modules())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_switched_off(linear, context):
    expected = attack(linear, eps=0.05)
    with context():
        np.testing.assert_array_equal(attack(linear, eps=0.05), expected)


def test_frozen_parameters_change_nothing(linear):
    expected = attack(linear, eps=0.05)
    for parameter in linear.classifier.model.parameters():
        parameter.requires_grad_(False)
    np.testing.assert_array_equal(attack(linear, eps=0.05), expected)


def test_sequential_and_module_agree(linear):
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    wrapped = Problem(make_classifier(Wrapped(linear.classifier.model), (30,), 5), linear.x, linear.y)
    np.testing.assert_array_equal(attack(wrapped, eps=0.05), attack(linear, eps=0.05))


def test_recurrent_network():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    classifier = make_classifier(Recurrent(), (5, 4), 3)
    x = np.random.default_rng(0).uniform(0, 1, (30, 5, 4)).astype(np.float32)
    y = classifier.predict(x).argmax(1)
    adversarial = WassersteinPGD(classifier, eps=0.3, verbose=False).generate(x, y)
    assert (classifier.predict(adversarial).argmax(1) == y).mean() < 0.9


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_with_infinite_gradient_does_not_reach_the_others(linear, norm):
    class Root(nn.Module):
        """Has the gradient inf where a sample's first coordinate is 0."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return linear.classifier.model(x) + x[:, :1].sqrt() * torch.arange(5.0, device=x.device)

    x = linear.x.copy()
    x[3, 0] = 0
    classifier = make_classifier(Root(), (30,), 5)
    attack = WassersteinFGM(classifier, norm=norm, eps=0.05, loss="ce", verbose=False)
    adversarial = attack.generate(x, linear.y)
    assert np.isfinite(adversarial).all()
    np.testing.assert_array_equal(adversarial[3], x[3])
    assert (np.abs(np.delete(adversarial - x, 3, 0)).max(1) > 0).all()


def test_attack_params_list_every_constructor_parameter(linear):
    import inspect

    for cls in (WassersteinPGD, WassersteinFGM):
        parameters = set(inspect.signature(cls.__init__).parameters) - {"self", "estimator"}
        assert set(cls.attack_params) == parameters
        text = repr(cls(linear.classifier))
        assert all(f"{name}=" in text for name in parameters)


def test_parameters_read_back_make_the_same_attack(linear):
    for cls in (WassersteinPGD, WassersteinFGM):
        attack = cls(linear.classifier, eps=0.1)
        again = cls(linear.classifier, **{name: getattr(attack, name) for name in attack.attack_params})
        assert repr(again) == repr(attack)


def test_set_params_changes_all_or_nothing(linear):
    attack = WassersteinPGD(linear.classifier, eps=0.1, verbose=False)
    attack.set_params(eps=0.2, max_iter=np.int64(5), p="inf", targeted=True)
    assert (attack.eps, attack.max_iter, attack.p, attack.targeted) == (0.2, 5, math.inf, True)
    before = {name: getattr(attack, name) for name in attack.attack_params}
    for wrong in ({"eps": 0.3, "max_iter": -1}, {"norm": 1, "p": 0.5}, {"eps": 0.3, "colour": "red"}):
        with pytest.raises(ValueError, match=r"max_iter is -1|p is 0\.5|colour"):
            attack.set_params(**wrong)
        assert {name: getattr(attack, name) for name in attack.attack_params} == before


def test_fgm_follows_its_budget(linear):
    attack = WassersteinFGM(linear.classifier, eps=0.01, loss="ce", verbose=False)
    attack.set_params(eps=0.04)
    moved = wasserstein_distance(linear.x, attack.generate(linear.x, linear.y))
    assert moved == pytest.approx(0.04, rel=1e-5)


def test_arts_own_estimator_check(linear):
    model = LogisticRegression().fit(linear.x, linear.y)
    for cls in (WassersteinPGD, WassersteinFGM):
        with pytest.raises(EstimatorError, match="PyTorchClassifier"):
            cls(SklearnClassifier(model))
        with pytest.raises(EstimatorError):
            cls(model)


def test_summary_writer_hears_of_every_batch(linear):
    class Recorder(SummaryWriter):
        def __init__(self) -> None:
            super().__init__(False)
            self.calls, self.resets = [], 0

        def _init_summary_writer(self, summary_writer, init_counter):
            pass

        def update(self, batch_id, global_step, **kwargs):
            assert kwargs["grad"].shape == kwargs["x"].shape
            self.calls.append((batch_id, global_step))

        def reset(self):
            self.resets += 1

    recorder = Recorder()
    attack(linear, max_iter=2, batch_size=30, summary_writer=recorder)
    assert recorder.calls == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert recorder.resets == 1


def test_progress_bar_only_when_verbose(linear, capsys):
    attack(linear, max_iter=2)
    assert capsys.readouterr().err == ""
    attack(linear, max_iter=2, verbose=True)
    assert "WassersteinPGD" in capsys.readouterr().err


def test_a_classifier_on_a_gpu(linear):
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    classifier = PyTorchClassifier(
        linear.classifier.model.cuda(), nn.CrossEntropyLoss(), (30,), 5, clip_values=(0, 1), device_type="gpu"
    )
    x = on_device(linear.x).cuda()
    on_gpu = WassersteinPGD(classifier, eps=0.05, verbose=False).generate(x, on_device(linear.y).cuda())
    np.testing.assert_allclose(on_gpu, attack(linear_problem(), eps=0.05), atol=1e-4)


def test_linear_schedule_falls_to_zero_and_attacks_harder(digits_classifier):
    x, y = (part[:200] for part in digits()[1])
    steps = relative_steps(0.1, None, 4, "linear")
    np.testing.assert_allclose(steps, np.array([1.6, 1.2, 0.8, 0.4]))  # their sum is 4
    np.testing.assert_allclose(relative_steps(0.1, 0.025, 4, "linear"), np.array([0.4, 0.3, 0.2, 0.1]))
    accuracies = {}
    for schedule in ("constant", "linear"):
        strong = WassersteinPGD(digits_classifier, eps=0.08, max_iter=50, schedule=schedule, verbose=False)
        adversarial = strong.generate(x, y)
        assert wasserstein_distance(x, adversarial) <= 0.08 * (1 + 1e-6)
        accuracies[schedule] = np.mean(digits_classifier.predict(adversarial).argmax(1) == y)
    assert accuracies["linear"] < accuracies["constant"]


@pytest.mark.parametrize(("p", "norm"), THREATS)
@pytest.mark.parametrize("path", [1.0, 4.0])
def test_flat_samples_are_left_out_and_the_iterates_stay_the_same(digits_classifier, p, norm, path):
    class Dense(Objective):
        rectified = False

    x, y = (on_device(part[:90]) for part in digits()[1])
    eps = 3 * BUDGETS[norm]
    box = on_device(torch.tensor(0.0)), on_device(torch.tensor(1.0))
    passes = {objective: Passes(digits_classifier.model.eval()) for objective in (Objective, Dense)}
    results = {}
    for objective, logits_of in passes.items():
        results[objective] = ascend(
            objective(logits_of, attack_objective("redlr")),
            Samples(x, y, box, batch_size=32),
            Threat(p, norm, box),
            budget=eps,
            steps=step_lengths(path / 12, 12, "linear"),
            keep_best=True,
        )
    torch.testing.assert_close(results[Objective].x, results[Dense].x, atol=2e-5, rtol=0)
    gradients = {k: function.gradients for k, function in passes.items()}
    forwards = {k: sum(rows * times for rows, times in function.counts.items()) for k, function in passes.items()}
    assert gradients[Dense] == 12 * 90
    assert forwards[Dense] == 13 * 90
    assert gradients[Objective] < 0.97 * gradients[Dense]
    # long steps make flipped samples stand again, which costs a second forward pass
    work = {objective: gradients[objective] + forwards[objective] for objective in gradients}
    assert work[Objective] < (0.97 if path == 1.0 else 1.01) * work[Dense]


def test_the_preprocessing_that_does_nothing_is_left_out():
    x = on_device(torch.rand(3, 30))
    plain, shifted = linear_problem().classifier, linear_problem(preprocessing=(0.5, 0.2)).classifier
    assert plain.preprocessing_operations
    assert preprocessing(plain, training=False)(x) is x
    torch.testing.assert_close(preprocessing(shifted, training=False)(x), (x - 0.5) / 0.2)


# --- one step that flips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [2.0, np.inf])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 4.0])
def test_least_lengths_never_leave_more_than_pointwise_fgm(digits_classifier, norm, factor):
    x, y = (part[:200] for part in digits()[1])
    eps = factor * BUDGETS[norm]
    pointwise = FastGradientMethod(digits_classifier, norm=norm, eps=eps)
    fgm = adversarial_accuracy(digits_classifier, x, y, pointwise)
    for p in (1.5, 2.0, np.inf):
        attack = WassersteinFGM(digits_classifier, p=p, norm=norm, eps=eps, lengths="least", verbose=False)
        adversarial = attack.generate(x, y)
        assert wasserstein_distance(x, adversarial, p, norm) <= eps * (1 + 1e-6)
        left = np.mean(digits_classifier.predict(adversarial).argmax(1) == y)
        assert left <= fgm
        assert attack.gradients_ <= 2


def test_least_lengths_of_a_linear_model(linear):
    """Along the steepest direction a sample flips at its distance, up to the next length that is tried."""
    attack = WassersteinFGM(linear.classifier, norm=2, eps=0.2, lengths="least", loss="dlr", verbose=False)
    attack.generate(linear.x, linear.y)
    exact = WassersteinKnapsack(linear.classifier, norm=2, eps=0.2, max_iter=100, verbose=False)
    exact.generate(linear.x, linear.y)
    finite = np.isfinite(attack.distances_)
    assert finite.mean() > 0.8
    assert (attack.distances_[finite] >= exact.distances_[finite] * (1 - 1e-3)).all()
    with pytest.raises(ValueError, match="targeted is True with lengths='least'"):
        WassersteinFGM(linear.classifier, targeted=True, lengths="least")
    with pytest.raises(ValueError, match="lengths is 'most'; allowed is one of 'formula', 'least'"):
        WassersteinFGM(linear.classifier, lengths="most")
