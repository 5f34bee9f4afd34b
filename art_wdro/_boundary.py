# SPDX-License-Identifier: MIT
"""Boundary points of a minibatch: least distances for training, with few gradients and none beyond a reach.

One run of the search of :mod:`art_wdro._least_distances` along whichever class leads. Its radius never exceeds the
reach, which is where a run of few steps would otherwise start on a network whose gradients vanish near the data, and it
shrinks faster at first, because there are few steps to correct it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._geometry import displace, dual_exponent, per_sample, sample_norms
from art_wdro._iterate import Box
from art_wdro._margins import Margins, cosine

FIRST_STEP, LAST_STEP = 1.0, 0.01
"""Length of a step in radii of the ball, falling along a cosine."""
FIRST_SHRINK, LAST_SHRINK = 0.3, 0.02
"""Most by which a radius shrinks in a step, falling along a cosine."""
CHANGE = 0.05
"""Least relative change of the radius in the first step, falling along a cosine."""
INERTIA = 0.25


class Boundary(NamedTuple):
    """What a search found.

    :param distances: Least distance found, (n,), float64: 0 where the sample is misclassified, inf where no point of
        another class was found within reach.
    :param x: The points at those distances, shaped as the inputs; the input itself where the distance is 0 or inf.
    :param slopes: ||grad m||_s of the margin m = max_j z_j - z_y at the points, (n,), float64.
    :param gradients: Gradient evaluations, summed over the samples.
    """

    distances: Tensor
    x: Tensor
    slopes: Tensor
    gradients: int


def boundary(
    logits_of: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    r: float,
    *,
    reach: float,
    max_iter: int,
    box: Box | None = None,
) -> Boundary:
    """Search the nearest point of another class within reach of every sample of a minibatch.

    :param logits_of: Maps inputs (n, ...) to logits (n, K), sample by sample, differentiably.
    :param x: Inputs, (n, ...), inside the box.
    :param labels: Class indices, (n,).
    :param r: Exponent of the ground norm.
    :param reach: Largest distance of interest, in input units.
    :param max_iter: Gradient evaluations a sample, at least 2.
    :param box: Bounds of the inputs, or None.
    :return: Distances, points, slopes of the margin there, and the gradient evaluations spent.
    """
    search = _Search(logits_of, x, labels, r, box, None)
    search.run(reach, max_iter)
    return Boundary(search.distance, search.nearest, search.slope, search.gradients)


class _Search(Margins):
    """The search for one minibatch."""

    def run(self, reach: float, max_iter: int) -> None:
        """Evaluate `max_iter` points of every sample, itself first."""
        x = self.x
        count = len(x)
        self.distance = torch.full((count,), torch.inf, dtype=torch.float64, device=x.device)
        self.slope = torch.zeros_like(self.distance)
        self.nearest = point = x
        velocity = torch.zeros_like(x)
        for step in range(max_iter - 1):
            left = cosine(step, max_iter - 1)
            margin, gradient, slope = self._visit(point)
            delta = point - x
            norm = sample_norms(delta, self.r)
            newton = torch.where(slope > 0, norm - margin / slope, norm).nan_to_num()
            shrink = LAST_SHRINK + (FIRST_SHRINK - LAST_SHRINK) * left
            shorter, longer = norm * (1 - shrink), norm * (1 + CHANGE * left)
            radius = torch.where(margin > 0, torch.maximum(newton, shorter), torch.maximum(newton, longer))
            radius = torch.minimum(radius, self.distance * (1 - CHANGE * left)).clamp(max=reach)
            length = LAST_STEP + (FIRST_STEP - LAST_STEP) * left
            moved = self.project(delta + self.direction(gradient) * per_sample(length * radius, x), radius)
            if step > 0:
                moved = self.project(delta + (1 - INERTIA) * (moved - delta) + INERTIA * velocity, radius)
            velocity = moved - delta
            point = displace(x, moved).clamp(*self.box)
        self._visit(point)

    def _visit(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keep a point where it is nearer; return how far the margin exceeds what counts, its gradient and slope."""
        logits, margin, gradient = self.evaluate(point, None)
        slope = sample_norms(gradient, dual_exponent(self.r))
        excess, certain = self.excess(logits)
        norm = sample_norms(point - self.x, self.r)
        nearer = (excess > certain) & (norm < self.distance)
        self.distance = torch.where(nearer, norm, self.distance)
        self.slope = torch.where(nearer, slope, self.slope)
        self.nearest = torch.where(per_sample(nearer, point) > 0, point, self.nearest)
        return margin.double() - 2 * certain.double(), gradient, slope
