# SPDX-License-Identifier: MIT
"""All that a run goes on from: what its checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from art_wdro._ranks import total
from art_wdro.trainers._update import Figures


@dataclass
class Progress:
    """How far an epoch has come.

    :param rate: Learning rate at its beginning.
    :param batches: Minibatches done, skipped ones included.
    :param skipped: Those skipped.
    :param samples: Samples of the others, on this rank.
    :param seconds: Time spent.
    :param totals: Sums of their figures over samples, by name.
    """

    rate: float
    batches: int = 0
    skipped: int = 0
    samples: int = 0
    seconds: float = 0.0
    totals: Figures = field(default_factory=dict)

    def add(self, figures: Figures | None, samples: int) -> None:
        """Count a minibatch with its mean figures, or None if it was skipped."""
        self.batches += 1
        if figures is None:
            self.skipped += 1
            return
        for name, figure in figures.items():
            self.totals[name] = figure * samples + self.totals.get(name, 0.0)
        self.samples += samples

    def means(self) -> dict[str, float]:
        """Return the means of the figures over all samples of all ranks."""
        own = [*(figure.double().cpu() for figure in self.totals.values()), torch.tensor(self.samples)]
        *sums, whole = total(torch.stack(own))
        return {name: (figure / whole).item() for name, figure in zip(self.totals, sums, strict=True)}

    def to(self, device: torch.device | str) -> Progress:
        """Return the same with its sums on a device."""
        return Progress(**vars(self) | {"totals": {name: figure.to(device) for name, figure in self.totals.items()}})


@dataclass(frozen=True)
class State:
    """All that a run goes on from, and the content of its checkpoint: tensors and plain values.

    :param network: The network's state.
    :param optimiser: The optimiser's.
    :param scheduler: The scheduler's, or None.
    :param average: The average of the network's weights and buffers, empty without one.
    :param order: Where the order of the minibatches stands, on each rank.
    :param random: Random states, one a rank.
    :param learnt: What :meth:`Method.learnt` returned.
    :param progress: How far an epoch has come that is not done, on each rank; None between two epochs.
    :param steps: Minibatches done in all epochs.
    :param history: One dict an epoch.
    :param best_epoch: The epoch selected so far.
    :param best: The network's state after it.
    """

    network: dict[str, Any]
    optimiser: dict[str, Any]
    scheduler: dict[str, Any] | None
    average: list[Tensor]
    order: list[dict[str, Any] | None]
    random: list[dict[str, Any]]
    learnt: dict[str, Any]
    progress: list[dict[str, Any]] | None
    steps: int
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
