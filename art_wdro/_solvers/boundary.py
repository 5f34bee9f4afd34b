# SPDX-License-Identifier: MIT
"""Boundary points of a minibatch: least distances for training, with few gradients and none beyond a reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._solvers.margins import cosine
from art_wdro._solvers.runs import NewtonRuns
from art_wdro._threat.norms import dual_exponent, sample_norms
from art_wdro._threat.threat import Box


class Boundary(NamedTuple):
    """What a search found.

    :param distances: Least distance found, (n,), float64: 0 where the sample is misclassified, inf where no point of
        another class was found within reach.
    :param x: The points at those distances, shaped as the inputs; the input itself where the distance is 0 or inf.
    :param slopes: ||grad m||_s of the margin m = max_{j != y} z_j - z_y at the points, (n,), float64.
    :param gradients: Gradient evaluations, summed over the samples.
    """

    distances: Tensor
    x: Tensor
    slopes: Tensor
    gradients: int


def boundary(
    logits_of: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    r: float,
    *,
    reach: float | Tensor,
    max_iter: int,
    box: Box | None = None,
) -> Boundary:
    """Search the nearest point of another class within reach of every sample of a minibatch.

    :param logits_of: Maps inputs (n, ...) to logits (n, K), sample by sample, differentiably.
    :param x: Inputs, (n, ...), inside the box.
    :param labels: Class indices, (n,).
    :param r: Exponent of the ground norm.
    :param reach: Largest distance of interest, in input units, a number or a scalar tensor.
    :param max_iter: Gradient evaluations a sample, at least 2, the last one at the point found.
    :param box: Bounds of the inputs, or None.
    :return: Distances, points, slopes of the margin there, and the gradient evaluations spent.
    """
    runs = _Runs(logits_of, x, labels, r, box, None)
    runs.reach = runs.reach.clamp(max=reach)
    for step, left in enumerate(cosine(torch.arange(max_iter - 1), max_iter - 1).tolist()):
        runs.move(runs.schedules(left), begun=step > 0)
    runs.finish()
    _, _, gradient = runs.evaluate(runs.nearest, None)
    slopes = sample_norms(gradient, dual_exponent(r))
    distances = runs.distances(runs.nearest, torch.isfinite(runs.radius))
    return Boundary(distances, runs.nearest, slopes, runs.spent.gradients)


class _Runs(NewtonRuns):
    """One run along whichever class leads.

    Where gradients vanish near the data, Newton's first radius is far too long. The reach bounds it, and it may shrink
    fast at first, because there are few steps to correct it.
    """

    shrink = 0.3, 0.02
