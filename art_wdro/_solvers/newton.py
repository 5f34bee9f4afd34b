# SPDX-License-Identifier: MIT
"""Least distances: for every sample the smallest l_r perturbation found that changes its class.

Each sample is searched for on its own. A run ascends the margin towards one class inside a ball whose radius follows
Newton's rule for the root of phi(radius) = max margin in the ball, with phi' = ||grad margin||_s: too short a radius
grows by what the linear model lacks, too long a one shrinks (`runs.py`). Runs follow one another, and the nearest
point of all is kept: towards the class that is nearest to first order, under l_1 and l_2 from the end of a short run
under l_inf, towards whichever class leads at each step, from elsewhere, and towards the next nearest classes. A run
under l_inf moves every coordinate, however small its slope: where gradients mislead, it comes to another class from a
side to which the slopes do not point. Elsewhere is where the way to the nearest sample of another class leaves the
class, or a random point in the ball found so far; where gradients vanish nothing else helps. A sample leaves when no
further run is worthwhile for it. The order and the lengths of the runs do not depend on the gradients allowed, and
the last one is broken off where they end, or not begun if it would be over before half of it, so that more of them
never give a longer distance. Random points come from the number of the run alone: no sample depends on its batch, but
it does on the samples of other classes that are in the data set.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_wdro._solvers.batches import Bar, Found, Pool, Samples, silent
from art_wdro._solvers.passes import LogitsOf
from art_wdro._solvers.runs import NEAR, NewtonRuns
from art_wdro._solvers.search import ENDED, Search
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._threat.norms import per_sample
from art_wdro._threat.threat import as_box

FIRST_RUN, SECOND_RUN = 18, 16
"""Steps along the nearest class to first order, of those few and of all."""
STEPS_OF_A_RUN = 50
"""Steps along each further class."""
STEPS_FROM_ELSEWHERE = 25
"""Steps from a start other than the sample."""
CLASSES = 9
"""Most classes that are compared to first order; further ones rarely are the nearest."""
FEW_CLASSES = 2
"""Those of them that are compared before the first run."""
DENSE_BEFORE, STEPS_AFTER = 10, 40
"""Steps under l_inf to a point that has moved everywhere, and those that go on from it."""
LONG_DENSE_BEFORE, LONG_STEPS_AFTER = 25, 100
"""The same of such runs that come after all others, in turn with those from elsewhere."""
PATIENCE = 2
"""Runs from elsewhere without a gain after which a sample leaves."""
USUAL = 300
"""Gradients a sample from which on all that are allowed go to further such runs, however fruitless they are."""
RUNS_BEFORE = 2
"""Of those runs that come before a third class is searched."""
AFAR = 0.5
"""By how much steps are shorter from a start elsewhere, which may be near a border or not."""
GAIN = 1e-3
"""Relative gain below which a run has brought nothing."""
OTHERS = 1
"""Nearest samples of other classes to begin at."""
WORTHWHILE = 2.0
"""A further class is searched where its distance to first order is below so many times the distance found."""
FIRST, SECOND, FURTHER = 0, 1, 2
"""Numbers of the runs."""


def least_distances(
    logits_of: LogitsOf,
    x: Tensor,
    labels: Tensor,
    *,
    r: float = math.inf,
    max_iter: int = 300,
    box: tuple[Any, Any] | None = (0.0, 1.0),
    mask: Tensor | None = None,
    batch_size: int = 128,
    checkpoint: Checkpoint | None = None,
    bar: Bar[Tensor] = silent,
) -> Found:
    """Search the least l_r distance of every sample to a point of another class in the box.

    :param logits_of: Maps inputs (N, ...) to logits (N, K), sample by sample, differentiably.
    :param x: Inputs, (N, ...), inside the box, on the device that computes or on the host.
    :param labels: Class indices, (N,), on the device that computes.
    :param r: Exponent of the ground norm: 1, 2 or inf.
    :param max_iter: Gradient evaluations a sample, at most.
    :param box: Lower and upper bounds of the inputs, in input units; None sets none.
    :param mask: Where coordinates may move, boolean, (N, ...); None moves all.
    :param batch_size: Samples in one forward and backward pass.
    :param checkpoint: Where to save what is found, and to go on from.
    :param bar: Wraps an iteration over the samples that are searched for, for a progress bar.
    :return: Distances, (N,), in input units, the points found, and the gradient evaluations spent. Every distance is
        that of a point whose class differs, so it bounds the least distance from above.

    A line through two classes, whose border lies at 0.5 on the way from 0 to 1:

    >>> found = least_distances(lambda x: torch.cat([-x, x - 1], 1), torch.tensor([[0.2]]), torch.tensor([0]))
    >>> round(found.distances.item(), 3), round(found.points.item(), 3)
    (0.3, 0.5)
    """
    samples = Samples(x, labels, as_box(box, labels.device), mask, batch_size)
    return _Newton(logits_of, samples, r, max_iter).run(checkpoint, bar)


class _Further(NamedTuple):
    """A run that is taken where it is worthwhile.

    :param steps: Its gradient evaluations a sample.
    :param column: Which of the classes in order it goes along; 0 is whichever leads. None for one from elsewhere.
    :param start: Number of the start elsewhere.
    :param dense: Steps under l_inf that are taken first, to a point at which it begins.
    """

    steps: int
    column: int | None = None
    start: int = 0
    dense: int = 0

    @property
    def doubtful(self) -> bool:
        """Tell whether a few fruitless ones of its kind are enough."""
        return self.column is None or self.dense == LONG_DENSE_BEFORE


def further_runs(columns: int, max_iter: int, r: float) -> list[_Further]:
    """Return the runs after the first two in order, more of them than the gradients allow.

    :param columns: Classes that are compared to first order.
    :param max_iter: Gradient evaluations a sample, at most.
    :param r: Exponent of the ground norm.
    """
    along = [_Further(STEPS_OF_A_RUN, column) for column in range(columns)]
    elsewhere = [_Further(STEPS_FROM_ELSEWHERE, None, n) for n in range(RUNS_BEFORE + max_iter // STEPS_FROM_ELSEWHERE)]
    first, later = [], elsewhere[RUNS_BEFORE:]
    if math.isfinite(r) and columns:
        first = [_Further(STEPS_AFTER, 0, dense=DENSE_BEFORE)]
        later = [
            run
            for n, other in enumerate(later)
            for run in (_Further(LONG_STEPS_AFTER, n % columns, dense=LONG_DENSE_BEFORE), other)
        ]
    return first + along[:2] + elsewhere[:RUNS_BEFORE] + along[2:] + later


class _Newton(Search[NewtonRuns]):
    """Which runs every sample goes through.

    Notes: `left`; `idle`, a sample's runs from elsewhere since the last one that brought something; `others`, its
    nearest samples of other classes in the pool; `first`, the class of its first run; and from the second run on
    `classes` in order of their `estimates`, and `leads`, whether another class than the first of these has the largest
    logit.
    """

    def __init__(self, logits_of: LogitsOf, samples: Samples, r: float, max_iter: int) -> None:
        super().__init__(logits_of, samples, r)
        self._pool = self._samples_of_others()
        others, count = max(0, self.classes - 1), len(self.data)
        self._columns = min(CLASSES, others)
        self._few = min(FEW_CLASSES, others, max_iter) if others > 1 else 0
        self._patience = PATIENCE + max(0, max_iter - USUAL) // STEPS_FROM_ELSEWHERE
        self._further = further_runs(self._columns, max_iter, r)
        costs = [self._few + FIRST_RUN, self._columns + SECOND_RUN, *(run.dense + run.steps for run in self._further)]
        self._costs = torch.tensor(costs)
        self.notes = {
            "left": torch.full((count,), max_iter),
            "idle": torch.zeros(count, dtype=torch.int64),
            "others": torch.full((count, min(OTHERS, len(self._pool.labels))), -1),
            "first": torch.zeros(count, dtype=torch.int64),
            "leads": torch.zeros(count, dtype=torch.bool),
            "classes": torch.zeros(count, self._columns, dtype=torch.int64),
            "estimates": torch.zeros(count, self._columns, dtype=torch.float64),
        }

    def set_state(self, saved: dict[str, Any]) -> None:
        """Go on from what was saved; the others are the samples that were searched for then."""
        super().set_state(saved)
        self._pool = self._samples_of_others()

    def batch(self, rows: Tensor) -> NewtonRuns:
        """Return samples with the nearest points found so far."""
        runs = self.samples_at(NewtonRuns, rows)
        there = rows.to(self.data.device)
        found = self.distances[there]
        runs.radius, runs.nearest = torch.where(found > 0, found, torch.inf), self.points[there]
        return runs

    def begin(self, number: int, rows: Tensor) -> NewtonRuns:
        """Return samples at the beginning of a run."""
        runs = self.batch(rows)
        left = self.notes["left"][rows]
        if number == FIRST:
            self._begin_first(runs, left)
        elif number == SECOND:
            self._begin_second(runs, left)
        else:
            steps, column, start, dense = self._further[number - FURTHER]
            target = self._noted("classes", runs)[:, column] if column else None
            if dense:
                # on the l_1 ball found before, the largest coordinates are left of the start: sparse, and near a border
                begin, afresh = runs.moved_everywhere(dense, target), self.r != 1.0
                runs.set_out(number, steps, target, begin, AFAR, left - dense, afresh)
            elif column is None:
                runs.set_out(number, steps, None, self._elsewhere(runs, start), AFAR, left)
            else:
                runs.set_out(number, steps, target, most=left)
        return runs

    def end(self, runs: NewtonRuns) -> tuple[Tensor, Tensor, Tensor]:
        """Take over what runs found, and choose the next ones."""
        runs.finish()
        rows, number = runs.places, runs.number
        self.notes["left"][rows] -= self._costs[number]
        elsewhere = torch.tensor([False, False, *(run.doubtful for run in self._further)])[number]
        gained = (runs.radius < runs.before * (1 - GAIN)).cpu()
        idle = self.notes["idle"][rows] + elsewhere.long()
        self.notes["idle"][rows] = torch.where(elsewhere & gained, 0, idle)
        return runs.nearest, torch.isfinite(runs.radius), self._following(rows, number, runs.radius.cpu())

    def _samples_of_others(self) -> Pool:
        return Pool.of(self.data, self.samples.labels, self.chosen, OTHERS)

    def _begin_first(self, runs: NewtonRuns, left: Tensor) -> None:
        """Go along the class that is nearest among few; points of other classes are known from other samples."""
        if self.notes["others"].shape[1]:
            self.notes["others"][runs.places] = self._pool.nearest(runs.x, runs.labels, self.r).cpu()
        for point in self._others(runs):
            runs.offer(point, runs.logits_at(point))
        target = None
        if self._few:
            target = runs.nearest_classes(self._few)[1][:, 0]
            self.notes["first"][runs.places] = target.cpu()
        runs.set_out(FIRST, FIRST_RUN, target, most=left - self._few)

    def _begin_second(self, runs: NewtonRuns, left: Tensor) -> None:
        """Go along the class that is nearest among all."""
        leading, classes, estimates = runs.nearest_classes(self._columns)
        nearest = classes[:, 0]
        for name, values in (("leads", leading != nearest), ("classes", classes), ("estimates", estimates)):
            self.notes[name][runs.places] = values.cpu()
        # where the first run was along the same class, the second goes on from what it found
        again = self._noted("first", runs) == nearest if self._few else torch.ones_like(nearest, dtype=torch.bool)
        known = again & torch.isfinite(runs.radius)
        start = torch.where(per_sample(known, runs.x) > 0, runs.nearest, runs.x)
        most = left - self._columns
        runs.set_out(SECOND, SECOND_RUN, nearest, start, torch.where(known, NEAR, 1.0).double(), most)

    def _elsewhere(self, runs: NewtonRuns, number: int) -> Tensor:
        """Return where runs from elsewhere begin, the first of them on the way to other samples."""
        start = runs.random_start(number)
        return runs.beside_others(start, self._others(runs)) if number == 0 else start

    def _others(self, runs: NewtonRuns) -> list[Tensor]:
        return self._pool.at(self._noted("others", runs), runs.x, runs.mask)

    def _noted(self, name: str, runs: NewtonRuns) -> Tensor:
        return self.notes[name][runs.places].to(runs.x.device)

    def _following(self, rows: Tensor, number: Tensor, radius: Tensor) -> Tensor:
        """Return which run comes next, (n,): the first further one that a sample can afford and that may bring more."""
        left, idle = self.notes["left"][rows], self.notes["idle"][rows]
        leads, estimates = self.notes["leads"][rows], self.notes["estimates"][rows]
        following = torch.where((number == FIRST) & (left > self._columns), SECOND, ENDED)
        for next_one, run in enumerate(self._further, FURTHER):
            wanted = (number >= SECOND) & (number < next_one) & (following == ENDED)
            if run.doubtful:
                wanted &= idle < self._patience
            if run.column:
                wanted &= estimates[:, run.column] < WORTHWHILE * radius
            elif run.column == 0 and not run.dense:
                wanted &= leads
            following = torch.where(wanted, next_one, following)
        # a later run in its place would begin at other points than after it
        scarce = (following >= FURTHER) & (2 * left < self._costs[following.clamp(min=0)])
        return torch.where(scarce, ENDED, following)
