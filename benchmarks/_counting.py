# SPDX-License-Identifier: MIT
"""The one count of gradient evaluations."""

from __future__ import annotations

from torch import Tensor, nn


class Counter:
    """Counts the samples whose gradient an attack takes, in the backward passes of a network in eval mode.

    Updates in training, which are in train mode, do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        """Watch a network from now on."""
        self.gradients = 0
        model.register_forward_hook(self._watch)

    def _watch(self, model: nn.Module, _: object, logits: Tensor) -> None:
        if logits.requires_grad and not model.training:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]

    def _count(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)
