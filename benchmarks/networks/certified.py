# SPDX-License-Identifier: MIT
"""Networks trained so that much can be certified of them: by interval bounds for l_inf, orthogonal layers for l_2.

    python -m benchmarks.networks.certified digits
    python -m benchmarks.networks.certified fashion-mnist --data-dir DIR

Beside them, a network trained by the same code on clean images, and the one that adversarial training made; what can be
certified of each is asked in benchmarks/attacks. Networks are kept in runs/networks.

Sources: interval bounds in training, Gowal et al., 2018, arXiv:1810.12715; orthogonal layers and activations that keep
the norm of gradients, Anil et al., 2019, arXiv:1811.05381.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_wdro import adversarial_accuracy
from art_wdro._sources.data import Split
from benchmarks._command import NAMES, command, parsed, with_data
from benchmarks._files import keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks._timing import timed
from benchmarks.networks._architectures import CLASSES, Network, Orthogonal, classifier_of, small_cnn, trained
from benchmarks.networks._data import load
from benchmarks.networks.robust import robust_network

CERTIFIED = tuple(name for name in NAMES if DATA[name].certified)
"""Data sets that have such networks."""
Loss = Callable[[Tensor, Tensor, float], Tensor]
"""Maps images, labels and the share of the training that is done to the loss."""


class Candidate(NamedTuple):
    """A network to certify.

    :param name: How it was trained.
    :param model: The network, in eval mode.
    :param norms: Ground norms in which it is to be certified.
    """

    name: str
    model: nn.Module
    norms: tuple[float, ...]


def interval_margins(layers: nn.Sequential, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Bound z_j - z_y over the l_inf ball in [0, 1] from above, (N, K)."""
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    for layer in layers[:-1]:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            centre, radius = (lower + upper) / 2, (upper - lower) / 2
            middle, reach = layer(centre), _spread(layer, radius)
            lower, upper = middle - reach, middle + reach
        else:
            lower, upper = layer(lower), layer(upper)
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    weight = last.weight[None] - last.weight[y][:, None]
    bias = last.bias[None] - last.bias[y][:, None]
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    return (weight @ centre[:, :, None])[..., 0] + (weight.abs() @ radius[:, :, None])[..., 0] + bias


def _spread(layer: nn.Linear | nn.Conv2d, radius: Tensor) -> Tensor:
    """Return how far outputs can be from their middle when inputs are within a radius of theirs."""
    if isinstance(layer, nn.Linear):
        return F.linear(radius, layer.weight.abs())
    assert not isinstance(layer.padding, str)
    return F.conv2d(radius, layer.weight.abs(), stride=layer.stride, padding=layer.padding)


def train(model: nn.Module, data: Split, epochs: int, loss: Loss) -> None:
    """Train by Adam with a cosine schedule."""
    torch.manual_seed(0)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y).long()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    steps = epochs * math.ceil(len(x) / 128)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    step = 0
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x)), 128):
            optimiser.zero_grad()
            torch.autograd.backward(loss(x[rows], y[rows], step / steps))
            optimiser.step()
            scheduler.step()
            step += 1


def clean(model: nn.Module) -> Loss:
    """Return the cross-entropy."""
    return lambda x, y, done: F.cross_entropy(model(x), y)


def by_intervals(model: Network, eps: float) -> Loss:
    """Return the cross-entropy of clean and of worst logits, half each; eps grows over half the training."""

    def loss(x: Tensor, y: Tensor, done: float) -> Tensor:
        grown = min(1.0, 2 * done)
        worst = interval_margins(model.layers, x, y, grown * eps)
        return (1 - grown / 2) * F.cross_entropy(model(x), y) + grown / 2 * F.cross_entropy(worst, y)

    return loss


def by_margin(model: nn.Module, margin: float) -> Loss:
    """Return the cross-entropy of logits in units of what the margin is worth, the label's one moved by the margin."""

    def loss(x: Tensor, y: Tensor, done: float) -> Tensor:
        return F.cross_entropy((model(x) - margin * F.one_hot(y, CLASSES)) / (margin / 4), y)

    return loss


class Recipe(NamedTuple):
    """How a network is trained.

    :param loss_of: Maps the network to its loss.
    :param norms: Ground norms in which it is to be certified.
    :param orthogonal: Whether its layers are.
    """

    loss_of: Callable[[Any], Loss]
    norms: tuple[float, ...]
    orthogonal: bool = False


ADVERSARIAL = "adversarial training"
RECIPES = {
    "clean": Recipe(clean, (math.inf, 2.0)),
    "intervals, eps 0.1": Recipe(partial(by_intervals, eps=0.1), (math.inf,)),
    "intervals, eps 0.2": Recipe(partial(by_intervals, eps=0.2), (math.inf,)),
    "orthogonal, margin 0.5": Recipe(partial(by_margin, margin=0.5), (2.0,), orthogonal=True),
    "orthogonal, margin 1": Recipe(partial(by_margin, margin=1.0), (2.0,), orthogonal=True),
}
FEW = ("clean", "orthogonal, margin 1")
"""What quick runs certify."""


def candidates(name: str, directory: Path | None, networks: Collection[str]) -> Iterator[Candidate]:
    """Yield networks, trained now or read from disk."""
    if ADVERSARIAL in networks:
        yield Candidate(ADVERSARIAL, robust_network(name, directory).model, (math.inf,))
    setting, (_, _, side) = DATA[name].certified, DATA[name].shape
    assert setting is not None
    data = load(name, directory, train=True)
    models = {
        key: Orthogonal(side**2, CLASSES) if recipe.orthogonal else small_cnn(1, CLASSES, side)
        for key, recipe in RECIPES.items()
    }
    for key, (loss_of, norms, is_orthogonal) in RECIPES.items():
        if key in networks:
            epochs = setting.orthogonal_epochs if is_orthogonal else setting.epochs
            if key == "clean":
                epochs //= 4
            file = f"certified-{name}-{key.replace(', ', '-').replace(' ', '-')}.pt"
            model = models[key]
            yield Candidate(key, trained(model, name, file, partial(train, model, data, epochs, loss_of(model))), norms)


def with_networks(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the data set, and which of its networks are wanted."""
    names = (ADVERSARIAL, *RECIPES)
    with_data(parser, CERTIFIED)
    parser.add_argument("--networks", nargs="+", choices=names, default=names, help="all, unless some are given")
    return parser


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    return with_networks(command(__doc__))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the networks that are not there, and say how accurate they are."""
    args = parsed(parser(), arguments)
    test, shape = load(args.name, args.data_dir, train=False), DATA[args.name].shape
    table, rows = Table("network", "clean in %", "seconds"), []
    found = candidates(args.name, args.data_dir, args.networks)
    while True:
        candidate, seconds = timed(lambda: next(found, None))
        if candidate is None:
            break
        accuracy = adversarial_accuracy(classifier_of(candidate.model, shape), *test, eps=0)
        rows.append({"network": candidate.name, "clean": accuracy, "seconds": seconds})
        table.row(candidate.name, f"{100 * accuracy:.1f}", f"{seconds:.0f}")
    keep(args.json, rows)


if __name__ == "__main__":
    main()
