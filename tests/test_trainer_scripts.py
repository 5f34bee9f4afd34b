# SPDX-License-Identifier: MIT
"""Both trainers in scripts as ART's users have them: copies, changed classifiers, other optimisers, small batches."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from typing import Any

import art.config
import numpy as np
import pytest
import torch
from art.attacks.evasion import DeepFool, ProjectedGradientDescent
from art.data_generators import NumpyDataGenerator, PyTorchDataGenerator
from art.defences.preprocessor import CutMixPyTorch, GaussianAugmentation, LabelSmoothing, Mixup, MixupPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler

from art_wdro import (
    DistributionalTRADESTrainer,
    WassersteinDistributionalAttack,
    WassersteinFGM,
    WassersteinKnapsack,
    WassersteinMarginTrainer,
    WassersteinPGD,
    adversarial_accuracy,
)
from art_wdro._host import inputs
from art_wdro.trainers import _minibatches
from art_wdro.trainers._minibatches import Shuffled
from tests.conftest import DigitsNetwork, digits, make_classifier, on_device, on_host, same, trainer, weights

(X, Y), (X_TEST, Y_TEST) = digits()
TRAINERS = [DistributionalTRADESTrainer, WassersteinMarginTrainer]
both = pytest.mark.parametrize("kind", TRAINERS)


@pytest.fixture(autouse=True)
def _data_path(tmp_path, monkeypatch):
    """Where a classifier of ART writes its weights when it is copied or pickled."""
    monkeypatch.setattr(art.config, "ART_DATA_PATH", str(tmp_path))


def train(training: Any, samples: int = 64) -> dict[str, torch.Tensor]:
    """Train one epoch without a difference in dropout, and return the weights."""
    torch.manual_seed(0)
    training.fit(X[:samples], Y[:samples], batch_size=32, nb_epochs=1)
    return weights(training.get_classifier())


def dense(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *layers, nn.Linear(8, 10))


def classifier_of(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> PyTorchClassifier:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if optimizer is None else optimizer
    return make_classifier(model, (1, 8, 8), 10, optimizer=optimizer)


@both
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda training: pickle.loads(pickle.dumps(training))])
@pytest.mark.parametrize("trained_before", [False, True])
def test_a_copy_trains_its_own_classifier(digits_classifier, kind, copied, trained_before):
    original = trainer(kind, digits_classifier)
    if trained_before:
        train(original)
    start = weights(digits_classifier)
    twin = copied(original)
    assert twin.get_classifier() is not digits_classifier
    assert same(weights(twin.get_classifier()), start)
    found = train(twin)
    assert same(weights(digits_classifier), start)
    assert not same(found, start)
    assert same(train(original), found)


@both
def test_a_trainer_pickles_with_an_attack_of_its_classifier(digits_classifier, kind):
    if kind is WassersteinMarginTrainer:
        twin = pickle.loads(pickle.dumps(trainer(kind, digits_classifier)))
    else:
        attack = WassersteinPGD(digits_classifier, eps=0.1, max_iter=1, verbose=False)
        twin = pickle.loads(pickle.dumps(kind(digits_classifier, attack, verbose=False)))
        assert twin._attack.estimator is twin.get_classifier()
    start = weights(digits_classifier)
    assert not same(train(twin), start)
    assert same(weights(digits_classifier), start)


def other_head(classifier: PyTorchClassifier) -> None:
    torch.manual_seed(1)
    classifier.model.head = on_device(nn.Linear(512, 10))
    classifier.set_params(optimizer=torch.optim.SGD(classifier.model.parameters(), lr=0.05))


CHANGES = {
    "preprocessing": lambda c: c.set_params(preprocessing=(0.5, 0.5)),
    "clip_values": lambda c: c.set_params(clip_values=(-1.0, 2.0)),
    "optimizer": lambda c: c.set_params(optimizer=torch.optim.Adam(c.model.parameters(), lr=0.01)),
    "head": other_head,
    "loss": lambda c: c.set_params(loss=nn.CrossEntropyLoss(label_smoothing=0.2)),
}


@both
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("trained_before", [False, True])
def test_what_changed_since_the_trainer_was_made_counts(digits_classifier, kind, change, trained_before):
    twins = [digits_classifier, copy.deepcopy(digits_classifier), copy.deepcopy(digits_classifier)]
    early = trainer(kind, twins[0], eps=0.3)
    if trained_before:
        train(early)
        twins[0].model.load_state_dict(weights(twins[1]))
        twins[0].optimizer.state.clear()
    for twin in twins[:2]:
        change(twin)
    found = train(early)
    assert same(found, train(trainer(kind, twins[1], eps=0.3)))
    unchanged = train(trainer(kind, twins[2], eps=0.3))
    assert not same(found, unchanged)


@both
def test_an_optimiser_of_another_network_is_refused(digits_classifier, kind):
    ran = []
    digits_classifier.model.register_forward_hook(lambda *_: ran.append(1))
    digits_classifier.model.head = on_device(nn.Linear(512, 10))
    early = trainer(kind, digits_classifier)
    message = r"lacks 2 of the network's 8 trainable parameters \(head\.weight, head\.bias\); make the optimizer after"
    with pytest.raises(ValueError, match=message):
        early.fit(X[:64], Y[:64], nb_epochs=1)
    with pytest.raises(ValueError, match=message):
        early.fit_generator(NumpyDataGenerator(X[:64], Y[:64], batch_size=32), nb_epochs=1)
    other = classifier_of(digits_classifier.model, torch.optim.SGD(DigitsNetwork().parameters(), lr=0.1))
    with pytest.raises(
        ValueError, match=r"lacks 8 of the network's 8 .*features\.1\.bias, features\.3\.weight and 3 m"
    ):
        trainer(kind, other).fit(X[:64], Y[:64], nb_epochs=1)
    assert ran == []
    digits_classifier.model.head.requires_grad_(False)  # frozen parameters may be missing
    train(early)


@both
def test_a_network_with_nothing_to_train_is_refused(digits_classifier, kind):
    digits_classifier.model.requires_grad_(False)
    with pytest.raises(ValueError, match="without a parameter to train; needed is at least one with requires_grad"):
        trainer(kind, digits_classifier).fit(X[:64], Y[:64], nb_epochs=1)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
    model[3].weight = model[1].weight
    return model


def adapted() -> nn.Module:
    """A frozen layer with a low-rank correction that is trained."""

    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.zeros(8, 2)), nn.Parameter(torch.randn(2, 64))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + self.up @ self.down

    model = dense()
    model.requires_grad_(False)
    nn.utils.parametrize.register_parametrization(model[1], "weight", LowRank())
    return model


NETWORKS = {
    "tied": tied,
    "adapted": adapted,
    "weight norm": lambda: nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(64, 10))),
    "orthogonal": lambda: nn.Sequential(nn.Flatten(), parametrizations.orthogonal(nn.Linear(64, 10))),
    "parallel": lambda: nn.DataParallel(dense()),
    "compiled": lambda: torch.compile(dense(), backend="eager"),
}


@both
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks_that_share_or_compute_their_weights_train(kind, make):
    classifier = classifier_of(make())
    trained = {name for name, weight in classifier.model.named_parameters() if weight.requires_grad}
    before = weights(classifier)
    after = train(trainer(kind, classifier))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved >= {name for name in trained if "down" not in name}  # its gradient is 0 while `up` is


@both
def test_weights_that_a_wrapper_made_anew_are_missed(kind):
    model = dense()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    parametrizations.weight_norm(model[1])
    with pytest.raises(ValueError, match=r"lacks 2 .*1\.parametrizations\.weight\.original0"):
        trainer(kind, classifier_of(model, optimiser)).fit(X[:64], Y[:64], nb_epochs=1)


@both
def test_an_optimiser_may_hold_more_than_the_network(digits_classifier, kind):
    scale = nn.Parameter(torch.ones(1))
    digits_classifier.optimizer.add_param_group({"params": [scale]})
    start = weights(digits_classifier)
    assert not same(train(trainer(kind, digits_classifier)), start)


@both
@pytest.mark.parametrize("make", [lambda o: lr_scheduler.StepLR(o, 1), lr_scheduler.ReduceLROnPlateau])
def test_a_scheduler_of_another_optimiser_is_refused(digits_classifier, kind, make):
    other = torch.optim.SGD(digits_classifier.model.parameters(), lr=0.1)
    start = weights(digits_classifier)
    for call in ("fit", "fit_generator"):
        data = (X[:64], Y[:64]) if call == "fit" else (NumpyDataGenerator(X[:64], Y[:64], batch_size=32),)
        with pytest.raises(
            ValueError, match=r"scheduler is a \w+ of another optimizer than the classifier's; needed is"
        ):
            getattr(trainer(kind, digits_classifier), call)(*data, nb_epochs=1, scheduler=make(other))
    assert same(weights(digits_classifier), start)


class Wrapped(torch.optim.Optimizer):
    """An optimiser around another one, whose groups it has."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, inner.defaults)
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> None:
        self.inner.step(closure)


@both
def test_a_wrapped_optimiser_trains_with_a_scheduler_of_either(digits_classifier, kind):
    inner = digits_classifier.optimizer
    wrapped = Wrapped(inner)
    digits_classifier.set_params(optimizer=wrapped)
    for number, optimiser in enumerate((inner, wrapped), 1):
        training = trainer(kind, digits_classifier)
        training.fit(X[:64], Y[:64], nb_epochs=1, scheduler=lr_scheduler.StepLR(optimiser, 1))
        assert inner.param_groups[0]["lr"] == pytest.approx(0.05 / 10**number)


@both
def test_lbfgs_is_refused_by_name(digits_classifier, kind):
    optimiser = torch.optim.LBFGS(digits_classifier.model.parameters())
    early = trainer(kind, digits_classifier)
    digits_classifier.set_params(optimizer=optimiser)
    for use in (lambda: trainer(kind, digits_classifier), lambda: early.fit(X[:64], Y[:64], nb_epochs=1)):
        with pytest.raises(ValueError, match="optimizer LBFGS, whose step needs closure; allowed are optimizers that"):
            use()


class Bare:
    """No optimiser of torch, though it takes steps."""

    def step(self) -> None:
        """Do nothing."""


@both
def test_what_training_uses_of_an_optimiser_must_be_there(digits_classifier, kind):
    digits_classifier.set_params(optimizer=Bare())
    with pytest.raises(
        ValueError, match="optimizer Bare, which lacks param_groups, state_dict, load_state_dict, zero_"
    ):
        trainer(kind, digits_classifier)


def generated(samples: int, batch_size: int, **settings: Any) -> NumpyDataGenerator:
    return NumpyDataGenerator(X[:samples], Y[:samples], batch_size=batch_size, **settings)


def loaded(samples: int, batch_size: int) -> PyTorchDataGenerator:
    data = torch.utils.data.TensorDataset(on_device(X[:samples]), on_device(np.eye(10)[Y[:samples]]))
    return PyTorchDataGenerator(torch.utils.data.DataLoader(data, batch_size=batch_size), samples, batch_size)


@both
def test_a_last_minibatch_of_one_is_told_before_the_first(kind):
    model = dense(nn.BatchNorm1d(8))
    classifier = classifier_of(model)
    start, modes = weights(classifier), [module.training for module in model.modules()]
    training = trainer(kind, classifier)
    told = "does not train on a minibatch of one sample"
    with pytest.raises(
        ValueError, match=rf"{told} .*batch_size is 16, which leaves 1 of the 33 samples alone; give an"
    ):
        training.fit(X[:33], Y[:33], batch_size=16, nb_epochs=1)
    with pytest.raises(ValueError, match=rf"{told} .*batch_size is 1, .*; give a larger one"):
        training.fit(X[:33], Y[:33], batch_size=1, nb_epochs=1, drop_last=True)
    for generator in (generated(33, 16, drop_remainder=False), generated(3, 1), loaded(33, 16)):
        with pytest.raises(ValueError, match=rf"{told} .*the generator has a batch of 1"):
            training.fit_generator(generator, nb_epochs=1)
    assert same(weights(classifier), start)
    assert [module.training for module in model.modules()] == modes
    training.fit(X[:33], Y[:33], batch_size=16, nb_epochs=1, drop_last=True)
    training.fit_generator(generated(33, 16), nb_epochs=1)
    training.fit(X[:34], Y[:34], batch_size=16, nb_epochs=1)
    assert not same(weights(classifier), start)


def frozen_norm() -> nn.Module:
    model = dense(nn.BatchNorm1d(8))
    model[2].requires_grad_(False)
    return model


@both
@pytest.mark.parametrize("make", [DigitsNetwork, dense, lambda: dense(nn.LayerNorm(8)), frozen_norm])
def test_a_last_minibatch_of_one_trains_where_torch_can(kind, make):
    """Batch norm over a map of more than one pixel, none at all, or one that is frozen."""
    classifier = classifier_of(make())
    training = trainer(kind, classifier)
    training.fit(X[:33], Y[:33], batch_size=16, nb_epochs=1)
    training.fit(X[:3], Y[:3], batch_size=1, nb_epochs=1)
    training.fit_generator(generated(33, 16, drop_remainder=False), nb_epochs=1)


def test_looking_for_it_changes_nothing(digits_classifier):
    """The forward pass that finds it leaves statistics and random states as they were."""
    results = []
    for samples in (33, 48):  # the first looks, and drops the same last sample
        model = DigitsNetwork()
        model.load_state_dict(digits_classifier.model.state_dict())
        torch.manual_seed(0)
        training = trainer(DistributionalTRADESTrainer, classifier_of(model))
        training.fit(X[:samples], Y[:samples], batch_size=16, nb_epochs=0)
        results.append((torch.rand(1).item(), weights(training.get_classifier())))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


@pytest.mark.parametrize(("samples", "single"), [(34, True), (35, True), (36, False), (64, False), (32, False)])
def test_one_sample_on_a_rank_counts(monkeypatch, samples, single):
    monkeypatch.setattr(_minibatches, "ranks", lambda: 2)
    found = Shuffled(torch.zeros(samples, 3), torch.zeros(samples), 16, False, 0).single()
    assert (found is not None) == single
    if found is not None:
        assert f"batch_size is 16, which leaves 1 of the {samples} samples alone on a rank, and the last" in found[1]


DEFENCES = {
    "smoothing": lambda: LabelSmoothing(0.8),
    "augmentation": lambda: GaussianAugmentation(sigma=0.1, augmentation=True, ratio=0.5, clip_values=(0, 1)),
    "mixup": lambda: Mixup(10),
    "mixup in torch": lambda: MixupPyTorch(10),
    "cutmix in torch": lambda: CutMixPyTorch(10),
}


@both
@pytest.mark.parametrize("make", DEFENCES.values(), ids=DEFENCES)
@pytest.mark.parametrize("weight", [None, torch.linspace(0.5, 1.5, 10)])
def test_defences_that_change_the_training_set_do_as_in_arts_fit(digits_classifier, kind, make, weight):
    """Without the adversarial term, and all in one minibatch, a step is the one of ART's `PyTorchClassifier.fit`."""
    digits_classifier.model.dropout.p = 0.0
    settings = {
        "preprocessing_defences": make(),
        "preprocessing": (0.4, 0.6),
        "loss": on_device(nn.CrossEntropyLoss(weight)),
    }
    digits_classifier.set_params(**settings)
    start = weights(digits_classifier)
    np.random.seed(7)
    torch.manual_seed(7)
    digits_classifier.fit(X[:40], Y[:40], batch_size=100, nb_epochs=1)
    expected = weights(digits_classifier)
    digits_classifier.model.load_state_dict(start)
    training = trainer(kind, digits_classifier, beta=0.0, seed=7)
    training.fit(X[:40], Y[:40], batch_size=100, nb_epochs=1)
    assert not same(expected, start)
    for name, value in digits_classifier.model.named_parameters():  # statistics are those of the attacked batch, too
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    assert digits_classifier.preprocessing_defences[0].apply_fit


@both
@pytest.mark.parametrize("make", DEFENCES.values(), ids=DEFENCES)
def test_defences_that_change_the_training_set_train_with_everything(digits_classifier, kind, make, tmp_path):
    digits_classifier.set_params(preprocessing_defences=make())
    data, settings = (X[:64], Y[:64]), {"validation_data": (X_TEST[:20], Y_TEST[:20]), "batch_size": 32}
    start, results = weights(digits_classifier), []
    for stops in ([2], [1, 2]):
        digits_classifier.model.load_state_dict(start)
        for stop in stops:
            torch.manual_seed(0)
            np.random.seed(stop)  # nothing depends on it, since a seed is given
            training = trainer(kind, digits_classifier)
            training.fit(*data, **settings, nb_epochs=stop, checkpoint=tmp_path / f"{len(stops)}.ckpt")
        results.append(weights(digits_classifier))
    assert same(*results)
    assert not same(results[0], start)
    if kind is DistributionalTRADESTrainer:
        training = trainer(kind, digits_classifier, upsilon="resample", gamma=0.5, attack_label="predicted")
    training.fit_generator(generated(64, 32), nb_epochs=1)
    assert math.isfinite(training.history[0]["loss"])


@both
def test_noisy_copies_stay_in_the_box_and_are_attacked(digits_classifier, kind, monkeypatch):
    digits_classifier.set_params(preprocessing_defences=GaussianAugmentation(sigma=0.5, augmentation=True, ratio=1.0))
    seen = []
    epoch = Shuffled.epoch
    monkeypatch.setattr(Shuffled, "epoch", lambda *given: (seen.append(batch[0]) or batch for batch in epoch(*given)))
    trainer(kind, digits_classifier).fit(X[:20], Y[:20], batch_size=16, nb_epochs=1)
    assert [len(x) for x in seen] == [16, 16, 8]
    whole = torch.cat(seen)
    assert whole.min() >= 0
    assert whole.max() <= 1
    given = {x.tobytes() for x in X[:20]}
    assert sum(on_host(x).tobytes() in given for x in whole) == 20


def test_a_generators_batches_are_changed_as_the_set_is(digits_classifier, monkeypatch):
    digits_classifier.model.dropout.p = 0.0
    digits_classifier.set_params(preprocessing_defences=LabelSmoothing(0.8))
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    start, results = weights(digits_classifier), []
    for call in (
        lambda training: training.fit(X[:64], Y[:64], batch_size=32, nb_epochs=1),
        lambda training: training.fit_generator(generated(64, 32), nb_epochs=1),
    ):
        digits_classifier.model.load_state_dict(start)
        call(trainer(DistributionalTRADESTrainer, digits_classifier))
        results.append(weights(digits_classifier))
    assert same(*results)


@both
def test_a_smoothed_label_is_the_label_everywhere_but_in_the_loss(digits_classifier, kind):
    model = digits_classifier.model
    model.dropout.p = model.features[1].momentum = digits_classifier.optimizer.param_groups[0]["lr"] = 0.0
    figures = []
    for defence in (None, LabelSmoothing(0.8)):
        digits_classifier.set_params(preprocessing_defences=defence)
        training = trainer(kind, digits_classifier)
        training.fit(X[:64], Y[:64], batch_size=64, nb_epochs=1)
        figures.append(training.history[0])
    plain, smoothed = figures
    assert smoothed["clean_loss"] > plain["clean_loss"] + 0.1
    for name in plain.keys() - {"clean_loss", "loss", "seconds"}:
        assert smoothed[name] == plain[name]


def test_keeping_arts_attack_is_told_once_and_sets_what_selects(digits_classifier):
    attack = ProjectedGradientDescent(digits_classifier, norm=2, eps=0.3, eps_step=0.1, max_iter=1, verbose=False)
    message = (
        r"attack is a ProjectedGradientDescent\w*, which attacks every sample on its own: the trainer is "
        r"pointwise TRADES with it; leave attack out for the distributional method\. "
        r"Epochs are .* p = 2, r = 2 and eps = 0\.3"
    )
    with pytest.warns(UserWarning, match=message) as told:
        fine_tuning = DistributionalTRADESTrainer(digits_classifier, attack, beta=6.0, verbose=False)
    assert len(told) == 1
    assert told[0].filename == __file__
    data = (X_TEST[:40], Y_TEST[:40])
    digits_classifier.optimizer.param_groups[0]["lr"] = 0.0
    digits_classifier.model.features[1].momentum = 0.0
    fine_tuning.fit(X[:64], Y[:64], data, nb_epochs=1)
    selecting = WassersteinPGD(digits_classifier, p=2, norm=2, eps=0.3, max_iter=20, verbose=False)
    expected = adversarial_accuracy(digits_classifier, *data, selecting)
    assert fine_tuning.history[0]["wp_accuracy"] == expected < fine_tuning.history[0]["clean_accuracy"]


@pytest.mark.parametrize(
    ("norm", "eps", "given", "expected"),
    [
        (2, 0.3, {}, (0.3, 2.0, 2.0)),
        ("inf", 0.3, {}, (0.3, 2.0, math.inf)),
        (2, 0.3, {"eps": 8 / 255, "norm": np.inf, "p": 2}, (8 / 255, 2.0, math.inf)),  # the defaults, given
        (2, 0.3, {"eps": 0.1}, (0.1, 2.0, 2.0)),
        (2, 0.3, {"p": 1.5}, (0.3, 1.5, 2.0)),
        (np.inf, np.full((1, 8, 8), 0.3), {}, (8 / 255, 2.0, math.inf)),  # a budget for each pixel is no budget here
    ],
)
def test_a_threat_that_is_given_goes_before_the_attacks(digits_classifier, norm, eps, given, expected):
    attack = ProjectedGradientDescent(digits_classifier, norm=norm, eps=eps, eps_step=eps, max_iter=1, verbose=False)
    with pytest.warns(UserWarning, match="pointwise TRADES"):
        common = DistributionalTRADESTrainer(digits_classifier, attack, **given)._common
    assert (common.eps, common.p, common.norm) == expected


def test_an_attack_without_a_threat_leaves_the_defaults(digits_classifier):
    with pytest.warns(UserWarning, match="attack is a DeepFool, .* p = 2, r = inf and eps = 0.0313725"):
        DistributionalTRADESTrainer(digits_classifier, DeepFool(digits_classifier, verbose=False))


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (lambda c: WassersteinPGD(c, p=1.5, norm=2, eps=0.3, verbose=False), (0.3, 1.5, 2.0)),
        (lambda c: WassersteinFGM(c, p=3, eps=0.2, verbose=False), (0.2, 3.0, math.inf)),
        (lambda c: WassersteinKnapsack(c, p=1, eps=0.2, verbose=False), (0.2, 2.0, math.inf)),  # W_1 has no ascent
    ],
)
def test_an_attack_that_shares_its_budget_is_no_surprise(digits_classifier, attack, expected):
    common = DistributionalTRADESTrainer(digits_classifier, attack(digits_classifier), verbose=False)._common
    assert (common.eps, common.p, common.norm) == expected
    with pytest.warns(UserWarning, match="attack is a WassersteinPGD, which attacks every sample on its own.* p = inf"):
        DistributionalTRADESTrainer(digits_classifier, WassersteinPGD(digits_classifier, p=np.inf, verbose=False))


def test_the_defaults_are_in_the_signature():
    defaults = {k: v.default for k, v in inspect.signature(DistributionalTRADESTrainer).parameters.items()}
    assert (defaults["eps"], defaults["p"], defaults["norm"]) == (8 / 255, 2, np.inf)
    assert defaults["attack"] is None
    assert str(defaults["eps"]) == str(8 / 255)


FOREIGN = {"num_random_init": 1, "random_eps": True, "decay": 1.0, "use_amp": True, "nb_epochs": 3}


@both
@pytest.mark.parametrize(("name", "value"), [*FOREIGN.items(), ("batch_size", 64), ("ratio", 1.0)])
def test_a_trainer_says_what_to_do_with_arts_keywords(digits_classifier, kind, name, value):
    what = "give it to fit" if name in ("nb_epochs", "batch_size") else "leave it out"
    with pytest.raises(TypeError, match=rf"{name} has no counterpart in {kind.__name__}\(\): .*{what}"):
        kind(digits_classifier, **{name: value})
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        kind(digits_classifier, batchsize=3)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("kind", [WassersteinPGD, WassersteinFGM, WassersteinKnapsack, WassersteinDistributionalAttack])
def test_an_attack_says_what_to_do_with_arts_keywords(digits_classifier, kind, name):
    with pytest.raises(TypeError, match=rf"{name} has no counterpart in {kind.__name__}\(\): "):
        kind(digits_classifier, **{name: FOREIGN[name]})
    assert name not in inspect.signature(kind).parameters
    assert "kwargs" not in inspect.signature(kind).parameters


@both
def test_keywords_of_the_constructor_are_known_in_fit(digits_classifier, kind):
    training = trainer(kind, digits_classifier)
    message = r"got the unknown arguments \['epochs', 'verbose'\]; allowed are .*; verbose is for the constructor"
    with pytest.raises(TypeError, match=f"fit {message}"):
        training.fit(X, Y, verbose=True, epochs=3)
    with pytest.raises(TypeError, match=f"fit_generator {message}"):
        training.fit_generator(generated(33, 16), verbose=True, epochs=3)


@both
def test_no_epochs_change_nothing(digits_classifier, kind):
    start = weights(digits_classifier)
    training = trainer(kind, digits_classifier)
    for validation in (None, (X_TEST[:20], Y_TEST[:20])):
        training.fit(X[:64], Y[:64], validation, nb_epochs=0)
        training.fit_generator(generated(64, 32), nb_epochs=0, validation_data=validation)
        assert (training.history, training.best_epoch, training.final_state) == ([], None, None)
    assert same(weights(digits_classifier), start)


PREPROCESSED = ((X_TEST[:20] - 0.5) / 0.5, Y_TEST[:20])
NOT_VALIDATION = {
    "empty": ((X[:0], Y[:0]), r"validation_data\[0\] has the shape \(0, 1, 8, 8\); needed is at least one sample"),
    "preprocessed": (
        PREPROCESSED,
        r"validation_data\[0\] lies in \[-1, 1\].*; needed are inputs as .* before the class",
    ),
}


@both
@pytest.mark.parametrize(("validation", "message"), NOT_VALIDATION.values(), ids=NOT_VALIDATION)
def test_validation_data_that_cannot_select_are_told_before_training(digits_classifier, kind, validation, message):
    digits_classifier.set_params(preprocessing=(0.5, 0.5))
    start = weights(digits_classifier)
    training = trainer(kind, digits_classifier)
    with pytest.raises(ValueError, match=message):
        training.fit(X[:64], Y[:64], validation)
    with pytest.raises(ValueError, match=message):
        training.fit_generator(generated(64, 32), validation_data=validation)
    assert same(weights(digits_classifier), start)


def test_no_rank_validates_on_nothing(digits_classifier, monkeypatch):
    monkeypatch.setattr(inputs, "shards", object)
    with pytest.raises(
        ValueError, match=r"validation_data\[0\] has no samples; needed is at least one, over all ranks"
    ):
        trainer(DistributionalTRADESTrainer, digits_classifier).fit(X[:64], Y[:64], (X[:0], Y[:0]))


def test_the_margin_trainer_has_no_attack(digits_classifier):
    with pytest.raises(TypeError, match=r"attack has no counterpart in WassersteinMarginTrainer\(\): .*leave it out"):
        WassersteinMarginTrainer(digits_classifier, attack=None)
