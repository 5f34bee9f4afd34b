# SPDX-License-Identifier: MIT
"""One attack point for every sample inside its own ball: the class is chosen by short probes, then pursued.

Source: the probes and the steps along the steepest direction of a margin are those of the Wasserstein distributional
attack, 2025, arXiv:2510.10000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from art_wdro._solvers.batches import Bar, Found, Samples, silent
from art_wdro._solvers.margins import cosine
from art_wdro._solvers.passes import LogitsOf
from art_wdro._solvers.resumed import check_found
from art_wdro._solvers.search import ENDED, Runs, Search
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._threat.geometry import displace
from art_wdro._threat.norms import per_sample
from art_wdro.losses import differences

FIRST_STEP, LAST_STEP = 1.0, 0.02
"""Length of a step in radii of the ball, falling along a cosine."""
PROBE = 4
"""Steps of a probe."""


def most_gradients(max_iter: int, probed: int) -> int:
    """Return how many gradient evaluations a sample takes at most.

    :param max_iter: Steps towards the chosen class.
    :param probed: Classes among which it is chosen, which takes no probe where there is one.
    """
    return max_iter + (PROBE * probed if probed > 1 else 0)


def attack_in_balls(
    logits_of: LogitsOf,
    samples: Samples,
    r: float,
    *,
    radius: float,
    max_iter: int,
    classes: int,
    checkpoint: Checkpoint | None = None,
    bar: Bar[Tensor] = silent,
) -> Found:
    """Look for a misclassified point of every sample in an l_r ball inside the box.

    :param logits_of: Maps inputs to logits.
    :param samples: The data set.
    :param r: Exponent of the ground norm.
    :param radius: Radius of the balls, in input units.
    :param max_iter: Steps towards the chosen class.
    :param classes: Classes with the largest logits that are probed.
    :param checkpoint: Where to save what is found, and to go on from.
    :param bar: Wraps the iteration over batches, for a progress bar.
    :return: The points; where none is misclassified, those of the largest margin, with the distance inf.
    """
    saved = None if checkpoint is None else checkpoint.load()
    if saved is not None:
        check_found(saved, samples, r, radius)
    return _InBalls(logits_of, samples, r, radius, max_iter, classes).run(checkpoint, bar)


class _Ball(Runs):
    """Samples on their way inside their balls; on the host the `step` that comes next and the `steps` of the way."""

    on_host = (*Runs.on_host, "step", "steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.best = self.x.clone()
        self.largest = torch.full((len(self.x),), -torch.inf, device=self.x.device)
        self.radii = torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)
        self.set_out(self.labels, torch.zeros(len(self.x), dtype=torch.int64))

    def set_out(self, target: Tensor, steps: Tensor) -> None:
        """Begin at the samples, towards a class each, with so many steps each."""
        self.target, self.steps, self.step = target.clone(), steps, torch.zeros_like(steps)
        self.point = self.x.clone()

    def ended(self) -> Tensor:
        """Tell which ways have ended, boolean, (n,), on the host."""
        return self.step >= self.steps

    def advance(self) -> None:
        """Take one step of every way: one gradient evaluation a sample."""
        left = cosine(self.step, self.steps).to(self.x.device, non_blocking=True)
        length = LAST_STEP + (FIRST_STEP - LAST_STEP) * left
        logits, margin, gradient = self.evaluate(self.point, self.target)
        self.offer(self.point, logits)
        # where the network puts out NaN, halfway back
        kept = (self.point - self.x) * per_sample(torch.where(margin.isnan(), 0.5, 1.0), self.x)
        delta = kept + self.direction(gradient) * per_sample(length * self.radii, self.x)
        self.point = displace(self.x, self.project(delta, self.radii)).clamp(*self.box)
        self.step += 1

    def finish(self) -> Tensor:
        """Look at the points where ways ended; return the margins towards their classes there, (n,)."""
        logits = self.logits_at(self.point)
        self.offer(self.point, logits)
        return self.margins_to(self.target, logits)

    def offer(self, point: Tensor, logits: Tensor) -> None:
        """Keep the points whose leading class exceeds the label most."""
        excess, certain = self.excess(logits)
        excess = excess - certain
        better = excess > self.largest
        self.largest = torch.where(better, excess, self.largest)
        self.best = torch.where(per_sample(better, point) > 0, point, self.best)


class _InBalls(Search[_Ball]):
    """One way a sample: short probes of the classes with the largest logits, then the most promising one is pursued."""

    def __init__(
        self, logits_of: LogitsOf, samples: Samples, r: float, radius: float, max_iter: int, classes: int
    ) -> None:
        super().__init__(logits_of, samples, r)
        self._radius, self._max_iter, self._probed = radius, max_iter, min(classes, self.classes - 1)
        self.notes["left"].fill_(most_gradients(max_iter, self._probed))

    def batch(self, rows: Tensor) -> _Ball:
        """Return samples in the middle of their balls."""
        ball = self.samples_at(_Ball, rows)
        ball.radii.fill_(self._radius)
        return ball

    def begin(self, number: int, rows: Tensor) -> _Ball:
        """Probe, and pursue where nothing was found yet."""
        ball = self.batch(rows)
        leading = differences(ball.logits_at(ball.x), ball.labels).topk(self._probed, dim=1).indices
        target = leading[:, 0]
        if self._probed > 1:
            margins = torch.stack([self._probe(ball, column) for column in leading.T], 1)
            target = leading.gather(1, margins.argmax(1, keepdim=True))[:, 0]
        ball.set_out(target, torch.where(ball.largest.cpu() <= 0, self._max_iter, 0))
        return ball

    def end(self, runs: _Ball) -> tuple[Tensor, Tensor, Tensor]:
        """Return the points of the largest margin, and where it is one of another class."""
        self.notes["left"][runs.places] = self._max_iter - runs.steps
        pursued = runs.steps > 0
        if pursued.any():
            which = pursued.nonzero()[:, 0]
            part = runs.part(which)
            part.finish()
            runs.best[which.to(runs.best.device)] = part.best
            runs.largest[which.to(runs.best.device)] = part.largest
        return runs.best, runs.largest > 0, torch.full((len(runs),), ENDED)

    @staticmethod
    def _probe(ball: _Ball, target: Tensor) -> Tensor:
        ball.set_out(target, torch.full((len(ball),), PROBE))
        while not ball.ended().all():
            ball.advance()
        return ball.finish()
