# SPDX-License-Identifier: MIT
"""Validation data of a training: their check, and the accuracies on which an epoch is selected."""

from __future__ import annotations

import math
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch.utils.data import DataLoader, Dataset

from art_wdro._host.doubts import warn_of_doubts
from art_wdro._host.inputs import as_arrays, as_inputs, as_labels
from art_wdro._host.predictions import accuracy_left
from art_wdro._ranks import mine, shards
from art_wdro.attacks._pgd import WassersteinPGD
from art_wdro.trainers._minibatches import Batch


def check_validation(classifier: PyTorchClassifier, data: Any) -> Batch | None:
    """Return this rank's part of a pair of inputs and labels, or of a data set of torch; None of none.

    :raises ValueError: If it is neither, or does not fit the classifier.
    """
    if data is None:
        return None
    data = as_arrays(data, None) if isinstance(data, (Dataset, DataLoader)) else data
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(f"validation_data is a {type(data).__name__}; allowed is a pair of inputs and labels")
    hint = "; needed are inputs as they are before the classifier's preprocessing, as for x"
    x = as_inputs(classifier, data[0], "validation_data[0]", hint)
    if len(x) == 0:  # which in one process is refused already
        raise ValueError("validation_data[0] has no samples; needed is at least one, over all ranks")
    y = as_labels(classifier, data[1], len(x), "validation_data[1]").to(x.device)
    if shards() is None:
        return x, y
    rows = mine(torch.arange(len(x), device=x.device))
    return x[rows], y[rows]


def validation_accuracies(
    classifier: PyTorchClassifier, data: Batch | None, *, p: float, norm: float, eps: float, max_iter: int
) -> dict[str, float | None]:
    """Measure clean, W_inf and W_p accuracy, with attacks stronger than the training's; None without data."""
    if data is None:
        return dict.fromkeys(("clean_accuracy", "winf_accuracy", "wp_accuracy"))
    x, labels = data
    threat: dict[str, Any] = {"norm": norm, "eps": eps, "max_iter": max_iter, "verbose": False}
    pointwise = WassersteinPGD(classifier, p=math.inf, loss="ce", **threat)
    distributional = WassersteinPGD(classifier, p=p, **threat)
    size = distributional.batch_size
    warn_of_doubts(classifier, x, size)
    points = {
        "clean_accuracy": x,
        "winf_accuracy": pointwise.attack_tensors(x, labels),
        "wp_accuracy": distributional.attack_tensors(x, labels),
    }
    return {name: accuracy_left(classifier, x, moved, labels, None, size) for name, moved in points.items()}
