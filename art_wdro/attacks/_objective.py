# SPDX-License-Identifier: MIT
"""What an attack on a classifier ascends."""

from __future__ import annotations

from art.estimators.classification import PyTorchClassifier

from art_wdro._host.classifier import SCALES, logits_of
from art_wdro._solvers.objective import Objective
from art_wdro.losses import PerSampleLoss, attack_objective


def objective_of(
    classifier: PyTorchClassifier, loss: str | PerSampleLoss, *, targeted: bool = False, precision: str = "float32"
) -> Objective:
    """Return what an attack on the classifier ascends.

    :param loss: As for :class:`WassersteinPGD`.
    :param targeted: Whether labels are targets.
    :param precision: A name in `PRECISIONS`.
    """
    function = logits_of(classifier, precision=precision)
    return Objective(function, attack_objective(loss, targeted), targeted, SCALES.get(precision, 1.0))
