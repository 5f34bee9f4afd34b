# SPDX-License-Identifier: MIT
"""The distributional TRADES trainer: real training on digits, Algorithm 1 step by step, ART's contract."""

from __future__ import annotations

import copy
import itertools
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.data_generators import DataGenerator, NumpyDataGenerator, PyTorchDataGenerator
from art.defences.trainer import AdversarialTrainerTRADES, AdversarialTrainerTRADESPyTorch, Trainer
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.optim import lr_scheduler

from art_wdro import DistributionalTRADESTrainer, WassersteinPGD, adversarial_accuracy, reinitialise_last_layer
from art_wdro.trainers._trades import AlgorithmOne
from art_wdro.trainers._upsilon import batch_budget
from tests.conftest import DigitsNetwork, digits, linear_problem, make_classifier, on_device, same, weights

(X, Y), (X_TEST, Y_TEST) = digits()
POINTWISE = pytest.warns(UserWarning, match="pointwise TRADES with it; leave attack out for the distributional method")
FIGURES = {
    "epoch",
    "loss",
    "clean_loss",
    "consistency_loss",
    "pointwise_loss",
    "train_clean_accuracy",
    "train_adversarial_accuracy",
    "upsilon",
    "budget_ratio",
    "learning_rate",
    "skipped_batches",
    "seconds",
    "clean_accuracy",
    "winf_accuracy",
    "wp_accuracy",
}


def trainer(classifier: PyTorchClassifier, **settings) -> DistributionalTRADESTrainer:
    settings = {"eps": 0.1, "max_iter": 2, "seed": 0, "verbose": False} | settings
    return DistributionalTRADESTrainer(classifier, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("upsilon", ["resample", "streaming"])
def test_training_raises_held_out_accuracy_under_w2_by_ten_points(digits_classifier, upsilon):
    before = adversarial_accuracy(digits_classifier, X_TEST, Y_TEST, eps=0.1)
    scheduler = lr_scheduler.StepLR(digits_classifier.optimizer, step_size=4, gamma=0.1)
    fine_tuning = trainer(digits_classifier, max_iter=10, upsilon=upsilon)
    fine_tuning.fit(X, Y, batch_size=64, nb_epochs=6, scheduler=scheduler)
    after = adversarial_accuracy(digits_classifier, X_TEST, Y_TEST, eps=0.1)
    assert after > before + 0.1
    assert adversarial_accuracy(digits_classifier, X_TEST, Y_TEST, eps=0.0) > 0.9
    # also under an attack that training did not use: more and longer steps on another loss
    other = WassersteinPGD(digits_classifier, eps=0.1, max_iter=50, loss="ce", verbose=False)
    assert adversarial_accuracy(digits_classifier, X_TEST, Y_TEST, other) > before + 0.1
    assert digits_classifier.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    assert 0.3 < np.median([record["budget_ratio"] for record in fine_tuning.history]) < 3


def test_one_minibatch_is_algorithm_1():
    """A step on the whole data set with full resampling: budget eps, W-PGD-K, then TRADES' update by hand."""
    problem = linear_problem(clip_values=(0.0, 1.0))
    model = problem.classifier.model
    classifier = make_classifier(model, (30,), 5, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    attack = WassersteinPGD(classifier, eps=0.05, eps_step=0.05 / 4, max_iter=4, verbose=False)
    attack._keeps_best = lambda: False
    adversarial = on_device(attack.generate(problem.x, problem.y))
    x, y = on_device(problem.x), on_device(problem.y)
    expected = copy.deepcopy(model)
    clean, attacked = expected(x), expected(adversarial)
    soft = clean.softmax(1)
    kl = (soft * (soft.log() - attacked.log_softmax(1))).sum(1).mean()
    loss = nn.functional.cross_entropy(clean, y) + 6 * kl
    loss.backward()
    for weight in expected.parameters():
        weight.data -= 0.5 * weight.grad
    for upsilon in ("resample", "streaming"):
        start = weights(classifier)
        tuning = trainer(classifier, eps=0.05, max_iter=4, upsilon=upsilon, sample_fraction=1.0)
        tuning.fit(problem.x, problem.y, batch_size=100, nb_epochs=1)
        record = tuning.history[0]
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert record["budget_ratio"] == pytest.approx(1, rel=1e-5)
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(classifier.model.state_dict()[name], value, atol=1e-5, rtol=1e-4)
        classifier.model.load_state_dict(start)


@pytest.mark.parametrize("p", [1.5, 2.0, np.inf])
@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_every_threat_trains(digits_classifier, p, norm):
    fine_tuning = trainer(digits_classifier, p=p, norm=norm, eps=0.5, max_iter=2)
    fine_tuning.fit(X[:128], Y[:128], validation_data=(X_TEST[:40], Y_TEST[:40]), batch_size=64, nb_epochs=1)
    record = fine_tuning.history[0]
    assert record.keys() == FIGURES
    assert math.isfinite(record["loss"])
    if math.isinf(p):
        assert record["budget_ratio"] == pytest.approx(1)


@pytest.mark.parametrize(
    "options", list(itertools.product(["kl", "ce"], ["true", "predicted"], [0.0, 1.0], [0.1, 1.0]))
)
def test_every_option_trains(digits_classifier, options):
    consistency, attack_label, gamma, eta = options
    before = weights(digits_classifier)
    fine_tuning = trainer(
        digits_classifier, consistency=consistency, attack_label=attack_label, gamma=gamma, eta=eta, upsilon="resample"
    )
    fine_tuning.fit(X[:64], Y[:64], batch_size=32, nb_epochs=1)
    record = fine_tuning.history[0]
    assert (record["pointwise_loss"] is None) == (gamma == 0)
    expected = record["clean_loss"] + 6 * record["consistency_loss"] + gamma * (record["pointwise_loss"] or 0)
    assert record["loss"] == pytest.approx(expected, rel=1e-5)
    assert not same(before, weights(digits_classifier))


def test_wholly_misclassified_batches_are_trained_on_clean(digits_classifier):
    wrong = digits_classifier.predict(X[:40]).argmin(1)
    for upsilon in ("resample", "streaming"):
        fine_tuning = trainer(digits_classifier, upsilon=upsilon, sample_fraction=1.0)
        digits_classifier.optimizer.param_groups[0]["lr"] = 0.0
        fine_tuning.fit(X[:40], wrong, nb_epochs=1)
        assert fine_tuning.history[0]["upsilon"] == 0
        assert fine_tuning.history[0]["budget_ratio"] == 0


def test_zero_budget_is_clean_training(digits_classifier):
    fine_tuning = trainer(digits_classifier, eps=0.0)
    fine_tuning.fit(X[:64], Y[:64], nb_epochs=1)
    assert fine_tuning.history[0]["budget_ratio"] is None


def test_the_attack_runs_in_eval_mode_and_the_update_in_train_mode():
    modes = []

    class Spy(DigitsNetwork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append(self.training)
            return super().forward(x)

    model = Spy()
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    trainer(classifier, max_iter=3, upsilon="streaming").fit(X[:32], Y[:32], nb_epochs=1)
    assert modes == sorted(modes)
    assert modes.count(False) >= 3
    assert modes.count(True) == 2


def test_modes_and_gradients_come_back(digits_classifier):
    model = digits_classifier.model
    model.train()
    model.features.eval()
    modes = [m.training for m in model.modules()]
    model.head.weight.grad = torch.ones_like(model.head.weight)
    art = ProjectedGradientDescent(digits_classifier, eps=0.1, eps_step=0.1, max_iter=1, verbose=False)
    trainer(digits_classifier).fit(X[:64], Y[:64], nb_epochs=1)
    with POINTWISE:
        trainer(digits_classifier, attack=art).fit(X[:64], Y[:64], nb_epochs=1)
    adversarial_accuracy(digits_classifier, X[:64], Y[:64], art)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.head.bias.grad is None


def test_only_the_last_layer_moves_after_reinitialising_it(digits_classifier):
    reinitialise_last_layer(digits_classifier, seed=0)
    before = weights(digits_classifier)
    trainer(digits_classifier).fit(X[:64], Y[:64], batch_size=32, nb_epochs=1)
    after = weights(digits_classifier)
    assert {k for k in before if not torch.equal(before[k], after[k])} == {"head.weight", "head.bias"}


def test_validation_selects_the_best_epoch_and_keeps_the_last(digits_classifier):
    validation = X_TEST[:100], Y_TEST[:100]
    states = []

    class Watching(DistributionalTRADESTrainer):
        def _validate(self, data):
            states.append(weights(self.classifier))
            return super()._validate(data) | {"wp_accuracy": [0.2, 0.7, 0.7, 0.1][len(states) - 1]}

    fine_tuning = Watching(digits_classifier, eps=0.1, max_iter=2, seed=0, verbose=False)
    fine_tuning.fit(X[:64], Y[:64], validation_data=validation, batch_size=32, nb_epochs=4)
    assert fine_tuning.best_epoch == 1
    assert same(states[1], weights(digits_classifier))
    assert same(states[3], fine_tuning.final_state)
    assert len(fine_tuning.history) == 4
    assert fine_tuning.history[0]["clean_accuracy"] > 0.5


def test_validation_figures_are_those_of_the_metrics(digits_classifier):
    digits_classifier.optimizer.param_groups[0]["lr"] = 0.0
    digits_classifier.model.features[1].momentum = 0.0  # so that nothing changes at all
    fine_tuning = trainer(digits_classifier, max_iter=5)
    validation = X_TEST[:100], Y_TEST[:100]
    fine_tuning.fit(X[:64], Y[:64], validation_data=validation, nb_epochs=1)
    record = fine_tuning.history[0]
    pointwise = WassersteinPGD(digits_classifier, p=np.inf, eps=0.1, max_iter=5, loss="ce", verbose=False)
    assert record["clean_accuracy"] == adversarial_accuracy(digits_classifier, *validation, eps=0.0)
    assert record["winf_accuracy"] == adversarial_accuracy(digits_classifier, *validation, pointwise)
    assert record["wp_accuracy"] == adversarial_accuracy(digits_classifier, *validation, eps=0.1, max_iter=5)


def test_without_validation_the_last_epoch_stays(digits_classifier):
    fine_tuning = trainer(digits_classifier)
    fine_tuning.fit(X[:64], Y[:64], batch_size=32, nb_epochs=2)
    assert fine_tuning.best_epoch == 1
    assert same(weights(digits_classifier), fine_tuning.final_state)
    assert fine_tuning.history[0]["wp_accuracy"] is None


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1]),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=3),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [1]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1e9, factor=0.5),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")  # SequentialLR of torch 2.4 warns of itself
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("validate", [False, True])
def test_any_scheduler_of_torch(digits_classifier, name, validate):
    scheduler = SCHEDULERS[name](digits_classifier.optimizer)
    fine_tuning = trainer(digits_classifier)
    fine_tuning.fit(X[:64], Y[:64], (X_TEST[:20], Y_TEST[:20]) if validate else None, nb_epochs=3, scheduler=scheduler)
    assert len({record["learning_rate"] for record in fine_tuning.history}) > 1


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("validate", [False, True])
def test_reduce_on_plateau_gets_its_metric(digits_classifier, mode, validate):
    scheduler = lr_scheduler.ReduceLROnPlateau(digits_classifier.optimizer, mode=mode)
    fine_tuning = trainer(digits_classifier)
    fine_tuning.fit(X[:64], Y[:64], (X_TEST[:20], Y_TEST[:20]) if validate else None, nb_epochs=1, scheduler=scheduler)
    record = fine_tuning.history[0]
    accuracy = record["wp_accuracy"] if validate else record["train_adversarial_accuracy"]
    assert scheduler.best == (record["loss"] if mode == "min" else accuracy)


def test_seeds_fix_the_run(digits_classifier):
    start, results = weights(digits_classifier), []
    for seed in (3, 3, 4):
        digits_classifier.model.load_state_dict(start)
        torch.manual_seed(0)  # dropout draws from torch's own state
        trainer(digits_classifier, seed=seed, upsilon="resample").fit(X[:90], Y[:90], batch_size=32, nb_epochs=1)
        results.append(weights(digits_classifier))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_without_a_seed_numpys_state_decides(digits_classifier):
    start, results = weights(digits_classifier), []
    for seed in (3, 3, 4):
        digits_classifier.model.load_state_dict(start)
        torch.manual_seed(0)
        np.random.seed(seed)
        trainer(digits_classifier, seed=None).fit(X[:90], Y[:90], batch_size=32, nb_epochs=1)
        results.append(weights(digits_classifier))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_drop_last(digits_classifier, monkeypatch):
    batches, step = [], AlgorithmOne.step

    def counted(method, x, y, where):
        batches.append(len(x))
        return step(method, x, y, where)

    monkeypatch.setattr(AlgorithmOne, "step", counted)
    for drop_last in (False, True):
        DistributionalTRADESTrainer(digits_classifier, max_iter=1, verbose=False).fit(
            X[:70], Y[:70], batch_size=32, nb_epochs=1, drop_last=drop_last
        )
    assert batches == [32, 32, 6, 32, 32]


class Opaque(DataGenerator):
    """A generator that hides its data set."""

    def __init__(self, inner: NumpyDataGenerator) -> None:
        super().__init__(inner.size, inner.batch_size)
        self._inner = inner

    def get_batch(self):
        return self._inner.get_batch()


def loader() -> PyTorchDataGenerator:
    data = torch.utils.data.TensorDataset(on_device(X[:64]), on_device(np.eye(10)[Y[:64]]))
    return PyTorchDataGenerator(torch.utils.data.DataLoader(data, batch_size=32), size=64, batch_size=32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NumpyDataGenerator(X[:64], Y[:64], batch_size=32, shuffle=False),
        lambda: Opaque(NumpyDataGenerator(X[:64], np.eye(10)[Y[:64]], batch_size=32, shuffle=False)),
        loader,
    ],
)
def test_fit_generator_equals_fit(digits_classifier, make, monkeypatch):
    digits_classifier.model.dropout.p = 0.0  # a DataLoader draws a seed from the state that dropout draws from
    start = weights(digits_classifier)
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    first = trainer(digits_classifier, upsilon="streaming")
    first.fit(X[:64], Y[:64], batch_size=32, nb_epochs=2)
    expected = weights(digits_classifier)
    digits_classifier.model.load_state_dict(start)
    second = trainer(digits_classifier, upsilon="streaming")
    second.fit_generator(make(), nb_epochs=2)
    assert same(expected, weights(digits_classifier))
    assert [r["loss"] for r in first.history] == [r["loss"] for r in second.history]


def test_resampling_from_a_generator_needs_its_data_set(digits_classifier):
    inner = NumpyDataGenerator(X[:64], Y[:64], batch_size=32)
    trainer(digits_classifier, upsilon="resample").fit_generator(inner, nb_epochs=1)
    with pytest.raises(ValueError, match="allowed are a NumpyDataGenerator, or upsilon='streaming'"):
        trainer(digits_classifier, upsilon="resample").fit_generator(Opaque(inner), nb_epochs=1)


def test_fit_generator_validates_and_selects(digits_classifier):
    fine_tuning = trainer(digits_classifier)
    fine_tuning.fit_generator(loader(), nb_epochs=2, validation_data=(X_TEST[:20], Y_TEST[:20]))
    assert fine_tuning.history[1]["wp_accuracy"] is not None


def test_an_attack_of_art_replaces_the_built_in_one(digits_classifier):
    attack = ProjectedGradientDescent(
        digits_classifier, eps=0.1, eps_step=0.05, max_iter=2, num_random_init=1, verbose=False
    )
    with POINTWISE:
        fine_tuning = DistributionalTRADESTrainer(digits_classifier, attack, 6.0, verbose=False)
    fine_tuning.fit(X[:64], Y[:64], (X_TEST[:20], Y_TEST[:20]), batch_size=32, nb_epochs=2)
    record = fine_tuning.history[-1]
    assert record["upsilon"] is None
    assert record["budget_ratio"] is None
    assert record["consistency_loss"] > 0


def test_with_an_attack_it_is_arts_trainer(digits_classifier, monkeypatch):
    """Same data, same order, same attack: the same weights as ART's own TRADES trainer makes."""
    start = weights(digits_classifier)
    digits_classifier.model.dropout.p = 0.0
    attack = ProjectedGradientDescent(digits_classifier, eps=0.1, eps_step=0.05, max_iter=2, verbose=False)
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    monkeypatch.setattr(np.random, "shuffle", lambda indices: None)
    results = []
    for cls, expected in ((AdversarialTrainerTRADESPyTorch, nullcontext()), (DistributionalTRADESTrainer, POINTWISE)):
        digits_classifier.model.load_state_dict(start)
        with expected:
            cls(digits_classifier, attack, 6.0).fit(X[:64], Y[:64], None, 32, 2)
        results.append(weights(digits_classifier))
    assert not torch.equal(results[0]["head.weight"], start["head.weight"])
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-5)


def test_arts_classes_and_accessors(digits_classifier):
    fine_tuning = trainer(digits_classifier)
    for cls in (Trainer, AdversarialTrainerTRADES, AdversarialTrainerTRADESPyTorch):
        assert isinstance(fine_tuning, cls)
    assert fine_tuning.classifier is digits_classifier
    assert fine_tuning.get_classifier() is digits_classifier
    np.testing.assert_array_equal(fine_tuning.predict(X[:9]), digits_classifier.predict(X[:9]))


def test_preprocessing_and_the_classifiers_own_cross_entropy(digits_classifier):
    model = digits_classifier.model
    smoothed = make_classifier(
        model,
        (1, 8, 8),
        10,
        preprocessing=(0.5, 0.5),
        loss=nn.CrossEntropyLoss(label_smoothing=0.2, reduction="sum"),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
    )
    fine_tuning = trainer(smoothed)
    fine_tuning.fit(X[:64], Y[:64], nb_epochs=1)
    model.dropout.p = 0.0
    model.train()
    logits = model(on_device((X[:64] - 0.5) / 0.5))
    expected = nn.functional.cross_entropy(logits, on_device(Y[:64]), label_smoothing=0.2)
    assert fine_tuning.history[0]["clean_loss"] == pytest.approx(expected.item(), rel=0.1)
    assert smoothed.loss.reduction == "sum"


def test_a_loss_that_is_not_finite_stops_training(digits_classifier):
    digits_classifier.optimizer.param_groups[0]["lr"] = 1e30
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch 0, batch [12], and the weights are"):
        trainer(digits_classifier).fit(X[:128], Y[:128], batch_size=32, nb_epochs=1)


def test_inputs_and_labels_are_not_modified(digits_classifier):
    x, y = X[:64].copy(), Y[:64].copy()
    trainer(digits_classifier, upsilon="resample").fit(x, y, (x, y), nb_epochs=1)
    np.testing.assert_array_equal(x, X[:64])
    np.testing.assert_array_equal(y, Y[:64])


def test_progress_bar_shows_the_figures(digits_classifier, capsys):
    trainer(digits_classifier, verbose=True).fit(X[:64], Y[:64], (X_TEST[:20], Y_TEST[:20]), nb_epochs=1)
    shown = capsys.readouterr().err
    assert "DistributionalTRADESTrainer" in shown
    assert "wp_accuracy" in shown


def test_history_is_plain_and_starts_anew(digits_classifier):
    import json

    fine_tuning = trainer(digits_classifier)
    for _ in range(2):
        fine_tuning.fit(X[:64], Y[:64], (X_TEST[:20], Y_TEST[:20]), nb_epochs=2)
        assert [record["epoch"] for record in fine_tuning.history] == [0, 1]
    assert json.loads(json.dumps(fine_tuning.history)) == fine_tuning.history
    fine_tuning.fit(X[:64], Y[:64], nb_epochs=0)
    assert fine_tuning.history == []


def test_batch_budgets_follow_the_formula(digits_classifier, monkeypatch):
    """The budgets that the attacks get, against Upsilon computed outside."""
    from art_wdro import sensitivity

    seen = []
    budget_of = AlgorithmOne._budget

    def watched(method, own, samples):
        budget = budget_of(method, own, samples)
        seen.append((own.item(), budget.item(), method._running.value.item()))
        return budget

    monkeypatch.setattr(AlgorithmOne, "_budget", watched)
    digits_classifier.optimizer.param_groups[0]["lr"] = 0.0
    digits_classifier.model.features[1].momentum = 0.0
    trainer(digits_classifier, max_iter=1, upsilon="resample", sample_fraction=1.0).fit(
        X[:96], Y[:96], batch_size=32, nb_epochs=1
    )
    assert len(seen) == 3
    whole = sensitivity(digits_classifier, X[:96], Y[:96])
    for own, budget, running in seen:
        assert running == pytest.approx(whole, rel=1e-4)
        assert budget == pytest.approx(0.1 * own / whole, rel=1e-4)
        assert budget == pytest.approx(
            batch_budget(0.1, torch.tensor(own), torch.tensor(running), 2.0).item(), rel=1e-5
        )
