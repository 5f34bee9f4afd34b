# SPDX-License-Identifier: MIT
"""Experiments of the training paper in cells: one network, one configuration, one seed; each is kept on disk."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_wdro._reproduction.machine import machine
from art_wdro._reproduction.protocol import Cell, Images, PaperTrainer, Protocol, paper_attack, paper_figures
from art_wdro._sources.data import Split
from art_wdro._sources.networks import load_classifier
from art_wdro._storage.files import write_atomically, write_text
from art_wdro.evaluation._accuracy import adversarial_accuracy
from art_wdro.evaluation._autoattack import check_autoattack
from art_wdro.evaluation._evaluate import evaluate
from art_wdro.evaluation._first_order import sensitivity
from art_wdro.trainers._starts import perturb_weights, reinitialise_last_layer
from art_wdro.trainers._trades import DistributionalTRADESTrainer
from art_wdro.trainers._upsilon import batch_budget

Result = dict[str, Any]
TRAINED = ("after", "curves")
"""Kinds of cells that train."""


class Laboratory:
    """Runs cells, or finds what they gave in its folder."""

    trainer: type[DistributionalTRADESTrainer] = PaperTrainer
    verbose = True
    """Whether to show the progress of each training."""

    def __init__(
        self,
        protocol: Protocol,
        folder: Path,
        *,
        data_dir: str = "data",
        download: bool = False,
        model_dir: str = "models",
        device: str | None = None,
        trust: bool = False,
        keep_weights: bool = False,
    ) -> None:
        """Set up the experiments of one protocol.

        :param protocol: What all cells share.
        :param folder: Where each cell's figures are kept, with the state of a training that is under way.
        :param data_dir: Where torchvision finds its data sets.
        :param download: Let torchvision fetch the data set.
        :param model_dir: Where RobustBench keeps its checkpoints.
        :param device: A torch device; None takes CUDA where it is.
        :param trust: Read model files that can run code.
        :param keep_weights: Whether the fine-tuned networks are kept too.
        """
        self.protocol, self._folder = protocol, folder
        self.images = Images(protocol, data_dir, download)
        self._model_dir, self._device, self._trust = model_dir, device, trust
        self._keep_weights = keep_weights

    def check(self, cell: Cell) -> None:
        """Refuse what a cell would refuse, before any is run: data, network, device and settings.

        :raises ValueError: If something does not fit.
        :raises ImportError: If AutoAttack is wanted and not installed.
        """
        parts = (*self.images.train(cell.seed), self.images.test)
        if not all(len(part.x) for part in parts):
            counts = ", ".join(str(len(part.x)) for part in parts)
            raise ValueError(f"data is {self.protocol.data!r}: {counts} training, validation and test images are left")
        classifier = self._load(cell)
        if self.protocol.strong_samples:
            check_autoattack(classifier, self.protocol.autoattack)
        if cell.kind in TRAINED:
            self._trainer(classifier, cell)

    def find(self, cell: Cell) -> Result | None:
        """Return what a cell gave, or None if it has not been run to its end.

        :raises ValueError: If it was run under another protocol.
        """
        return self._read(cell, "json")

    def run(self, cell: Cell) -> Result:
        """Return what a cell gives; run it if need be. A training that diverges gives its error as "failed"."""
        found = self.find(cell)
        if found is None:
            runs: dict[str, Callable[[Cell, Result], Result]] = {
                "before": self._before,
                "budget": self._budget,
                "upsilon": self._upsilon,
                "after": self._after,
                "curves": self._curves,
            }
            progress = self._read(cell, "progress.json")
            if progress is None:
                self._checkpoint(cell).unlink(missing_ok=True)  # of a training that nothing is known of
                progress = {"seconds": 0.0, "epochs": []}
                self._write(cell, progress, "progress.json")
            used, started = machine(self._device), time.perf_counter() - progress["seconds"]
            try:
                gave = runs[cell.kind](cell, progress)
            except FloatingPointError as error:
                gave = {"failed": str(error)}
            seconds = time.perf_counter() - started
            counts = [len(part.x) for part in (*self.images.train(cell.seed), self.images.test)]
            counted = dict(zip(("train", "validation", "test"), counts, strict=True))
            self._write(cell, {"images": counted, "seconds": seconds, "machine": used, **gave}, "json")
            found = self._read(cell, "json")
            assert found is not None
        for file in (self._file(cell, "progress.json"), self._checkpoint(cell)):
            file.unlink(missing_ok=True)
        return found

    def _before(self, cell: Cell, _: Result) -> Result:
        classifier = self._load(cell)
        return {"test": self._figures(classifier, self.images.test), "strong": self._strong_figures(classifier)}

    def _budget(self, cell: Cell, _: Result) -> Result:
        """Attack the training images in minibatches, each with its share of the budget."""
        classifier, setting = self._load(cell), self.protocol
        train, _validation = self.images.train(cell.seed)
        rows = np.random.default_rng(cell.seed).permutation(len(train.x))
        whole = torch.tensor(sensitivity(classifier, *train.choose(rows[: _tenth(train)])))
        correct = 0.0
        for start in range(0, len(rows), setting.batch_size):
            batch = train.choose(rows[start : start + setting.batch_size])
            own = torch.tensor(sensitivity(classifier, *batch))
            eps = float(batch_budget(setting.eps, own, whole, 2.0))
            correct += len(batch.x) * adversarial_accuracy(classifier, *batch, paper_attack(classifier, 2.0, eps))
        return {"train": {"budget": correct / len(rows), **self._figures(classifier, train)}}

    def _upsilon(self, cell: Cell, _: Result) -> Result:
        """Estimate Upsilon from ten samples of a tenth of the training set, and from the whole."""
        classifier = self._load(cell)
        train, _validation = self.images.train(cell.seed)
        generator = np.random.default_rng(cell.seed)
        drawn = [generator.permutation(len(train.x))[: _tenth(train)] for _ in range(10)]
        samples = [sensitivity(classifier, *train.choose(rows)) for rows in drawn]
        return {"samples": samples, "reference": sensitivity(classifier, *train)}

    def _after(self, cell: Cell, progress: Result) -> Result:
        classifier, trainer, fit = self._prepare(cell, progress)
        fit(self.protocol.epochs)
        return self._finish(cell, classifier, trainer)

    def _curves(self, cell: Cell, progress: Result) -> Result:
        """Fine-tune epoch by epoch, with figures of each epoch's network on the test set."""
        classifier, trainer, fit = self._prepare(cell, progress)
        model, epochs = classifier.model, progress["epochs"]
        while len(epochs) < self.protocol.epochs:
            fit(len(epochs) + 1)
            best = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(trainer.final_state)
            figures = {
                **self._figures(classifier, self.images.test),
                "upsilon": sensitivity(classifier, *self.images.test),
            }
            train_upsilon = sensitivity(classifier, *self.images.train(cell.seed)[0])
            epochs.append({"test": figures, "train_upsilon": train_upsilon})
            model.load_state_dict(best)
            self._write(cell, progress, "progress.json")
        if not trainer.history:
            fit(self.protocol.epochs)
        return {**self._finish(cell, classifier, trainer), "epochs": epochs}

    def _prepare(
        self, cell: Cell, progress: Result
    ) -> tuple[PyTorchClassifier, DistributionalTRADESTrainer, Callable[[int], None]]:
        """Return a classifier at its start, its trainer, and the function that trains up to an epoch."""
        classifier = self._load(cell)
        torch.manual_seed(cell.seed)
        if cell.start == "whole":
            perturb_weights(classifier, self.protocol.noise, cell.seed)
        if cell.start == "last-layer":
            reinitialise_last_layer(classifier, cell.seed)
        trainer = self._trainer(classifier, cell)
        train, validation = self.images.train(cell.seed)
        started = time.perf_counter() - progress["seconds"]

        def keep(_: Result, __: bool) -> None:
            progress["seconds"] = time.perf_counter() - started
            self._write(cell, progress, "progress.json")

        def fit(epochs: int) -> None:
            trainer.fit(
                *train,
                validation_data=validation,
                batch_size=self.protocol.batch_size,
                nb_epochs=epochs,
                checkpoint=self._checkpoint(cell),
                on_epoch=keep,
            )

        return classifier, trainer, fit

    def _trainer(self, classifier: PyTorchClassifier, cell: Cell) -> DistributionalTRADESTrainer:
        setting = self.protocol
        keywords = {
            "beta": setting.beta,
            "eps": setting.eps,
            "max_iter": setting.max_iter,
            "upsilon": setting.upsilon,
            "eta": cell.eta,
            "seed": cell.seed,
            "verbose": self.verbose,
            **setting.trainer,
        }
        return self.trainer(classifier, **keywords)

    def _finish(self, cell: Cell, classifier: PyTorchClassifier, trainer: DistributionalTRADESTrainer) -> Result:
        if self._keep_weights:
            state = classifier.model.state_dict()
            write_atomically(self._file(cell, "pt"), lambda path: torch.save(state, path))
        return {
            "test": self._figures(classifier, self.images.test),
            "strong": self._strong_figures(classifier),
            "best_epoch": trainer.best_epoch,
            "history": trainer.history,
        }

    def _figures(self, classifier: PyTorchClassifier, data: Split) -> dict[str, float]:
        return paper_figures(classifier, data, self.protocol.eps)

    def _strong_figures(self, classifier: PyTorchClassifier) -> Result | None:
        """Measure accuracy under attacks that the training did not use."""
        setting = self.protocol
        if setting.strong_samples == 0:
            return None
        x, y = self.images.test.x[: setting.strong_samples], self.images.test.y[: setting.strong_samples]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the report holds them
            report = evaluate(
                classifier, x, y, eps=setting.eps, batch_size=250, autoattack=setting.autoattack, verbose=False
            )
        return report.to_dict()

    def _load(self, cell: Cell) -> PyTorchClassifier:
        source = cell.network if ":" in cell.network or "." in cell.network else f"robustbench:{cell.network}"
        return load_classifier(
            source,
            self.images.test.x.shape[1:],
            device=self._device,
            learning_rate=cell.tau or 0.01,
            model_dir=self._model_dir,
            trust=self._trust,
        )

    def _file(self, cell: Cell, ending: str) -> Path:
        return self._folder / f"{cell.name}.{ending}"

    def _checkpoint(self, cell: Cell) -> Path:
        return self._file(cell, "ckpt")

    def _write(self, cell: Cell, content: Result, ending: str) -> None:
        whole = {"cell": asdict(cell), "protocol": asdict(self.protocol), **content}
        write_text(self._file(cell, ending), json.dumps(whole, indent=1))

    def _read(self, cell: Cell, ending: str) -> Result | None:
        """Read a file of a cell, or return None if it is not there.

        :raises ValueError: If it is damaged, or of another cell or protocol.
        """
        file = self._file(cell, ending)
        if not file.is_file():
            return None
        try:
            kept: Result = json.loads(file.read_text(encoding="utf-8"))
            was = {**kept["cell"], **kept["protocol"]}
            kept["seconds"] += 0.0
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{file}' is damaged; delete it to run its cell again") from error
        now = {**asdict(cell), **asdict(self.protocol)}
        for key, value in now.items():
            if was.get(key) != value:
                raise ValueError(
                    f"'{file}' was made with {key} = {was.get(key)!r}, and now it is {value!r}; give another folder"
                )
        return kept


def _tenth(data: Split) -> int:
    return max(1, len(data.x) // 10)
