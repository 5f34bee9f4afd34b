# SPDX-License-Identifier: MIT
"""State dicts from files: checkpoints of many a training script, fitted to a network."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from art_wdro._sources.files import check_stored, require_file
from art_wdro._sources.messages import short

WRAPPERS = ("module", "_orig_mod")
"""What DataParallel and torch.compile put into names."""
SHOWN = 3
"""How many names an error lists."""
State = dict[str, Any]


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict from a file, which is read as tensors and plain values alone.

    It may lie in a dict with other things beside it, under any key, and all its names may begin with what a wrapper
    such as DataParallel put there.

    :param model: The network.
    :param path: The file.
    :raises ValueError: If the file holds no state dict of this network, or several.
    :raises OSError: If the file is not there or cannot be read.
    """
    require_file(path, "weights are")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_stored(archive, path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(_chosen(model.state_dict(), content))
    except UnpicklingError as error:
        reason = "it is damaged, or a pickle of more than tensors, which is not read; save model.state_dict() alone"
        raise ValueError(f"weights are '{path}', which is no state dict of this network: {reason}") from error
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else short(error)
        raise ValueError(f"weights are '{path}', which is no state dict of this network: {reason}") from error


def _chosen(own: State, content: Any) -> State:
    """Return the one state dict in a file that fits, under the network's own names."""
    found = dict(_states(content, ""))
    if not found:
        held = f"the keys {_some(list(map(str, content)))}" if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"the file holds {held} and no state dict")
    renamed = {key: _renamed(own, state) for key, state in found.items()}
    fitting = [key for key, state in renamed.items() if not _differences(own, state)]
    if len(fitting) > 1:
        raise ValueError(f"it fits what the file holds under {_some(fitting)}; save one of them alone")
    if not fitting:
        nearest = max(renamed, key=lambda key: len(own.keys() & renamed[key].keys()))
        where = f"under {nearest!r}, " if nearest else ""
        raise ValueError(where + "; ".join(_differences(own, renamed[nearest])))
    return renamed[fitting[0]]


def _states(content: Any, key: str, depth: int = 2) -> Iterator[tuple[str, State]]:
    """Yield every dict of tensors by names in what a file holds, and the keys under which it lies."""
    if not isinstance(content, Mapping):
        return
    tensors = [isinstance(value, torch.Tensor) for value in content.values()]
    if any(tensors) and all(isinstance(name, str) for name in content):
        yield key, dict(content)
    for name, value in content.items():
        if depth and isinstance(name, str):
            yield from _states(value, f"{key}.{name}" if key else name, depth - 1)


def _renamed(own: State, state: State) -> State:
    """Return a state dict with the names that a network has for the same entries, where they can be told."""
    names = {_bare(name): name for name in own}
    if len(names) < len(own) or len({_bare(name) for name in state}) < len(state):
        return state
    bare = {_bare(name): value for name, value in state.items()}
    while not bare.keys() <= names.keys() and len({name.partition(".")[0] for name in bare}) == 1:
        if not all("." in name for name in bare):
            break
        bare = {name.partition(".")[2]: value for name, value in bare.items()}
    return {names.get(name, name): value for name, value in bare.items()}


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _differences(own: State, state: State) -> list[str]:
    """Say what a state dict lacks, what it has beside, and which shapes differ."""
    parts = []
    if missing := [name for name in own if name not in state]:
        parts.append(f"it lacks {_some(missing)}")
    if unknown := [name for name in state if name not in own]:
        parts.append(f"the network has no {_some(unknown)}")
    shapes = {name: (tuple(_shape(state[name])), tuple(_shape(own[name]))) for name in own if name in state}
    if differing := [name for name, (there, here) in shapes.items() if there != here]:
        there, here = shapes[differing[0]]
        parts.append(f"{_some(differing)} differ in shape: {there} in the file and {here} in the network")
    return parts


def _shape(value: Any) -> torch.Size:
    return value.shape if isinstance(value, torch.Tensor) else torch.Size()


def _some(names: Collection[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in list(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
