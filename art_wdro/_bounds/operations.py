# SPDX-License-Identifier: MIT
"""The affine maps and activations of torch: its layers, and its functions, methods and operators by one name each."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad

from art_wdro._bounds.layers import ACTIVATIONS, FUNCTIONS, Activation, Affine, Map, Pull

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLUTION_TRANSPOSED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: grad.conv1d_input,
    nn.Conv2d: grad.conv2d_input,
    nn.Conv3d: grad.conv3d_input,
}
CONVOLUTIONS: dict[str, Any] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
FAN_INS = 16
"""Inputs of a convolution, in units of those that one output sees, up to which its matrix is faster in float64."""
ENTRIES = 2**23
"""Entries of such a matrix, at most."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MEANS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
MEAN_NAMES = {
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "mean", "sum"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
}
SELECTING = (
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
)
"""Layers that put each number in some places, or in none."""
SELECTIONS = {
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone", "detach", "alias"),
    *("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "flip", "roll", "getitem", "select"),
    *("narrow", "slice", "index_select", "expand", "repeat", "tile", "dropout", "feature_dropout"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "chunk", "split", "unbind", "tensor_split"),
}
"""Functions that do so."""
CONSTANT_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)  # nn.ZeroPad2d and its kin are among them
_CONVOLUTION = {"weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_POOL = {"kernel_size": 1, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
_MOMENTS, _SCALES = {"running_mean": None, "running_var": None}, {"weight": None, "bias": None}
_NORM = {"training": False, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": True}
PARAMETERS: dict[str, dict[str, Any]] = {
    "pad": {"pad": (), "mode": "constant", "value": None},
    "linear": {"weight": None, "bias": None},
    **dict.fromkeys(CONVOLUTIONS, _CONVOLUTION),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _POOL),
    "batch_norm": _SCALES | _MOMENTS | _NORM,
    "functional.batch_norm": _MOMENTS | _SCALES | _NORM,
}
"""What functions take beside the layer, in order, with what holds where it is not given."""
SUMS = {"add", "iadd"}
DIFFERENCES = {"sub", "isub"}
NEGATED = Affine(torch.neg, lambda x: x)
ALLOWED = (
    "linear layers, convolutions, batch norms, average and max pools, padding, reshapes, indexing, sums, cat, maximum, "
    "clamp, abs, ReLU, LeakyReLU, ReLU6, ELU, Hardtanh, Softplus, GELU, SiLU, Tanh and Sigmoid"
)


def name_of(target: Any) -> str:
    """Return one name for a function, a method and an operator that do the same: add for add_ and aten.add.Tensor."""
    if isinstance(target, str):
        name = target
    elif hasattr(target, "_schema"):
        name = target._schema.name.partition("::")[2]
    else:
        name = getattr(target, "__name__", str(target))
    return name.rstrip("_") if not name.startswith("_") else name


def unsupported(target: Any) -> ValueError:
    """Return the error that names a step without bounds, and what has them."""
    if isinstance(target, WEIGHTED) and getattr(target, "padding_mode", "zeros") != "zeros":
        mode = target.padding_mode
        return ValueError(f"the network holds {type(target).__name__} with padding_mode={mode!r}; allowed is 'zeros'")
    shown = target if isinstance(target, nn.Module) else name_of(target)
    return ValueError(f"the network holds {shown}; allowed are {ALLOWED}")


def of_module(module: Any, like: Tensor, shape: torch.Size) -> Affine | Activation | None:
    """Return what a layer of torch does.

    :param module: The layer.
    :param like: One input of it, (1, ...).
    :param shape: Shape of one output.
    :return: The map or activation, or None if it is neither.
    """
    if type(module) in ACTIVATIONS:
        return ACTIVATIONS[type(module)](module)
    if type(module) in WEIGHTED and getattr(module, "padding_mode", "zeros") == "zeros":
        return _weighted(module, like.numel(), shape.numel())
    if isinstance(module, NORMS) and module.running_var is not None and module.running_mean is not None:
        moments = module.running_mean, module.running_var
        return _normed(*moments, module.weight, module.bias, module.eps, shape)
    if isinstance(module, CONSTANT_PADS):
        return _padded(module.padding, module.value)
    if isinstance(module, SELECTING):
        return selected(module, like)
    return _mean(module, like) if isinstance(module, MEANS) else None


def bound(name: str, arguments: Sequence[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """Return what a function of `PARAMETERS` is given beside the layer, by name."""
    return PARAMETERS[name] | dict(zip(PARAMETERS[name], arguments[1:], strict=False)) | keywords


class Call(NamedTuple):
    """A function, method or operator with what it is given, of which one is a layer.

    :param target: The function.
    :param like: One input of it, (1, ...).
    :param shape: Shape of one output.
    :param apply: The function of the layer alone.
    :param arguments: What it is given in order, with None in the layer's place.
    :param keywords: What it is given by name.
    """

    target: Any
    like: Tensor
    shape: torch.Size
    apply: Callable[[Tensor], Any]
    arguments: list[Any]
    keywords: dict[str, Any]


def of_function(call: Call) -> Affine | Activation | None:
    """Return the map or activation that a call is, or None if it is neither."""
    name, first = name_of(call.target), call.arguments[:1] == [None]
    if name in FUNCTIONS and first:
        return FUNCTIONS[name](*call.arguments[1:], **call.keywords)
    if name in _KNOWN and first:
        return _KNOWN[name](call)
    if len(call.arguments) != 2 or call.keywords:
        return None
    return _arithmetic(name, first, call.arguments[1 if first else 0])


def _batch_norm(call: Call) -> Affine | None:
    # torch.nn.functional has the moments first
    name = "functional.batch_norm" if call.target is F.batch_norm else "batch_norm"
    setting = bound(name, call.arguments, call.keywords)
    if setting["training"] or setting["running_mean"] is None:
        return None
    moments = setting["running_mean"], setting["running_var"]
    return _normed(*moments, setting["weight"], setting["bias"], setting["eps"], call.shape)


def _pad(call: Call) -> Affine:
    setting = bound("pad", call.arguments, call.keywords)
    if setting["mode"] != "constant":
        return selected(call.apply, call.like)
    return _padded(setting["pad"], setting["value"] or 0.0)


def _layer(call: Call) -> Affine | None:
    name = name_of(call.target)
    return _of_weights(name, call.like.numel(), call.shape.numel(), bound(name, call.arguments, call.keywords))


def _product(call: Call) -> Affine | None:
    """Return x @ W for a matrix W."""
    matrix = call.arguments[1] if len(call.arguments) == 2 else None
    if not isinstance(matrix, Tensor) or matrix.dim() != 2:
        return None
    return _of_weights("linear", call.like.numel(), call.shape.numel(), {"weight": matrix.T, "bias": None})


_KNOWN: dict[str, Callable[[Call], Affine | None]] = {
    **dict.fromkeys(SELECTIONS, lambda call: selected(call.apply, call.like)),
    **dict.fromkeys(MEAN_NAMES, lambda call: _mean(call.apply, call.like)),
    "neg": lambda call: NEGATED,
    "batch_norm": _batch_norm,
    "pad": _pad,
    **dict.fromkeys(("linear", *CONVOLUTIONS), _layer),
    **dict.fromkeys(("matmul", "mm"), _product),
}
"""What makes maps of functions, by name."""


def selected(call: Callable[[Tensor], Any], like: Tensor) -> Affine:
    """Return a map that puts numbers in other places, as it does with their numbers.

    :raises ValueError: If it mixes samples.
    """
    size = like.numel()
    numbers = torch.arange(2.0 * size, dtype=torch.float64).view(2, *like.shape[1:])
    with torch.no_grad():
        found = call(numbers)
    shape = found.shape[1:]
    if len(found) != 2 or not torch.equal(found[0] + size, found[1]) or not bool((found[0] < size).all()):
        raise ValueError("the network moves numbers from one sample to another; allowed are steps inside of samples")
    index = found[0].flatten().long()
    if torch.equal(index, torch.arange(size)):
        return _same(lambda x: x.reshape(-1, *shape))

    def pull(adjoint: Tensor, before: torch.Size) -> Tensor:
        zeros = adjoint.new_zeros(len(adjoint), size)
        return zeros.index_add_(1, index, adjoint.flatten(1)).view(-1, *before)

    def apply(x: Tensor) -> Tensor:
        return x.flatten(1)[:, index].view(-1, *shape)

    return Affine(apply, apply, pull, pull)


def embedded(before: int, after: int, dim: int) -> Affine:
    """Return a map that puts zeros before and after the numbers along a dimension: a part of a concatenation."""

    def apply(x: Tensor) -> Tensor:
        pads = [0, 0] * (x.dim() - 1 - dim % x.dim())
        return F.pad(x, [*pads, before, after])

    return _same(apply)


def _weighted(module: Any, inputs: int, outputs: int) -> Affine:
    absolute: Any = copy.deepcopy(module.requires_grad_(False))
    absolute.weight = nn.Parameter(module.weight.abs(), requires_grad=False)
    absolute.bias = None
    size = inputs, outputs
    products = inputs * outputs if _is_matrix(module, *size) else outputs * module.weight[0].numel()
    return Affine(module, absolute, _pull(module, *size), _pull(absolute, *size), products)


def _of_weights(name: str, inputs: int, outputs: int, setting: dict[str, Any]) -> Affine | None:
    """Return the map of a layer whose weights are given to a function."""
    weight, bias = setting["weight"], setting["bias"]
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        return None
    rest = {key: value for key, value in setting.items() if key not in ("weight", "bias")}
    if name in CONVOLUTIONS:
        channels = weight.shape[1] * rest["groups"]
        module = CONVOLUTIONS[name](channels, len(weight), tuple(weight.shape[2:]), bias=False, **rest)
    elif inputs == weight.shape[1]:
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    else:
        return None  # of the last of several dimensions
    module.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    module.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return _weighted(module, inputs, outputs)


def _normed(mean: Tensor, variance: Tensor, weight: Any, bias: Any, eps: float, shape: torch.Size) -> Affine:
    scale = 1 / torch.sqrt(variance + eps)
    scale = scale if weight is None else scale * weight.detach()
    offset = -mean * scale + (0.0 if bias is None else bias.detach())
    scale, offset = (part.view(-1, *[1] * (len(shape) - 1)) for part in (scale, offset))
    return Affine(lambda x: x * scale + offset, lambda x: x * scale.abs())


def _padded(padding: Any, value: float) -> Affine:
    return Affine(lambda x: F.pad(x, padding, value=value), lambda x: F.pad(x, padding))


def _pull(module: Any, inputs: int, outputs: int) -> Pull | None:
    """Return W^T of a linear layer, or of a convolution with so many inputs and outputs a sample."""
    if isinstance(module, nn.Linear):
        return lambda adjoint, shape: adjoint @ module.weight
    if _is_matrix(module, inputs, outputs):
        matrix = functools.cache(lambda shape: _matrix(module, shape))
        return lambda adjoint, shape: (adjoint.flatten(1) @ matrix(shape)).view(-1, *shape)
    if isinstance(module.padding, str):
        return None

    def pull(adjoint: Tensor, shape: torch.Size) -> Tensor:
        size = (len(adjoint), *shape)
        given = (module.stride, module.padding, module.dilation, module.groups)
        found: Tensor = CONVOLUTION_TRANSPOSED[type(module)](size, module.weight, adjoint, *given)
        return found

    return pull


def _is_matrix(module: Any, inputs: int, outputs: int) -> bool:
    """Tell whether a layer is applied backwards as a matrix."""
    few = inputs <= FAN_INS * module.weight[0].numel() and inputs * outputs <= ENTRIES
    return not isinstance(module, nn.Linear) and few


def _matrix(module: nn.Module, shape: torch.Size) -> Tensor:
    """Return the matrix of a convolution, (outputs, inputs)."""
    without: Any = copy.deepcopy(module)
    without.bias = None
    with torch.no_grad():
        columns: Tensor = without(torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape))
    return columns.flatten(1).T.contiguous()


def _same(apply: Map) -> Affine:
    """Return a map whose weights are non-negative and which adds nothing."""
    return Affine(apply, apply)


def _mean(apply: Map, like: Tensor) -> Affine:
    """Return a mean or sum of numbers; average pools may divide by a negative number."""
    positive = bool((apply(torch.ones_like(like)) >= 0).all())
    return Affine(apply, apply if positive else lambda x: -apply(x))


def _arithmetic(name: str, first: bool, constant: Any) -> Affine | None:
    """Return the map of a sum, difference, product or quotient with a constant, which may stand first."""
    if name in SUMS:
        return Affine(lambda x: x + constant, lambda x: x + 0 * constant)
    if name in DIFFERENCES or name == "rsub":
        ahead = first if name != "rsub" else not first
        return Affine(lambda x: x - constant if ahead else constant - x, lambda x: x + 0 * constant)
    if name in ("mul", "imul"):
        return Affine(lambda x: x * constant, lambda x: x * abs(constant))
    if name in ("truediv", "itruediv", "div", "true_divide") and first:
        return Affine(lambda x: x / constant, lambda x: x / abs(constant))
    return None
