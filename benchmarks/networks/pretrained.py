# SPDX-License-Identifier: MIT
"""The pointwise-robust networks that the experiments of docs/results start from, trained with TRADES.

    python -m benchmarks.networks.pretrained fashion-mnist --data-dir DIR
    python -m benchmarks.networks.pretrained cifar10 --data-dir DIR

DIR is as in networks/robust.py. Once trained, a network is `benchmarks.networks.pretrained:fashion_mnist` or
`benchmarks.networks.pretrained:cifar10` for the command line, run in the root of the repository.

TRADES: Zhang et al., 2019, arXiv:1901.08573. The schedule of one cycle and the random start of a short attack: Wong,
Rice, Kolter, 2020, arXiv:2001.03994.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from art_wdro import shift_and_flip
from art_wdro.trainers._consistency import kl_consistency
from benchmarks._command import NAMES, command, parsed, with_data
from benchmarks._files import keep
from benchmarks._settings import DATA, QUICK
from benchmarks._tables import Table
from benchmarks._timing import timed
from benchmarks.networks._architectures import KEPT, keep_weights, network_for, trained
from benchmarks.networks._data import load

BETA, BATCH = 6.0, 256


def untrained(name: str) -> nn.Module:
    """Return the architecture: 0.4 million parameters for CIFAR-10, 0.2 million for Fashion-MNIST."""
    return network_for(name, width=24)


def pretrained(name: str) -> nn.Module:
    """Return the trained network."""
    model, file = untrained(name), file_of(name)

    def make() -> None:
        if name != QUICK:
            raise FileNotFoundError(f"{KEPT / file} does not exist; python -m benchmarks.networks.pretrained makes it")
        list(train(model, name, None, bfloat16=False))

    return trained(model, name, file, make)


def file_of(name: str) -> str:
    """Return the name of the file that keeps the network of a data set."""
    return f"trades-{name}.pt"


def fashion_mnist() -> nn.Module:
    """Return the network for Fashion-MNIST."""
    return pretrained("fashion-mnist")


def cifar10() -> nn.Module:
    """Return the network for CIFAR-10."""
    return pretrained("cifar10")


def quick() -> nn.Module:
    """Return the network of quick runs."""
    return pretrained(QUICK)


def untrained_digits() -> nn.Module:
    """Return the architecture for scikit-learn's digits, as it is before training."""
    return untrained("digits")


def perturbed(model: nn.Module, x: Tensor, eps: float, steps: int) -> Tensor:
    """Attack a batch with a few steps from a random start in the ball."""
    clean = model(x).detach()
    delta = torch.empty_like(x).uniform_(-eps, eps)
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(kl_consistency(clean, model((x + delta).clamp(0, 1))), delta)
        delta = (delta.detach() + 1.5 * eps / steps * gradient.sign()).clamp(-eps, eps)
    return (x + delta).clamp(0, 1)


def train(model: nn.Module, name: str, directory: Path | None, bfloat16: bool) -> Iterator[dict[str, float]]:
    """Train a network from scratch: yield a row after every epoch."""
    setting, eps = DATA[name].pretrained, DATA[name].eps
    assert setting is not None
    data = load(name, directory, train=True)
    x, y = (torch.from_numpy(part[: -setting.left_out]) for part in data)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    augment = shift_and_flip(padding=4) if setting.augment else None
    batches = len(x) // BATCH
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, setting.rate, total_steps=setting.epochs * batches, pct_start=0.3, cycle_momentum=False
    )

    def epoch() -> float:
        correct = 0
        for rows in torch.split(torch.randperm(len(x))[: batches * BATCH], BATCH):
            images = x[rows] if augment is None else augment(x[rows])
            # autocast keeps the weights it has cast until its end
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                model.eval()
                attacked = perturbed(model, images, eps, setting.steps)
                model.train()
                clean, adversarial = model(torch.cat([images, attacked])).chunk(2)
                loss = cross_entropy(clean, y[rows]) + BETA * kl_consistency(clean, adversarial)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            cycle.step()
            correct += int((adversarial.argmax(1) == y[rows]).sum())
        return correct / (batches * BATCH)

    for number in range(setting.epochs):
        accuracy, seconds = timed(epoch)
        yield {"epoch": number, "accuracy": accuracy, "seconds": seconds}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__), [name for name in NAMES if DATA[name].pretrained])
    found.add_argument("--bfloat16", action="store_true", help="run the passes in bfloat16, the weights in float32")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a network anew and keep it."""
    args = parsed(parser(), arguments)
    model = untrained(args.name)
    table, rows = Table("epoch", "adversarial accuracy in training, %", "seconds"), []
    for row in train(model, args.name, args.data_dir, args.bfloat16):
        rows.append(row)
        table.row(row["epoch"], f"{100 * row['accuracy']:.1f}", f"{row['seconds']:.0f}")
    keep_weights(model, args.name, file_of(args.name))
    keep(args.json, rows)


if __name__ == "__main__":
    main()
