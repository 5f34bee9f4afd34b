# SPDX-License-Identifier: MIT
"""One run of training: its epochs, its history and best weights, its identity, and the state from which one goes on."""

from __future__ import annotations

import abc
import copy
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from tqdm.auto import tqdm

from art_wdro._host import classifier as host
from art_wdro._ranks import everywhere, is_first, rank, ranks, require_same, together
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._storage.digests import fingerprint
from art_wdro.trainers._average import Average
from art_wdro.trainers._minibatches import Batch, Minibatches
from art_wdro.trainers._pauses import Pauses
from art_wdro.trainers._plan import Plan
from art_wdro.trainers._random import random_state, set_random_state
from art_wdro.trainers._schedule import Schedule
from art_wdro.trainers._state import Progress, State
from art_wdro.trainers._summary import Summary
from art_wdro.trainers._update import Figures

log = logging.getLogger("art_wdro")


class Method(abc.ABC):
    """What a trainer does with the minibatches of one run, and what it has learnt from them besides weights."""

    @abc.abstractmethod
    def step(self, x: Tensor, y: Tensor, where: str) -> Figures | None:
        """Attack a minibatch and update the network once: return its mean figures here, or None if it was skipped."""

    @abc.abstractmethod
    def finish_epoch(self) -> dict[str, Any]:
        """Return the figures of an epoch that are no means over its samples, and None for means it may lack."""

    @abc.abstractmethod
    def watched(self) -> Mapping[str, Tensor | float]:
        """Return figures of the last minibatch that are no means over its samples, which a summary shows."""

    @abc.abstractmethod
    def learnt(self) -> dict[str, Any]:
        """Return what the run has learnt, as tensors and plain values."""

    @abc.abstractmethod
    def relearn(self, learnt: dict[str, Any]) -> None:
        """Go on from what :meth:`learnt` returned."""


class Run:
    """A classifier, its minibatches and its scheduler for as long as a call of `fit` lasts."""

    def __init__(
        self,
        classifier: PyTorchClassifier,
        minibatches: Minibatches,
        method: Method,
        plan: Plan,
        average: Average | None,
    ) -> None:
        self._classifier, self._minibatches, self._method = classifier, minibatches, method
        self.plan, self._average = plan, average
        self._schedule = Schedule(plan.scheduler, plan.scheduler_step)
        self._network, self._optimiser = host.network(classifier), host.optimiser(classifier)
        self._random: list[dict[str, Any]] | None = None
        self._progress: Progress | None = None
        self._steps = 0
        self.summary: Summary | None = None
        self.history: list[dict[str, Any]] = []
        self.best_epoch: int | None = None
        self.best: dict[str, Any] | None = None

    @property
    def minibatches(self) -> int:
        """Minibatches done of the epoch that is not."""
        return 0 if self._progress is None else self._progress.batches

    def bar(self, name: str, silent: bool) -> tqdm[Any]:
        """Return a progress bar of a name, one tick a minibatch, from where the run stands."""
        each = len(self._minibatches)
        done = len(self.history) * each + self.minibatches
        return tqdm(total=self.plan.nb_epochs * each or None, initial=done, desc=name, disable=silent)

    def identity(self, validation: Batch | None) -> dict[str, Any]:
        """Return what a checkpoint must have been made with for this run to go on from it."""
        names = {id(weight): name for name, weight in self._network.named_parameters()}
        groups = [
            {**_unscheduled(group), "params": [names.get(id(w)) for w in group["params"]]}
            for group in self._optimiser.param_groups
        ]
        held = {
            "optimiser": [type(self._optimiser), groups],
            "scheduler": self.plan.scheduler,
            "scheduler_step": self.plan.scheduler_step,
            "augment": self.plan.augment,
        }
        return {
            **host.identity(self._classifier, fixed=False),
            **host.described_parts(self._classifier, held),
            "trained": [name for name, weight in self._network.named_parameters() if weight.requires_grad],
            "data": self._minibatches.identity(),
            "validation": None if validation is None else everywhere([len(validation[0]), fingerprint(*validation)]),
            "ranks": ranks(),
        }

    def train(self, number: int, pauses: Pauses, bar: tqdm[Any]) -> dict[str, Any]:
        """Train one epoch, or what is left of it, and return the means of its figures over all samples of all ranks.

        :param number: Which epoch, for errors.
        :param pauses: May save the run, or end it, after each minibatch.
        :param bar: Moves on by one with each.
        :raises FloatingPointError: If every minibatch was skipped.
        """
        device = self._classifier.device
        if self._progress is None:
            self._progress = Progress(float(self._optimiser.param_groups[0]["lr"]))
        progress, started = self._progress, time.perf_counter()
        for x, y in self._read(progress.batches, pauses):
            x, y = (part.to(device, non_blocking=True) for part in (x, y))
            with host.hint_at_memory("batch_size", len(x)):
                figures = self._method.step(x, y, f"epoch {number}, batch {progress.batches}")
            progress.add(figures, len(x))
            if self.summary is not None:
                rate = self._optimiser.param_groups[0]["lr"]
                self.summary.minibatch(
                    self._steps, {"learning_rate": rate, **self._method.watched(), **(figures or {})}
                )
            self._steps += 1
            self._schedule.after_minibatch(figures is not None)
            moment = time.perf_counter()
            progress.seconds, started = progress.seconds + moment - started, moment
            bar.update()
            pauses.after_minibatch()
        if progress.samples == 0:
            raise FloatingPointError(f"no batch of epoch {number} has a finite loss and gradient")
        self._progress = None
        return {
            "epoch": number,
            **self._method.finish_epoch(),
            **progress.means(),
            "skipped_batches": progress.skipped,
            "learning_rate": progress.rate,
            "seconds": progress.seconds,
        }

    def _read(self, done: int, pauses: Pauses) -> Iterator[Batch]:
        """Yield the minibatches of an epoch that are left; where one cannot be read, the run is between two of them."""
        batches = self._minibatches.epoch(done)
        while True:
            try:
                batch = next(batches, None)
            except Exception:  # a reader that dies shows as whatever it was about to hand over
                pauses.after_failure()
                raise
            if batch is None:
                return
            yield batch

    def averaged(self) -> AbstractContextManager[None]:
        """Put the average in the network's place, if there is one."""
        return nullcontext() if self._average is None else self._average.in_place()

    def finish(self, record: dict[str, Any]) -> bool:
        """Add an epoch with its validation figures to the history, and step the scheduler by it.

        :return: Whether it is the best one yet; its weights, which are in the network now, are kept then.
        """
        accuracy = record["wp_accuracy"]
        is_best = accuracy is not None and all(accuracy > earlier["wp_accuracy"] for earlier in self.history)
        self.history.append(record)
        self._schedule.after_epoch(record)
        if is_best:
            self.best_epoch, self.best = record["epoch"], self.weights()
        if self.summary is not None:
            self.summary.epoch(record)
        log.info("%s", {name: figure for name, figure in record.items() if figure is not None})
        return is_best

    def weights(self) -> dict[str, Any]:
        """Return a copy of the network's state on the host."""
        return {
            k: v.detach().to("cpu", copy=True) if isinstance(v, Tensor) else copy.deepcopy(v)
            for k, v in self._network.state_dict().items()
        }

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Put back what :meth:`weights` returned."""
        self._network.load_state_dict(weights)

    def leave_weights(self) -> None:
        """Leave the classifier with the best epoch's weights; without validation, with the average, if there is one."""
        if self.best is not None:
            self.set_weights(self.best)
        elif self._average is not None:
            self._average.leave()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint of the run on the first rank; all wait until it is there."""
        content = vars(self._state())
        with together():
            if is_first():
                checkpoint.save(content)

    def restore(self, content: dict[str, Any]) -> None:
        """Take over the content of a checkpoint, random states apart; leave all as it was if that fails.

        :raises ValueError: If it does not fit.
        """
        saved, nb_epochs = State.of(content), self.plan.nb_epochs
        begun = len(saved.history) + (saved.progress is not None)
        if begun > nb_epochs:
            raise ValueError(f"nb_epochs is {nb_epochs}; allowed is at least the checkpoint's {begun}")
        before = self.weights(), copy.deepcopy(self._optimiser.state_dict())
        schedule = copy.deepcopy(self._schedule.state())
        try:
            self._set(saved.network, saved.optimiser, saved.scheduler)
            if self._average is not None:
                self._average.set_state(saved.average)
            self._minibatches.set_state(saved.order[rank()])
            self._method.relearn(saved.learnt)
        except Exception as error:
            self._set(*before, schedule)
            raise ValueError(f"checkpoint does not fit this run ({error}); give another path") from error
        self.history, self.best_epoch, self.best = saved.history, saved.best_epoch, saved.best
        self._random, self._steps = saved.random, saved.steps
        if saved.progress is not None:
            self._progress = Progress(**saved.progress[rank()]).to(self._classifier.device)
        log.info("the run goes on after %d epochs and %d minibatches", len(self.history), self.minibatches)

    def set_random_state(self) -> None:
        """Put back this rank's random states, if the run goes on from a checkpoint."""
        if self._random is not None:
            set_random_state(self._random[rank()], self._classifier.device)

    def _state(self) -> State:
        return State(
            network=self.weights(),
            optimiser=self._optimiser.state_dict(),
            scheduler=self._schedule.state(),
            average=[] if self._average is None else self._average.state(),
            order=everywhere(self._minibatches.state()),
            random=everywhere(random_state(self._classifier.device)),
            learnt=self._method.learnt(),
            progress=None if self._progress is None else everywhere(vars(self._progress.to("cpu"))),
            steps=self._steps,
            history=self.history,
            best_epoch=self.best_epoch,
            best=self.best,
        )

    def _set(self, network: dict[str, Any], optimiser: dict[str, Any], scheduler: dict[str, Any] | None) -> None:
        self.set_weights(network)
        self._optimiser.load_state_dict(optimiser)
        self._schedule.set_state(scheduler)


def _unscheduled(group: dict[str, Any]) -> dict[str, Any]:
    """Return an optimiser's group as it was before a scheduler changed it, as far as the scheduler notes that."""
    before = {**group, "lr": group.get("initial_lr", group["lr"])}
    if "max_momentum" in group and "momentum" in group:  # a cycle begins with it
        before["momentum"] = group["max_momentum"]
    if "max_momentum" in group and "betas" in group:
        before["betas"] = (group["max_momentum"], *group["betas"][1:])
    return before


def check_ranks(settings: dict[str, Any], file: Path | None) -> None:
    """Refuse ranks that would not train the same run.

    :param settings: What the run is.
    :param file: Its checkpoint, if it has one.
    :raises ValueError: If a rank has other settings, or sees another file.
    """
    require_same(settings, "fit")
    if len(set(everywhere(file is not None and file.exists()))) > 1:
        raise ValueError(f"checkpoint '{file}' is seen by some ranks only; give a path that all of them share")
