# SPDX-License-Identifier: MIT
"""Robust networks to measure on: trained once by trainers of ART, then kept in runs/networks.

    python -m benchmarks.networks.robust digits
    python -m benchmarks.networks.robust fashion-mnist --data-dir DIR
    python -m benchmarks.networks.robust cifar10 --data-dir DIR

DIR holds train.npz and test.npz with x (N, H, W[, C]) in bytes and y (N,), or the gzipped files of MNIST's format,
as the Debian package dataset-fashion-mnist brings them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerFBFPyTorch, AdversarialTrainerMadryPGD
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro import adversarial_accuracy
from art_wdro._sources.data import Split
from benchmarks._command import command, parsed, with_data
from benchmarks._files import keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks.networks._architectures import CLASSES, classifier_of, network_for, trained
from benchmarks.networks._data import load


def robust_network(name: str, directory: Path | None) -> PyTorchClassifier:
    """Return the trained classifier of a data set: from disk, or trained now and kept."""
    model = network_for(name)
    optimiser = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    classifier = classifier_of(model, DATA[name].shape, device_type="gpu", **optimiser)
    trained(model, name, f"{name}.pt", lambda: train(classifier, name, directory))
    return classifier


def cifar10() -> nn.Module:
    """Return the trained network for CIFAR-10, for programs that take a module and a function."""
    network: nn.Module = robust_network("cifar10", None).model
    return network


def train(classifier: PyTorchClassifier, name: str, directory: Path | None) -> None:
    """Train by ART's single-step trainer, or by its trainer of Madry et al."""
    eps, setting = DATA[name].eps, DATA[name].robust
    data = Split(*(part[: setting.samples] for part in load(name, directory, train=True)))
    np.random.seed(0)
    y = np.eye(CLASSES, dtype=np.float32)[data.y]
    if setting.pgd_steps is None:
        AdversarialTrainerFBFPyTorch(classifier, eps=eps).fit(data.x, y, batch_size=128, nb_epochs=setting.epochs)
        return
    AdversarialTrainerMadryPGD(
        classifier,
        nb_epochs=setting.epochs,
        batch_size=64,
        eps=eps,
        eps_step=eps / 4,
        max_iter=setting.pgd_steps,
        num_random_init=1,
    ).fit(data.x, y)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    return with_data(command(__doc__))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a network if it is not there, and say how robust it is."""
    args = parsed(parser(), arguments)
    classifier = robust_network(args.name, args.data_dir)
    test = Split(*(part[:1000] for part in load(args.name, args.data_dir, train=False)))
    eps = DATA[args.name].eps
    pgd = ProjectedGradientDescent(classifier, eps=eps, eps_step=eps / 8, max_iter=20, batch_size=250, verbose=False)
    row = {
        "network": args.name,
        "parameters": sum(p.numel() for p in classifier.model.parameters()),
        "clean": adversarial_accuracy(classifier, *test, eps=0),
        "eps": eps,
        "pgd": adversarial_accuracy(classifier, *test, pgd),
    }
    table = Table("network", "parameters", "clean in %", "PGD-20 in %", "eps")
    table.row(args.name, row["parameters"], f"{100 * row['clean']:.1f}", f"{100 * row['pgd']:.1f}", f"{eps:.4f}")
    keep(args.json, [row])


if __name__ == "__main__":
    main()
