# SPDX-License-Identifier: MIT
"""A cell of training.py: one method and one seed, trained, evaluated, and kept."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.data_generators import DataGenerator
from art.estimators.classification import PyTorchClassifier
from torch.optim.lr_scheduler import CosineAnnealingLR

from art_wdro import WassersteinKnapsack, perturb_weights, shift_and_flip
from art_wdro._reproduction.protocol import paper_attack
from art_wdro._solvers.boundary import boundary
from art_wdro._sources.data import Split, load_data
from art_wdro._storage.files import write_atomically
from art_wdro.evaluation._accuracy import adversarial_accuracy
from art_wdro.trainers._base import FineTuner
from art_wdro.trainers._dual import HEAVIEST
from art_wdro.trainers._margin import REACH
from benchmarks._cells import file_of, run_cell
from benchmarks._counting import Counter
from benchmarks._settings import DATA
from benchmarks._trainings import attempted, figures_of, show, worded
from benchmarks.margin._settings import MARGIN, MAX_ITER, METHODS, RATES, SETTINGS, Setting
from benchmarks.networks._architectures import classifier_of
from benchmarks.networks._data import load
from benchmarks.networks.pretrained import pretrained, untrained

AT_ONCE = 250
"""Test images in one pass of the evaluation."""


class Stream(DataGenerator):  # type: ignore[misc]
    """Images in a fixed order, each of them once: every epoch has some of its own."""

    def __init__(self, data: Split, size: int, batch_size: int) -> None:
        """Cut minibatches, none of which spans two epochs.

        :param data: The images of all epochs.
        :param size: Images of an epoch.
        :param batch_size: Images in a minibatch.
        """
        super().__init__(size, batch_size)
        starts = [first + own for first in range(0, len(data.x), size) for own in range(0, size, batch_size)]
        self._parts = zip(*(np.split(part, starts[1:]) for part in data), strict=True)

    def get_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the next minibatch."""
        x, y = next(self._parts)
        return x, y


def classifier_for(name: str, rate: float) -> PyTorchClassifier:
    """Return the network that all methods start from."""
    setting = SETTINGS[name]
    model = (untrained(setting.network) if setting.scratch else pretrained(setting.network)).eval()
    return classifier_of(model, DATA[setting.network].shape, lr=rate, momentum=setting.momentum)


def restored(name: str, file: Path) -> PyTorchClassifier:
    """Return the classifier of a cell that was run, which is kept in a file."""
    classifier = classifier_for(name, 0.0)
    classifier.model.load_state_dict(torch.load(file.with_suffix(".pt"), weights_only=True))
    return classifier


def trained(name: str, train: Split, cell: dict[str, Any], file: Path) -> tuple[PyTorchClassifier, dict[str, Any]]:
    """Train by one method, and return the classifier after the last epoch and what the training took."""
    setting, seed = SETTINGS[name], cell["seed"]
    cls, options = called_with(cell["method"])
    if "longer" in options:
        options["eps_step"] = options.pop("longer") * setting.eps / options["max_iter"]
    augment = shift_and_flip(padding=4) if options.pop("augmented", setting.fresh) else None
    classifier = classifier_for(name, RATES[cell["rate"]])
    torch.manual_seed(seed)
    perturb_weights(classifier, seed=seed)
    counter = Counter(classifier.model)
    options |= {"eps": setting.eps, "seed": seed, "precision": setting.precision, "verbose": False}
    trainer = cls(classifier, **options)
    order = np.random.default_rng(seed).permutation(len(train.x))
    scheduler = CosineAnnealingLR(classifier.optimizer, setting.epochs) if cell["rate"].startswith("cosine") else None
    shared: dict[str, Any] = {"nb_epochs": setting.epochs, "scheduler": scheduler, "augment": augment}
    if setting.fresh:
        stream = Stream(train.choose(order[: setting.images * setting.epochs]), setting.images, setting.batch)
        trainer.fit_generator(stream, **shared)
    else:
        rows, checkpoint = order[: setting.images], file.with_suffix(".ckpt")
        trainer.fit(*train.choose(rows), batch_size=setting.batch, checkpoint=checkpoint, **shared)
    seconds = sum(record["seconds"] for record in trainer.history)
    # what a checkpoint spared is not counted, so that a resumed cell shows fewer
    figures = {"gradients": counter.gradients / setting.images / setting.epochs, "seconds": seconds}
    return classifier, {**figures, "history": trainer.history}


def distances(classifier: PyTorchClassifier, data: Split, setting: Setting) -> np.ndarray:
    """Return the least l_inf distances that either of two searches finds, the second with several reaches."""
    eps, (longest, others, _) = setting.eps, setting.gradients
    knapsack = WassersteinKnapsack(classifier, eps=eps, max_iter=longest, batch_size=AT_ONCE, verbose=False)
    knapsack.generate(*data)
    found = [searched(classifier, data, reach * eps, others) for reach in setting.reaches]
    least: np.ndarray = np.minimum.reduce([knapsack.distances_, *found])
    return least


def searched(classifier: PyTorchClassifier, data: Split, reach: float, max_iter: int) -> np.ndarray:
    """Return the least l_inf distances that the training's search finds within reach."""
    assert not classifier.model.training
    box = torch.tensor(0.0), torch.tensor(1.0)
    batches = zip(*(torch.split(torch.from_numpy(part), AT_ONCE) for part in data), strict=True)
    found = [
        boundary(classifier.model, x, y, math.inf, reach=reach, max_iter=max_iter, box=box).distances
        for x, y in batches
    ]
    return torch.cat(found).numpy()


def evaluated(classifier: PyTorchClassifier, test: Split, setting: Setting) -> dict[str, Any]:
    """Return accuracies: on few test images by strong attacks, on more of them by a short search."""
    few, more = (test.choose(np.arange(count)) for count in (setting.test_images, setting.more_images))
    validation = test.choose(np.arange(setting.more_images, len(test.x)))
    found = distances(classifier, few, setting)
    return {
        **figures_of(found, setting.eps),
        "wpgd": adversarial_accuracy(classifier, *few, paper_attack(classifier, 2.0, setting.eps)),
        "more": figures_of(searched(classifier, more, 2.5 * setting.eps, 15), setting.eps),
        "validation": figures_of(
            searched(classifier, validation, 2.5 * setting.eps, setting.gradients[2]), setting.eps
        ),
        "distances": found.tolist(),
    }


def data_of(setting: Setting, data_dir: Path) -> tuple[Split, Split]:
    """Return the training images, and the test images in their random order, those for validation last."""
    if setting.data in DATA:
        train, test = (load(setting.data, None, train) for train in (True, False))
    else:
        sources = [str(data_dir / s) if s.endswith(".npz") else s for s in (setting.data, setting.test_data)]
        train, test = (load_data(source, number == 0, data_dir, False) for number, source in enumerate(sources))
    wanted = setting.more_images + setting.validation_images
    if len(test.x) < wanted:
        raise ValueError(f"{setting.test_data} has {len(test.x)} images; needed are {wanted}")
    return train, test.choose(np.random.default_rng(0).permutation(len(test.x))[:wanted])


def run_method(name: str, cell: dict[str, Any], folder: Path, data: tuple[Split, Split]) -> dict[str, Any]:
    """Run a cell, or read what it gave."""
    setting, file = SETTINGS[name], file_of(folder / name, cell)

    def work() -> dict[str, Any]:
        found, seconds = attempted(lambda: worked(name, cell, file, data))
        show(cell, found, seconds)
        return found

    asked = {"cell": cell, "trainer": trainer_of(cell), "setting": setting._asdict()}
    found = run_cell(file, asked, work, indifferent=("methods", "rates"))
    file.with_suffix(".ckpt").unlink(missing_ok=True)
    return found


def worked(name: str, cell: dict[str, Any], file: Path, data: tuple[Split, Split]) -> dict[str, Any]:
    """Train if the cell is no start, keep the weights, and evaluate."""
    took: dict[str, Any] = {}
    if cell["method"] == "start":
        classifier = classifier_for(name, 0.0)
    else:
        classifier, took = trained(name, data[0], cell, file)
    write_atomically(file.with_suffix(".pt"), partial(torch.save, classifier.model.state_dict()))
    return {**took, **evaluated(classifier, data[1], SETTINGS[name])}


def trainer_of(cell: dict[str, Any]) -> dict[str, Any]:
    """Return what a cell's training is called with, and the constants of the margin trainer."""
    if cell["method"] == "start":
        return {}
    cls, options = called_with(cell["method"])
    constants = {"heaviest": HEAVIEST, "reach": REACH} if issubclass(cls, MARGIN) else {}
    return worded({**options, "rate": RATES[cell["rate"]], **constants})


def called_with(method: str) -> tuple[type[FineTuner], dict[str, Any]]:
    """Return the class of a method and all its options."""
    cls, options = METHODS[method]
    return cls, {"max_iter": MAX_ITER, **options}
