# SPDX-License-Identifier: MIT
"""What all solvers take, samples and where they may move, and what searches return."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from art_wdro._storage.arrays import Rows
from art_wdro._threat.threat import Box

T = TypeVar("T")
Bar = Callable[[Iterable[T]], Iterable[T]]
"""Wraps an iteration, for a progress bar."""
POOL = 2**20
"""Numbers in the samples of other classes that a search may begin at, at most: finding the nearest stays cheap."""


def silent(items: Iterable[T]) -> Iterable[T]:
    """Iterate without a progress bar."""
    return items


@dataclass(frozen=True)
class Samples:
    """A data set, and where its samples may move.

    :param x: Inputs, (N, ...), inside the box, on the device that computes or on the host.
    :param labels: Class indices, (N,), on the device that computes.
    :param box: Bounds of the inputs, or None.
    :param mask: Where coordinates may move, boolean, (N, ...); None moves all.
    :param batch_size: Samples in one forward and backward pass.
    """

    x: Tensor
    labels: Tensor
    box: Box | None = None
    mask: Tensor | None = None
    batch_size: int = 128

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self.labels.device

    def rows(self) -> Rows:
        """Return the inputs, read some rows at a time on the device that computes."""
        return Rows(self.x, self.device).pinned()

    def movable(self) -> Rows | None:
        """Return the mask likewise, if there is one."""
        return None if self.mask is None else Rows(self.mask, self.device).pinned()


class Found(NamedTuple):
    """What a search found.

    :param distances: l_r distance of every sample to the point found, (N,), float64; 0 where the sample is
        misclassified already, inf where no point of another class was found.
    :param points: The points, shaped as the inputs; a misclassified sample itself.
    :param gradients: Gradient evaluations, summed over the samples.
    """

    distances: Tensor
    points: Tensor
    gradients: int


class Pool(NamedTuple):
    """Samples that are classified correctly, among which others look for a point of another class.

    :param x: Inputs, (M, ...).
    :param labels: Their classes, (M,).
    :param few: How many each sample is given.
    """

    x: Tensor
    labels: Tensor
    few: int

    @classmethod
    def of(cls, data: Rows, labels: Tensor, chosen: Tensor, few: int) -> Pool:
        """Take every so many of the chosen samples, so that they fit `POOL`."""
        most = max(1, POOL // max(1, data[:1].numel()))
        some = chosen[:: max(1, -(-len(chosen) // most))]
        return cls(data[some], labels[some], few)

    def nearest(self, x: Tensor, labels: Tensor, r: float) -> Tensor:
        """Return which of other classes are nearest, (N, few), -1 where there is none."""
        # a product of matrices would round by what else is in the batch
        far = torch.cdist(x.flatten(1), self.x.flatten(1), p=r, compute_mode="donot_use_mm_for_euclid_dist")
        far = far.masked_fill(labels[:, None] == self.labels, torch.inf)
        lengths, rows = far.topk(min(self.few, len(self.labels)), largest=False)
        return torch.where(torch.isfinite(lengths), rows, -1)

    def at(self, rows: Tensor, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Return samples that :meth:`nearest` found for others, shaped as these, moved only where the mask lets them.

        What the mask holds still may bring one back to the class of the sample; where there is none it is the sample.
        """
        found = []
        for row in rows.T:
            free = (row >= 0).view(-1, *[1] * (x.dim() - 1))
            found.append(torch.where(free if mask is None else free & mask, self.x[row], x))
        return found
