# SPDX-License-Identifier: MIT
"""Networks trained so that much can be certified of them: by interval bounds for l_inf, orthogonal layers for l_2.

    python -m benchmarks.networks.certified digits
    python -m benchmarks.networks.certified fashion-mnist --data-dir DIR --samples 200

Beside them, networks trained by the same code on clean images, and the one that adversarial training made. For each,
accuracy under W_2 is bracketed: what is certified from below, what the knapsack attack leaves from above.

Sources: interval bounds in training, Gowal et al., 2018, arXiv:1810.12715; orthogonal layers and activations that keep
the norm of gradients, Anil et al., 2019, arXiv:1811.05381.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal

from art_wdro import WassersteinKnapsack, certified_radii, knapsack_accuracy
from art_wdro._sources.classifiers import as_classifier
from benchmarks.networks.robust import KEPT, Split, load, robust_network, small_cnn

SIDES = {"digits": 8, "fashion-mnist": 28}
EPOCHS = {"digits": 80, "fashion-mnist": 8}
ORTHOGONAL_EPOCHS = {"digits": 80, "fashion-mnist": 3}
"""Fewer, since torch's parametrisation takes most of the time there."""
BUDGETS = {math.inf: (0.025, 0.05, 0.1), 2.0: (0.125, 0.25, 0.5)}


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
        return self.layers[-1](x)


def interval_margins(layers: nn.Sequential, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Bound z_j - z_y over the l_inf ball in [0, 1] from above, (N, K)."""
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    for layer in layers[:-1]:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            centre, radius = (lower + upper) / 2, (upper - lower) / 2
            options = {} if isinstance(layer, nn.Linear) else {"stride": layer.stride, "padding": layer.padding}
            apply = F.linear if isinstance(layer, nn.Linear) else F.conv2d
            middle, reach = layer(centre), apply(radius, layer.weight.abs(), **options)
            lower, upper = middle - reach, middle + reach
        else:
            lower, upper = layer(lower), layer(upper)
    last = layers[-1]
    weight = last.weight[None] - last.weight[y][:, None]
    bias = last.bias[None] - last.bias[y][:, None]
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    return (weight @ centre[:, :, None])[..., 0] + (weight.abs() @ radius[:, :, None])[..., 0] + bias


def train(model: nn.Module, data: Split, epochs: int, loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Train by Adam with a cosine schedule; `loss` gets images, labels and the share of the training that is done."""
    torch.manual_seed(0)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y).long()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    steps = epochs * math.ceil(len(x) / 128)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            optimiser.zero_grad()
            loss(x[rows], y[rows], step / steps).backward()
            optimiser.step()
            scheduler.step()
            step += 1


def by_intervals(model: nn.Module, eps: float) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return the cross-entropy of clean and of worst logits, half each; eps grows over half the training."""

    def loss(x: Tensor, y: Tensor, done: float) -> Tensor:
        grown = min(1.0, 2 * done)
        worst = interval_margins(model.layers, x, y, grown * eps)
        return (1 - grown / 2) * F.cross_entropy(model(x), y) + grown / 2 * F.cross_entropy(worst, y)

    return loss


def by_margin(model: nn.Module, margin: float) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return the cross-entropy of logits in units of what the margin is worth, the label's one moved by the margin."""

    def loss(x: Tensor, y: Tensor, done: float) -> Tensor:
        return F.cross_entropy((model(x) - margin * F.one_hot(y, 10)) / (margin / 4), y)

    return loss


def networks(name: str, directory: Path | None) -> Iterator[tuple[str, nn.Module, tuple[float, ...]]]:
    """Yield the networks and the ground norms in which each is to be certified, trained now or read from disk."""
    data, side, epochs = load(name, directory, train=True), SIDES[name], EPOCHS[name]
    yield "adversarial training", robust_network(name, directory).model, (math.inf,)
    for key, model, loss_of, norms in (
        ("clean", small_cnn(1, 10, side), lambda m: lambda x, y, done: F.cross_entropy(m(x), y), (math.inf, 2.0)),
        ("intervals, eps 0.1", small_cnn(1, 10, side), lambda m: by_intervals(m, 0.1), (math.inf,)),
        ("intervals, eps 0.2", small_cnn(1, 10, side), lambda m: by_intervals(m, 0.2), (math.inf,)),
        ("orthogonal, margin 0.5", Orthogonal(side**2, 10), lambda m: by_margin(m, 0.5), (2.0,)),
        ("orthogonal, margin 1", Orthogonal(side**2, 10), lambda m: by_margin(m, 1.0), (2.0,)),
    ):
        file = KEPT / f"certified-{name}-{key.replace(', ', '-').replace(' ', '-')}.pt"
        if file.exists():
            model.load_state_dict(torch.load(file, weights_only=True))
        else:
            started = time.perf_counter()
            orthogonal_epochs = ORTHOGONAL_EPOCHS[name] if isinstance(model, Orthogonal) else epochs
            train(model, data, epochs // 4 if key == "clean" else orthogonal_epochs, loss_of(model))
            print(f"trained: {key}, {time.perf_counter() - started:.0f} s", flush=True)
            KEPT.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), file)
        yield key, model.eval(), norms


def main() -> None:
    """Train, certify and attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SIDES))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    test = load(args.name, args.data_dir, train=False)
    x, y, side = test.x[: args.samples], test.y[: args.samples], SIDES[args.name]
    rows = []
    print("| network | clean | norm | W_2 brackets in % at each eps | seconds a sample |\n" + "| --- " * 5 + "|")
    for key, model, norms in networks(args.name, args.data_dir):
        classifier = as_classifier(model, (1, side, side), 10, "cpu")
        for norm in norms:
            attack = WassersteinKnapsack(classifier, norm=norm, max_iter=100, batch_size=250, verbose=False)
            attack.generate(x, y)
            started = time.perf_counter()
            radii = certified_radii(classifier, x, y, norm, largest=attack.distances_)
            seconds = (time.perf_counter() - started) / len(x)
            clean = float(np.mean(attack.distances_ > 0))
            brackets = {
                f"{eps:g}": [knapsack_accuracy(found, eps) for found in (radii, attack.distances_)]
                for eps in BUDGETS[norm]
            }
            rows.append({"network": key, "clean": clean, "norm": f"{norm:g}", "W_2": brackets, "seconds": seconds})
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(rows, indent=1))
            text = ", ".join(f"[{100 * low:.1f}, {100 * high:.1f}] at {eps}" for eps, (low, high) in brackets.items())
            print(f"| {key} | {100 * clean:.1f} | l_{norm:g} | {text} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
