# SPDX-License-Identifier: MIT
"""The attacks of the papers, written from their descriptions, without what this project changed.

They ask the network about every sample at every step, flipped or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._threat.geometry import project, sample_direction, steepest_direction
from art_wdro._threat.norms import dual_exponent, per_sample, sample_norms
from art_wdro.losses import differences, predicted, redlr

LogitsOf = Callable[[Tensor], Tensor]
BISECTIONS = 12
"""Halvings of the last step."""


class Stepping(NamedTuple):
    """How WDA++ walks.

    :param step: Length of a step, in input units.
    :param steps: Steps of a walk, at most.
    :param classes: Leading classes among which each step goes for the nearest to first order.
    :param restarts: Walks after the first one, in turn from half of the way found and in a random direction from there.
    """

    step: float
    steps: int = 30
    classes: int = 3
    restarts: int = 2


def published_w_pgd(
    logits_of: LogitsOf, x: Tensor, y: Tensor, *, p: float, r: float, eps: float, steps: int, eps_step: float
) -> Tensor:
    """Return the iterate of W-PGD on ReDLR with the lowest accuracy, which is asked for after every step.

    Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844.
    """
    point, best, least = x, x, 2.0
    for _ in range(steps):
        leaf = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(redlr(logits_of(leaf), y).sum(), leaf)
        delta = project(point + eps_step * steepest_direction(gradient, p, r) - x, eps, p, r)
        point = (x + delta).clamp(0, 1)
        accuracy = float((predicted(logits_of(point)) == y).double().mean())
        if accuracy < least:
            best, least = point, accuracy
    return best


def published_wda(logits_of: LogitsOf, x: Tensor, y: Tensor, *, r: float, stepping: Stepping) -> tuple[Tensor, Tensor]:
    """Return the least distances that WDA++ finds, (N,), inf where none, and the points.

    Source: Tight robustness certificates and Wasserstein distributional attacks for deep neural networks, 2025,
    arXiv:2510.10000.
    """
    with torch.no_grad():
        standing = predicted(logits_of(x)) == y
    distances = torch.where(standing, torch.inf, 0.0).double()
    points, generator = x.clone(), torch.Generator().manual_seed(0)
    for number in range(1 + stepping.restarts):
        start = x + (points - x) / 2 if number else x
        if number % 2 == 0 and number:
            direction = torch.randn(x.shape, generator=generator).to(x)
            direction = direction / per_sample(sample_norms(direction, r), x)
            half = torch.where(torch.isfinite(distances), distances / 2, stepping.step).to(x)
            start = (x + direction * per_sample(half, x)).clamp(0, 1)
        rows = standing.nonzero()[:, 0]
        found, there = _walk(logits_of, start[rows], y[rows], r, stepping)
        lengths = sample_norms((there - x[rows]).double(), r)
        nearer = found & (lengths < distances[rows])
        points[rows[nearer]], distances[rows[nearer]] = there[nearer], lengths[nearer]
    return distances, points


def _walk(logits_of: LogitsOf, start: Tensor, y: Tensor, r: float, stepping: Stepping) -> tuple[Tensor, Tensor]:
    """Step until the class changes, and bisect the last step; return whether it did, (n,), and where."""
    before, after = start.clone(), start.clone()
    out = torch.zeros_like(y, dtype=torch.bool)
    for _ in range(stepping.steps):
        rows = (~out).nonzero()[:, 0]
        if len(rows) == 0:
            break
        direction = _nearest_direction(logits_of, after[rows], y[rows], r, stepping.classes)
        before[rows] = after[rows]
        after[rows] = (after[rows] + stepping.step * direction).clamp(0, 1)
        with torch.no_grad():
            out[rows] = predicted(logits_of(after[rows])) != y[rows]
    low, high = before, after
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        with torch.no_grad():
            beyond = per_sample(predicted(logits_of(middle)) != y, middle) > 0
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return out, high


def _nearest_direction(logits_of: LogitsOf, x: Tensor, y: Tensor, r: float, classes: int) -> Tensor:
    """Return the direction to the class that is nearest to first order, margin over dual norm."""
    leaf = x.clone().requires_grad_()
    ahead = differences(logits_of(leaf), y)
    nearest, direction = torch.full_like(y, torch.inf, dtype=x.dtype), torch.zeros_like(x)
    for column in ahead.detach().topk(classes, dim=1).indices.T:
        margin = ahead.gather(1, column[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(margin.sum(), leaf, retain_graph=True)
        estimate = -margin.detach() / sample_norms(gradient, dual_exponent(r)).clamp(min=1e-12)
        nearer = estimate < nearest
        nearest = torch.where(nearer, estimate, nearest)
        direction = torch.where(per_sample(nearer, x) > 0, sample_direction(gradient, r), direction)
    return direction
