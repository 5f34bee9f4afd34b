# SPDX-License-Identifier: MIT
"""Bounds on the outputs of a network over balls of inputs, by linear functions carried backwards.

Every activation lies between two lines over the interval of its input; carried back through the network they become
linear functions of the network's input, whose extrema over a ball in a box are known. Activations are bounded one after
the other, each with the lines of those before it.

Source: CROWN, Zhang et al., 2018, arXiv:1811.00866; for graphs with sums, Xu et al., 2020, arXiv:2002.12920.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._bounds.intervals import DIVISOR_FLOOR, WIDENING, Ball, Interval
from art_wdro._bounds.jacobians import Region, propagate
from art_wdro._bounds.layers import RELU, Activation, Affine, Node
from art_wdro._storage.arrays import parts
from art_wdro._threat.norms import dual_exponent

AT_ONCE = 2**20
"""Numbers in one array of coefficients, at most."""

ROUNDS = 2
"""Steps towards the best multiplier of a ball's constraint in l_2; any multiplier gives a bound."""
STEEPEST = 32
"""Coordinates among which that multiplier is looked for in l_1."""


class Lines(NamedTuple):
    """Two lines around an activation: slope x + offset, below and above it, one pair a unit."""

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor

    def widened(self, x: Interval) -> Lines:
        """Move the lines apart by what float64 may round away."""
        size = x.largest()
        below = self.lower_offset - WIDENING * (self.lower_offset.abs() + self.lower_slope.abs() * size)
        above = self.upper_offset + WIDENING * (self.upper_offset.abs() + self.upper_slope.abs() * size)
        return Lines(self.lower_slope, below, self.upper_slope, above)


def output_bounds(
    nodes: Sequence[Node],
    ball: Ball,
    rows: Callable[[slice], Tensor],
    count: int,
    bounded: Callable[..., Tensor] | None = None,
    deadline: float = math.inf,
) -> Tensor:
    """Bound combinations c^T z of the logits from below over balls.

    :param nodes: The network.
    :param ball: B balls.
    :param rows: Makes some of the combinations, (B, some, K), when they are needed.
    :param count: M, the number of combinations.
    :param bounded: What bounds them, given what :func:`lowest` is given; None takes that.
    :param deadline: When units are no longer bounded by lines, on the clock of `time.monotonic`.
    :return: Lower bounds, (B, M).
    """
    _, lines, region = unit_bounds(nodes, ball, deadline)
    found = torch.zeros(len(ball.centre), count, dtype=torch.float64)
    for part in parts(count, _rows_at_once(region.values)):
        found[:, part] = (bounded or lowest)(nodes, rows(part), ball, lines, region.values)
    return found


def _rows_at_once(values: Sequence[Interval]) -> int:
    """Return how many combinations of the last node's output are carried back at once."""
    return max(1, AT_ONCE // max(value.lower.numel() for value in values))


def unit_bounds(
    nodes: Sequence[Node], ball: Ball, deadline: float = math.inf
) -> tuple[dict[int, Interval], dict[int, Lines], Region]:
    """Bound the input of every activation over balls.

    :param nodes: The network.
    :param ball: B balls.
    :param deadline: When the rest is left to intervals.
    :return: The bounds by the node that they bound, lines around every activation, and what follows for all nodes.
    """
    known: dict[int, Interval] = {}
    lines: dict[int, Lines] = {}
    region = propagate(nodes, ball.hull())
    for index, node in enumerate(nodes):
        if isinstance(node.operation, Activation):
            source = node.inputs[0]
            # over a box intervals are exact up to the first activation
            if source not in known and (lines or not math.isinf(ball.r)):
                known[source] = _tighter(nodes[: source + 1], node.operation, ball, lines, region.values, deadline)
                region = propagate(nodes, ball.hull(), known)
            lines[index] = _lines(node.operation, region.values[source])
    return known, lines, region


def _tighter(
    nodes: Sequence[Node],
    activation: Activation,
    ball: Ball,
    lines: dict[int, Lines],
    values: list[Interval],
    deadline: float,
) -> Interval:
    """Bound the units of the last node from both sides, those on which the activation's slope is not known."""
    found = values[len(nodes) - 1]
    shape = found.lower.shape
    lower, upper = (bound.flatten(1).clone() for bound in found)
    least, most = activation.slopes(lower, upper)
    undecided = least < most
    order = undecided.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    for part in parts(int(undecided.sum(1).max()), _rows_at_once(values[: len(nodes)])):
        if time.monotonic() > deadline:
            break
        chosen = order[:, part]
        rows = torch.zeros(*chosen.shape, lower.shape[1], dtype=torch.float64).scatter_(2, chosen[:, :, None], 1.0)
        rows = rows.view(*chosen.shape, *shape[1:])
        below, above = (lowest(nodes, sign * rows, ball, lines, values) for sign in (1.0, -1.0))
        lower.scatter_(1, chosen, torch.maximum(lower.gather(1, chosen), below))
        upper.scatter_(1, chosen, torch.minimum(upper.gather(1, chosen), -above))
    return Interval(lower.view(shape), upper.view(shape))


def _lines(activation: Activation, x: Interval) -> Lines:
    """Bound an activation by lines over an interval.

    With slopes in [a, b] it lies above the lines of slope a through its left end and of slope b through its right one,
    which cross inside, and below those with the slopes exchanged. For ReLU, zero or the identity lies closer below.
    """
    lower, upper = x
    first, last = activation.apply(lower), activation.apply(upper)
    least, most = activation.slopes(lower, upper)
    width = upper - lower
    chord = torch.where(width > 0, (last - first) / torch.where(width > 0, width, 1.0), least)
    chord = chord.clamp(least, most)
    if activation is RELU:
        below = torch.where(upper > -lower, most, least)
        return Lines(below, torch.zeros_like(below), chord, first - chord * lower).widened(x)
    gap = torch.where(most > least, most - least, 1.0)
    low = ((first - least * lower - last + most * upper) / gap).clamp(lower, upper)
    high = ((last - least * upper - first + most * lower) / gap).clamp(lower, upper)
    below = torch.minimum(first + least * (low - lower), last - most * (upper - low)) - chord * low
    above = torch.maximum(first + most * (high - lower), last - least * (upper - high)) - chord * high
    return Lines(chord, below, chord, above).widened(x)


def lowest(
    nodes: Sequence[Node],
    rows: Tensor,
    ball: Ball,
    lines: dict[int, Lines],
    values: list[Interval],
    transposed: Callable[[Tensor, Affine, torch.Size], Tensor] = lambda adjoint, map, shape: map.transposed(
        adjoint, shape
    ),
) -> Tensor:
    """Bound combinations of the last node's output from below by lines.

    :param nodes: The network.
    :param rows: The combinations, (B, M, ...).
    :param ball: B balls.
    :param lines: Lines around every activation: slopes and offsets, (B, ...), or (B, M, ...) for each combination.
    :param values: Bounds of every node's output.
    :param transposed: Applies the transposed of a map.
    :return: Lower bounds, (B, M).
    """
    count, many = rows.shape[:2]
    constant = rows.new_zeros(count, many)
    size = rows.new_zeros(count, many)  # what rounding is relative to
    adjoints = {len(nodes) - 1: rows}
    for index in range(len(nodes) - 1, 0, -1):
        adjoint = adjoints.pop(index, None)
        if adjoint is None:
            continue
        node = nodes[index]
        if isinstance(node.operation, Affine):
            like = values[node.inputs[0]].lower
            zero = node.operation.apply(torch.zeros_like(like[:1]))[0]
            constant = constant + (adjoint * zero).flatten(2).sum(2)
            terms = node.operation.absolute(values[node.inputs[0]].largest()) + zero.abs()
            size = size + (adjoint.abs() * terms[:, None]).flatten(2).sum(2)
            pulled = transposed(adjoint.flatten(0, 1), node.operation, like.shape[1:])
            adjoint = pulled.view(count, many, *like.shape[1:])
        elif isinstance(node.operation, Activation):
            own = Lines(*(part if part.dim() == adjoint.dim() else part[:, None] for part in lines[index]))
            positive, negative = adjoint.clamp(min=0.0), adjoint.clamp(max=0.0)
            offsets = positive * own.lower_offset + negative * own.upper_offset
            constant = constant + offsets.flatten(2).sum(2)
            size = size + offsets.abs().flatten(2).sum(2)
            adjoint = positive * own.lower_slope + negative * own.upper_slope
        for source in node.inputs:
            adjoints[source] = adjoint if source not in adjoints else adjoints[source] + adjoint
    slope = adjoints[0]
    lowest, largest = _lowest_over(ball, slope)
    found = constant + lowest - WIDENING * (size + largest + constant.abs())
    return found.nan_to_num(-math.inf, math.inf, -math.inf)


def _lowest_over(ball: Ball, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise linear functions over the balls in their boxes, nearly so, from below.

    By duality with any multiplier t > 0 the minimum of c^T x is at least
        c^T x_0 - sum_j |c_j| m_j + (sum_j m_j^2 - radius^2) / (2 t),  m_j = min(t |c_j|, room_j),  in l_2, and
        c^T x_0 - radius t - sum_j (|c_j| - t)_+ room_j  in l_1,
    where room_j is how far the box lets x_j go.

    :return: Lower bounds of the minima, (B, M), and the size of the terms summed.
    """
    hull, centre, radius = ball.hull(), ball.centre[:, None].flatten(2), ball.radius[:, None]
    slope = slope.flatten(2)
    lower, upper = (bound[:, None].flatten(2) for bound in hull)
    corner = torch.where(slope > 0, lower, upper)
    at_centre = (slope * centre).sum(2)
    size = (slope.abs() * (centre.abs() + corner.abs())).sum(2)
    in_box = (slope * corner).sum(2)
    if math.isinf(ball.r):
        return in_box, size
    steep, room = slope.abs(), (corner - centre).abs()
    dual = torch.linalg.vector_norm(slope, dual_exponent(ball.r), dim=2)
    found = torch.maximum(in_box, at_centre - radius * dual)
    if ball.r == 2.0:
        stretch = _stretch(steep.detach(), room, radius)[..., None]
        moved = torch.minimum(stretch * steep, room)
        spent = (moved.square().sum(2) - radius.square()) / (2 * stretch[..., 0])
        cut = at_centre - (steep * moved).sum(2) + spent
    else:
        price = _price(steep.detach(), room, radius)
        cut = at_centre - radius * price - ((steep - price[..., None]).clamp(min=0.0) * room).sum(2)
    size = size + 2 * radius * dual
    return torch.maximum(found, torch.where(torch.isfinite(cut), cut, found)), size


def _stretch(steep: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """Return nearly the t at which min(t c, room) has the length `radius`, from below, (B, M)."""
    free, left = steep.square(), radius.square()
    stretch = (left / free.sum(2).clamp(min=DIVISOR_FLOOR)).sqrt()
    for _ in range(ROUNDS):
        within = stretch[..., None] * steep < room
        rest = left - torch.where(within, 0.0, room.square()).sum(2)
        over = (free * within).sum(2)
        better = (rest.clamp(min=0.0) / over.clamp(min=DIVISOR_FLOOR)).sqrt()
        stretch = torch.where((rest > 0) & (over > 0), torch.maximum(stretch, better), stretch)
    return stretch


def _price(steep: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """Return the c_j of the last coordinate that a budget `radius` reaches, the steepest first, (B, M), or more."""
    able = steep * (room > 0)
    ordered, order = able.topk(min(STEEPEST, able.shape[2]), dim=2)
    spent = room.expand_as(steep).gather(2, order).cumsum(2)
    reached = (spent < radius[..., None]).sum(2, keepdim=True)
    last = ordered.gather(2, reached.clamp(max=ordered.shape[2] - 1))[..., 0]
    return torch.where(reached[..., 0] < able.shape[2], last, 0.0)
