# SPDX-License-Identifier: MIT
"""First-order figures: Upsilon, the sensitivity, and the bounds on the accuracy that follow from it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.inputs import as_arrays, as_inputs, as_labels, labelled_data
from art_wdro._host.predictions import labels_for
from art_wdro._ranks import mean, together
from art_wdro._solvers.objective import Objective, Value, upsilon
from art_wdro.attacks._pgd import WassersteinFGM
from art_wdro.losses import PerSampleLoss, attack_objective


def sensitivity(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    p: float = 2,
    norm: float | str = np.inf,
    loss: str | PerSampleLoss = "redlr",
    batch_size: int = 128,
) -> float:
    """Compute Upsilon = (mean_i ||grad J(x_i)||_s^q)^(1/q), the slope of the worst expected loss at eps = 0.

    :param classifier: A `PyTorchClassifier` whose network puts out logits.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: Labels as indices or one-hot rows; None takes the classifier's predictions.
    :param p: Order of the Wasserstein distance, in [1, inf], with dual q.
    :param norm: Ground norm l_r: 1, 2, np.inf or "inf", with dual l_s.
    :param loss: As for :class:`WassersteinPGD`.
    :param batch_size: Samples in one forward and backward pass.
    :return: Upsilon, in loss per input unit.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If a value is not allowed.

    Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, Theorem 4.1.
    """
    host.require_pytorch(sensitivity, classifier)
    p, r = arguments.order(p, one=True), arguments.ground_norm(norm)
    batch_size = arguments.integer("batch_size", batch_size, 1)
    attack_objective(loss)
    with together():
        x, y = as_arrays(x, y)
        inputs = as_inputs(classifier, x)
        labels = None if y is None else as_labels(classifier, y, len(inputs))
    return upsilon_of(classifier, inputs, labels, p=p, r=r, loss=loss, batch_size=batch_size)


def upsilon_of(
    classifier: PyTorchClassifier,
    x: Tensor,
    labels: Tensor | None,
    *,
    p: float,
    r: float,
    loss: str | PerSampleLoss,
    batch_size: int,
) -> float:
    """Compute :func:`sensitivity` of inputs and labels that are checked already."""
    with host.undisturbed(classifier, batch_size):
        labels = labels_for(classifier, x, batch_size) if labels is None else labels.to(classifier.device)
        return upsilon(host.logits_of(classifier), x, labels, p=p, r=r, loss=loss, batch_size=batch_size).item()


class AccuracyBounds(NamedTuple):
    """First-order bounds on the adversarial accuracy A_eps: asymptotic in eps, estimates rather than certificates.

    :param lower: Lower bound on A_eps, in [0, 1]; NaN where the loss gives none.
    :param upper: Upper bound on A_eps: the accuracy that W-FGSM leaves.
    :param clean: A, the clean accuracy.
    :param ratio_lower: The bound on A_eps / A.
    :param ratio_upper: The bound on A_eps / A.
    """

    lower: float
    upper: float
    clean: float
    ratio_lower: float
    ratio_upper: float


def accuracy_bounds(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    p: float = 2,
    norm: float | str = np.inf,
    eps: float = 8 / 255,
    loss: str = "redlr",
    batch_size: int = 128,
) -> AccuracyBounds:
    """Compute the asymptotic first-order bounds on the adversarial accuracy under (W_p, l_r).

    With V(0) the mean clean loss, W(0) its mean over misclassified samples (0 for ReDLR) and V the mean loss after
    W-FGSM, R = A_eps / A lies between min{(W(0) - V(0) - eps Upsilon), (W(0) - V)} / (W(0) - V(0)) and the accuracy
    after W-FGSM over A, up to o(eps). They say nothing certain at a given eps; the knapsack and certificates do.

    :param classifier: A `PyTorchClassifier` whose network puts out logits.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param p: Order of the Wasserstein distance, in (1, inf].
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param eps: Budget in input units.
    :param loss: "redlr" or "ce". With "ce" and no misclassified sample there is no lower bound.
    :param batch_size: Samples in one forward and backward pass.
    :return: The bounds.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit.

    Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, section 5.
    """
    host.require_pytorch(accuracy_bounds, classifier)
    loss = arguments.choice("loss", loss, ("redlr", "ce"))
    inputs, labels = labelled_data(classifier, x, y)
    attack = WassersteinFGM(classifier, p=p, norm=norm, eps=eps, loss=loss, batch_size=batch_size, verbose=False)
    return bounds_of(attack, inputs, labels)


def bounds_of(attack: WassersteinFGM, x: Tensor, labels: Tensor) -> AccuracyBounds:
    """Compute :func:`accuracy_bounds` by W-FGSM, with its loss, of inputs and labels that are checked."""
    classifier, size, (p, r, _) = attack.estimator, attack.batch_size, attack.threat()
    adversarial = attack.attack_tensors(x, labels)
    slope = upsilon_of(classifier, x, labels, p=p, r=r, loss=attack.loss, batch_size=size)
    objective = Objective.of(host.logits_of(classifier), attack.loss)
    with host.undisturbed(classifier, size):
        clean, attacked = (_values(objective, data, labels, size, classifier) for data in (x, adversarial))
    accuracy, left = mean(clean.standing), mean(attacked.standing)
    before, after = mean(clean.losses), mean(attacked.losses)
    missed = 0.0 if attack.loss == "redlr" else mean(clean.losses[~clean.standing])
    if accuracy == 0.0:
        return AccuracyBounds(0.0, left, 0.0, math.nan, math.nan)
    gap = missed - before
    ratio = math.nan
    if not math.isnan(gap):
        ratio = max(0.0, min(gap - attack.eps * slope, missed - after) / gap) if gap > 0 else 0.0
    return AccuracyBounds(ratio * accuracy, left, accuracy, ratio, left / accuracy)


def _values(objective: Objective, x: Tensor, labels: Tensor, batch_size: int, classifier: PyTorchClassifier) -> Value:
    losses = torch.zeros(len(x), dtype=torch.float64, device=classifier.device)
    standing = torch.zeros(len(x), dtype=torch.bool, device=classifier.device)
    for rows, points, own in host.batches_of(classifier, batch_size, x, labels):
        losses[rows], standing[rows] = objective.value(points, own)
    return Value(losses, standing)
