# SPDX-License-Identifier: MIT
"""Flips along the steepest direction of one gradient: the least of some lengths at which a sample changes its class.

One of the lengths is the budget itself, where the fast gradient method stops, so that a sample which that one flips is
flipped here at no larger cost.

Source: the direction is that of Goodfellow et al., 2015, arXiv:1412.6572, in l_r; the lengths are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from art_wdro._solvers.batches import Bar, Found, Samples, silent
from art_wdro._solvers.passes import LogitsOf, input_gradient
from art_wdro._solvers.search import ENDED, Runs, Search
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
    return _AlongGradients(logits_of, samples, r, eps, losses).run(checkpoint, bar)


class _Line(Runs):
    """Samples on the lines along their losses' gradients, one length after another.

    `directions`, (n, losses, ...), and `points`; on the host `tried`, how many lengths were, and whether a class has
    `flipped` at the last one.
    """

    on_host = (*Runs.on_host, "tried", "flipped")
    eps = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.points = self.x.clone()
        self.directions = self.x[:, None].clone()
        self.tried = torch.zeros(len(self.x), dtype=torch.int64)
        self.flipped = torch.zeros(len(self.x), dtype=torch.bool)

    def ended(self) -> Tensor:
        """Tell which lines are at an end, boolean, (n,), on the host."""
        return self.flipped | (self.tried == len(LENGTHS))

    def advance(self) -> None:
        """Try the next length in the direction of every loss."""
        lengths = per_sample(
            torch.tensor(LENGTHS, dtype=torch.float64)[self.tried].to(self.x.device) * self.eps, self.x
        )
        flipped = torch.zeros(len(self), dtype=torch.bool, device=self.x.device)
        for direction in self.directions.unbind(1):
            point = displace(self.x, direction * lengths).clamp(*self.box)
            now = ~flipped & (predicted(self.logits_at(point)) != self.labels)
            self.points = torch.where(per_sample(now, point) > 0, point, self.points)
            flipped |= now
        self.flipped = flipped.cpu()
        self.tried += 1

    def steepest(self, loss: PerSampleLoss) -> Tensor:
        """Return the steepest direction of every sample's loss, of unit length in l_r."""
        x = self.x.detach().requires_grad_()
        with torch.enable_grad():
            values = loss(as_float(self.logits_of(x)), self.labels)
            gradient = input_gradient(values, x)
        self.spent.gradients += len(x)
        # what the box holds still is left out for l_1 alone, whose whole step is one coordinate
        gradient = gradient.nan_to_num(posinf=0.0, neginf=0.0) * (1.0 if self.mask is None else self.mask)
        return sample_direction(gradient, self.r, movable_coordinates(self.x, gradient, *self.box))


class _AlongGradients(Search[_Line]):
    """One line a sample and loss."""

    def __init__(
        self, logits_of: LogitsOf, samples: Samples, r: float, eps: float, losses: Sequence[PerSampleLoss]
    ) -> None:
        super().__init__(logits_of, samples, r)
        self._eps, self._losses = eps, losses

    def batch(self, rows: Tensor) -> _Line:
        """Return samples without directions."""
        line = self.samples_at(_Line, rows)
        line.eps = self._eps
        return line

    def begin(self, number: int, rows: Tensor) -> _Line:
        """Take the directions."""
        line = self.batch(rows)
        line.directions = torch.stack([line.steepest(loss) for loss in self._losses], 1)
        return line

    def end(self, runs: _Line) -> tuple[Tensor, Tensor, Tensor]:
        """Return the points at which classes changed."""
        return runs.points, runs.flipped.to(runs.x.device), torch.full((len(runs),), ENDED)
