# SPDX-License-Identifier: MIT
"""Training data as a `Dataset` or `DataLoader` of torch, read anew every epoch, so that its transforms are random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from art_wdro._host.inputs import as_inputs, as_labels, parts_of
from art_wdro._ranks import mine, ranks
from art_wdro._storage.digests import fingerprint
from art_wdro.trainers._augmentation import Augmentation
from art_wdro.trainers._checks import check_single_sample
from art_wdro.trainers._minibatches import FEW, Batch, Minibatches, Order, loader_leaves_one
from art_wdro.trainers._random import Stream

ONE_LOADED = "x has a minibatch of 1; give another batch_size, or drop_last=True"
"""What to do where a minibatch of a data set is one sample and the network does not train on that."""


class Loaded(Minibatches):
    """A data set of torch, read anew every epoch: a loader's own batches, or those of a shuffled `Dataset`.

    Transforms and samplers draw from random states of the epoch's own, the same on all ranks, so that no epoch depends
    on what came before it but through the loader's own generators, which are part of the state.
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        data: Dataset[Any] | DataLoader[Any],
        augmentation: Augmentation,
        batch_size: int,
        drop_last: bool,
        seed: int,
    ) -> None:
        """Read the first batch, to see that it is one.

        :param classifier: Checks and encodes the batches.
        :param data: Pairs of inputs and labels.
        :param augmentation: Changes every batch.
        :param batch_size: Samples of a minibatch on each rank, where a `Dataset` is given.
        :param drop_last: Leave out a last minibatch that is smaller, where a `Dataset` is given.
        :param seed: Seed of orders and transforms, the same on all ranks.
        :raises TypeError: If items are no pairs.
        :raises ValueError: If it can be read once alone, has no samples, or they do not fit the classifier.
        """
        self._classifier, self._augmentation = classifier, augmentation
        self._seed, self._number = seed, -1
        self._each, size = batch_size, batch_size * ranks()
        whole = data.dataset if isinstance(data, DataLoader) else data
        self._set = None if isinstance(whole, IterableDataset) else whole
        refuse_one_reading("x", whole)
        self._loader = data if isinstance(data, DataLoader) else None
        if self._loader is None and self._set is None:
            self._loader = DataLoader(whole, batch_size=size, drop_last=drop_last)
        samples = 0 if self._set is None else len(self._set)  # type: ignore[arg-type]
        self.resamples = samples > 0
        self._order = Order(samples, seed)
        self._starts = range(0, samples - (size if drop_last else ranks()) + 1, size)
        self._collate = data.collate_fn if isinstance(data, DataLoader) else None
        if self._loader is None and len(self._starts) == 0:
            raise ValueError(f"x has {samples} samples; needed are at least {size if drop_last else ranks()} of them")
        self._generators = _generators_of(self._loader)
        self._begun = self._marks()
        self._few, self._digest = self._look()

    def __len__(self) -> int:
        """Return how many minibatches an epoch has; 0 where that is not known."""
        if self._loader is None:
            return len(self._starts)
        try:
            return len(self._loader)
        except TypeError:
            return 0

    def epoch(self, done: int = 0) -> Iterator[Batch]:
        """Yield this rank's part of every minibatch of an epoch.

        :raises ValueError: If there are none.
        """
        if done == 0:
            self._number, self._begun = self._number + 1, self._marks()
        else:
            self._set_marks(self._begun)
        loader, stream = self._reader(done > 0), self._stream(self._number)
        number = 0
        for number, (x, y) in enumerate(self._read(loader, stream), 1):
            if number <= done:
                continue
            x, y = self._own(x, y)
            if len(x) > 0:
                yield self._encoded(x, y)
        if number == 0:
            raise ValueError(f"x yields no batches in epoch {self._number}; needed is data that can be read again")

    def sample(self, fraction: float) -> Iterator[Batch]:
        """Yield this rank's part of a fresh share of the training set, in batches."""
        chosen = self._order.sample(fraction)
        size = self._each * ranks()
        parts = [mine(chosen[start : start + size]).tolist() for start in range(0, len(chosen), size)]
        stream = Stream(self._classifier.device, int(torch.randint(2**31, (1,))))
        for x, y in self._read(self._cut([part for part in parts if part]), stream):
            yield self._encoded(x, y)

    def few(self) -> Tensor:
        """Return a few inputs."""
        return self._few

    def single(self) -> tuple[Tensor, str] | None:
        """Return an input, (1, ...), and a remedy, if a minibatch is known to be one sample."""
        if self._augmentation:
            return None
        if self._loader is None:
            last = min(len(self._set) - self._starts[-1], self._each * ranks())  # type: ignore[arg-type]
            one = last // ranks() == 1
        else:
            one = ranks() == 1 and loader_leaves_one(self._loader)
        return (self._few[:1], ONE_LOADED) if one else None

    def identity(self) -> list[Any]:
        """Describe the data by their first batch, and how they are cut.

        :raises ValueError: If workers keep random states from one epoch to the next.
        """
        if self._loader is not None:
            refuse_lasting_workers("x", self._loader)
        size = self._each if self._loader is None else self._loader.batch_size
        return [type(self._set).__name__, len(self), size, self._digest]

    def state(self) -> dict[str, Any]:
        """Return the number of the epoch, and where orders and generators stand."""
        marks = {"begun": self._begun, "generators": self._marks()}
        return {"number": self._number, "order": self._order.state(), **marks}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Go on from what :meth:`state` returned."""
        assert state is not None
        self._number, self._begun = state["number"], state["begun"]
        self._order.set_state(state["order"])
        self._set_marks(state["generators"])

    def _reader(self, goes_on: bool) -> DataLoader[Any]:
        """Return what reads this rank's part of an epoch of a `Dataset`, or all of a loader."""
        if self._loader is not None:
            samplers: list[Any] = [self._loader.sampler, self._loader.batch_sampler]
            for sampler in samplers:
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(self._number)
            return self._loader
        order, size = self._order.epoch(goes_on), self._each * ranks()
        return self._cut([mine(order[start : start + size]).tolist() for start in self._starts])

    def _cut(self, parts: Sequence[list[int]]) -> DataLoader[Any]:
        """Return what reads these samples of the data set, part by part."""
        assert self._set is not None
        return DataLoader(self._set, batch_sampler=parts, collate_fn=self._collate)

    def _read(self, loader: DataLoader[Any], stream: Stream) -> Iterator[tuple[Any, Any]]:
        """Yield inputs and labels; all that draws while they are read draws from the stream."""
        with stream:
            batches = iter(loader)
        while True:
            with stream:
                batch = next(batches, None)
            if batch is None:
                return
            parts = parts_of(batch)
            if len(parts) != 2:
                raise TypeError("x yields inputs without labels; needed are pairs of inputs and labels")
            yield parts[0], parts[1]

    def _own(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Return this rank's part of what was read: of a loader's batch, which every rank reads whole, some rows."""
        if self._loader is None or ranks() == 1:
            return x, y
        # a minibatch must have a sample for every rank
        rows = mine(torch.arange(len(x) if len(x) >= ranks() else 0))
        return x[rows], y[rows]

    def _encoded(self, x: Any, y: Any) -> Batch:
        """Check a batch, and let preprocessors for fitting change it."""
        inputs = as_inputs(self._classifier, x)
        labels = as_labels(self._classifier, y, len(inputs)).to(inputs.device)
        if len(inputs) == 1:
            check_single_sample(self._classifier, inputs, ONE_LOADED)
        return self._augmentation(inputs, labels)

    def _look(self) -> tuple[Tensor, str]:
        """Return a few inputs of the first batch, and a digest of it; nothing moves on."""
        first = [list(range(min(FEW, len(self._set))))] if self._loader is None else []  # type: ignore[arg-type]
        loader = self._cut(first) if self._loader is None else self._loader
        x, y = next(self._read(loader, self._stream(0)), (None, None))
        self._set_marks(self._begun)
        if x is None:
            raise ValueError("x yields no samples; needed is at least one")
        inputs = as_inputs(self._classifier, x)
        labels = as_labels(self._classifier, y, len(inputs))
        return inputs[:FEW].clone(), fingerprint(inputs, labels)

    def _stream(self, number: int) -> Stream:
        """Return the random states of an epoch."""
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        return Stream(self._classifier.device, seed)

    def _marks(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _set_marks(self, marks: list[Tensor]) -> None:
        for generator, mark in zip(self._generators, marks, strict=True):
            generator.set_state(mark)


class Labelled(Dataset[tuple[Any, Any]]):
    """A data set of inputs, and labels in its order."""

    def __init__(self, inputs: Dataset[Any], labels: Any) -> None:
        self._inputs, self._labels = inputs, labels

    def __len__(self) -> int:
        return len(self._inputs)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        item = self._inputs[index]
        if isinstance(item, (tuple, list)) and len(item) == 2:
            raise ValueError("y is given, and x brings labels of its own; give one of them")
        return item, self._labels[index]


def with_labels(data: Dataset[Any] | DataLoader[Any], labels: Callable[[int], Tensor] | None) -> Any:
    """Return a data set with labels that were given beside it.

    :param data: The data set.
    :param labels: Returns as many labels as there are samples; None where the data set brings its own.
    :raises ValueError: If it has an order of its own, or none.
    """
    if labels is None:
        return data
    if isinstance(data, (DataLoader, IterableDataset)):
        raise ValueError(
            f"y is given, and x is a {type(data).__name__}, whose order is its own; needed are pairs of inputs and "
            "labels"
        )
    return Labelled(data, labels(len(data)))  # type: ignore[arg-type]


def refuse_lasting_workers(name: str, loader: DataLoader[Any]) -> None:
    """Refuse a loader whose workers keep their random states from one epoch to the next, where runs are compared.

    :raises ValueError: If it is one.
    """
    if loader.persistent_workers:
        raise ValueError(
            f"{name} is a DataLoader with persistent_workers=True, whose random states no checkpoint holds; allowed "
            "with one, or over ranks, is persistent_workers=False"
        )


def refuse_one_reading(name: str, data: Any) -> None:
    """Refuse a stream of samples that is used up by the first epoch.

    :raises ValueError: If it is one.
    """
    if isinstance(data, IterableDataset) and iter(data) is iter(data):
        raise ValueError(
            f"{name} is a {type(data).__name__} that can be read once; needed is one whose __iter__ begins anew, for "
            "every epoch"
        )


def _generators_of(loader: DataLoader[Any] | None) -> list[torch.Generator]:
    """Return the random generators that a loader and its samplers hold, each once."""
    if loader is None:
        return []
    samplers = [loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
    held = [getattr(holder, "generator", None) for holder in (loader, *samplers)]
    return [*{id(found): found for found in held if isinstance(found, torch.Generator)}.values()]
