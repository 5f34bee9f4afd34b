# SPDX-License-Identifier: MIT
"""One attack point for every sample inside its own ball: the class is chosen by short probes, then pursued.

Source: the probes and the steps along the steepest direction of a margin are those of the Wasserstein distributional
attack, 2025, arXiv:2510.10000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._solvers.margins import Margins, cosine, standing_samples
from art_wdro._storage.arrays import Rows, parts
from art_wdro._threat.geometry import displace
from art_wdro._threat.norms import per_sample
from art_wdro._threat.threat import Box
from art_wdro.losses import as_float

FIRST_STEP, LAST_STEP = 1.0, 0.02
"""Length of a step in radii of the ball, falling along a cosine."""
PROBE = 4
"""Steps of a probe."""


class Attacked(NamedTuple):
    """What the attack made.

    :param x: A point of every sample in its ball, shaped as the inputs; misclassified samples stay.
    :param standing: Which samples were classified correctly before, boolean, (N,).
    :param gradients: Gradient evaluations, summed over the samples.
    """

    x: Tensor
    standing: Tensor
    gradients: int


def attack_in_balls(
    logits_of: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    radius: float,
    r: float,
    *,
    max_iter: int,
    classes: int,
    batch_size: int,
    box: Box | None = None,
    mask: Tensor | None = None,
    device: torch.device | None = None,
    progress: Callable[[Iterable[Tensor]], Iterable[Tensor]] = lambda batches: batches,
) -> Attacked:
    """Look for a misclassified point of every sample in an l_r ball inside the box.

    :param logits_of: Maps inputs (N, ...) to logits (N, K), sample by sample, differentiably.
    :param x: Inputs, (N, ...), inside the box.
    :param labels: Class indices, (N,), on the device that computes.
    :param radius: Radius of the balls, in input units.
    :param r: Exponent of the ground norm.
    :param max_iter: Steps towards the chosen class.
    :param classes: Classes with the largest logits that are probed.
    :param batch_size: Samples in one forward and backward pass.
    :param box: Bounds of the inputs, or None.
    :param mask: Where coordinates may move, boolean, (N, ...); None moves all.
    :param device: The device that computes; None is that of `x`, which may lie on the host instead.
    :param progress: Wraps the iteration over batches, for a progress bar.
    :return: The points; where none is misclassified, those of the largest margin.
    """
    data = Rows(x, device or x.device).pinned()
    movable = None if mask is None else Rows(mask, data.device)
    standing, chosen = standing_samples(logits_of, data, labels, batch_size)
    found = data.clone()
    gradients = 0
    for rows in progress([chosen[part] for part in parts(len(chosen), batch_size)]):
        search = _Ball(logits_of, data[rows], labels[rows], r, box, None if movable is None else movable[rows])
        search.run(radius, max_iter, classes)
        found[rows] = search.best
        gradients += search.gradients
    return Attacked(found.whole(), standing, gradients)


class _Ball(Margins):
    """The attack on one batch of samples, none of them misclassified."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.best = self.x.clone()
        self._largest = torch.full((len(self.x),), -torch.inf, device=self.x.device)

    def run(self, radius: float, steps: int, classes: int) -> None:
        """Probe the classes with the largest logits, then pursue the most promising where nothing was found yet."""
        with torch.no_grad():
            differences = self.differences(as_float(self.logits_of(self.x)))
        leading = differences.topk(min(classes, differences.shape[1] - 1), dim=1).indices
        target = leading[:, 0]
        if leading.shape[1] > 1:
            margins = torch.stack([self._ascend(column, radius, PROBE) for column in leading.T], 1)
            target = leading.gather(1, margins.argmax(1, keepdim=True))[:, 0]
        left = (self._largest <= 0).nonzero()[:, 0]
        if len(left) == 0:
            return
        part = self.part(left)
        part.best, part._largest = self.best[left], self._largest[left]
        part._ascend(target[left], radius, steps)
        self.best[left] = part.best
        self.gradients += part.gradients

    def _ascend(self, target: Tensor, radius: float, steps: int) -> Tensor:
        """Ascend the margin towards a class from the samples themselves; return the last one, (N,)."""
        point, radii = self.x, torch.full((len(self.x),), radius, dtype=torch.float64, device=self.x.device)
        for step in range(steps):
            length = LAST_STEP + (FIRST_STEP - LAST_STEP) * cosine(step, steps)
            logits, _, gradient = self.evaluate(point, target)
            self._offer(point, logits)
            delta = point - self.x + self.direction(gradient) * per_sample(length * radii, self.x)
            point = displace(self.x, self.project(delta, radii)).clamp(*self.box)
        with torch.no_grad():
            logits = as_float(self.logits_of(point))
        self._offer(point, logits)
        return self.differences(logits).gather(1, target[:, None])[:, 0]

    def _offer(self, point: Tensor, logits: Tensor) -> None:
        """Keep the points whose leading class exceeds the label most."""
        excess, certain = self.excess(logits)
        excess = excess - certain
        better = excess > self._largest
        self._largest = torch.where(better, excess, self._largest)
        self.best = torch.where(per_sample(better, point) > 0, point, self.best)
