# SPDX-License-Identifier: MIT
"""The training loop: epochs, minibatches, validation, selection, history, scheduler.

What a minibatch does, its attack and its loss, is the subclass's.
"""

from __future__ import annotations

import abc
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from art.attacks.attack import EvasionAttack
from art.data_generators import DataGenerator
from art.defences.trainer import AdversarialTrainerTRADESPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.inputs import as_arrays, as_inputs, as_labels
from art_wdro._ranks import apart, everywhere, is_first, shards, together
from art_wdro._storage import checkpoint as checkpoints
from art_wdro._storage.checkpoint import described
from art_wdro.trainers._minibatches import Batch, Generated, Minibatches, Shuffled
from art_wdro.trainers._replicas import replicated, synchronised_norms
from art_wdro.trainers._run import Run, check_ranks
from art_wdro.trainers._update import Outer, update
from art_wdro.trainers._validation import check_validation, validation_accuracies

ON_NONFINITE = ("raise", "skip")
PARTS = {"network", "optimiser", "scheduler", "progress", "history", "best_epoch", "best", "order", "random"}
"""What a checkpoint of training holds."""


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
        on_nonfinite: str,
        sync_batch_norm: bool,
    ) -> None:
        host.require_pytorch(type(self), classifier)
        host.require_optimiser(classifier)
        if attack is not None and not isinstance(attack, EvasionAttack):
            raise TypeError(f"attack is {attack!r}; allowed is an EvasionAttack of ART or None")
        if attack is not None and attack.targeted:
            raise ValueError(f"attack is {attack!r}; allowed is an untargeted one, since y are the true labels")
        super().__init__(classifier, attack, arguments.real("beta", beta, 0.0))
        self._eps = arguments.real("eps", eps, 0.0)
        self._p = arguments.order(p)
        self._norm = arguments.ground_norm(norm)
        self._max_iter = arguments.integer("max_iter", max_iter, 1)
        self._seed = None if seed is None else arguments.seed(seed)
        self._verbose = arguments.flag("verbose", verbose)
        self._on_nonfinite = arguments.choice("on_nonfinite", on_nonfinite, ON_NONFINITE)
        self._sync_batch_norm = arguments.flag("sync_batch_norm", sync_batch_norm)
        self._logits_of = host.logits_of(classifier, training=True)
        self.history: list[dict[str, Any]] = []
        self.best_epoch: int | None = None
        self.final_state: dict[str, Any] | None = None

    @abc.abstractmethod
    def _begin(self, sample: Callable[[float], Iterator[Batch]] | None) -> None:
        """Start a run: forget the last one, and take the function that draws a share of the training set."""

    @abc.abstractmethod
    def _step(self, x: Tensor, y: Tensor, where: str) -> dict[str, Tensor] | None:
        """Attack a minibatch and update the network once: return its mean figures here, or None if it was skipped."""

    @abc.abstractmethod
    def _progress(self) -> dict[str, Any]:
        """Return what a run has learnt besides weights, as tensors and plain values."""

    @abc.abstractmethod
    def _resume(self, progress: dict[str, Any]) -> None:
        """Go on from what :meth:`_progress` returned."""

    @abc.abstractmethod
    def _finish_epoch(self) -> dict[str, Any]:
        """Return the figures of an epoch that are no means over its samples, and None for means it may lack."""

    def fit(
        self,
        x: Any,
        y: Any | None = None,
        validation_data: tuple[Any, Any] | None = None,
        batch_size: int = 512,
        nb_epochs: int = 20,
        scheduler: LRScheduler | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        drop_last: bool = False,
        on_epoch: Callable[[dict[str, Any], bool], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Train on arrays, in shuffled minibatches; `history` starts anew.

        Under :func:`sharded` all ranks give the same arrays, every minibatch is spread over them, and its budget and
        gradient are those of the whole minibatch.

        Each dict of `history` holds: epoch (from 0), loss, clean_loss, consistency_loss, pointwise_loss
        (None without gamma), train_clean_accuracy and train_adversarial_accuracy (of the minibatches in
        train mode), upsilon (at the end of the epoch), budget_ratio (the p-mean of eps_B over eps, 1 when the
        batch budgets add up to the whole; both None with an `attack`), learning_rate, seconds, and
        the validation figures clean_accuracy, winf_accuracy (pointwise PGD on the cross-entropy) and
        wp_accuracy (:class:`WassersteinPGD` with its default step), None without validation data; and
        skipped_batches, those left out because their loss was not finite.

        :param x: Training inputs, (N, ...), or a `Dataset` or `DataLoader` of torch, which is read once.
        :param y: Labels as indices or one-hot rows; None where x brings them.
        :param validation_data: Pair of inputs and labels, or a data set of torch, to select the epoch on; without it
            the classifier keeps the last epoch's weights.
        :param batch_size: Samples in a minibatch, on each rank.
        :param nb_epochs: Number of epochs.
        :param scheduler: Any learning rate scheduler of torch, stepped after each epoch. ReduceLROnPlateau
            gets wp_accuracy in mode "max" and the training loss in mode "min".
        :param checkpoint: File that holds the state of the run after every epoch: weights, optimiser, scheduler,
            Upsilon, history and random states. If it is there, the run goes on from it, to the same weights bit for bit
            as without the interruption (on a CPU). The file is whole at any moment.
        :param drop_last: Leave out a last minibatch that is smaller.
        :param on_epoch: Called after each epoch with its dict of `history`, and whether it is the best one yet; on the
            first rank alone.
        :raises ValueError: If an argument does not fit; the message says which.
        :raises TypeError: If an argument is of the wrong type or unknown.
        :raises FloatingPointError: If the loss is no longer finite, unless `on_nonfinite` is "skip".
        """
        allowed = "x, y, validation_data, batch_size, nb_epochs, scheduler, checkpoint, drop_last and on_epoch"
        _refuse_unknown("fit", kwargs, allowed)
        batch_size = arguments.integer("batch_size", batch_size, 1)
        drop_last = arguments.flag("drop_last", drop_last)
        with together():
            x, y = as_arrays(x, y)
            inputs = as_inputs(self._classifier, x)
            labels = as_labels(self._classifier, y, len(inputs)).to(inputs.device)
        minibatches = Shuffled(inputs, labels, batch_size, drop_last, arguments.seed(self._seed))
        self._train(minibatches, nb_epochs, scheduler, validation_data, on_epoch, checkpoint)

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
        minibatches = Generated(self._classifier, generator, arguments.seed(self._seed))
        self._train(minibatches, nb_epochs, scheduler, validation_data)

    def _update(self, y: Tensor, batches: Sequence[Tensor], outer: Outer, where: str) -> dict[str, Tensor] | None:
        """Take one step of the outer problem: return the batch's mean figures, or None if it was skipped."""
        skip = self._on_nonfinite == "skip"
        return update(self._classifier, self._forward, y, batches, outer, where=where, skip=skip)

    def _train(
        self,
        minibatches: Minibatches,
        nb_epochs: int,
        scheduler: LRScheduler | None,
        validation_data: tuple[Any, Any] | None,
        on_epoch: Callable[[dict[str, Any], bool], None] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        nb_epochs = arguments.integer("nb_epochs", nb_epochs, 0)
        if scheduler is not None and not isinstance(scheduler, LRScheduler):
            raise TypeError(f"scheduler is {scheduler!r}; allowed is a learning rate scheduler of torch or None")
        file = None if checkpoint is None else arguments.file("checkpoint", checkpoint)
        validation = None if validation_data is None else check_validation(self._classifier, validation_data)
        self.history, self.best_epoch, self.final_state = [], None, None
        self._begin(minibatches.sample if minibatches.resamples else None)
        # what describes a run reads all of its data, so only who compares runs asks for it
        compared = file is not None or shards() is not None
        run = Run(self._classifier, minibatches, scheduler)
        settings = {**self._settings(), **run.identity(validation)} if compared else {}
        with together():
            check_ranks(settings, file)
            saved = None if file is None else checkpoints.load(file, type(self).__name__, settings)
        best = None if saved is None else self._restore(saved, run, nb_epochs)
        done = len(self.history)
        with (
            torch.inference_mode(False),
            host.restored(self._classifier),
            synchronised_norms(host.network(self._classifier), shards(), self._sync_batch_norm),
            self._replicas(),
            tqdm(
                total=nb_epochs * len(minibatches),
                initial=done * len(minibatches),
                desc=type(self).__name__,
                disable=not (self._verbose and is_first()),
            ) as progress,
        ):
            if saved is not None:
                run.set_random_state(saved)
            for number in range(done, nb_epochs):
                figures = run.epoch(number, self._step, progress)
                record = {"epoch": number, **self._finish_epoch(), **figures, **self._validate(validation)}
                self.history.append(record)
                run.schedule(record)
                progress.set_postfix(
                    {k: f"{v:.3f}" for k in ("loss", "clean_accuracy", "wp_accuracy") if (v := record[k]) is not None}
                )
                is_best = validation is not None and self._is_best(record)
                if is_best:
                    self.best_epoch, best = number, run.weights()
                if file is not None:
                    self._save(file, settings, run, best)
                if on_epoch is not None and is_first():
                    with apart():
                        on_epoch(record, is_best)
                everywhere(None)
        if nb_epochs > 0:
            self.final_state = run.weights()
            self.best_epoch = nb_epochs - 1 if best is None else self.best_epoch
        if best is not None:
            run.set_weights(best)

    @contextmanager
    def _replicas(self) -> Iterator[None]:
        """Hold the forward passes of the update for as long as training lasts.

        A replica keeps the process group, and reference cycles keep the replica: they are collected here, because
        threads of a group that nobody destroys can abort the process when it exits.
        """
        self._forward = replicated(host.network(self._classifier), self._logits_of, shards())
        try:
            yield
        finally:
            del self._forward
            if shards() is not None:
                gc.collect()

    def _validate(self, data: Batch | None) -> dict[str, float | None]:
        threat = {"p": self._p, "norm": self._norm, "eps": self._eps}
        return validation_accuracies(self._classifier, data, **threat, max_iter=self._max_iter)

    def _settings(self) -> dict[str, Any]:
        """Return the parameters that two runs must share to be the same, as plain values."""
        attack = self._attack
        setting = None
        if attack is not None:
            names = (name for name in attack.attack_params if name != "summary_writer")
            values = {name: described(getattr(attack, name, None)) for name in names}
            setting = [type(attack).__name__, values]
        own = ("eps", "p", "norm", "max_iter", "seed", "on_nonfinite", "sync_batch_norm")
        return {"attack": setting, "beta": self._beta, **{name: getattr(self, f"_{name}") for name in own}}

    def _save(self, file: Path, settings: dict[str, Any], run: Run, best: dict[str, Any] | None) -> None:
        own = {"progress": self._progress(), "history": self.history, "best_epoch": self.best_epoch, "best": best}
        content = {**run.state(), **own}
        if is_first():
            checkpoints.save(file, type(self).__name__, settings, content)
        everywhere(None)  # nobody reads before it is there

    def _restore(self, saved: dict[str, Any], run: Run, nb_epochs: int) -> dict[str, Any] | None:
        """Take over a checkpoint, and return the weights of its best epoch, if it has one."""
        lacking = sorted(PARTS - saved.keys())
        if lacking:
            raise ValueError(f"checkpoint does not fit this run (it lacks {', '.join(lacking)}); give another path")
        if len(saved["history"]) > nb_epochs:
            raise ValueError(f"nb_epochs is {nb_epochs}; allowed is at least the checkpoint's {len(saved['history'])}")
        run.set_state(saved, lambda: self._resume(saved["progress"]))
        self.history, self.best_epoch = saved["history"], saved["best_epoch"]
        best: dict[str, Any] | None = saved["best"]
        return best

    def _is_best(self, record: dict[str, Any]) -> bool:
        return all(record["wp_accuracy"] > earlier["wp_accuracy"] for earlier in self.history[:-1])


def _refuse_unknown(function: str, kwargs: dict[str, Any], allowed: str) -> None:
    if kwargs:
        raise TypeError(f"{function} got the unknown arguments {sorted(kwargs)}; allowed are {allowed}")
