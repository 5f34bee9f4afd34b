# SPDX-License-Identifier: MIT
"""Where a trainer's minibatches come from: arrays in random order, or a data generator of ART; spread over ranks."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from typing import Any

import torch
from art.data_generators import DataGenerator, NumpyDataGenerator, PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.utils.data import IterableDataset

from art_wdro._host import classifier as host
from art_wdro._host.inputs import as_inputs, as_labels
from art_wdro._ranks import agreed, mine, ranks
from art_wdro._storage.arrays import Rows
from art_wdro._storage.digests import fingerprint
from art_wdro.trainers._augmentation import Augmentation
from art_wdro.trainers._checks import check_single_sample

ONE_GENERATED = "the generator has a batch of 1; give it another batch_size, or let it drop its last batch"
"""What to do where a generator's batch is one sample and the network does not train on that."""
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
    def epoch(self) -> Iterator[Batch]:
        """Yield this rank's part of every minibatch of an epoch."""

    @abc.abstractmethod
    def sample(self, fraction: float) -> Iterator[Batch]:
        """Yield this rank's part of a fresh share of the training set, in batches."""

    @abc.abstractmethod
    def single(self) -> tuple[Tensor, str] | None:
        """Return an input, (1, ...), and a remedy, if a rank's part of a minibatch is known to be one sample."""

    @abc.abstractmethod
    def identity(self) -> list[Any]:
        """Describe the data and how they are cut, in plain values."""

    @abc.abstractmethod
    def state(self) -> Tensor | None:
        """Return where the random order stands."""

    @abc.abstractmethod
    def set_state(self, state: Tensor | None) -> None:
        """Go on from what :meth:`state` returned."""


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
        self._generator = torch.Generator().manual_seed(agreed(seed))
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

    def epoch(self) -> Iterator[Batch]:
        """Yield this rank's part of every minibatch: the samples that torch's DistributedSampler would give it."""
        order = torch.randperm(len(self._x), generator=self._generator)
        for start in self._starts:
            yield self._chosen(mine(order[start : start + self._size]))

    def sample(self, fraction: float) -> Iterator[Batch]:
        """Yield this rank's part of a fresh share of the training set, in batches."""
        chosen = torch.randperm(len(self._x), generator=self._generator)[: math.ceil(fraction * len(self._x))]
        for start in range(0, len(chosen), self._size):
            part = mine(chosen[start : start + self._size])
            if len(part):
                yield self._chosen(part)

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

    def state(self) -> Tensor:
        """Return where the random order stands."""
        return self._generator.get_state()

    def set_state(self, state: Tensor | None) -> None:
        """Go on from what :meth:`state` returned."""
        assert state is not None
        self._generator.set_state(state)

    def _chosen(self, rows: Tensor) -> Batch:
        rows = rows.to(self._x.device)
        return self._x[rows], self._y[rows]


class Generated(Minibatches):
    """The batches of a data generator of ART, one of its own on every rank."""

    def __init__(
        self, classifier: PyTorchClassifier, generator: DataGenerator, seed: int, augmentation: Augmentation
    ) -> None:
        """Wrap a generator.

        :param classifier: Checks and encodes the batches.
        :param generator: A data generator with a size.
        :param seed: Seed of fresh samples, which a `NumpyDataGenerator` allows.
        :param augmentation: Changes every batch.
        """
        self._classifier, self._generator, self._augmentation = classifier, generator, augmentation
        self.resamples = isinstance(generator, NumpyDataGenerator)
        if self.resamples:
            x = as_inputs(classifier, generator.x, "generator.x")
            y = as_labels(classifier, generator.y, len(x), "generator.y")
            self._whole = Shuffled(x, y, generator.batch_size, False, seed)

    def __len__(self) -> int:
        count: int = math.ceil(self._generator.size / self._generator.batch_size)
        return count

    def epoch(self) -> Iterator[Batch]:
        """Yield as many batches as the generator's size says."""
        for _ in range(len(self)):
            x, y = self._generator.get_batch()
            inputs = as_inputs(self._classifier, x, "generator's x")
            labels = as_labels(self._classifier, y, len(inputs), "generator's y")
            inputs, labels = self._augmentation(inputs, labels)
            if len(inputs) == 1:
                check_single_sample(self._classifier, inputs, ONE_GENERATED)
            yield inputs, labels

    def sample(self, fraction: float) -> Iterator[Batch]:
        """Yield a fresh share of the generator's data set, in batches."""
        return (self._augmentation(*batch) for batch in self._whole.sample(fraction))

    def single(self) -> tuple[Tensor, str] | None:
        """Return an input, (1, ...), and a remedy, if a batch is known to be one sample."""
        if self._augmentation or not _leaves_one(self._generator) or None in self._classifier.input_shape:
            return None
        return host.example(self._classifier), ONE_GENERATED

    def identity(self) -> list[Any]:
        """Describe the generator in plain values."""
        return [type(self._generator).__name__, self._generator.size, self._generator.batch_size]

    def state(self) -> None:
        """Return nothing: the generator has its own order."""

    def set_state(self, state: Tensor | None) -> None:
        """Leave the generator as it is."""


def _leaves_one(generator: DataGenerator) -> bool:
    """Tell whether a generator of ART is known to have a batch of one sample."""
    if isinstance(generator, NumpyDataGenerator):
        samples, size, drops = generator.size, generator.batch_size, generator.drop_remainder
    elif isinstance(generator, PyTorchDataGenerator) and generator.iterator.batch_size is not None:
        loader = generator.iterator
        if isinstance(loader.dataset, IterableDataset):
            return False
        samples, size, drops = len(loader.sampler), loader.batch_size, loader.drop_last
    else:
        return False
    return bool(size == 1 or (not drops and samples % size == 1))
