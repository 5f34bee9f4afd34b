# SPDX-License-Identifier: MIT
"""Bounds on the outputs of a network over balls of inputs, by linear functions carried backwards.

Every activation lies between two lines over the interval of its input; carried back through the network they become
linear functions of the network's input, whose extrema over a ball in a box are known. Activations are bounded one after
the other, each with the lines of those before it.

Source: CROWN, Zhang et al., 2018, arXiv:1811.00866; for graphs with sums, Xu et al., 2020, arXiv:2002.12920.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._bounds.intervals import WIDENING, Ball, Interval
from art_wdro._bounds.jacobians import Region, propagate
from art_wdro._bounds.layers import RELU, Activation, Affine, Node
from art_wdro._storage.arrays import parts
from art_wdro._threat.norms import dual_exponent

AT_ONCE = 2**20
"""Numbers in one array of coefficients, at most."""


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


def output_bounds(nodes: Sequence[Node], ball: Ball, rows: Callable[[slice], Tensor], count: int) -> Tensor:
    """Bound combinations c^T z of the logits from below over balls.

    :param nodes: The network.
    :param ball: B balls.
    :param rows: Makes some of the combinations, (B, some, K), when they are needed.
    :param count: M, the number of combinations.
    :return: Lower bounds, (B, M).
    """
    _, lines, region = unit_bounds(nodes, ball)
    found = torch.zeros(len(ball.centre), count, dtype=torch.float64)
    for part in parts(count, _rows_at_once(region.values)):
        found[:, part] = _lowest(nodes, rows(part), ball, lines, region.values)
    return found


def _rows_at_once(values: Sequence[Interval]) -> int:
    """Return how many combinations of the last node's output are carried back at once."""
    return max(1, AT_ONCE // max(value.lower.numel() for value in values))


def unit_bounds(nodes: Sequence[Node], ball: Ball) -> tuple[dict[int, Interval], dict[int, Lines], Region]:
    """Bound the input of every activation over balls.

    :param nodes: The network.
    :param ball: B balls.
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
                known[source] = _tighter(nodes[: source + 1], node.operation, ball, lines, region.values)
                region = propagate(nodes, ball.hull(), known)
            lines[index] = _lines(node.operation, region.values[source])
    return known, lines, region


def _tighter(
    nodes: Sequence[Node], activation: Activation, ball: Ball, lines: dict[int, Lines], values: list[Interval]
) -> Interval:
    """Bound the units of the last node from both sides, those on which the activation's slope is not known."""
    found = values[len(nodes) - 1]
    shape = found.lower.shape
    lower, upper = (bound.flatten(1).clone() for bound in found)
    least, most = activation.slopes(lower, upper)
    undecided = least < most
    order = undecided.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    for part in parts(int(undecided.sum(1).max()), _rows_at_once(values[: len(nodes)])):
        chosen = order[:, part]
        rows = torch.zeros(*chosen.shape, lower.shape[1], dtype=torch.float64).scatter_(2, chosen[:, :, None], 1.0)
        rows = rows.view(*chosen.shape, *shape[1:])
        below, above = (_lowest(nodes, sign * rows, ball, lines, values) for sign in (1.0, -1.0))
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


def _lowest(nodes: Sequence[Node], rows: Tensor, ball: Ball, lines: dict[int, Lines], values: list[Interval]) -> Tensor:
    """Bound combinations of the last node's output from below: rows is (B, M, ...), the result (B, M)."""
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
            pulled = node.operation.transposed(adjoint.flatten(0, 1), like.shape[1:])
            adjoint = pulled.view(count, many, *like.shape[1:])
        elif isinstance(node.operation, Activation):
            own = Lines(*(part[:, None] for part in lines[index]))
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
    """Minimise linear functions over the balls: return the minima, (B, M), and the size of the terms summed."""
    hull, centre = ball.hull(), ball.centre[:, None]
    corner = torch.where(slope > 0, hull.lower[:, None], hull.upper[:, None])
    in_box = (slope * corner).flatten(2).sum(2)
    at_centre = (slope * centre).flatten(2).sum(2)
    dual = torch.linalg.vector_norm(slope.flatten(2), dual_exponent(ball.r), dim=2)
    in_ball = at_centre - ball.radius[:, None] * dual
    size = (slope.abs() * (centre.abs() + corner.abs())).flatten(2).sum(2) + ball.radius[:, None] * dual
    return torch.maximum(in_box, in_ball), size
