# SPDX-License-Identifier: MIT
"""Train a robust network on CIFAR-10 from scratch, as recipes of the field do, and evaluate it.

    python examples/cifar10.py --data DIR

DIR holds train.npz and test.npz, with x in bytes (N, 32, 32, 3) and y (N,), or torchvision's CIFAR10, which --download
fetches. Pre-activation ResNet-18, 15 epochs of distributional TRADES (or of pointwise TRADES, or margin training), one
cycle of the learning rate by minibatch, shifts and flips, averaged weights; --bfloat16 for a GPU. A run that is stopped
goes on where it was: run the same command again. The report says what is left under each attack.

`--quick` takes half a minute: 2,000 images, made up unless DIR is given, and a narrow network. What the whole run gives
is not recorded yet: it needs a GPU.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from art_wdro import DistributionalTRADESTrainer, Report, WassersteinMarginTrainer, evaluate, shift_and_flip
from art_wdro._sources.data import Split, load_data

EPS = 8 / 255
CLASSES = 10
METHODS: dict[str, tuple[type[DistributionalTRADESTrainer] | type[WassersteinMarginTrainer], dict[str, Any]]] = {
    "distributional": (DistributionalTRADESTrainer, {"p": 2}),
    "trades": (DistributionalTRADESTrainer, {"p": math.inf, "loss": "ce"}),
    "margin": (WassersteinMarginTrainer, {"p": 2, "beta": 4.0, "anchor": 0.0}),
}
"""Trainers and what they are told, by name; p = inf is pointwise TRADES, and no anchor trains from scratch."""


class Block(nn.Module):
    """Pre-activation residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        plain = before == after and stride == 1
        self.shortcut = None if plain else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(x))
        kept: Tensor = x if self.shortcut is None else self.shortcut(hidden)
        added: Tensor = kept + self.conv2(torch.relu(self.norm2(self.conv1(hidden))))
        return added


class ResNet18(nn.Module):
    """Pre-activation ResNet-18 for images (N, 3, 32, 32) in [0, 1], which it standardises itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.247, 0.2435, 0.2616]).view(3, 1, 1))
        widths = [width * factor for factor in (1, 1, 1, 2, 2, 4, 4, 8, 8)]
        strides = (1, 1, 2, 1, 2, 1, 2, 1)
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(*map(Block, widths, widths[1:], strides))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.blocks(self.stem((x - self.mean) / self.std))
        logits: Tensor = self.head(torch.relu(self.norm(hidden)).mean((2, 3)))
        return logits


def made_up(count: int, seed: int) -> Split:
    """Make images whose class shows in a pattern under noise."""
    patterns = np.random.default_rng(0).uniform(0.2, 0.8, (CLASSES, 3, 8, 8)).repeat(4, 2).repeat(4, 3)
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=count)
    x = patterns[y] + rng.normal(0, 0.1, (count, 3, 32, 32))
    return Split(x.clip(0, 1).astype(np.float32), y)


def load(args: argparse.Namespace) -> tuple[Split, Split, Split]:
    """Return the parts to train on, to select the epoch on, and to test on."""
    if args.data is None:
        train, test = made_up(args.train_samples, 1), made_up(args.samples, 2)
    elif (args.data / "train.npz").is_file():
        train, test = (load_data(str(args.data / f"{name}.npz")) for name in ("train", "test"))
    else:
        train, test = (load_data("torchvision:CIFAR10", part, args.data, args.download) for part in (True, False))
    order = np.random.default_rng(args.seed).permutation(len(train.x))[: args.train_samples]
    held, kept = order[: args.validation], order[args.validation :]
    test = test.choose(np.random.default_rng(args.seed).permutation(len(test.x))[: args.samples])
    return train.choose(kept), train.choose(held), test


def make_classifier(args: argparse.Namespace) -> PyTorchClassifier:
    """Return an untrained network with its optimiser."""
    torch.manual_seed(args.seed)
    model = ResNet18(args.width)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, 32, 32),
        nb_classes=CLASSES,
        optimizer=optimiser,
        clip_values=(0, 1),
        device_type="cpu" if args.device == "cpu" else "gpu",
    )


def train(args: argparse.Namespace, classifier: PyTorchClassifier, data: Split, held: Split) -> None:
    """Train from scratch, or go on."""
    kind, told = METHODS[args.method]
    number_format = "bfloat16" if args.bfloat16 else "float32"
    trainer = kind(
        classifier,
        eps=EPS,
        max_iter=args.max_iter,
        seed=args.seed,
        precision=number_format,
        update_precision=number_format,
        ema=args.ema,
        weight_perturbation=args.weight_perturbation,
        summary_writer=str(args.out / "logs") if args.summary else False,
        **told,
    )
    steps = args.epochs * math.ceil(len(data.x) / args.batch_size)
    trainer.fit(
        *data,
        validation_data=held,
        batch_size=args.batch_size,
        nb_epochs=args.epochs,
        scheduler=OneCycleLR(classifier.optimizer, args.learning_rate, total_steps=steps, cycle_momentum=False),
        scheduler_step="batch",
        augment=shift_and_flip(padding=4),
        checkpoint=args.out / "run.ckpt",
        checkpoint_minutes=args.checkpoint_minutes,
    )
    for record in trainer.history:
        names = ("loss", "clean_accuracy", "winf_accuracy", "wp_accuracy", "seconds")
        print(f"epoch {record['epoch']}: " + ", ".join(f"{name} {record[name]:.3f}" for name in names))
    print(f"kept is epoch {trainer.best_epoch}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of train.npz and test.npz, or of torchvision's CIFAR10")
    parser.add_argument("--download", action="store_true", help="let torchvision fetch the data set")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"), help="folder of checkpoint, weights, report")
    parser.add_argument("--method", choices=list(METHODS), default="distributional")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.2, help="the highest of the cycle")
    parser.add_argument("--max-iter", type=int, default=10, help="steps of the attack")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--weight-perturbation", type=float, default=0.0)
    parser.add_argument("--bfloat16", action="store_true", help="passes of attack and update in bfloat16")
    parser.add_argument("--validation", type=int, default=1000, help="training images held out")
    parser.add_argument("--samples", type=int, default=1000, help="test images")
    parser.add_argument("--train-samples", type=int, help="use only so many training images")
    parser.add_argument("--width", type=int, default=64, help="channels of the first layer")
    parser.add_argument("--checkpoint-minutes", type=float, default=5, help="time between two states that are saved")
    parser.add_argument("--summary", action="store_true", help="write for TensorBoard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--quick", action="store_true", help="2,000 images, a narrow network, 2 epochs")
    args = parser.parse_args(arguments)
    if args.quick:
        args.train_samples, args.validation, args.samples = 2000, 200, 100
        args.epochs, args.max_iter, args.width, args.ema = 2, 2, 4, 0.9
    elif args.data is None:
        parser.error("--data is not given; needed is a folder, or --quick")
    return args


def main(arguments: Sequence[str] | None = None) -> Report:
    """Train, evaluate, and leave weights and report in a folder."""
    args = parse(arguments)
    data, held, test = load(args)
    print(f"{len(data.x)} training, {len(held.x)} validation and {len(test.x)} test images, {args.method}")
    classifier = make_classifier(args)
    args.out.mkdir(parents=True, exist_ok=True)
    train(args, classifier, data, held)
    torch.save(classifier.model.state_dict(), args.out / "weights.pth")
    less: dict[str, Any] = {"knapsack_iter": 30, "autoattack": False} if args.quick else {}
    report = evaluate(classifier, *test, eps=EPS, **less)
    (args.out / "report.json").write_text(report.to_json())
    print(report)
    return report


if __name__ == "__main__":
    main()
