# SPDX-License-Identifier: MIT
"""Arrays of a whole data set, worked on some rows at a time on the device that computes.

They lie on that device, or, where they would fill it, in pinned memory of the host: then rows travel while the ones
before them are worked on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

Some = slice | Tensor
"""Rows: a slice, or indices on the device that computes, (n,)."""

CACHED = 2**17
"""Numbers worked on at once on a CPU: with their temporaries they fit the cache of a core (docs/performance.md)."""
COPIES = 4
"""Arrays of the size of the inputs that an attack holds at once, the inputs included."""


class Rows:
    """A tensor with one row a sample: reading rows gives them on the device, writing takes them from there."""

    def __init__(self, values: Tensor, device: torch.device) -> None:
        """Wrap a tensor.

        :param values: Values, (N, ...), on the device or on the host.
        :param device: The device that computes.
        """
        self.device = device
        self.resident = values.device == device
        self._values = values if self.resident else values.pin_memory()

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, some: Some) -> Tensor:
        return self._values[self._here(some)].to(self.device, non_blocking=True)

    def __setitem__(self, some: Some, values: Tensor) -> None:
        if isinstance(some, slice):
            self._values[some].copy_(values, non_blocking=True)
        else:
            self._values[self._here(some)] = values.to(self._values)

    def take(self, some: slice, values: Tensor, weight: Tensor) -> None:
        """Take the values where the weight, a scalar tensor, is 1, and keep the own ones where it is 0."""
        own = self[some].lerp_(values, weight)
        if not self.resident:
            self[some] = own

    def like(self, dtype: torch.dtype) -> Rows:
        """Return zeros of the same shape in the same place."""
        return Rows(torch.zeros_like(self._values, dtype=dtype), self.device)

    def clone(self) -> Rows:
        """Return a copy in the same place."""
        return Rows(self._values.clone(), self.device)

    def whole(self) -> Tensor:
        """Wait for all that was written, and return the tensor where it lies."""
        if not self.resident:
            torch.cuda.synchronize(self.device)
        return self._values

    def at_once(self, batch_size: int) -> int:
        """Return how many rows the arithmetic between two passes should take at once."""
        row = max(1, self._values[:1].numel())
        return max(1, CACHED // row) if self.device.type == "cpu" else batch_size

    def _here(self, some: Some) -> Some:
        return some if isinstance(some, slice) else some.to(self._values.device)


def parts(count: int, size: int) -> list[slice]:
    """Cut so many rows into parts of at most the given size.

    >>> parts(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def staged(chosen: Iterable[Some], *arrays: Rows) -> Iterator[tuple[Any, ...]]:
    """Yield rows with their values in each array, the next ones travelling while these are worked on.

    :param chosen: What to yield: disjoint rows, so that what is written to some does not matter to the next.
    :param arrays: Where to read them.
    """
    if all(array.resident for array in arrays):
        yield from ((some, *(array[some] for array in arrays)) for some in chosen)
        return
    device = arrays[0].device
    work, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: tuple[Any, ...] | None = None
    for some in [*chosen, None]:
        coming = None
        if some is not None:
            aside.wait_stream(work)
            with torch.cuda.stream(aside):
                coming = some, *(array[some] for array in arrays), aside.record_event()
        if waiting is not None:
            *item, arrived = waiting
            work.wait_event(arrived)
            for values in item[1:]:
                values.record_stream(work)
            yield tuple(item)
        waiting = coming


def placed(x: Tensor, device: torch.device) -> Tensor:
    """Return inputs on the device, or on the host where an attack on them would take more than half of what is free."""
    if device.type != "cuda" or x.device == device:
        return x.to(device)
    free = torch.cuda.mem_get_info(device)[0]
    return x.to(device) if COPIES * x.numel() * x.element_size() <= free / 2 else x.cpu()
