# SPDX-License-Identifier: MIT
"""One run of training: its epochs, what two runs must share to be the same, and the state from which one goes on."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from art_wdro._host import classifier as host
from art_wdro._ranks import everywhere, rank, ranks, total
from art_wdro._storage.checkpoint import fingerprint
from art_wdro.trainers._minibatches import Batch, Minibatches
from art_wdro.trainers._random import random_state, set_random_state


class Run:
    """A classifier, its minibatches and its scheduler for as long as a call of `fit` lasts."""

    def __init__(self, classifier: PyTorchClassifier, minibatches: Minibatches, scheduler: LRScheduler | None) -> None:
        self._classifier, self._minibatches, self._scheduler = classifier, minibatches, scheduler
        self._network, self._optimiser = host.network(classifier), host.optimiser(classifier)

    def identity(self, validation: Batch | None) -> dict[str, Any]:
        """Return what a checkpoint must have been made with for this run to go on from it."""
        # a scheduler may have changed the rate already, and notes the first one
        groups = [
            {k: v for k, v in ({**group, "lr": group.get("initial_lr", group["lr"])}).items() if k != "params"}
            for group in self._optimiser.param_groups
        ]
        return {
            **host.identity(self._classifier),
            "weights": [[k, list(v.shape)] for k, v in self._network.state_dict().items() if isinstance(v, Tensor)],
            "trained": [name for name, weight in self._network.named_parameters() if weight.requires_grad],
            "optimiser": [type(self._optimiser).__name__, repr(groups)],
            "scheduler": None if self._scheduler is None else type(self._scheduler).__name__,
            "data": self._minibatches.identity(),
            "validation": None if validation is None else everywhere([len(validation[0]), fingerprint(*validation)]),
            "ranks": ranks(),
        }

    def epoch(
        self, number: int, step: Callable[[Tensor, Tensor, str], dict[str, Tensor] | None], progress: tqdm[Any]
    ) -> dict[str, Any]:
        """Train one epoch, and return the means of its figures over all samples of all ranks.

        :param number: Which epoch, for errors.
        :param step: Takes a minibatch and its name: returns mean figures, or None if it was skipped.
        :param progress: Moves on by one a minibatch.
        :raises FloatingPointError: If every minibatch was skipped.
        """
        started = time.perf_counter()
        device = self._classifier.device
        rate = self._optimiser.param_groups[0]["lr"]
        totals: dict[str, Tensor] = {}
        count = 0
        skipped = 0
        for batch, (x, y) in enumerate(self._minibatches.epoch()):
            progress.update()
            with host.hint_at_memory("batch_size", len(x)):
                figures = step(x.to(device), y.to(device), f"epoch {number}, batch {batch}")
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
            **{name: (figure / whole).item() for name, figure in zip(totals, sums, strict=True)},
            "skipped_batches": skipped,
            "learning_rate": float(rate),
            "seconds": time.perf_counter() - started,
        }

    def schedule(self, record: dict[str, Any]) -> None:
        """Step the scheduler, if there is one, by what an epoch gave."""
        if self._scheduler is None:
            return
        if not isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step()
            return
        accuracy = record["train_adversarial_accuracy"] if record["wp_accuracy"] is None else record["wp_accuracy"]
        self._scheduler.step(accuracy if self._scheduler.mode == "max" else record["loss"])

    def weights(self) -> dict[str, Any]:
        """Return a copy of the network's state on the host."""
        return {
            k: v.detach().to("cpu", copy=True) if isinstance(v, Tensor) else copy.deepcopy(v)
            for k, v in self._network.state_dict().items()
        }

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Put back what :meth:`weights` returned."""
        self._network.load_state_dict(weights)

    def state(self) -> dict[str, Any]:
        """Return all that the run goes on from, as tensors and plain values; of random states, those of all ranks."""
        return {
            "network": self.weights(),
            "optimiser": self._optimiser.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "order": self._minibatches.state(),
            "random": everywhere(random_state(self._classifier.device)),
        }

    def set_state(self, saved: dict[str, Any], resume: Callable[[], None]) -> None:
        """Take over what :meth:`state` returned, random states apart; leave all as it was if that fails.

        :param saved: The state.
        :param resume: Takes over the rest of the checkpoint.
        :raises ValueError: If it does not fit.
        """
        before = self.weights(), copy.deepcopy(self._optimiser.state_dict())
        schedule = None if self._scheduler is None else copy.deepcopy(self._scheduler.state_dict())
        try:
            self.set_weights(saved["network"])
            self._optimiser.load_state_dict(saved["optimiser"])
            if self._scheduler is not None:
                self._scheduler.load_state_dict(saved["scheduler"])
            self._minibatches.set_state(saved["order"])
            resume()
        except Exception as error:
            self.set_weights(before[0])
            self._optimiser.load_state_dict(before[1])
            if self._scheduler is not None and schedule is not None:
                self._scheduler.load_state_dict(schedule)
            raise ValueError(f"checkpoint does not fit this run ({error}); give another path") from error

    def set_random_state(self, saved: dict[str, Any]) -> None:
        """Put back this rank's random states."""
        set_random_state(saved["random"][rank()], self._classifier.device)


def check_ranks(settings: dict[str, Any], file: Path | None) -> None:
    """Refuse ranks that would not train the same run.

    :param settings: What the run is.
    :param file: Its checkpoint, if it has one.
    :raises ValueError: If a rank has other settings, or sees another file.
    """
    own = settings, file is not None and file.exists()
    for number, other in enumerate(everywhere(own)):
        differ = sorted(name for name in settings if other[0].get(name) != settings[name])
        if differ:
            raise ValueError(
                f"rank {number} differs in {', '.join(differ)}; all ranks must give fit the same arguments"
            )
        if other[1] != own[1]:
            raise ValueError(f"checkpoint '{file}' is seen by some ranks only; give a path that all of them share")
