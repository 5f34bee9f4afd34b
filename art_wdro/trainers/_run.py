# SPDX-License-Identifier: MIT
"""One run of training: its epochs, its history and best weights, its identity, and the state from which one goes on."""

from __future__ import annotations

import abc
import copy
import logging
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from art_wdro._host import classifier as host
from art_wdro._ranks import everywhere, is_first, rank, ranks, require_same, together, total
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._storage.digests import fingerprint
from art_wdro.trainers._minibatches import Batch, Minibatches
from art_wdro.trainers._plan import Plan
from art_wdro.trainers._random import random_state, set_random_state
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
    def learnt(self) -> dict[str, Any]:
        """Return what the run has learnt, as tensors and plain values."""

    @abc.abstractmethod
    def relearn(self, learnt: dict[str, Any]) -> None:
        """Go on from what :meth:`learnt` returned."""


@dataclass(frozen=True)
class State:
    """All that a run goes on from, and the content of its checkpoint: tensors and plain values.

    :param network: The network's state.
    :param optimiser: The optimiser's.
    :param scheduler: The scheduler's, or None.
    :param order: Where the order of the minibatches stands, on each rank.
    :param random: Random states, one a rank.
    :param learnt: What :meth:`Method.learnt` returned.
    :param history: One dict an epoch.
    :param best_epoch: The epoch selected so far.
    :param best: The network's state after it.
    """

    network: dict[str, Any]
    optimiser: dict[str, Any]
    scheduler: dict[str, Any] | None
    order: list[dict[str, Any] | None]
    random: list[dict[str, Any]]
    learnt: dict[str, Any]
    history: list[dict[str, Any]]
    best_epoch: int | None
    best: dict[str, Any] | None

    @classmethod
    def of(cls, content: dict[str, Any]) -> State:
        """Read the content of a checkpoint.

        :raises ValueError: If it lacks a part.
        """
        names = {field.name for field in fields(cls)}
        lacking = sorted(names - content.keys())
        if lacking:
            raise ValueError(f"checkpoint does not fit this run (it lacks {', '.join(lacking)}); give another path")
        return cls(**{name: content[name] for name in names})


class Run:
    """A classifier, its minibatches and its scheduler for as long as a call of `fit` lasts."""

    def __init__(
        self,
        classifier: PyTorchClassifier,
        minibatches: Minibatches,
        method: Method,
        plan: Plan,
    ) -> None:
        self._classifier, self._minibatches, self._method = classifier, minibatches, method
        self.plan, self._scheduler = plan, plan.scheduler
        self._network, self._optimiser = host.network(classifier), host.optimiser(classifier)
        self._random: list[dict[str, Any]] | None = None
        self.history: list[dict[str, Any]] = []
        self.best_epoch: int | None = None
        self.best: dict[str, Any] | None = None

    def identity(self, validation: Batch | None) -> dict[str, Any]:
        """Return what a checkpoint must have been made with for this run to go on from it."""
        # a scheduler may have changed the rate already, and notes the first one
        names = {id(weight): name for name, weight in self._network.named_parameters()}
        groups = [
            {**group, "lr": group.get("initial_lr", group["lr"]), "params": [names.get(id(w)) for w in group["params"]]}
            for group in self._optimiser.param_groups
        ]
        held = {
            "optimiser": [type(self._optimiser), groups],
            "scheduler": self._scheduler,
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

    def train(self, number: int, bar: tqdm[Any]) -> dict[str, Any]:
        """Train one epoch, and return the means of its figures over all samples of all ranks.

        :param number: Which epoch, for errors.
        :param bar: Moves on by one a minibatch.
        :raises FloatingPointError: If every minibatch was skipped.
        """
        started = time.perf_counter()
        device = self._classifier.device
        rate = self._optimiser.param_groups[0]["lr"]
        totals: dict[str, Tensor] = {}
        count = 0
        skipped = 0
        for batch, (x, y) in enumerate(self._minibatches.epoch()):
            bar.update()
            x, y = (part.to(device, non_blocking=True) for part in (x, y))
            with host.hint_at_memory("batch_size", len(x)):
                figures = self._method.step(
                    x.to(device, non_blocking=True), y.to(device, non_blocking=True), f"epoch {number}, batch {batch}"
                )
            if figures is None:
                skipped += 1
                continue
            for name, figure in figures.items():
                totals[name] = figure * len(x) + totals.get(name, 0.0)
            count += len(x)
        if count == 0:
            raise FloatingPointError(f"no batch of epoch {number} has a finite loss and gradient")
        *sums, whole = total(torch.stack([*(figure.double().cpu() for figure in totals.values()), torch.tensor(count)]))
        return {
            "epoch": number,
            **self._method.finish_epoch(),
            **{name: (figure / whole).item() for name, figure in zip(totals, sums, strict=True)},
            "skipped_batches": skipped,
            "learning_rate": float(rate),
            "seconds": time.perf_counter() - started,
        }

    def finish(self, record: dict[str, Any]) -> bool:
        """Add an epoch with its validation figures to the history, and step the scheduler by it.

        :return: Whether it is the best one yet; its weights are kept then.
        """
        accuracy = record["wp_accuracy"]
        is_best = accuracy is not None and all(accuracy > earlier["wp_accuracy"] for earlier in self.history)
        self.history.append(record)
        self._schedule(record)
        if is_best:
            self.best_epoch, self.best = record["epoch"], self.weights()
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
        if len(saved.history) > nb_epochs:
            raise ValueError(f"nb_epochs is {nb_epochs}; allowed is at least the checkpoint's {len(saved.history)}")
        before = self.weights(), copy.deepcopy(self._optimiser.state_dict())
        schedule = None if self._scheduler is None else copy.deepcopy(self._scheduler.state_dict())
        try:
            self._set(saved.network, saved.optimiser, saved.scheduler)
            self._minibatches.set_state(saved.order[rank()])
            self._method.relearn(saved.learnt)
        except Exception as error:
            self._set(*before, schedule)
            raise ValueError(f"checkpoint does not fit this run ({error}); give another path") from error
        self.history, self.best_epoch, self.best = saved.history, saved.best_epoch, saved.best
        self._random = saved.random

    def set_random_state(self) -> None:
        """Put back this rank's random states, if the run goes on from a checkpoint."""
        if self._random is not None:
            set_random_state(self._random[rank()], self._classifier.device)

    def _state(self) -> State:
        return State(
            network=self.weights(),
            optimiser=self._optimiser.state_dict(),
            scheduler=None if self._scheduler is None else self._scheduler.state_dict(),
            order=everywhere(self._minibatches.state()),
            random=everywhere(random_state(self._classifier.device)),
            learnt=self._method.learnt(),
            history=self.history,
            best_epoch=self.best_epoch,
            best=self.best,
        )

    def _set(self, network: dict[str, Any], optimiser: dict[str, Any], scheduler: dict[str, Any] | None) -> None:
        self.set_weights(network)
        self._optimiser.load_state_dict(optimiser)
        if self._scheduler is not None and scheduler is not None:
            self._scheduler.load_state_dict(scheduler)

    def _schedule(self, record: dict[str, Any]) -> None:
        """Step the scheduler, if there is one, by what an epoch gave."""
        if self._scheduler is None:
            return
        if not isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step()
            return
        accuracy = record["train_adversarial_accuracy"] if record["wp_accuracy"] is None else record["wp_accuracy"]
        self._scheduler.step(accuracy if self._scheduler.mode == "max" else record["loss"])


def check_ranks(settings: dict[str, Any], file: Path | None) -> None:
    """Refuse ranks that would not train the same run.

    :param settings: What the run is.
    :param file: Its checkpoint, if it has one.
    :raises ValueError: If a rank has other settings, or sees another file.
    """
    require_same(settings, "fit")
    if len(set(everywhere(file is not None and file.exists()))) > 1:
        raise ValueError(f"checkpoint '{file}' is seen by some ranks only; give a path that all of them share")
