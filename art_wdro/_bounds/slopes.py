# SPDX-License-Identifier: MIT
"""Better lines below ReLUs: a slope for each unit and each bound, chosen by gradient steps.

Below a ReLU every line of a slope in [0, 1] through 0 holds, so that each choice gives a bound, and the best one
counts.

Source: Xu et al., Fast and complete, 2021, arXiv:2011.13824 (alpha-CROWN); here for the last bounds alone, those of
units stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from art_wdro._bounds.crown import Lines, lowest
from art_wdro._bounds.intervals import WIDENING, Ball, Interval
from art_wdro._bounds.layers import RELU, Affine, Node

RATE = 0.3
"""Length of the first step of a slope; it falls to a tenth."""
FEW = 16
"""The lowest bounds of a sample, which alone are raised."""
MEMORY = 0.7
"""Share of the earlier steps in the next one."""


class _Transposed(torch.autograd.Function):
    """W^T a as a function of a, whose own transposed is W."""

    @staticmethod
    def forward(ctx: Any, adjoint: Tensor, operation: Affine, shape: torch.Size) -> Tensor:
        ctx.operation = operation
        with torch.no_grad():
            return operation.transposed(adjoint, shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        with torch.no_grad():
            return ctx.operation.apply(gradient) - ctx.operation.apply(torch.zeros_like(gradient[:1])), None, None


def raised(
    nodes: Sequence[Node], rows: Tensor, ball: Ball, lines: dict[int, Lines], values: list[Interval], steps: int
) -> Tensor:
    """Bound combinations c^T z of the logits from below, where they are not above 0 already, by better slopes.

    :param nodes: The network.
    :param rows: The combinations, (B, M, K).
    :param ball: B balls.
    :param lines: Lines around every activation.
    :param values: Bounds of every node's output.
    :param steps: Gradient steps, at most.
    :return: The best bounds, (B, M).
    """
    whole = lowest(nodes, rows, ball, lines, values)
    if steps == 0 or (whole > 0).all():
        return whole
    best, which = whole.topk(min(FEW, rows.shape[1]), dim=1, largest=False)
    rows = rows.expand(len(whole), -1, -1).gather(1, which[..., None].expand(-1, -1, rows.shape[2]))
    return whole.scatter(1, which, _climbed(nodes, rows, ball, lines, values, best, steps))


def _climbed(
    nodes: Sequence[Node],
    rows: Tensor,
    ball: Ball,
    lines: dict[int, Lines],
    values: list[Interval],
    best: Tensor,
    steps: int,
) -> Tensor:
    """Raise bounds, (B, M), by gradient steps."""
    free = {index: _start(lines[index], rows.shape[1]) for index in lines if nodes[index].operation is RELU}
    undecided = {
        index: (values[nodes[index].inputs[0]].lower < 0) & (values[nodes[index].inputs[0]].upper > 0) for index in free
    }
    if not any(which.any() for which in undecided.values()):
        return best
    speed = {index: torch.zeros_like(slope) for index, slope in free.items()}
    for step in range(steps):
        if (best > 0).all():
            break
        with torch.enable_grad():
            for slope in free.values():
                slope.requires_grad_()
            tilted = lines | {
                index: _tilted(lines[index], slope, values, nodes[index]) for index, slope in free.items()
            }
            found = lowest(nodes, rows, ball, tilted, values, _Transposed.apply)
            gradients = torch.autograd.grad(found.sum(), list(free.values()), allow_unused=True, materialize_grads=True)
        # a bound above 0 stays as it is, so that none depends on those beside it
        best = torch.where(best > 0, best, torch.maximum(best, found.detach()))
        rate = RATE * 0.1 ** (step / max(1, steps - 1))
        for (index, slope), gradient in zip(free.items(), gradients, strict=True):
            size = gradient.abs().flatten(2).mean(2).view(*gradient.shape[:2], *[1] * (gradient.dim() - 2))
            pace = gradient / (gradient.abs() + size).clamp(min=torch.finfo(gradient.dtype).tiny)
            speed[index] = MEMORY * speed[index] + (1 - MEMORY) * pace.nan_to_num(0.0)
            moved = (slope.detach() + rate * speed[index] / (1 - MEMORY ** (step + 1))).clamp(0.0, 1.0)
            free[index] = torch.where(undecided[index][:, None], moved, slope.detach())
    return best


def _start(lines: Lines, count: int) -> Tensor:
    return lines.lower_slope[:, None].repeat(1, count, *[1] * (lines.lower_slope.dim() - 1))


def _tilted(lines: Lines, slope: Tensor, values: list[Interval], node: Node) -> Lines:
    """Return the lines with other slopes below, as far down as a slope of 1 would need for rounding."""
    below = -WIDENING * values[node.inputs[0]].largest()
    return lines._replace(lower_slope=slope, lower_offset=below)
