# SPDX-License-Identifier: MIT
"""A network as a `PyTorchClassifier`, and the device that it goes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn


def as_classifier(
    model: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    device: str | torch.device | None = None,
    learning_rate: float = 0.01,
    standardisation: tuple[Sequence[float], Sequence[float]] | None = None,
) -> PyTorchClassifier:
    """Wrap a network whose inputs lie in [0, 1] and which puts out logits.

    :param model: The network.
    :param shape: Shape of one input.
    :param classes: Number of classes.
    :param device: A torch device; None takes CUDA where it is.
    :param learning_rate: Rate of the optimiser, SGD without momentum.
    :param standardisation: Mean and standard deviation, one number or one for each channel; None for none.
    :return: The classifier, in eval mode; without an optimiser if nothing in the network can be trained.
    """
    wanted = resolve_device(device)
    if wanted.type == "cuda" and wanted.index is not None:
        torch.cuda.set_device(wanted)  # ART takes the current device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    preprocessing: Any = (0.0, 1.0)  # ART's own, which changes nothing
    if standardisation is not None:
        preprocessing = tuple(np.full(shape[0], values, np.float32) for values in standardisation)
    classifier = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(parameters, lr=learning_rate) if parameters else None,
        input_shape=shape,
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        preprocessing=preprocessing,
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
