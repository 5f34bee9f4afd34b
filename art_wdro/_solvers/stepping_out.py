# SPDX-License-Identifier: MIT
"""Least distances by stepping out: equal steps until the class flips, then bisection of the last step.

Cheaper and coarser than :mod:`art_wdro._solvers.newton`: the path is never corrected, so a distance is as long as the
path's first crossing is far.

Source: the variant with a greedy budget of the Wasserstein distributional attack, 2025, arXiv:2510.10000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from art_wdro._solvers.batches import Bar, Found, Samples, silent
from art_wdro._solvers.passes import LogitsOf
from art_wdro._solvers.search import ENDED, Runs, Search
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
    return _SteppingOut(logits_of, samples, r, step, max_iter).run(checkpoint, bar)


class _Walk(Runs):
    """Samples on their walks: points `before` and `after` the last step, `out` if it flipped, steps `left`."""

    on_host = (*Runs.on_host, "out", "left")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.before, self.after, self.target = self.x.clone(), self.x.clone(), self.labels.clone()
        self.lengths = torch.zeros(len(self.x), device=self.x.device)
        self.out, self.left = torch.zeros(len(self.x), dtype=torch.bool), torch.zeros(len(self.x), dtype=torch.int64)

    def ended(self) -> Tensor:
        """Tell which walks have ended, boolean, (n,), on the host."""
        return self.out | (self.left == 0)

    def advance(self) -> None:
        """Take a step of every walk: one gradient evaluation a sample."""
        _, _, gradient = self.evaluate(self.after, self.target)
        delta = self.after - self.x + self.direction(gradient) * per_sample(self.lengths, self.x)
        moved = displace(self.x, delta).clamp(*self.box)
        logits = self.logits_at(moved)
        if logits.isnan().any():
            moved = self.finite_between(self.after, moved)
            logits = self.logits_at(moved)
        excess, certain = self.excess(logits)
        self.before, self.after = self.after, moved
        self.out = (excess > certain).cpu()
        self.left -= 1

    def nearest(self) -> Tensor:
        """Return where the last step leaves the class, by bisection, and the sample itself where it does not."""
        device = self.x.device
        low, high = torch.zeros(len(self), device=device), torch.ones(len(self), device=device)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            beyond = self._is_out(self._between(middle))
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        nearest, out = self._between(high), self.out.to(device)
        # the point between may round to the other side; the last step's end was out itself
        nearest = torch.where(per_sample(out & self._is_out(nearest), nearest) > 0, nearest, self.after)
        return torch.where(per_sample(out, nearest) > 0, nearest, self.x)

    def _is_out(self, point: Tensor) -> Tensor:
        excess, certain = self.excess(self.logits_at(point))
        return excess > certain

    def _between(self, share: Tensor) -> Tensor:
        return self.before + (self.after - self.before) * per_sample(share, self.before)


class _SteppingOut(Search[_Walk]):
    """One walk a sample, towards the class that is nearest to first order."""

    def __init__(self, logits_of: LogitsOf, samples: Samples, r: float, step: float, max_iter: int) -> None:
        super().__init__(logits_of, samples, r)
        self._step, self._max_iter = step, max_iter
        self.notes["left"].fill_(max_iter + min(CLASSES, self.classes - 1))

    def batch(self, rows: Tensor) -> _Walk:
        """Return samples that stand where they are."""
        walk = self.samples_at(_Walk, rows)
        walk.lengths.fill_(self._step)
        return walk

    def begin(self, number: int, rows: Tensor) -> _Walk:
        """Choose the classes, and set out."""
        walk = self.batch(rows)
        walk.target = walk.nearest_classes(CLASSES)[1][:, 0].clone()
        walk.left.fill_(self._max_iter)
        return walk

    def end(self, runs: _Walk) -> tuple[Tensor, Tensor, Tensor]:
        """Bisect the last steps."""
        self.notes["left"][runs.places] = runs.left
        return runs.nearest(), runs.out.to(runs.x.device), torch.full((len(runs),), ENDED)
