# SPDX-License-Identifier: MIT
"""The random states that training reads, taken and put back, and streams of their own beside them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """Return every random state that training may read, as tensors and plain values."""
    version, internal, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every random state for as long as the context lasts."""
    state = random_state(device)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield
    finally:
        set_random_state(state, device)


class Stream:
    """Random states of their own, in force inside of the context; outside of it, those of the process go on."""

    def __init__(self, device: torch.device, seed: int | None = None) -> None:
        """Begin.

        :param device: The device whose state is one of them.
        :param seed: Seed of all of them; None begins where those of the process are.
        """
        self._device = device
        self._outer: dict[str, Any] | None = None
        if seed is None:
            self.state = random_state(device)
        else:
            with seeded(seed, device):
                self.state = random_state(device)

    def __enter__(self) -> None:
        self._outer = random_state(self._device)
        set_random_state(self.state, self._device)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self._outer is not None
        self.state = random_state(self._device)
        set_random_state(self._outer, self._device)
