# SPDX-License-Identifier: MIT
"""Load networks of RobustBench's zoo as classifiers of ART; robustbench is imported only when asked for."""

from __future__ import annotations

import difflib
import importlib
import importlib.resources
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro._host import arguments
from art_wdro._host.extras import install
from art_wdro._sources import classifiers
from art_wdro._sources.messages import TRUST, short

SHAPES = {"cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100), "imagenet": ((3, 224, 224), 1000)}
"""Input shape and number of classes, by data set."""
THREAT_MODELS = ("Linf", "L2", "corruptions")


def load_robustbench(
    name: str,
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    model_dir: str | Path = "./models",
    device: str | torch.device | None = None,
    trust: bool = False,
) -> PyTorchClassifier:
    """Load a network of RobustBench's model zoo, ready for attacks and fine-tuning.

    Inputs lie in [0, 1]: the networks of the zoo normalise inside. The optimiser is that of the training paper
    (arXiv:2502.09352): SGD with rate 0.01 and no momentum.

    :param name: Name in the zoo, such as "Zhang2019Theoretically".
    :param dataset: "cifar10", "cifar100" or "imagenet".
    :param threat_model: "Linf", "L2" or "corruptions".
    :param model_dir: Where checkpoints lie, as model_dir/dataset/threat_model/name.pt; RobustBench downloads an
        absent one.
    :param device: "cpu", "cuda", "cuda:1" or a torch device; None takes CUDA where it is.
    :param trust: Read checkpoints that are pickles of more than tensors: unpickling runs what they say.
    :return: The classifier.
    :raises ImportError: If robustbench is not installed.
    :raises FileNotFoundError: If there is no checkpoint and none could be downloaded.
    :raises ValueError: If there is no such network, or a checkpoint does not hold it or needs trust.
    """
    model = zoo_network(name, dataset, threat_model, model_dir, trust)
    return classifiers.as_classifier(model, *SHAPES[dataset], device)


def zoo_network(name: str, dataset: str, threat_model: str, model_dir: str | Path, trust: bool = False) -> nn.Module:
    """Load a network as a torch module; parameters and errors are those of :func:`load_robustbench`."""
    arguments.choice("dataset", dataset, tuple(SHAPES))
    arguments.choice("threat_model", threat_model, THREAT_MODELS)
    with _importable():
        try:
            utils = importlib.import_module("robustbench.utils")
        except ImportError as error:
            raise ImportError(f"load_robustbench needs robustbench ({error}): {install('robustbench')}") from error
    names = list(utils.all_models[utils.BenchmarkDataset(dataset)].get(utils.ThreatModel(threat_model), ()))
    if name not in names:
        near = ", ".join(map(repr, difflib.get_close_matches(name, names, 3, 0.0)))
        raise ValueError(f"name is {name!r}; the zoo has {len(names)} for {dataset}, {threat_model}, such as {near}")
    file = Path(model_dir) / dataset / threat_model / f"{name}.pt"
    try:
        with _unpickling(trust):
            model: nn.Module = utils.load_model(name, str(model_dir), dataset, threat_model)
    except UnpicklingError as error:
        raise ValueError(
            f"'{file}' is a pickle of more than tensors, which runs what it says when it is read; {TRUST}"
        ) from error
    except Exception as error:
        if file.is_file():
            raise ValueError(f"'{file}' does not hold {name}: {short(error)}") from error
        raise FileNotFoundError(f"{file} does not exist and could not be downloaded: {error}") from error
    return model


@contextmanager
def _unpickling(everything: bool) -> Iterator[None]:
    """Let `torch.load` read tensors alone, or everything, where its caller does not say: torch before 2.6 reads all."""
    names = ["TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[everything]] = "1"
    try:
        yield
    finally:
        del os.environ[names[everything]]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextmanager
def _importable() -> Iterator[None]:
    """Stand in for what robustbench 1.1.1 imports and newer environments lack, for the time of its import.

    It imports `pkg_resources`, gone from setuptools, and `autoattack`, which its wheel brings as `pyautoattack`.
    """
    stand_ins: dict[str, Any] = {}
    if not _found("pkg_resources"):
        resources = types.ModuleType("pkg_resources")
        resources.resource_filename = _resource_filename  # type: ignore[attr-defined]
        stand_ins["pkg_resources"] = resources
    if not _found("autoattack") and _found("pyautoattack"):
        stand_ins["autoattack"] = importlib.import_module("pyautoattack")
        stand_ins["autoattack.state"] = importlib.import_module("pyautoattack.state")
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _found(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _resource_filename(package: str, resource: str) -> str:
    return str(importlib.resources.files(package.rpartition(".")[0]) / resource)
