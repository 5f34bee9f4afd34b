# SPDX-License-Identifier: MIT
"""Where a trainer's minibatches come from: what all sources share, and arrays in random order, spread over ranks."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from art_wdro._ranks import agreed, mine, ranks
from art_wdro._storage.arrays import Rows
from art_wdro._storage.digests import fingerprint

FEW = 8
"""Inputs that an augmentation is tried on before training."""
Batch = tuple[Tensor, Tensor]
"""Inputs (n, ...) and class indices (n,), or soft targets (n, K), on any device."""


class Minibatches(abc.ABC):
    """The minibatches of an epoch, and fresh samples of the whole training set."""

    resamples = True
    """Whether :meth:`sample` works."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return how many minibatches an epoch has."""

    @abc.abstractmethod
    def epoch(self, done: int = 0) -> Iterator[Batch]:
        """Yield this rank's part of every minibatch of an epoch.

        :param done: How many of the first ones to leave out, since a run that goes on has trained on them.
        """

    @abc.abstractmethod
    def sample(self, fraction: float) -> Iterator[Batch]:
        """Yield this rank's part of a fresh share of the training set, in batches."""

    @abc.abstractmethod
    def few(self) -> Tensor | None:
        """Return a few inputs, (n, ...), if some can be had and nothing moves on by it."""

    @abc.abstractmethod
    def single(self) -> tuple[Tensor, str] | None:
        """Return an input, (1, ...), and a remedy, if a rank's part of a minibatch is known to be one sample."""

    @abc.abstractmethod
    def identity(self) -> list[Any]:
        """Describe the data and how they are cut, in plain values."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any] | None:
        """Return where the order stands, in this epoch and after it, as tensors and plain values."""

    @abc.abstractmethod
    def set_state(self, state: dict[str, Any] | None) -> None:
        """Go on from what :meth:`state` returned."""


class Order:
    """A random order of samples, new every epoch, that can be gone on with inside of one."""

    def __init__(self, samples: int, seed: int) -> None:
        """Begin.

        :param samples: Number of samples.
        :param seed: Seed of all orders, the same on all ranks.
        """
        self._samples = samples
        self._generator = torch.Generator().manual_seed(seed)
        self._begun = self._generator.get_state()

    def epoch(self, goes_on: bool) -> Tensor:
        """Return the order of a new epoch, or of the one that was begun, (samples,)."""
        if goes_on:
            again = torch.Generator()
            again.set_state(self._begun)
            return torch.randperm(self._samples, generator=again)
        self._begun = self._generator.get_state()
        return torch.randperm(self._samples, generator=self._generator)

    def sample(self, fraction: float) -> Tensor:
        """Return a fresh share of the samples."""
        return torch.randperm(self._samples, generator=self._generator)[: math.ceil(fraction * self._samples)]

    def state(self) -> dict[str, Any]:
        """Return where the order stands."""
        return {"begun": self._begun, "now": self._generator.get_state()}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Go on from what :meth:`state` returned."""
        assert state is not None
        self._begun = state["begun"]
        self._generator.set_state(state["now"])


class Shuffled(Minibatches):
    """Arrays that every rank has whole, in a new random order every epoch."""

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, drop_last: bool, seed: int) -> None:
        """Prepare the minibatches.

        :param x: Inputs, (N, ...), the same on all ranks.
        :param y: Class indices, (N,), or soft targets, (N, K).
        :param batch_size: Samples of a minibatch on each rank.
        :param drop_last: Leave out a last minibatch that is smaller.
        :param seed: Seed of the order; the first rank's counts.
        :raises ValueError: If there are too few samples for a minibatch.
        """
        self._x, self._y = Rows(x, x.device), y
        self._size = batch_size * ranks()
        self._order = Order(len(x), agreed(seed))
        if drop_last and len(x) < self._size:
            raise ValueError(
                f"batch_size is {batch_size} with drop_last; allowed is at most the {len(x)} samples, over all ranks"
            )
        if len(x) < ranks():
            raise ValueError(f"x has {len(x)} samples; needed is at least one for each of the {ranks()} ranks")
        # a last minibatch must have a sample for every rank
        self._starts = range(0, len(x) - (self._size if drop_last else ranks()) + 1, self._size)

    def __len__(self) -> int:
        return len(self._starts)

    def epoch(self, done: int = 0) -> Iterator[Batch]:
        """Yield this rank's part of every minibatch: the samples that torch's DistributedSampler would give it."""
        order = self._order.epoch(done > 0)
        for start in self._starts[done:]:
            yield self._chosen(mine(order[start : start + self._size]))

    def sample(self, fraction: float) -> Iterator[Batch]:
        """Yield this rank's part of a fresh share of the training set, in batches."""
        chosen = self._order.sample(fraction)
        for start in range(0, len(chosen), self._size):
            part = mine(chosen[start : start + self._size])
            if len(part):
                yield self._chosen(part)

    def few(self) -> Tensor:
        """Return a few inputs."""
        return self._x[torch.arange(min(FEW, len(self._x)))]

    def single(self) -> tuple[Tensor, str] | None:
        """Return an input, (1, ...), and a remedy, if a rank's part of a minibatch is one sample."""
        samples = min(len(self._x) - self._starts[-1], self._size)
        if samples // ranks() > 1:
            return None
        each = self._size // ranks()
        where = f" on a rank, and the last minibatch has {samples}" if ranks() > 1 else ""
        remedy = "a larger one" if each == 1 else "another one, or drop_last=True"
        what = f"batch_size is {each}, which leaves 1 of the {len(self._x)} samples alone{where}; give {remedy}"
        return self._x[:1], what

    def identity(self) -> list[Any]:
        """Describe the data and how they are cut, in plain values."""
        x = self._x.whole()
        return [len(x), fingerprint(x, self._y), self._size, len(self)]

    def state(self) -> dict[str, Any]:
        """Return where the random order stands."""
        return self._order.state()

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Go on from what :meth:`state` returned."""
        self._order.set_state(state)

    def _chosen(self, rows: Tensor) -> Batch:
        rows = rows.to(self._x.device)
        return self._x[rows], self._y[rows]


def loader_leaves_one(loader: DataLoader[Any]) -> bool:
    """Tell whether a loader of torch is known to have a batch of one sample."""
    if loader.batch_size is None or isinstance(loader.dataset, IterableDataset):
        return False
    return leaves_one(len(loader.sampler), loader.batch_size, loader.drop_last)  # type: ignore[arg-type]


def leaves_one(samples: int, size: int, drops: bool) -> bool:
    """Tell whether samples cut into batches leave one alone."""
    return size == 1 or (not drops and samples % size == 1)
