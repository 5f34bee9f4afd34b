# SPDX-License-Identifier: MIT
"""Least distances by stepping out: equal steps until the class flips, then bisection of the last step.

Cheaper and coarser than :mod:`art_wdro._solvers.newton`: the path is never corrected, so a distance is as long as the
path's first crossing is far.

Source: the variant with a greedy budget of the Wasserstein distributional attack, 2025, arXiv:2510.10000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from art_wdro._solvers.margins import Margins
from art_wdro._solvers.newton import LeastDistances
from art_wdro._storage.arrays import Rows, parts, staged
from art_wdro._threat.geometry import displace
from art_wdro._threat.norms import per_sample, sample_norms
from art_wdro._threat.threat import Box
from art_wdro.losses import as_float

CLASSES = 3
"""Classes among which the nearest to first order is walked to."""
BISECTIONS = 12
"""Halvings of the last step: its 4096th part is left."""


def stepped_out_distances(
    logits_of: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    r: float,
    *,
    step: float,
    max_iter: int,
    batch_size: int,
    box: Box | None = None,
    mask: Tensor | None = None,
    device: torch.device | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda batches: batches,
) -> LeastDistances:
    """Find an l_r distance of every sample to a point of another class in the box.

    :param logits_of: Maps inputs (N, ...) to logits (N, K), sample by sample, differentiably.
    :param x: Inputs, (N, ...), inside the box.
    :param labels: Class indices, (N,), on the device that computes.
    :param r: Exponent of the ground norm.
    :param step: Length of a step, in input units.
    :param max_iter: Steps, at most.
    :param batch_size: Samples in one forward and backward pass.
    :param box: Bounds of the inputs, or None.
    :param mask: Where coordinates may move, boolean, (N, ...); None moves all.
    :param device: The device that computes; None is that of `x`, which may lie on the host instead.
    :param progress: Wraps the iteration over batches, for a progress bar.
    :return: Distances, the points found, and the gradient evaluations spent, as :func:`least_distances` returns them.
    """
    data = Rows(x, device or x.device).pinned()
    movable = None if mask is None else Rows(mask, data.device)
    distances = torch.zeros(len(data), dtype=torch.float64, device=data.device)
    nearest = data.clone()
    gradients = 0
    for rows, points in staged(progress(parts(len(data), batch_size)), data):
        walk = _Walk(logits_of, points, labels[rows], r, box, None if movable is None else movable[rows])
        distances[rows], nearest[rows] = walk.run(step, max_iter)
        gradients += walk.gradients
    return LeastDistances(distances, nearest.whole(), gradients)


class _Walk(Margins):
    """The walk of one batch of samples."""

    def run(self, step: float, max_iter: int) -> tuple[Tensor, Tensor]:
        """Return the distances, (N,), float64, and the points."""
        before, after = self.x, self.x
        target, out = self.nearest_classes(CLASSES)[1][:, 0], self._is_out(self.x)
        start = out
        for _ in range(max_iter):
            walking = (~out).nonzero()[:, 0]
            if len(walking) == 0:
                break
            part = self.part(walking)
            point = after[walking]
            _, _, gradient = part.evaluate(point, target[walking])
            self.gradients += len(walking)
            delta = point - part.x + part.direction(gradient) * step
            moved = displace(part.x, delta).clamp(*self.box)
            before, after = before.index_copy(0, walking, point), after.index_copy(0, walking, moved)
            out = out.index_copy(0, walking, part._is_out(moved))
        low, high = torch.zeros(len(out), device=after.device), torch.ones(len(out), device=after.device)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            beyond = self._is_out(self._between(before, after, middle))
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        nearest = self._between(before, after, high)
        crossed = out & ~start & self._is_out(nearest)
        nearest = torch.where(per_sample(crossed, nearest) > 0, nearest, after)
        found = sample_norms(nearest.double() - self.x.double(), self.r)
        distances = torch.where(out, torch.where(start, 0.0, found), torch.inf)
        return distances, torch.where(per_sample(out & ~start, nearest) > 0, nearest, self.x)

    def _is_out(self, point: Tensor) -> Tensor:
        with torch.no_grad():
            excess, certain = self.excess(as_float(self.logits_of(point)))
        return excess > certain

    @staticmethod
    def _between(before: Tensor, after: Tensor, share: Tensor) -> Tensor:
        return before + (after - before) * per_sample(share, before)
