# SPDX-License-Identifier: MIT
"""Figures of a whole data set whose samples lie in one process, or in shards over the ranks of a process group.

A budget couples all samples, but only through a few sums: what travels is numbers, never samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Shards:
    """The ranks of a process group, each with its own shard of one data set."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        # gloo gathers on the host, nccl on the device
        self._on_host = dist.get_backend(group) != "nccl"

    def __call__(self, numbers: Tensor) -> Tensor:
        """Gather equally many numbers from every rank."""
        own = numbers.detach().to("cpu" if self._on_host else "cuda")
        found = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(found, own.contiguous(), group=self.group)
        return torch.stack(found).to(numbers.device)


_current: ContextVar[Shards | None] = ContextVar("shards", default=None)


@contextmanager
def sharded(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Take the samples that each rank gives as its shard of one data set.

    Inside, attacks share one budget over the shards of all ranks, `sensitivity`, `wasserstein_distance`,
    `adversarial_accuracy`, `accuracy_bounds` and `evaluate` return figures of the whole, and trainers train one network
    on minibatches spread over the ranks. Every rank must make the same calls; shards may differ in size and be empty.
    Outside, a process works alone, whatever process group it is in.

    :param group: A process group of `torch.distributed`; None takes the default one.
    :raises RuntimeError: If `torch.distributed` is not initialised, or the context is entered twice.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "sharded() needs an initialised process group: start the script with torchrun and call "
            "torch.distributed.init_process_group first"
        )
    if shards() is not None:
        raise RuntimeError("sharded() is entered already; leave it first")
    token = _current.set(Shards(group))
    try:
        yield
    finally:
        _current.reset(token)


def shards() -> Shards | None:
    """Return the ranks that share the data set, or None in a process that works alone."""
    return _current.get()


def gathered(numbers: Tensor) -> Tensor:
    """Return this rank's numbers, (k,), with those of all ranks, (ranks, k), on the same device."""
    group = shards()
    return numbers[None] if group is None else group(numbers)


def ranks() -> int:
    """Return how many ranks share the data set; 1 in a process that works alone."""
    group = shards()
    return 1 if group is None else group.count


def rank() -> int:
    """Return this process's rank among those that share the data set; 0 in a process that works alone."""
    group = shards()
    return 0 if group is None else group.rank


def is_first() -> bool:
    """Tell whether this process reports and saves."""
    return rank() == 0


def everywhere(value: Any) -> list[Any]:
    """Return a value of every rank, in their order; it may be anything that pickles."""
    group = shards()
    if group is None:
        return [value]
    found = [None] * group.count
    dist.all_gather_object(found, value, group=group.group)
    return found


def require_same(settings: dict[str, Any], call: str) -> None:
    """Refuse ranks that would not do the same.

    :param settings: What a call does, in plain values.
    :param call: Its name, for the error.
    :raises ValueError: If a rank has other settings; all ranks raise.
    """
    for number, other in enumerate(everywhere(settings)):
        differ = sorted(name for name in settings if other.get(name) != settings[name])
        if differ:
            raise ValueError(
                f"rank {number} differs in {', '.join(differ)}; all ranks must give {call} the same arguments"
            )


@contextmanager
def together() -> Iterator[None]:
    """Let no rank go on alone: if the block raises on one of them, it raises on all.

    :raises RuntimeError: On the ranks where the block did not raise.
    """
    found: Exception | None = None
    try:
        yield
    except Exception as error:
        found = error
    failed = [number for number, bad in enumerate(everywhere(found is not None)) if bad]
    if found is not None:
        raise found
    if failed:
        raise RuntimeError(f"rank {failed[0]} refused its arguments; see its own error")


@contextmanager
def apart() -> Iterator[None]:
    """Let this process work alone for a while, inside of :func:`sharded`."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def total(numbers: Tensor) -> Tensor:
    """Sum numbers, (k,), over all ranks."""
    return numbers if shards() is None else gathered(numbers).sum(0)


def mean(values: Tensor) -> float:
    """Compute the mean over the whole data set of per-sample values, (N,); NaN if there are none."""
    sums = total(torch.stack([values.double().sum(), values.new_tensor(len(values), dtype=torch.float64)]))
    return (sums[0] / sums[1]).item()


def average(amount: int, samples: int) -> float:
    """Compute what one sample takes of an amount, where amounts and samples lie on several ranks."""
    amounts, number = total(torch.tensor([amount, samples], dtype=torch.float64)).tolist()
    return float(amounts / number)


def count(number: int) -> int:
    """Sum a whole number over all ranks."""
    group = shards()
    return number if group is None else int(group(torch.tensor([number])).sum())


def mine(rows: Tensor) -> Tensor:
    """Return this rank's part of rows that all ranks have, every so many of them, as torch's DistributedSampler."""
    group = shards()
    return rows if group is None else rows[group.rank :: group.count]


def agreed(number: int) -> int:
    """Return the first rank's whole number on all of them."""
    group = shards()
    return number if group is None else int(group(torch.tensor([number]))[0])


def all_rows(values: Tensor) -> tuple[Tensor, slice]:
    """Return per-sample numbers of the whole data set, (all samples,), and where this rank's are among them."""
    group = shards()
    if group is None:
        return values, slice(0, len(values))
    counts = group(torch.tensor([len(values)], device=values.device))[:, 0].tolist()
    padded = values.new_zeros(max(counts))
    padded[: len(values)] = values
    start = sum(counts[: group.rank])
    found = group(padded)
    whole = torch.cat([row[:count] for row, count in zip(found, counts, strict=True)])
    return whole, slice(start, start + len(values))
