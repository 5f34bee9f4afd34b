# SPDX-License-Identifier: MIT
"""Arrays of a whole data set, worked on some rows at a time on the device that computes.

They lie on that device; or, where they would fill it, in pinned memory of the host, and rows travel while the ones
before them are worked on; or in a file mapped into memory, and then what is made from them lies in such files too and
pages that have been worked on are given back.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Some = slice | Tensor
"""Rows: a slice, or indices on the device that computes, (n,)."""
Kept = TypeVar("Kept", Tensor, "Rows")

CACHED = 2**17
"""Numbers worked on at once on a CPU: with their temporaries they fit the cache of a core (docs/performance.md)."""
LAUNCHED = 2**24
"""Numbers worked on at once on a GPU, where launching takes as long as working on a part of them."""
COPIES = 4
"""Arrays of the size of the inputs that an attack holds at once, the inputs included."""
TOUCHED = 2**28
"""Bytes of a mapped file that are worked on before its pages are given back."""

PAGES = 2**16
"""Bytes of a mapped file that reading a single row may bring in."""

_maps: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()
"""Mapped files by their address in memory."""


class Rows:
    """A tensor with one row a sample: reading rows gives them on the device, writing takes them from there."""

    def __init__(self, values: Tensor, device: torch.device) -> None:
        """Wrap a tensor.

        :param values: Values, (N, ...), on the device or on the host.
        :param device: The device that computes.
        """
        self.device = device
        self.resident = values.device == device
        self._values = values
        self._map = _map_of(values)
        self._touched = 0

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, some: Some) -> Tensor:
        values = self._values[self._here(some)]
        self._touch(values, 1 if isinstance(some, slice) else PAGES)
        return values.to(self.device, non_blocking=True)

    def __setitem__(self, some: Some, values: Tensor) -> None:
        self._touch(values)
        if isinstance(some, slice):
            self._values[some].copy_(values, non_blocking=True)
        else:
            self._values[self._here(some)] = values.to(self._values)

    @property
    def in_memory(self) -> bool:
        """Whether the values lie in memory of the device that computes, and in no file."""
        return self.resident and self._map is None

    def take(self, some: slice, values: Tensor, weight: Tensor) -> None:
        """Take the values where the weight, a scalar tensor, is 1, and keep the own ones where it is 0."""
        own = self[some].lerp_(values, weight)
        if not self.resident:
            self[some] = own

    def pinned(self) -> Rows:
        """Return the same values where they can travel fast: pinned, unless they are on the device or mapped."""
        return self if self.resident or self._map is not None else Rows(self._values.pin_memory(), self.device)

    def like(self, dtype: torch.dtype) -> Rows:
        """Return zeros of the same shape in the same kind of place."""
        shape = self._values.shape
        if self._map is not None:
            return Rows(mapped_zeros(shape, dtype), self.device)
        pin = not self.resident
        return Rows(torch.zeros(shape, dtype=dtype, device=self._values.device, pin_memory=pin), self.device)

    def clone(self) -> Rows:
        """Return a copy in the same kind of place."""
        copy = self.like(self._values.dtype)
        for some in parts(len(self), self.at_once(len(self))):
            copy[some] = self[some]
        return copy

    def fill(self, values: Tensor) -> None:
        """Take over the values of a tensor on the host."""
        for some in parts(len(self), self.at_once(len(self))):
            self[some] = values[some]

    def whole(self) -> Tensor:
        """Wait for all that was written, and return the tensor where it lies."""
        if not self.resident:
            torch.cuda.synchronize(self.device)
        return self._values

    def at_once(self, batch_size: int) -> int:
        """Return how many rows the arithmetic between two passes should take at once."""
        row = max(1, math.prod(self._values.shape[1:]))
        return max(1, CACHED // row) if self.device.type == "cpu" else max(1, batch_size, LAUNCHED // row)

    def _here(self, some: Some) -> Some:
        return some if isinstance(some, slice) else some.to(self._values.device)

    def _touch(self, values: Tensor, at_least: int = 1) -> None:
        """Give pages back once enough of them were read or written; their content stays in the file."""
        if self._map is None:
            return
        row = math.prod(values.shape[1:]) * self._values.element_size()
        self._touched += len(values) * max(row, at_least)
        if self._touched > TOUCHED:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


def put(kept: Kept, rows: Some, values: Tensor, instead: bool = True) -> Kept:
    """Write values of some rows, and return where all lie.

    :param kept: Values of all rows.
    :param rows: Which ones to write, each once and in order.
    :param values: Their values.
    :param instead: Whether values of all rows may take the place of `kept`, which saves a copy.
    """
    if instead and len(values) == len(kept):
        return values if isinstance(kept, Tensor) else Rows(values, kept.device)
    kept[rows] = values
    return kept


def parts(count: int, size: int) -> list[slice]:
    """Cut so many rows into parts of at most the given size.

    >>> parts(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def falling(full: int, count: int, by: int) -> list[int]:
    """Return at most so many sizes, each the given part of the one before, rounded up.

    >>> falling(128, 3, 4), falling(5, 5, 2)
    ([128, 32, 8], [5, 3, 2, 1])
    """
    sizes = [max(1, full)]
    while len(sizes) < count and sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // by))
    return sizes


def few_sizes(samples: int, batch_size: int) -> list[int]:
    """Return the sizes of batch that an ascent shows the network, which leaves samples out where its loss is flat."""
    return falling(min(samples, batch_size), 3, 4)


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
    if x.device == device or _map_of(x) is not None:
        return x
    if device.type != "cuda":
        return x.to(device)
    free = torch.cuda.mem_get_info(device)[0]
    return x.to(device) if COPIES * x.numel() * x.element_size() <= free / 2 else x.cpu()


def share(array: np.ndarray) -> Tensor:
    """Return a tensor over an array's memory, or over a copy where torch cannot share it.

    Torch takes no negative strides, and would warn of memory that may not be written to, which nothing here does.
    """
    mapping = _mapping(array)
    native = array.dtype.newbyteorder("=")
    odd = array.dtype.kind == "u" and array.dtype != np.uint8  # torch knows few operations on these
    if mapping is not None and (odd or array.dtype != native or not array.flags.c_contiguous):
        return _converted(array)
    if odd or array.dtype != native:
        array = array.astype(np.int64 if odd else native)
    if not array.flags.c_contiguous or not (array.flags.writeable or mapping is not None):
        return torch.from_numpy(array.copy())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    if mapping is not None:
        _remember(mapping)
    return tensor


def _converted(array: np.ndarray) -> Tensor:
    """Copy a mapped array that torch cannot share into a mapped file of floats, in parts."""
    double = array.dtype.kind == "f" and array.dtype.itemsize == 8
    tensor = mapped_zeros(array.shape, torch.float64 if double else torch.float32)
    target = Rows(tensor, tensor.device)
    source = _mapping(array)
    for some in parts(len(target), target.at_once(len(target))):
        target[some] = torch.from_numpy(array[some].astype(np.float64 if double else np.float32))
        if source is not None and some.start % max(1, len(target) // 64) == 0:
            source.madvise(mmap.MADV_DONTNEED)
    return tensor


def mapped_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros in a temporary file, which goes when the last tensor over it does; TMPDIR says where."""
    array: np.ndarray = torch.zeros(0, dtype=dtype).numpy()
    size = math.prod(shape) * array.itemsize
    with tempfile.TemporaryFile(prefix="art-wdro-") as file:
        if hasattr(os, "posix_fallocate") and size > 0:
            try:  # writing to a mapped file on a full disk would end the process
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                where = f"{tempfile.gettempdir()} (TMPDIR)"
                raise OSError(error.errno, f"no room for a temporary file of {size / 1e9:.1f} GB", where) from error
        return share(np.memmap(file, array.dtype, "r+" if size > 0 else "w+", shape=tuple(shape)))


def mixed(which: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
    """Return the chosen rows where `which`, (N,), is true, and the others elsewhere, where those lie."""
    first, second = Rows(chosen, others.device), Rows(others, others.device)
    result = second.like(others.dtype)
    for some, ours, theirs in staged(parts(len(second), second.at_once(len(second))), first, second):
        where = which[some].view(-1, *[1] * (others.dim() - 1)).to(others.device)
        result[some] = torch.where(where, ours, theirs)
    return result.whole()


def as_float32(values: Tensor) -> Tensor:
    """Return values as float32, the tensor itself where it is; what is mapped stays in a file."""
    if values.dtype == torch.float32:
        return values
    if _map_of(values) is None:
        return values.float()
    source, target = Rows(values, values.device), Rows(mapped_zeros(values.shape, torch.float32), values.device)
    for some in parts(len(source), source.at_once(len(source))):
        target[some] = source[some].float()
    return target.whole()


def _mapping(array: Any) -> mmap.mmap | None:
    """Return the file that a `numpy.memmap` is mapped from, if it holds every change of the array."""
    shared = False
    while isinstance(array, np.ndarray):
        shared |= isinstance(array, np.memmap) and array.mode in ("r", "r+", "w+")
        array = array.base
    return array if shared and isinstance(array, mmap.mmap) else None


def _remember(mapping: mmap.mmap) -> None:
    _maps[np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]] = mapping


def _map_of(values: Tensor) -> mmap.mmap | None:
    """Return the mapped file that a tensor lies in, if it does."""
    if values.device.type != "cpu" or not hasattr(mmap.mmap, "madvise"):
        return None
    address = values.data_ptr()
    for start, mapping in _maps.items():
        if not mapping.closed and start <= address < start + len(mapping):
            return mapping
    return None
