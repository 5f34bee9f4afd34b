# SPDX-License-Identifier: MIT
"""Two distributional trainers of others, on the loop of the package's own: UDR and ARMOR_D.

UDR-PGD: Bui et al., 2022, A unified Wasserstein distributional robustness framework for adversarial training, Algorithm
1 and equation (19). ARMOR_D: Birrell, Ebrahimi, 2023, arXiv:2309.03791, with the Kullback-Leibler divergence, over the
per-sample loss of TRADES. Constants are those of the authors' programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from art_wdro import DistributionalTRADESTrainer
from art_wdro.losses import predicted
from art_wdro.trainers._augmentation import indices_of
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._trades import AlgorithmOne
from art_wdro.trainers._update import Figures, Updates
from benchmarks.frontier._rivals import nothing_beside

RATE, PERIOD = 0.02, 10
"""Step of UDR's multiplier, and minibatches between two of them."""
SMOOTHING = 0.1
"""kappa of ARMOR_D, which is added to its multiplier and bounds how much it reweighs."""
NATURAL = 0.5
"""Weight of the clean loss beside ARMOR_D's."""
HALVINGS = 60
"""Bisection steps for ARMOR_D's multiplier: to rounding."""
LARGEST = 100.0
"""Where that multiplier ends."""


class UDRTraining(DistributionalTRADESTrainer):
    """Descend the cross-entropy of inputs that pay for what they leave of the ball, at a price that is learnt."""

    def __init__(self, classifier: PyTorchClassifier, price: float = 1.0, **options: Any) -> None:
        """Take the price to begin with beside the options of the base class."""
        super().__init__(classifier, **options)
        self.price = price

    def _method(self, updates: Updates, minibatches: Minibatches) -> AlgorithmOne:
        return _SoftBall(self, updates, minibatches)


class _SoftBall(AlgorithmOne):
    """Steps of signs from a random start; what exceeds the ball shrinks by the price."""

    def __init__(self, trainer: UDRTraining, updates: Updates, minibatches: Minibatches) -> None:
        super().__init__(trainer, updates, minibatches)
        self._price, self._lengths = trainer.price, torch.zeros(0)

    def step(self, x: Tensor, y: Tensor, where: str) -> Figures | None:
        labels, step = indices_of(y), self._eps * self._steps[0]
        with self._updates.frozen():
            delta = torch.empty_like(x).uniform_(-self._eps, self._eps)
            for _ in self._steps:
                delta = shrunk(
                    delta + step * self._objective.gradient(x + delta, labels).gradient.sign(), self._eps, self._price
                )
                delta = (x + delta).clamp(0, 1) - x
        self._lengths = torch.cat([self._lengths, delta.abs().mean()[None].cpu()])
        if len(self._lengths) == PERIOD:
            self._price -= RATE * (self._eps - self._lengths.mean().item())
            self._lengths = self._lengths[:0]
        return self._updates(y, [x + delta], nothing_beside(labels), where)


def shrunk(delta: Tensor, eps: float, price: float) -> Tensor:
    """Shrink what exceeds [-eps, eps] by a share: a price of 1 leaves nothing of it."""
    return delta - price * (delta - delta.clamp(-eps, eps))


class ARMORTraining(DistributionalTRADESTrainer):
    """TRADES with samples reweighed within a divergence of the data set."""

    def __init__(self, classifier: PyTorchClassifier, divergence: float = 0.02, **options: Any) -> None:
        """Take the divergence beside the options of the base class."""
        super().__init__(classifier, **options)
        self.divergence = divergence

    def _method(self, updates: Updates, minibatches: Minibatches) -> AlgorithmOne:
        return _Reweighed(self, updates, minibatches)


class _Reweighed(AlgorithmOne):
    """The worst mean of TRADES' losses over all weights within the divergence."""

    def __init__(self, trainer: ARMORTraining, updates: Updates, minibatches: Minibatches) -> None:
        super().__init__(trainer, updates, minibatches)
        self._divergence = trainer.divergence

    def step(self, x: Tensor, y: Tensor, where: str) -> Figures | None:
        labels = indices_of(y)
        with self._updates.frozen():
            attacked = self._perturb(x, labels)

        def outer(clean: Tensor, logits: Tensor) -> tuple[Tensor, Figures]:
            natural = cross_entropy(clean, labels, reduction="none")
            each = kl_div(logits.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)
            worst = worst_mean(natural + self._of._beta * each, self._divergence)
            right = (predicted(logits) == labels).double().mean()
            # the update adds the clean loss once
            loss = (1 - NATURAL) * (worst - natural.mean())
            return loss, {"consistency_loss": each.mean(), "train_adversarial_accuracy": right}

        return self._updates(y, [x, attacked], outer, where)


def worst_mean(losses: Tensor, divergence: float) -> Tensor:
    """Compute min over lambda >= 0 of divergence lambda + (lambda + kappa) log mean_i exp(l_i / (lambda + kappa)).

    :param losses: Losses, (n,).
    :param divergence: How far the weights may lie from equal ones, in Kullback-Leibler divergence.
    :return: A scalar tensor, differentiable at the best multiplier.
    """

    def value(multiplier: float) -> Tensor:
        scale = multiplier + SMOOTHING
        return divergence * multiplier + scale * (torch.logsumexp(losses / scale, 0) - math.log(len(losses)))

    return value(_root(lambda multiplier: _slope_of(losses.detach().double(), divergence, multiplier)))


def _slope_of(losses: Tensor, divergence: float, multiplier: float) -> float:
    """Return the derivative of that objective, which rises with the multiplier."""
    scaled = losses / (multiplier + SMOOTHING)
    mean = torch.logsumexp(scaled, 0) - math.log(len(losses))
    return float(divergence + mean - (scaled.softmax(0) * scaled).sum())


def _root(slope: Callable[[float], float]) -> float:
    """Return where a rising function crosses 0 in [0, `LARGEST`], or the end that is nearest to it."""
    low, high = 0.0, LARGEST
    if slope(low) >= 0:
        return low
    if slope(high) <= 0:
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return low
