# SPDX-License-Identifier: MIT
"""See what attacks of one budget leave of a robust network, and what fine-tuning against a shared budget changes.

A small network is trained with ART's own TRADES trainer and attacked: with a budget for each image, and with one that
all images share; where the network is small enough, a certificate says below what no attack goes. From there it is
trained further in three ways, equally long: by ART's trainer, the distributional one and the margin trainer; all are
evaluated on held-out images. Out come tables, whether the gain is more than noise, and a figure: accuracy over the
budget and along the epochs, and images with where the budget went.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerTRADESPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn
from tqdm.auto import tqdm

from art_wdro._cli.checks import check_eps, fraction
from art_wdro._cli.demo_figure import PAPER, save_figure
from art_wdro._cli.errors import leaving_with_one_line
from art_wdro._cli.outputs import save_text, writable
from art_wdro._host.extras import install
from art_wdro._sources.data import Split, as_images, load_data
from art_wdro.attacks._knapsack import WassersteinKnapsack
from art_wdro.attacks._pgd import WassersteinPGD
from art_wdro.evaluation._accuracy import adversarial_accuracy
from art_wdro.evaluation._autoattack import AUTOATTACK
from art_wdro.evaluation._evaluate import evaluate
from art_wdro.evaluation._intervals import knapsack_of, resampled
from art_wdro.evaluation._report import KNAPSACK as REPORTED
from art_wdro.evaluation._report import Report
from art_wdro.trainers._margin import WassersteinMarginTrainer
from art_wdro.trainers._trades import DistributionalTRADESTrainer

BEFORE, KNAPSACK = "before", "W_2 (knapsack)"
MEANINGS = {
    "none": "no attack",
    "PGD-20, CE": "PGD, eps for each image",
    AUTOATTACK: "AutoAttack, eps for each image",
    PAPER: "W-PGD, eps shared, as in the training paper",
    "W-PGD-100, ReDLR, linear": "W-PGD, eps shared, its strongest setting",
    REPORTED: "the knapsack, eps shared: the figure to quote",
}
"""What the rows of a report are that the demo shows, in words."""
EVALUATED = 200
"""Test images in the report, whose AutoAttack and certificate take the time."""
EPS = {"digits": 0.1, "fashion-mnist": 0.1, "cifar10": 8 / 255, "npz": 8 / 255}


def load(args: argparse.Namespace) -> tuple[Split, Split]:
    """Return a training and a test part."""
    if args.npz:
        whole = load_data(str(args.npz))
        whole = whole.choose(np.random.default_rng(0).permutation(len(whole.x)))
        cut = len(whole.x) * 4 // 5
        return Split(whole.x[:cut], whole.y[:cut]), Split(whole.x[cut:], whole.y[cut:])
    if args.data == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        x, y = as_images(digits.images / 16)[order], digits.target[order]
        return Split(x[:1297], y[:1297]), Split(x[1297:], y[1297:])
    source = {"fashion-mnist": "torchvision:FashionMNIST", "cifar10": "torchvision:CIFAR10"}[args.data]
    train, test = (load_data(source, train, args.data_dir, args.download) for train in (True, False))
    return train, test


class Network(nn.Module):
    """Two convolutions and two linear layers, few enough units for a certificate on small images."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * -(-height // 2) * -(-width // 2), 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, classes)."""
        logits: torch.Tensor = self.head(self.body(x))
        return logits


class Measured(NamedTuple):
    """What is left of a network.

    :param figures: Accuracy in percent by column of the table.
    :param distances: Least distances of the test images, (N,).
    """

    figures: dict[str, float]
    distances: np.ndarray


def measure(classifier: PyTorchClassifier, test: Split, eps: float) -> Measured:
    """Measure accuracy in percent: clean, pointwise, and under W_2 by W-PGD and the knapsack."""
    knapsack = WassersteinKnapsack(classifier, eps=eps, verbose=False)
    attacks: dict[str, EvasionAttack] = {
        "W_inf": WassersteinPGD(classifier, p=np.inf, eps=eps, loss="ce", verbose=False),
        "W_2": WassersteinPGD(classifier, eps=eps, verbose=False),
        KNAPSACK: knapsack,
    }
    figures = {"clean": adversarial_accuracy(classifier, *test, eps=0.0)}
    for name, attack in tqdm(attacks.items(), desc="Evaluation", leave=False):
        figures[name] = adversarial_accuracy(classifier, *test, attack)
    return Measured({name: 100 * figure for name, figure in figures.items()}, knapsack.distances_)


def set_optimiser(classifier: PyTorchClassifier, rate: float, momentum: float) -> None:
    """Make the optimiser forget its state and take a new rate."""
    classifier.optimizer.state.clear()
    classifier.optimizer.param_groups[0].update(lr=rate, momentum=momentum)


def split(args: argparse.Namespace) -> tuple[Split, Split, Split]:
    """Return training, validation and test images."""
    train, test = load(args)
    test = Split(test.x[: args.test_samples], test.y[: args.test_samples])
    cut = len(train.x) * 5 // 6
    validation, train = Split(train.x[cut:][:1000], train.y[cut:][:1000]), Split(train.x[:cut], train.y[:cut])
    return Split(train.x[: args.train_samples], train.y[: args.train_samples]), validation, test


def run(args: argparse.Namespace) -> tuple[dict[str, Measured], Report, list[dict[str, Any]], PyTorchClassifier, Split]:
    """Train and evaluate: return the table, the report, the fine-tuning's history, the classifier, the test images."""
    train, validation, test = split(args)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    model = Network(train.x.shape[1:], int(max(train.y.max(), test.y.max())) + 1)
    classifier = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=train.x.shape[1:],
        nb_classes=model.head.out_features,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        clip_values=(0, 1),
        device_type="cpu" if args.device == "cpu" else "gpu",
    )
    print(f"{len(train.x)} training, {len(validation.x)} validation and {len(test.x)} test images, eps {args.eps:.4f}")

    print(f"Training a robust network with ART's TRADES trainer, {args.pretrain_epochs} epochs")
    attack = ProjectedGradientDescent(classifier, eps=args.eps, eps_step=args.eps / 5, max_iter=10, verbose=False)
    art = AdversarialTrainerTRADESPyTorch(classifier, attack, beta=6.0)
    art.fit(*train, batch_size=64, nb_epochs=args.pretrain_epochs)

    print("Evaluating it by one call, evaluate(classifier, x, y, eps=...)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report prints them
        report = evaluate(classifier, *test, eps=args.eps, samples=min(EVALUATED, len(test.x)), seed=args.seed)
    print_report(report)
    table, history = fine_tuned(art, train, validation, test, args)
    return table, report, history, classifier, test


def fine_tuned(
    art: AdversarialTrainerTRADESPyTorch, train: Split, validation: Split, test: Split, args: argparse.Namespace
) -> tuple[dict[str, Measured], list[dict[str, Any]]]:
    """Train the network further from one start: return the table, and the distributional trainer's history."""
    classifier = art.classifier
    start = copy.deepcopy(classifier.model.state_dict())
    table = {BEFORE: measure(classifier, test, args.eps)}

    print(f"Training it further with ART's trainer, {args.epochs} epochs")
    set_optimiser(classifier, 0.05, 0.0)
    art.fit(*train, batch_size=64, nb_epochs=args.epochs)
    table["after, ART's TRADES"] = measure(classifier, test, args.eps)

    print(f"Fine-tuning it from the same start with DistributionalTRADESTrainer, {args.epochs} epochs")
    classifier.model.load_state_dict(start)
    set_optimiser(classifier, 0.05, 0.0)
    trainer = DistributionalTRADESTrainer(classifier, eps=args.eps, max_iter=10, seed=args.seed)
    trainer.fit(*train, validation_data=validation, batch_size=64, nb_epochs=args.epochs)
    table["after, distributional"] = measure(classifier, test, args.eps)

    print(f"Fine-tuning it from the same start with WassersteinMarginTrainer, {args.epochs} epochs")
    classifier.model.load_state_dict(start)
    set_optimiser(classifier, 0.05, 0.0)
    margins = WassersteinMarginTrainer(classifier, eps=args.eps, beta=2, seed=args.seed)
    margins.fit(*train, batch_size=64, nb_epochs=args.epochs)
    table["after, margin trainer"] = measure(classifier, test, args.eps)
    return table, trainer.history


def print_report(report: Report) -> None:
    """Print what each attack leaves of the robust network, and between which ends the truth is."""
    rows = {row.attack: row for row in report.rows}
    print(f"\nWhat attacks of one budget, eps = {report.eps:.4f} under l_inf, leave of {report.samples} images:")
    for name, meaning in MEANINGS.items():
        if name in rows:
            row = rows[name]
            print(
                f"  {100 * row.accuracy:5.1f} %  {meaning}"
                if row.failure is None
                else f"          {name}: {row.failure}"
            )
    if report.radii is not None:
        for eps in (report.eps, report.eps / 2):
            low, high = 100 * report.certified_accuracy(eps), 100 * report.accuracy(eps)
            print(
                f"At eps = {eps:.4f} no attack leaves less than {low:.1f} %: the truth is in [{low:.1f}, {high:.1f}] %."
            )
    else:
        print(f"No certificate: {report.uncertified}")
    for text in report.warnings:
        print(f"Warning: {text}")
    above = [100 * (rows[name].accuracy - rows[REPORTED].accuracy) for name in ("PGD-20, CE", PAPER)]
    print(f"PGD leaves {above[0]:.1f} points more than the knapsack, W-PGD as in the paper {above[1]:.1f}.\n")


def print_table(table: dict[str, Measured], args: argparse.Namespace) -> None:
    """Print accuracy in percent, and the gains under the knapsack beside what chance does to them."""
    columns = list(table[BEFORE].figures)
    width = max(map(len, table))
    print(f"\nAccuracy in % on held-out images, (W_p, l_inf), eps = {args.eps:.4f}, seed {args.seed}")
    print(" " * width, *(f"{column:>15}" for column in columns))
    for name, (figures, _) in table.items():
        print(f"{name:{width}}", *(f"{figures[column]:15.1f}" for column in columns))
    before, art, ours, margins = table.values()
    images = len(before.distances)
    print(f"\nUnder the knapsack, whose search the margin trainer used in short, on {images} images, seed {args.seed}:")
    for text, first, second in (
        ("as many epochs more of ART's trainer gain", before, art),
        ("the distributional trainer gains", before, ours),
        ("the margin trainer gains", before, margins),
        ("the distributional trainer is ahead of ART's by", art, ours),
        ("the margin trainer is ahead of ART's by", art, margins),
    ):
        gain, noise = second.figures[KNAPSACK] - first.figures[KNAPSACK], noise_of(first, second, args)
        verdict = "more" if abs(gain) > noise else "no more"
        print(f"{text} {gain:+.1f} points, {verdict} than noise ({noise:.1f})")


def noise_of(first: Measured, second: Measured, args: argparse.Namespace) -> float:
    """Return two standard errors of the difference of two accuracies under the knapsack, in percent.

    Images are drawn with replacement, the same ones for both, and the budget is spent anew. What another seed of the
    training would have made is not in it.
    """
    spent = [knapsack_of(found.distances, args.eps, 2.0) for found in (first, second)]
    drawn = resampled(spent, len(first.distances), args.seed)
    return 200 * float((drawn[1] - drawn[0]).std())


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse(arguments: list[str] | None, prog: str) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", choices=("digits", "fashion-mnist", "cifar10"), default="digits")
    source.add_argument("--npz", type=Path, help="file with x, bytes (N, H, W[, C]) or floats in [0, 1], and y (N,)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where torchvision finds the data set")
    parser.add_argument("--download", action="store_true", help="let torchvision fetch the data set")
    parser.add_argument("--eps", type=fraction, help="budget in units of [0, 1], such as 8/255 (0.1; for colour 8/255)")
    parser.add_argument("--allow-large-eps", action="store_true", help="take one that is no less than 1")
    parser.add_argument("--pretrain-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-samples", type=int, help="use only so many training images")
    parser.add_argument("--test-samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--figure", type=Path, default=Path("runs/demo.png"))
    parser.add_argument("--json", type=Path, help="file for the table and the history")
    args = parser.parse_args(arguments)
    args.eps = EPS["npz" if args.npz else args.data] if args.eps is None else args.eps
    if args.npz and not args.npz.is_file():
        parser.error(f"--npz is {args.npz}, and there is no such file")
    return args


def main(arguments: list[str] | None = None, prog: str = "demo") -> None:
    """Run the demo."""
    args = parse(arguments, prog)
    with leaving_with_one_line(prog):
        check_eps(args.eps, math.inf, (), args.allow_large_eps)
        writable(figure=args.figure, json=args.json)
        try:
            for name in ("matplotlib", *(["sklearn"] if args.data == "digits" and not args.npz else [])):
                importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"the demo needs more packages ({error}): {install('demo')}") from error
        table, report, history, classifier, test = run(args)
        print_table(table, args)
        figures = {name: found.figures for name, found in table.items()}
        found = {"seed": args.seed, "eps": args.eps, "accuracy_percent": figures, "history": history}
        found["report"] = report.to_dict()
        save_text(args.json, json.dumps(found, indent=1))
        save_figure(report, history, classifier, test, args)
