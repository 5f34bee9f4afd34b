# SPDX-License-Identifier: MIT
"""The one driver of searches that go sample by sample: full batches, which hold samples at different steps of theirs.

A sample goes through one run after another. Where a run ends, another one of any sample takes its place in the batch,
so that the network sees full batches until there are fewer samples left than fill one. Runs begin and end in full
batches too, those of one kind together: what has begun waits for a place, and what has ended waits for its end. No
sample depends on its batch.

Source: such batching, which inference servers call continuous, is that of Yu et al., Orca: a distributed serving system
for transformer-based generative models, OSDI 2022.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from art_wdro._solvers.batches import Bar, Found, Samples, silent
from art_wdro._solvers.margins import Margins, Spent
from art_wdro._solvers.passes import SHAPES, LogitsOf, Passes
from art_wdro._solvers.resumed import check_found
from art_wdro._storage.arrays import falling, parts, staged
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro.losses import predicted

log = logging.getLogger("art_wdro")
ENDED, UNDERWAY = -1, -2
"""In the place of a run's number: no run is left for a sample, and it is on one."""
NO_ROWS = torch.empty(0, dtype=torch.int64)


class Runs(Margins, abc.ABC):
    """Samples on a run each, which ends for every one when it does.

    Attributes: `places`, which samples of the data set they are, (n,), set by :class:`Search`; `on_host`, the names of
    what lies on the host.
    """

    places: Tensor
    on_host: tuple[str, ...] = ("places",)

    @abc.abstractmethod
    def advance(self) -> None:
        """Take one step of every run."""

    @abc.abstractmethod
    def ended(self) -> Tensor:
        """Tell which runs have ended, boolean, (n,), on the host."""


R = TypeVar("R", bound=Runs)


class Search(abc.ABC, Generic[R]):
    """A search for a point of another class of every sample of a data set that is classified correctly.

    Attributes: `data` and `points`, the samples and the points found, :class:`Rows`; `distances` between them, (N,),
    float64, 0 where nothing is searched for, inf where nothing was found; `chosen`, the samples that are searched for;
    `classes`, the number of logits; `notes`, what a search remembers of its samples, tensors of N rows on the host: in
    `left` the gradients that they may take yet, where their number is limited, and more.
    """

    def __init__(self, logits_of: LogitsOf, samples: Samples, r: float) -> None:
        """Predict the samples' classes.

        :param logits_of: Maps inputs to logits.
        :param samples: The data set.
        :param r: Exponent of the ground norm.
        """
        self.size = max(1, min(samples.batch_size, len(samples.x)))
        self.logits_of = Passes.of(logits_of)
        self.logits_of.sizes = falling(self.size, SHAPES, 2)
        self.samples, self.r = samples, r
        self.data, self.points, self._movable = samples.rows(), samples.rows().clone(), samples.movable()
        self.distances = torch.zeros(len(self.data), dtype=torch.float64, device=self.data.device)
        self.spent, self.classes = Spent(), 0
        self.notes = {"left": torch.zeros(len(self.data), dtype=torch.int64)}
        self.chosen = self._standing()
        self._next = torch.full((len(self.data),), ENDED)
        self._next[self.chosen.cpu()] = 0
        self._ready: R | None = None
        self._flying: R | None = None
        self._landed: R | None = None
        self._filling = True

    @abc.abstractmethod
    def begin(self, number: int, rows: Tensor) -> R:
        """Return samples at the beginning of a run.

        :param number: Which run, counted from 0.
        :param rows: Their indices, (n,), on the host.
        """

    @abc.abstractmethod
    def end(self, runs: R) -> tuple[Tensor, Tensor, Tensor]:
        """Finish runs, of different numbers perhaps.

        :return: Points, shaped as the samples; whether they have another class, boolean, (n,); and the numbers of the
            runs that come next, (n,), on the host, `ENDED` where none does.
        """

    @abc.abstractmethod
    def batch(self, rows: Tensor) -> R:
        """Return samples of the data set, by their indices on the host, as a batch without a run."""

    def samples_at(self, kind: type[R], rows: Tensor) -> R:
        """Return samples of the data set, by their indices on the host, as a batch of a kind."""
        there = rows.to(self.data.device)
        mask = None if self._movable is None else self._movable[there]
        labels, box = self.samples.labels[there], self.samples.box
        runs = kind(self.logits_of, self.data[there], labels, self.r, box, mask, self.spent)
        runs.places = rows
        return runs

    def run(self, checkpoint: Checkpoint | None = None, bar: Bar[Any] = silent) -> Found:
        """Search, saving on the way what is found, and going on from it.

        :param checkpoint: Where to save it.
        :param bar: Wraps an iteration over the samples that are searched for.
        """
        saved = None if checkpoint is None else checkpoint.load()
        if saved is not None:
            check_found(saved, self.samples, self.r)
            self.set_state(saved)
        self._leave((self._next == ENDED).nonzero()[:, 0])
        for _ in bar(_Progress(self, checkpoint)):
            pass
        return Found(self.distances, self.points.whole(), self.spent.gradients)

    def passes(self) -> Iterator[int]:
        """Take steps until all samples have gone through all their runs; yield now and then how many have."""
        while True:
            if self._filling:
                yield from self._fill()
            if self._flying is None:
                return
            self._flying.advance()
            self._land(self._flying)
            yield self._finished()

    def state(self) -> dict[str, Any]:
        """Return what the search goes on from, as tensors and plain values."""
        batches = {"ready": self._ready, "flying": self._flying, "landed": self._landed}
        return {
            "distances": self.distances,
            "chosen": self.chosen,
            "points": self.points.whole(),
            "gradients": self.spent.gradients,
            "next": self._next,
            "notes": self.notes,
            "filling": self._filling,
            "batches": {name: None if runs is None else runs.rows() for name, runs in batches.items()},
        }

    def set_state(self, saved: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        # a near-tie may change sides on another machine, so who is searched for is what it was
        self.distances, self.chosen = saved["distances"].to(self.distances), saved["chosen"].to(self.chosen)
        self.points.fill(saved["points"])
        self.spent.gradients, self._next, self.notes = saved["gradients"], saved["next"], saved["notes"]
        self._filling = saved["filling"]
        for name, rows in saved["batches"].items():
            setattr(self, f"_{name}", None if rows is None else self._restored(rows))

    def _restored(self, rows: dict[str, Tensor]) -> R:
        """Return a batch that was saved."""
        runs = self.batch(NO_ROWS)
        there = {name: values.to("cpu" if name in runs.on_host else self.data.device) for name, values in rows.items()}
        return runs.having(there)

    def _standing(self) -> Tensor:
        """Return the indices of the samples that are classified correctly, and note how many classes there are."""
        labels = self.samples.labels
        standing = torch.zeros_like(labels, dtype=torch.bool)
        with torch.no_grad():
            for rows, points in staged(parts(len(self.data), self.size), self.data):
                logits = self.logits_of(points)
                self.classes = logits.shape[1]
                standing[rows] = predicted(logits) == labels[rows]
        return standing.nonzero()[:, 0]

    def _finished(self) -> int:
        return len(self.chosen) - int((self._next != ENDED).sum())

    def _land(self, flying: R) -> None:
        """Take the runs that ended out of the batch, and let runs that have begun take their places."""
        ended = flying.ended()
        free = ended.nonzero()[:, 0]
        if len(free) == 0:
            return
        self._landed = _joined(self._landed, flying.part(free))
        if _count(self._ready) < len(free):
            self._filling = True
            self._flying = flying.part((~ended).nonzero()[:, 0]) if len(free) < len(flying) else None
            return
        coming, self._ready = _split(self._ready, len(free))
        assert coming is not None
        if len(free) == len(flying):
            self._flying = coming
        else:
            flying.replace(free, coming)

    def _fill(self) -> Iterator[int]:
        """Begin runs until the batch is full, or none is left; yield after each time how many samples are through."""
        if _count(self._landed) >= self.size:
            self._end()
        while _count(self._ready) < self.size - _count(self._flying) and self._begin():
            yield self._finished()
        coming, self._ready = _split(self._ready, self.size - _count(self._flying))
        self._flying = _joined(self._flying, coming)
        self._filling = False

    def _begin(self) -> bool:
        """Begin a run that samples wait for, if any waits."""
        number, rows = self._waiting()
        if len(rows) < self.size and self._landed is not None:
            self._end()
            number, rows = self._waiting()
        if len(rows) == 0:
            return False
        self._next[rows] = UNDERWAY
        began = self.begin(number, rows)
        ended = began.ended()
        self._landed = _joined(self._landed, began.part(ended.nonzero()[:, 0]))
        self._ready = _joined(self._ready, began.part((~ended).nonzero()[:, 0]) if ended.any() else began)
        return True

    def _waiting(self) -> tuple[int, Tensor]:
        """Return the last run that a full batch waits for, else the one that most do, and the first of these."""
        counts = torch.bincount(self._next[self._next >= 0], minlength=1)
        full = (counts >= self.size).nonzero()
        number = int(full[-1] if len(full) else counts.argmax())
        return number, (self._next == number).nonzero()[: self.size, 0]

    def _end(self) -> None:
        """Finish the runs that ended."""
        runs, self._landed = self._landed, None
        assert runs is not None
        points, reached, self._next[runs.places] = self.end(runs)
        rows = runs.places.to(self.data.device)
        self.points[rows], self.distances[rows] = points, runs.distances(points, reached)
        self._leave(runs.places[self._next[runs.places] == ENDED])
        if log.isEnabledFor(logging.DEBUG):
            average = self.distances[rows][reached].mean()
            log.debug(
                "%d runs end, %d of them with another class, at %.4g on average", len(runs), reached.sum(), average
            )

    def _leave(self, rows: Tensor) -> None:
        """Tell that samples take no more gradients."""
        self.logits_of.done_with(int(self.notes["left"][rows].sum()))


class _Progress:
    """The samples of a search, one after another as they have gone through all their runs."""

    def __init__(self, search: Search[Any], checkpoint: Checkpoint | None) -> None:
        self._search, self._checkpoint = search, checkpoint

    def __len__(self) -> int:
        return len(self._search.chosen)

    def __iter__(self) -> Iterator[int]:
        seen = 0
        for finished in self._search.passes():
            yield from range(seen, finished)
            seen = finished
            if self._checkpoint is not None:
                self._checkpoint.offer(self._search.state)


def _count(runs: Runs | None) -> int:
    return 0 if runs is None else len(runs)


def _joined(runs: R | None, others: R | None) -> R | None:
    """Return two batches as one; None is one without samples."""
    if _count(runs) == 0 or _count(others) == 0:
        return others if _count(others) else runs
    assert runs is not None
    assert others is not None
    return runs.joined(others)


def _split(runs: R | None, count: int) -> tuple[R | None, R | None]:
    """Return the first so many samples, and the others."""
    if runs is None or len(runs) <= count:
        return runs, None
    rows = torch.arange(len(runs))
    return (runs.part(rows[:count]) if count else None), runs.part(rows[count:])
