# SPDX-License-Identifier: MIT
"""The steps of a network that bounds know: affine maps, sums and activations, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Map = Callable[[Tensor], Tensor]
Pull = Callable[[Tensor, torch.Size], Tensor]
"""From what a map's output is multiplied with, (N, ...), and the shape of one input, to the same for its input."""
FLAT = 1e3
"""Size of an input from which on GELU and SiLU are 0 or the identity in float64."""

BELOW = 1e-300
"""Where a derivative that jumps at 0 still has its value below 0."""
SOFTPLUS_LARGEST = 88
"""Largest threshold of a Softplus with bounds: beyond it torch's exponential overflows float32."""
SOFTPLUS_THRESHOLD = 20
"""Least threshold of a Softplus with bounds: torch jumps to the identity there, by less than float32 rounds."""


@dataclass(frozen=True)
class Affine:
    """An affine map x -> Wx + b, sample by sample.

    :param apply: The map itself.
    :param absolute: x -> |W| x.
    :param pull: a -> W^T a of a layer with weights; None leaves it to autograd.
    :param pull_absolute: a -> |W|^T a.
    :param products: Multiplications that it takes for one sample, those by single numbers a unit apart.
    """

    apply: Map
    absolute: Map
    pull: Pull | None = None
    pull_absolute: Pull | None = None
    products: int = 0

    def transposed(self, adjoint: Tensor, shape: torch.Size) -> Tensor:
        """Return W^T a, (N, *shape)."""
        return (self.pull or _pulled(self.apply))(adjoint, shape)

    def absolute_transposed(self, adjoint: Tensor, shape: torch.Size) -> Tensor:
        """Return |W|^T a, (N, *shape)."""
        return (self.pull_absolute or _pulled(self.absolute))(adjoint, shape)


def _pulled(apply: Map) -> Pull:
    def pull(adjoint: Tensor, shape: torch.Size) -> Tensor:
        point = adjoint.new_zeros(len(adjoint), *shape).requires_grad_()
        with torch.enable_grad():
            out = apply(point)
        return torch.autograd.grad(out, point, adjoint.reshape(out.shape))[0]

    return pull


@dataclass(frozen=True)
class Activation:
    """A function of single numbers whose derivative is piecewise monotone.

    :param apply: The function.
    :param slope: Its derivative.
    :param turns: Where the derivative has its local extrema or jumps, in order.
    :param kinks: Where it jumps: the function is affine between kinks if it has any.
    :param steps: Its derivative before, between and after the kinks.
    """

    apply: Map
    slope: Map
    turns: tuple[float, ...] = ()
    kinks: tuple[float, ...] = ()
    steps: tuple[float, ...] = ()

    @property
    def pieces(self) -> list[tuple[float, float]]:
        """The intervals on which the function is affine if it has kinks."""
        return list(itertools.pairwise((-math.inf, *self.kinks, math.inf)))

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the largest derivative inside [lower, upper]; at a kink itself both sides count."""
        if self.kinks:
            least, most = torch.full_like(lower, math.inf), torch.full_like(lower, -math.inf)
            for (start, end), step in zip(self.pieces, self.steps, strict=True):
                value = lower.new_tensor(step)
                inside = (lower < end) & (upper > start)
                point = (lower == upper) & (lower <= end) & (upper >= start)
                least = torch.where(inside | point, torch.minimum(least, value), least)
                most = torch.where(inside | point, torch.maximum(most, value), most)
            return least, most
        ends = [self.slope(lower), self.slope(upper)]
        least, most = torch.minimum(*ends), torch.maximum(*ends)
        for turn in self.turns:
            value = self.slope(lower.new_tensor(turn))
            met = (lower <= turn) & (upper >= turn)
            least = torch.where(met, torch.minimum(least, value), least)
            most = torch.where(met, torch.maximum(most, value), most)
        return least, most

    def values(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds of the function on [lower, upper], from its ends and the bounds of its derivative."""
        least, most = self.slopes(lower, upper)
        first, last, width = self.apply(lower), self.apply(upper), upper - lower
        monotone = (least >= 0) | (most <= 0)
        low = torch.minimum(first, last)
        high = torch.maximum(first, last)
        below = torch.maximum(first + least * width, last - most * width)
        above = torch.minimum(first + most * width, last - least * width)
        return torch.where(monotone, low, below), torch.where(monotone, high, above)


@dataclass(frozen=True)
class Node:
    """One step of the network: the indices of the nodes that it reads, and what it does to them.

    :param inputs: Indices of earlier nodes; none for the input of the network.
    :param operation: An affine map or an activation of one node; None adds all of them, and is also the input.
    """

    inputs: tuple[int, ...]
    operation: Affine | Activation | None = None


Pieces = dict[int, tuple[Tensor, Tensor]]
"""Slope and offset of every unit of an activation, by node."""


def run(nodes: Sequence[Node], x: Tensor, pieces: Pieces | None = None) -> list[Tensor]:
    """Run the network, activations replaced by `pieces` where they name them: return every node's output."""
    values: list[Tensor] = []
    for index, node in enumerate(nodes):
        if not node.inputs:
            values.append(x)
        elif node.operation is None:
            values.append(torch.stack([values[source] for source in node.inputs]).sum(0))
        elif pieces is not None and index in pieces:
            slope, offset = pieces[index]
            values.append(values[node.inputs[0]] * slope + offset)
        else:
            values.append(node.operation.apply(values[node.inputs[0]]))
    return values


ABSOLUTE = Activation(torch.abs, lambda x: torch.where(x > 0, 1.0, -1.0).to(x.dtype), kinks=(0.0,), steps=(-1.0, 1.0))
RELU = Activation(torch.relu, lambda x: (x > 0).to(x.dtype), kinks=(0.0,), steps=(0.0, 1.0))


def _leaky(slope: float) -> Activation:
    return Activation(
        lambda x: F.leaky_relu(x, slope),
        lambda x: torch.where(x > 0, x.new_ones(()), x.new_tensor(slope)),
        kinks=(0.0,),
        steps=(slope, 1.0),
    )


def _hardtanh(low: float, high: float) -> Activation:
    return Activation(
        lambda x: x.clamp(low, high),
        lambda x: ((x > low) & (x < high)).to(x.dtype),
        kinks=(float(low), float(high)),
        steps=(0.0, 1.0, 0.0),
    )


def _clamp(low: Any, high: Any) -> Activation:
    """Return the function that keeps numbers between two ends, each a number or None for none."""
    ends = [(low, -math.inf), (high, math.inf)]
    if any(isinstance(end, Tensor) and end.numel() > 1 for end, _ in ends):
        raise ValueError("the network holds clamp with a tensor; allowed are numbers")
    least, most = (none if end is None else float(end) for end, none in ends)
    if not least < most:
        raise ValueError(f"the network holds clamp with min={least:g} and max={most:g}; needed is min < max")
    kinks = tuple(end for end in (least, most) if math.isfinite(end))
    steps = ((0.0,) if math.isfinite(least) else ()) + (1.0,) + ((0.0,) if math.isfinite(most) else ())
    return Activation(
        lambda x: x.clamp(least, most), lambda x: ((x > least) & (x < most)).to(x.dtype), kinks=kinks, steps=steps
    )


def _elu(alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> Activation:
    """Return x above 0 and alpha (e^x - 1) below, whose derivative may jump at 0."""
    if scale not in (False, 1.0) or input_scale != 1.0 or not alpha > 0:  # torch.nn.functional has `inplace` there
        raise ValueError(
            f"the network holds ELU with alpha={alpha:g}, scale={scale:g} and input_scale={input_scale:g}; allowed are "
            "alpha > 0 and scales of 1"
        )
    return Activation(
        lambda x: torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0.0))),
        lambda x: torch.where(x >= 0, 1.0, alpha * torch.exp(x.clamp(max=0.0))),
        turns=(-BELOW, 0.0),
    )


def _softplus(beta: float, threshold: float) -> Activation:
    """Return log(1 + e^(beta x)) / beta.

    Torch jumps to x at the threshold: from 20 on by less than float32 rounds; beyond 88 its exponential overflows.
    """
    if not threshold >= SOFTPLUS_THRESHOLD:
        raise ValueError(f"the network holds Softplus with threshold={threshold:g}; allowed is 20 or more")
    if not threshold <= SOFTPLUS_LARGEST:
        raise ValueError(f"the network holds Softplus with threshold={threshold:g}; allowed is 88 or less")
    if beta == 0:
        raise ValueError("the network holds Softplus with beta=0; allowed is any other number")
    return Activation(
        lambda x: torch.logaddexp(beta * x, torch.zeros_like(x)) / beta, lambda x: torch.sigmoid(beta * x)
    )


def _gelu(approximate: str) -> Activation:
    if approximate != "none":
        raise ValueError(f"the network holds GELU with approximate={approximate!r}; allowed is 'none'")
    root = math.sqrt(2.0)

    def apply(x: Tensor) -> Tensor:
        return x * torch.erfc(-x / root) / 2  # torch's own loses its digits far below 0

    def slope(x: Tensor) -> Tensor:
        x = x.clamp(-FLAT, FLAT)
        return torch.erfc(-x / root) / 2 + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    return Activation(apply, slope, turns=(-root, root))


def _silu_slope(x: Tensor) -> Tensor:
    x = x.clamp(-FLAT, FLAT)
    return torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))


SILU = Activation(F.silu, _silu_slope, turns=(-2.399357280520054, 2.399357280520054))
TANH = Activation(torch.tanh, lambda x: 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x), turns=(0.0,))
SIGMOID = Activation(torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x), turns=(0.0,))

ACTIVATIONS: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda m: RELU,
    nn.LeakyReLU: lambda m: _leaky(m.negative_slope),
    nn.ReLU6: lambda m: _hardtanh(0.0, 6.0),
    nn.ELU: lambda m: _elu(m.alpha),
    nn.Hardtanh: lambda m: _hardtanh(m.min_val, m.max_val),
    nn.Softplus: lambda m: _softplus(m.beta, m.threshold),
    nn.GELU: lambda m: _gelu(m.approximate),
    nn.SiLU: lambda m: SILU,
    nn.Tanh: lambda m: TANH,
    nn.Sigmoid: lambda m: SIGMOID,
}
FUNCTIONS: dict[str, Callable[..., Activation]] = {
    "abs": lambda: ABSOLUTE,
    "relu": lambda inplace=False: RELU,
    "leaky_relu": lambda negative_slope=0.01, inplace=False: _leaky(negative_slope),
    "relu6": lambda inplace=False: _hardtanh(0.0, 6.0),
    "elu": lambda alpha=1.0, scale=1.0, input_scale=1.0, inplace=False: _elu(alpha, scale, input_scale),
    "hardtanh": lambda min_val=-1.0, max_val=1.0, inplace=False: _hardtanh(min_val, max_val),
    "clamp": lambda min=None, max=None: _clamp(min, max),
    "clip": lambda min=None, max=None: _clamp(min, max),
    "clamp_min": lambda min: _clamp(min, None),
    "clamp_max": lambda max: _clamp(None, max),
    "softplus": lambda beta=1, threshold=20: _softplus(beta, threshold),
    "gelu": lambda approximate="none": _gelu(approximate),
    "silu": lambda inplace=False: SILU,
    "tanh": lambda: TANH,
    "sigmoid": lambda: SIGMOID,
}
"""Functions, methods and operators by the name that they share."""
