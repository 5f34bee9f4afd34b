# SPDX-License-Identifier: MIT
"""One attack point for every sample inside its own ball: the class is chosen by short probes, then pursued.

Source: the probes and the steps along the steepest direction of a margin are those of the Wasserstein distributional
attack, 2025, arXiv:2510.10000.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from art_wdro._solvers.batches import Bar, Found, LogitsOf, Samples, search_in_batches, silent
from art_wdro._solvers.margins import Margins, cosine
from art_wdro._solvers.resumed import check_found
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._threat.geometry import displace
from art_wdro._threat.norms import per_sample
from art_wdro.losses import differences

FIRST_STEP, LAST_STEP = 1.0, 0.02
"""Length of a step in radii of the ball, falling along a cosine."""
PROBE = 4
"""Steps of a probe."""


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

    def search(*batch: Any) -> Found:
        own = _Ball(*batch)
        own.run(radius, max_iter, classes)
        return own.found(own.best, own.largest > 0)

    saved = None if checkpoint is None else checkpoint.load()
    if saved is not None:
        check_found(saved, samples, r, radius)
    return search_in_batches(search, logits_of, samples, r, checkpoint=checkpoint, bar=bar)


class _Ball(Margins):
    """The attack on one batch of samples, none of them misclassified."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.best = self.x.clone()
        self.largest = torch.full((len(self.x),), -torch.inf, device=self.x.device)

    def run(self, radius: float, steps: int, classes: int) -> None:
        """Probe the classes with the largest logits, then pursue the most promising where nothing was found yet."""
        ahead = differences(self.logits_at(self.x), self.labels)
        leading = ahead.topk(min(classes, ahead.shape[1] - 1), dim=1).indices
        target = leading[:, 0]
        if leading.shape[1] > 1:
            margins = torch.stack([self._ascend(column, radius, PROBE) for column in leading.T], 1)
            target = leading.gather(1, margins.argmax(1, keepdim=True))[:, 0]
        left = (self.largest <= 0).nonzero()[:, 0]
        if len(left) == 0:
            return
        part = self.part(left)
        part.best, part.largest = self.best[left], self.largest[left]
        part._ascend(target[left], radius, steps)
        self.best[left] = part.best
        self.gradients += part.gradients

    def _ascend(self, target: Tensor, radius: float, steps: int) -> Tensor:
        """Ascend the margin towards a class from the samples themselves; return the last one, (N,)."""
        point, radii = self.x, torch.full((len(self.x),), radius, dtype=torch.float64, device=self.x.device)
        for step in range(steps):
            length = LAST_STEP + (FIRST_STEP - LAST_STEP) * cosine(step, steps)
            logits, margin, gradient = self.evaluate(point, target)
            self._offer(point, logits)
            # where the network puts out NaN, halfway back
            kept = (point - self.x) * per_sample(torch.where(margin.isnan(), 0.5, 1.0), point)
            delta = kept + self.direction(gradient) * per_sample(length * radii, self.x)
            point = displace(self.x, self.project(delta, radii)).clamp(*self.box)
        logits = self.logits_at(point)
        self._offer(point, logits)
        return self.margins_to(target, logits)

    def _offer(self, point: Tensor, logits: Tensor) -> None:
        """Keep the points whose leading class exceeds the label most."""
        excess, certain = self.excess(logits)
        excess = excess - certain
        better = excess > self.largest
        self.largest = torch.where(better, excess, self.largest)
        self.best = torch.where(per_sample(better, point) > 0, point, self.best)
