# SPDX-License-Identifier: MIT
"""What a classifier predicts, and the accuracy that is left on what an attack made."""

from __future__ import annotations

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro._ranks import mean
from art_wdro.losses import predicted


def predicted_labels(
    classifier: PyTorchClassifier, x: Tensor, batch_size: int, function: host.LogitsOf | None = None
) -> Tensor:
    """Return argmax f(x), (N,), on the classifier's device, -1 where a logit is NaN; call it inside `undisturbed`.

    :param function: The classifier's function from inputs to logits, where the caller has wrapped it.
    """
    function = host.logits_of(classifier) if function is None else function
    with torch.no_grad():
        found = torch.zeros(len(x), dtype=torch.int64, device=classifier.device)
        for rows, points in host.batches_of(classifier, batch_size, x):
            found[rows] = predicted(function(points))
    return found


def labels_for(
    classifier: PyTorchClassifier, x: Tensor, batch_size: int, function: host.LogitsOf | None = None
) -> Tensor:
    """Return the classifier's predictions in place of labels, (N,), on its device; call it inside `undisturbed`.

    :param function: As for :func:`predicted_labels`.
    :raises ValueError: If it predicts no class for a sample.
    """
    found = predicted_labels(classifier, x, batch_size, function)
    if (found < 0).any():
        first = int((found < 0).nonzero()[0])
        raise ValueError(f"y is None, and the classifier puts out NaN for sample {first}; needed are labels y")
    return found


def accuracy_left(
    classifier: PyTorchClassifier,
    x: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    mass: np.ndarray | None,
    batch_size: int,
) -> float:
    """Return the accuracy on what an attack made of a data set.

    :param classifier: The classifier.
    :param x: Inputs, (N, ...).
    :param adversarial: What became of them.
    :param labels: Class indices, (N,).
    :param mass: Which part of each sample's mass is there, the rest still at the input, (N,); None means all of it.
    :param batch_size: Samples in one pass.
    """
    with host.undisturbed(classifier, batch_size):
        after = predicted_labels(classifier, adversarial, batch_size).cpu() == labels.cpu()
        before = None if mass is None else predicted_labels(classifier, x, batch_size).cpu() == labels.cpu()
    return mean(standing_shares(after, before, mass))


def standing_shares(after: Tensor, before: Tensor | None, mass: np.ndarray | None) -> Tensor:
    """Return the share of each sample's mass that is classified correctly, (N,), where a part stayed at the input.

    :param after: Which samples are classified correctly where the moved part of their mass is, boolean, (N,).
    :param before: Which are so at the input; None where all of the mass moved.
    :param mass: Which part moved, (N,); None means all of it.
    """
    if mass is None or before is None:
        return after
    moved = torch.from_numpy(mass)
    return moved * after + (1 - moved) * before
