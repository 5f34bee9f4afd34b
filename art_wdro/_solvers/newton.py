# SPDX-License-Identifier: MIT
"""Least distances: for every sample the smallest l_r perturbation found that changes its class.

Each sample is searched for on its own. A run ascends the margin towards one class inside a ball whose radius
follows Newton's rule for the root of phi(radius) = max margin in the ball, with phi' = ||grad margin||_s: too short a
radius grows by what the linear model lacks, too long a one shrinks. Several runs share the gradient evaluations: the
first towards the class that is nearest to first order, which on robust networks is the one that matters, the second
towards whichever class leads at each step unless that would repeat the first, the rest towards the next nearest. A
sample leaves when no further run is worthwhile for it. Nothing is random, and no sample depends on its batch.

Sources: the radius that adapts around the boundary is that of Pintor et al., FMN, 2021, arXiv:2102.12827; choosing the
class by margin over dual norm that of Croce, Hein, FAB, 2020, arXiv:1907.02044; the step with inertia that of Croce,
Hein, Auto-PGD, 2020, arXiv:2003.01690.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from art_wdro._solvers.batches import Bar, Found, LogitsOf, Samples, owning, search_in_batches, silent
from art_wdro._solvers.margins import Margins, cosine
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._threat.geometry import displace
from art_wdro._threat.norms import dual_exponent, per_sample, sample_norms
from art_wdro._threat.threat import as_box

STEPS_OF_A_RUN = 45
CLASSES = 9
"""Most classes that are compared to first order; further ones rarely are the nearest."""
FIRST_STEP, LAST_STEP = 1.0, 0.01
"""Length of a step in radii of the ball, falling along a cosine."""
FIRST_CHANGE, LAST_CHANGE = 0.05, 0.001
"""Least relative change of the radius in a step, falling along a cosine."""
INERTIA = 0.25
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
        own = Search(*batch)
        own.run(max_iter)
        return own.found(own.nearest, torch.isfinite(own.radius))

    return search_in_batches(search, owning(logits_of), samples, r, checkpoint=checkpoint, bar=bar)


class Search(Margins):
    """The search for one batch of samples."""

    shrink = FIRST_CHANGE, FIRST_CHANGE
    """Most by which a radius shrinks in a step, relative to it, falling along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reach = sample_norms(torch.maximum(-self.lower, self.upper), self.r)
        self.radius = torch.full((len(self.x),), torch.inf, dtype=torch.float64, device=self.x.device)
        self.nearest = self.x.clone()

    def run(self, max_iter: int) -> None:
        """Spend at most `max_iter` gradient evaluations on each sample."""
        count = min(CLASSES, max_iter // 10)
        if count < 2:
            self.descend(None, max_iter)
            return
        leading, classes, estimates = self.nearest_classes(count)
        left = max_iter - classes.shape[1]
        runs = min(max(1, round(left / STEPS_OF_A_RUN)), classes.shape[1] + 1) if classes.shape[1] > 1 else 1
        # where the leading class is the nearest one anyway, a run along it would only repeat the first
        same = leading == classes[:, 0]
        for number in range(runs):
            steps = left // runs + (number < left % runs)
            if number == 0:
                self.descend(classes[:, 0], steps)
                continue
            if number == 1:
                self._among(~same, None, steps)
            for group, column in ((same, number), (~same, number - 1)):
                if 0 < column < classes.shape[1]:
                    worthwhile = estimates[:, column] < WORTHWHILE * self.radius
                    self._among(group & worthwhile, classes[:, column], steps)

    def _among(self, chosen: Tensor, target: Tensor | None, steps: int) -> None:
        """Search on for the chosen samples; the others are done."""
        rows = chosen.nonzero()[:, 0]
        if len(rows) == 0:
            return
        part = self.part(rows)
        part.radius, part.nearest = self.radius[rows], self.nearest[rows]
        part.descend(None if target is None else target[rows], steps)
        self.radius[rows], self.nearest[rows] = part.radius, part.nearest
        self.gradients += part.gradients

    def descend(self, target: Tensor | None, steps: int) -> None:
        """Search along one class, or along the leading one, from the samples themselves."""
        x = self.x
        point = x
        velocity = torch.zeros_like(x)
        inside, outside = torch.zeros_like(self.reach), torch.full_like(self.reach, torch.inf)
        for step in range(steps):
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
            moved = self.project(delta + self.direction(gradient) * per_sample(length * radius, x), radius)
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
