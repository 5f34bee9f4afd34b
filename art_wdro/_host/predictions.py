# SPDX-License-Identifier: MIT
"""What a classifier predicts, and the accuracy that is left on what an attack made."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro._ranks import mean
from art_wdro.losses import are_probabilities


def predicted_labels(classifier: PyTorchClassifier, x: Tensor, batch_size: int) -> Tensor:
    """Return argmax f(x), (N,), on the classifier's device; call it inside :func:`undisturbed`."""
    function = host.logits_of(classifier)
    with torch.no_grad():
        found = torch.zeros(len(x), dtype=torch.int64, device=classifier.device)
        for rows, points in host.batches_of(classifier, batch_size, x):
            found[rows] = function(points).argmax(1)
    return found


def warn_of_probabilities(classifier: PyTorchClassifier, x: Tensor, batch_size: int) -> None:
    """Issue a `UserWarning` if the network puts out probabilities where logits are needed, as seen on a few inputs."""
    few = x[: min(16, batch_size)].to(classifier.device)
    if len(few) == 0:
        return
    with host.undisturbed(classifier, batch_size), torch.no_grad():
        outputs = host.logits_of(classifier)(few)
    if are_probabilities(outputs):
        warnings.warn(
            "the classifier puts out probabilities; attacks need logits, and leave too much accuracy without",
            UserWarning,
            stacklevel=3,
        )


def _standing(classifier: PyTorchClassifier, x: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Tell which samples are classified correctly, on the host."""
    return predicted_labels(classifier, x, batch_size).cpu() == labels.cpu()


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
        standing = _standing(classifier, adversarial, labels, batch_size)
        if mass is not None:
            moved, before = torch.from_numpy(mass), _standing(classifier, x, labels, batch_size)
            standing = moved * standing + (1 - moved) * before
    return mean(standing)
