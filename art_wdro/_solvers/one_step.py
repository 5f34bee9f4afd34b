# SPDX-License-Identifier: MIT
"""Flips along the steepest direction of one gradient: the least of some lengths at which a sample changes its class.

One of the lengths is the budget itself, where the fast gradient method stops, so that a sample which that one flips is
flipped here at no larger cost.

Source: the direction is that of Goodfellow et al., 2015, arXiv:1412.6572, in l_r; the lengths are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from art_wdro._solvers.batches import Bar, Found, LogitsOf, Samples, input_gradient, search_in_batches, silent
from art_wdro._solvers.margins import Margins
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._threat.geometry import displace, movable_coordinates, sample_direction
from art_wdro._threat.norms import per_sample
from art_wdro.losses import PerSampleLoss, as_float, predicted

LENGTHS = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Lengths that are tried, in budgets, each by a forward pass."""


def flips_along_a_gradient(
    logits_of: LogitsOf,
    samples: Samples,
    r: float,
    *,
    eps: float,
    losses: Sequence[PerSampleLoss],
    checkpoint: Checkpoint | None = None,
    bar: Bar[Tensor] = silent,
) -> Found:
    """Find how far each sample must go along the steepest direction of some loss for its class to change.

    :param logits_of: Maps inputs to logits.
    :param samples: The data set.
    :param r: Exponent of the ground norm.
    :param eps: Budget in input units, of which `LENGTHS` are multiples.
    :param losses: Map logits and class indices to per-sample losses, (N,); the nearest flip of all is taken.
    :param checkpoint: Where to save what is found, and to go on from.
    :param bar: Wraps the iteration over batches, for a progress bar.
    :return: Distances, the points there, and the gradient evaluations spent, one a sample and loss.
    """

    def search(*batch: Any) -> Found:
        return _Line(*batch).run(eps, losses)

    return search_in_batches(search, logits_of, samples, r, checkpoint=checkpoint, bar=bar)


class _Line(Margins):
    """The lines of one batch of samples, none of them misclassified."""

    def run(self, eps: float, losses: Sequence[PerSampleLoss]) -> Found:
        """Try one length after another, in the direction of every loss, where no class has changed yet."""
        directions = [self._steepest(loss) for loss in losses]
        reached = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        points = self.x
        for length, direction in itertools.product(LENGTHS, directions):
            tried = displace(self.x, direction * (length * eps)).clamp(*self.box)
            flipped = ~reached & (predicted(self.logits_at(tried)) != self.labels)
            points = torch.where(per_sample(flipped, points) > 0, tried, points)
            reached |= flipped
        return self.found(points, reached)

    def _steepest(self, loss: PerSampleLoss) -> Tensor:
        """Return the steepest direction of every sample's loss, of unit length in l_r."""
        x = self.x.detach().requires_grad_()
        with torch.enable_grad():
            values = loss(as_float(self.logits_of(x)), self.labels)
            gradient = input_gradient(values, x)
        self.gradients += len(x)
        # what the box holds still is left out for l_1 alone, whose whole step is one coordinate
        gradient = gradient.nan_to_num(posinf=0.0, neginf=0.0) * (1.0 if self.mask is None else self.mask)
        return sample_direction(gradient, self.r, movable_coordinates(self.x, gradient, *self.box))
