# SPDX-License-Identifier: MIT
"""Robust networks to measure on: trained once by trainers of ART, then kept on disk.

    python -m benchmarks.networks.robust digits
    python -m benchmarks.networks.robust fashion-mnist --data-dir DIR
    python -m benchmarks.networks.robust cifar10 --data-dir DIR

DIR holds train.npz and test.npz with x (N, H, W[, C]) in bytes and y (N,), or the gzipped files of MNIST's format,
as the Debian package dataset-fashion-mnist brings them.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerFBFPyTorch, AdversarialTrainerMadryPGD
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn

from art_wdro import adversarial_accuracy
from art_wdro._sources.data import Split

KEPT = Path(__file__).parents[2] / "runs" / "networks"


class Setting(NamedTuple):
    """What a network is trained on and how: by ART's single-step trainer, or its trainer of Madry et al."""

    eps: float
    train_samples: int
    epochs: int
    pgd_steps: int | None


SETTINGS = {
    "digits": Setting(0.1, 1297, 20, 7),
    "fashion-mnist": Setting(0.1, 20000, 6, 7),
    "cifar10": Setting(8 / 255, 25000, 14, None),
}


class Block(nn.Module):
    """Pre-activation residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        plain = before == after and stride == 1
        self.shortcut = nn.Identity() if plain else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, (N, after, H / stride, W / stride)."""
        out = torch.relu(self.norm1(x))
        return self.shortcut(x) + self.conv2(torch.relu(self.norm2(self.conv1(out))))


class Network(nn.Module):
    """One module over a stack, since ART reads every layer's output of an nn.Sequential."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.layers(x)


def small_resnet(channels: int, classes: int, width: int = 32) -> nn.Module:
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


def small_cnn(channels: int, classes: int, side: int) -> nn.Module:
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


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped file of bytes in MNIST's format, IDX."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def load(name: str, directory: Path | None, train: bool) -> Split:
    """Load one part of a data set, in a fixed random order."""
    if name == "digits":
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        order = order[:1297] if train else order[1297:]
        return Split((digits.images[order, None] / 16).astype(np.float32), digits.target[order])
    if directory is None:
        raise SystemExit(f"{name} needs --data-dir")
    file = directory / ("train.npz" if train else "test.npz")
    if file.exists():
        with np.load(file) as data:
            x, y = data["x"], data["y"]
    else:
        stem = "train" if train else "t10k"
        x = read_idx(directory / f"{stem}-images-idx3-ubyte.gz")
        y = read_idx(directory / f"{stem}-labels-idx1-ubyte.gz")
    order = np.random.default_rng(0).permutation(len(x))
    x = x[order][:, None] if x.ndim == 3 else x[order].transpose(0, 3, 1, 2)
    return Split(np.ascontiguousarray(x, dtype=np.float32) / 255, y[order].astype(int))


def classifier_for(name: str) -> PyTorchClassifier:
    """Return the untrained classifier of a data set."""
    torch.manual_seed(0)
    if name == "cifar10":
        model, shape = small_resnet(3, 10), (3, 32, 32)
    else:
        shape = (1, 8, 8) if name == "digits" else (1, 28, 28)
        model = small_cnn(1, 10, shape[-1])
    return PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=10,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4),
        clip_values=(0, 1),
    )


def robust_network(name: str, directory: Path | None) -> PyTorchClassifier:
    """Return the trained classifier: from disk, or trained now and kept."""
    classifier, file = classifier_for(name), KEPT / f"{name}.pt"
    if file.exists():
        classifier.model.load_state_dict(torch.load(file, weights_only=True))
        classifier.model.eval()
        return classifier
    setting = SETTINGS[name]
    train = Split(*(part[: setting.train_samples] for part in load(name, directory, train=True)))
    np.random.seed(0)
    y = np.eye(10, dtype=np.float32)[train.y]
    if setting.pgd_steps is None:
        AdversarialTrainerFBFPyTorch(classifier, eps=setting.eps).fit(
            train.x, y, batch_size=128, nb_epochs=setting.epochs
        )
    else:
        AdversarialTrainerMadryPGD(
            classifier,
            nb_epochs=setting.epochs,
            batch_size=64,
            eps=setting.eps,
            eps_step=setting.eps / 4,
            max_iter=setting.pgd_steps,
            num_random_init=1,
        ).fit(train.x, y)
    KEPT.mkdir(parents=True, exist_ok=True)
    torch.save(classifier.model.state_dict(), file)
    classifier.model.eval()
    return classifier


def main() -> None:
    """Train a network if it is not there, and say how robust it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args()
    classifier = robust_network(args.name, args.data_dir)
    test = Split(*(part[:1000] for part in load(args.name, args.data_dir, train=False)))
    eps = SETTINGS[args.name].eps
    pgd = ProjectedGradientDescent(classifier, eps=eps, eps_step=eps / 8, max_iter=20, batch_size=250, verbose=False)
    print(f"{sum(p.numel() for p in classifier.model.parameters())} parameters")
    print(f"clean {adversarial_accuracy(classifier, *test, eps=0):.3f}, PGD-20 at {eps:.4f}", end=" ")
    print(f"{adversarial_accuracy(classifier, *test, pgd):.3f}")


if __name__ == "__main__":
    main()
