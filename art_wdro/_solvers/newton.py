# SPDX-License-Identifier: MIT
"""Least distances: for every sample the smallest l_r perturbation found that changes its class.

Each sample is searched for on its own. A run ascends the margin towards one class inside a ball whose radius
follows Newton's rule for the root of phi(radius) = max margin in the ball, with phi' = ||grad margin||_s: too short a
radius grows by what the linear model lacks, too long a one shrinks. Runs follow one another, and the nearest point of
all is kept: towards the class that is nearest to first order, towards whichever class leads at each step, from
elsewhere, and towards the next nearest classes. Elsewhere is where the way to the nearest sample of another
class leaves the class, or a random point in the ball found so far; where gradients vanish nothing else helps. A
sample leaves when no further run is worthwhile for it. The order and the lengths of the runs do not depend on the
gradients allowed, so that more of them never give a longer distance. Random points come from the number of the run
alone: no sample depends on its batch, but it does on the samples of other classes that are in the data set.

Sources: the radius that adapts around the boundary is that of Pintor et al., FMN, 2021, arXiv:2102.12827; choosing the
class by margin over dual norm that of Croce, Hein, FAB, 2020, arXiv:1907.02044; the step with inertia that of Croce,
Hein, Auto-PGD, 2020, arXiv:2003.01690.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from art_wdro._solvers.batches import Bar, Found, LogitsOf, Samples, owning, search_in_batches, silent
from art_wdro._solvers.margins import HALVINGS, Margins, cosine
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._threat.geometry import displace
from art_wdro._threat.norms import dual_exponent, per_sample, sample_norms
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
FIRST_STEP, LAST_STEP = 1.0, 0.01
"""Length of a step in radii of the ball, falling along a cosine."""
FIRST_CHANGE, LAST_CHANGE = 0.05, 0.001
"""Least relative change of the radius in a step, falling along a cosine."""
INERTIA = 0.25
NEAR = 0.1
"""By how much steps are shorter from a start that is thought to be near a border."""
PATIENCE = 2
"""Runs from elsewhere without a gain after which a sample leaves."""
RUNS_BEFORE = 2
"""Of those runs that come before a third class is searched."""
GAIN = 1e-3
"""Relative gain below which a run has brought nothing."""
OTHERS = 1
"""Nearest samples of other classes to begin at."""
RANDOM_NUMBERS = 1024
"""Random numbers for one start: the fewer coordinates, the more points, since in many coordinates they hit nothing."""
WORTHWHILE = 2.0
"""A further class is searched where its distance to first order is below so many times the distance found."""


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
    :param bar: Wraps the iteration over batches, for a progress bar.
    :return: Distances, (N,), in input units, the points found, and the gradient evaluations spent. Every distance is
        that of a point whose class differs, so it bounds the least distance from above.

    A line through two classes, whose border lies at 0.5 on the way from 0 to 1:

    >>> found = least_distances(lambda x: torch.cat([-x, x - 1], 1), torch.tensor([[0.2]]), torch.tensor([0]))
    >>> round(found.distances.item(), 3), round(found.points.item(), 3)
    (0.3, 0.5)
    """
    samples = Samples(x, labels, as_box(box, labels.device), mask, batch_size)

    def search(*batch: Any) -> Found:
        *fields, others = batch
        own = Search(*fields)
        own.others = others
        own.run(max_iter)
        return own.found(own.nearest, torch.isfinite(own.radius))

    return search_in_batches(search, owning(logits_of), samples, r, others=OTHERS, checkpoint=checkpoint, bar=bar)


class Search(Margins):
    """The search for one batch of samples."""

    shrink = FIRST_CHANGE, FIRST_CHANGE
    """Most by which a radius shrinks in a step, relative to it, falling along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reach = sample_norms(torch.maximum(-self.lower, self.upper), self.r)
        self.radius = torch.full((len(self.x),), torch.inf, dtype=torch.float64, device=self.x.device)
        self.nearest = self.x.clone()
        self.others: list[Tensor] = []

    def run(self, max_iter: int) -> None:
        """Spend at most `max_iter` gradient evaluations on each sample, a larger number in going on after a smaller."""
        for point in self.others:
            self._offer(point, self.logits_at(point))
        first, budget = None, max_iter
        others = self.logits_at(self.x).shape[1] - 1
        if others > 1:
            _, few, _ = self.nearest_classes(min(FEW_CLASSES, max_iter))
            first, budget = few[:, 0], max_iter - few.shape[1]
        self.descend(first, FIRST_RUN, most=budget)
        budget -= FIRST_RUN + min(CLASSES, others)
        if budget <= 0:
            return
        leading, classes, estimates = self.nearest_classes(CLASSES)
        # where the first run was along the same class, the second goes on from what it found
        again = torch.ones_like(leading, dtype=torch.bool) if first is None else first == classes[:, 0]
        known = again & torch.isfinite(self.radius)
        start = torch.where(per_sample(known, self.x) > 0, self.nearest, self.x)
        self.descend(classes[:, 0], SECOND_RUN, start, torch.where(known, NEAR, 1.0), most=budget)
        left = torch.full_like(self.labels, budget - SECOND_RUN)
        idle = torch.zeros_like(left)
        # where the leading class is the nearest one anyway, a run along it would only repeat the others
        self._along(leading != classes[:, 0], None, left)
        for column in range(1, classes.shape[1]):
            self._along(estimates[:, column] < WORTHWHILE * self.radius, classes[:, column], left)
            if column == 1:
                self._from_elsewhere(range(RUNS_BEFORE), idle, left)
        self._from_elsewhere(itertools.count(RUNS_BEFORE if classes.shape[1] > 1 else 0), idle, left)

    def _along(self, chosen: Tensor, target: Tensor | None, left: Tensor) -> None:
        """Search along a class for the chosen samples that can afford the whole run, and count it."""
        rows = (chosen & (left >= STEPS_OF_A_RUN)).nonzero()[:, 0]
        if len(rows) == 0:
            return
        part = self.part(rows)
        part.descend(None if target is None else target[rows], STEPS_OF_A_RUN)
        self._keep(rows, part)
        left[rows] -= STEPS_OF_A_RUN

    def _from_elsewhere(self, numbers: Iterable[int], idle: Tensor, left: Tensor) -> None:
        """Search along the leading class from other starts, until they bring nothing any more.

        :param numbers: Of the runs, the first of which begins at other samples.
        :param idle: Runs of a sample since the last one that brought something, (N,), counted on.
        :param left: Gradient evaluations that each sample can afford, (N,), counted down.
        """
        for number in numbers:
            rows = ((idle < PATIENCE) & (left >= STEPS_FROM_ELSEWHERE)).nonzero()[:, 0]
            if len(rows) == 0:
                break
            part = self.part(rows)
            start = part.random_start(number)
            if number == 0:
                start = part.start_beside_others(start)
            part.descend(None, STEPS_FROM_ELSEWHERE, start, NEAR)
            gained = part.radius < self.radius[rows] * (1 - GAIN)
            idle[rows] = torch.where(gained, 0, idle[rows] + 1)
            self._keep(rows, part)
            left[rows] -= STEPS_FROM_ELSEWHERE

    def part(self, rows: Tensor) -> Search:
        """Return the same for some of the samples, with what was found of them."""
        part = super().part(rows)
        part.others = [point[rows] for point in self.others]
        part.radius, part.nearest = self.radius[rows], self.nearest[rows]
        return part

    def _keep(self, rows: Tensor, part: Search) -> None:
        """Take over what a search for some of the samples found."""
        self.radius[rows], self.nearest[rows] = part.radius, part.nearest
        self.gradients += part.gradients

    def start_beside_others(self, start: Tensor) -> Tensor:
        """Return where the way to another sample leaves the class, if that is worthwhile, and else the start given."""
        shortest = WORTHWHILE * self.radius
        for other in self.others:
            inside, outside = self.x, other
            for _ in range(HALVINGS):
                middle = (inside + outside) / 2
                beyond = per_sample(self._is_beyond(middle), middle) > 0
                inside, outside = torch.where(beyond, inside, middle), torch.where(beyond, middle, outside)
            norm = sample_norms(outside - self.x, self.r)
            nearer = self._is_beyond(outside) & (norm < shortest)
            shortest = torch.where(nearer, norm, shortest)
            start = torch.where(per_sample(nearer, start) > 0, outside, start)
        return start

    def random_start(self, number: int) -> Tensor:
        """Return the point of the largest margin among random ones in the ball found so far, or in reach.

        The points are drawn from the number of the run alone, and the same for every sample.
        """
        radius = torch.minimum(self.radius, self.reach).nan_to_num(posinf=0.0)
        best, largest = self.x, torch.full_like(radius, -torch.inf)
        shape = self.x.shape[1:]
        generator = torch.Generator().manual_seed(number)
        noise = torch.rand(max(1, RANDOM_NUMBERS // max(1, shape.numel())), *shape, generator=generator)
        for one in (2 * noise - 1).to(self.x):
            delta = one * per_sample(radius, self.x)
            point = displace(self.x, self.project(delta, radius)).clamp(*self.box)
            logits = self.logits_at(point)
            self._offer(point, logits)
            margin = self.excess(logits)[0].double()
            better = margin > largest
            best = torch.where(per_sample(better, point) > 0, point, best)
            largest = torch.where(better, margin, largest)
        return best

    def _is_beyond(self, point: Tensor) -> Tensor:
        """Tell where a point has another class, and keep it if it is nearer than what was found."""
        logits = self.logits_at(point)
        excess, certain = self.excess(logits)
        self._offer(point, logits)
        return excess > certain

    def descend(
        self,
        target: Tensor | None,
        steps: int,
        start: Tensor | None = None,
        scale: Tensor | float = 1.0,
        most: int | None = None,
    ) -> None:
        """Search along one class, or along the leading one, from the samples themselves.

        :param target: The class, (N,), or None.
        :param steps: Steps of the whole run, a gradient evaluation a sample each.
        :param start: Points to begin at in place of the samples, shaped as these.
        :param scale: What the lengths of steps are multiplied by, a number or one a sample.
        :param most: Steps after which the run is broken off; None lets it end.
        """
        x = self.x
        point = x if start is None else start
        velocity = torch.zeros_like(x)
        inside, outside = torch.zeros_like(self.reach), torch.full_like(self.reach, torch.inf)
        for step in range(steps if most is None else min(most, steps)):
            left = cosine(step, steps)
            length = LAST_STEP + (FIRST_STEP - LAST_STEP) * left
            change = LAST_CHANGE + (FIRST_CHANGE - LAST_CHANGE) * left
            shrink = self.shrink[1] + (self.shrink[0] - self.shrink[1]) * left
            margin, gradient = self._evaluate(point, target)
            delta = point - x
            norm = sample_norms(delta, self.r)
            slope = sample_norms(gradient, dual_exponent(self.r))
            # a margin that is NaN is no flip: the radius is halved between the last one that was a number and the first
            # that was not
            lost = margin.isnan()
            inside = torch.where(lost, inside, torch.maximum(inside, norm))
            outside = torch.where(lost, torch.minimum(outside, norm), outside)
            inside = torch.minimum(inside, outside)
            newton = torch.where(slope > 0, norm - margin / slope, norm).nan_to_num()
            shorter = torch.maximum(newton, norm * (1 - shrink))
            longer = torch.maximum(newton, norm * (1 + change))
            radius = torch.minimum(torch.where(margin > 0, shorter, longer), self.radius * (1 - change))
            radius = torch.minimum(radius, torch.where(torch.isinf(outside), self.reach, (inside + outside) / 2))
            moved = self.project(delta + self.direction(gradient) * per_sample(length * scale * radius, x), radius)
            if step > 0:
                moved = self.project(delta + (1 - INERTIA) * (moved - delta) + INERTIA * velocity, radius)
            velocity = moved - delta
            point = displace(x, moved).clamp(*self.box)
        self._offer(point, self.logits_at(point))

    def _evaluate(self, point: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return how far the margin towards the target exceeds what counts, and its usable gradient; offer `point`."""
        logits, margin, gradient = self.evaluate(point, target)
        return margin.double() - 2 * self._offer(point, logits), gradient

    def _offer(self, point: Tensor, logits: Tensor) -> Tensor:
        """Keep the points of another class that are nearer than those found; return the margin that counts as one."""
        excess, certain = self.excess(logits)
        norm = sample_norms(point - self.x, self.r)
        nearer = (excess > certain) & (norm < self.radius)
        self.radius = torch.where(nearer, norm, self.radius)
        self.nearest = torch.where(per_sample(nearer, point) > 0, point, self.nearest)
        return certain.double()
