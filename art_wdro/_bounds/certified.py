# SPDX-License-Identifier: MIT
"""Certified radii of samples, and bounds on the worst expected loss, from bounds of margins over balls."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._bounds.crown import output_bounds
from art_wdro._bounds.intervals import DIVISOR_FLOOR, Ball, Interval
from art_wdro._bounds.jacobians import jacobians, propagate
from art_wdro._bounds.layers import Node
from art_wdro._bounds.operator_norms import JacobianNorms
from art_wdro._bounds.pairs import differences, other_classes
from art_wdro._bounds.slopes import raised
from art_wdro._storage.arrays import parts

TURNS = 10
"""Evaluations of the bounds in the search for a radius."""
SLOPE_STEPS = 10
"""Gradient steps for the slopes of a bound that is not above 0."""
PRECISE = 0.01
"""Relative width from which a radius counts as found."""
NEAR = 1e-4
"""Radius, relative to the largest, from which the slope of the bounds is taken."""
SHORTEST = 0.05
"""Least step of the search, in widths of the interval that is left."""
AT_ONCE = 256
"""Pairs of classes whose Jacobians are bounded in one pass, at most."""
LEAST_POWER, LARGEST_POWER, MULTIPLIERS = -6, 3, 1000
"""The multipliers that the dual tries: powers of ten, in units of the Lipschitz constant, and how many."""
LARGEST_EXPONENT = 700.0
"""Largest x for which e^x is computed: float64 ends at 709."""
ENTRIES = 2**20
"""Numbers in one array of that pass, and constants that are kept, at most."""


class PairConstants:
    """Lipschitz constants of the margins over a box, bounded from above without a search, label by label.

    :param nodes: The network.
    :param box: Bounds of one input, (1, ...).
    :param classes: K.
    :param r: Exponent of the ground norm.
    """

    def __init__(self, nodes: Sequence[Node], box: Interval, classes: int, r: float) -> None:
        self._nodes, self._classes = nodes, classes
        self._region = propagate(nodes, box)
        self._norms = JacobianNorms(nodes, self._region, r)
        # a constant says nothing about what overflows
        self._in_range = all(torch.isfinite(values.lower).all() for values in self._region.values)
        widest = max(values.lower.numel() for values in self._region.values)
        self._at_once = min(AT_ONCE, max(1, ENTRIES // widest))
        self.of: Callable[[int], Tensor] = functools.lru_cache(max(1, ENTRIES // classes))(self._of)

    def _of(self, label: int) -> Tensor:
        """Return the constants of z_y - z_j for every other class j, (K - 1,)."""
        labels = torch.tensor([label])
        others = other_classes(labels, self._classes)[0]
        found = torch.full((len(others),), math.inf, dtype=torch.float64)
        if not self._in_range:
            return found
        for part in parts(len(others), self._at_once):
            rows = differences(labels, others[part], self._classes)
            found[part] = self._norms.bound(jacobians(self._nodes, self._region.repeated(len(rows)), rows))
        return found


def margin_bounds(
    nodes: Sequence[Node], ball: Ball, labels: Tensor, classes: int, *, steps: int = 0, deadline: float = math.inf
) -> Tensor:
    """Bound z_y - z_j for every other class j from below over balls, (B, K - 1).

    :param steps: Gradient steps for better slopes where a bound is not above 0.
    :param deadline: When units are no longer bounded by lines, on the clock of `time.monotonic`.
    """
    others = other_classes(labels, classes)
    return output_bounds(
        nodes,
        ball,
        lambda part: differences(labels[:, None], others[:, part], classes),
        others.shape[1],
        functools.partial(raised, steps=steps) if steps else None,
        deadline,
    )


class Certain(NamedTuple):
    """Radii within which no input of the box is classified otherwise.

    :param radii: The radii, (B,): 0 where the sample is misclassified or nothing is certain.
    :param unfinished: Where the time was over before the search was, (B,).
    """

    radii: Tensor
    unfinished: Tensor


def certain_radii(
    nodes: Sequence[Node], ball: Ball, labels: Tensor, constants: Tensor, largest: Tensor, seconds: float = math.inf
) -> Certain:
    """Find radii within which no input of the box is classified otherwise.

    :param nodes: The network.
    :param ball: Balls whose centres are the samples, (B, ...); their radii are not read.
    :param labels: Class indices, (B,).
    :param constants: What :class:`PairConstants` returned for each label, (B, K - 1).
    :param largest: Radius beyond which is not searched, (B,).
    :param seconds: Time after which what was found so far is returned.
    :return: The radii.

    The least margin's bound falls from the margin itself; where it meets 0 is searched by the Illinois rule between a
    radius where it is positive and one where it is not.
    """
    deadline = time.monotonic() + seconds

    def bounds(radius: Tensor, where: Tensor) -> Tensor:
        found = torch.full_like(constants, -math.inf)
        if where.any():
            balls = ball._replace(radius=radius).rows(where)
            found[where] = margin_bounds(
                nodes, balls, labels[where], constants.shape[1] + 1, steps=SLOPE_STEPS, deadline=deadline
            )
        return found

    at_centre = bounds(torch.zeros_like(largest), torch.ones_like(labels, dtype=torch.bool))
    low, at_low = torch.zeros_like(largest), at_centre.amin(1)
    standing = at_low > 0
    by_norms = torch.where(at_centre > 0, at_centre / constants, 0.0).amin(1)
    slopes = (at_centre - bounds(NEAR * largest, standing)) / (NEAR * largest)[:, None]
    guess = (at_centre / slopes.clamp(min=DIVISOR_FLOOR)).amin(1).clamp(max=largest)
    high, at_high = largest.clone(), torch.full_like(largest, -math.inf)
    for turn in range(TURNS):
        open_ = standing & (high - low > PRECISE * low)
        if not open_.any() or time.monotonic() > deadline:
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
    open_ = standing & (high - low > PRECISE * low) & (time.monotonic() > deadline)
    return Certain(torch.where(standing, torch.maximum(low, by_norms.clamp(max=largest)), 0.0), open_)


def worst_losses(nodes: Sequence[Node], ball: Ball, labels: Tensor, classes: int, loss: str) -> Tensor:
    """Bound the loss over balls from above, (B,): the cross-entropy "ce", or "margin", max_j z_j - z_y."""
    behind = -margin_bounds(nodes, ball, labels, classes)
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
    if constant * eps == 0:
        return float(losses.mean())
    if math.isinf(p):
        within = worst[:, radii >= min(eps, radii[-1].item())][:, 0]
        return float(torch.minimum(within, losses + constant * eps).mean())
    if math.isinf(constant * eps):
        return float(worst[:, -1].mean())
    # distances, and the Lipschitz constant, in units of eps
    radii, constant = radii / eps, constant * eps
    inner = torch.cat([radii.new_zeros(1), radii[:-1]])
    # the distance in the ring from which the Lipschitz constant says less than the bound
    enough = torch.minimum(torch.maximum((worst - losses[:, None]) / constant, inner), radii)
    bounds = [worst[:, -1].mean().item()]
    # multipliers in units of the constant; the best one for it alone is 1 / p
    for factor in torch.logspace(LEAST_POWER, LARGEST_POWER, MULTIPLIERS, dtype=torch.float64).tolist():
        multiplier = constant * factor
        distance = torch.minimum(torch.maximum(radii.new_tensor(_turning_point(factor, p)), inner), enough)
        within = torch.minimum(worst, losses[:, None] + constant * distance) - multiplier * distance**p
        within = within.nan_to_num(math.inf, math.inf, -math.inf)
        bounds.append(multiplier + within.amax(1).mean().item())
    return float(min(bounds))


def _turning_point(factor: float, p: float) -> float:
    """Return the t >= 0 at which t - factor t^p is largest."""
    if p == 1:
        return math.inf if factor < 1 else 0.0
    return math.exp(min(LARGEST_EXPONENT, -math.log(factor * p) / (p - 1)))
