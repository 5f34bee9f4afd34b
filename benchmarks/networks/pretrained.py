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
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from art_wdro.trainers._consistency import kl_consistency
from benchmarks.networks.robust import KEPT, load, small_cnn, small_resnet

VALIDATION = 5000
"""Training images left out here.

The fine-tunings split all images anew, so most of those they validate on were seen here, as those of the paper were.
"""


class Setting(NamedTuple):
    """How a network is trained.

    :param eps: Size of the l_inf ball.
    :param epochs: Passes over the data.
    :param steps: Steps of the attack.
    :param rate: Highest learning rate of the cycle.
    :param augment: Whether images are shifted by up to 4 pixels and flipped.
    """

    eps: float
    epochs: int
    steps: int
    rate: float
    augment: bool


SETTINGS = {"fashion-mnist": Setting(0.1, 10, 5, 0.05, False), "cifar10": Setting(8 / 255, 12, 2, 0.2, True)}
BETA, BATCH = 6.0, 256


def untrained(name: str) -> nn.Module:
    """Return the architecture: 0.4 million parameters for CIFAR-10, 0.2 million for Fashion-MNIST."""
    torch.manual_seed(0)
    return small_resnet(3, 10, width=24) if name == "cifar10" else small_cnn(1, 10, 28)


def pretrained(name: str) -> nn.Module:
    """Return the trained network."""
    file = KEPT / f"trades-{name}.pt"
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; benchmarks/networks/pretrained.py makes it")
    model = untrained(name)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def fashion_mnist() -> nn.Module:
    """Return the network for Fashion-MNIST."""
    return pretrained("fashion-mnist")


def cifar10() -> nn.Module:
    """Return the network for CIFAR-10."""
    return pretrained("cifar10")


def untrained_digits() -> nn.Module:
    """Return the architecture for scikit-learn's digits, as it is before training."""
    torch.manual_seed(0)
    return small_cnn(1, 10, 8)


def augmented(x: Tensor) -> Tensor:
    """Shift and flip every image."""
    count, _, side, _ = x.shape
    rows, columns = torch.randint(9, (2, count)).unbind()
    steps = torch.arange(side)
    rows, columns = rows[:, None] + steps, columns[:, None] + steps
    columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1))
    samples = torch.arange(count)[:, None, None]
    return pad(x, (4, 4, 4, 4))[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def perturbed(model: nn.Module, x: Tensor, setting: Setting) -> Tensor:
    """Attack a batch with a few steps from a random start in the ball."""
    clean = model(x).detach()
    delta = torch.empty_like(x).uniform_(-setting.eps, setting.eps)
    for _ in range(setting.steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(kl_consistency(clean, model((x + delta).clamp(0, 1))), delta)
        delta = (delta.detach() + 1.5 * setting.eps / setting.steps * gradient.sign()).clamp(-setting.eps, setting.eps)
    return (x + delta).clamp(0, 1)


def train(name: str, directory: Path, bfloat16: bool) -> nn.Module:
    """Train a network from scratch."""
    setting, model = SETTINGS[name], untrained(name)
    data = load(name, directory, train=True)
    x, y = (torch.from_numpy(part[:-VALIDATION]) for part in data)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = len(x) // BATCH
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, setting.rate, total_steps=setting.epochs * batches, pct_start=0.3, cycle_momentum=False
    )
    for epoch in range(setting.epochs):
        started, correct = time.perf_counter(), 0
        for rows in torch.randperm(len(x))[: batches * BATCH].split(BATCH):
            images = augmented(x[rows]) if setting.augment else x[rows]
            with torch.autocast(
                "cpu", torch.bfloat16, enabled=bfloat16
            ):  # it keeps the weights it has cast until its end
                model.eval()
                attacked = perturbed(model, images, setting)
                model.train()
                clean, adversarial = model(torch.cat([images, attacked])).chunk(2)
                loss = cross_entropy(clean, y[rows]) + BETA * kl_consistency(clean, adversarial)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            cycle.step()
            correct += int((adversarial.argmax(1) == y[rows]).sum())
        accuracy, seconds = correct / (batches * BATCH), time.perf_counter() - started
        print(f"epoch {epoch}: adversarial accuracy in training {accuracy:.3f}, {seconds:.0f} s", flush=True)
    return model.eval()


def main() -> None:
    """Train a network and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--bfloat16", action="store_true", help="run the passes in bfloat16, the weights in float32")
    args = parser.parse_args()
    model = train(args.name, args.data_dir, args.bfloat16)
    KEPT.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), KEPT / f"trades-{args.name}.pt")


if __name__ == "__main__":
    main()
