# SPDX-License-Identifier: MIT
"""Networks, data and scripts of others: what they do to a call, and what a call does to them."""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections import namedtuple

import numpy as np
import pytest
import torch
from art.defences.postprocessor import GaussianNoise
from art.defences.preprocessor import GaussianAugmentation
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.preprocessing.preprocessing import PreprocessorPyTorch
from torch import nn

from art_wdro import (
    DistributionalTRADESTrainer,
    WassersteinDistributionalAttack,
    WassersteinFGM,
    WassersteinKnapsack,
    WassersteinMarginTrainer,
    WassersteinPGD,
    accuracy_bounds,
    adversarial_accuracy,
    evaluate,
    functional,
    lipschitz_certificate,
    sensitivity,
)
from art_wdro._host import classifier as host
from art_wdro._host.doubts import disagreement
from art_wdro._host.inputs import as_inputs
from art_wdro._host.precision import in_precision
from tests.conftest import digits, linear_problem, make_classifier, on_device, on_host, same, weights

ATTACKS = (WassersteinPGD, WassersteinFGM, WassersteinKnapsack, WassersteinDistributionalAttack)

# --- the user's memory ------------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """A linear network whose first layer overwrites what it is given."""

    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "view":
            x.view(-1)[:] -= 0.5
            return self.inner(x / 0.25)
        if self.how == "relu":
            return self.inner(nn.functional.relu(x, inplace=True))
        return self.inner(x.sub_(0.5).div_(0.25))


class WritingPreprocessor(PreprocessorPyTorch):
    params: list[str] = []

    def __init__(self) -> None:
        super().__init__(apply_fit=True, apply_predict=True)

    def forward(self, x, y=None):
        return x.mul_(0.5), y


@pytest.mark.parametrize("how", ["in place", "view", "relu", "preprocessor"])
def test_the_users_memory_stays_as_it_is(how):
    problem = linear_problem()
    inner = problem.classifier.model
    optimiser = torch.optim.SGD(inner.parameters(), lr=0.1)
    extra = {"preprocessing_defences": WritingPreprocessor()} if how == "preprocessor" else {}
    model = inner if extra else InPlace(inner, how)
    classifier = make_classifier(model, (30,), 5, optimizer=optimiser, **extra)
    x, before = problem.x, problem.x.copy()
    y = classifier.predict(x.copy()).argmax(1)
    assert adversarial_accuracy(classifier, x, y, eps=0.0) == 1.0
    for attack in ATTACKS:
        attack(classifier, eps=0.05, verbose=False).generate(x, y)
        np.testing.assert_array_equal(x, before, err_msg=attack.__name__)
    tensor = on_device(x)
    sensitivity(classifier, tensor, y)
    accuracy_bounds(classifier, tensor, y)
    DistributionalTRADESTrainer(classifier, max_iter=2, verbose=False).fit(
        x, y, validation_data=(x, y), nb_epochs=1, batch_size=20
    )
    np.testing.assert_array_equal(x, before)


def test_the_functions_give_the_network_a_tensor_of_its_own():
    problem = linear_problem()
    network = InPlace(problem.classifier.model, "in place")
    x, y = on_device(problem.x), on_device(problem.y)
    before = x.clone()
    functional.w_pgd(network, x, y, eps=0.05)
    functional.least_distances(network, x, y, max_iter=20)
    functional.upsilon(network, x, y)
    assert torch.equal(x, before)


# --- what predicts and what is scored ---------------------------------------------------------------------------


def test_a_smoothed_classifier_is_refused_where_logits_count():
    problem = linear_problem()
    smoothed = PyTorchRandomizedSmoothing(
        problem.classifier.model, nn.CrossEntropyLoss(), (30,), 5, clip_values=(0, 1), sample_size=10, device_type="cpu"
    )
    for call in (adversarial_accuracy, sensitivity, accuracy_bounds, lipschitz_certificate):
        with pytest.raises(ValueError, match="is a PyTorchRandomizedSmoothing, which predicts by votes under noise"):
            call(smoothed, problem.x, problem.y)
    with pytest.raises(ValueError, match="predicts by votes under noise"):
        WassersteinPGD(smoothed)


def test_other_predictions_than_those_of_the_logits_are_told_with_both_figures():
    problem = linear_problem()
    right = problem.classifier.predict(problem.x).argmax(1)
    noisy = make_classifier(
        problem.classifier.model, (30,), 5, postprocessing_defences=GaussianNoise(scale=5.0, apply_predict=True)
    )
    with pytest.warns(UserWarning, match=r"predicts \d+\.\d % right, and its network's logits 100\.0 % of the same"):
        assert adversarial_accuracy(noisy, problem.x, right, eps=0.0) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        report = evaluate(noisy, problem.x, right, eps=0.01, knapsack_iter=20, autoattack=False, verbose=False)
    assert any("its network's logits 100.0 %" in text for text in report.warnings)
    adversarial_accuracy(problem.classifier, problem.x, right, eps=0.0)  # nothing to tell


@pytest.mark.parametrize(("others", "told"), [(4, False), (10, True)])
def test_near_ties_may_be_predicted_otherwise_of_few_samples_in_a_thousand(monkeypatch, others, told):
    classifier, x, _ = linear_problem(samples=1000)
    scores = classifier.predict(x)
    labels = on_device(scores.argmax(1))
    scores[:others] = np.roll(scores[:others], 1, axis=1)
    monkeypatch.setattr(classifier, "predict", lambda *_, **__: scores)
    found = disagreement(classifier, on_device(x), labels, 128)
    assert (found is not None) == told


class BatchMeans(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x - x.mean(0, keepdim=True))


def coupled(kind: str) -> nn.Module:
    torch.manual_seed(0)
    linear = nn.Linear(30, 5)
    return {
        "means": BatchMeans(linear),
        "batch norm": nn.Sequential(nn.BatchNorm1d(30, track_running_stats=False), linear),
    }[kind]


@pytest.mark.parametrize("kind", ["means", "batch norm"])
def test_a_network_that_couples_its_batch_is_told_of(kind):
    problem = linear_problem()
    classifier = make_classifier(coupled(kind), (30,), 5)
    for call in (
        lambda: WassersteinKnapsack(classifier, max_iter=10, verbose=False).generate(problem.x, problem.y),
        lambda: adversarial_accuracy(classifier, problem.x, problem.y, eps=0.0),
    ):
        with pytest.warns(UserWarning, match="a sample's logits depend on the batch it is in"):
            call()


def test_a_random_classifier_is_told_of():
    problem = linear_problem()
    noisy = make_classifier(
        problem.classifier.model,
        (30,),
        5,
        preprocessing_defences=GaussianAugmentation(sigma=0.3, augmentation=False, apply_predict=True),
    )
    knapsack = WassersteinKnapsack(noisy, max_iter=10, verbose=False)
    with pytest.warns(UserWarning, match="two forward passes differ"):
        adversarial_accuracy(noisy, problem.x, problem.y, knapsack)


# --- labels, boxes, positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, -1, 0, 0, 0], [-1, -1, -1, -1, -1]])
def test_rows_that_name_no_class_are_refused(row):
    problem = linear_problem()
    y = np.eye(5)[problem.y]
    y[7] = row
    with pytest.raises(ValueError, match="y names no class in row 7"):
        adversarial_accuracy(problem.classifier, problem.x, y)
    y[7] = [0.1, 0.2, 0.5, 0.1, 0.1]
    adversarial_accuracy(problem.classifier, problem.x, y)  # probabilities name one


@pytest.mark.parametrize("clip_values", [(math.nan, 1.0), (0.0, math.nan), (np.full(30, math.nan), np.ones(30))])
def test_nan_in_clip_values_is_refused(clip_values):
    classifier = linear_problem(clip_values=clip_values).classifier
    with pytest.raises(ValueError, match="clip_values hold NaN; needed are finite ones"):
        WassersteinPGD(classifier, verbose=False).generate(linear_problem().x)


def test_inputs_outside_the_box_by_rounding_are_clipped():
    mean, std = np.float32(0.4733), np.float32(0.2379)
    low, high = float((0 - mean) / std), float((1 - mean) / std)
    problem = linear_problem(clip_values=(low, high))
    x = problem.x.copy()
    x[0, 0], x[1, 1] = np.float32(low) * np.float32(1 + 2e-7), np.float32(high) * np.float32(1 + 2e-7)
    assert x[0, 0] < np.float32(low)
    inputs = as_inputs(problem.classifier, x)
    assert [inputs.min(), inputs.max()] == [np.float32(low), np.float32(high)]
    adversarial = WassersteinPGD(problem.classifier, eps=0.01, verbose=False).generate(x, problem.y)
    assert adversarial.min() >= np.float32(low)
    assert adversarial.max() <= np.float32(high)
    x[2, 2] = low - 1e-4
    with pytest.raises(ValueError, match=r"outside of the classifier's clip_values in \[-1\.98949.*in sample 2"):
        WassersteinPGD(problem.classifier, verbose=False).generate(x, problem.y)


@pytest.mark.parametrize("attack", ATTACKS)
def test_positions_are_told_with_both_readings(attack):
    classifier = linear_problem().classifier
    with pytest.warns(FutureWarning, match=r"p=2, norm=1\.0, eps=0\.1, where ART's attacks would read norm=2, eps=1"):
        made = attack(classifier, 2, 1.0, 0.1)
    assert (made.p, made.norm, made.eps) == (2.0, 1.0, 0.1)
    attack(classifier, p=2, norm=1.0, eps=0.1)


def test_a_call_with_one_sample_is_told_of():
    problem = linear_problem()
    with pytest.warns(UserWarning, match="x has one sample, which gets the whole budget"):
        WassersteinPGD(problem.classifier, verbose=False).generate(problem.x[:1], problem.y[:1])
    WassersteinPGD(problem.classifier, p=np.inf, verbose=False).generate(problem.x[:1], problem.y[:1])


# --- outputs and number formats ---------------------------------------------------------------------------------

Output = namedtuple("Output", ["logits", "aux"])


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, wrap) -> None:
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x: torch.Tensor):
        return self.wrap(self.inner(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: {"logits": z, "hidden": z},
        lambda z: Output(z, z),
        lambda z: (z, torch.zeros(3)),
        lambda z: [z],
        lambda z: {"out": z},
    ],
)
def test_logits_are_found_where_they_are_unambiguous(wrap):
    problem = linear_problem()
    classifier = make_classifier(Wrapped(problem.classifier.model, wrap), (30,), 5)
    expected = WassersteinPGD(problem.classifier, eps=0.05, verbose=False).generate(problem.x, problem.y)
    found = WassersteinPGD(classifier, eps=0.05, verbose=False).generate(problem.x, problem.y)
    np.testing.assert_array_equal(found, expected)
    assert adversarial_accuracy(classifier, problem.x, problem.y, eps=0.0) == pytest.approx(0.9)


@pytest.mark.parametrize("wrap", [lambda z: (z, z), lambda z: {"a": z, "b": z}, lambda z: "none", lambda z: (z[:1],)])
def test_other_outputs_are_named(wrap):
    problem = linear_problem()
    classifier = make_classifier(Wrapped(problem.classifier.model, wrap), (30,), 5)
    with pytest.raises(ValueError, match=r"classifier's network puts out a (tuple|dict|str).*needed are logits"):
        WassersteinPGD(classifier, verbose=False).generate(problem.x, problem.y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_number_formats_are_taken(dtype):
    problem = linear_problem()
    torch.manual_seed(0)
    model = on_device(nn.Sequential(nn.Flatten(), nn.Linear(30, 5)).to(dtype))
    y = on_host(model(on_device(problem.x).to(dtype)).float().argmax(1))
    classifier = make_classifier(model, (30,), 5)
    attack = WassersteinKnapsack(classifier, eps=0.05, max_iter=30, verbose=False)
    assert attack.generate(problem.x, y).dtype == np.float32
    assert np.isfinite(attack.distances_).all()
    assert (attack.distances_ > 0).mean() > 0.9
    assert model[1].weight.dtype == dtype


def test_a_network_that_does_not_run_is_said_in_one_sentence():
    problem = linear_problem()
    classifier = make_classifier(nn.Sequential(nn.Flatten(), nn.Linear(29, 5)), (30,), 5)
    with pytest.raises(ValueError, match=r"network does not take \d+ samples of shape \(30,\): RuntimeError: mat1"):
        WassersteinPGD(classifier, verbose=False).generate(problem.x, problem.y)


def test_lists_and_loaders_of_other_forms_are_named():
    problem = linear_problem()
    with pytest.raises(ValueError, match="x is a list of parts that differ in shape"):
        WassersteinPGD(problem.classifier, verbose=False).generate([[1.0, 2.0], [1.0]])
    items = [(x, y, i) for i, (x, y) in enumerate(zip(problem.x, problem.y, strict=True))]
    with pytest.raises(TypeError, match="x yields 3 parts an item; allowed are inputs, or pairs"):
        sensitivity(problem.classifier, torch.utils.data.DataLoader(items, batch_size=4))
    named = [{"pixels": x, "label": y} for x, y in zip(problem.x, problem.y, strict=True)]
    with pytest.raises(TypeError, match=r"x yields dicts with the keys \['pixels', 'label'\]"):
        sensitivity(problem.classifier, torch.utils.data.DataLoader(named, batch_size=4))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature", "ignore:the network was right on")
@pytest.mark.parametrize("kind", [DistributionalTRADESTrainer, WassersteinMarginTrainer])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_lazy_layers_are_initialised(kind, precision):
    problem = linear_problem()
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(5)).train()
    classifier = make_classifier(model, (30,), 5, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    kind(classifier, max_iter=2, precision=precision, verbose=False).fit(problem.x, problem.y, nb_epochs=1)
    WassersteinPGD(classifier, eps=0.05, verbose=False).generate(problem.x, problem.y)
    assert model.training
    assert model[1].weight.shape == (8, 30)


def test_a_network_without_gradients_is_said_in_one_sentence():
    problem = linear_problem()

    class Rounded(nn.Module):
        """Its logits want a gradient, of its weight alone: what quantised layers do."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return problem.classifier.model(x).detach() * self.scale

    classifier = make_classifier(Rounded(), (30,), 5)
    for attack in ATTACKS:
        with pytest.raises(ValueError, match="the classifier's logits do not depend differentiably on x"):
            attack(classifier, verbose=False).generate(problem.x, problem.y)


# --- float16 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_holds_on_any_scale_of_the_logits(scale, precision):
    problem = linear_problem(samples=100)
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 5))
    with torch.no_grad():
        model[1].weight.copy_(problem.classifier.model[1].weight * scale)
        model[1].bias.copy_(problem.classifier.model[1].bias * scale)
    classifier = make_classifier(model, (30,), 5)
    left = {}
    for name in ("float32", precision):
        attack = WassersteinPGD(classifier, p=np.inf, eps=0.04, loss="redlr", verbose=False, precision=name)
        left[name] = adversarial_accuracy(classifier, problem.x, problem.y, attack)
    assert left["float32"] < 0.6
    assert left[precision] == pytest.approx(left["float32"], abs=0.03 if precision == "float16" else 0.06)


def test_every_sample_has_a_gradient_of_its_own_scale_in_float16():
    problem = linear_problem()
    network, x = problem.classifier.model, on_device(problem.x)
    weights = torch.logspace(-6, 6, len(x), device=x.device)
    gradients = []
    for precision in ("float16", "float32"):
        function = in_precision(network, network, precision, x.device)
        point = x.clone().requires_grad_()
        (weights * function(point)[:, 0]).sum().backward()
        gradients.append(point.grad / weights[:, None])
    torch.testing.assert_close(*gradients, rtol=2e-3, atol=1e-4)


# --- threads and Ctrl-C -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_two_threads_leave_a_classifier_as_it_was(digits_classifier, training):
    x, y = (part[:24] for part in digits()[1])
    model = digits_classifier.model.train(training)
    before = weights(digits_classifier)
    attacks = (
        WassersteinPGD(digits_classifier, eps=0.05, max_iter=3, verbose=False),
        WassersteinKnapsack(digits_classifier, eps=0.05, max_iter=6, verbose=False),
    )
    expected = [attack.generate(x, y) for attack in attacks]
    for _ in range(20):
        found: list[np.ndarray | None] = [None, None]

        def work(number: int, found=found) -> None:
            found[number] = attacks[number].generate(x, y)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert all(weight.requires_grad for weight in model.parameters())
        assert all(module.training == training for module in model.modules())
    assert same(weights(digits_classifier), before)


def test_ctrl_c_at_any_line_restores(digits_classifier):
    """Raise at one line after another of the contexts that change a classifier."""
    x, y = (part[:4] for part in digits()[1])
    model = digits_classifier.model.train()
    attack = WassersteinPGD(digits_classifier, eps=0.05, max_iter=1, verbose=False)
    left, lines = 0, 0

    def local(frame, event, _):
        nonlocal left, lines
        if event == "line":
            lines += 1
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return local

    def trace(frame, event, _):
        return local if frame.f_code.co_filename == host.__file__ else None

    def run(moment: int) -> None:
        nonlocal left, lines
        left, lines = moment, 0
        sys.settrace(trace)
        try:
            attack.generate(x, y)
        finally:
            sys.settrace(None)

    run(-1)
    whole = lines
    assert whole > 100
    generator = torch.get_rng_state()
    for moment in range(1, whole + 1, max(1, whole // 150)):
        with pytest.raises(KeyboardInterrupt):
            run(moment)
        assert all(weight.requires_grad for weight in model.parameters()), moment
        assert all(module.training for module in model.modules()), moment
        assert torch.equal(torch.get_rng_state(), generator), moment
