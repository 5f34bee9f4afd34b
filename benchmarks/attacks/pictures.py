# SPDX-License-Identifier: MIT
"""Draw what a shared budget does to images that a person recognises, and the bracket of the accuracy over eps.

    python -m benchmarks.attacks.pictures fashion-mnist --data-dir DIR

The network is one of benchmarks/networks/certified.py, which interval bounds trained for eps = 0.1, made if need be. It
is attacked under l_inf with 0.05: image by image by ART's PGD, and under W_2 by W-PGD and the knapsack. DIR holds the
files of the Debian package dataset-fashion-mnist; `make figures DATA_DIR=DIR` makes the drawings of the docs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

from art_wdro import (
    WassersteinKnapsack,
    WassersteinPGD,
    certified_radii,
    knapsack_accuracy,
    wasserstein_distance,
)
from art_wdro._sources.data import Split
from art_wdro._storage.files import write_atomically
from art_wdro.evaluation._report import empty_figure
from benchmarks._command import command, parsed, with_data
from benchmarks._files import keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks.networks._architectures import classifier_of
from benchmarks.networks._data import load
from benchmarks.networks.certified import CERTIFIED, candidates

NETWORK = "intervals, eps 0.1"
EPS = 0.05
"""Budget, in input units: half of what the network was trained for, where both ends of the bracket say something."""
CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
"""Classes of Fashion-MNIST."""
SHOWN = 8
"""Images in the picture."""
BUDGETS = np.linspace(0.0, 2.4, 61)
"""Budgets of the curve, in eps."""
LOW, HIGH = "#0072b2", "#d55e00"


class Found(NamedTuple):
    """What an attack made.

    :param x: Attacked images, (N, C, H, W).
    :param classes: What the network takes them for, (N,).
    :param moved: How far each moved, in eps, (N,).
    """

    x: np.ndarray
    classes: np.ndarray
    moved: np.ndarray


def attacked(classifier: PyTorchClassifier, data: Split, attack: EvasionAttack, eps: float) -> Found:
    """Attack all images in one call."""
    x = attack.generate(*data)
    return Found(x, classifier.predict(x).argmax(1), np.abs(x - data.x).max(axis=(1, 2, 3)) / eps)


def attacks_of(classifier: PyTorchClassifier, eps: float) -> dict[str, EvasionAttack]:
    """Return the attacks by the name of their row, the last one the knapsack."""
    own: dict[str, Any] = {"eps": eps, "batch_size": 250, "verbose": False}
    return {
        "PGD, eps for each image": ProjectedGradientDescent(classifier, eps_step=eps / 8, max_iter=20, **own),
        "W-PGD, eps shared": WassersteinPGD(classifier, max_iter=100, schedule="linear", **own),
        "knapsack, eps shared": WassersteinKnapsack(classifier, max_iter=100, **own),
    }


def chosen(found: dict[str, Found], labels: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Choose images that the network knows, of different classes: some that the knapsack flips, some that it leaves."""
    *_, (_, last) = found.items()
    right = clean == labels
    flipped, kept = right & (last.classes != labels), right & (last.moved == 0)
    indices: list[int] = []
    for group, wanted in ((flipped, SHOWN * 5 // 8), (kept, SHOWN)):
        order = np.flatnonzero(group)
        for i in order[np.argsort(-last.moved[order], kind="stable")]:
            if len(indices) < wanted and labels[i] not in labels[indices]:
                indices.append(int(i))
    return np.array(indices)


def draw_images(data: Split, rows: dict[str, Found], shown: np.ndarray, names: Sequence[str], file: Path) -> None:
    """Draw the images, clean and attacked, and under them where each attack spent its budget."""
    figure = empty_figure()
    # as wide as the bars need, however few images there are
    figure.set_size_inches(1.15 * max(5, len(shown)) + 0.4, 1.36 * len(rows) + 2.4)
    images, bars = figure.subfigures(2, 1, height_ratios=(1.36 * len(rows), 2.4))
    grid = images.subplots(len(rows), len(shown), squeeze=False)
    for line, (name, found) in zip(grid, rows.items(), strict=True):
        for axis, i in zip(line, shown, strict=True):
            axis.imshow(found.x[i, 0], cmap="gray", vmin=0, vmax=1)
            wrong = found.classes[i] != data.y[i]
            title = names[found.classes[i]] + (f"\n{found.moved[i]:.1f} eps" if name != "clean" else "")
            axis.set_title(title, fontsize=8, color=HIGH if wrong else "black", pad=2)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name.replace(", ", "\n"), fontsize=8)
    axes = bars.subplots(1, len(rows) - 1)
    most = max(found.moved.max() for found in rows.values())
    for axis, (name, found) in zip(np.atleast_1d(axes), list(rows.items())[1:], strict=True):
        lost = found.classes != data.y
        axis.hist(
            [found.moved[~lost], found.moved[lost]],
            bins=np.linspace(0, most, 25),
            stacked=True,
            color=[LOW, HIGH],
            label=["still correct", "misclassified"],
        )
        axis.axvline(1, color="black", linestyle="--", linewidth=1)
        axis.set_title(f"{name.partition(',')[0]}: {100 * np.mean(~lost):.0f} % left", fontsize=9)
        axis.set_xlabel("move of an image, in eps", fontsize=8)
        axis.tick_params(labelsize=8)
    np.atleast_1d(axes)[0].set_ylabel("images", fontsize=8)
    np.atleast_1d(axes)[0].legend(fontsize=8)
    write_atomically(file, partial(figure.savefig, dpi=110, format="png", metadata={"Software": None}))


def draw_curve(curve: dict[str, list[float]], points: dict[str, float], eps: float, file: Path) -> None:
    """Draw the bracket over eps, and what attacks leave at one of them."""
    figure = empty_figure()
    axes, budgets = figure.subplots(), BUDGETS * eps
    low, high = (100 * np.array(curve[end]) for end in ("certified", "knapsack"))
    axes.fill_between(budgets, low, high, color=HIGH, alpha=0.15, linewidth=0, label="the truth lies here")
    axes.plot(budgets, high, color=HIGH, label="knapsack: an attack leaves this")
    axes.plot(budgets, low, color=LOW, label="certified: no attack leaves less")
    for marker, (name, accuracy) in zip("xo", points.items(), strict=True):
        axes.plot(eps, 100 * accuracy, marker, color="black", label=name)
    axes.set(xlabel="budget eps of (W_2, l_inf), in input units", ylabel="accuracy in %", ylim=(0, 100))
    axes.set(xlim=(0, budgets[-1]))
    axes.legend(fontsize=8)
    write_atomically(file, partial(figure.savefig, dpi=110, format="png", metadata={"Software": None}))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__), CERTIFIED)
    found.add_argument("--samples", type=int, default=100)
    found.add_argument("--figure", type=Path, help="file .png for the images")
    found.add_argument("--curve", type=Path, help="file .png for the bracket")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack, certify and draw."""
    args = parsed(parser(), arguments, samples=12)
    (candidate,) = candidates(args.name, args.data_dir, (NETWORK,))
    classifier = classifier_of(candidate.model, DATA[args.name].shape)
    data = Split(*(part[: args.samples] for part in load(args.name, args.data_dir, train=False)))
    clean = Found(data.x, classifier.predict(data.x).argmax(1), np.zeros(len(data.x)))
    attacks = attacks_of(classifier, EPS)
    found = {name: attacked(classifier, data, attack, EPS) for name, attack in attacks.items()}
    *_, knapsack = attacks.values()
    assert isinstance(knapsack, WassersteinKnapsack)
    radii = certified_radii(classifier, *data, largest=knapsack.distances_)
    curve = {
        name: [float(value) for value in knapsack_accuracy(lengths, BUDGETS * EPS)]
        for name, lengths in (("certified", radii), ("knapsack", knapsack.distances_))
    }
    table, rows = Table("attack", "accuracy in %", "D_2 / eps", "largest move / eps", "images moved in %"), []
    for name, made in {"clean": clean, **found}.items():
        row: dict[str, Any] = {
            "attack": name,
            "accuracy": float(np.mean(made.classes == data.y)),
            "spent": float(wasserstein_distance(data.x, made.x)) / EPS,
            "largest": float(made.moved.max()),
            "moved": float(np.mean(made.moved > 0)),
        }
        rows.append(row)
        table.row(
            name,
            f"{100 * row['accuracy']:.1f}",
            *(f"{row[key]:.2f}" for key in ("spent", "largest")),
            f"{100 * row['moved']:.0f}",
        )
    at = [float(knapsack_accuracy(lengths, EPS)) for lengths in (radii, knapsack.distances_)]
    print(f"[certified, knapsack] at {EPS:g}: [{100 * at[0]:.1f}, {100 * at[1]:.1f}] %")
    if args.figure is not None:
        names = CLASSES if args.name == "fashion-mnist" else [str(label) for label in range(10)]
        shown = chosen(found, data.y, clean.classes)
        draw_images(data, {"clean": clean, **found}, shown, names, args.figure)
    if args.curve is not None:
        points = {row["attack"]: row["accuracy"] for row in rows[1:3]}
        draw_curve(curve, points, EPS, args.curve)
    keep(args.json, {"eps": EPS, "rows": rows, "bracket": at, "curve": curve})


if __name__ == "__main__":
    main()
