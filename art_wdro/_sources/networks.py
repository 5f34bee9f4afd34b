# SPDX-License-Identifier: MIT
"""Networks for the command line: TorchScript and exported programs, factories with a state dict, RobustBench names."""

from __future__ import annotations

import importlib
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro._sources import classifiers
from art_wdro._sources.exported import load_program
from art_wdro._sources.files import check_stored, require_file
from art_wdro._sources.messages import TRUST, short
from art_wdro._sources.robustbench import SHAPES, zoo_network


def load_classifier(
    source: str,
    shape: tuple[int, ...],
    *,
    weights: Path | None = None,
    device: str | None = None,
    learning_rate: float = 0.01,
    model_dir: str | Path = "models",
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    trust: bool = False,
) -> PyTorchClassifier:
    """Load a network whose inputs lie in [0, 1] and which puts out logits.

    A factory is a program, which runs with all rights of the process; of the other sources nothing is executed but
    operators of torch, unless they are trusted.

    :param source: A TorchScript file (.pt, .pth, .ts), a file of torch.export (.pt2, with a dynamic batch), a factory
        "module:function" that takes no argument, or "robustbench:NAME".
    :param shape: Shape of one input.
    :param weights: State dict to load into the network, read with weights_only.
    :param device: A torch device; None takes CUDA where it is.
    :param learning_rate: Rate of the optimiser, SGD without momentum.
    :param model_dir: Where RobustBench keeps its checkpoints.
    :param dataset: RobustBench's data set.
    :param threat_model: RobustBench's threat model.
    :param trust: Read files that can run code of their own: TorchScript, programs of torch.export with more than
        tensors and operators of torch in them, RobustBench checkpoints that are pickles of more than tensors.
    :return: The classifier, in eval mode.
    :raises ValueError: If the source is none of these, a file does not hold what it should, or it needs trust.
    :raises OSError: If a file is not there (a FileNotFoundError) or cannot be read.
    """
    kind, _, name = source.partition(":")
    if kind == "robustbench":
        model = zoo_network(name, dataset, threat_model, model_dir, trust)
        shape = SHAPES[dataset][0]
    elif Path(source).suffix in (".pt", ".pth", ".ts", ".pt2"):
        model = _from_file(Path(source), device, trust)
    elif name:
        model = _from_factory(kind, name)
    else:
        raise ValueError(
            f"model is {source!r}; allowed are a TorchScript file (.pt, .pth, .ts), an exported program (.pt2), "
            "module:function and robustbench:NAME"
        )
    if weights is not None:
        _load_weights(model, weights)
    return classifiers.as_classifier(model, shape, _count_classes(model, shape), device, learning_rate)


class _Exported(nn.Module):
    """An exported program as a module: its mode was fixed when it was exported."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self._run = [program.module()]  # in a list, so that train() and eval() do not reach it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, K)."""
        logits: torch.Tensor = self._run[0](x)
        return logits


def _from_file(path: Path, device: str | None, trust: bool) -> nn.Module:
    require_file(path, "model is")
    if path.suffix == ".pt2":
        program = load_program(path, trust)
        wanted = classifiers.resolve_device(device)
        if wanted.type != "cpu":  # its tensors are out of reach of Module.to
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(wanted))
        return _Exported(program)
    if not _is_torchscript(path):
        raise ValueError(
            f"model is '{path}', which is no TorchScript file; a state dict needs model module:function and weights"
        )
    if not trust:
        raise ValueError(
            f"model is '{path}', a TorchScript file, and that is a program, which may write any file; {TRUST}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch discourages TorchScript, and whoever names such a file knows
            module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ValueError(f"model is '{path}', a TorchScript file that cannot be read: {short(error)}") from error
    return module


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _from_factory(module: str, function: str) -> nn.Module:
    sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module), function)
        model = factory()
    except AttributeError as error:
        if getattr(error, "name", None) == function:
            raise ValueError(f"model is '{module}:{function}', and {module} has no {function}") from None
        raise ValueError(f"model is '{module}:{function}', which raised {short(error)}") from error
    except ModuleNotFoundError as error:
        raise ValueError(f"model is '{module}:{function}', and {module} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"model is '{module}:{function}', which raised {short(error)}") from error
    finally:
        sys.path.remove("")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is '{module}:{function}', which returns a {type(model).__name__} and no torch module")
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    require_file(path, "weights are")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_stored(archive, path)
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ValueError(f"weights are '{path}', which is no state dict of this network: {short(error)}") from error


def _count_classes(model: nn.Module, shape: tuple[int, ...]) -> int:
    model.eval()
    device = next((tensor.device for tensor in _tensors(model)), torch.device("cpu"))
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *shape, device=device))
    except Exception as error:
        raise ValueError(f"the network does not take two inputs of shape {shape}: {short(error)}") from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise ValueError(f"the network puts out {type(logits).__name__} for inputs {shape}; needed are logits (N, K)")
    return int(logits.shape[1])


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    inner = model._run[0] if isinstance(model, _Exported) else model
    return [*inner.parameters(), *inner.buffers()]
