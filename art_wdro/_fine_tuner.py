# SPDX-License-Identifier: MIT
"""The training loop: epochs, minibatches, validation, selection, history, scheduler.

What a minibatch does, its attack and its loss, is the subclass's.
"""

from __future__ import annotations

import abc
import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from art.attacks.attack import EvasionAttack
from art.data_generators import DataGenerator, NumpyDataGenerator
from art.defences.trainer import AdversarialTrainerTRADESPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from art_wdro import _bridge, _checks
from art_wdro._attacks import WassersteinPGD
from art_wdro._metrics import adversarial_accuracy

Batch = tuple[Tensor, Tensor]
"""Inputs (n, ...) and class indices (n,), on any device."""


class FineTuner(AdversarialTrainerTRADESPyTorch):  # type: ignore[misc]
    """Train a classifier of ART in epochs of minibatches, and keep the best epoch under (W_p, l_r)."""

    def __init__(
        self,
        classifier: PyTorchClassifier,
        attack: EvasionAttack | None,
        beta: float,
        eps: float,
        p: float,
        norm: float | str,
        max_iter: int,
        seed: int | None,
        verbose: bool,
    ) -> None:
        _bridge.require_pytorch(type(self), classifier)
        _bridge.require_optimiser(classifier)
        if attack is not None and not isinstance(attack, EvasionAttack):
            raise TypeError(f"attack is {attack!r}; allowed is an EvasionAttack of ART or None")
        if attack is not None and attack.targeted:
            raise ValueError(f"attack is {attack!r}; allowed is an untargeted one, since y are the true labels")
        super().__init__(classifier, attack, _checks.real("beta", beta, 0.0))
        self._eps = _checks.real("eps", eps, 0.0)
        self._p = _checks.order(p)
        self._norm = _checks.ground_norm(norm)
        self._max_iter = _checks.integer("max_iter", max_iter, 1)
        self._seed = None if seed is None else _checks.seed(seed)
        self._verbose = _checks.flag("verbose", verbose)
        self.history: list[dict[str, Any]] = []
        self.best_epoch: int | None = None
        self.final_state: dict[str, Any] | None = None

    @abc.abstractmethod
    def _begin(self, sample: Callable[[float], Iterator[Batch]] | None) -> None:
        """Start a run: forget the last one, and take the function that draws a share of the training set."""

    @abc.abstractmethod
    def _step(self, x: Tensor, y: Tensor, where: str) -> dict[str, Tensor]:
        """Attack a minibatch and update the network once: return its mean figures."""

    @abc.abstractmethod
    def _finish_epoch(self) -> dict[str, Any]:
        """Return the figures of an epoch that are no means over its samples, and None for means it may lack."""

    def fit(
        self,
        x: Any,
        y: Any,
        validation_data: tuple[Any, Any] | None = None,
        batch_size: int = 512,
        nb_epochs: int = 20,
        scheduler: LRScheduler | None = None,
        *,
        drop_last: bool = False,
        on_epoch: Callable[[dict[str, Any], bool], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Train on arrays, in shuffled minibatches; `history` starts anew.

        Each dict of `history` holds: epoch (from 0), loss, clean_loss, consistency_loss, pointwise_loss
        (None without gamma), train_clean_accuracy and train_adversarial_accuracy (of the minibatches in
        train mode), upsilon (at the end of the epoch), budget_ratio (the p-mean of eps_B over eps, 1 when the
        batch budgets add up to the whole; both None with an `attack`), learning_rate, seconds, and
        the validation figures clean_accuracy, winf_accuracy (pointwise PGD on the cross-entropy) and
        wp_accuracy (:class:`WassersteinPGD` with its default step), None without validation data.

        :param x: Training inputs, (N, ...).
        :param y: Labels as indices or one-hot rows.
        :param validation_data: Pair of inputs and labels to select the epoch on; without it the
            classifier keeps the last epoch's weights.
        :param batch_size: Samples in a minibatch.
        :param nb_epochs: Number of epochs.
        :param scheduler: Any learning rate scheduler of torch, stepped after each epoch. ReduceLROnPlateau
            gets wp_accuracy in mode "max" and the training loss in mode "min".
        :param drop_last: Leave out a last minibatch that is smaller.
        :param on_epoch: Called after each epoch with its dict of `history`, and whether it is the best one yet.
        :raises ValueError: If an argument does not fit; the message says which.
        :raises TypeError: If an argument is of the wrong type or unknown.
        :raises FloatingPointError: If the loss is no longer finite.
        """
        _refuse_unknown(
            "fit", kwargs, "x, y, validation_data, batch_size, nb_epochs, scheduler, drop_last and on_epoch"
        )
        batch_size = _checks.integer("batch_size", batch_size, 1)
        drop_last = _checks.flag("drop_last", drop_last)
        inputs = _bridge.as_inputs(self._classifier, x)
        labels = _bridge.as_labels(self._classifier, y, len(inputs)).to(inputs.device)
        if drop_last and len(inputs) < batch_size:
            raise ValueError(f"batch_size is {batch_size} with drop_last; allowed is at most the {len(inputs)} samples")
        generator = torch.Generator().manual_seed(_checks.seed(self._seed))
        starts = range(0, len(inputs) - (batch_size - 1 if drop_last else 0), batch_size)

        def epoch() -> Iterator[Batch]:
            order = torch.randperm(len(inputs), generator=generator)
            for start in starts:
                chosen = order[start : start + batch_size].to(inputs.device)
                yield inputs[chosen], labels[chosen]

        sample = _sampler(inputs, labels, batch_size, generator)
        self._train(epoch, len(starts), nb_epochs, scheduler, validation_data, sample, on_epoch)

    def fit_generator(
        self,
        generator: DataGenerator,
        nb_epochs: int = 20,
        scheduler: LRScheduler | None = None,
        validation_data: tuple[Any, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Train on the batches of a data generator of ART; everything else is as in :meth:`fit`.

        `upsilon="resample"` draws from the whole training set, so it needs a `NumpyDataGenerator`.

        :param generator: Data generator with a size.
        :param nb_epochs: Number of epochs.
        :param scheduler: Any learning rate scheduler of torch.
        :param validation_data: Pair of inputs and labels to select the epoch on.
        :raises ValueError: If an argument does not fit; the message says which.
        :raises TypeError: If an argument is of the wrong type or unknown.
        :raises FloatingPointError: If the loss is no longer finite.
        """
        _refuse_unknown("fit_generator", kwargs, "generator, nb_epochs, scheduler and validation_data")
        if not isinstance(generator, DataGenerator):
            raise TypeError(f"generator is {generator!r}; allowed is a DataGenerator of ART")
        if generator.size is None:
            raise ValueError("generator has size None; needed is the number of samples in an epoch")
        sample = None
        if isinstance(generator, NumpyDataGenerator):
            inputs = _bridge.as_inputs(self._classifier, generator.x, "generator.x")
            labels = _bridge.as_labels(self._classifier, generator.y, len(inputs), "generator.y")
            random = torch.Generator().manual_seed(_checks.seed(self._seed))
            sample = _sampler(inputs, labels, generator.batch_size, random)
        batches = math.ceil(generator.size / generator.batch_size)

        def epoch() -> Iterator[Batch]:
            for _ in range(batches):
                x, y = generator.get_batch()
                inputs = _bridge.as_inputs(self._classifier, x, "generator's x")
                yield inputs, _bridge.as_labels(self._classifier, y, len(inputs), "generator's y")

        self._train(epoch, batches, nb_epochs, scheduler, validation_data, sample)

    def _train(
        self,
        epoch_batches: Callable[[], Iterator[Batch]],
        batches: int,
        nb_epochs: int,
        scheduler: LRScheduler | None,
        validation_data: tuple[Any, Any] | None,
        sample: Callable[[float], Iterator[Batch]] | None,
        on_epoch: Callable[[dict[str, Any], bool], None] | None = None,
    ) -> None:
        nb_epochs = _checks.integer("nb_epochs", nb_epochs, 0)
        if scheduler is not None and not isinstance(scheduler, LRScheduler):
            raise TypeError(f"scheduler is {scheduler!r}; allowed is a learning rate scheduler of torch or None")
        validation = None if validation_data is None else self._check_validation(validation_data)
        self.history, self.best_epoch, self.final_state = [], None, None
        self._begin(sample)
        best: dict[str, Any] | None = None
        with (
            _bridge.restored(self._classifier),
            tqdm(total=nb_epochs * batches, desc=type(self).__name__, disable=not self._verbose) as progress,
        ):
            for number in range(nb_epochs):
                record = self._train_epoch(number, epoch_batches(), progress)
                record.update(self._validate(validation))
                self.history.append(record)
                if scheduler is not None:
                    _step_scheduler(scheduler, record)
                progress.set_postfix(
                    {k: f"{v:.3f}" for k in ("loss", "clean_accuracy", "wp_accuracy") if (v := record[k]) is not None}
                )
                is_best = validation is not None and self._is_best(record)
                if is_best:
                    self.best_epoch, best = number, self._state()
                if on_epoch is not None:
                    on_epoch(record, is_best)
        if nb_epochs > 0:
            self.final_state = self._state()
            self.best_epoch = nb_epochs - 1 if best is None else self.best_epoch
        if best is not None:
            _bridge.network(self._classifier).load_state_dict(best)

    def _train_epoch(self, number: int, batches: Iterator[Batch], progress: tqdm[Any]) -> dict[str, Any]:
        started = time.perf_counter()
        device = self._classifier.device
        rate = _bridge.optimiser(self._classifier).param_groups[0]["lr"]
        totals: dict[str, Tensor] = {}
        count = 0
        for batch, (x, y) in enumerate(batches):
            figures = self._step(x.to(device), y.to(device), f"epoch {number}, batch {batch}")
            for name, figure in figures.items():
                totals[name] = figure * len(x) + totals.get(name, 0.0)
            count += len(x)
            progress.update()
        # every total becomes a number here, once an epoch, so that no batch waits for the device
        return {
            "epoch": number,
            **self._finish_epoch(),
            **{name: total.item() / count for name, total in totals.items()},
            "learning_rate": float(rate),
            "seconds": time.perf_counter() - started,
        }

    def _check_validation(self, data: tuple[Any, Any]) -> Batch:
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise ValueError(f"validation_data is a {type(data).__name__}; allowed is a pair of inputs and labels")
        x = _bridge.as_inputs(self._classifier, data[0], "validation_data[0]")
        return x, _bridge.as_labels(self._classifier, data[1], len(x), "validation_data[1]")

    def _validate(self, data: Batch | None) -> dict[str, float | None]:
        """Measure clean, W_inf and W_p accuracy, with attacks stronger than the training's."""
        if data is None:
            return dict.fromkeys(("clean_accuracy", "winf_accuracy", "wp_accuracy"))
        threat: dict[str, Any] = {"norm": self._norm, "eps": self._eps, "max_iter": self._max_iter, "verbose": False}
        pointwise = WassersteinPGD(self._classifier, p=math.inf, loss="ce", **threat)
        distributional = WassersteinPGD(self._classifier, p=self._p, **threat)
        return {
            "clean_accuracy": adversarial_accuracy(self._classifier, *data, eps=0.0),
            "winf_accuracy": adversarial_accuracy(self._classifier, *data, pointwise),
            "wp_accuracy": adversarial_accuracy(self._classifier, *data, distributional),
        }

    def _is_best(self, record: dict[str, Any]) -> bool:
        return all(record["wp_accuracy"] > earlier["wp_accuracy"] for earlier in self.history[:-1])

    def _state(self) -> dict[str, Any]:
        state = _bridge.network(self._classifier).state_dict()
        return {
            k: v.detach().to("cpu", copy=True) if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in state.items()
        }


def _sampler(
    inputs: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator
) -> Callable[[float], Iterator[Batch]]:
    """Return a function that draws a fresh share of the training set, in batches."""

    def sample(fraction: float) -> Iterator[Batch]:
        count = math.ceil(fraction * len(inputs))
        chosen = torch.randperm(len(inputs), generator=generator)[:count].to(inputs.device)
        for start in range(0, count, batch_size):
            part = chosen[start : start + batch_size]
            yield inputs[part], labels[part]

    return sample


def _step_scheduler(scheduler: LRScheduler, record: dict[str, Any]) -> None:
    if not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step()
        return
    accuracy = record["train_adversarial_accuracy"] if record["wp_accuracy"] is None else record["wp_accuracy"]
    scheduler.step(accuracy if scheduler.mode == "max" else record["loss"])


def _refuse_unknown(function: str, kwargs: dict[str, Any], allowed: str) -> None:
    if kwargs:
        raise TypeError(f"{function} got the unknown arguments {sorted(kwargs)}; allowed are {allowed}")
