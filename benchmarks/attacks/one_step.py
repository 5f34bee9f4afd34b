# SPDX-License-Identifier: MIT
"""Attacks of one step on a network that is not robust: pointwise FGM, W-FGSM by its formula and by least lengths.

    python -m benchmarks.attacks.one_step

The network is trained on scikit-learn's digits without any attack; (W_2, l_inf), true labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import FastGradientMethod
from art.estimators.classification import PyTorchClassifier

from art_wdro import WassersteinFGM, WassersteinKnapsack, adversarial_accuracy
from benchmarks._command import command, parsed
from benchmarks._files import keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks.networks._architectures import CLASSES, classifier_of, network_for
from benchmarks.networks._data import load

BUDGETS = (0.05, 0.1, 0.2)


def standard_network(epochs: int) -> PyTorchClassifier:
    """Return a network trained on clean digits."""
    torch.manual_seed(0)
    np.random.seed(0)
    classifier = classifier_of(network_for("digits"), DATA["digits"].shape, device_type="cpu", lr=0.05, momentum=0.9)
    x, y = load("digits", None, train=True)
    classifier.fit(x, np.eye(CLASSES, dtype=np.float32)[y], batch_size=64, nb_epochs=epochs)
    return classifier


def attacks_of(classifier: PyTorchClassifier, eps: float) -> dict[str, EvasionAttack]:
    """Return the attacks by name, the weakest threat first."""
    own: dict[str, Any] = {"eps": eps, "verbose": False}
    return {
        "ART's FGM, pointwise": FastGradientMethod(classifier, eps=eps),
        "W-FGSM": WassersteinFGM(classifier, **own),
        "W-FGSM, cross-entropy": WassersteinFGM(classifier, loss="ce", **own),
        "W-FGSM, least lengths": WassersteinFGM(classifier, lengths="least", **own),
        "knapsack": WassersteinKnapsack(classifier, **own),
    }


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("--samples", type=int, default=500)
    found.add_argument("--epochs", type=int, default=8)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the accuracy in percent that each attack leaves, for some budgets."""
    args = parsed(parser(), arguments, samples=30, epochs=2)
    classifier = standard_network(args.epochs)
    x, y = (part[: args.samples] for part in load("digits", None, train=False))
    rows = []
    table = Table("eps", *attacks_of(classifier, 0.1))
    for eps in BUDGETS:
        attacks = attacks_of(classifier, eps)
        left = {name: adversarial_accuracy(classifier, x, y, attack) for name, attack in attacks.items()}
        rows.append({"eps": eps, **left})
        table.row(f"{eps:g}", *(f"{100 * accuracy:.1f}" for accuracy in left.values()))
    keep(args.json, rows)


if __name__ == "__main__":
    main()
