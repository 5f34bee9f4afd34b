# SPDX-License-Identifier: MIT
"""Margin training as others have it, and variants of the package's, to see what moves its frontier.

Max-margin training: Ding et al., 2020, arXiv:1812.02637.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn.functional import cross_entropy

from art_wdro._host import classifier as host
from art_wdro._solvers.boundary import Boundary
from art_wdro.losses import as_float, rivals
from art_wdro.trainers._augmentation import indices_of
from art_wdro.trainers._margin import DualDescent
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._update import Figures, Updates
from benchmarks._one_side import OneSide, OneSideDescent

HELD = 2.0
"""Step of the logarithm of beta: some 2 % a minibatch where accuracy is a point off."""


class MaxMarginTraining(OneSide):
    """Descend the cross-entropy of inputs, and that at the boundary points of all that are right, up to eps."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return _AtBoundary(self, updates)


class AllClasses(OneSide):
    """Push all other classes away at a boundary point, by their probabilities, and not the nearest one alone."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return _AllClasses(self, updates)


class KnapsackTraining(OneSide):
    """Descend the cross-entropy at the boundary points of what budgets flip, in place of the hinge."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return _AtFlipped(self, updates)


class ScaledThresholds(OneSide):
    """Multiply the thresholds, to see what it would change to take them from other images."""

    def __init__(self, classifier: PyTorchClassifier, scale: float = 1.0, **options: Any) -> None:
        """Take what thresholds are multiplied by, beside the options of the base class."""
        super().__init__(classifier, **options)
        self.scale = scale

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return _Scaled(self, updates)


class HeldMargin(OneSide):
    """Margin training whose beta is a multiplier: clean accuracy in training is to stay what it was before."""

    def __init__(self, classifier: PyTorchClassifier, points: float = 0.0, **options: Any) -> None:
        """Take the clean accuracy that may be lost, in points, beside the options of the base class."""
        super().__init__(classifier, **options)
        self.points = points

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return _Multiplier(self, updates)


class _AtBoundary(DualDescent):
    """Max-margin training: eps is the largest margin that is asked for."""

    def _reach(self) -> Tensor:
        return torch.full_like(self._thresholds.values[-1], self._eps)

    def _pushed(self, at_boundary: Tensor, labels: Tensor, found: Boundary, taus: Tensor) -> Tensor:
        inside = (found.distances > 0) & (found.distances < self._eps)
        return (inside * cross_entropy(at_boundary, labels, reduction="none")).mean()


class _AllClasses(OneSideDescent):
    def _pushed(self, at_boundary: Tensor, labels: Tensor, found: Boundary, taus: Tensor) -> Tensor:
        own, _ = rivals(as_float(at_boundary), labels)
        others = as_float(at_boundary).scatter(1, labels[:, None], -torch.inf).logsumexp(1)
        return super()._pushed(torch.stack([own, others], 1), torch.zeros_like(labels), found, taus)


class _AtFlipped(DualDescent):
    """The worst distributions of all budgets: a sample counts by the share of them that flip it."""

    def _pushed(self, at_boundary: Tensor, labels: Tensor, found: Boundary, taus: Tensor) -> Tensor:
        below = (found.distances > 0)[:, None] & (found.distances[:, None] < taus)
        return (below.float().mean(1) * cross_entropy(at_boundary, labels, reduction="none")).mean()


class _Scaled(OneSideDescent):
    def __init__(self, trainer: ScaledThresholds, updates: Updates) -> None:
        super().__init__(trainer, updates)
        self._scale = trainer.scale

    def _pushed(self, at_boundary: Tensor, labels: Tensor, found: Boundary, taus: Tensor) -> Tensor:
        return super()._pushed(at_boundary, labels, found, self._scale * taus)


class _Multiplier(OneSideDescent):
    """Dual ascent on the logarithm of beta, by accuracy on the same minibatches in the same mode."""

    def __init__(self, trainer: HeldMargin, updates: Updates) -> None:
        super().__init__(trainer, updates)
        self._lost = trainer.points / 100
        self._before = copy.deepcopy(host.network(self._classifier)).requires_grad_(False)

    def step(self, x: Tensor, y: Tensor, where: str) -> Figures | None:
        labels = indices_of(y)
        with torch.no_grad():  # batch norm in train mode, as that of the update
            wanted = (self._before.train()(x).argmax(1) == labels).double().mean() - self._lost
        figures = super().step(x, y, where)
        if figures is not None:
            self._beta *= math.exp(HELD * (figures["train_clean_accuracy"] - wanted).item())
        return figures

    def finish_epoch(self) -> dict[str, Any]:
        return {**super().finish_epoch(), "beta": self._beta}
