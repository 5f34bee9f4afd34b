# SPDX-License-Identifier: MIT
"""Data sets and loaders of torch where arrays are due."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from art_wdro._rows import share


def as_arrays(x: Any, y: Any) -> tuple[Any, Any]:
    """Read a torch `Dataset` or `DataLoader` once, into a temporary file mapped into memory; pass on anything else.

    :param x: A data set or a loader that yields inputs, or pairs of inputs and labels, in the order they should have;
        or arrays, which come back as they are.
    :param y: Labels, None with a data set that brings its own.
    :return: Inputs, (N, ...), and labels, or None where there are none.
    :raises ValueError: If there are labels on both sides, or items differ in shape or dtype.
    """
    if not isinstance(x, (Dataset, DataLoader)):
        return x, y
    loader = x if isinstance(x, DataLoader) else DataLoader(x, batch_size=256)
    labels: list[np.ndarray] = []
    first: np.ndarray | None = None
    count = 0
    with tempfile.TemporaryFile(prefix="art-wdro-") as file, torch.random.fork_rng(devices=[]):
        for batch in loader:
            inputs, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
            array = np.ascontiguousarray(inputs)
            first = array if first is None else first
            if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
                raise ValueError(
                    f"x yields inputs of shape {array.shape[1:]} and dtype {array.dtype} after {first.shape[1:]} and "
                    f"{first.dtype}; needed are equal ones"
                )
            file.write(array.tobytes())
            labels += [np.asarray(part) for part in rest[:1]]
            count += len(array)
        if first is None:
            raise ValueError("x yields no samples; needed is at least one")
        file.flush()
        inputs = share(np.memmap(file, first.dtype, "r+", shape=(count, *first.shape[1:])))
    if labels and y is not None:
        raise ValueError("y is given, and x brings labels of its own; give one of them")
    return inputs, torch.from_numpy(np.concatenate(labels)) if labels else y
