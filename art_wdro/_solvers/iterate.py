# SPDX-License-Identifier: MIT
"""The arithmetic of a step of W-PGD on the whole data set: direction, displacement, projection, in parts of it."""

from __future__ import annotations

import torch
from torch import Tensor

from art_wdro._ranks import total
from art_wdro._storage.arrays import Rows, Some, parts, put, staged
from art_wdro._threat.geometry import (
    SIGN_NORMS,
    allowed_radii,
    clip,
    displace,
    movable_coordinates,
    project_on_balls,
    sample_direction,
)
from art_wdro._threat.norms import dual_norms, per_sample, sample_norms
from art_wdro._threat.threat import Threat


class Best:
    """The best whole iterate so far, chosen without a value leaving the device."""

    def __init__(self, x: Rows) -> None:
        """Start with the inputs, which any iterate surpasses."""
        self.x = x.clone()
        self._standing = torch.full((), torch.inf, dtype=torch.float64, device=x.device)
        self._loss = -self._standing
        self._count = torch.full_like(self._loss, len(x))
        self._better = torch.zeros((), device=x.device)

    def compare(self, losses: Tensor, standing: Tensor) -> None:
        """Decide whether an iterate is better than the kept one, from its losses and standing samples, (N,)."""
        own = torch.stack([standing.sum(dtype=torch.float64), losses.nan_to_num().sum(), self._count])
        left, loss = (whole := total(own))[:2] / whole[2]
        # equal losses to float noise are equal, and the later iterate is kept: else the noise would choose
        as_high = loss >= self._loss - 1e-6 * loss.abs()
        fewer, as_many = left < self._standing, left == self._standing
        self._better = (fewer | (as_many & as_high)).float()
        highest = torch.where(as_many, torch.maximum(loss, self._loss), self._loss)
        self._loss = torch.where(fewer, loss, highest)
        self._standing = torch.minimum(left, self._standing)

    def offer(self, rows: slice, x: Tensor) -> None:
        """Keep rows of the compared iterate if it is better."""
        self.x.take(rows, x, self._better)

    def state(self) -> dict[str, Tensor]:
        """Return the kept iterate and its figures."""
        return {"x": self.x.whole(), "standing": self._standing, "loss": self._loss}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` returned."""
        self.x.fill(state["x"])
        self._standing, self._loss = (state[name].to(self._loss) for name in ("standing", "loss"))


class Iterate:
    """A point x' of the whole data set, moved by steps along the steepest direction.

    Attributes: `x`, the point; `slopes` and `radii`, dual norms of the gradients and lengths of what it was moved by,
    (N,); `at_once`, whether the arithmetic takes all samples at once, as many as they are.
    """

    def __init__(self, data: Rows, threat: Threat, batch_size: int) -> None:
        """Start at the inputs.

        :param data: Inputs of the whole data set, inside the box.
        :param threat: The threat.
        :param batch_size: Samples that the arithmetic takes at once on a GPU.
        """
        self.x = data.clone()
        self.slopes = torch.zeros(len(data), dtype=torch.float64, device=data.device)
        self._data, self._threat = data, threat
        self._parts = parts(len(data), data.at_once(batch_size))
        self.at_once = data.in_memory and len(self._parts) == 1
        self._norms = torch.empty_like(self.slopes)
        self.radii = torch.zeros_like(self.slopes)
        # one byte holds a sign
        self._directions = data.like(torch.int8 if threat.r in SIGN_NORMS else torch.float32)

    def take_direction(self, rows: Some, point: Tensor, gradient: Tensor) -> None:
        """Note the dual norm and the steepest direction of some samples' gradients at their points."""
        r, box = self._threat.r, self._threat.box
        self.slopes = put(self.slopes, rows, dual_norms(gradient, r), self.at_once)
        # only l_1's direction needs to know what the box lets move
        free = movable_coordinates(point, gradient, *box) if box is not None and r == 1.0 else None
        direction = sample_direction(gradient, r, free)
        # a length of 0 cancels any sign, but not NaN
        direction = direction if r in SIGN_NORMS else direction.nan_to_num_(0.0, 0.0, 0.0)
        self._directions = put(self._directions, rows, direction, self.at_once)

    def step(self, lengths: Tensor, eps: Tensor, best: Best | None) -> None:
        """Move every sample by its length along its direction, and project into the ball of radius eps.

        :param lengths: Lengths in input units, (N,).
        :param eps: Budget, a scalar tensor.
        :param best: Is offered the point left behind.
        """
        p, r, box = self._threat
        for rows, point, origin, direction in staged(self._parts, self.x, self._data, self._directions):
            if best is not None:
                best.offer(rows, point)
            delta = point - origin
            delta += direction * per_sample(lengths[rows], delta)
            self._norms = put(self._norms, rows, sample_norms(delta, r), self.at_once)
            self.x = put(self.x, rows, delta, self.at_once)
        self.radii = radii = allowed_radii(self._norms, eps, p)
        for rows, delta, origin in staged(self._parts, self.x, self._data):
            moved = origin + project_on_balls(delta, radii[rows], r)
            self.x = put(self.x, rows, moved if box is None else clip(moved, *box), self.at_once)

    def moved(self, lengths: Tensor) -> Tensor:
        """Tell which samples the last step moved, boolean, (N,), from its lengths, (N,)."""
        return (lengths > 0) | (self.radii < self._norms)

    def offer_to(self, best: Best) -> Rows:
        """Offer this point, and return the better one."""
        for rows, point in staged(self._parts, self.x):
            best.offer(rows, point)
        return best.x

    def round_into_ball(self, points: Rows, eps: Tensor) -> Tensor:
        """Project once more: rounding x + delta to nearest may have taken a point out of the ball."""
        p, r, box = self._threat
        for rows, point, origin in staged(self._parts, points, self._data):
            self._norms[rows] = sample_norms(point - origin, r)
        radii = allowed_radii(self._norms, eps, p)
        for rows, point, origin in staged(self._parts, points, self._data):
            moved = displace(origin, project_on_balls(point - origin, radii[rows], r))
            points[rows] = moved if box is None else clip(moved, *box)
        return points.whole()
