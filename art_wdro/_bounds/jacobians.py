# SPDX-License-Identifier: MIT
"""Bounds on the Jacobians of margins over boxes of inputs: intervals forwards, then intervals of slopes backwards.

Over a box every activation's slope lies in an interval, and the Jacobian of a margin c^T z is c^T W D_k W ... D_1 W for
slopes D within them. Products and sums of intervals bound it; where all slopes are numbers they give it exactly.

Source: the bounds by interval products are those of Weng et al., Fast-Lip, 2018, arXiv:1804.09699, here for graphs with
sums and any activation whose slope is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._bounds.intervals import LARGEST, WIDENING, Interval
from art_wdro._bounds.layers import Activation, Affine, Node


class Region(NamedTuple):
    """What is known of a network over boxes of inputs, one box a row.

    :param values: Bounds of every node's output.
    :param slopes: Bounds of every activation's slopes, by node.
    """

    values: list[Interval]
    slopes: dict[int, Interval]

    def repeated(self, count: int) -> Region:
        """Return the region of a single box as often as needed."""
        values = [interval.repeated(count) for interval in self.values]
        return Region(values, {index: interval.repeated(count) for index, interval in self.slopes.items()})


def propagate(nodes: Sequence[Node], inputs: Interval, known: dict[int, Interval] | None = None) -> Region:
    """Bound every node's output and every activation's slope over boxes of inputs.

    :param nodes: The network.
    :param inputs: Boxes, (B, ...).
    :param known: Further bounds of nodes' outputs that hold, by node.
    :return: The bounds. Where `known` contradicts them a lower bound exceeds the upper one.
    """
    values: list[Interval] = []
    slopes: dict[int, Interval] = {}
    for index, node in enumerate(nodes):
        if not node.inputs:
            found = inputs
        elif isinstance(node.operation, Affine):
            found = _affine(node.operation, values[node.inputs[0]])
        elif isinstance(node.operation, Activation):
            before = values[node.inputs[0]]
            slopes[index] = Interval(*node.operation.slopes(*before)).sound()
            found = Interval(*node.operation.values(*before))
            if not node.operation.kinks:
                slopes[index], found = slopes[index].widened(), found.widened()
        else:
            parts = [values[source] for source in node.inputs]
            found = Interval(sum(p.lower for p in parts), sum(p.upper for p in parts)).widened()  # type: ignore[arg-type]
        found = found.within_range()
        if known is not None and index in known:
            found = Interval(
                torch.maximum(found.lower, known[index].lower), torch.minimum(found.upper, known[index].upper)
            )
        values.append(found)
    return Region(values, slopes)


def _affine(operation: Affine, x: Interval) -> Interval:
    centre, radius = (x.lower + x.upper) / 2, ((x.upper - x.lower) / 2).abs()
    middle, reach = operation.apply(centre), operation.absolute(radius)
    size = operation.absolute(centre.abs())  # what rounding is relative to
    reach = torch.where(size + reach > LARGEST, math.inf, reach + WIDENING * (reach + size + middle.abs()))
    return Interval(middle - reach, middle + reach)


class Jacobian(NamedTuple):
    """Bounds of the Jacobian of c^T z over boxes of inputs.

    :param bounds: Of every partial derivative, (B, ...).
    :param weights: The largest |d c^T z / d h| with h the output of each activation, by node.
    :param cuts: The same for every node through which all paths lead, the input and the logits among them.
    """

    bounds: Interval
    weights: dict[int, Tensor]
    cuts: dict[int, Tensor]


def jacobians(nodes: Sequence[Node], region: Region, rows: Tensor) -> Jacobian:
    """Bound the Jacobian of c^T z over the boxes of a region.

    :param nodes: The network.
    :param region: What :func:`propagate` found, B boxes.
    :param rows: The combinations c of the logits, (B, K).
    """
    weights: dict[int, Tensor] = {}
    cuts: dict[int, Tensor] = {}
    adjoints: dict[int, Interval] = {len(nodes) - 1: Interval(rows, rows)}
    for index in range(len(nodes) - 1, 0, -1):
        adjoint = adjoints.pop(index, None)
        if adjoint is None:
            continue
        if not adjoints:
            cuts[index] = adjoint.largest()
        node = nodes[index]
        if isinstance(node.operation, Affine):
            adjoint = _transposed(node.operation, region.values[node.inputs[0]].lower.shape[1:], adjoint)
        elif isinstance(node.operation, Activation):
            weights[index] = adjoint.largest()
            adjoint = adjoint.times(region.slopes[index]).sound()
        for source in node.inputs:
            earlier = adjoints.get(source)
            adjoints[source] = (
                adjoint
                if earlier is None
                else Interval(earlier.lower + adjoint.lower, earlier.upper + adjoint.upper).widened().sound()
            )
    cuts[0] = adjoints[0].largest()
    return Jacobian(adjoints[0], weights, cuts)


def _transposed(operation: Affine, shape: torch.Size, adjoint: Interval) -> Interval:
    """Apply the transposed map W^T to intervals."""
    centre, radius = (adjoint.lower + adjoint.upper) / 2, (adjoint.upper - adjoint.lower) / 2
    middle = operation.transposed(centre, shape)
    reach, size = (operation.absolute_transposed(values, shape) for values in (radius, centre.abs()))
    reach = reach + WIDENING * (reach + size)
    return Interval(middle - reach, middle + reach).sound()
