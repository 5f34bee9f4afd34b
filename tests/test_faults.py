# SPDX-License-Identifier: MIT
"""What goes wrong in the middle of a run: numbers that are not finite, memory that is exhausted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from art_wdro import DistributionalTRADESTrainer, WassersteinKnapsack, WassersteinPGD, adversarial_accuracy, sensitivity
from art_wdro.losses import attack_objective
from art_wdro.trainers._update import Updates
from tests.conftest import NORMS, ORDERS, digits, linear_problem

(X, Y), _ = digits()


class Poisoned(nn.Module):
    """Make the logits, or the gradients, of samples that begin with a given number NaN or infinite."""

    def __init__(self, inner: nn.Module, marker: float, value: float, *, training: bool, gradient: bool) -> None:
        super().__init__()
        self.inner, self.marker, self.value = inner, marker, value
        self.only_training, self.gradient = training, gradient

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.inner(x)
        if self.only_training and not self.training:
            return logits
        hit = (x.flatten(1)[:, :1] == self.marker).expand_as(logits)
        if not self.gradient:
            return torch.where(hit, self.value, logits)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: torch.where(hit, self.value, gradient))
        return logits


def poisoned_trainer(classifier, value, gradient, **settings):
    x, y = X[:96].copy(), Y[:96]
    x[50].flat[0] = 0.123
    classifier._model._model = Poisoned(classifier.model, 0.123, value, training=True, gradient=gradient)
    return DistributionalTRADESTrainer(classifier, max_iter=2, eps=0.0, seed=0, verbose=False, **settings), (x, y)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("gradient", [False, True])
def test_training_stops_and_names_the_batch(digits_classifier, tmp_path, monkeypatch, value, gradient):
    trainer, data = poisoned_trainer(digits_classifier, value, gradient)
    what = "gradient is not finite" if gradient else "loss is (nan|inf)"
    poisoned, file = digits_classifier._model._model, tmp_path / "run.ckpt"
    poisoned.marker = -1.0
    trainer.fit(*data, batch_size=32, nb_epochs=1, checkpoint=file)
    saved = file.read_bytes()
    poisoned.marker = 0.123
    update, before = Updates.__call__, {}

    def watched(*arguments):
        before.update({k: v.clone() for k, v in digits_classifier.model.state_dict().items()})
        return update(*arguments)

    monkeypatch.setattr(Updates, "__call__", watched)
    with pytest.raises(FloatingPointError, match=rf"the {what} in epoch 1, batch [0-2], and the weights are still"):
        trainer.fit(*data, batch_size=32, nb_epochs=2, checkpoint=file)
    for name, values in digits_classifier.model.state_dict().items():
        assert torch.equal(values, before[name])
    assert file.read_bytes() == saved


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("gradient", [False, True])
def test_or_skips_the_batch_and_counts_it(digits_classifier, value, gradient):
    trainer, data = poisoned_trainer(digits_classifier, value, gradient, on_nonfinite="skip")
    trainer.fit(*data, batch_size=32, nb_epochs=3)
    assert [record["skipped_batches"] for record in trainer.history] == [1, 1, 1]
    assert all(np.isfinite(record["loss"]) for record in trainer.history)
    for values in digits_classifier.model.state_dict().values():
        assert torch.isfinite(values).all()


def test_an_epoch_without_a_finite_batch_is_an_error(digits_classifier):
    trainer, data = poisoned_trainer(digits_classifier, np.nan, False, on_nonfinite="skip")
    with pytest.raises(FloatingPointError, match="no batch of epoch 0 has a finite loss and gradient"):
        trainer.fit(*data, batch_size=96, nb_epochs=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("loss", ["ce", "dlr", "redlr"])
def test_one_samples_nan_stays_its_own(value, gradient, norm, p, loss):
    problem = linear_problem()
    x = problem.x.copy()
    x[7, 0] = 0.5
    inner = problem.classifier.model
    poisoned = Poisoned(inner, 0.5, value, training=False, gradient=gradient)
    problem.classifier._model._model = poisoned
    others = np.arange(len(x)) != 7
    # the sample keeps its place in the mean, so the others have as much to spend as all of them
    attack = WassersteinPGD(problem.classifier, p=p, norm=norm, eps=0.05, loss=loss, max_iter=4, verbose=False)
    found = attack.generate(x, problem.y)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[7], x[7])
    assert (found[others] != x[others]).any()
    if gradient:  # as if the loss were flat at that sample
        flat = lambda logits, labels: torch.where(  # noqa: E731
            torch.arange(len(logits), device=logits.device) == 7,
            logits.sum(1) * 0.0,
            attack_objective(loss)(logits, labels),
        )
        poisoned.marker = -1.0
        reference = WassersteinPGD(problem.classifier, p=p, norm=norm, eps=0.05, loss=flat, max_iter=4, verbose=False)
        expected = reference.generate(x, problem.y)
        poisoned.marker = 0.5
        np.testing.assert_allclose(found[others], expected[others], atol=1e-5)
    knapsack = WassersteinKnapsack(problem.classifier, p=p, norm=norm, eps=0.05, max_iter=20, verbose=False)
    assert np.isfinite(knapsack.generate(x, problem.y)).all()
    poisoned.marker = -1.0
    clean = WassersteinKnapsack(problem.classifier, p=p, norm=norm, eps=0.05, max_iter=20, verbose=False)
    clean.generate(x, problem.y)
    np.testing.assert_allclose(knapsack.distances_[others], clean.distances_[others], rtol=5e-3)


class Exhausted(nn.Module):
    """Run out of memory, as a GPU does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.")


def test_exhausted_memory_names_the_batch_size(digits_classifier):
    digits_classifier._model._model = Exhausted()
    attack = WassersteinPGD(digits_classifier, batch_size=77, verbose=False)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"batch_size is 77, too much .*; lower it\. CUDA out"):
        attack.generate(X[:5], Y[:5])
    for figure in (sensitivity, adversarial_accuracy):
        with pytest.raises(torch.cuda.OutOfMemoryError, match="batch_size is 33, too much"):
            figure(digits_classifier, X[:5], Y[:5], batch_size=33)
    digits_classifier.set_params(optimizer=torch.optim.SGD(digits_classifier.model.parameters(), lr=0.1))
    with pytest.raises(torch.cuda.OutOfMemoryError, match="batch_size is 5, too much"):
        DistributionalTRADESTrainer(digits_classifier, verbose=False).fit(X[:5], Y[:5], nb_epochs=1)
