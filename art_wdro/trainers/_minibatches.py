# SPDX-License-Identifier: MIT
"""Where a trainer's minibatches come from: arrays in random order, or a data generator of ART; spread over ranks."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from art.data_generators import DataGenerator, NumpyDataGenerator, PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from art_wdro._host import classifier as host
from art_wdro._host.inputs import as_inputs, as_labels
from art_wdro._ranks import agreed, mine, ranks
from art_wdro._storage.arrays import Rows
from art_wdro._storage.digests import fingerprint
from art_wdro.trainers._augmentation import Augmentation
from art_wdro.trainers._checks import check_single_sample
from art_wdro.trainers._random import Stream

ONE_GENERATED = "the generator has a batch of 1; give it another batch_size, or let it drop its last batch"
"""What to do where a generator's batch is one sample and the network does not train on that."""
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
        :param seed: Seed of all orders; the first rank's counts.
        """
        self._samples = samples
        self._generator = torch.Generator().manual_seed(agreed(seed))
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
        self._order = Order(len(x), seed)
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


class Generated(Minibatches):
    """The batches of a data generator of ART, one of its own on every rank."""

    def __init__(
        self,
        classifier: PyTorchClassifier,
        generator: DataGenerator,
        seed: int,
        augmentation: Augmentation,
        resumable: bool = False,
    ) -> None:
        """Wrap a generator.

        :param classifier: Checks and encodes the batches.
        :param generator: A data generator with a size.
        :param seed: Seed of fresh samples, which a `NumpyDataGenerator` allows.
        :param augmentation: Changes every batch.
        :param resumable: Let the generator draw from random states of its own, so that its batches can be drawn again.
        """
        self._classifier, self._generator, self._augmentation = classifier, generator, augmentation
        self._stream = Stream(classifier.device) if resumable else None
        self._start = None if self._stream is None else self._stream.state
        self._drawn, self._first = 0, ""
        self.resamples = isinstance(generator, NumpyDataGenerator)
        self._whole: Shuffled | None = None
        if self.resamples:
            x = as_inputs(classifier, generator.x, "generator.x")
            y = as_labels(classifier, generator.y, len(x), "generator.y")
            self._whole = Shuffled(x, y, generator.batch_size, False, seed)

    def __len__(self) -> int:
        count: int = math.ceil(self._generator.size / self._generator.batch_size)
        return count

    def epoch(self, done: int = 0) -> Iterator[Batch]:
        """Yield as many batches as the generator's size says.

        :raises ValueError: If the generator ends.
        """
        for _ in range(done, len(self)):
            x, y = self._next()
            inputs = as_inputs(self._classifier, x, "generator's x")
            labels = as_labels(self._classifier, y, len(inputs), "generator's y")
            inputs, labels = self._augmentation(inputs, labels)
            if len(inputs) == 1:
                check_single_sample(self._classifier, inputs, ONE_GENERATED)
            yield inputs, labels

    def sample(self, fraction: float) -> Iterator[Batch]:
        """Yield a fresh share of the generator's data set, in batches."""
        assert self._whole is not None
        return (self._augmentation(*batch) for batch in self._whole.sample(fraction))

    def few(self) -> Tensor | None:
        """Return a few inputs of a data set that can be seen."""
        return None if self._whole is None else self._whole.few()

    def single(self) -> tuple[Tensor, str] | None:
        """Return an input, (1, ...), and a remedy, if a batch is known to be one sample."""
        if self._augmentation or not _leaves_one(self._generator) or None in self._classifier.input_shape:
            return None
        return host.example(self._classifier), ONE_GENERATED

    def identity(self) -> list[Any]:
        """Describe the generator in plain values."""
        return [type(self._generator).__name__, self._generator.size, self._generator.batch_size]

    def state(self) -> dict[str, Any] | None:
        """Return how many batches were drawn, and from which random states the first one was."""
        whole = None if self._whole is None else self._whole.state()
        return {"start": self._start, "drawn": self._drawn, "first": self._first, "whole": whole}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Draw the same batches again, and throw them away.

        :raises ValueError: If the first one is another one.
        """
        assert state is not None
        assert self._stream is not None
        self._start = self._stream.state = state["start"]
        for number in range(state["drawn"]):
            self._next()
            if number == 0 and self._first != state["first"]:
                raise ValueError(
                    "the generator's first batch is not the one that the run began with; needed is a generator made "
                    "anew, of the same data"
                )
        if self._whole is not None:
            self._whole.set_state(state["whole"])

    def _next(self) -> tuple[Any, Any]:
        """Return the generator's next batch."""
        try:
            with nullcontext() if self._stream is None else self._stream:
                x, y = self._generator.get_batch()
        except StopIteration:
            raise ValueError(
                f"generator ends after {self._drawn} batches; needed is one that begins anew, for {len(self)} batches "
                "an epoch"
            ) from None
        if self._drawn == 0 and self._stream is not None:
            self._first = fingerprint(torch.as_tensor(np.asarray(x)), torch.as_tensor(np.asarray(y)))
        self._drawn += 1
        return x, y


def _leaves_one(generator: DataGenerator) -> bool:
    """Tell whether a generator of ART is known to have a batch of one sample."""
    if isinstance(generator, NumpyDataGenerator):
        return leaves_one(generator.size, generator.batch_size, generator.drop_remainder)
    return isinstance(generator, PyTorchDataGenerator) and loader_leaves_one(generator.iterator)


def loader_leaves_one(loader: DataLoader[Any]) -> bool:
    """Tell whether a loader of torch is known to have a batch of one sample."""
    if loader.batch_size is None or isinstance(loader.dataset, IterableDataset):
        return False
    return leaves_one(len(loader.sampler), loader.batch_size, loader.drop_last)  # type: ignore[arg-type]


def leaves_one(samples: int, size: int, drops: bool) -> bool:
    """Tell whether samples cut into batches leave one alone."""
    return size == 1 or (not drops and samples % size == 1)
