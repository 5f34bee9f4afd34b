# SPDX-License-Identifier: MIT
"""Trainers on softened labels, against what a network overfits to.

A softened label is half a label and half what the network said of the same input before training. Averages of its own
past predictions do the same in Chen et al., 2021, Robust overfitting may be mitigated by properly learned smoothening.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn.functional import one_hot

from art_wdro import DistributionalTRADESTrainer
from art_wdro._host import classifier as host
from art_wdro.trainers._augmentation import indices_of
from art_wdro.trainers._common import Common
from art_wdro.trainers._margin import DualDescent
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._run import Method
from art_wdro.trainers._update import Figures, Outer, Updates
from benchmarks._one_side import OneSide

LABEL = 0.5
"""Weight of the label itself in a softened one; no other class then outweighs it."""


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

    def _method(self, updates: Updates, minibatches: Minibatches) -> Method:
        return super()._method(SoftenedUpdates(self._classifier, self._common, updates), minibatches)


class SoftenedMargin(OneSide):
    """Margin training on softened labels."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return super()._method(SoftenedUpdates(self._classifier, self._common, updates), minibatches)
