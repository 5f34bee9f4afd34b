# SPDX-License-Identifier: MIT
"""The exponential moving average of a network along its updates, weights and buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from art_wdro.trainers._copies import Copies, by_type, copy_all


class Average:
    """average <- decay average + (1 - decay) network, begun after the first update.

    It is that of torch's `AveragedModel` with `get_ema_multi_avg_fn` and buffers. Counts are those of the network.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], decay: float) -> None:
        """Begin without a value.

        :param tensors: Returns the network's weights and buffers, each time in the same order.
        :param decay: Weight of the average so far, in [0, 1).
        """
        self._tensors = tensors
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._values: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network after an update."""
        live = [*self._tensors()]
        if not self._values:
            self._values = [own.detach().clone() for own in live]
            return
        for values, own in by_type(self._values, live):
            if values[0].is_floating_point():
                self._average(values, own, None)
            else:
                copy_all(values, own)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network be the average, for as long as the context lasts."""
        if not self._values:
            yield
            return
        raw = Copies(self._tensors)
        raw.take()
        try:
            self.leave()
            yield
        finally:
            raw.put_back()

    def leave(self) -> None:
        """Make the network the average for good."""
        if self._values:
            copy_all([*self._tensors()], self._values)

    def state(self) -> list[Tensor]:
        """Return the average on the host."""
        return [value.to("cpu", copy=True) for value in self._values]

    def set_state(self, state: list[Any]) -> None:
        """Go on from what :meth:`state` returned."""
        live = [*self._tensors()]
        self._values = [value.to(own) for value, own in zip(state, live, strict=True)] if state else []
