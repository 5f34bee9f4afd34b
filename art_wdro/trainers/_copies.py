# SPDX-License-Identifier: MIT
"""Copies of many tensors, taken and put back by a few launches, however many they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def by_type(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Group pairs of tensors by the type of the first ones, since torch takes one type at once."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for own, other in zip(first, second, strict=True):
        owns, others = groups.setdefault(own.dtype, ([], []))
        owns.append(own)
        others.append(other)
    return [*groups.values()]


@torch.no_grad()
def copy_all(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors of the same shapes, all on one device."""
    for owns, others in by_type(to, values):
        torch._foreach_copy_(owns, others)


class Copies:
    """Copies of tensors in memory that is kept from one time to the next."""

    def __init__(self, tensors: Callable[[], Iterable[Tensor]]) -> None:
        """Name the tensors.

        :param tensors: Returns them, each time in the same order.
        """
        self._tensors = tensors
        self._kept: list[Tensor] = []

    def take(self) -> None:
        """Copy the tensors."""
        live = [*self._tensors()]
        if [(kept.shape, kept.dtype) for kept in self._kept] == [(own.shape, own.dtype) for own in live]:
            copy_all(self._kept, live)
        else:
            self._kept = [own.detach().clone() for own in live]

    def put_back(self) -> None:
        """Make the tensors what they were when they were copied."""
        copy_all([*self._tensors()], self._kept)
