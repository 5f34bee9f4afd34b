# SPDX-License-Identifier: MIT
"""What a value is, in words that another process would use too: by what it holds and does, never by where it lies.

Two runs are the same if their descriptions are. Arrays count by all of their numbers; functions by their code,
constants, closures and the globals that they read; objects by their class and attributes. Classes and functions of
libraries count by their names alone.
"""

from __future__ import annotations

import dis
import functools
import itertools
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from art_wdro._storage.digests import digest_of_array, digest_of_text, fingerprint

SHOWN = 160
"""Most characters of a description; of a longer one the beginning and a digest are shown."""
FEW = 3
"""Most numbers of an array that are shown beside its digest."""
POINTER = 8
"""Bytes of an address."""
NUMBERS_AND_WORDS = (int, float, complex, str, bytes)
PLAIN = (*NUMBERS_AND_WORDS, bool, type(None), type(Ellipsis), type(NotImplemented), range)
MOVING = {
    *("optimizer", "last_epoch", "_step_count", "_last_lr", "_is_initial", "_initial_step", "verbose"),
    *("_get_lr_called_within_step", "T_cur", "T_i", "best", "num_bad_epochs", "cooldown_counter"),
}
"""Attributes of torch's schedulers that change as they step."""
OWN = set(vars(nn.Module()))
"""Attributes that every module has: what it is made of, its mode and its hooks."""
LIBRARIES = {"art", "art_wdro", "builtins", "numpy", "torch"}
"""Packages whose classes and functions count by name, wherever they are installed; others do in site-packages alone."""

StandIn = Callable[[Any], Any]
"""Returns what is described in the place of a value, mostly the value itself."""


def described(value: object, stand_in: StandIn = lambda value: value) -> str:
    """Describe a value: two are the same for a run if their descriptions are.

    :param value: Anything.
    :param stand_in: Returns what is described in the place of a value that it knows.
    :raises ValueError: If it holds something that cannot be told from another one of its kind.
    """
    try:
        text = _Describer(stand_in).of(value)
    except RecursionError:
        raise ValueError("it is nested too deeply to be compared with that of another run") from None
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({digest_of_text(text)})"


def described_network(network: nn.Module, attributes: bool) -> str:
    """Describe what a network does with its weights, and not the weights.

    :param network: The network.
    :param attributes: Whether plain attributes of its modules count: training may change them.
    """
    loosely = _Describer(lambda value: value, loose=True)
    found = [repr(network)]
    for module in network.modules():
        found.append(loosely.of(type(module)))
        left_out = {*getattr(module, "_non_persistent_buffers_set", ())}  # of the weights
        found += [
            f"{name}={loosely.of(held)}" for name, held in module.named_buffers(recurse=False) if name in left_out
        ]
        code = getattr(module, "code", None)
        if isinstance(module, torch.jit.ScriptModule):
            found.append(_script(module))
        elif isinstance(code, str):  # a traced graph
            found.append(code)
        elif attributes and not hasattr(module, "_orig_mod"):  # a compiled one has the module itself inside
            found += [f"{name}={loosely.of(held)}" for name, held in _extra(module)]
    return digest_of_text("\n".join(found))


class _Describer:
    """One description, in which an object that was met before is named by its number."""

    def __init__(self, stand_in: StandIn, *, loose: bool = False) -> None:
        """Begin.

        :param stand_in: Returns what is described in the place of a value.
        :param loose: Let objects of unknown classes count by their classes, where use may have changed them.
        """
        self._stand_in, self._loose = stand_in, loose
        self._met: dict[int, tuple[int, Any]] = {}  # holds the objects, so that no address is used twice
        self._numbers = itertools.count()

    def of(self, value: Any) -> str:
        """Describe a value."""
        value = self._stand_in(value)
        if type(value) in PLAIN:
            return repr(value)
        for kinds, describe in SIMPLE:
            if isinstance(value, kinds):
                return describe(self, value)
        if id(value) in self._met:
            return f"#{self._met[id(value)][0]}"
        self._met[id(value)] = next(self._numbers), value
        text = next(describe(self, value) for kinds, describe in COMPOUND if isinstance(value, kinds))
        if isinstance(value, (Mapping, set, frozenset, list, tuple)):
            del self._met[id(value)]  # whether two equal lists are one does not matter
        return text

    def all(self, values: Iterable[Any]) -> str:
        """Describe several values in their order."""
        return f"({', '.join(map(self.of, values))})"

    def named(self, values: Iterable[tuple[str, Any]]) -> str:
        """Describe named values; nothing is said of none."""
        found = [f"{name}={self.of(value)}" for name, value in sorted(values, key=lambda pair: pair[0])]
        return f"({', '.join(found)})" if found else ""

    def loosely(self) -> _Describer:
        """Return the same description, in which unknown objects count by their classes."""
        other = _Describer(self._stand_in, loose=True)
        other._met, other._numbers = self._met, self._numbers
        return other

    def array(self, value: np.ndarray) -> str:
        """Describe an array or a scalar of NumPy."""
        value = np.asarray(value)
        if value.dtype == object:
            return f"array{self.all([value.shape, value.tolist()])}"
        return f"array({value.tolist() if value.size <= FEW else value.shape}, {digest_of_array(value)})"

    def tensor(self, value: Tensor) -> str:
        """Describe a tensor."""
        shown = value.tolist() if value.layout == torch.strided and value.numel() <= FEW else tuple(value.shape)
        return f"tensor({shown}, {fingerprint(value)})"

    def container(self, value: Any) -> str:
        """Describe a container, with what else an object of its class holds."""
        if isinstance(value, Mapping):
            held = ", ".join(sorted(f"{self.of(key)}: {self.of(values)}" for key, values in value.items()))
        elif isinstance(value, (set, frozenset)):
            # in no order, so that none may be named by a number
            held = ", ".join(sorted(_Describer(self._stand_in, loose=self._loose).of(each) for each in value))
        else:
            held = ", ".join(map(self.of, value))
        kind = "" if type(value) in (dict, list, tuple) else self.of(type(value))
        left, right = "{}" if isinstance(value, Mapping) else "()" if isinstance(value, tuple) else "[]"
        return f"{kind}{left}{held}{right}{self.named(getattr(value, '__dict__', {}).items())}"

    def object(self, value: Any) -> str:
        """Describe an object by its class and attributes, or by what a copy of it is made from."""
        kind: Any = type(value)
        if self._loose:
            del self._met[id(value)]  # it may be met again where all of it counts
            return self.of(kind)
        slots = [name for base in kind.__mro__ for name in _slots(base)]
        # memory beyond attributes, of a class that is not written in Python
        hidden = kind.__basicsize__ > object.__basicsize__ + POINTER * (len(slots) + 2)
        usual = not hidden and _defined(kind).isdisjoint(("__reduce__", "__reduce_ex__"))
        if usual and (hasattr(value, "__dict__") or slots):
            held = {
                **{name: getattr(value, name) for name in slots if hasattr(value, name)},
                **getattr(value, "__dict__", {}),
            }
            return self.of(kind) + self.named(held.items())
        try:
            reduced = value.__reduce_ex__(2)
        except Exception as error:
            name = f"{kind.__module__}.{kind.__qualname__}"
            raise ValueError(f"a {name} cannot be compared with that of another run ({error})") from error
        if isinstance(reduced, str):
            return reduced
        # the items of a list or a dict come as iterators over the value itself
        return self.all([*reduced[:3], *(None if items is None else list(items) for items in reduced[3:5])])

    def derived(self, value: Any) -> str:
        """Describe a number or words of a class of their own."""
        base = next(base for base in NUMBERS_AND_WORDS if isinstance(value, base))
        return self.of(type(value)) + base.__repr__(value) + self.named(getattr(value, "__dict__", {}).items())

    def module(self, value: nn.Module) -> str:
        """Describe a module: its class, its own state, its modules, and its further attributes."""
        if isinstance(value, torch.jit.ScriptModule):
            code = digest_of_text(", ".join(map(_script, value.modules())))
            return f"{value.original_name}({code}, {fingerprint(*value.parameters(), *value.buffers())})"
        state = itertools.chain(value.named_parameters(recurse=False), value.named_buffers(recurse=False))
        return self.of(type(value)) + self.named([*state, *value.named_children(), *_extra(value)])

    def scheduler(self, value: LRScheduler) -> str:
        """Describe a scheduler as it was made, wherever it has come to."""
        return self.of(type(value)) + self.named(pair for pair in vars(value).items() if pair[0] not in MOVING)

    def bound(self, value: Any) -> str:
        """Describe a method with its owner."""
        function = self.of(value.__func__) if isinstance(value, types.MethodType) else value.__qualname__
        return f"{function} of {self.of(getattr(value, '__self__', None))}"

    def function(self, value: types.FunctionType) -> str:
        """Describe a function: its code, and what it reads besides its arguments."""
        inner = getattr(value, "_torchdynamo_orig_callable", None)
        if inner is not None:  # compiled
            return self.of(inner)
        name, around = value.__qualname__, value.__globals__
        loosely = self.loosely()
        if _is_library(around.get("__name__", "")):
            return f"{around['__name__']}.{name}{loosely.all(_cells(value)) if value.__closure__ else ''}"
        read = [f"{name}={loosely.of(around[name])}" for name in sorted(_globals(value.__code__) & around.keys())]
        own = [value.__defaults__, value.__kwdefaults__, *_cells(value), vars(value)]
        return f"{name}[{digest_of_text(self.code(value.__code__) + str(read))}]{self.all(own)}"

    def code(self, value: types.CodeType) -> str:
        """Describe compiled code: what it does, not where it stands."""
        counts = [value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags]
        named = value.co_varnames[: value.co_argcount + value.co_kwonlyargcount]
        caught = getattr(value, "co_exceptiontable", b"")
        constants = [self.of(constant) for constant in value.co_consts]
        told = [value.co_code, caught, counts, named, value.co_names, value.co_freevars, constants]
        return digest_of_text(repr(told))

    def kind(self, value: type) -> str:
        """Describe a class: by name, and where it is no library's by what it defines."""
        if _is_library(value.__module__):
            return f"{value.__module__}.{value.__qualname__}"
        loosely = self.loosely()
        members = [
            f"{name}={loosely.of(member)}"
            for base in value.__mro__
            for name, member in sorted(vars(base).items())
            if not _is_library(base.__module__) and _counts(name, member)
        ]
        bases = [loosely.of(base) for base in value.__bases__]
        return f"{value.__qualname__}[{digest_of_text(str(bases) + str(members))}]"


Way = Callable[[_Describer, Any], str]
SIMPLE: list[tuple[Any, Way]] = [
    ((torch.dtype, torch.Size, np.dtype, PurePath), lambda _, value: repr(value)),
    ((types.ModuleType, np.ufunc), lambda _, value: str(value.__name__)),
    (torch.device, lambda *_: "device"),  # where something is computed is another question
    ((np.ndarray, np.generic), _Describer.array),
    (Tensor, _Describer.tensor),
    (types.CodeType, _Describer.code),
]
"""How values are described that hold no others."""
COMPOUND: list[tuple[Any, Way]] = [
    (type, _Describer.kind),
    (Enum, lambda own, value: f"{own.of(type(value))}.{value.name}"),
    ((Mapping, set, frozenset, list, tuple), _Describer.container),
    (types.FunctionType, _Describer.function),
    ((types.MethodType, types.BuiltinMethodType, types.MethodWrapperType), _Describer.bound),
    (functools.partial, lambda own, value: f"partial{own.all([value.func, value.args, value.keywords, vars(value)])}"),
    ((staticmethod, classmethod), lambda own, value: f"{type(value).__name__}({own.of(value.__func__)})"),
    (property, lambda own, value: f"property{own.all([value.fget, value.fset, value.fdel])}"),
    (functools._lru_cache_wrapper, lambda own, value: f"cached({own.of(value.__wrapped__)})"),
    (weakref.ref, lambda own, value: own.of(value())),
    (torch.jit.ScriptFunction, lambda _, value: str(value.code)),
    (torch.Generator, lambda own, value: f"Generator({own.tensor(value.get_state())})"),
    (nn.Module, _Describer.module),
    (LRScheduler, _Describer.scheduler),
    (NUMBERS_AND_WORDS, _Describer.derived),
    (object, _Describer.object),
]
"""How others are described; the first way that fits counts."""


def _extra(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what a module holds besides parameters, buffers, modules, mode and hooks."""
    return ((name, value) for name, value in sorted(vars(module).items()) if name not in OWN)


def _script(module: Any) -> str:
    """Describe what a scripted module computes: its code, and the constants that freezing made of its weights."""
    if not hasattr(module, "code_with_constants"):
        return ""  # it has no forward
    code, constants = module.code_with_constants
    return f"{code}{_Describer(lambda value: value, loose=True).of(constants.const_mapping)}"


def _cells(function: types.FunctionType) -> list[Any]:
    """Return what a function has taken from around it."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            found.append(NotImplemented)  # nothing was assigned yet
    return found


def _globals(code: types.CodeType) -> set[str]:
    """Return the names of the globals that code reads."""
    own = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_globals(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _slots(kind: type) -> list[str]:
    found = vars(kind).get("__slots__", ())
    return [name for name in ([found] if isinstance(found, str) else found) if name not in ("__dict__", "__weakref__")]


def _defined(kind: type) -> set[str]:
    """Return the names that a class or one above it defines, those of `object` left out."""
    return {name for base in kind.__mro__ if base is not object for name in vars(base)}


def _counts(name: str, member: object) -> bool:
    """Tell whether a member of a class says what its objects do."""
    does = isinstance(member, (types.FunctionType, staticmethod, classmethod, property))
    return does or not (name.startswith("__") or name == "_abc_impl" or isinstance(member, types.MemberDescriptorType))


@functools.cache
def _is_library(name: str) -> bool:
    """Tell whether what a module defines counts by its name."""
    top = name.partition(".")[0]
    if top in LIBRARIES or top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and any(part in ("site-packages", "dist-packages") for part in PurePath(file).parts)
