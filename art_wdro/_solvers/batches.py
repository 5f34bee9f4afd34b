# SPDX-License-Identifier: MIT
"""What all solvers take, samples and where they may move, and the one driver of those that search sample by sample."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from art_wdro._solvers.resumed import check_found
from art_wdro._storage.arrays import Rows, parts, staged
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._threat.threat import Box
from art_wdro.losses import predicted

T = TypeVar("T")
LogitsOf = Callable[[Tensor], Tensor]
"""Maps inputs (N, ...) to logits (N, K), sample by sample, differentiably."""
Bar = Callable[[Iterable[T]], Iterable[T]]
"""Wraps an iteration, for a progress bar."""
POOL = 2**20
"""Numbers in the samples of other classes that a search may begin at, at most: finding the nearest stays cheap."""
log = logging.getLogger("art_wdro")


def silent(items: Iterable[T]) -> Iterable[T]:
    """Iterate without a progress bar."""
    return items


def owning(logits_of: LogitsOf) -> LogitsOf:
    """Return a function of logits that gives the network a tensor of its own, which a layer may overwrite."""
    if getattr(logits_of, "owns_input", False):
        return logits_of
    return lambda x: logits_of(x.clone())


def input_gradient(values: Tensor, x: Tensor, retain_graph: bool = False) -> Tensor:
    """Differentiate the sum of per-sample values, (N,), by the inputs, (N, ...).

    :raises ValueError: If they do not depend on them differentiably.
    """
    found = None
    if values.requires_grad:
        (found,) = torch.autograd.grad(values.sum(), x, retain_graph=retain_graph, allow_unused=True)
    if found is None:
        raise ValueError("the classifier's logits do not depend differentiably on x")
    return found


class Counted:
    """A function of logits that counts the inputs by which it is differentiated."""

    def __init__(self, logits_of: LogitsOf) -> None:
        self._logits_of = logits_of
        self.owns_input = getattr(logits_of, "owns_input", False)
        self.gradients = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits, (N, K)."""
        self.gradients += len(x) * x.requires_grad
        return self._logits_of(x)


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

    def nearest(self, x: Tensor, labels: Tensor, r: float, mask: Tensor | None) -> list[Tensor]:
        """Return the nearest of other classes, each shaped as `x`, moved only where the mask lets them.

        What the mask holds still may bring one back to the class of the sample; where there is none it is the sample.
        """
        # a product of matrices would round by what else is in the batch
        far = torch.cdist(x.flatten(1), self.x.flatten(1), p=r, compute_mode="donot_use_mm_for_euclid_dist")
        far = far.masked_fill(labels[:, None] == self.labels, torch.inf)
        lengths, rows = far.topk(min(self.few, len(self.labels)), largest=False)
        found = []
        for length, row in zip(lengths.T, rows.T, strict=True):
            free = torch.isfinite(length).view(-1, *[1] * (x.dim() - 1))
            found.append(torch.where(free if mask is None else free & mask, self.x[row], x))
        return found


def search_in_batches(
    search: Callable[..., Found],
    logits_of: LogitsOf,
    samples: Samples,
    r: float,
    *,
    others: int = 0,
    checkpoint: Checkpoint | None = None,
    bar: Bar[Tensor] = silent,
) -> Found:
    """Search for a point of another class of every sample that is classified correctly, one batch after another.

    No sample depends on its batch. What is found is saved on the way, and a search that was cut off goes on from it.

    :param search: Searches for one batch; takes the fields of :class:`Margins`, and the other samples, if any are asked
        for.
    :param logits_of: Maps inputs to logits.
    :param samples: The data set.
    :param r: Exponent of the ground norm.
    :param others: Nearest samples of other classes that the search is given, of this process's samples alone.
    :param checkpoint: Where to save what is found, and to go on from.
    :param bar: Wraps the iteration over batches.
    :return: What was found of the whole data set.
    """
    data, movable, size = samples.rows(), samples.movable(), samples.batch_size
    distances = torch.zeros(len(data), dtype=torch.float64, device=data.device)
    points = data.clone()
    gradients = done = 0
    chosen = standing_samples(logits_of, data, samples.labels, size)
    saved = None if checkpoint is None else checkpoint.load()
    if saved is not None:
        check_found(saved, samples, r)
        done, gradients, distances = saved["done"], saved["gradients"], saved["distances"].to(distances)
        chosen = saved["chosen"].to(chosen)  # a near-tie may change sides on another machine
        points.fill(saved["points"])

    pool = Pool.of(data, samples.labels, chosen, others) if others > 0 else None

    def state() -> dict[str, Any]:
        figures = {"done": number + 1, "gradients": gradients, "distances": distances, "chosen": chosen}
        return figures | {"points": points.whole()}

    for number, rows in enumerate(bar([chosen[part] for part in parts(len(chosen), size)])):
        if number < done:
            continue
        mask = None if movable is None else movable[rows]
        x, labels = data[rows], samples.labels[rows]
        given = [] if pool is None else [pool.nearest(x, labels, r, mask)]
        found = search(logits_of, x, labels, r, samples.box, mask, *given)
        distances[rows], points[rows] = found.distances, found.points
        gradients += found.gradients
        if log.isEnabledFor(logging.DEBUG):
            reached = torch.isfinite(found.distances)
            log.debug(
                "batch %d: %d of %d samples reach another class, at %.4g on average, with %d gradients",
                number,
                reached.sum(),
                len(rows),
                found.distances[reached].mean(),
                found.gradients,
            )
        if checkpoint is not None:
            checkpoint.offer(state)
    return Found(distances, points.whole(), gradients)


def standing_samples(logits_of: LogitsOf, data: Rows, labels: Tensor, batch_size: int) -> Tensor:
    """Return the indices of the samples that are classified correctly."""
    standing = torch.zeros_like(labels, dtype=torch.bool)
    with torch.no_grad():
        for rows, points in staged(parts(len(data), batch_size), data):
            standing[rows] = predicted(logits_of(points)) == labels[rows]
    return standing.nonzero()[:, 0]
