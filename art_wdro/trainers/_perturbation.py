# SPDX-License-Identifier: MIT
"""Adversarial weight perturbation: an update's gradient is taken where the weights are worst, nearby.

Source: Wu, Xia, Wang, Adversarial weight perturbation helps robust generalization, 2020, arXiv:2004.05884.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from art_wdro.trainers._copies import Copies


class Perturbation:
    """w -> w + size ||w|| g / ||g|| for each weight tensor w, g the gradient of the outer problem's loss."""

    def __init__(self, model: nn.Module, size: float) -> None:
        """Take what is perturbed.

        :param model: The network, of which trained parameters of more than one dimension count: no biases, no norms.
        :param size: Length of the perturbation, relative to the weight's.
        """
        self._model, self._size = model, size
        self._copies = Copies(self._weights)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Perturb the weights along the gradients that they hold, for as long as the context lasts."""
        self._copies.take()
        try:
            self._move()
            yield
        finally:
            self._copies.put_back()

    @torch.no_grad()
    def _move(self) -> None:
        pairs = [(weight, weight.grad) for weight in self._weights() if weight.grad is not None]
        if not pairs:
            return
        weights, gradients = map(list, zip(*pairs, strict=True))
        lengths, slopes = (torch.stack(torch._foreach_norm(values)) for values in (weights, gradients))
        # a weight without a gradient stays
        factors = self._size * lengths / slopes.clamp(min=torch.finfo(slopes.dtype).tiny)
        torch._foreach_add_(weights, torch._foreach_mul(gradients, list(factors.unbind())))

    def _weights(self) -> list[Tensor]:
        return [weight for weight in self._model.parameters() if weight.requires_grad and weight.dim() > 1]
