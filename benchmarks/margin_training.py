# SPDX-License-Identifier: MIT
"""The margin trainer against the paper's method and its kin, from one pointwise-robust start (docs/results/margin.md).

    python benchmarks/margin_training.py run fashion-mnist --data-dir DIR
    python benchmarks/margin_training.py run cifar10 --data-dir DIR
    python benchmarks/margin_training.py table fashion-mnist

DIR is as for experiments.py. Every cell, one method and one seed, is kept in runs/margin; a run that is stopped goes on
where it was. Methods see the same images in the same order, with equally many gradient evaluations a sample.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from pretrained import pretrained
from summary import compact, spread
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from art_wdro import (
    DistributionalTRADESTrainer,
    WassersteinKnapsack,
    WassersteinMarginTrainer,
    knapsack_accuracy,
    perturb_weights,
)
from art_wdro._boundary import boundary
from art_wdro._data import Split, load_data
from art_wdro._experiments import paper_figures
from art_wdro._files import write_atomically, write_text

SEEDS = (0, 1, 2)
MAX_ITER = 10
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Budgets of the curve, in eps."""
GRID = np.linspace(0, 1, 41)
"""Budgets of the area, in eps."""
REACHES = (1.2, 2.0, 3.0)
"""Reaches of the second search for least distances, in eps."""


class Setting(NamedTuple):
    """What the cells of one data set share.

    :param data: Training images, as for `load_data`.
    :param test_data: Test images.
    :param eps: Budget.
    :param images: Images to train on.
    :param epochs: Passes over them.
    :param batch: Images in a minibatch.
    :param test_images: Random test images, for the knapsack and W-PGD.
    :param more_images: Random test images, for clean accuracy and distances from a short search.
    :param precision: Number format of the training's attacks.
    """

    data: str
    test_data: str
    eps: float
    images: int
    epochs: int
    batch: int
    test_images: int
    more_images: int
    precision: str


SETTINGS = {
    "fashion-mnist": Setting(
        "torchvision:FashionMNIST", "torchvision:FashionMNIST", 0.1, 4000, 8, 128, 1000, 10000, "float32"
    ),
    "cifar10": Setting("train.npz", "test.npz", 8 / 255, 3000, 4, 256, 500, 4000, "bfloat16"),
}
LONGER = 1.875
"""Length of all steps of the attack together, in eps, that serves the paper's method best."""
PAPER, MARGIN = DistributionalTRADESTrainer, WassersteinMarginTrainer
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "TRADES continued": (PAPER, {"p": math.inf, "loss": "ce"}),
    "max-margin": (MARGIN, {"p": math.inf, "budgets": 1}),
    "paper": (PAPER, {}),
    "paper, combined": (PAPER, {"gamma": 3.0}),
    "paper, longer steps": (PAPER, {"longer": LONGER}),
    "margin": (MARGIN, {}),
    "margin, beta 2": (MARGIN, {"beta": 2.0}),
    "margin, beta 4": (MARGIN, {"beta": 4.0}),
    "margin, one budget": (MARGIN, {"budgets": 1, "beta": 1.0}),
}
RATES = {"constant": 0.01, "cosine 0.03": 0.03, "cosine 0.1": 0.1}
"""The paper's learning rate, and the highest of rates that fall to 0 along a cosine."""


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
    model = pretrained(name)
    return PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=rate),
        input_shape=(3, 32, 32) if name == "cifar10" else (1, 28, 28),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )


def trained(name: str, train: Split, cell: dict[str, Any], file: Path) -> tuple[PyTorchClassifier, dict[str, Any]]:
    """Train by one method, and return the classifier after the last epoch and what the training took."""
    setting, seed = SETTINGS[name], cell["seed"]
    cls, options = METHODS[cell["method"]]
    options = dict(options)
    if "longer" in options:
        options["eps_step"] = options.pop("longer") * setting.eps / MAX_ITER
    classifier = classifier_for(name, RATES[cell["rate"]])
    torch.manual_seed(seed)
    perturb_weights(classifier, seed=seed)
    counter = Counter(classifier.model)
    trainer = cls(
        classifier,
        eps=setting.eps,
        max_iter=MAX_ITER,
        seed=seed,
        precision=setting.precision,
        verbose=False,
        **options,
    )
    rows = np.random.default_rng(seed).permutation(len(train.x))[: setting.images]
    scheduler = CosineAnnealingLR(classifier.optimizer, setting.epochs) if cell["rate"].startswith("cosine") else None
    checkpoint = file.with_suffix(".ckpt")
    trainer.fit(
        *train.choose(rows),
        batch_size=setting.batch,
        nb_epochs=setting.epochs,
        scheduler=scheduler,
        checkpoint=checkpoint,
    )
    seconds = sum(record["seconds"] for record in trainer.history)
    # what a checkpoint spared is not counted, so that a resumed cell shows fewer
    figures = {"gradients": counter.gradients / setting.images / setting.epochs, "seconds": seconds}
    return classifier, {**figures, "history": trainer.history}


def distances(classifier: PyTorchClassifier, data: Split, eps: float) -> np.ndarray:
    """Return the least l_inf distances that either of two searches finds, the second with several reaches."""
    knapsack = WassersteinKnapsack(classifier, eps=eps, batch_size=250, verbose=False)
    knapsack.generate(*data)
    found = [searched(classifier, data, reach * eps, 60) for reach in REACHES]
    return np.minimum.reduce([knapsack.distances_, *found])


def searched(classifier: PyTorchClassifier, data: Split, reach: float, max_iter: int) -> np.ndarray:
    """Return the least l_inf distances that the training's search finds within reach."""
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
    few = test.choose(np.arange(setting.test_images))
    found = distances(classifier, few, setting.eps)
    more = searched(classifier, test, 2.5 * setting.eps, 15)
    return {
        **figures(found, setting.eps),
        "wpgd": paper_figures(classifier, few, setting.eps)["wp"],
        "more": figures(more, setting.eps),
        "distances": found.tolist(),
    }


def run(name: str, folder: Path, data_dir: str, methods: list[str], rates: list[str], seeds: list[int]) -> None:
    """Run all cells of a data set that are not there."""
    setting = SETTINGS[name]
    sources = [str(Path(data_dir) / s) if s.endswith(".npz") else s for s in (setting.data, setting.test_data)]
    train = load_data(sources[0], True, data_dir, False)
    test = load_data(sources[1], False, data_dir, False)
    test = test.choose(np.random.default_rng(0).permutation(len(test.x))[: setting.more_images])
    cells = [{"method": "start", "rate": None, "seed": None}]
    cells += [{"method": m, "rate": r, "seed": s} for s in seeds for r in rates for m in methods]
    for cell in cells:
        words = [re.sub(r"[, ]+", "-", str(word)) for word in cell.values() if word is not None]
        file = folder / name / f"{'-'.join(words)}.json"
        if file.exists():
            continue
        started = time.perf_counter()
        try:
            if cell["method"] == "start":
                classifier, took = classifier_for(name, 0.0), {}
            else:
                classifier, took = trained(name, train, cell, file)
                write_atomically(file.with_suffix(".pt"), partial(torch.save, classifier.model.state_dict()))
            gave = evaluated(classifier, test, setting)
        except FloatingPointError as error:
            took, gave = {}, {"failed": str(error)}
        write_text(file, json.dumps({"cell": cell, "setting": setting._asdict(), **took, **gave}, indent=1))
        file.with_suffix(".ckpt").unlink(missing_ok=True)
        shown = {key: round(100 * gave[key], 2) for key in ("clean", "winf", "area", "wpgd") if key in gave}
        print(json.dumps({**cell, **shown, "seconds": round(time.perf_counter() - started)}), flush=True)


def table(name: str, folder: Path, out: Path | None) -> None:
    """Print mean and standard deviation over seeds of all cells that are there, and keep them in one file."""
    cells = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / name).glob("*.json"))]
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        own = cell["cell"]
        groups.setdefault(own["method"] + (f", {own['rate']} rate" if own["rate"] else ""), []).append(cell)
    print("| | clean | W_inf | " + " | ".join(f"{share:g} eps" for share in SHARES) + " | area | W-PGD-20 | ", end="")
    print("clean, more | W_inf, more | area, more | gradients | seconds |\n" + "| --- " * (len(SHARES) + 10) + "|")
    for group, rows in sorted(groups.items(), key=lambda item: statistics.mean(row["area"] for row in item[1])):
        columns = [[100 * row[key] for row in rows] for key in ("clean", "winf")]
        columns += [[100 * row["curve"][place] for row in rows] for place in range(len(SHARES))]
        columns += [[100 * row[key] for row in rows] for key in ("area", "wpgd")]
        columns += [[100 * row["more"][key] for row in rows] for key in ("clean", "winf", "area")]
        columns += [[row[key] for row in rows if key in row] for key in ("gradients", "seconds")]
        print(f"| {group} | " + " | ".join(map(spread, columns)) + " |")
    if out is not None:
        write_text(out, json.dumps([compact(cell) for cell in cells], separators=(",", ":")) + "\n")


def main() -> None:
    """Run cells, or print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--folder", type=Path, default=Path("runs/margin"))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--rates", nargs="+", choices=tuple(RATES), default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--out", type=Path, help="file that keeps all cells, for `table`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.action == "run":
        run(args.name, args.folder, args.data_dir, args.methods, args.rates, args.seeds)
    else:
        table(args.name, args.folder, args.out)


if __name__ == "__main__":
    main()
