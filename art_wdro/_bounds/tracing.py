# SPDX-License-Identifier: MIT
"""From a module of torch to the steps that bounds know, by torch.fx, or by torch.export where that cannot follow.

Parameters become float64 copies on the CPU, and the module stays as it is. A network with a step that has no bounds is
refused by its name.
"""

from __future__ import annotations

import copy
import functools
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn

from art_wdro._bounds.layers import Activation, Affine, Node
from art_wdro._bounds.maxima import max_pool, maximum
from art_wdro._bounds.operations import (
    NEGATED,
    SUMS,
    Call,
    bound,
    embedded,
    name_of,
    of_function,
    of_module,
    selected,
    unsupported,
)

MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
POOL_NAMES = ("max_pool1d", "max_pool2d", "max_pool3d")
FORMATS = {"float", "double", "to", "type", "type_as"}
"""Methods that change the number format: bounds are those of real numbers."""
EXPORT = ("torch.export", "torch._export")
"""Where the hooks come from by which a program of torch.export checks its inputs."""
ONNX_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Slice", "Expand", "Gather", "Transpose", "Flatten")
"""Words in the names of the layers of onnx2torch that put numbers in other places."""
CHECKS = {"_assert", "_assert_async", "sym_constrain_range_for_size"}
"""Functions by which a graph guards the shapes of its inputs."""


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
    traced = _followed(model, shape)
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


def _followed(model: nn.Module, shape: tuple[int, ...]) -> fx.GraphModule:
    """Return the graph of a network.

    :raises ValueError: If neither torch.fx nor torch.export can follow it.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "the network is a TorchScript module, of which torch.fx sees no layers; give the nn.Module it was made of"
        )
    try:
        plain = nn.Sequential(_plain_copy(model))
        parameters = [*inspect.signature(model.forward).parameters.values()][1:]
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        if defaults:
            plain[0].forward = functools.partial(plain[0].forward, **defaults)
    except Exception as error:  # the user's own code runs here
        raise ValueError(f"the network cannot be traced by torch.fx: {error}") from error
    try:
        return _without_checks(fx.GraphModule(plain, _Follower().trace(plain)))
    except Exception as error:
        try:
            with _quiet():
                exported = torch.export.export(_plain_copy(model), (torch.zeros(2, *shape).double(),), strict=False)
                return _without_checks(exported.module())
        except Exception as other:
            raise ValueError(
                f"the network cannot be traced by torch.fx: {error}; nor by torch.export: {_first_line(other)}"
            ) from error


class _Follower(fx.Tracer):
    """torch.fx, which takes the reshapes of onnx2torch as they are: they look at their sizes as it cannot."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module is one step."""
        return _moves_numbers(m) or super().is_leaf_module(m, module_qualified_name)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer a network that asks whether a number is a real one, as divisions of onnx2torch do."""
        return obj.node.target == "is_floating_point" or super().to_bool(obj)


def _moves_numbers(module: object) -> bool:
    """Tell whether a module is a reshape of onnx2torch."""
    kind = type(module)
    return kind.__module__.startswith("onnx2torch.") and any(word in kind.__name__ for word in ONNX_RESHAPES)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.export from telling what it cannot follow, which the error says."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _without_checks(traced: fx.GraphModule) -> fx.GraphModule:
    """Take out of a graph what only looks at the shapes of its inputs."""
    for step in reversed(traced.graph.nodes):
        guard = step.op == "call_module" and str(step.target).endswith("_guards_fn")
        if not step.users and (guard or (step.op == "call_function" and name_of(step.target) in CHECKS)):
            traced.graph.erase_node(step)
    return traced


def _refuse_hooks(model: nn.Module) -> None:
    for module in model.modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        if not all(str(getattr(hook, "__module__", "")).startswith(EXPORT) for hook in hooks):
            raise ValueError(
                f"{type(module).__name__} has forward hooks, whose effect is unknown; for normed weights take "
                "torch.nn.utils.parametrizations"
            )


def _plain_copy(model: nn.Module) -> nn.Module:
    """Copy a network, its parametrised weights as the numbers that they are now."""
    model = copy.deepcopy(model).cpu().eval()
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            hooks.clear()  # those of torch.export are the only ones that were let in
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
        self.parts: dict[fx.Node, fx.Node] = {}
        """The layers that steps cut into several, by step."""

    def run(self, shape: tuple[int, ...]) -> list[Node]:
        for step in self.traced.graph.nodes:
            if step.op == "placeholder":
                self.values[step] = torch.zeros(2, *shape, dtype=torch.float64)
                self.indices[step] = len(self.nodes) - 1
            elif step.op == "output":
                (result,) = step.args
                result = result[0] if isinstance(result, (tuple, list)) and len(result) == 1 else result
                if result not in self.indices or self.indices[result] != len(self.nodes) - 1:
                    raise ValueError("the network's output is not that of its last layer; needed are logits (N, K)")
            else:
                self._add(step)
        return self.nodes

    def _add(self, step: fx.Node) -> None:
        arguments = fx.map_arg(step.args, self.values.__getitem__)
        keywords = fx.map_arg(step.kwargs, self.values.__getitem__)
        if step.op == "get_attr":
            # a constant that is no buffer stays where it is when the copy of the network moves
            self.values[step] = operator.attrgetter(str(step.target))(self.traced).detach().cpu()
            return
        target: Any = self.traced.get_submodule(str(step.target)) if step.op == "call_module" else step.target
        sources: list[fx.Node] = []
        fx.map_arg((step.args, step.kwargs), lambda part: sources.append(part) if part in self.indices else None)
        if name_of(target) in FORMATS and sources == [step.args[0]]:
            self._keep_format(step, target, arguments, keywords)
            return
        call = getattr(arguments[0], target) if step.op == "call_method" else target
        with torch.no_grad():
            rest = arguments[1:] if step.op == "call_method" else arguments
            self.values[step] = call(*rest, **keywords)
        value = self.values[step]
        if isinstance(value, (tuple, list)) and sources and any(isinstance(part, Tensor) for part in value):
            self.parts[step] = sources[0]
        elif step.args and step.args[0] in self.parts:
            self._take_part(step)
        elif sources and isinstance(value, Tensor):  # else a size, or a constant
            self._append(step, target, sources, (arguments, keywords))

    def _append(self, step: fx.Node, target: Any, sources: list[fx.Node], given: tuple[Any, dict[str, Any]]) -> None:
        """Append what a step does to layers."""
        name, indices = name_of(target), [self.indices[part] for part in sources]
        if name in SUMS and len(sources) == len(step.args) == 2 and not step.kwargs:
            if any(self.values[part].shape != self.values[step].shape for part in sources):
                raise ValueError("the network adds layers of unequal shapes; allowed are sums of equal ones")
            self.indices[step] = self._node(Node(tuple(indices)))
        elif name in ("sub", "maximum", "minimum", "max", "min", "cat", "concat", "concatenate") and len(sources) > 1:
            self.indices[step] = self._of_several(step, name, sources, target)
        elif len(sources) != 1:
            raise unsupported(target)
        elif isinstance(target, MAX_POOLS) or name in POOL_NAMES:
            self.indices[step] = self._pooled(step, target, sources[0], given)
        else:
            like = self.values[sources[0]][:1]
            operation = self._operation(step, target, like, given)
            _require_finite(operation, like, f"the network's {_name_of(target)}")
            self.indices[step] = self._node(Node((indices[0],), operation))

    def _node(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _keep_format(self, step: fx.Node, target: Any, arguments: Any, keywords: Any) -> None:
        """Leave a layer as it is where a step changes its number format, to one that is no coarser than float32."""
        asked = [part for part in (*arguments[1:], *keywords.values()) if isinstance(part, torch.dtype)]
        if any(part not in (torch.float32, torch.float64) for part in asked):
            raise ValueError(f"the network holds {_name_of(target)} to {asked[0]}; allowed are float32 and float64")
        source: Any = step.args[0]
        self.values[step], self.indices[step] = self.values[source], self.indices[source]

    def _take_part(self, step: fx.Node) -> None:
        """Append one of the parts that a step cut a layer into."""
        pieces: Any = step.args[0]
        number: Any = step.args[1]
        source, like = self.parts[pieces], self.values[self.parts[pieces]][:1]
        cut = self._called(pieces, pieces.target, source)
        self.values[step] = cut(self.values[source])[number]
        shape = self.values[step].shape[1:]
        operation = of_function(Call(pieces.target, like, shape, lambda x: cut(x)[number], [None], {}))
        if operation is None:
            raise unsupported(pieces.target)
        self.indices[step] = self._node(Node((self.indices[source],), operation))

    def _called(self, step: fx.Node, target: Any, source: fx.Node) -> Callable[[Tensor], Any]:
        """Return a step as a function of one of the layers that it reads."""

        def call(x: Tensor) -> Any:
            own = fx.map_arg((step.args, dict(step.kwargs)), lambda part: x if part is source else self.values[part])
            arguments, keywords = own
            if step.op == "call_method":
                return getattr(arguments[0], target)(*arguments[1:], **keywords)
            return target(*arguments, **keywords)

        return call

    def _of_several(self, step: fx.Node, name: str, sources: list[fx.Node], target: Any) -> int:
        """Append a difference, a maximum or a concatenation of layers, and return its index."""
        indices, shape = [self.indices[part] for part in sources], self.values[step].shape
        if name in ("cat", "concat", "concatenate"):
            dim = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else 0)
            if not isinstance(dim, int) or dim % len(shape) == 0 or len(sources) != len(step.args[0]):  # type: ignore[arg-type]
                raise unsupported(target)
            sizes = [self.values[part].shape[dim] for part in sources]
            placed = [embedded(sum(sizes[:at]), sum(sizes[at + 1 :]), dim) for at in range(len(sizes))]
            return self._node(
                Node(tuple(self._node(Node((i,), part)) for i, part in zip(indices, placed, strict=True)))
            )
        if len(step.args) != 2 or step.kwargs or any(self.values[part].shape != shape for part in sources):
            raise unsupported(target)
        first, second = indices
        if name == "sub":
            return self._node(Node((first, self._node(Node((second,), NEGATED)))))
        if name in ("maximum", "max"):
            return maximum(self._node, first, second)
        negatives = [self._node(Node((index,), NEGATED)) for index in indices]
        return self._node(Node((maximum(self._node, *negatives),), NEGATED))

    def _pooled(self, step: fx.Node, target: Any, source: fx.Node, given: tuple[Any, dict[str, Any]]) -> int:
        """Append a max pool, and return its index."""
        keys = ("kernel_size", "stride", "padding", "dilation")
        setting = vars(target) if isinstance(target, nn.Module) else bound(name_of(target), *given)
        kernel, stride, padding, dilation = (setting[key] for key in keys)
        window = (kernel, stride or kernel, padding, dilation)
        dims = int(name_of(type(target) if isinstance(target, nn.Module) else target)[-2])
        like, shape = self.values[source][:1], self.values[step].shape[-dims:]
        return max_pool(self._node, self.indices[source], like, shape, window)

    def _operation(
        self, step: fx.Node, target: Any, like: Tensor, given: tuple[Any, dict[str, Any]]
    ) -> Affine | Activation:
        arguments, keywords = given
        shape = self.values[step].shape[1:]
        if keywords.get("dtype") is not None:
            raise ValueError(f"the network holds {_name_of(target)} with dtype={keywords['dtype']}; allowed is none")
        (source,) = {part for part in step.all_input_nodes if part in self.indices}
        if _moves_numbers(target):
            found: Affine | Activation | None = selected(self._called(step, target, source), like)
        elif isinstance(target, nn.Module):
            found = of_module(target, like, shape)
        else:
            rest = [None if part is source else value for part, value in zip(step.args, arguments, strict=True)]
            found = of_function(Call(target, like, shape, self._called(step, target, source), rest, keywords))
        if found is None:
            raise unsupported(target)
        return found


def _name_of(target: Any) -> str:
    return str(target) if isinstance(target, nn.Module) else name_of(target)


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
