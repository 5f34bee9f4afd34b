# SPDX-License-Identifier: MIT
"""Margin training with another margin in its loss, or with other thresholds.

Each changes one thing: what a misclassified sample counts for, which classes pull at a boundary point, or how far
the thresholds reach.
"""

from __future__ import annotations

from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro import WassersteinMarginTrainer
from art_wdro._solvers.boundary import Boundary, boundary
from art_wdro.losses import as_float, margins, rivals
from art_wdro.trainers._augmentation import indices_of
from art_wdro.trainers._dual import HEAVIEST, RunningThresholds, dual_accuracy, slopes_of_hinges
from art_wdro.trainers._margin import REACH, DualDescent
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._update import Figures, Updates


class NegativeMargins(WassersteinMarginTrainer):
    """Let misclassified samples count as far as they lie beyond the boundary, as those before it do.

    The distance back is margin over dual norm of its gradient, to first order; beyond the threshold it counts nothing.
    """

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return _BothSides(self, updates)


class SoftMargins(WassersteinMarginTrainer):
    """Push all other classes away at a boundary point, by their probabilities, and not the nearest one alone."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return _AllClasses(self, updates)


class ScaledThresholds(WassersteinMarginTrainer):
    """Multiply the thresholds, to see what it would change to take them from other images."""

    def __init__(self, classifier: PyTorchClassifier, scale: float = 1.0, **options: Any) -> None:
        """Take what thresholds are multiplied by, beside the options of the base class."""
        super().__init__(classifier, **options)
        self.scale = scale

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        method = DualDescent(self, updates)
        method._thresholds = _Scaled(self._common.eps, self._common.p, self._budgets, self._window)
        method._thresholds.scale = self.scale
        return method


class _Scaled(RunningThresholds):
    scale = 1.0

    def update(self, distances: Tensor) -> list[float]:
        self.values = [self.scale * value for value in super().update(distances)]
        return self.values


class _Pushed(DualDescent):
    """The step of margin training with the weighted mean of a margin as its loss."""

    def step(self, x: Tensor, y: Tensor, where: str) -> Figures | None:
        labels, reach = indices_of(y), REACH * max(self._thresholds.values[-1], self._eps)
        with self._updates.frozen(), self._cast():
            found = boundary(self._logits_of, x, labels, self._r, reach=reach, max_iter=self._max_iter, box=self._box)
        taus = self._thresholds.update(found.distances)
        accuracy = dual_accuracy(found.distances, taus[-1], self._eps, self._p)

        def outer(_: Tensor, at_boundary: Tensor) -> tuple[Tensor, Figures]:
            logits = as_float(at_boundary)
            falling = slopes_of_hinges(self._distances(logits.detach(), labels, found), taus, self._p)
            weights = (falling / found.slopes.clamp(min=torch.finfo(found.slopes.dtype).tiny)).clamp(max=HEAVIEST)
            loss = (weights.to(logits.dtype) * self._margins(logits, labels)).mean()
            return self._beta * loss, {"margin_loss": loss, "train_adversarial_accuracy": accuracy}

        return self._updates(y, [x, found.x], outer, where)

    def _distances(self, logits: Tensor, labels: Tensor, found: Boundary) -> Tensor:
        """Return the distances that weights follow, (n,)."""
        return found.distances

    def _margins(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the margins that are pushed down, (n,)."""
        return margins(logits, labels)


class _BothSides(_Pushed):
    def _distances(self, logits: Tensor, labels: Tensor, found: Boundary) -> Tensor:
        beyond = margins(logits, labels).to(found.slopes) / found.slopes
        return torch.where(found.distances > 0, found.distances, beyond)


class _AllClasses(_Pushed):
    def _margins(self, logits: Tensor, labels: Tensor) -> Tensor:
        own, _ = rivals(logits, labels)
        others: Tensor = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
        return others - own
