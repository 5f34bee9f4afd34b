# SPDX-License-Identifier: MIT
"""Adversarial training (Madry et al., 2018, arXiv:1706.06083), on the loop of the package's own trainers."""

from __future__ import annotations

from torch import Tensor

from art_wdro import DistributionalTRADESTrainer
from art_wdro.losses import predicted
from art_wdro.trainers._augmentation import indices_of
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._trades import AlgorithmOne
from art_wdro.trainers._update import Figures, Outer, Updates


class AdversarialTraining(DistributionalTRADESTrainer):
    """Descend the cross-entropy of attacked inputs alone."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> AlgorithmOne:
        return _OnAttacked(self, updates, minibatches)


class _OnAttacked(AlgorithmOne):
    """The update's own cross-entropy, of the attacked minibatch in place of the clean one."""

    def step(self, x: Tensor, y: Tensor, where: str) -> Figures | None:
        with self._updates.frozen():
            attacked = self._perturb(x, indices_of(y))
        return self._updates(y, [attacked], nothing_beside(indices_of(y)), where)


def nothing_beside(labels: Tensor) -> Outer:
    """Return the loss beside the cross-entropy of attacked inputs where there is none, with the accuracy on them."""

    def outer(logits: Tensor) -> tuple[Tensor, Figures]:
        right = (predicted(logits) == labels).double().mean()
        return logits.new_zeros(()), {"train_adversarial_accuracy": right}

    return outer
