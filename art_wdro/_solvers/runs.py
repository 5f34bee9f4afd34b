# SPDX-License-Identifier: MIT
"""Runs of the search for least distances: an ascent of a margin in a ball whose radius follows Newton's rule.

Sources: the radius that adapts around the boundary is that of Pintor et al., FMN, 2021, arXiv:2102.12827; choosing the
class by margin over dual norm that of Croce, Hein, FAB, 2020, arXiv:1907.02044; the step with inertia that of Croce,
Hein, Auto-PGD, 2020, arXiv:2003.01690.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from art_wdro._solvers.margins import HALVINGS, LEADING, cosine
from art_wdro._solvers.search import Runs
from art_wdro._threat.geometry import displace
from art_wdro._threat.norms import dual_exponent, per_sample, sample_norms

FIRST_STEP, LAST_STEP = 1.0, 0.01
"""Length of a step in radii of the ball, falling along a cosine."""
FIRST_CHANGE, LAST_CHANGE = 0.05, 0.001
"""Least relative change of the radius in a step, falling along a cosine."""
FIRST_SHRINKING, LAST_SHRINKING = 0.5, 0.15
"""Most by which a radius shrinks in a step, relative to it, falling along a cosine.

Where gradients mislead, the first radius is far too long; slow shrinking then takes more steps than there are.
"""
INERTIA = 0.25
NEAR = 0.1
"""By how much steps are shorter from a point that was found before, and is near a border."""
RANDOM_NUMBERS = 1024
"""Random numbers for one start: the fewer coordinates, the more points, since in many coordinates they hit nothing."""
BESIDE = 2.0
"""The way to another sample is begun at where it leaves the class nearer than so many times the distance found."""

Number = TypeVar("Number", float, Tensor)


class NewtonRuns(Runs):
    """Samples on their runs, each at a step of its own, with the nearest point found so far.

    On the host: `number` of the run, `step` that comes next, `steps` of the whole run, `last` after which it is broken
    off, (n,) each.
    """

    on_host = (*Runs.on_host, "number", "step", "steps", "last")
    shrink = FIRST_SHRINKING, LAST_SHRINKING

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reach = sample_norms(torch.maximum(-self.lower, self.upper), self.r)
        self.radius = torch.full_like(self.reach, torch.inf)
        self.nearest = self.x.clone()
        self.set_out(0, 0)

    def set_out(
        self,
        number: int,
        steps: int,
        target: Tensor | None = None,
        start: Tensor | None = None,
        scale: Tensor | float = 1.0,
        most: Tensor | None = None,
        afresh: bool = False,
    ) -> None:
        """Stand at the beginning of a run along one class, or along the leading one.

        :param number: Which run it is.
        :param steps: Steps of the whole run, a gradient evaluation a sample each.
        :param target: The class, (n,), or None.
        :param start: Points to begin at in place of the samples, shaped as these.
        :param scale: What the lengths of steps are multiplied by, a number or one a sample.
        :param most: Steps after which the run is broken off, (n,), on the host; None lets it end.
        :param afresh: Begin with any radius, in place of one below what other runs found.
        """
        count = len(self.x)
        self.number, self.step, self.steps = (torch.full((count,), value) for value in (number, 0, steps))
        self.last = self.steps.clone() if most is None else most.clamp(0, steps)
        self.target = torch.full_like(self.labels, LEADING) if target is None else target.clone()
        self.point = (self.x if start is None else start).clone()
        self.scale = torch.ones_like(self.reach) * scale
        self.velocity = torch.zeros_like(self.x)
        self.inside, self.outside = torch.zeros_like(self.reach), torch.full_like(self.reach, torch.inf)
        self.before = self.radius.clone()
        self.bound = torch.full_like(self.radius, torch.inf) if afresh else self.radius.clone()

    def ended(self) -> Tensor:
        """Tell which runs have ended, boolean, (n,), on the host."""
        return self.step >= self.last

    def advance(self) -> None:
        """Take one step of every run: one gradient evaluation a sample."""
        begun, device = self.step > 0, self.x.device
        # small tensors join the queue of a GPU; a copy that blocks would wait until it is empty
        schedules = torch.stack(self.schedules(cosine(self.step, self.steps))).to(device, non_blocking=True)
        self.move(schedules, bool(begun.any()) and (bool(begun.all()) or begun.to(device, non_blocking=True)))
        self.step += 1

    def move(self, schedules: Tensor | list[float], begun: Tensor | bool) -> None:
        """Move every point by one step.

        :param schedules: What :meth:`schedules` returned, numbers or one row each.
        :param begun: Which runs have moved before, (n,), or whether all have; the others have no inertia.
        """
        x, delta = self.x, self.point - self.x
        length, change, shrink = schedules
        margin, gradient = self._evaluate(self.point, self.target)
        norm = sample_norms(delta, self.r)
        radius = self._radius(margin, norm, sample_norms(gradient, dual_exponent(self.r)), change, shrink)
        moved = self.project(delta + self.direction(gradient) * per_sample(length * self.scale * radius, x), radius)
        if begun is not False:
            own, velocity = moved - delta, self.velocity
            if isinstance(begun, Tensor):
                velocity = torch.where(per_sample(begun, x) > 0, velocity, own)
            moved = self.project(delta + (1 - INERTIA) * own + INERTIA * velocity, radius)
        self.velocity = moved - delta
        self.point = displace(x, moved).clamp(*self.box)

    def schedules(self, left: Number) -> list[Number]:
        """Return length of the step, least change and most shrinking of the radius.

        :param left: What is left of the schedules, as :func:`cosine` says it, a number or one a sample.
        """
        falling = ((FIRST_STEP, LAST_STEP), (FIRST_CHANGE, LAST_CHANGE), self.shrink)
        return [last + (first - last) * left for first, last in falling]

    def finish(self) -> None:
        """Look at the points where runs ended."""
        self.offer(self.point, self.logits_at(self.point))

    def offer(self, point: Tensor, logits: Tensor) -> Tensor:
        """Keep the points of another class that are nearer than those found; return the margin that counts as one."""
        excess, certain = self.excess(logits)
        norm = sample_norms(point - self.x, self.r)
        beyond = excess > certain
        self.bound = torch.where(beyond & (norm < self.bound), norm, self.bound)
        nearer = beyond & (norm < self.radius)
        self.radius = torch.where(nearer, norm, self.radius)
        self.nearest = torch.where(per_sample(nearer, point) > 0, point, self.nearest)
        return certain.double()

    def beside_others(self, start: Tensor, others: list[Tensor]) -> Tensor:
        """Return where the way to another sample leaves the class, if that is near, and else the start given."""
        shortest = BESIDE * self.radius
        for other in others:
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

    def moved_everywhere(self, steps: int, target: Tensor | None) -> Tensor:
        """Return the nearest points of a short run under l_inf, which moves all coordinates, or the samples."""
        runs = NewtonRuns(self.logits_of, self.x, self.labels, torch.inf, self.bounds, self.mask, self.spent)
        runs.set_out(0, steps, target)
        for _ in range(steps):
            runs.advance()
        runs.finish()
        return runs.nearest

    def random_start(self, number: int) -> Tensor:
        """Return the point of the largest margin among random ones in the ball found so far, or in reach.

        The points are drawn from the number of the start alone, and the same for every sample.
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
            self.offer(point, logits)
            margin = self.excess(logits)[0].double()
            better = margin > largest
            best = torch.where(per_sample(better, point) > 0, point, best)
            largest = torch.where(better, margin, largest)
        return best

    def _radius(
        self, margin: Tensor, norm: Tensor, slope: Tensor, change: Tensor | float, shrink: Tensor | float
    ) -> Tensor:
        """Return the radius of the next step by Newton's rule, shorter than what was found and within reach."""
        # a margin that is NaN is no flip: the radius is halved between the last one that was a number and the first
        # that was not
        lost = margin.isnan()
        inside = torch.where(lost, self.inside, torch.maximum(self.inside, norm))
        self.outside = torch.where(lost, torch.minimum(self.outside, norm), self.outside)
        self.inside = torch.minimum(inside, self.outside)
        newton = torch.where(slope > 0, norm - margin / slope, norm).nan_to_num()
        shorter = torch.maximum(newton, norm * (1 - shrink))
        longer = torch.maximum(newton, norm * (1 + change))
        radius = torch.minimum(torch.where(margin > 0, shorter, longer), self.bound * (1 - change))
        middle = (self.inside + self.outside) / 2
        return torch.minimum(radius, torch.where(torch.isinf(self.outside), self.reach, middle))

    def _is_beyond(self, point: Tensor) -> Tensor:
        """Tell where a point has another class, and keep it if it is nearer than what was found."""
        logits = self.logits_at(point)
        excess, certain = self.excess(logits)
        self.offer(point, logits)
        return excess > certain

    def _evaluate(self, point: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far the margin towards the target exceeds what counts, and its usable gradient; offer `point`."""
        logits, margin, gradient = self.evaluate(point, target)
        return margin.double() - 2 * self.offer(point, logits), gradient
