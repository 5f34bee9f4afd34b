# SPDX-License-Identifier: MIT
"""The networks before training, and what makes classifiers and files of them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from art_wdro._storage.files import write_atomically
from benchmarks._files import RUNS
from benchmarks._settings import DATA, QUICK

CLASSES = 10
KEPT = RUNS / "networks"
"""Where trained networks are kept."""
PASSING: dict[str, dict[str, Any]] = {}
"""Weights of the networks that quick runs have trained, by file."""


class Block(nn.Module):
    """Pre-activation residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        plain = before == after and stride == 1
        self.shortcut = nn.Identity() if plain else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (N, after, H / stride, W / stride)."""
        out = torch.relu(self.norm1(x))
        added: Tensor = self.shortcut(x) + self.conv2(torch.relu(self.norm2(self.conv1(out))))
        return added


class Network(nn.Module):
    """One module over a stack, since ART reads every layer's output of an nn.Sequential."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.layers(x)
        return logits


class Orthogonal(nn.Module):
    """Linear layers with orthonormal rows or columns between absolute values: no difference of inputs grows in l_2."""

    def __init__(self, inputs: int, classes: int, width: int = 256) -> None:
        super().__init__()
        sizes = (inputs, width, width, classes)
        self.layers = nn.ModuleList(orthogonal(nn.Linear(*pair)) for pair in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = torch.abs(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits


def small_resnet(channels: int, classes: int, width: int = 32) -> Network:
    """Return a pre-activation ResNet of 11 convolutions; 0.7 million parameters at width 32."""
    return Network(
        nn.Conv2d(channels, width, 3, 2, 1, bias=False),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 2 * width, 1),
        Block(2 * width, 4 * width, 2),
        Block(4 * width, 4 * width, 1),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def wide_resnet(blocks: int, widening: int, *, stem: int = 16, stages: int = 3, classes: int = CLASSES) -> Network:
    """Return a pre-activation ResNet for colours: WRN-28-10 with 4 blocks a stage, ResNet-18 with 2 in 4 stages.

    :param blocks: Residual blocks in a stage, after which the side is halved.
    :param widening: Multiple of 16 that the first stage has channels.
    :param stem: Channels before it.
    :param stages: Number of stages, each twice as wide as the one before.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, 1, 1, bias=False)]
    before = stem
    for stage in range(stages):
        width = 16 * widening * 2**stage
        for block in range(blocks):
            layers.append(Block(before, width, 2 if stage and block == 0 else 1))
            before = width
    head = [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)]
    return Network(*layers, *head)


def small_cnn(channels: int, classes: int, side: int) -> Network:
    """Return two convolutions and two linear layers for images of `side` by `side`."""
    return Network(
        nn.Conv2d(channels, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def network_for(name: str, width: int = 32) -> Network:
    """Return the untrained network of a data set: a ResNet of some width for colours, else two convolutions."""
    torch.manual_seed(0)
    channels, _, side = DATA[name].shape
    return small_cnn(channels, CLASSES, side) if channels == 1 else small_resnet(channels, CLASSES, width)


def classifier_of(
    model: nn.Module, shape: tuple[int, ...], *, device_type: str = "cpu", **optimiser: Any
) -> PyTorchClassifier:
    """Wrap a network whose inputs lie in [0, 1].

    :param model: The network, which puts out logits.
    :param shape: Shape of one input.
    :param device_type: "cpu", or "gpu" for a GPU where there is one.
    :param optimiser: Settings of SGD; without any there is no optimiser.
    """
    return PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), **optimiser) if optimiser else None,
        input_shape=shape,
        nb_classes=CLASSES,
        clip_values=(0, 1),
        device_type=device_type,
    )


def trained(model: nn.Module, name: str, file: str, train: Callable[[], object]) -> nn.Module:
    """Give a network its weights: those that are kept, or trained now and kept.

    :param model: The untrained network.
    :param name: Its data set.
    :param file: Name of its file in `KEPT`.
    :param train: Trains it.
    :return: The network, in eval mode.
    """
    if file in PASSING:
        model.load_state_dict(PASSING[file])
    elif name != QUICK and (KEPT / file).exists():
        model.load_state_dict(torch.load(KEPT / file, weights_only=True))
    else:
        train()
        keep_weights(model, name, file)
    return model.eval()


def keep_weights(model: nn.Module, name: str, file: str) -> None:
    """Keep the weights of a network on disk, but those of quick runs for as long as the process lasts."""
    if name == QUICK:
        PASSING[file] = copy.deepcopy(model.state_dict())
    else:
        write_atomically(KEPT / file, partial(torch.save, model.state_dict()))
