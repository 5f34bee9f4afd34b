# SPDX-License-Identifier: MIT
"""Minibatches of a data generator of ART, drawn again where a run goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from art.data_generators import DataGenerator, NumpyDataGenerator, PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro._host.inputs import as_inputs, as_labels
from art_wdro._storage.digests import fingerprint
from art_wdro.trainers._augmentation import Augmentation
from art_wdro.trainers._checks import check_single_sample
from art_wdro.trainers._loaded import refuse_lasting_workers, refuse_one_reading
from art_wdro.trainers._minibatches import Batch, Minibatches, Shuffled, leaves_one, loader_leaves_one
from art_wdro.trainers._random import Stream

ONE_GENERATED = "the generator has a batch of 1; give it another batch_size, or let it drop its last batch"
"""What to do where a generator's batch is one sample and the network does not train on that."""


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
        :raises ValueError: If it is known to end.
        """
        if isinstance(generator, PyTorchDataGenerator):
            refuse_one_reading("generator's data set", generator.iterator.dataset)
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
        """Describe the generator in plain values.

        :raises ValueError: If workers keep random states from one epoch to the next.
        """
        if isinstance(self._generator, PyTorchDataGenerator):
            refuse_lasting_workers("generator's iterator", self._generator.iterator)
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
