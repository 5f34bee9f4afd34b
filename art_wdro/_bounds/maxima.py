# SPDX-License-Identifier: MIT
"""Maxima as sums and ReLUs, which bounds know: max(a, b) = a + ReLU(b - a), and a max pool is a tree of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from art_wdro._bounds.layers import RELU, Node
from art_wdro._bounds.operations import NEGATED, selected

Add = Callable[[Node], int]
"""Appends a node, and returns its index."""


def maximum(add: Add, first: int, second: int) -> int:
    """Append the larger of two nodes, and return its index."""
    less = add(Node((first,), NEGATED))
    excess = add(Node((add(Node((second, less))),), RELU))
    return add(Node((first, excess)))


def max_pool(add: Add, source: int, like: Tensor, shape: torch.Size, setting: Sequence[Any]) -> int:
    """Append a max pool, and return its index.

    :param add: Appends a node.
    :param source: Index of the node that is pooled.
    :param like: One output of it, (1, ...).
    :param shape: What the pool leaves of its last dimensions.
    :param setting: Kernel size, stride, padding and dilation, numbers or one for each dimension.
    :raises ValueError: If it is dilated and padded at once.
    """
    room, ahead = like.shape[-len(shape) :], like.dim() - len(shape)
    kernel, stride, padding, dilation = (_each(value, len(room)) for value in setting)
    if any(padding) and max(dilation) > 1:
        raise ValueError(f"the network holds a max pool with padding={padding} and dilation={dilation}; allowed is one")

    def shifted(offsets: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        """Return the function that picks one element of every window; outside of the input it is the nearest inside."""

        def pick(x: Tensor) -> Tensor:
            for at, (offset, size) in enumerate(zip(offsets, room, strict=True)):
                starts = torch.arange(shape[at]) * stride[at] - padding[at]
                x = x.index_select(ahead + at, (starts + offset * dilation[at]).clamp(0, size - 1))
            return x

        return pick

    elements = [
        add(Node((source,), selected(shifted(offsets), like)))
        for offsets in itertools.product(*(range(size) for size in kernel))
    ]
    while len(elements) > 1:
        pairs = list(zip(elements[::2], elements[1::2], strict=False))
        elements = [maximum(add, *pair) for pair in pairs] + elements[2 * len(pairs) :]
    return elements[0]


def _each(value: Any, count: int) -> tuple[int, ...]:
    """Return a number for each dimension."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * count if len(values) == 1 else values
