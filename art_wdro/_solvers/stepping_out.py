# SPDX-License-Identifier: MIT
"""Least distances by stepping out: equal steps until the class flips, then bisection of the last step.

Cheaper and coarser than :mod:`art_wdro._solvers.newton`: the path is never corrected, so a distance is as long as the
path's first crossing is far.

Source: the variant with a greedy budget of the Wasserstein distributional attack, 2025, arXiv:2510.10000.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from art_wdro._solvers.batches import Bar, Found, LogitsOf, Samples, search_in_batches, silent
from art_wdro._solvers.margins import Margins
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._threat.geometry import displace
from art_wdro._threat.norms import per_sample

CLASSES = 3
"""Classes among which the nearest to first order is walked to."""
BISECTIONS = 12
"""Halvings of the last step: its 4096th part is left."""


def stepped_out_distances(
    logits_of: LogitsOf,
    samples: Samples,
    r: float,
    *,
    step: float,
    max_iter: int,
    checkpoint: Checkpoint | None = None,
    bar: Bar[Tensor] = silent,
) -> Found:
    """Find an l_r distance of every sample to a point of another class in the box.

    :param logits_of: Maps inputs to logits.
    :param samples: The data set.
    :param r: Exponent of the ground norm.
    :param step: Length of a step, in input units.
    :param max_iter: Steps, at most.
    :param checkpoint: Where to save what is found, and to go on from.
    :param bar: Wraps the iteration over batches, for a progress bar.
    :return: Distances, the points found, and the gradient evaluations spent, as :func:`least_distances` returns them.
    """

    def search(*batch: Any) -> Found:
        return _Walk(*batch).run(step, max_iter)

    return search_in_batches(search, logits_of, samples, r, checkpoint=checkpoint, bar=bar)


class _Walk(Margins):
    """The walk of one batch of samples, none of them misclassified."""

    def run(self, step: float, max_iter: int) -> Found:
        """Walk until the class flips, and bisect the last step."""
        before, after = self.x, self.x
        target = self.nearest_classes(CLASSES)[1][:, 0]
        out = torch.zeros(len(after), dtype=torch.bool, device=after.device)
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
            logits = part.logits_at(moved)
            if logits.isnan().any():
                moved = part.finite_between(point, moved)
                logits = part.logits_at(moved)
            excess, certain = part.excess(logits)
            before, after = before.index_copy(0, walking, point), after.index_copy(0, walking, moved)
            out = out.index_copy(0, walking, excess > certain)
        low, high = torch.zeros(len(out), device=after.device), torch.ones(len(out), device=after.device)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            beyond = self._is_out(self._between(before, after, middle))
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        nearest = self._between(before, after, high)
        # the point between may round to the other side; the last step's end was out itself
        nearest = torch.where(per_sample(out & self._is_out(nearest), nearest) > 0, nearest, after)
        return self.found(torch.where(per_sample(out, nearest) > 0, nearest, self.x), out)

    def _is_out(self, point: Tensor) -> Tensor:
        excess, certain = self.excess(self.logits_at(point))
        return excess > certain

    @staticmethod
    def _between(before: Tensor, after: Tensor, share: Tensor) -> Tensor:
        return before + (after - before) * per_sample(share, before)
