# SPDX-License-Identifier: MIT
"""Certified radii of samples, and bounds on the worst expected loss, from bounds of margins over balls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from art_wdro._bounds.crown import output_bounds
from art_wdro._bounds.intervals import DIVISOR_FLOOR, Ball, Interval
from art_wdro._bounds.jacobians import jacobians, propagate
from art_wdro._bounds.layers import Node
from art_wdro._bounds.operator_norms import JacobianNorms
from art_wdro._storage.arrays import parts

TURNS = 10
"""Evaluations of the bounds in the search for a radius."""
PRECISE = 0.01
"""Relative width from which a radius counts as found."""
NEAR = 1e-4
"""Radius, relative to the largest, from which the slope of the bounds is taken."""
SHORTEST = 0.05
"""Least step of the search, in widths of the interval that is left."""
AT_ONCE = 256
"""Pairs of classes whose Jacobians are bounded in one pass."""
LEAST_POWER, LARGEST_POWER, MULTIPLIERS = -6, 3, 1000
"""The multipliers that the dual tries: powers of ten, in units of the Lipschitz constant, and how many."""
LARGEST_EXPONENT = 700.0
"""Largest x for which e^x is computed: float64 ends at 709."""


def class_pairs(classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the differences of every two logits, (K (K - 1) / 2, K), and their first and second classes."""
    first, second = torch.triu_indices(classes, classes, 1)
    rows = torch.zeros(len(first), classes, dtype=torch.float64)
    places = torch.arange(len(first))
    rows[places, first], rows[places, second] = 1.0, -1.0
    return rows, first, second


def margins_of(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return z_y - z_j for every other class j as combinations of the logits, (N, K - 1, K), and j, (N, K - 1)."""
    others = torch.arange(classes - 1).expand(len(labels), -1)
    others = others + (others >= labels[:, None])
    rows = torch.zeros(len(labels), classes - 1, classes, dtype=torch.float64)
    rows.scatter_(2, labels[:, None, None].expand(-1, classes - 1, 1), 1.0)
    rows.scatter_(2, others[:, :, None], -1.0)
    return rows, others


def pair_constants(nodes: Sequence[Node], box: Interval, classes: int, r: float) -> Tensor:
    """Bound the Lipschitz constants of all z_j - z_k over a box from above, without a search, (K, K).

    :param nodes: The network.
    :param box: Bounds of one input, (1, ...).
    :param classes: K.
    :param r: Exponent of the ground norm.
    """
    rows, first, second = class_pairs(classes)
    region = propagate(nodes, box)
    norms = JacobianNorms(nodes, region, r)
    found = torch.zeros(classes, classes, dtype=torch.float64)
    for part in parts(len(rows), AT_ONCE):
        own = rows[part]
        bounds = norms.bound(jacobians(nodes, region.repeated(len(own)), own))
        found[first[part], second[part]] = found[second[part], first[part]] = bounds
    return found


def certain_radii(nodes: Sequence[Node], ball: Ball, labels: Tensor, constants: Tensor, largest: Tensor) -> Tensor:
    """Find radii within which no input of the box is classified otherwise.

    :param nodes: The network.
    :param ball: Balls whose centres are the samples, (B, ...); their radii are not read.
    :param labels: Class indices, (B,).
    :param constants: What :func:`pair_constants` returned.
    :param largest: Radius beyond which is not searched, (B,).
    :return: Radii, (B,): 0 where the sample is misclassified or nothing is certain.

    The least margin's bound falls from the margin itself; where it meets 0 is searched by the Illinois rule between a
    radius where it is positive and one where it is not.
    """
    classes = len(constants)
    rows, others = margins_of(labels, classes)

    def bounds(radius: Tensor, where: Tensor) -> Tensor:
        found = torch.full(rows.shape[:2], -math.inf, dtype=torch.float64)
        if where.any():
            found[where] = output_bounds(nodes, ball._replace(radius=radius).rows(where), rows[where])
        return found.nan_to_num(nan=-math.inf)

    at_centre = bounds(torch.zeros_like(largest), torch.ones_like(labels, dtype=torch.bool))
    low, at_low = torch.zeros_like(largest), at_centre.amin(1)
    standing = at_low > 0
    by_norms = (at_centre / constants[labels].gather(1, others)).amin(1)
    slopes = (at_centre - bounds(NEAR * largest, standing)) / (NEAR * largest)[:, None]
    guess = (at_centre / slopes.clamp(min=DIVISOR_FLOOR)).amin(1).clamp(max=largest)
    high, at_high = largest.clone(), torch.full_like(largest, -math.inf)
    for turn in range(TURNS):
        open_ = standing & (high - low > PRECISE * low)
        if not open_.any():
            break
        width = high - low
        crossing = low + width * at_low / (at_low - at_high)
        radius = guess if turn == 0 else torch.where(torch.isfinite(at_high), crossing, torch.minimum(2 * low, high))
        radius = torch.minimum(torch.maximum(radius, low + SHORTEST * width), high)
        found = bounds(radius, open_).amin(1)
        holds = found > 0
        # an end that stays twice gets half its value, so that the other one moves too
        at_high, at_low = torch.where(holds, at_high / 2, found), torch.where(holds, found, at_low / 2)
        low = torch.where(open_ & holds, radius, low)
        high = torch.where(open_ & ~holds, radius, high)
    return torch.where(standing, torch.maximum(low, by_norms.clamp(max=largest)), 0.0)


def worst_losses(nodes: Sequence[Node], ball: Ball, labels: Tensor, classes: int, loss: str) -> Tensor:
    """Bound the loss over balls from above, (B,): the cross-entropy "ce", or "margin", max_j z_j - z_y."""
    rows, _ = margins_of(labels, classes)
    behind = -output_bounds(nodes, ball, rows)
    if loss == "margin":
        return behind.amax(1)
    return torch.cat([behind, behind.new_zeros(len(behind), 1)], 1).logsumexp(1)


def worst_mean(worst: Tensor, radii: Tensor, losses: Tensor, constant: float, eps: float, p: float) -> float:
    """Bound the expected loss over the W_p ball from above, by duality with any multiplier.

    sup E[loss] = min over lambda >= 0 of lambda eps^p + mean_i sup_x' (loss(x') - lambda ||x' - x_i||^p), and in the
    ring between two radii the loss is at most the bound at the outer one, the distance at least the inner one; at the
    distance t it is at most loss(x_i) + L t, too.

    :param worst: Bounds on the loss of every sample within each radius, (N, R).
    :param radii: The radii in order, (R,), the last one the size of the box.
    :param losses: Losses of the samples, (N,).
    :param constant: A Lipschitz constant L of the loss in the box.
    :param eps: Budget.
    :param p: Order, in [1, inf]; inf needs eps among the radii.
    :return: The bound.

    Source: Blanchet, Murthy, 2019, arXiv:1604.01446, for the duality.
    """
    if constant == 0:
        return float(losses.mean())
    if math.isinf(p):
        within = worst[:, radii >= min(eps, radii[-1].item())][:, 0]
        return float(torch.minimum(within, losses + constant * eps).mean())
    # distances, and the Lipschitz constant, in units of eps
    radii, constant = radii / eps, constant * eps
    inner = torch.cat([radii.new_zeros(1), radii[:-1]])
    # the distance in the ring from which the Lipschitz constant says less than the bound
    enough = torch.minimum(torch.maximum((worst - losses[:, None]) / constant, inner), radii)
    bounds = [worst[:, -1].mean().item()]
    # the best multiplier for the Lipschitz constant alone is constant / p
    multipliers = constant * torch.logspace(LEAST_POWER, LARGEST_POWER, MULTIPLIERS, dtype=torch.float64)
    for multiplier in multipliers.tolist():
        if p > 1:
            steepest = math.exp(min(LARGEST_EXPONENT, math.log(constant / (multiplier * p)) / (p - 1)))
        else:
            steepest = math.inf if constant > multiplier else 0.0
        distance = torch.minimum(torch.maximum(radii.new_tensor(steepest), inner), enough)
        within = torch.minimum(worst, losses[:, None] + constant * distance) - multiplier * distance**p
        bounds.append(multiplier + within.amax(1).mean().item())
    return float(min(bounds))
