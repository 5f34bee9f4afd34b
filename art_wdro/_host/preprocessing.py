# SPDX-License-Identifier: MIT
"""A `PyTorchClassifier`'s preprocessing as a differentiable function of tensors, private attributes included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor

OPEN = 32
"""Size of an input's open dimension where preprocessors are tried."""


def preprocessing(classifier: PyTorchClassifier, training: bool) -> Callable[[Tensor], Tensor]:
    """Return the function from raw inputs (N, ...) to what the network takes, differentiable.

    :param training: Take the preprocessing that ART applies when fitting instead of predicting.
    """
    operations = [o for o in classifier.preprocessing_operations if (o.apply_fit if training else o.apply_predict)]
    if all(map(_is_identity, operations)):
        return lambda x: x
    if not classifier.all_framework_preprocessing:
        return lambda x: _NumPyPreprocessing.apply(x, classifier, training)
    # ART's own standardisation makes a tensor of its own; what else there is may write to what it is given
    pure = all(
        isinstance(operation, StandardisationMeanStdPyTorch) for operation in classifier.preprocessing_operations
    )

    def function(x: Tensor) -> Tensor:
        given = x if pure else x.clone()
        prepared: Tensor = classifier._apply_preprocessing(given, None, fit=training, no_grad=False)[0]
        return prepared

    return function


def set_operations(classifier: PyTorchClassifier) -> list[Preprocessor]:
    """Return the preprocessors for fitting that want labels, change them, or change how many samples there are.

    They are tried on two samples, and draw from NumPy's and torch's random states.
    """
    clip = classifier.clip_values
    shape = (2, *(size or OPEN for size in classifier.input_shape))
    x = np.full(shape, 0.0 if clip is None else np.min(clip[0]), dtype=np.float32)
    rows = np.eye(2, classifier.nb_classes, dtype=np.float32)
    return [o for o in classifier.preprocessing_operations if o.apply_fit and _changes_set(o, x, rows)]


def applied_to_set(operations: list[Preprocessor], x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply preprocessors to inputs, (N, ...), and one-hot labels, (N, K), one after the other."""
    for operation in operations:
        x, rows = operation(x, rows)
    return np.asarray(x, dtype=np.float32), np.asarray(rows)


@contextmanager
def switched_off(operations: list[Preprocessor]) -> Iterator[None]:
    """Let preprocessors not apply when fitting, for as long as the context lasts."""
    for operation in operations:
        operation._apply_fit = False
    try:
        yield
    finally:
        for operation in operations:
            operation._apply_fit = True


def _changes_set(operation: Preprocessor, x: np.ndarray, rows: np.ndarray) -> bool:
    if _is_identity(operation):
        return False
    try:
        alone, _ = operation(x.copy(), None)
    except Exception:
        alone = None
    try:
        moved, labels = operation(x.copy(), rows.copy())
    except Exception:
        return False  # it will say so where it is needed
    return alone is None or len(moved) != len(x) or not np.array_equal(labels, rows)


def standardisation(classifier: PyTorchClassifier) -> tuple[Tensor, Tensor] | None:
    """Return mean and std of `preprocessing=(mean, std)`, shaped to broadcast over a sample; None if there is none.

    :raises ValueError: If the classifier has other preprocessing.
    """
    operations = [operation for operation in classifier.preprocessing_operations if not _is_identity(operation)]
    if not operations:
        return None
    if len(operations) > 1 or not isinstance(operations[0], StandardisationMeanStdPyTorch):
        raise ValueError(f"classifier has the preprocessing {operations}; allowed is preprocessing=(mean, std)")
    mean, std = (torch.as_tensor(np.asarray(v, dtype=np.float32)) for v in (operations[0].mean, operations[0].std))
    channels = (-1, *[1] * (len(classifier.input_shape) - 1))
    return mean.view(channels) if mean.dim() == 1 else mean, std.view(channels) if std.dim() == 1 else std


def _is_identity(operation: object) -> bool:
    """Tell ART's default preprocessing, which subtracts 0 and divides by 1."""
    return (
        isinstance(operation, StandardisationMeanStdPyTorch)
        and np.array_equal(operation.mean, 0.0)
        and np.array_equal(operation.std, 1.0)
    )


class _NumPyPreprocessing(torch.autograd.Function):
    """Preprocessors of ART that work on arrays, with the gradient estimate that each of them brings."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, classifier: PyTorchClassifier, training: bool) -> Tensor:
        ctx.array, ctx.classifier, ctx.training = x.cpu().numpy().copy(), classifier, training
        array, _ = classifier._apply_preprocessing(ctx.array.copy(), None, fit=training)
        return torch.from_numpy(np.asarray(array, dtype=np.float32)).to(x.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        array = gradients[0].cpu().numpy()
        with torch.enable_grad():  # some of ART's estimates differentiate, and backward passes switch that off
            array = ctx.classifier._apply_preprocessing_gradient(ctx.array.copy(), array, fit=ctx.training)
        return torch.from_numpy(np.asarray(array, dtype=np.float32)).to(gradients[0].device), None, None
