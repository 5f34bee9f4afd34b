# SPDX-License-Identifier: MIT
"""Remedies against overfitting: images seen once, images shifted and flipped, and perturbed weights.

Weight perturbation: Wu, Xia, Wang, 2020, arXiv:2004.05884, with one ascent step along the normalised gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from art.data_generators import DataGenerator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn.functional import cross_entropy

from art_wdro import WassersteinMarginTrainer
from art_wdro.trainers._common import Common
from art_wdro.trainers._margin import DualDescent
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._update import Figures, Outer, Updates
from benchmarks.networks.pretrained import augmented

SIZE = 0.01
"""Size of the perturbation of a weight tensor, as a part of its norm."""


class Stream(DataGenerator):  # type: ignore[misc]
    """Images in a fixed order, each of them once, shifted and flipped."""

    def __init__(self, x: np.ndarray, y: np.ndarray, size: int, batch_size: int) -> None:
        super().__init__(size, batch_size)
        ends = [
            start + min(begun + batch_size, size)
            for start in range(0, len(x), size)
            for begun in range(0, size, batch_size)
        ]
        self._parts = zip(np.split(x, ends[:-1]), np.split(y, ends[:-1]), strict=True)

    def get_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the next minibatch."""
        x, y = next(self._parts)
        return augmented(torch.from_numpy(x)).numpy(), y


class AugmentedMargin(WassersteinMarginTrainer):
    """Shift every image of a minibatch by up to 4 pixels and flip half of them."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return _AugmentedDescent(self, updates)


class _AugmentedDescent(DualDescent):
    """Margin training on images shifted and flipped anew in every step."""

    def step(self, x: Tensor, y: Tensor, where: str) -> Figures | None:
        return super().step(augmented(x), y, where)


class PerturbedMargin(WassersteinMarginTrainer):
    """Take the gradient of an update at weights that are worse by one step of ascent."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return DualDescent(self, _WorsenedUpdates(self._classifier, self._common, updates))


class _WorsenedUpdates(Updates):
    """The updates of a run, each with its gradient at worse weights."""

    def __init__(self, classifier: PyTorchClassifier, common: Common, updates: Updates) -> None:
        super().__init__(classifier, common)
        self._updates = updates

    def frozen(self) -> AbstractContextManager[None]:
        return self._updates.frozen()

    def __call__(self, y: Tensor, batches: Sequence[Tensor], outer: Outer, where: str) -> Figures | None:
        model, optimiser = self._classifier.model, self._classifier.optimizer
        forward = self._updates._forward
        assert forward is not None
        model.train()
        clean, *others = forward(*batches)
        loss = cross_entropy(clean, y) + outer(clean, *others)[0]
        weights = [weight for weight in model.parameters() if weight.dim() > 1]
        before = [weight.detach().clone() for weight in weights]
        stepped: list[bool] = []
        with torch.no_grad():
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight += SIZE * weight.norm() * gradient / gradient.norm().clamp(min=1e-12)

        def put_back(*_: object) -> None:  # before the step, or where an update takes none
            stepped.append(True)
            with torch.no_grad():
                for weight, value in zip(weights, before, strict=True):
                    weight.copy_(value)

        handle = optimiser.register_step_pre_hook(put_back)
        try:
            return self._updates(y, batches, outer, where)
        finally:
            handle.remove()
            if not stepped:
                put_back()
