# SPDX-License-Identifier: MIT
"""A cell of margin/training.py: one method and one seed, trained, evaluated, and kept."""

from __future__ import annotations

import json
import math
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from art_wdro import WassersteinKnapsack, knapsack_accuracy, perturb_weights
from art_wdro._reproduction.protocol import paper_figures
from art_wdro._solvers.boundary import boundary
from art_wdro._sources.data import Split, load_data
from art_wdro._storage.files import write_atomically, write_text
from art_wdro.trainers._dual import HEAVIEST
from art_wdro.trainers._margin import REACH
from benchmarks.margin._remedies import Stream
from benchmarks.margin._settings import MARGIN, MAX_ITER, METHODS, RATES, SETTINGS, Setting
from benchmarks.networks.pretrained import pretrained, untrained
from benchmarks.paper.summary import SHARES

GRID = np.linspace(0, 1, 41)
"""Budgets of the area, in eps."""


class Counter:
    """Counts the samples whose gradient an attack takes, in the backward passes of a network in eval mode."""

    def __init__(self, model: nn.Module) -> None:
        self.gradients = 0
        model.register_forward_hook(self._watch)

    def _watch(self, model: nn.Module, _: object, logits: Tensor) -> None:
        if logits.requires_grad and not model.training:
            logits.register_hook(self._count)

    def _count(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)


def classifier_for(name: str, rate: float) -> PyTorchClassifier:
    """Return the network that all methods start from."""
    setting = SETTINGS[name]
    model = (untrained(setting.network) if setting.scratch else pretrained(setting.network)).eval()
    return PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=rate, momentum=setting.momentum),
        input_shape=(3, 32, 32) if setting.network == "cifar10" else (1, 28, 28),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )


def trained(name: str, train: Split, cell: dict[str, Any], file: Path) -> tuple[PyTorchClassifier, dict[str, Any]]:
    """Train by one method, and return the classifier after the last epoch and what the training took."""
    setting, seed = SETTINGS[name], cell["seed"]
    cls, options = called_with(cell["method"])
    if "longer" in options:
        options["eps_step"] = options.pop("longer") * setting.eps / options["max_iter"]
    classifier = classifier_for(name, RATES[cell["rate"]])
    torch.manual_seed(seed)
    perturb_weights(classifier, seed=seed)
    counter = Counter(classifier.model)
    trainer = cls(
        classifier,
        eps=setting.eps,
        seed=seed,
        precision=setting.precision,
        verbose=False,
        **options,
    )
    order = np.random.default_rng(seed).permutation(len(train.x))
    scheduler = CosineAnnealingLR(classifier.optimizer, setting.epochs) if cell["rate"].startswith("cosine") else None
    shared = {"nb_epochs": setting.epochs, "scheduler": scheduler}
    if setting.fresh:
        stream = Stream(*train.choose(order[: setting.images * setting.epochs]), setting.images, setting.batch)
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
    knapsack = WassersteinKnapsack(classifier, eps=eps, max_iter=longest, batch_size=250, verbose=False)
    knapsack.generate(*data)
    found = [searched(classifier, data, reach * eps, others) for reach in setting.reaches]
    return np.minimum.reduce([knapsack.distances_, *found])


def searched(classifier: PyTorchClassifier, data: Split, reach: float, max_iter: int) -> np.ndarray:
    """Return the least l_inf distances that the training's search finds within reach."""
    assert not classifier.model.training
    box = torch.tensor(0.0), torch.tensor(1.0)
    batches = zip(torch.from_numpy(data.x).split(250), torch.from_numpy(data.y).split(250), strict=True)
    setting = {"reach": reach, "max_iter": max_iter, "box": box}
    return torch.cat([boundary(classifier.model, *batch, math.inf, **setting).distances for batch in batches]).numpy()


def figures(found: np.ndarray, eps: float) -> dict[str, Any]:
    """Return what least distances say: clean and pointwise accuracy, and the knapsack's under W_2."""
    return {
        "clean": float((found > 0).mean()),
        "winf": float((found > eps).mean()),
        "curve": knapsack_accuracy(found, np.array(SHARES) * eps).tolist(),
        "area": float(np.trapezoid(knapsack_accuracy(found, GRID * eps), GRID)),
    }


def evaluated(classifier: PyTorchClassifier, test: Split, setting: Setting) -> dict[str, Any]:
    """Return accuracies: on few test images by strong attacks, on more of them by a short search."""
    few, more = (test.choose(np.arange(count)) for count in (setting.test_images, setting.more_images))
    validation = test.choose(np.arange(setting.more_images, len(test.x)))
    found = distances(classifier, few, setting)
    return {
        **figures(found, setting.eps),
        "wpgd": paper_figures(classifier, few, setting.eps)["wp"],
        "more": figures(searched(classifier, more, 2.5 * setting.eps, 15), setting.eps),
        "validation": figures(searched(classifier, validation, 2.5 * setting.eps, setting.gradients[2]), setting.eps),
        "distances": found.tolist(),
    }


def data_of(setting: Setting, data_dir: str) -> tuple[Split, Split]:
    """Return the training images, and the test images in their random order, those for validation last."""
    sources = [str(Path(data_dir) / s) if s.endswith(".npz") else s for s in (setting.data, setting.test_data)]
    train, test = (load_data(source, number == 0, data_dir, False) for number, source in enumerate(sources))
    wanted = setting.more_images + setting.validation_images
    if len(test.x) < wanted:
        raise ValueError(f"{setting.test_data} has {len(test.x)} images; needed are {wanted}")
    return train, test.choose(np.random.default_rng(0).permutation(len(test.x))[:wanted])


def run_cell(name: str, cell: dict[str, Any], folder: Path, data: tuple[Split, Split]) -> dict[str, Any]:
    """Run a cell, or read what it gave."""
    setting, file = SETTINGS[name], file_of(folder / name, cell)
    if not file.exists():
        started = time.perf_counter()
        try:
            if cell["method"] == "start":
                classifier, took = classifier_for(name, 0.0), {}
            else:
                classifier, took = trained(name, data[0], cell, file)
            write_atomically(file.with_suffix(".pt"), partial(torch.save, classifier.model.state_dict()))
            gave = evaluated(classifier, data[1], setting)
        except FloatingPointError as error:
            took, gave = {}, {"failed": str(error)}
        asked = {"cell": cell, "trainer": trainer_of(cell), "setting": setting._asdict()}
        write_text(file, json.dumps({**asked, **took, **gave}, indent=1))
        file.with_suffix(".ckpt").unlink(missing_ok=True)
        shown = {key: round(100 * gave[key], 2) for key in ("clean", "winf", "area", "wpgd") if key in gave}
        print(json.dumps({**cell, **shown, "seconds": round(time.perf_counter() - started)}), flush=True)
    found = json.loads(file.read_text(encoding="utf-8"))
    same_setting = measured(found["setting"]) == measured(json.loads(json.dumps(setting._asdict())))
    if not same_setting or found["trainer"] != trainer_of(cell):
        raise ValueError(f"{file} was made with another setting; move it away")
    return found


def trainer_of(cell: dict[str, Any]) -> dict[str, Any]:
    """Return what a cell's training is called with, and the constants of the margin trainer."""
    if cell["method"] == "start":
        return {}
    cls, options = called_with(cell["method"])
    constants = {"heaviest": HEAVIEST, "reach": REACH} if issubclass(cls, MARGIN) else {}
    called = {**options, "rate": RATES[cell["rate"]], **constants}
    return {name: "inf" if value == math.inf else value for name, value in called.items()}  # JSON has no inf


def called_with(method: str) -> tuple[type, dict[str, Any]]:
    """Return the class of a method and all its options."""
    cls, options = METHODS[method]
    return cls, {"max_iter": MAX_ITER, **options}


def measured(setting: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a setting that figures depend on."""
    return {key: value for key, value in setting.items() if key not in ("methods", "rates")}


def file_of(folder: Path, cell: dict[str, Any]) -> Path:
    """Return where a cell is kept."""
    words = [re.sub(r"[, ]+", "-", str(word)) for word in cell.values() if word is not None]
    return folder / f"{'-'.join(words)}.json"


def read(folder: Path) -> list[dict[str, Any]]:
    """Return all cells that are there."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
