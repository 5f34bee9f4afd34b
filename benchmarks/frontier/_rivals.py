# SPDX-License-Identifier: MIT
"""Trainers of others, on the loop of the package's own.

Adversarial training: Madry et al., 2018, arXiv:1706.06083. Max-margin training: Ding et al., 2020, arXiv:1812.02637.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from art_wdro import DistributionalTRADESTrainer, WassersteinMarginTrainer
from art_wdro._solvers.boundary import boundary
from art_wdro.losses import predicted
from art_wdro.trainers._augmentation import indices_of
from art_wdro.trainers._margin import DualDescent
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


class MaxMarginTraining(WassersteinMarginTrainer):
    """Descend the cross-entropy of inputs, and that at the boundary points of all that are right, up to eps."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return _AtBoundary(self, updates)


class _AtBoundary(DualDescent):
    """Max-margin training: eps is the largest margin that is asked for."""

    def step(self, x: Tensor, y: Tensor, where: str) -> Figures | None:
        labels = indices_of(y)
        with self._updates.frozen():
            found = boundary(
                self._logits_of, x, labels, self._r, reach=self._eps, max_iter=self._max_iter, box=self._box
            )
        inside = (found.distances > 0) & (found.distances < self._eps)

        def outer(_: Tensor, at_boundary: Tensor) -> tuple[Tensor, Figures]:
            loss = (inside * cross_entropy(at_boundary, labels, reduction="none")).mean()
            return self._beta * loss, {"margin_loss": loss, "train_adversarial_accuracy": (~inside).double().mean()}

        return self._updates(y, [x, found.x], outer, where)
