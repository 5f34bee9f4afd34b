# SPDX-License-Identifier: MIT
"""A cell of training.py: one method, one value of a knob, one seed, trained, evaluated, and kept."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch.optim.lr_scheduler import CosineAnnealingLR

from art_wdro import WassersteinKnapsack, shift_and_flip
from art_wdro._reproduction.protocol import paper_attack
from art_wdro._sources.data import Split
from art_wdro._sources.networks import load_network
from art_wdro._storage.files import write_atomically
from art_wdro.evaluation._accuracy import adversarial_accuracy
from benchmarks._cells import file_of, run_cell
from benchmarks._counting import Counter
from benchmarks._settings import DATA, QUICK
from benchmarks._trainings import attempted, figures_of, show, worded
from benchmarks.frontier._settings import START, Setting, called_with, point_of
from benchmarks.networks._architectures import classifier_of
from benchmarks.networks._data import load

LAST, AVERAGED = "last", "average"
"""The two sets of weights of a training: the network's own, and their moving average."""


class Bench(NamedTuple):
    """What the cells of one run share.

    :param setting: The setting.
    :param network: The network they start from, as `load_network` takes it.
    :param device: "cpu" or "gpu".
    :param folder: Where cells are kept.
    :param train: Training images.
    :param test: Test images.
    """

    setting: Setting
    network: str
    device: str
    folder: Path
    train: Split
    test: Split

    def classifier(self) -> PyTorchClassifier:
        """Return the network that all cells start from, with its optimiser."""
        own = self.setting
        optimiser = {"lr": own.rate, "momentum": own.momentum, "weight_decay": own.weight_decay}
        network = load_network(self.network, device="cpu" if self.device == "cpu" else None)
        return classifier_of(network, DATA[own.data].shape, device_type=self.device, **optimiser)


def bench_of(setting: Setting, network: str | None, device: str, folder: Path, data_dir: Path | None) -> Bench:
    """Load the images of a setting, and name the network: unless it is given, that of networks/pretrained.py."""
    train, test = (load(setting.data, data_dir, train) for train in (True, False))
    names = {QUICK: "quick"}
    kept = f"benchmarks.networks.pretrained:{names.get(setting.data, setting.data.replace('-', '_'))}"
    few = test.choose(np.arange(setting.test_images))
    return Bench(setting, network or kept, device, folder, train, few)


def run_point(bench: Bench, cell: dict[str, Any]) -> dict[str, Any]:
    """Run a cell, or read what it gave."""
    file = file_of(bench.folder, cell)

    def work() -> dict[str, Any]:
        found, seconds = attempted(lambda: worked(bench, cell, file))
        for weights, point in found.get("points", {}).items():
            show({**cell, "weights": weights}, point, seconds)
        return found

    return run_cell(file, {"cell": cell, "trainer": described(cell, bench), "setting": bench.setting._asdict()}, work)


def described(cell: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Return what a cell's trainer is called with, as JSON has it."""
    if cell["method"] == START:
        return {}
    cls, options = called_with(cell, bench.setting.eps)
    return {"class": cls.__name__, **worded(options)}


def worked(bench: Bench, cell: dict[str, Any], file: Path) -> dict[str, Any]:
    """Train if the cell is no start, keep both sets of weights, and evaluate them."""
    classifier = bench.classifier()
    if cell["method"] == START:
        return {"points": {LAST: evaluated(classifier, bench)}}
    took, states = trained(classifier, bench, cell)
    write_atomically(file.with_suffix(".pt"), partial(torch.save, states))
    points = {}
    for name, state in states.items():
        classifier.model.load_state_dict(state)
        points[name] = evaluated(classifier, bench)
    return {**took, "points": points}


def trained(
    classifier: PyTorchClassifier, bench: Bench, cell: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Train by one method, and return what it took, and the weights after the last epoch and their average."""
    setting, seed = bench.setting, cell["seed"]
    cls, options = called_with(cell, setting.eps)
    torch.manual_seed(seed)
    epochs = setting.epochs * options.pop("epochs", 1)
    options |= {"seed": seed, "precision": setting.precision, "ema": setting.ema, "verbose": False}
    trainer = cls(classifier, **options)
    rows = np.random.default_rng(0).permutation(len(bench.train.x))[: setting.images]
    x, y = (torch.from_numpy(part).to(classifier.device) for part in bench.train.choose(rows))
    steps = epochs * math.ceil(len(rows) / setting.batch)
    counter = Counter(classifier.model)
    trainer.fit(
        x,
        y,
        batch_size=setting.batch,
        nb_epochs=epochs,
        scheduler=CosineAnnealingLR(classifier.optimizer, steps),
        scheduler_step="batch",
        augment=None if setting.padding is None else shift_and_flip(setting.padding),
    )
    took = {
        "gradients": counter.gradients / len(rows) / epochs,
        "training_seconds": sum(record["seconds"] for record in trainer.history),
        "history": trainer.history,
    }
    average = {name: value.to("cpu", copy=True) for name, value in classifier.model.state_dict().items()}
    assert trainer.final_state is not None
    return took, {LAST: trainer.final_state, AVERAGED: average}


def evaluated(classifier: PyTorchClassifier, bench: Bench) -> dict[str, Any]:
    """Return accuracies on the test images: clean, and by least distances and W-PGD-20; and these distances."""
    setting = bench.setting
    search = WassersteinKnapsack(
        classifier, eps=setting.eps, max_iter=setting.gradients, batch_size=setting.at_once, verbose=False
    )
    search.generate(*bench.test)
    distances = np.array([float(f"{distance:.4g}") for distance in search.distances_])
    return {
        **figures_of(distances, setting.eps),
        "wpgd": adversarial_accuracy(classifier, *bench.test, paper_attack(classifier, 2.0, setting.eps)),
        "distances": distances.tolist(),
    }


def restored(bench: Bench, cell: dict[str, Any], weights: str) -> PyTorchClassifier:
    """Return the classifier of a cell that was run, with one set of its weights."""
    classifier = bench.classifier()
    if cell["method"] != START:
        states = torch.load(file_of(bench.folder, cell).with_suffix(".pt"), weights_only=True)
        classifier.model.load_state_dict(states[weights])
    return classifier


def shown_name(cell: dict[str, Any], weights: str) -> str:
    """Return how tables call a point."""
    return point_of(cell) if weights == LAST else f"{point_of(cell)}, averaged"
