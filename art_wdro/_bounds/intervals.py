# SPDX-License-Identifier: MIT
"""Intervals of numbers, and balls of inputs inside a box.

Bounds are computed in float64, and every one is widened by a relative 1e-11, some 10^5 units in the last place: far
more than the rounding of sums over 10^5 terms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._threat.norms import sample_norms

WIDENING = 1e-11
"""Relative width that is added for what rounding may take away."""
LARGEST = (2 - 2.0**-23) * 2.0**127
"""The largest number of float32, which a network computes with: what may exceed it may come out as anything."""

INWARD = 1 - 1e-6
"""How far towards the border points of a ball go."""

DIVISOR_FLOOR = 1e-300
"""Floor of a divisor that may be 0, far below any length or slope: the quotient is clamped in its turn."""


class Interval(NamedTuple):
    """Bounds of numbers, two tensors of one shape."""

    lower: Tensor
    upper: Tensor

    def widened(self) -> Interval:
        """Return a slightly larger one, for what float64 rounds away."""
        more = WIDENING * self.largest()
        return Interval(self.lower - more, self.upper + more)

    def sound(self) -> Interval:
        """Return all numbers where a bound is none, as after an overflow."""
        return Interval(
            self.lower.nan_to_num(-math.inf, math.inf, -math.inf), self.upper.nan_to_num(math.inf, math.inf, -math.inf)
        )

    def within_range(self) -> Interval:
        """Return all numbers where a bound exceeds what float32 holds, or is none."""
        beyond = ~(self.largest() <= LARGEST)
        return Interval(torch.where(beyond, -math.inf, self.lower), torch.where(beyond, math.inf, self.upper))

    def repeated(self, count: int) -> Interval:
        """Return bounds that have one row, (1, ...), as often as needed."""
        return Interval(*(bound.expand(count, *bound.shape[1:]) for bound in self))

    def largest(self) -> Tensor:
        """Return the largest absolute values."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def times(self, other: Interval) -> Interval:
        """Return bounds of the products."""
        products = torch.stack([a * b for a in self for b in other])
        return Interval(products.amin(0), products.amax(0))


class Ball(NamedTuple):
    """Balls of inputs in a box, one a row.

    :param centre: Centres, (B, ...).
    :param radius: Radii in the ground norm, (B,).
    :param r: Exponent of the ground norm.
    :param box: Bounds of the inputs, (B, ...).
    """

    centre: Tensor
    radius: Tensor
    r: float
    box: Interval

    def hull(self) -> Interval:
        """Return the least boxes that hold the balls."""
        radius = self.radius.view(-1, *[1] * (self.centre.dim() - 1))
        return Interval(
            torch.maximum(self.centre - radius, self.box.lower), torch.minimum(self.centre + radius, self.box.upper)
        )

    def rows(self, where: Tensor) -> Ball:
        """Return some of the balls."""
        box = Interval(self.box.lower[where], self.box.upper[where])
        return Ball(self.centre[where], self.radius[where], self.r, box)

    def outside(self, x: Tensor) -> Tensor:
        """Return how far points are outside the balls, negative inside, (B,)."""
        return sample_norms(x - self.centre, self.r) - self.radius

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw points of a single ball, (count, ...)."""
        lower, upper = self.hull()
        x = lower + (upper - lower) * torch.rand(count, *lower.shape[1:], dtype=torch.float64, generator=generator)
        return self.pulled(x)

    def pulled(self, x: Tensor) -> Tensor:
        """Pull points into the ball, along the line to its centre, and a little inside the box."""
        scale = (self.radius / sample_norms(x - self.centre, self.r).clamp(min=DIVISOR_FLOOR)).clamp(max=1.0)
        x = self.centre + (x - self.centre) * scale.view(-1, *[1] * (x.dim() - 1))
        x = torch.minimum(torch.maximum(x, self.box.lower), self.box.upper)
        return self.centre + (x - self.centre) * INWARD
