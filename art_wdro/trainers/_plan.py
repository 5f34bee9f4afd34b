# SPDX-License-Identifier: MIT
"""What a call of `fit` or `fit_generator` says of a run besides the training data."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from art_wdro._host import arguments
from art_wdro.trainers._schedule import STEPS
from art_wdro.trainers._transforms import Augment

OnEpoch = Callable[[dict[str, Any], bool], None]
"""Called after each epoch with its dict of `history`, and whether it is the best one yet."""


@dataclass(frozen=True)
class Plan:
    """The arguments of a call, as they were given; :meth:`check` reads them.

    :param nb_epochs: Number of epochs.
    :param scheduler: A learning rate scheduler of torch, or None.
    :param validation_data: What the epoch is selected on, or None.
    :param augment: Changes every minibatch, or None.
    :param checkpoint: File of the run's state, or None.
    :param on_epoch: Called after each epoch, or None.
    :param scheduler_step: When the scheduler is stepped, of `STEPS`.
    :param checkpoint_minutes: Time between two checkpoints inside of an epoch, or None for none.
    """

    nb_epochs: int
    scheduler: LRScheduler | None = None
    validation_data: Any = None
    augment: Augment | None = None
    checkpoint: str | os.PathLike[str] | None = None
    on_epoch: OnEpoch | None = None
    scheduler_step: str = "epoch"
    checkpoint_minutes: float | None = None

    @property
    def file(self) -> Path | None:
        """The checkpoint as a path."""
        return None if self.checkpoint is None else Path(self.checkpoint)

    def check(self) -> None:
        """Read the values that need no classifier.

        :raises ValueError: If a value is not allowed.
        :raises TypeError: If a value is of the wrong type.
        """
        self.__dict__["nb_epochs"] = arguments.integer("nb_epochs", self.nb_epochs, 0)
        arguments.choice("scheduler_step", self.scheduler_step, STEPS)
        if self.checkpoint is not None:
            arguments.file("checkpoint", self.checkpoint)
        if self.checkpoint_minutes is not None:
            self.__dict__["checkpoint_minutes"] = arguments.real("checkpoint_minutes", self.checkpoint_minutes, 0.0)
            if self.checkpoint is None:
                raise ValueError(
                    f"checkpoint_minutes is {self.checkpoint_minutes:g} without a checkpoint; allowed is None, or a "
                    "checkpoint with it"
                )
