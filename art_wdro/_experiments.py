# SPDX-License-Identifier: MIT
"""Experiments of the training paper in cells: one network, one configuration, one seed; each is kept on disk.

Source: Bai, He, Jiang, Obloj, Wasserstein distributional adversarial training for deep neural networks, 2025,
arXiv:2502.09352, sections 6 and 7.
"""

from __future__ import annotations

import json
import math
import platform
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_wdro._attacks import WassersteinPGD
from art_wdro._data import Split, load_data
from art_wdro._evaluation import evaluate
from art_wdro._files import write_atomically, write_text
from art_wdro._metrics import adversarial_accuracy, sensitivity
from art_wdro._models import load_classifier
from art_wdro._starts import perturb_weights, reinitialise_last_layer
from art_wdro._trainer import DistributionalTRADESTrainer
from art_wdro._training import batch_budget

Result = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """What the cells of one run share; the defaults are the paper's.

    :param data: Training images, as for `load_data`.
    :param test_data: Test images where `data` is a file or folder; None holds out a sixth of it.
    :param train_samples: Images to train on, after a split by seed.
    :param validation_samples: Further training images, to select the epoch on.
    :param test_samples: Test images to use; None takes all.
    :param strong_samples: Test images for the strongest W-PGD, the knapsack and AutoAttack; 0 leaves them out.
    :param autoattack: Whether AutoAttack is among them.
    :param trainer: Further parameters of :class:`DistributionalTRADESTrainer`, other than the paper's.
    """

    data: str = "torchvision:CIFAR10"
    test_data: str | None = None
    train_samples: int = 40000
    validation_samples: int = 10000
    test_samples: int | None = None
    strong_samples: int = 0
    autoattack: bool = True
    eps: float = 8 / 255
    beta: float = 6.0
    max_iter: int = 20
    epochs: int = 20
    batch_size: int = 512
    upsilon: str = "resample"
    noise: float = 0.01
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One experiment.

    :param kind: "before": the network as it comes; "budget": its minibatches attacked with their own budgets;
        "upsilon": Upsilon from samples of the training set; "after": the network fine-tuned; "curves": the same, with
        figures after every epoch.
    :param network: What `load_classifier` takes, or a name in RobustBench's zoo.
    :param seed: Seed of the split, the start and the training.
    :param start: "whole": all weights perturbed; "last-layer": the last layer drawn anew and trained alone; "none".
    :param tau: Learning rate.
    :param eta: Update rate of Upsilon.
    """

    kind: str
    network: str
    seed: int = 0
    start: str | None = None
    tau: float | None = None
    eta: float | None = None

    @property
    def name(self) -> str:
        """Name of the cell's files."""
        parts = [self.kind, self.network, self.start, self.tau and f"tau{self.tau:g}", self.eta and f"eta{self.eta:g}"]
        return re.sub(r"[^\w.]+", "-", "-".join([str(part) for part in parts if part] + [f"seed{self.seed}"]))


class Laboratory:
    """Runs cells, or finds what they gave in its folder."""

    def __init__(
        self,
        protocol: Protocol,
        folder: Path,
        *,
        data_dir: str = "data",
        download: bool = False,
        model_dir: str = "models",
        device: str | None = None,
        keep_weights: bool = False,
        verbose: bool = True,
    ) -> None:
        """Set up the experiments of one protocol.

        :param protocol: What all cells share.
        :param folder: Where each cell's figures are kept, with the checkpoint of a training that is under way.
        :param data_dir: Where torchvision finds its data sets.
        :param download: Let torchvision fetch the data set.
        :param model_dir: Where RobustBench keeps its checkpoints.
        :param device: A torch device; None takes CUDA where it is.
        :param keep_weights: Whether the fine-tuned networks are kept too.
        :param verbose: Show the progress of each training.
        """
        self._protocol, self._folder = protocol, folder
        self._data_dir, self._download, self._model_dir, self._device = data_dir, download, model_dir, device
        self._keep_weights, self._verbose = keep_weights, verbose

    def find(self, cell: Cell) -> Result | None:
        """Return what a cell gave, or None if it has not been run.

        :raises ValueError: If it was run under another protocol.
        """
        file = self._folder / f"{cell.name}.json"
        if not file.is_file():
            return None
        try:
            kept: Result = json.loads(file.read_text(encoding="utf-8"))
            was = kept["protocol"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{file}' holds no figures of a cell; delete it to run the cell again") from error
        now = asdict(self._protocol)
        changed = sorted(key for key in {*was, *now} if was.get(key) != now.get(key))
        if changed:
            key = changed[0]
            raise ValueError(
                f"'{file}' was made with {key} = {was.get(key)!r}, and now it is {now.get(key)!r}; give another folder"
            )
        return kept

    def run(self, cell: Cell) -> Result:
        """Return what a cell gives; run it if need be."""
        kept = self.find(cell)
        if kept is not None:
            return kept
        started = time.perf_counter()
        runs: dict[str, Callable[[Cell], Result]] = {
            "before": self._before,
            "budget": self._budget,
            "upsilon": self._upsilon,
            "after": self._after,
            "curves": self._curves,
        }
        found = runs[cell.kind](cell)
        kept = {
            "cell": asdict(cell),
            "protocol": asdict(self._protocol),
            "seconds": time.perf_counter() - started,
            "machine": _machine(self._device),
            **found,
        }
        write_text(self._folder / f"{cell.name}.json", json.dumps(kept, indent=1))
        self._checkpoint(cell).unlink(missing_ok=True)
        return kept

    def _before(self, cell: Cell) -> Result:
        classifier = self._load(cell)
        return {"test": self._figures(classifier, self._test), "strong": self._strong_figures(classifier)}

    def _budget(self, cell: Cell) -> Result:
        """Attack the training images in minibatches, each with its share of the budget."""
        classifier, setting = self._load(cell), self._protocol
        train, _ = self._train(cell.seed)
        size = max(1, len(train.x) // 10)
        rows = np.random.default_rng(cell.seed).permutation(len(train.x))
        whole = torch.tensor(sensitivity(classifier, *train.choose(rows[:size])))
        correct = 0.0
        for start in range(0, len(rows), setting.batch_size):
            batch = train.choose(rows[start : start + setting.batch_size])
            own = torch.tensor(sensitivity(classifier, *batch))
            eps = float(batch_budget(setting.eps, own, whole, 2.0))
            attack = self._attack(classifier, "redlr", 2.0, eps)
            correct += len(batch.x) * adversarial_accuracy(classifier, *batch, attack)
        figures = self._figures(classifier, train)
        return {"train": {"budget": correct / len(rows), **figures}}

    def _upsilon(self, cell: Cell) -> Result:
        """Estimate Upsilon from ten samples of a tenth of the training set, and from the whole."""
        classifier = self._load(cell)
        train, _ = self._train(cell.seed)
        generator, size = np.random.default_rng(cell.seed), max(1, len(train.x) // 10)
        drawn = [generator.permutation(len(train.x))[:size] for _ in range(10)]
        samples = [sensitivity(classifier, *train.choose(rows)) for rows in drawn]
        return {"samples": samples, "reference": sensitivity(classifier, *train)}

    def _after(self, cell: Cell) -> Result:
        classifier, trainer, fit = self._prepare(cell)
        fit(self._protocol.epochs)
        return self._finish(cell, classifier, trainer)

    def _curves(self, cell: Cell) -> Result:
        """Fine-tune epoch by epoch, with figures of each epoch's network on the test set."""
        classifier, trainer, fit = self._prepare(cell)
        model, file = classifier.model, self._folder / f"{cell.name}.epochs.json"
        epochs: list[Result] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        train, _ = self._train(cell.seed)
        for number in range(len(epochs) + 1, self._protocol.epochs + 1):
            fit(number)
            best = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(trainer.final_state)
            figures = self._figures(classifier, self._test)
            figures["upsilon"] = sensitivity(classifier, *self._test)
            epochs.append({"test": figures, "train_upsilon": sensitivity(classifier, *train)})
            model.load_state_dict(best)
            write_text(file, json.dumps(epochs))
        if not trainer.history:
            fit(self._protocol.epochs)
        found = self._finish(cell, classifier, trainer)
        file.unlink(missing_ok=True)
        return {**found, "epochs": epochs}

    def _prepare(self, cell: Cell) -> tuple[PyTorchClassifier, DistributionalTRADESTrainer, Callable[[int], None]]:
        """Return a classifier at its start, its trainer, and the function that trains up to an epoch."""
        setting, classifier = self._protocol, self._load(cell)
        torch.manual_seed(cell.seed)
        if cell.start == "whole":
            perturb_weights(classifier, setting.noise, cell.seed)
        if cell.start == "last-layer":
            reinitialise_last_layer(classifier, cell.seed)
        keywords = {
            "beta": setting.beta,
            "eps": setting.eps,
            "max_iter": setting.max_iter,
            "upsilon": setting.upsilon,
            "eta": cell.eta,
            "seed": cell.seed,
            "verbose": self._verbose,
            **setting.trainer,
        }
        trainer = self._trainer(classifier, keywords)
        train, validation = self._train(cell.seed)

        def fit(epochs: int) -> None:
            checkpoint = self._checkpoint(cell)
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            trainer.fit(
                *train,
                validation_data=validation,
                batch_size=setting.batch_size,
                nb_epochs=epochs,
                checkpoint=checkpoint,
            )

        return classifier, trainer, fit

    def _trainer(self, classifier: PyTorchClassifier, keywords: dict[str, Any]) -> DistributionalTRADESTrainer:
        return DistributionalTRADESTrainer(classifier, **keywords)

    def _finish(self, cell: Cell, classifier: PyTorchClassifier, trainer: DistributionalTRADESTrainer) -> Result:
        if self._keep_weights:
            state = classifier.model.state_dict()
            write_atomically(self._folder / f"{cell.name}.pt", lambda path: torch.save(state, path))
        return {
            "test": self._figures(classifier, self._test),
            "strong": self._strong_figures(classifier),
            "best_epoch": trainer.best_epoch,
            "history": trainer.history,
        }

    def _figures(self, classifier: PyTorchClassifier, data: Split) -> dict[str, float]:
        """Measure accuracy as the paper does: clean, pointwise with the cross-entropy, and W_2 with ReDLR."""
        pointwise = self._attack(classifier, "ce", math.inf, self._protocol.eps)
        distributional = self._attack(classifier, "redlr", 2.0, self._protocol.eps)
        return {
            "clean": adversarial_accuracy(classifier, *data, eps=0.0),
            "winf": adversarial_accuracy(classifier, *data, pointwise),
            "wp": adversarial_accuracy(classifier, *data, distributional),
        }

    def _attack(self, classifier: PyTorchClassifier, loss: str, p: float, eps: float) -> WassersteinPGD:
        step = eps / 20 if eps > 0 else None
        return WassersteinPGD(
            classifier, p, eps=eps, eps_step=step, max_iter=20, loss=loss, batch_size=250, verbose=False
        )

    def _strong_figures(self, classifier: PyTorchClassifier) -> Result | None:
        """Measure accuracy under attacks that the training did not use."""
        count = self._protocol.strong_samples
        if count == 0:
            return None
        x, y = self._test.x[:count], self._test.y[:count]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the report holds them
            report = evaluate(
                classifier,
                x,
                y,
                eps=self._protocol.eps,
                batch_size=250,
                autoattack=self._protocol.autoattack,
                verbose=False,
            )
        return report.to_dict()

    def _load(self, cell: Cell) -> PyTorchClassifier:
        source = cell.network if ":" in cell.network or "." in cell.network else f"robustbench:{cell.network}"
        return load_classifier(
            source,
            self._test.x.shape[1:],
            device=self._device,
            learning_rate=cell.tau or 0.01,
            model_dir=self._model_dir,
        )

    def _checkpoint(self, cell: Cell) -> Path:
        return self._folder / f"{cell.name}.ckpt"

    @cached_property
    def _parts(self) -> tuple[Split, Split]:
        setting = self._protocol
        whole = load_data(setting.data, True, self._data_dir, self._download)
        if setting.test_data is not None or setting.data.startswith("torchvision:"):
            return whole, load_data(setting.test_data or setting.data, False, self._data_dir, self._download)
        rows = np.random.default_rng(0).permutation(len(whole.x))
        return whole.choose(rows[len(rows) // 6 :]), whole.choose(rows[: len(rows) // 6])

    @cached_property
    def _test(self) -> Split:
        return self._parts[1].choose(np.arange(len(self._parts[1].x))[: self._protocol.test_samples])

    def _train(self, seed: int) -> tuple[Split, Split]:
        """Return the images to train on and those to select the epoch on."""
        setting, whole = self._protocol, self._parts[0]
        rows = np.random.default_rng(seed).permutation(len(whole.x))
        train, rest = np.split(rows, [min(setting.train_samples, len(rows) * 4 // 5)])
        return whole.choose(train), whole.choose(rest[: setting.validation_samples])


def _machine(device: str | None) -> dict[str, Any]:
    """Describe what a cell ran with."""
    cuda = torch.cuda.is_available() and device != "cpu"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **{name: version(name) for name in ("art-wdro", "torch", "numpy", "adversarial-robustness-toolbox")},
        "date": time.strftime("%Y-%m-%d"),
    }
