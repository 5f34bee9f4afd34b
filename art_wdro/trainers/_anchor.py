# SPDX-License-Identifier: MIT
"""What a network said before training: its weights then, and what goes through them."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro.losses import as_float
from art_wdro.trainers._average import Average

CHANCE = 2.0
"""Standard errors above chance up to which an accuracy on the first minibatch is taken for chance."""


class Anchor:
    """The network as it was when a run began."""

    def __init__(self, classifier: PyTorchClassifier) -> None:
        """Name the weights and buffers that are copied before the first minibatch.

        Not earlier: lazy layers have none yet, and ranks start from the first one's.

        :param classifier: Whose network it is.
        """
        network = host.network(classifier)
        self._logits_of, self._classes = host.logits_of(classifier, training=True), classifier.nb_classes
        self._before = Average(lambda: itertools.chain(network.parameters(), network.buffers()), 0.0)
        self._kept = False
        self._right: Tensor | None = None
        self._samples, self._told = 0, False

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return what it said of inputs, (n, K); the network must be in eval mode."""
        if not self._kept:
            self._before.update()
            self._kept = True
        with self._before.in_place():
            return as_float(self._logits_of(x))

    def look(self, right: Tensor) -> None:
        """Note where the network is right, boolean, (n,), on the first minibatch."""
        if self._right is None:
            self._right, self._samples = right.double().mean(), len(right)

    def tell(self) -> None:
        """Warn, once, if the network predicted like chance when the run began."""
        if self._told or self._right is None:
            return
        self._told, right, chance = True, self._right.item(), 1 / self._classes
        if right < 1 and right <= chance + CHANCE * math.sqrt(chance * (1 - chance) / self._samples):
            warnings.warn(
                f"the network was right on {100 * right:.0f} % of the first minibatch, which is chance, and anchor "
                "holds it to what it said before; to train from scratch, pass anchor=0",
                stacklevel=2,
            )

    def state(self) -> list[Tensor]:
        """Return the weights and buffers on the host."""
        return self._before.state()

    def set_state(self, state: list[Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self._before.set_state(state)
        self._kept = self._told = bool(state)
