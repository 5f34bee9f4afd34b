# SPDX-License-Identifier: MIT
"""Certified radii of samples, and the accuracy that they guarantee."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_wdro._bounds.certified import PairConstants, certain_radii
from art_wdro._bounds.intervals import Interval
from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.predictions import predicted_labels
from art_wdro._ranks import all_rows, together
from art_wdro._storage.arrays import parts
from art_wdro._threat.knapsack import knapsack
from art_wdro.certificates._problem import balls_around, certified_problem, radii_of, radius_of


def certified_radii(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    norm: float | str = np.inf,
    *,
    largest: Any | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Find for every sample a radius within which no input of the box is classified otherwise.

    That holds in exact arithmetic; in float32 a point within rounding of the border can still come out on either side.
    The radius is the larger of two: the margin over its Lipschitz constant in the box, and the largest radius, to 1 %,
    for which linear bounds carried backwards through the network keep the margin positive.

    :param classifier: As for :func:`lipschitz_certificate`.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param largest: Radius beyond which is not searched, in input units, one number or (N,); the distances that an
        attack found save time. None takes the size of the box.
    :param batch_size: Samples bounded at once, a matter of memory.
    :return: Radii, (N,), in input units: 0 where the sample is misclassified already, or nothing is certain; inf where
        all of the box is.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit, or the network holds a layer without bounds.

    Source: CROWN, Zhang et al., 2018, arXiv:1811.00866; for graphs with sums, Xu et al., 2020, arXiv:2002.12920.
    """
    host.require_pytorch(certified_radii, classifier)
    r = arguments.ground_norm(norm)
    batch_size = arguments.integer("batch_size", batch_size, 1)
    inputs, labels, nodes, box = certified_problem(classifier, x, y)
    size = radius_of(box.upper - box.lower, r)
    with together():
        most = radii_of("largest", np.inf if largest is None else largest, len(inputs)).clamp(max=size)
    constants = PairConstants(nodes, Interval(box.lower[None], box.upper[None]), classifier.nb_classes, r)
    found = torch.zeros(len(inputs), dtype=torch.float64)
    for part in parts(len(inputs), batch_size):
        balls = balls_around(inputs[part], most[part], r, box)
        own = torch.stack([constants.of(label) for label in labels[part].tolist()])
        found[part] = certain_radii(nodes, balls, labels[part], own, most[part])
    found = torch.where(found >= size, math.inf, found)
    with host.undisturbed(classifier, batch_size):  # the classifier itself rounds otherwise
        predicted = predicted_labels(classifier, inputs.float(), 256).cpu()
    return torch.where(predicted == labels, found, 0.0).numpy()


def certified_accuracy(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    p: float = 2,
    norm: float | str = np.inf,
    eps: float = 8 / 255,
    *,
    batch_size: int = 16,
) -> float:
    """Compute an accuracy below which no distribution in the W_p ball, inside the box, takes the classifier.

    It is the knapsack over certified radii: the attacker needs at least those distances.
    :func:`certified_radii` and :func:`knapsack_accuracy` answer several budgets from one search.

    :param classifier: As for :func:`lipschitz_certificate`.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param p: Order of the Wasserstein distance, in [1, inf].
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param eps: Budget in input units.
    :param batch_size: Samples bounded at once, a matter of memory.
    :return: Accuracy in [0, 1].
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit, or the network holds a layer without bounds.
    """
    host.require_pytorch(certified_accuracy, classifier)
    p, eps = arguments.order(p, one=True), arguments.real("eps", eps, 0.0)
    radii, _ = all_rows(torch.from_numpy(certified_radii(classifier, x, y, norm, batch_size=batch_size)))
    if len(radii) == 0:
        raise ValueError("x has no samples on any rank; needed is at least one")
    return knapsack(radii.numpy(), eps, p).accuracy
