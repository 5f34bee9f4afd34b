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

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_wdro._solvers.margins import Margins, cosine, standing_samples
from art_wdro._storage.arrays import Rows, parts
from art_wdro._storage.checkpoint import Progress
from art_wdro._threat.geometry import displace
from art_wdro._threat.norms import dual_exponent, per_sample, sample_norms
from art_wdro._threat.threat import Box
from art_wdro.losses import as_float

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


class LeastDistances(NamedTuple):
    """What a search found.

    :param distances: Least l_r distance found of every sample to another class, (N,), float64; 0 where the sample is
        misclassified already, inf where none was found.
    :param x: The samples at those distances, shaped as the inputs; the input itself where the distance is 0 or inf.
    :param gradients: Gradient evaluations, summed over the samples.
    """

    distances: Tensor
    x: Tensor
    gradients: int


def least_distances(
    logits_of: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    r: float,
    *,
    max_iter: int,
    batch_size: int,
    box: Box | None = None,
    mask: Tensor | None = None,
    device: torch.device | None = None,
    saved: Progress | None = None,
    progress: Callable[[Iterable[Tensor]], Iterable[Tensor]] = lambda batches: batches,
) -> LeastDistances:
    """Search the least l_r distance of every sample to a point of another class in the box.

    :param logits_of: Maps inputs (N, ...) to logits (N, K), sample by sample, differentiably.
    :param x: Inputs, (N, ...), inside the box.
    :param labels: Class indices, (N,), on the device that computes.
    :param r: Exponent of the ground norm.
    :param max_iter: Gradient evaluations a sample, at most.
    :param batch_size: Samples in one forward and backward pass.
    :param box: Bounds of the inputs, or None.
    :param mask: Where coordinates may move, boolean, (N, ...); None moves all.
    :param device: The device that computes; None is that of `x`, which may lie on the host instead.
    :param saved: Where to save what is found, and to go on from.
    :param progress: Wraps the iteration over batches, for a progress bar.
    :return: Distances, the points found, and the gradient evaluations spent. Every distance is that of a point whose
        class differs, so it bounds the least distance from above.
    """
    data = Rows(x, device or x.device).pinned()
    movable = None if mask is None else Rows(mask, data.device)
    distances = torch.zeros(len(data), dtype=torch.float64, device=data.device)
    nearest = data.clone()
    gradients = done = 0
    _, chosen = standing_samples(logits_of, data, labels, batch_size)
    earlier = None if saved is None else saved.load()
    if earlier is not None:
        done, gradients, distances = earlier["done"], earlier["gradients"], earlier["distances"].to(distances)
        chosen = earlier["chosen"].to(chosen)  # a near-tie may change sides on another machine
        nearest.fill(earlier["nearest"])

    def state() -> dict[str, Any]:
        figures = {"done": number + 1, "gradients": gradients, "distances": distances, "chosen": chosen}
        return figures | {"nearest": nearest.whole()}

    for number, rows in enumerate(progress([chosen[part] for part in parts(len(chosen), batch_size)])):
        if number < done:
            continue
        search = Search(logits_of, data[rows], labels[rows], r, box, None if movable is None else movable[rows])
        search.run(max_iter)
        distances[rows], nearest[rows] = search.distances(), search.nearest
        gradients += search.gradients
        if saved is not None:
            saved.offer(state)
    return LeastDistances(distances, nearest.whole(), gradients)


class Search(Margins):
    """The search for one batch of samples."""

    shrink = FIRST_CHANGE, FIRST_CHANGE
    """Most by which a radius shrinks in a step, relative to it, falling along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reach = sample_norms(torch.maximum(-self.lower, self.upper), self.r)
        self.radius = torch.full((len(self.x),), torch.inf, dtype=torch.float64, device=self.x.device)
        self.nearest = self.x.clone()

    def distances(self) -> Tensor:
        """Return the least distances, (N,), from the points themselves in float64."""
        exact = sample_norms(self.nearest.double() - self.x.double(), self.r)
        return torch.where(torch.isfinite(self.radius), exact, torch.inf)

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
        for step in range(steps):
            left = cosine(step, steps)
            length = LAST_STEP + (FIRST_STEP - LAST_STEP) * left
            change = LAST_CHANGE + (FIRST_CHANGE - LAST_CHANGE) * left
            shrink = self.shrink[1] + (self.shrink[0] - self.shrink[1]) * left
            margin, gradient = self._evaluate(point, target)
            delta = point - x
            norm = sample_norms(delta, self.r)
            slope = sample_norms(gradient, dual_exponent(self.r))
            newton = torch.where(slope > 0, norm - margin / slope, norm).nan_to_num()
            shorter = torch.maximum(newton, norm * (1 - shrink))
            longer = torch.maximum(newton, norm * (1 + change))
            radius = torch.minimum(torch.where(margin > 0, shorter, longer), self.radius * (1 - change))
            radius = torch.minimum(radius, self.reach)
            moved = self.project(delta + self.direction(gradient) * per_sample(length * radius, x), radius)
            if step > 0:
                moved = self.project(delta + (1 - INERTIA) * (moved - delta) + INERTIA * velocity, radius)
            velocity = moved - delta
            point = displace(x, moved).clamp(*self.box)
        with torch.no_grad():
            self._offer(point, as_float(self.logits_of(point)))

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
