# SPDX-License-Identifier: MIT
"""Copies of many tensors, taken and put back by a few launches, however many they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def copy_all(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors of the same shapes, all on one device."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for own, value in zip(to, values, strict=True):
        owns, others = groups.setdefault(own.dtype, ([], []))  # torch takes one type at once
        owns.append(own)
        others.append(value)
    for owns, others in groups.values():
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
