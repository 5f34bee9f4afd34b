# SPDX-License-Identifier: MIT
"""A network as a graph of affine maps, sums and activations, traced by torch.fx, in float64."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn import grad

from art_wdro._bounds.layers import ACTIVATIONS, FUNCTIONS, Activation, Affine, Map, Node, Pull

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLUTION_TRANSPOSED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: grad.conv1d_input,
    nn.Conv2d: grad.conv2d_input,
    nn.Conv3d: grad.conv3d_input,
}
FAN_INS = 16
"""Inputs of a convolution, in units of those that one output sees, up to which its matrix is faster in float64."""
ENTRIES = 2**23
"""Entries of such a matrix, at most."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MEANS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
RESHAPES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
MEAN_FUNCTIONS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)
MEAN_METHODS = ("mean", "sum")
RESHAPING = ("view", "reshape", "flatten", "squeeze", "contiguous", "unsqueeze")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


def graph_of(
    model: nn.Module, shape: tuple[int, ...], standardisation: tuple[Tensor, Tensor] | None = None
) -> list[Node]:
    """Trace a network.

    :param model: A network of linear layers, convolutions, batch norms, average pools, reshapes, sums and activations.
    :param shape: Shape of one input.
    :param standardisation: What is subtracted from the input first, and by what it is divided then.
    :return: The nodes in order: the input first, the logits last.
    :raises ValueError: If the network holds anything else.
    """
    _refuse_hooks(model)
    try:
        plain = nn.Sequential(_plain_copy(model))
        parameters = [*inspect.signature(model.forward).parameters.values()][1:]
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        if defaults:
            plain[0].forward = functools.partial(plain[0].forward, **defaults)
        traced = fx.symbolic_trace(plain)
    except Exception as error:  # the user's own code runs here
        raise ValueError(f"the network cannot be traced by torch.fx: {error}") from error
    _refuse_writes(traced)
    traced.graph.eliminate_dead_code()
    nodes = [Node(())]
    if standardisation is not None:
        shift, scale = standardisation[0].double(), 1 / standardisation[1].double()
        nodes.append(Node((0,), Affine(lambda x: (x - shift) * scale, lambda x: x * scale.abs())))
    try:
        if standardisation is not None:
            like = torch.zeros(1, *shape, dtype=torch.float64)
            _require_finite(nodes[-1].operation, like, "the classifier's preprocessing=(mean, std)")
        return _Tracer(traced, nodes).run(shape)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"the network holds steps that bounds do not know: {error}") from error


def _refuse_hooks(model: nn.Module) -> None:
    for module in model.modules():
        if module._forward_pre_hooks or module._forward_hooks:
            raise ValueError(
                f"{type(module).__name__} has forward hooks, whose effect is unknown; for normed weights take "
                "torch.nn.utils.parametrizations"
            )


def _plain_copy(model: nn.Module) -> nn.Module:
    """Copy a network, its parametrised weights as the numbers that they are now."""
    model = copy.deepcopy(model).cpu().eval()
    for module in model.modules():
        if nn.utils.parametrize.is_parametrized(module):
            _freeze(module)
    return model.double()


def _freeze(module: nn.Module) -> None:
    """Replace parametrised tensors by their values; torch's own removal would change the class, the original's too."""
    values = {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = nn.utils.parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        setattr(module, name, nn.Parameter(value, requires_grad=False))


class _Tracer:
    """Turns the steps of a traced network into nodes, one example beside them for shapes and constants."""

    def __init__(self, traced: fx.GraphModule, nodes: list[Node]) -> None:
        self.traced, self.nodes = traced, nodes
        self.values: dict[fx.Node, Any] = {}
        self.indices: dict[fx.Node, int] = {}

    def run(self, shape: tuple[int, ...]) -> list[Node]:
        for step in self.traced.graph.nodes:
            if step.op == "placeholder":
                self.values[step] = torch.zeros(2, *shape, dtype=torch.float64)
                self.indices[step] = len(self.nodes) - 1
            elif step.op == "output":
                (result,) = step.args
                if result not in self.indices or self.indices[result] != len(self.nodes) - 1:
                    raise ValueError("the network's output is not that of its last layer; needed are logits (N, K)")
            else:
                self._add(step)
        return self.nodes

    def _add(self, step: fx.Node) -> None:
        arguments = fx.map_arg(step.args, self.values.__getitem__)
        keywords = fx.map_arg(step.kwargs, self.values.__getitem__)
        if step.op == "get_attr":
            self.values[step] = operator.attrgetter(str(step.target))(self.traced).detach()
            return
        target: Any = self.traced.get_submodule(str(step.target)) if step.op == "call_module" else step.target
        call = getattr(arguments[0], target) if step.op == "call_method" else target
        with torch.no_grad():
            rest = arguments[1:] if step.op == "call_method" else arguments
            self.values[step] = call(*rest, **keywords)
        sources: list[fx.Node] = []
        fx.map_arg((step.args, step.kwargs), lambda part: sources.append(part) if part in self.indices else None)
        value = self.values[step]
        if not sources or not isinstance(value, Tensor):
            return  # a size, or a constant
        inputs = tuple(self.indices[part] for part in sources)
        if target in SUMS and len(sources) == len(step.args) == 2 and not step.kwargs:
            if any(self.values[part].shape != value.shape for part in sources):
                raise ValueError("the network adds layers of unequal shapes; allowed are sums of equal ones")
            self._append(step, Node(inputs))
        elif len(sources) == 1:
            like = self.values[sources[0]][:1]
            operation = self._operation(step, target, like, arguments, keywords)
            _require_finite(operation, like, f"the network's {_name_of(target)}")
            self._append(step, Node(inputs, operation))
        else:
            raise self._unsupported(target)

    def _append(self, step: fx.Node, node: Node) -> None:
        self.nodes.append(node)
        self.indices[step] = len(self.nodes) - 1

    def _operation(
        self, step: fx.Node, target: Any, like: Tensor, arguments: Any, keywords: Any
    ) -> Affine | Activation:
        shape = self.values[step].shape[1:]
        if isinstance(target, nn.Module):
            return self._of_module(target, like, shape)
        if target in FUNCTIONS and step.args[0] in self.indices:
            return FUNCTIONS[target](*arguments[1:], **keywords)
        if target in RESHAPING or target is torch.flatten:
            return _reshape(shape)
        if keywords.get("dtype") is not None:
            raise ValueError(f"the network holds {_name_of(target)} with dtype={keywords['dtype']}; allowed is none")
        if target in MEAN_FUNCTIONS or target is torch.mean:
            return _mean(lambda x: target(x, *arguments[1:], **keywords), like)
        if target in MEAN_METHODS:
            return _mean(lambda x: getattr(x, target)(*arguments[1:], **keywords), like)
        if len(arguments) == 2 and not keywords:
            found = _arithmetic(target, step.args[0] in self.indices, *arguments)
            if found is not None:
                return found
        raise self._unsupported(target)

    def _of_module(self, module: Any, like: Tensor, shape: torch.Size) -> Affine | Activation:
        if type(module) in ACTIVATIONS:
            return ACTIVATIONS[type(module)](module)
        if type(module) in WEIGHTED and getattr(module, "padding_mode", "zeros") == "zeros":
            absolute: Any = copy.deepcopy(module.requires_grad_(False))
            absolute.weight = nn.Parameter(module.weight.abs(), requires_grad=False)
            absolute.bias = None
            size = like.numel(), shape.numel()
            products = math.prod(size) if _is_matrix(module, *size) else size[1] * module.weight[0].numel()
            return Affine(module, absolute, _pull(module, *size), _pull(absolute, *size), products)
        if isinstance(module, NORMS) and module.running_var is not None and module.running_mean is not None:
            scale = 1 / torch.sqrt(module.running_var + module.eps)
            scale = scale if module.weight is None else scale * module.weight.detach()
            offset = -module.running_mean * scale + (0.0 if module.bias is None else module.bias.detach())
            scale, offset = (part.view(-1, *[1] * (len(shape) - 1)) for part in (scale, offset))
            return Affine(lambda x: x * scale + offset, lambda x: x * scale.abs())
        if isinstance(module, RESHAPES):
            return _reshape(shape)
        if isinstance(module, MEANS):
            return _mean(module, like)
        raise self._unsupported(module)

    @staticmethod
    def _unsupported(target: Any) -> ValueError:
        if isinstance(target, WEIGHTED) and getattr(target, "padding_mode", "zeros") != "zeros":
            mode = target.padding_mode
            return ValueError(
                f"the network holds {type(target).__name__} with padding_mode={mode!r}; allowed is 'zeros'"
            )
        return ValueError(
            f"the network holds {_name_of(target)}; allowed are linear layers, convolutions, batch norms, average "
            "pools, reshapes, sums, abs, ReLU, LeakyReLU, ReLU6, Hardtanh, Softplus, GELU, SiLU, Tanh and Sigmoid"
        )


def _name_of(target: Any) -> str:
    return str(target if isinstance(target, (str, nn.Module)) else getattr(target, "__name__", target))


def _require_finite(operation: Any, like: Tensor, name: str) -> None:
    """Refuse a step whose numbers are not finite: its weights, constants or parameters, or sums of its weights."""
    zero, one = torch.zeros_like(like), torch.ones_like(like)
    if isinstance(operation, Affine):
        found = [operation.apply(zero), operation.absolute(one)]
    else:
        found = [function(point) for function in (operation.apply, operation.slope) for point in (-one, zero, one)]
    if not all(torch.isfinite(numbers).all() for numbers in found):
        raise ValueError(f"{name} holds NaN, inf or a division by 0; needed are finite numbers")


def _refuse_writes(traced: fx.GraphModule) -> None:
    """Refuse a network that changes a value in place which a later step reads."""
    order = {step: place for place, step in enumerate(traced.graph.nodes)}
    for step, place in order.items():
        if not step.args or not isinstance(step.args[0], fx.Node) or not _is_in_place(traced, step):
            continue
        if any(order[user] > place for user in step.args[0].users):
            raise ValueError(f"the network changes a value in place, by {step.name}, that a later step reads")


def _is_in_place(traced: fx.GraphModule, step: fx.Node) -> bool:
    """Tell whether a step writes to its first argument."""
    if step.op == "call_module":
        return bool(getattr(traced.get_submodule(str(step.target)), "inplace", False))
    name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "")
    augmented = step.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    return augmented or name.endswith("_") or bool(step.kwargs.get("inplace", False))


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


def _reshape(shape: torch.Size) -> Affine:
    return _same(lambda x: x.reshape(-1, *shape))


def _same(apply: Map) -> Affine:
    """Return a map whose weights are non-negative and which adds nothing."""
    return Affine(apply, apply)


def _mean(apply: Map, like: Tensor) -> Affine:
    """Return a mean or sum of numbers; average pools may divide by a negative number."""
    positive = bool((apply(torch.ones_like(like)) >= 0).all())
    return Affine(apply, apply if positive else lambda x: -apply(x))


def _arithmetic(target: Any, first: bool, left: Any, right: Any) -> Affine | None:
    """Return the map of a sum, difference, product or quotient with a constant."""
    constant = right if first else left
    if target in SUMS:
        return Affine(lambda x: x + constant, lambda x: x + 0 * constant)
    if target in (operator.sub, operator.isub, torch.sub, "sub"):
        return Affine(lambda x: x - constant if first else constant - x, lambda x: x + 0 * constant)
    if target in (operator.mul, operator.imul, torch.mul, "mul"):
        return Affine(lambda x: x * constant, lambda x: x * abs(constant))
    if target in (operator.truediv, torch.div, torch.true_divide, "div") and first:
        return Affine(lambda x: x / constant, lambda x: x / abs(constant))
    return None
