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
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_wdro._checkpoint import Progress
from art_wdro._geometry import (
    displace,
    dual_exponent,
    movable_coordinates,
    per_sample,
    project_in_box,
    sample_direction,
    sample_norms,
)
from art_wdro._iterate import Box
from art_wdro._losses import as_float
from art_wdro._rows import Rows, parts, staged

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
CERTAIN = 3e-6
"""Margin, relative to the two logits compared, from which a class counts as changed.

Predictions in other batches then agree. It is some 25 units in the last place of float32, and Newton's rule aims at
twice as much.
"""


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
    with torch.no_grad():
        standing = torch.zeros_like(labels, dtype=torch.bool)
        for rows, points in staged(parts(len(data), batch_size), data):
            standing[rows] = logits_of(points).argmax(1) == labels[rows]
    distances = torch.zeros(len(data), dtype=torch.float64, device=data.device)
    nearest = data.clone()
    gradients = done = 0
    chosen = standing.nonzero()[:, 0]
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
        search = _Search(logits_of, data[rows], labels[rows], r, box, None if movable is None else movable[rows])
        search.run(max_iter)
        distances[rows], nearest[rows] = search.distances(), search.nearest
        gradients += search.gradients
        if saved is not None:
            saved.offer(state)
    return LeastDistances(distances, nearest.whole(), gradients)


class _Search:
    """The search for one batch of samples, none of them misclassified."""

    def __init__(
        self,
        logits_of: Callable[[Tensor], Tensor],
        x: Tensor,
        labels: Tensor,
        r: float,
        box: Box | None,
        mask: Tensor | None,
    ) -> None:
        self.logits_of, self.x, self.labels, self.r, self.mask = logits_of, x, labels[:, None], r, mask
        lower, upper = (x.new_full((), -torch.inf), x.new_full((), torch.inf)) if box is None else box
        self.box = lower, upper
        self.lower, self.upper = (lower - x).clamp(max=0.0), (upper - x).clamp(min=0.0)
        self.reach = sample_norms(torch.maximum(-self.lower, self.upper), r)
        self.radius = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.nearest = x.clone()
        self.gradients = 0

    def distances(self) -> Tensor:
        """Return the least distances, (N,), from the points themselves in float64."""
        exact = sample_norms(self.nearest.double() - self.x.double(), self.r)
        return torch.where(torch.isfinite(self.radius), exact, torch.inf)

    def run(self, max_iter: int) -> None:
        """Spend at most `max_iter` gradient evaluations on each sample."""
        count = min(CLASSES, max_iter // 10)
        if count < 2:
            self._descend(None, max_iter)
            return
        leading, classes, estimates = self._nearest_classes(count)
        left = max_iter - classes.shape[1]
        runs = min(max(1, round(left / STEPS_OF_A_RUN)), classes.shape[1] + 1) if classes.shape[1] > 1 else 1
        # where the leading class is the nearest one anyway, a run along it would only repeat the first
        same = leading == classes[:, 0]
        for number in range(runs):
            steps = left // runs + (number < left % runs)
            if number == 0:
                self._descend(classes[:, 0], steps)
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
        mask = None if self.mask is None else self.mask[rows]
        part = _Search(self.logits_of, self.x[rows], self.labels[rows, 0], self.r, self.box, mask)
        part.radius, part.nearest = self.radius[rows], self.nearest[rows]
        part._descend(None if target is None else target[rows], steps)
        self.radius[rows], self.nearest[rows] = part.radius, part.nearest
        self.gradients += part.gradients

    def _nearest_classes(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Order the classes with the largest logits by distance to first order, margin over dual norm.

        :return: The class with the largest logit, (N,), the classes in order, (N, count), and their estimates.
        """
        x = self.x.detach().requires_grad_()
        with torch.enable_grad():
            differences = self._differences(as_float(self.logits_of(x)))
            classes = differences.detach().topk(min(count, differences.shape[1] - 1), dim=1).indices
            found = []
            for column in range(classes.shape[1]):
                margin = differences.gather(1, classes[:, column : column + 1])[:, 0]
                (gradient,) = torch.autograd.grad(margin.sum(), x, retain_graph=True)
                gradient = self._usable(gradient, self.x)
                slope = sample_norms(gradient, dual_exponent(self.r))
                found.append(torch.where(slope > 0, -margin.detach() / slope, torch.inf))
        self.gradients += classes.numel()
        estimates, order = torch.stack(found, 1).sort(dim=1, stable=True)
        return classes[:, 0], classes.gather(1, order), estimates

    def _descend(self, target: Tensor | None, steps: int) -> None:
        """Search along one class, or along the leading one, from the samples themselves."""
        x = self.x
        point = x
        velocity = torch.zeros_like(x)
        for step in range(steps):
            cosine = (1 + math.cos(math.pi * step / steps)) / 2
            length = LAST_STEP + (FIRST_STEP - LAST_STEP) * cosine
            change = LAST_CHANGE + (FIRST_CHANGE - LAST_CHANGE) * cosine
            margin, gradient = self._evaluate(point, target)
            delta = point - x
            norm = sample_norms(delta, self.r)
            slope = sample_norms(gradient, dual_exponent(self.r))
            newton = torch.where(slope > 0, norm - margin / slope, norm).nan_to_num()
            shorter = torch.maximum(newton, norm * (1 - FIRST_CHANGE))
            longer = torch.maximum(newton, norm * (1 + change))
            radius = torch.minimum(torch.where(margin > 0, shorter, longer), self.radius * (1 - change))
            radius = torch.minimum(radius, self.reach)
            moved = self._project(delta + self._direction(gradient) * per_sample(length * radius, x), radius)
            if step > 0:
                moved = self._project(delta + (1 - INERTIA) * (moved - delta) + INERTIA * velocity, radius)
            velocity = moved - delta
            point = displace(x, moved).clamp(*self.box)
        with torch.no_grad():
            self._offer(point, as_float(self.logits_of(point)))

    def _evaluate(self, point: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return how far the margin towards the target exceeds what counts, and its usable gradient; offer `point`."""
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            logits = as_float(self.logits_of(point))
            differences = self._differences(logits)
            margin = differences.amax(1) if target is None else differences.gather(1, target[:, None])[:, 0]
            if not margin.requires_grad:
                raise ValueError("the classifier's logits do not depend differentiably on x")
            (gradient,) = torch.autograd.grad(margin.sum(), point)
        self.gradients += len(point)
        point = point.detach()
        certain = self._offer(point, logits.detach())
        return margin.detach().double() - 2 * certain, self._usable(gradient, point)

    def _offer(self, point: Tensor, logits: Tensor) -> Tensor:
        """Keep the points of another class that are nearer than those found; return the margin that counts as one."""
        own = logits.gather(1, self.labels)[:, 0]
        other = logits.scatter(1, self.labels, -torch.inf).amax(1)
        certain = CERTAIN * torch.maximum(own.abs(), other.abs())
        norm = sample_norms(point - self.x, self.r)
        nearer = (other - own > certain) & (norm < self.radius)
        self.radius = torch.where(nearer, norm, self.radius)
        self.nearest = torch.where(per_sample(nearer, point) > 0, point, self.nearest)
        return certain.double()

    def _usable(self, gradient: Tensor, point: Tensor) -> Tensor:
        """Zero the gradient where the box or the mask holds a coordinate, and where it is not finite."""
        free = movable_coordinates(point, gradient, *self.box)
        if self.mask is not None:
            free &= self.mask
        return gradient.nan_to_num(posinf=0.0, neginf=0.0) * free

    def _direction(self, gradient: Tensor) -> Tensor:
        """Return the direction of a step: steepest for l_inf and l_2; l_1 takes l_2's, not one coordinate at a time."""
        return sample_direction(gradient, self.r if math.isinf(self.r) else 2.0)

    def _project(self, delta: Tensor, radius: Tensor) -> Tensor:
        return project_in_box(delta, radius, self.r, self.lower, self.upper)

    def _differences(self, logits: Tensor) -> Tensor:
        """Return z_j - z_y, (N, K), and -inf at the label itself."""
        own = logits.gather(1, self.labels)
        return (logits - own).scatter(1, self.labels, -torch.inf)
