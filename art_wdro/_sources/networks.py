# SPDX-License-Identifier: MIT
"""Networks for the command line: factories with a state dict, files of torch.export, TorchScript and ONNX, the zoo."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro._host.extras import install
from art_wdro._sources import classifiers
from art_wdro._sources.exported import load_program
from art_wdro._sources.files import require_file
from art_wdro._sources.messages import TRUST, short
from art_wdro._sources.robustbench import SHAPES, zoo_network
from art_wdro._sources.weights import load_weights

FILES = (".pt2", ".pt", ".pth", ".ts", ".onnx")


def load_classifier(
    source: str,
    shape: tuple[int, ...],
    *,
    device: str | None = None,
    learning_rate: float = 0.01,
    standardisation: tuple[Sequence[float], Sequence[float]] | None = None,
    dataset: str = "cifar10",
    **where: Any,
) -> PyTorchClassifier:
    """Load a network whose inputs lie in [0, 1] and which puts out logits.

    :param source: What :func:`load_network` takes.
    :param shape: Shape of one input.
    :param device: A torch device; None takes CUDA where it is.
    :param learning_rate: Rate of the optimiser, SGD without momentum.
    :param standardisation: Mean and standard deviation, a number for each channel or one for all, by which inputs are
        standardised first; None for a network that does so itself.
    :param dataset: RobustBench's data set.
    :param where: The other parameters of :func:`load_network`.
    :return: The classifier, in eval mode.
    :raises ValueError: As :func:`load_network`, or if the network does not take such inputs.
    :raises OSError: As :func:`load_network`.
    """
    network = load_network(source, device=device, dataset=dataset, **where)
    shape = SHAPES[dataset][0] if source.startswith("robustbench:") else shape
    return wrap(network, shape, device=device, learning_rate=learning_rate, standardisation=standardisation)


def load_network(
    source: str,
    *,
    weights: Path | None = None,
    device: str | None = None,
    model_dir: str | Path = "models",
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    trust: bool = False,
) -> nn.Module:
    """Load a network as a torch module.

    A factory is a program, which runs with all rights of the process; of the other sources nothing is executed but
    operators of torch, unless they are trusted.

    :param source: A factory "module:function" that takes no argument, a file of torch.export (.pt2, with a dynamic
        batch), of TorchScript (.pt, .pth, .ts) or of ONNX (.onnx, with a dynamic batch), or "robustbench:NAME".
    :param weights: State dict to load into the network, read with weights_only.
    :param device: A torch device, to which the tensors of an exported program are moved; None takes CUDA where it is.
    :param model_dir: Where RobustBench keeps its checkpoints.
    :param dataset: RobustBench's data set.
    :param threat_model: RobustBench's threat model.
    :param trust: Read files that can run code of their own: TorchScript, programs of torch.export with more than
        tensors and operators of torch in them, RobustBench checkpoints that are pickles of more than tensors.
    :return: The network, in eval mode.
    :raises ValueError: If the source is none of these, a file does not hold what it should, or it needs trust.
    :raises OSError: If a file is not there (a FileNotFoundError) or cannot be read.
    :raises ImportError: If RobustBench or onnx2torch is needed and not installed.
    """
    kind, _, name = source.partition(":")
    if kind == "robustbench":
        model = zoo_network(name, dataset, threat_model, model_dir, trust)
    elif Path(source).suffix in FILES:
        model = _from_file(Path(source), device, trust)
    elif name:
        model = _from_factory(kind, name)
    else:
        raise ValueError(
            f"model is {source!r}; allowed are module:function, robustbench:NAME, and files of torch.export (.pt2), "
            "TorchScript (.pt, .pth, .ts) and ONNX (.onnx)"
        )
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def wrap(
    network: nn.Module,
    shape: tuple[int, ...],
    *,
    device: str | None = None,
    learning_rate: float = 0.01,
    standardisation: tuple[Sequence[float], Sequence[float]] | None = None,
) -> PyTorchClassifier:
    """Wrap a network as a classifier; parameters and errors are those of :func:`load_classifier`."""
    if standardisation is not None:
        _check_standardisation(standardisation, shape[0])
    logits = _logits(network, shape)
    if isinstance(logits, Exception):
        raise ValueError(f"the network does not take two inputs of shape {shape}: {short(logits)}") from logits
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise ValueError(f"the network puts out {type(logits).__name__} for inputs {shape}; needed are logits (N, K)")
    return classifiers.as_classifier(network, shape, int(logits.shape[1]), device, learning_rate, standardisation)


def channels_taken(network: nn.Module, size: tuple[int, int]) -> int | None:
    """Tell whether a network takes images of one channel or of three; None if it takes both, or neither.

    :param size: Height and width of the images.
    """
    taken = [count for count in (1, 3) if isinstance(_logits(network, (count, *size)), torch.Tensor)]
    return taken[0] if len(taken) == 1 else None


def _logits(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """Return what a network puts out for two inputs, or its error."""
    network.eval()
    device = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    try:
        with torch.no_grad():
            return network(torch.zeros(2, *shape, device=device))
    except Exception as error:
        return error


def _check_standardisation(standardisation: tuple[Sequence[float], Sequence[float]], channels: int) -> None:
    for name, values in zip(("mean", "std"), standardisation, strict=True):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} numbers; allowed are 1, and {channels} as there are channels")
    if min(standardisation[1]) <= 0:
        raise ValueError(f"std is {list(standardisation[1])}; allowed are numbers > 0")


def _from_file(path: Path, device: str | None, trust: bool) -> nn.Module:
    require_file(path, "model is")
    if path.suffix == ".pt2":
        return _from_program(load_program(path, trust), device)
    return _from_onnx(path) if path.suffix == ".onnx" else _from_torchscript(path, trust)


def _from_program(program: Any, device: str | None) -> nn.Module:
    wanted = classifiers.resolve_device(device)
    if wanted.type != "cpu":  # what it makes itself is out of reach of Module.to
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, str(wanted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.4 warns of what it does itself
        module: nn.Module = program.module()
    # its mode is part of the program, and its own train and eval raise
    module.training = False
    module.train = module.eval = types.MethodType(_keep_mode, module)  # type: ignore[method-assign]
    return module


def _keep_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _from_torchscript(path: Path, trust: bool) -> nn.Module:
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


def _from_onnx(path: Path) -> nn.Module:
    try:
        onnx2torch = importlib.import_module("onnx2torch")
    except ImportError as error:
        raise ImportError(f"model is '{path}', and ONNX needs onnx2torch ({error}): {install('onnx')}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: nn.Module = onnx2torch.convert(str(path))
    except Exception as error:
        raise ValueError(f"model is '{path}', which onnx2torch cannot convert: {short(error)}") from error
    return module


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
