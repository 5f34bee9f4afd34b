# SPDX-License-Identifier: MIT
"""The one module that reads a `PyTorchClassifier` of ART, its private attributes included.

It hands the rest of the package tensors on the classifier's device and a function from inputs to
logits, and leaves the classifier as it was.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.exceptions import EstimatorError
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor, nn

from art_wdro._checkpoint import described, fingerprint
from art_wdro._coupling import shards, together
from art_wdro._datasets import as_arrays
from art_wdro._losses import PerSampleLoss, attack_objective, class_indices
from art_wdro._rows import Rows, as_float32, parts, share
from art_wdro._sensitivity import Objective


def require_pytorch(owner: type | Callable[..., object], classifier: object) -> None:
    """Refuse an estimator that is not ART's `PyTorchClassifier`.

    :raises EstimatorError: ART's own error, with what was given.
    """
    if not isinstance(classifier, PyTorchClassifier):
        raise EstimatorError(owner, [PyTorchClassifier], classifier)


def require_optimiser(classifier: PyTorchClassifier) -> None:
    """Refuse a classifier that cannot be trained here.

    :raises ValueError: If it has no optimiser, or trains in mixed precision through apex.
    """
    if classifier.optimizer is None:
        raise ValueError("classifier has optimizer=None; needed is a PyTorchClassifier with an optimiser")
    if classifier.use_amp:
        raise ValueError("classifier has use_amp=True (apex); allowed is use_amp=False")


def optimiser(classifier: PyTorchClassifier) -> torch.optim.Optimizer:
    """Return the user's optimiser."""
    own: torch.optim.Optimizer = classifier.optimizer
    return own


def network(classifier: PyTorchClassifier) -> nn.Module:
    """Return the user's own module."""
    own: nn.Module = classifier.model
    return own


PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Number formats of an attack's forward passes, by name; None leaves it to the network."""
SCALES = {"float16": 1024.0}
"""Factors that keep gradients in the range of a number format, as loss scaling in training does."""


def logits_of(
    classifier: PyTorchClassifier, *, training: bool = False, precision: str = "float32"
) -> Callable[[Tensor], Tensor]:
    """Return the function from raw inputs (N, ...) to logits (N, K), differentiable in both.

    The classifier's preprocessing is part of it. The module's train or eval mode is the caller's.

    :param training: Apply the preprocessing that ART applies when fitting instead of predicting.
    :param precision: A name in `PRECISIONS`: half precision where torch's autocast allows it.
    :raises ValueError: From the function, if the network does not put out (N, nb_classes).
    """
    preprocess = _preprocessing(classifier, training)
    dtype = PRECISIONS[precision]
    casting = nullcontext() if dtype is None else torch.autocast(classifier.device.type, dtype)

    def function(x: Tensor) -> Tensor:
        with casting:
            outputs = classifier._model(preprocess(x))
        # ART's wrapper returns the outputs of all layers of an nn.Sequential; the logits are the last
        logits: Tensor = outputs[-1]
        if logits.shape != (len(x), classifier.nb_classes):
            raise ValueError(
                f"classifier puts out the shape {tuple(logits.shape)} for {len(x)} samples; needed are "
                f"logits of shape ({len(x)}, nb_classes={classifier.nb_classes})"
            )
        return logits

    return function


def _preprocessing(classifier: PyTorchClassifier, training: bool) -> Callable[[Tensor], Tensor]:
    if all(map(_is_identity, classifier.preprocessing_operations)):
        return lambda x: x
    if not classifier.all_framework_preprocessing:
        return lambda x: _NumPyPreprocessing.apply(x, classifier, training)
    return lambda x: classifier._apply_preprocessing(x, None, fit=training, no_grad=False)[0]


def _is_identity(operation: object) -> bool:
    """Tell ART's default preprocessing, which subtracts 0 and divides by 1."""
    return (
        isinstance(operation, StandardisationMeanStdPyTorch)
        and np.array_equal(operation.mean, 0.0)
        and np.array_equal(operation.std, 1.0)
    )


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


class _NumPyPreprocessing(torch.autograd.Function):
    """Preprocessors of ART that work on arrays, with the gradient estimate that each of them brings."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, classifier: PyTorchClassifier, training: bool) -> Tensor:
        ctx.array, ctx.classifier, ctx.training = x.cpu().numpy(), classifier, training
        array, _ = classifier._apply_preprocessing(ctx.array, None, fit=training)
        return torch.from_numpy(np.asarray(array, dtype=np.float32)).to(x.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        array = gradients[0].cpu().numpy()
        with torch.enable_grad():  # some of ART's estimates differentiate, and backward passes switch that off
            array = ctx.classifier._apply_preprocessing_gradient(ctx.array, array, fit=ctx.training)
        return torch.from_numpy(np.asarray(array, dtype=np.float32)).to(gradients[0].device), None, None


@contextmanager
def restored(classifier: PyTorchClassifier) -> Iterator[None]:
    """Put every module back in its own mode afterwards, and every parameter's `.grad` and `requires_grad`."""
    # a frozen ScriptModule has no mode
    modes = [(module, module.training) for module in classifier._model.modules() if hasattr(module, "training")]
    parameters = [(weight, weight.grad, weight.requires_grad) for weight in classifier._model.parameters()]
    for weight, _, _ in parameters:
        weight.grad = None
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weight, gradient, trained in parameters:
            weight.requires_grad_(trained).grad = gradient


@contextmanager
def evaluating(classifier: PyTorchClassifier) -> Iterator[None]:
    """Put the network in eval mode with its parameters frozen; afterwards restore all of it.

    Frozen, because a compiled network computes the gradients of all parameters that want one, asked or not.
    cuDNN cannot differentiate a recurrent layer in eval mode, so it is switched off for those.
    """
    cudnn = torch.backends.cudnn.enabled
    with restored(classifier), torch.inference_mode(False):
        classifier._model.eval().requires_grad_(False)
        try:
            torch.backends.cudnn.enabled = cudnn and not classifier.is_rnn
            yield
        finally:
            torch.backends.cudnn.enabled = cudnn


@contextmanager
def hint_at_memory(name: str, value: int) -> Iterator[None]:
    """Say which argument to lower when the device's memory is exhausted."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        hint = f"{name} is {value}, too much for the device's memory; lower it"
        raise torch.cuda.OutOfMemoryError(f"{hint}. {error}") from error


@contextmanager
def undisturbed(classifier: PyTorchClassifier, batch_size: int) -> Iterator[None]:
    """Put the network in eval mode; afterwards restore modes, parameter gradients and all random state.

    :param batch_size: What an error names when the device's memory is exhausted.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    cuda = [classifier.device] if classifier.device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(devices=cuda),
            evaluating(classifier),
            hint_at_memory("batch_size", batch_size),
        ):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def box(classifier: PyTorchClassifier) -> tuple[Tensor, Tensor] | None:
    """Return the bounds of the inputs on the classifier's device, shaped to broadcast over samples.

    :raises ValueError: If `clip_values` are arrays that fit no sample.
    """
    if classifier.clip_values is None:
        return None
    lower, upper = (_bound(value, tuple(classifier.input_shape)) for value in classifier.clip_values)
    return lower.to(classifier.device), upper.to(classifier.device)


def _bound(value: np.ndarray, shape: tuple[int | None, ...]) -> Tensor:
    tensor = torch.as_tensor(np.asarray(value, dtype=np.float32))
    sizes = [size for size in shape if size is not None]
    if len(sizes) < len(shape):
        return tensor
    if tensor.numel() == math.prod(sizes):
        return tensor.reshape(sizes)
    try:
        torch.broadcast_to(tensor, sizes)
    except RuntimeError:
        raise ValueError(
            f"clip_values have the shape {tuple(tensor.shape)}; needed is one that fits inputs of shape {shape}"
        ) from None
    return tensor


def identity(classifier: PyTorchClassifier) -> dict[str, Any]:
    """Describe what a classifier does to its inputs, weights apart, in plain values."""
    clip, loss = classifier.clip_values, classifier.loss
    held = [*loss.state_dict().values(), getattr(loss, "label_smoothing", 0.0)] if isinstance(loss, nn.Module) else []
    return {
        "loss of the classifier": [described(loss), fingerprint(*held)],
        "network": fingerprint(repr(network(classifier))),
        "preprocessing": [described(operation) for operation in classifier.preprocessing_operations],
        "clip_values": None if clip is None else [np.asarray(bound, dtype=float).tolist() for bound in clip],
    }


def as_numbers(x: Any, name: str) -> Tensor:
    """Return an array, tensor or nested list as a detached tensor, where it lies and of its own dtype.

    :raises TypeError: If the values are no real numbers.
    """
    if isinstance(x, Tensor):
        if x.is_complex():
            raise TypeError(f"{name} has the dtype {x.dtype}; allowed are real numbers")
        return _detach(x)
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} has the dtype {array.dtype}; allowed are real numbers")
    return share(array)


@torch.inference_mode(False)
def as_inputs(classifier: PyTorchClassifier, x: Any, name: str = "x") -> Tensor:
    """Check inputs and return them as a float32 tensor where they lie.

    :param x: Array, tensor or nested list, (N, ...), any real dtype.
    :param name: What the errors call it.
    :return: The inputs, detached; NumPy data stays on the host.
    :raises TypeError: If the values are no numbers.
    :raises ValueError: If x is empty, does not fit the classifier, holds NaN or inf, or leaves clip_values.
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
    data = Rows(tensor, tensor.device)
    for rows in parts(len(data), data.at_once(len(data))):
        values = data[rows]
        unusable = ~torch.isfinite(values)
        if unusable.any():
            bad = rows.start + _first(unusable)
            raise ValueError(f"{name} holds NaN or inf (first in sample {bad}); allowed are finite numbers")
        if lower is None or upper is None:
            continue
        outside = (values < lower) | (values > upper)
        if outside.any():
            raise ValueError(
                f"{name} lies in [{tensor.min():g}, {tensor.max():g}], outside of the classifier's clip_values "
                f"in [{lower.min():g}, {upper.max():g}] (first in sample {rows.start + _first(outside)})"
            )
    return tensor


def _first(where: Tensor) -> int:
    """Return the first row that holds a True."""
    return int(where.flatten(1).any(1).nonzero()[0])


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
        array = np.asarray(y)
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
    if y.shape[-1] != classes or y.dim() == 1:
        wrong = (indices < 0) | (indices >= classes) | (y.reshape(-1) != indices)
        if wrong.any():
            raise ValueError(f"{name} holds the label {y.reshape(-1)[wrong][0]:g}; allowed are 0 to {classes - 1}")
    return indices


def labelled_data(classifier: PyTorchClassifier, x: Any, y: Any | None) -> tuple[Tensor, Tensor]:
    """Check a data set and return its inputs and class indices, as :func:`as_inputs` and :func:`as_labels` do.

    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: Labels; None where x brings them.
    """
    with together():
        x, y = as_arrays(x, y)
        inputs = as_inputs(classifier, x)
        return inputs, as_labels(classifier, y, len(inputs))


def predicted_labels(classifier: PyTorchClassifier, x: Tensor, batch_size: int) -> Tensor:
    """Return argmax f(x), (N,), on the classifier's device; call it inside :func:`undisturbed`."""
    function = logits_of(classifier)
    with torch.no_grad():
        found = torch.zeros(len(x), dtype=torch.int64, device=classifier.device)
        for rows, points in batches_of(classifier, batch_size, x):
            found[rows] = function(points).argmax(1)
    return found


def batches_of(classifier: PyTorchClassifier, batch_size: int, *arrays: Tensor) -> Iterator[tuple[Any, ...]]:
    """Yield rows and their values in each array, in batches on the classifier's device."""
    data = [Rows(array, classifier.device) for array in arrays]
    return ((rows, *(array[rows] for array in data)) for rows in parts(len(arrays[0]), batch_size))


def _detach(tensor: Tensor) -> Tensor:
    """Cut a tensor off its graph; autograd takes one made in inference mode only as a copy."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def training_loss(classifier: PyTorchClassifier) -> nn.CrossEntropyLoss:
    """Return the cross-entropy that a trainer descends.

    The classifier's own one, with its class weights and label smoothing, if it has one; a plain one if
    its loss is something else, such as a loss set for attacking.
    """
    own = classifier.loss
    if not isinstance(own, nn.CrossEntropyLoss):
        return nn.CrossEntropyLoss()
    own = copy.copy(own)
    own.reduction = "mean"
    return own


def weight_of(classifier: PyTorchClassifier, y: Tensor) -> Tensor:
    """Return what the mean of :func:`training_loss` divides by: how many labels count, each with its class's weight."""
    own = training_loss(classifier)
    weights = torch.ones_like(y, dtype=torch.float32) if own.weight is None else own.weight[y]
    return (weights * (y != own.ignore_index)).sum()


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


def example(classifier: PyTorchClassifier) -> Tensor:
    """Return one input inside the box, (1, ...), on the classifier's device.

    :raises ValueError: If `input_shape` leaves a dimension open.
    """
    shape = tuple(classifier.input_shape)
    if None in shape:
        raise ValueError(f"classifier has input_shape={shape}; needed is one without open dimensions")
    x = torch.zeros(1, *shape, device=classifier.device)
    bounds = box(classifier)
    return x if bounds is None else x.clamp(*bounds)


def as_classifier(
    model: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    device: str | torch.device | None = None,
    learning_rate: float = 0.01,
) -> PyTorchClassifier:
    """Wrap a network whose inputs lie in [0, 1] and which puts out logits.

    :param model: The network.
    :param shape: Shape of one input.
    :param classes: Number of classes.
    :param device: A torch device; None takes CUDA where it is.
    :param learning_rate: Rate of the optimiser, SGD without momentum.
    :return: The classifier, in eval mode; without an optimiser if nothing in the network can be trained.
    """
    wanted = resolve_device(device)
    if wanted.type == "cuda" and wanted.index is not None:
        torch.cuda.set_device(wanted)  # ART takes the current device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    classifier = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(parameters, lr=learning_rate) if parameters else None,
        input_shape=shape,
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if wanted.type == "cpu" else "gpu",
    )
    model.eval()
    return classifier


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Read the name of a device that is there; None takes CUDA where it is.

    :raises ValueError: If there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allowed = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    allowed += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if str(device) not in allowed:
        raise ValueError(f"device is {str(device)!r}; allowed here is one of {', '.join(allowed)}")
    return torch.device(device)
