# SPDX-License-Identifier: MIT
"""Checks of inputs and labels against a classifier: arrays, tensors and lists become tensors, or a clear error."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from art_wdro._host.classifier import box
from art_wdro._ranks import shards, together
from art_wdro._storage.arrays import Rows, as_float32, parts, share
from art_wdro._threat.geometry import clip
from art_wdro.losses import class_indices

RAW = "; give inputs as they are before the classifier's preprocessing with its bounds, or clip_values=None for none"
"""What the error says of inputs that leave the box."""
ROUNDING = 2.0**-21
"""By how much inputs may leave the box, in units of its larger bound: four of float32, which standardising loses."""


def as_numbers(x: Any, name: str) -> Tensor:
    """Return an array, tensor or nested list as a detached tensor, where it lies and of its own dtype.

    :raises TypeError: If the values are no real numbers.
    """
    if isinstance(x, Tensor):
        if x.is_complex():
            raise TypeError(f"{name} has the dtype {x.dtype}; allowed are real numbers")
        return _detach(x)
    array = _as_array(x, name)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} has the dtype {array.dtype}; allowed are real numbers")
    return share(array)


def _as_array(values: Any, name: str) -> np.ndarray:
    """Return an array of what should be one.

    :raises ValueError: If its parts differ in shape.
    """
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name} is a {type(values).__name__} of parts that differ in shape; needed is an array"
        ) from error


@torch.inference_mode(False)
def as_inputs(classifier: PyTorchClassifier, x: Any, name: str = "x", hint: str = RAW) -> Tensor:
    """Check inputs and return them as a float32 tensor where they lie.

    :param x: Array, tensor or nested list, (N, ...), any real dtype.
    :param name: What the errors call it.
    :param hint: What an error says of inputs outside of clip_values, beside where they are.
    :return: The inputs, detached; NumPy data stays on the host.
    :raises TypeError: If the values are no numbers.
    :raises ValueError: If x is empty, does not fit the classifier, holds NaN or inf, or leaves clip_values; what leaves
        them by rounding alone is clipped.
    """
    tensor = as_float32(as_numbers(x, name))
    expected = tuple(classifier.input_shape)
    fits = tensor.dim() == len(expected) + 1 and all(
        want is None or want == have for want, have in zip(expected, tensor.shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"{name} has the shape {tuple(tensor.shape)}; the classifier takes (N, {', '.join(map(str, expected))})"
        )
    if tensor.numel() == 0:
        if len(tensor) == 0 and shards() is not None:
            return tensor  # a rank may have nothing to do
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; needed is at least one sample")
    bounds = box(classifier)
    lower, upper = (None, None) if bounds is None else (bound.to(tensor.device) for bound in bounds)
    data, rounded = Rows(tensor, tensor.device), False
    for rows in parts(len(data), data.at_once(len(data))):
        values = data[rows]
        unusable = ~torch.isfinite(values)
        if unusable.any():
            bad = rows.start + _first(unusable)
            raise ValueError(f"{name} holds NaN or inf (first in sample {bad}); allowed are finite numbers")
        if lower is None or upper is None:
            continue
        outside = (values < lower) | (values > upper)
        if not outside.any():
            continue
        slack = rounding_slack(lower, upper)
        beyond = (values < lower - slack) | (values > upper + slack)
        if beyond.any():
            raise ValueError(
                f"{name} lies in [{tensor.min():.9g}, {tensor.max():.9g}], outside of the classifier's clip_values "
                f"in [{lower.min():.9g}, {upper.max():.9g}] (first in sample {rows.start + _first(beyond)}){hint}"
            )
        rounded = True
    return tensor if lower is None or upper is None or not rounded else _clipped(data, lower, upper)


def rounding_slack(lower: Tensor, upper: Tensor) -> Tensor:
    """Return by how much inputs may leave the box and count as rounded."""
    return ROUNDING * torch.maximum(lower.abs(), upper.abs()).nan_to_num(posinf=0.0)


def _clipped(data: Rows, lower: Tensor, upper: Tensor) -> Tensor:
    """Return inputs that lie outside of the box by rounding alone, clipped, in the same kind of place."""
    result = data.like(torch.float32)
    for rows in parts(len(data), data.at_once(len(data))):
        result[rows] = clip(data[rows], lower, upper)
    return result.whole()


@torch.inference_mode(False)
def as_labels(classifier: PyTorchClassifier, y: Any, count: int, name: str = "y") -> Tensor:
    """Check labels and return them as class indices on the host's or the tensor's device.

    :param y: One-hot or probability rows (N, K), or indices (N,) or (N, 1), any real dtype.
    :param count: N, the number of inputs.
    :param name: What the errors call it.
    :return: Class indices, (N,), int64.
    :raises TypeError: If the values are no numbers.
    :raises ValueError: If the shape or the count does not fit, or a label is no class.
    """
    if y is None:
        raise ValueError(f"{name} is None; needed are {count} labels, as indices or one-hot rows")
    if not isinstance(y, Tensor):
        array = _as_array(y, name)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} has the dtype {array.dtype}; allowed are class indices or one-hot rows")
        y = share(array.astype(np.int64) if array.dtype.kind in "ub" else array)
    y = _detach(y)
    classes = classifier.nb_classes
    if y.dim() not in (1, 2) or (y.dim() == 2 and y.shape[1] not in (1, classes)):
        raise ValueError(
            f"{name} has the shape {tuple(y.shape)}; allowed are indices (N,) or (N, 1) and rows (N, {classes})"
        )
    if len(y) != count:
        raise ValueError(f"{name} has {len(y)} labels for {count} samples; needed is one each")
    if y.is_floating_point() and not torch.isfinite(y).all():
        raise ValueError(f"{name} holds NaN or inf; allowed are class indices or one-hot rows")
    indices = class_indices(y, classes)
    if y.dim() == 2 and y.shape[1] == classes and classes > 1:
        _check_rows(name, y.double())
    if y.shape[-1] != classes or y.dim() == 1:
        wrong = (indices < 0) | (indices >= classes) | (y.reshape(-1) != indices)
        if wrong.any():
            raise ValueError(f"{name} holds the label {y.reshape(-1)[wrong][0]:g}; allowed are 0 to {classes - 1}")
    return indices


def _check_rows(name: str, rows: Tensor) -> None:
    """Refuse rows (N, K) that name no class: without one largest entry, or, of whole numbers, with none above 0.

    Scores such as logits, which scripts for ART hand over as labels, may be negative.
    """
    largest = rows.amax(1, keepdim=True)
    whole = (rows == rows.round()).all(1)
    bad = ((rows == largest).sum(1) > 1) | (whole & ((rows < 0).any(1) | (largest[:, 0] <= 0)))
    if bad.any():
        first = int(bad.nonzero()[0])
        row = [round(value, 6) for value in rows[first].tolist()]
        raise ValueError(
            f"{name} names no class in row {first}, {row}; allowed are one-hot rows, and scores with one largest"
        )


def labelled_data(classifier: PyTorchClassifier, x: Any, y: Any | None) -> tuple[Tensor, Tensor]:
    """Check a data set and return its inputs and class indices, as :func:`as_inputs` and :func:`as_labels` do.

    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: Labels; None where x brings them.
    """
    with together():
        x, y = as_arrays(x, y)
        inputs = as_inputs(classifier, x)
        return inputs, as_labels(classifier, y, len(inputs))


def _first(where: Tensor) -> int:
    """Return the first row that holds a True."""
    return int(where.flatten(1).any(1).nonzero()[0])


def _detach(tensor: Tensor) -> Tensor:
    """Cut a tensor off its graph; autograd takes one made in inference mode only as a copy."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def as_arrays(x: Any, y: Any) -> tuple[Any, Any]:
    """Read a torch `Dataset` or `DataLoader` once, into a temporary file mapped into memory; pass on anything else.

    :param x: A data set or a loader that yields inputs, or pairs of inputs and labels, in the order they should have;
        or arrays, which come back as they are.
    :param y: Labels, None with a data set that brings its own.
    :return: Inputs, (N, ...), and labels, or None where there are none.
    :raises ValueError: If there are labels on both sides, or items differ in shape or dtype.
    """
    if not isinstance(x, (Dataset, DataLoader)):
        return x, y
    loader = x if isinstance(x, DataLoader) else DataLoader(x, batch_size=256)
    labels: list[np.ndarray] = []
    first: np.ndarray | None = None
    count = 0
    with tempfile.TemporaryFile(prefix="art-wdro-") as file, torch.random.fork_rng(devices=[]):
        for batch in loader:
            inputs, *rest = parts_of(batch)
            array = np.ascontiguousarray(inputs)
            first = array if first is None else first
            if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
                raise ValueError(
                    f"x yields inputs of shape {array.shape[1:]} and dtype {array.dtype} after {first.shape[1:]} and "
                    f"{first.dtype}; needed are equal ones"
                )
            file.write(array.tobytes())
            labels += [np.asarray(part) for part in rest]
            count += len(array)
        if first is None:
            raise ValueError("x yields no samples; needed is at least one")
        file.flush()
        inputs = share(np.memmap(file, first.dtype, "r+", shape=(count, *first.shape[1:])))
    if labels and y is not None:
        raise ValueError("y is given, and x brings labels of its own; give one of them")
    return inputs, torch.from_numpy(np.concatenate(labels)) if labels else y


def parts_of(batch: Any) -> Sequence[Any]:
    """Return the inputs that a loader yields, and the labels beside them, if there are any.

    :raises TypeError: If it yields anything else.
    """
    if isinstance(batch, Mapping):
        raise TypeError(f"x yields dicts with the keys {[*batch]}; allowed are inputs, or pairs of inputs and labels")
    parts = batch if isinstance(batch, (tuple, list)) else (batch,)
    if not 1 <= len(parts) <= 2:
        raise TypeError(f"x yields {len(parts)} parts an item; allowed are inputs, or pairs of inputs and labels")
    return parts
