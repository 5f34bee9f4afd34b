# SPDX-License-Identifier: MIT
"""Bad input is refused before any compute, with a sentence that names the argument, the value and what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.exceptions import EstimatorError
from torch import nn

from art_wdro import (
    DistributionalTRADESTrainer,
    WassersteinFGM,
    WassersteinPGD,
    adversarial_accuracy,
    perturb_weights,
    reinitialise_last_layer,
    sensitivity,
    wasserstein_distance,
)
from tests.conftest import linear_problem, make_classifier

X = np.full((4, 30), 0.5, np.float32)
Y = np.array([0, 1, 2, 3])


def changed(value: object, at: tuple[int, ...] = (1, 2)) -> np.ndarray:
    x = X.copy()
    x[at] = value
    return x


class Unasked(nn.Module):
    """Fails when it is asked anything: what is refused must be refused before any compute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the network ran")


@pytest.fixture
def unasked():
    model = Unasked()
    model.weight = nn.Parameter(torch.zeros(1))
    return make_classifier(model, (30,), 5, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


BAD_DATA = [
    (X[:0], Y[:0], ValueError, r"x has the shape \(0, 30\); needed is at least one sample"),
    (changed(np.nan), Y, ValueError, r"x holds NaN or inf \(first in sample 1\)"),
    (changed(np.inf), Y, ValueError, r"x holds NaN or inf"),
    (changed(1.5), Y, ValueError, r"x lies in \[0.5, 1.5\], outside of the classifier's clip_values in \[0, 1\]"),
    (X[:, :7], Y, ValueError, r"x has the shape \(4, 7\); the classifier takes \(N, 30\)"),
    (X[0], Y, ValueError, r"x has the shape \(30,\); the classifier takes \(N, 30\)"),
    (X.astype(complex), Y, TypeError, "x has the dtype complex128; allowed are real numbers"),
    (np.full((4, 30), "a"), Y, TypeError, "x has the dtype <U1; allowed are real numbers"),
    (X, np.array([0, 1, 2, 5]), ValueError, "y holds the label 5; allowed are 0 to 4"),
    (X, np.array([0, 1, 2, -1]), ValueError, "y holds the label -1; allowed are 0 to 4"),
    (X, np.array([0, 1, 2, 1.5]), ValueError, "y holds the label 1.5; allowed are 0 to 4"),
    (X, Y[:3], ValueError, "y has 3 labels for 4 samples; needed is one each"),
    (X, np.eye(6)[Y], ValueError, r"y has the shape \(4, 6\); allowed are"),
    (X, np.full((4, 5), np.nan), ValueError, "y holds NaN or inf"),
    (X, np.array(["cat"] * 4), TypeError, "y has the dtype <U3; allowed are"),
]


@pytest.mark.parametrize(("x", "y", "error", "message"), BAD_DATA)
def test_data(unasked, x, y, error, message):
    for use in (
        lambda: WassersteinPGD(unasked, verbose=False).generate(x, y),
        lambda: WassersteinFGM(unasked, verbose=False).generate(x, y),
        lambda: sensitivity(unasked, x, y),
        lambda: adversarial_accuracy(unasked, x, y),
        lambda: DistributionalTRADESTrainer(unasked, verbose=False).fit(x, y),
    ):
        with pytest.raises(error, match=message):
            use()


BAD_PARAMETERS = [
    ({"p": 0.5}, ValueError, "p is 0.5; allowed is a number > 1, inf included"),
    ({"p": 1}, ValueError, "p is 1; allowed is a number > 1"),
    ({"p": np.nan}, ValueError, "p is nan"),
    ({"p": "two"}, TypeError, "p is 'two'"),
    ({"norm": 3}, ValueError, "norm is 3; allowed is one of 1, 2, inf"),
    ({"norm": "l2"}, TypeError, "norm is 'l2'; allowed is one of 1, 2, inf"),
    ({"eps": -0.1}, ValueError, "eps is -0.1; allowed is a number >= 0"),
    ({"eps": np.inf}, ValueError, "eps is inf"),
    ({"eps": np.array([0.1, 0.2])}, TypeError, "eps is array"),
    ({"loss": "mse"}, ValueError, "loss is 'mse'; allowed are 'ce', 'dlr', 'redlr' or a callable"),
    ({"loss": 3}, TypeError, "loss is 3; allowed are"),
    ({"eps_step": 0.0}, ValueError, "eps_step is 0.0; allowed is a number > 0"),
    ({"max_iter": 2.5}, TypeError, "max_iter is 2.5; allowed is a whole number"),
    ({"verbose": "yes"}, ValueError, "verbose is 'yes'; allowed is True or False"),
    ({"precision": "int8"}, ValueError, "precision is 'int8'; allowed is one of 'float32', 'bfloat16', 'float16'"),
]
OF_ATTACKS = [
    ({"max_iter": -1}, ValueError, "max_iter is -1; allowed is a whole number >= 0"),
    ({"batch_size": 0}, ValueError, "batch_size is 0; allowed is a whole number >= 1"),
    ({"schedule": "cosine"}, ValueError, "schedule is 'cosine'; allowed is one of 'constant', 'linear'"),
    ({"targeted": 1}, ValueError, "targeted is 1; allowed is True or False"),
    ({"summary_writer": 3}, ValueError, "summary_writer is 3; allowed are False, True, a path or"),
]
OF_TRAINERS = [
    ({"max_iter": 0}, ValueError, "max_iter is 0; allowed is a whole number >= 1"),
    ({"beta": -1}, ValueError, "beta is -1; allowed is a number >= 0"),
    ({"gamma": -1}, ValueError, "gamma is -1; allowed is a number >= 0"),
    ({"eta": 0}, ValueError, "eta is 0; allowed is a number > 0 and <= 1"),
    ({"eta": 1.1}, ValueError, "eta is 1.1"),
    ({"upsilon": "guess"}, ValueError, "upsilon is 'guess'; allowed is one of 'resample', 'streaming'"),
    ({"sample_fraction": 0}, ValueError, "sample_fraction is 0; allowed is a number > 0 and <= 1"),
    ({"consistency": "mse"}, ValueError, "consistency is 'mse'; allowed is one of 'kl', 'ce'"),
    ({"attack_label": "best"}, ValueError, "attack_label is 'best'; allowed is one of 'true', 'predicted'"),
    ({"window": 0}, ValueError, "window is 0; allowed is a whole number >= 1"),
    ({"seed": -1}, ValueError, "seed is -1; allowed is a whole number >= 0"),
    ({"seed": 2**70}, ValueError, r"seed is \d+; allowed is a whole number below"),
    ({"attack": "pgd"}, TypeError, "attack is 'pgd'; allowed is an EvasionAttack of ART or None"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_PARAMETERS + OF_ATTACKS)
def test_parameters_of_attacks(unasked, arguments, error, message):
    with pytest.raises(error, match=message):
        WassersteinPGD(unasked, **arguments)
    if not arguments.keys() & {"eps_step", "max_iter", "schedule"}:
        with pytest.raises(error, match=message):
            WassersteinFGM(unasked, **arguments)


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_PARAMETERS + OF_TRAINERS)
def test_parameters_of_the_trainer(unasked, arguments, error, message):
    with pytest.raises(error, match=message):
        DistributionalTRADESTrainer(unasked, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"nb_epochs": -1}, ValueError, "nb_epochs is -1"),
        ({"scheduler": "cosine"}, TypeError, "scheduler is 'cosine'; allowed is a learning rate scheduler"),
        ({"validation_data": X}, ValueError, "validation_data is a ndarray; allowed is a pair"),
        ({"validation_data": (X[:, :3], Y)}, ValueError, r"validation_data\[0\] has the shape"),
        ({"validation_data": (X, Y + 2)}, ValueError, r"validation_data\[1\] holds the label 5"),
        ({"drop_last": True, "batch_size": 9}, ValueError, "batch_size is 9 with drop_last; allowed is at most the 4"),
        ({"learning_rate": 1}, TypeError, r"fit got the unknown arguments \['learning_rate'\]; allowed are"),
    ],
)
def test_arguments_of_fit(unasked, arguments, error, message):
    with pytest.raises(error, match=message):
        DistributionalTRADESTrainer(unasked, verbose=False).fit(X, Y, **arguments)


def test_arguments_of_fit_generator(unasked):
    trainer = DistributionalTRADESTrainer(unasked, verbose=False)
    with pytest.raises(TypeError, match="generator is 3; allowed is a DataGenerator of ART"):
        trainer.fit_generator(3)
    with pytest.raises(TypeError, match="fit_generator got the unknown arguments"):
        trainer.fit_generator(3, epochs=3)


def test_arguments_of_generate(unasked):
    attack = WassersteinPGD(unasked, verbose=False)
    with pytest.raises(
        TypeError, match=r"generate got the unknown arguments \['masks'\]; allowed are x, y, mask and checkpoint"
    ):
        attack.generate(X, Y, masks=X)
    with pytest.raises(ValueError, match=r"mask has the shape \(3, 30\); needed is one that broadcasts to x, \(4, 30"):
        attack.generate(X, Y, mask=X[:3])
    with pytest.raises(ValueError, match=r"mask has the dtype torch\.int64; allowed are bool and floating point"):
        attack.generate(X, Y, mask=np.ones((4, 30), int))
    with pytest.raises(ValueError, match="mask holds negative or NaN values"):
        attack.generate(X, Y, mask=-X)
    with pytest.raises(ValueError, match="y is None; a targeted attack needs the target labels"):
        WassersteinPGD(unasked, targeted=True, verbose=False).generate(X)


def test_a_trainer_needs_an_optimiser():
    with pytest.raises(ValueError, match="classifier has optimizer=None; needed is a PyTorchClassifier with an opt"):
        DistributionalTRADESTrainer(linear_problem().classifier)


def test_everything_needs_a_pytorch_classifier():
    for use in (
        lambda: WassersteinPGD(nn.Linear(3, 2)),
        lambda: DistributionalTRADESTrainer(nn.Linear(3, 2)),
        lambda: sensitivity(nn.Linear(3, 2), X),
        lambda: adversarial_accuracy(nn.Linear(3, 2), X, Y),
        lambda: perturb_weights(nn.Linear(3, 2)),
        lambda: reinitialise_last_layer(nn.Linear(3, 2)),
    ):
        with pytest.raises(EstimatorError):
            use()


def test_output_that_is_no_logits():
    classifier = make_classifier(nn.Linear(30, 1), (30,), 2)
    with pytest.raises(ValueError, match=r"classifier puts out the shape \(4, 1\) for 4 samples; needed are logits"):
        WassersteinPGD(classifier, verbose=False).generate(X)


@pytest.mark.filterwarnings("ignore:the classifier puts out probabilities")
def test_output_that_is_not_differentiable():
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(5, device=x.device)[: len(x)]

    with pytest.raises(ValueError, match="the classifier's logits do not depend differentiably on x"):
        WassersteinPGD(make_classifier(Constant(), (30,), 5), verbose=False).generate(X)


def test_clip_values_that_fit_no_sample():
    classifier = make_classifier(nn.Linear(30, 5), (30,), 5, clip_values=(np.zeros(7), np.ones(7)))
    with pytest.raises(ValueError, match=r"clip_values have the shape \(7,\); needed is one that fits inputs of shape"):
        WassersteinPGD(classifier, verbose=False).generate(X)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, X[:2]), ValueError, r"x_adv has the shape \(2, 30\) and x \(4, 30\)"),
        ((X[:0], X[:0]), ValueError, "needed is .* at least one sample"),
        ((X, changed(np.nan)), ValueError, "x_adv holds NaN or inf"),
        ((X, X, 0.5), ValueError, "p is 0.5; allowed is a number >= 1, inf included"),
        ((X, X, 2, 5), ValueError, "norm is 5; allowed is one of 1, 2, inf"),
    ],
)
def test_wasserstein_distance(arguments, error, message):
    with pytest.raises(error, match=message):
        wasserstein_distance(*arguments)


def test_adversarial_accuracy_of_attacks_that_do_not_fit(unasked):
    with pytest.raises(TypeError, match="attack is 'pgd'; allowed is an EvasionAttack of ART"):
        adversarial_accuracy(unasked, X, Y, "pgd")
    with pytest.raises(ValueError, match="allowed is an untargeted one"):
        adversarial_accuracy(unasked, X, Y, WassersteinPGD(unasked, targeted=True))
    with pytest.raises(ValueError, match="allowed is an untargeted one"):
        DistributionalTRADESTrainer(unasked, WassersteinPGD(unasked, targeted=True))


def test_starts_of_networks_that_do_not_fit():
    flat = make_classifier(nn.Flatten(), (5,), 5)
    with pytest.raises(ValueError, match="classifier has no convolution or linear layer"):
        perturb_weights(flat)
    with pytest.raises(ValueError, match="noise is -1"):
        perturb_weights(flat, noise=-1)
    with pytest.raises(ValueError, match="makes the logits: none ran"):
        reinitialise_last_layer(flat)
    wide = make_classifier(nn.Sequential(nn.Linear(5, 10), nn.GLU()), (5,), 5)
    with pytest.raises(ValueError, match="needed is one with nb_classes=5 outputs"):
        reinitialise_last_layer(wide)
