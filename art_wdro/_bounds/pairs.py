# SPDX-License-Identifier: MIT
"""Differences of two logits as combinations of all, made where they are needed: all at once they are some K^3 / 2."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_count(classes: int) -> int:
    """Return the number of pairs of classes, K (K - 1) / 2."""
    return classes * (classes - 1) // 2


def pairs_at(numbers: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the first and the second class of pairs, counted as (0, 1), (0, 2), ..., (1, 2), ...

    >>> pairs_at(torch.arange(3), 3)
    (tensor([0, 0, 1]), tensor([1, 2, 2]))
    """
    counts = torch.arange(classes - 1, 0, -1)
    before = counts.cumsum(0) - counts
    first = torch.searchsorted(before, numbers, right=True) - 1
    return first, numbers - before[first] + first + 1


def other_classes(labels: Tensor, classes: int) -> Tensor:
    """Return all classes but each label itself, (N, K - 1)."""
    others = torch.arange(classes - 1).expand(len(labels), -1)
    return others + (others >= labels[:, None])


def differences(first: Tensor, second: Tensor, classes: int) -> Tensor:
    """Return z_j - z_k as combinations of the logits, (..., K), for classes k, (...), and j, that expand to them."""
    rows = torch.zeros(*second.shape, classes, dtype=torch.float64)
    rows.scatter_(-1, first.expand_as(second)[..., None], 1.0)
    return rows.scatter_(-1, second[..., None], -1.0)
