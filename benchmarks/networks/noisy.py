# SPDX-License-Identifier: MIT
"""Networks trained on noisy images, whose smoothed versions can be certified (Cohen et al., 2019, arXiv:1902.02918).

    python -m benchmarks.networks.noisy fashion-mnist --data-dir DIR
    python -m benchmarks.networks.noisy cifar10 --data-dir DIR

Networks are kept in runs/networks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from art_wdro import adversarial_accuracy
from benchmarks._command import command, parsed, with_data
from benchmarks._files import keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks._timing import timed
from benchmarks.networks._architectures import CLASSES, classifier_of, network_for, trained
from benchmarks.networks._data import load

BATCH = 128
WIDTH = 16
"""Channels of the first convolution of the ResNet: small, since a certificate takes 10,000 passes an image."""
RATE = 0.05
"""Highest learning rate of the cycle."""


def noisy_network(name: str, directory: Path | None) -> nn.Module:
    """Return the network of a data set, trained if need be on images with noise of its setting."""
    model, setting = network_for(name, WIDTH), DATA[name].noisy
    return trained(model, name, f"{name}-noisy.pt", partial(_train, model, name, directory, setting.scale))


def smoothed_network(name: str, directory: Path | None) -> PyTorchRandomizedSmoothing:
    """Return the smoothed classifier of that network, by the noise that it was trained with."""
    return PyTorchRandomizedSmoothing(
        noisy_network(name, directory),
        nn.CrossEntropyLoss(),
        DATA[name].shape,
        CLASSES,
        clip_values=(0, 1),
        device_type="gpu",
        sample_size=100,
        scale=DATA[name].noisy.scale,
        alpha=0.001,
    )


def _train(model: nn.Module, name: str, directory: Path | None, scale: float) -> None:
    """Train on noisy images by SGD with one cycle of the learning rate; images in colour are flipped at random."""
    x, y = (torch.from_numpy(part) for part in load(name, directory, train=True))
    epochs, generator = DATA[name].noisy.epochs, torch.Generator().manual_seed(0)
    steps = epochs * (len(x) // BATCH)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator)[: len(x) // BATCH * BATCH].view(-1, BATCH):
            images = _flipped(x[rows], generator) if x.shape[1] == 3 else x[rows]
            noisy = images + scale * torch.randn(images.shape, generator=generator)
            optimiser.zero_grad()
            cross_entropy(model(noisy), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip half of the images from left to right."""
    which = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(which, images.flip(-1), images)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__))
    found.add_argument("--samples", type=int, default=1000, help="test images for the accuracy without noise")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say how accurate the network is."""
    args = parsed(parser(), arguments)
    model, seconds = timed(lambda: noisy_network(args.name, args.data_dir))
    x, y = (part[: args.samples] for part in load(args.name, args.data_dir, train=False))
    clean = adversarial_accuracy(classifier_of(model, DATA[args.name].shape), x, y, eps=0)
    parameters = sum(weight.numel() for weight in model.parameters())
    row = {"scale": DATA[args.name].noisy.scale, "clean": clean, "parameters": parameters, "seconds": seconds}
    table = Table("scale", "clean in %", "parameters", "seconds")
    table.row(f"{row['scale']:g}", f"{100 * clean:.1f}", str(parameters), f"{seconds:.0f}")
    keep(args.json, [row])


if __name__ == "__main__":
    main()
