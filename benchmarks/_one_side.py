# SPDX-License-Identifier: MIT
"""The margin trainer before misclassified samples counted in its margins and it held on to what the network said."""

from __future__ import annotations

from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro import WassersteinMarginTrainer
from art_wdro._solvers.boundary import Boundary
from art_wdro.trainers._margin import DualDescent
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._update import Updates


class OneSide(WassersteinMarginTrainer):
    """Leave misclassified samples to the clean loss, which is that of labels."""

    def __init__(self, classifier: PyTorchClassifier, **options: Any) -> None:
        """Take the options of the base class, with no anchor unless one is given."""
        super().__init__(classifier, **{"anchor": 0.0, **options})

    def _method(self, updates: Updates, minibatches: Minibatches) -> DualDescent:
        return OneSideDescent(self, updates)


class OneSideDescent(DualDescent):
    """Margin training without a pull on misclassified samples."""

    def _pushed(self, at_boundary: Tensor, labels: Tensor, found: Boundary, taus: Tensor) -> Tensor:
        right = (found.distances > 0)[:, None]
        return super()._pushed(torch.where(right, at_boundary, at_boundary.detach()), labels, found, taus)
