# SPDX-License-Identifier: MIT
"""The largest dual norm of a margin's Jacobian over a ball of inputs, by branch and bound over activation cells.

A network of piecewise linear activations is affine on every cell of inputs for which each unit stays on one piece. The
search splits the units whose piece is not known, bounds the Jacobian over what is left, and drops what cannot hold the
largest norm, or holds no input. Where all pieces are known, a linear programme tells whether the ball meets the cell.
A network with smooth activations has no cells: there the box around the ball is halved instead.

Sources: branching over units, Bunel et al., 2018, arXiv:1711.00455; exact local Lipschitz constants by mixed
programmes, Jordan, Dimakis, 2020, arXiv:2003.01219.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._bounds.cells import OUTSIDE, Cell
from art_wdro._bounds.crown import unit_bounds
from art_wdro._bounds.intervals import Ball, Interval
from art_wdro._bounds.jacobians import Region, jacobians, propagate
from art_wdro._bounds.layers import Activation, Node
from art_wdro._bounds.operator_norms import JacobianNorms, OperatorNorms
from art_wdro._bounds.pairs import differences, pair_count, pairs_at
from art_wdro._bounds.random_search import LowerBound, reach

AT_ONCE = 64
"""Branches that are bounded in one pass."""
CLOSED = 1e-9
"""Relative amount by which a branch must exceed the lower bound to be searched."""
FEW_UNITS = 1024
"""Units up to which linear bounds of their inputs are worth their time."""


class Bounds(NamedTuple):
    """Bounds on the largest dual norm.

    :param lower: Met at some input.
    :param upper: Met nowhere.
    :param exact: Whether the two are one up to rounding.
    """

    lower: float
    upper: float
    exact: bool


class Piece(NamedTuple):
    """A unit kept on one piece: its input lies in [start, end]."""

    node: int
    unit: int
    start: float
    end: float


@dataclass(order=True, slots=True)
class Branch:
    """A part of the search: some units on known pieces, or a smaller box.

    :param order: The bound of it, negated, by which the search takes branches.
    :param number: In which order they were made.
    :param pair: Number of the pair of classes that it is about.
    :param pieces: Units whose piece is known.
    :param box: Where the inputs are.
    :param split: What it falls into: pieces of one unit, or halves along one input; None if it was not looked into.
    """

    order: float
    number: int
    pair: int = field(compare=False)
    pieces: tuple[Piece, ...] = field(compare=False)
    box: Interval = field(compare=False)
    split: tuple[Piece, ...] | int | None = field(compare=False, default=None)


def largest_jacobian(
    nodes: Sequence[Node],
    ball: Ball,
    classes: int,
    *,
    seconds: float = 10.0,
    branches: int | None = None,
    norms: OperatorNorms | None = None,
) -> Bounds:
    """Bound the largest dual norm of the Jacobians of differences of two logits over a ball.

    :param nodes: The network.
    :param ball: A single ball.
    :param classes: K, the number of logits; the largest norm over all pairs of them is bounded.
    :param seconds: Time after which the bounds so far are returned.
    :param branches: Number of branches after which they are; None sets no limit.
    :param norms: What :func:`operator_norms` returned, for several searches in one network; None computes it.
    :return: The bounds, which hold at any time.
    """
    search = _Search(nodes, ball, classes, time.monotonic() + seconds, norms)
    search.lower.climb()
    while not search.is_over() and (branches is None or search.count < branches):
        if search.left() <= search.lower.value * (1 + CLOSED):
            break
        search.push([child for branch in search.take() for child in search.parts(branch)])
    top = max(search.lower.value * (1 + CLOSED), search.settled, search.left())
    return Bounds(search.lower.value, top, top <= search.lower.value * (1 + 2 * CLOSED) < math.inf)


class _Search:
    """The state of one search."""

    def __init__(
        self, nodes: Sequence[Node], ball: Ball, classes: int, deadline: float, norms: OperatorNorms | None
    ) -> None:
        self.nodes, self.ball, self.classes, self.deadline = nodes, ball, classes, deadline
        self.activations = [i for i, node in enumerate(nodes) if isinstance(node.operation, Activation)]
        self.smooth = any(not self._activation(index).kinks for index in self.activations)
        self.heap: list[Branch] = []
        self.settled = 0.0
        self.count = 0
        self._pairs, self._begun = pair_count(classes), 0
        self._numbers = itertools.count(self._pairs)
        region = propagate(nodes, ball.hull())
        self.shapes = [values.lower.shape[1:] for values in region.values]
        self._known: dict[int, Interval] = {}
        if sum(math.prod(self.shapes[index]) for index in self.activations) <= FEW_UNITS:
            self._known, _, region = unit_bounds(nodes, ball)
        self._norms = JacobianNorms(nodes, region, ball.r, norms)
        self._reach = reach(nodes, region)
        self.lower = LowerBound(nodes, ball, classes, self._reach, deadline)
        self._whole = Interval(*(bound[0] for bound in ball.hull()))
        # the same for all pairs, and no part of one has a larger bound
        self._product = self._norms.product(self._rows([0])).item()

    def is_over(self) -> bool:
        """Tell whether the time is over."""
        return time.monotonic() > self.deadline

    def _activation(self, index: int) -> Activation:
        operation = self.nodes[index].operation
        assert isinstance(operation, Activation)
        return operation

    def _rows(self, numbers: Sequence[int]) -> Tensor:
        """Return pairs of classes as combinations of the logits, one a row."""
        return differences(*pairs_at(torch.tensor(numbers), self.classes), self.classes)

    def left(self) -> float:
        """Return the largest bound of what is still to be searched."""
        if self._begun < self._pairs:
            return self._product
        return -self.heap[0].order if self.heap else 0.0

    def take(self) -> list[Branch]:
        """Return the branches with the largest bounds: first the pairs of classes that were not looked into."""
        numbers = range(self._begun, min(self._begun + AT_ONCE, self._pairs))
        self._begun += len(numbers)
        taken = [Branch(-self._product, number, number, (), self._whole) for number in numbers]
        while self.heap and len(taken) < AT_ONCE:
            taken.append(heapq.heappop(self.heap))
        return taken

    def push(self, branches: list[Branch]) -> None:
        """Bound branches, and keep those that may hold the largest norm."""
        for start in range(0, len(branches), AT_ONCE):
            self._bound(branches[start : start + AT_ONCE])

    def _bound(self, branches: list[Branch]) -> None:
        self.count += len(branches)
        inputs = Interval(*(torch.stack([branch.box[side] for branch in branches]) for side in (0, 1)))
        region = propagate(self.nodes, inputs, self._bounds_of(branches))
        jacobian = jacobians(self.nodes, region, self._rows([branch.pair for branch in branches]))
        norms = self._norms.bound(jacobian)
        empty = torch.stack([(v.lower > v.upper).flatten(1).any(1) for v in region.values]).any(0)
        centre = self.ball.centre
        empty |= self.ball.outside(torch.minimum(torch.maximum(centre, inputs.lower), inputs.upper)) > -OUTSIDE
        for place, branch in enumerate(branches):
            bound = min(norms[place].item(), -branch.order)
            if empty[place] or bound <= self.lower.value * (1 + CLOSED):
                continue
            split = self._choose(region, jacobian.weights, place)
            if split is None:
                self._settle(bound, region, place)
            else:
                kept = Branch(-bound, next(self._numbers), branch.pair, branch.pieces, branch.box, split)
                heapq.heappush(self.heap, kept)

    def _bounds_of(self, branches: list[Branch]) -> dict[int, Interval]:
        """Return what is known of units' inputs on branches, by the node that puts them out."""
        known = {index: bounds.repeated(len(branches)) for index, bounds in self._known.items()}
        held: set[int] = set()
        for place, branch in enumerate(branches):
            for piece in branch.pieces:
                source = self.nodes[piece.node].inputs[0]
                if source not in held:
                    shape = (len(branches), *self.shapes[source])
                    free = torch.full(shape, math.inf, dtype=torch.float64)
                    known[source] = Interval(*(bound.clone() for bound in known.get(source, Interval(-free, free))))
                    held.add(source)
                lower, upper = (bound[place].view(-1) for bound in known[source])
                lower[piece.unit] = max(lower[piece.unit].item(), piece.start)
                upper[piece.unit] = min(upper[piece.unit].item(), piece.end)
        return known

    def _choose(self, region: Region, weights: dict[int, Tensor], place: int) -> tuple[Piece, ...] | int | None:
        """Choose the unit, or for smooth activations the input, whose split promises most; None if there is none."""
        if self.smooth:
            width = region.values[0].upper[place] - region.values[0].lower[place]
            return int(width.argmax()) if width.max() > 0 else None
        best, chosen = (0.0, 0.0), None
        for index, weight in weights.items():
            slope = region.slopes[index]
            doubt = ((slope.upper - slope.lower)[place] * self._reach[self.nodes[index].inputs[0]]).nan_to_num(0.0)
            gain = (doubt * weight[place]).nan_to_num(0.0, math.inf)
            # a unit without weight in the Jacobian still decides where the cell lies
            at = int(gain.argmax()) if gain.max() > 0 else int(doubt.argmax())
            most = gain.view(-1)[at].item(), doubt.view(-1)[at].item()
            if most > best:
                best, chosen = most, (index, at)
        if chosen is None:
            return None
        index, unit = chosen
        low, high = (bound[place].view(-1)[unit].item() for bound in region.values[self.nodes[index].inputs[0]])
        pieces = self._activation(index).pieces
        return tuple(Piece(index, unit, start, end) for start, end in pieces if start <= high and end >= low)

    def parts(self, branch: Branch) -> list[Branch]:
        """Return the parts of a branch; one that was not looked into is its own."""
        if branch.split is None:
            return [branch]
        if isinstance(branch.split, tuple):
            return [replace(branch, pieces=(*branch.pieces, piece), split=None) for piece in branch.split]
        lower, upper = branch.box
        middle = (lower.flatten()[branch.split] + upper.flatten()[branch.split]) / 2
        self.lower.visit(self.ball.pulled(((lower + upper) / 2)[None]))
        below, above = upper.clone(), lower.clone()
        below.view(-1)[branch.split] = middle
        above.view(-1)[branch.split] = middle
        boxes = Interval(lower, below), Interval(above, upper)
        return [replace(branch, box=box, split=None) for box in boxes]

    def _settle(self, bound: float, region: Region, place: int) -> None:
        """Let the norm on a cell of which all is known count, unless the ball misses it."""
        room, point = 0.0, self.ball.centre[0]
        if self.activations and not self.is_over():
            cell = Cell(self.nodes, {i: self._piece(region, i, place) for i in self.activations}, self.shapes[0])
            room, point = cell.deepest(self.ball, self.deadline - time.monotonic())
        if room >= OUTSIDE:
            self.lower.visit(point[None])
            self.settled = max(self.settled, bound)

    def _piece(self, region: Region, index: int, place: int) -> tuple[Tensor, Tensor]:
        """Return the piece of every unit of an activation."""
        source = region.values[self.nodes[index].inputs[0]]
        middle = (source.lower[place] + source.upper[place]) / 2
        starts, ends = (torch.full_like(middle, sign * math.inf) for sign in (-1.0, 1.0))
        for start, end in self._activation(index).pieces:
            inside = (middle >= start) & (middle <= end)
            starts, ends = torch.where(inside, start, starts), torch.where(inside, end, ends)
        return starts, ends
