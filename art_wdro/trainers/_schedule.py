# SPDX-License-Identifier: MIT
"""When a run steps its learning rate scheduler: after each epoch, or after each minibatch."""

from __future__ import annotations

import warnings
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

STEPS = ("epoch", "batch")
"""When a scheduler can be stepped."""


def check_length(scheduler: LRScheduler | None, step: str, nb_epochs: int, minibatches: int) -> None:
    """Refuse a scheduler that does not fit when it is stepped, or how often.

    :param scheduler: The scheduler, if there is one.
    :param step: When it is stepped, of `STEPS`.
    :param nb_epochs: Number of epochs.
    :param minibatches: Number of minibatches in an epoch; 0 where it is not known.
    :raises ValueError: If it wants figures of an epoch after a minibatch, or its cycle has another length.
    """
    if step == "batch" and isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "scheduler is a ReduceLROnPlateau, which wants a figure of the epoch; allowed with it is "
            "scheduler_step='epoch'"
        )
    each = minibatches if step == "batch" else 1
    if not isinstance(scheduler, OneCycleLR) or nb_epochs * each == 0:
        return
    # a cycle may be begun
    if nb_epochs * each not in (scheduler.total_steps, scheduler.total_steps - scheduler.last_epoch):
        of = f" of {minibatches} minibatches" if step == "batch" else ""
        raise ValueError(
            f"scheduler is a OneCycleLR of total_steps={scheduler.total_steps}; needed with scheduler_step={step!r} "
            f"are {nb_epochs * each}, for {nb_epochs} epochs{of}"
        )


class Schedule:
    """A scheduler, if there is one, and when it is stepped."""

    def __init__(self, scheduler: LRScheduler | None, step: str) -> None:
        self._scheduler, self._step = scheduler, step

    def after_minibatch(self, updated: bool) -> None:
        """Step a scheduler of minibatches, skipped ones too, so that it ends where it should."""
        if self._scheduler is None or self._step != "batch":
            return
        with warnings.catch_warnings():
            if not updated:
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self._move(self._scheduler)

    def after_epoch(self, record: dict[str, Any]) -> None:
        """Step a scheduler of epochs by what one gave."""
        if self._scheduler is None or self._step != "epoch":
            return
        if not isinstance(self._scheduler, ReduceLROnPlateau):
            self._move(self._scheduler)
            return
        accuracy = record["train_adversarial_accuracy"] if record["wp_accuracy"] is None else record["wp_accuracy"]
        self._scheduler.step(accuracy if self._scheduler.mode == "max" else record["loss"])

    def state(self) -> dict[str, Any] | None:
        """Return the scheduler's state."""
        return None if self._scheduler is None else self._scheduler.state_dict()

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Go on from what :meth:`state` returned."""
        if self._scheduler is not None and state is not None:
            self._scheduler.load_state_dict(state)

    def _move(self, scheduler: LRScheduler) -> None:
        """Take a step; a cycle stays at its last value."""
        if not isinstance(scheduler, OneCycleLR) or scheduler.last_epoch < scheduler.total_steps - 1:
            scheduler.step()
