# SPDX-License-Identifier: MIT
"""Variants of the package's trainers, to see what moves their frontiers.

Softened labels, against what a network overfits to: half a label and half what the network said of the same input
before training. Averages of its own past predictions do the same in Chen et al., 2021, Robust overfitting may be
mitigated by properly learned smoothening.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from art_wdro import DistributionalTRADESTrainer, WassersteinMarginTrainer
from art_wdro._host import classifier as host
from art_wdro._solvers.boundary import boundary
from art_wdro.trainers._augmentation import indices_of
from art_wdro.trainers._common import Common
from art_wdro.trainers._dual import dual_accuracy
from art_wdro.trainers._margin import REACH, DualDescent
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._trades import AlgorithmOne
from art_wdro.trainers._update import Figures, Outer, Updates

LABEL = 0.5
"""Weight of the label itself in a softened one; no other class then outweighs it."""
HELD = 2.0
"""Step of the logarithm of beta: some 2 % a minibatch where accuracy is a point off."""


class SoftenedUpdates(Updates):
    """The updates of a run, each on softened labels."""

    def __init__(self, classifier: PyTorchClassifier, common: Common, updates: Updates) -> None:
        super().__init__(classifier, common)
        self._updates, self._classes = updates, classifier.nb_classes
        self._before = copy.deepcopy(host.network(classifier)).eval().requires_grad_(False)

    def frozen(self) -> AbstractContextManager[None]:
        return self._updates.frozen()

    def __call__(
        self, y: Tensor, batches: Sequence[Tensor], outer: Outer, where: str, weight: float = 1.0
    ) -> Figures | None:
        with torch.no_grad():
            said = self._before(batches[0]).softmax(1)
        targets = LABEL * one_hot(indices_of(y), self._classes) + (1 - LABEL) * said
        return self._updates(targets, batches, outer, where, weight)


class SoftenedTRADES(DistributionalTRADESTrainer):
    """TRADES on softened labels."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> AlgorithmOne:
        return AlgorithmOne(self, SoftenedUpdates(self._classifier, self._common, updates), minibatches)


class SoftenedMargin(WassersteinMarginTrainer):
    """Margin training on softened labels."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return DualDescent(self, SoftenedUpdates(self._classifier, self._common, updates))


class KnapsackTraining(WassersteinMarginTrainer):
    """Margin training with the cross-entropy at the boundary points of what budgets flip, in place of the hinge."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return _AtFlipped(self, updates)


class _AtFlipped(DualDescent):
    """The worst distributions of all budgets: a sample counts by the share of them that flip it."""

    def step(self, x: Tensor, y: Tensor, where: str) -> Figures | None:
        labels, reach = indices_of(y), REACH * self._thresholds.values[-1].clamp(min=self._eps)
        with self._updates.frozen():
            found = boundary(self._logits_of, x, labels, self._r, reach=reach, max_iter=self._max_iter, box=self._box)
        taus = self._thresholds.update(found.distances)
        accuracy = dual_accuracy(found.distances, taus[-1], self._eps, self._p)
        below = found.distances[:, None] < taus
        shares = ((found.distances > 0)[:, None] & below).float().mean(1)

        def outer(_: Tensor, at_boundary: Tensor) -> tuple[Tensor, Figures]:
            loss = (shares * cross_entropy(at_boundary, labels, reduction="none")).mean()
            return self._beta * loss, {"margin_loss": loss, "train_adversarial_accuracy": accuracy}

        return self._updates(y, [x, found.x], outer, where)


class HeldMargin(WassersteinMarginTrainer):
    """Margin training whose beta is a multiplier: clean accuracy in training is to stay what it was before."""

    def __init__(self, classifier: PyTorchClassifier, points: float = 0.0, **options: Any) -> None:
        """Take the clean accuracy that may be lost, in points, beside the options of the base class."""
        super().__init__(classifier, **options)
        self.points = points

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return _Multiplier(self, updates)


class _Multiplier(DualDescent):
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
