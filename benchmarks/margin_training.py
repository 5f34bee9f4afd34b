# SPDX-License-Identifier: MIT
"""The margin trainer against the paper's method and its kin, from one pointwise-robust start (docs/results/margin.md).

    python benchmarks/margin_training.py run fashion-mnist --data-dir DIR
    python benchmarks/margin_training.py autoattack fashion-mnist --data-dir DIR
    python benchmarks/margin_training.py table fashion-mnist

DIR is as for experiments.py. Every cell, one method and one seed, is kept in runs/margin; a run that is stopped goes on
where it was. Methods see the same images in the same order, with at most 10 gradient evaluations a sample in each inner
problem, but where a name says so (the combined objective has two, and perturbed weights cost one more pass). Each may
take one of several learning rates, and the margin trainer one of several weights: the first seed and validation images
decide, the other seeds follow, and the table is of other test images.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from pretrained import pretrained, untrained
from remedies import Augmented, Stream, WeightPerturbed
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
from art_wdro._evaluation import _autoattack_runner
from art_wdro._files import write_atomically, write_text
from art_wdro._protocol import paper_figures

SEEDS = (0, 1, 2)
MAX_ITER = 10
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Budgets of the curve, in eps."""
GRID = np.linspace(0, 1, 41)
"""Budgets of the area, in eps."""
AUTOATTACK_IMAGES = 200
"""Test images of AutoAttack, among those of the knapsack."""
CLEAN_LOSS = 0.01
"""Clean accuracy that a choice may cost on the validation images."""


class Setting(NamedTuple):
    """What the cells of one data set share.

    :param data: Training images, as for `load_data`.
    :param test_data: Test images.
    :param network: Name of the network, as in pretrained.py.
    :param scratch: Whether training starts from the untrained network.
    :param momentum: Momentum of SGD.
    :param eps: Budget.
    :param fresh: Whether every epoch has images of its own, shifted and flipped.
    :param images: Images of an epoch.
    :param epochs: Number of epochs.
    :param batch: Images in a minibatch.
    :param test_images: Random test images, for the knapsack and W-PGD.
    :param more_images: Random test images, for clean accuracy and distances from a short search.
    :param validation_images: Further test images, for choices; they are in no figure of the table.
    :param gradients: Gradients a sample of the knapsack's search, and of each of the other searches, and of that on
        validation images.
    :param reaches: Reaches of those other searches, in eps.
    :param precision: Number format of the training's attacks.
    :param methods: What is compared.
    :param rates: Learning rates to choose from.
    """

    data: str
    test_data: str
    network: str
    scratch: bool
    momentum: float
    eps: float
    fresh: bool
    images: int
    epochs: int
    batch: int
    test_images: int
    more_images: int
    validation_images: int
    gradients: tuple[int, int, int]
    reaches: tuple[float, ...]
    precision: str
    methods: tuple[str, ...]
    rates: tuple[str, ...]

    def rates_of(self, method: str) -> tuple[str, ...]:
        """Return the learning rates of a method, among which it chooses."""
        if method == "paper, its rate":
            return ("constant",)
        return self.rates[-1:] if method in REMEDIES else self.rates


LONGER = 1.875
"""Length of all steps of the attack together, in eps, that serves the paper's method best."""
PAPER, MARGIN = DistributionalTRADESTrainer, WassersteinMarginTrainer
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "TRADES": (PAPER, {"p": math.inf, "loss": "ce"}),
    "max-margin": (MARGIN, {"p": math.inf, "budgets": 1}),
    "paper": (PAPER, {}),
    "paper, its rate": (PAPER, {}),
    "paper, combined": (PAPER, {"gamma": 3.0}),
    "paper, longer steps": (PAPER, {"longer": LONGER}),
    "paper, longer steps, 16 of them": (PAPER, {"longer": LONGER, "max_iter": 16}),
    "margin": (MARGIN, {}),
    "margin, beta 2": (MARGIN, {"beta": 2.0}),
    "margin, beta 4": (MARGIN, {"beta": 4.0}),
    "margin, one budget": (MARGIN, {"budgets": 1, "beta": 1.0}),
    "margin, augmented": (type("AugmentedMargin", (Augmented, MARGIN), {}), {}),
    "margin, weights perturbed": (type("PerturbedMargin", (WeightPerturbed, MARGIN), {}), {}),
}
"""Classes and their options; names that differ after ", beta" are choices within one method."""
COMPARED = ("TRADES", "max-margin", "paper", "paper, combined", "paper, longer steps", "margin")
REMEDIES = ("margin, one budget", "margin, augmented", "margin, weights perturbed")
RATES = {"constant": 0.01, "cosine 0.03": 0.03, "cosine 0.1": 0.1}
"""The paper's learning rate, and the highest of rates that fall to 0 along a cosine."""
FASHION, FASHION_EPS = ("torchvision:FashionMNIST", "torchvision:FashionMNIST", "fashion-mnist"), 0.1
CIFAR, CIFAR_EPS = ("train.npz", "test.npz", "cifar10"), 8 / 255
FASHION_SEARCH, CIFAR_SEARCH = ((300, 60, 60), (1.2, 2.0, 3.0)), ((100, 60, 20), (1.2, 2.0))
SETTINGS = {
    "fashion-mnist": Setting(
        *(*FASHION, False, 0.0, FASHION_EPS, False, 4000, 8, 128, 1000, 8000, 2000, *FASHION_SEARCH, "float32"),
        (
            *COMPARED,
            "paper, longer steps, 16 of them",
            "paper, its rate",
            "margin, beta 2",
            "margin, beta 4",
            *REMEDIES,
        ),
        ("cosine 0.03", "cosine 0.1"),
    ),
    "fashion-mnist-scratch": Setting(
        *(*FASHION, True, 0.9, FASHION_EPS, False, 4000, 20, 128, 1000, 8000, 2000, *FASHION_SEARCH, "float32"),
        (*COMPARED, "paper, longer steps, 16 of them"),
        ("cosine 0.03",),
    ),
    "cifar10": Setting(
        *(*CIFAR, False, 0.0, CIFAR_EPS, True, 3000, 4, 256, 500, 2000, 1000, *CIFAR_SEARCH, "bfloat16"),
        (*COMPARED, "paper, its rate"),
        ("cosine 0.03", "cosine 0.1"),
    ),
    "cifar10-scratch": Setting(
        *(*CIFAR, True, 0.9, CIFAR_EPS, True, 3000, 15, 256, 500, 2000, 1000, *CIFAR_SEARCH, "bfloat16"),
        COMPARED,
        ("cosine 0.1",),
    ),
}


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
    cls, options = METHODS[cell["method"]]
    options = {"max_iter": MAX_ITER, **options}
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


def choices(method: str) -> str:
    """Return the method that a name is a choice of."""
    return method.partition(", beta")[0]


def chosen(cells: list[dict[str, Any]], start: dict[str, Any]) -> dict[str, Any] | None:
    """Choose among cells of the first seed: the largest area on the validation images without loss of clean accuracy.

    Where every cell loses more than `CLEAN_LOSS`, the one that loses least; from scratch there is nothing to lose. None
    if all of them failed.
    """
    scratch = start["setting"]["scratch"]
    floor = 0.0 if scratch else start["validation"]["clean"] - CLEAN_LOSS
    usable = [cell for cell in cells if "failed" not in cell]
    kept = [cell for cell in usable if cell["validation"]["clean"] >= floor]
    if kept:
        return max(kept, key=lambda cell: cell["validation"]["area"])
    return max(usable, key=lambda cell: cell["validation"]["clean"], default=None)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return all cells that are there."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def file_of(folder: Path, cell: dict[str, Any]) -> Path:
    """Return where a cell is kept."""
    words = [re.sub(r"[, ]+", "-", str(word)) for word in cell.values() if word is not None]
    return folder / f"{'-'.join(words)}.json"


def run(name: str, folder: Path, data_dir: str, methods: Sequence[str], seeds: list[int]) -> None:
    """Run the first seed with all choices, and other seeds with what they led to; cells that are there stay."""
    setting = SETTINGS[name]
    data = data_of(setting, data_dir)
    start = run_cell(name, {"method": "start", "rate": None, "seed": None}, folder, data)
    for method in {choices(method): None for method in methods}:
        found = [
            run_cell(name, {"method": m, "rate": rate, "seed": SEEDS[0]}, folder, data)
            for m in setting.methods
            if choices(m) == method
            for rate in setting.rates_of(m)
        ]
        best = chosen(found, start)
        for seed in () if method in REMEDIES or best is None else seeds:
            run_cell(name, {**best["cell"], "seed": seed}, folder, data)


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
        write_text(file, json.dumps({"cell": cell, "setting": setting._asdict(), **took, **gave}, indent=1))
        file.with_suffix(".ckpt").unlink(missing_ok=True)
        shown = {key: round(100 * gave[key], 2) for key in ("clean", "winf", "area", "wpgd") if key in gave}
        print(json.dumps({**cell, **shown, "seconds": round(time.perf_counter() - started)}), flush=True)
    found = json.loads(file.read_text(encoding="utf-8"))
    if measured(found["setting"]) != measured(json.loads(json.dumps(setting._asdict()))):
        raise ValueError(f"{file} was made with another setting; move it away")
    return found


def measured(setting: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a setting that figures depend on."""
    return {key: value for key, value in setting.items() if key not in ("methods", "rates")}


def autoattack(name: str, folder: Path, data_dir: str) -> None:
    """Run AutoAttack, standard, on images that the searches leave standing, in the first seed's cells of the table."""
    setting = SETTINGS[name]
    test = data_of(setting, data_dir)[1].choose(np.arange(AUTOATTACK_IMAGES))
    for cell in in_table(read(folder / name)):
        file = file_of(folder / name, cell["cell"])
        if "autoattack" in cell or "failed" in cell or cell["cell"]["seed"] not in (SEEDS[0], None):
            continue
        classifier = classifier_for(name, 0.0)
        classifier.model.load_state_dict(torch.load(file.with_suffix(".pt"), weights_only=True))
        standing = np.flatnonzero(np.array(cell["distances"][:AUTOATTACK_IMAGES]) > setting.eps)
        x, y = (torch.from_numpy(part[standing]) for part in test)
        right = np.zeros(0, bool)
        if len(standing):
            adversarial, _ = _autoattack_runner(classifier, x, y, math.inf, setting.eps, 250)()
            right = classifier.predict(adversarial).argmax(1) == y.numpy()
        cell["autoattack"] = float(right.sum() / AUTOATTACK_IMAGES)
        write_text(file, json.dumps(cell, indent=1))
        print(json.dumps({**cell["cell"], **both(cell)}), flush=True)


def both(cell: dict[str, Any]) -> dict[str, float]:
    """Return W_inf accuracy in % on AutoAttack's images: by the searches, and by AutoAttack on top of them."""
    found = np.array(cell["distances"][:AUTOATTACK_IMAGES])
    searches = float((found > cell["setting"]["eps"]).mean())
    return {"searches": round(100 * searches, 1), "autoattack": round(100 * cell["autoattack"], 1)}


def chosen_groups(cells: list[dict[str, Any]]) -> set[str]:
    """Return the choice of each method that the validation images led to."""
    start = start_of(cells)
    first = [cell for cell in cells if cell["cell"]["seed"] == SEEDS[0]]
    methods = {choices(cell["cell"]["method"]) for cell in first}
    best = [chosen([cell for cell in first if choices(cell["cell"]["method"]) == method], start) for method in methods]
    return {group_of(cell) for cell in best if cell is not None}


def start_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the cell of the network that training starts from."""
    return next(cell for cell in cells if cell["cell"]["method"] == "start")


def in_table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the start, what the validation images led to, of all seeds, and whatever else has several seeds."""
    several = {group_of(cell) for cell in cells if cell["cell"]["seed"] not in (SEEDS[0], None)}
    shown = chosen_groups(cells) | several | {group_of(start_of(cells))}
    return [cell for cell in cells if group_of(cell) in shown]


def group_of(cell: dict[str, Any]) -> str:
    """Return what cells that differ in the seed alone have in common."""
    own = cell["cell"]
    return own["method"] + (f", {own['rate']}" if own["rate"] else "")


def table(name: str, folder: Path, out: Path | None) -> None:
    """Print mean and standard deviation over seeds of the chosen cells, in bold, and the choices; keep all cells."""
    cells = read(folder / name)
    bold = chosen_groups(cells)
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in in_table(cells):
        if "failed" in cell:
            print(f"{cell['cell']} failed: {cell['failed']}")
            continue
        group = group_of(cell)
        groups.setdefault(f"**{group}**" if group in bold else group, []).append(cell)
    print("| | clean | W_inf | searches / AutoAttack | " + " | ".join(f"{share:g} eps" for share in SHARES), end=" | ")
    print("area | W-PGD-20 | clean, more | W_inf, more | area, more | gradients | seconds |")
    print("| --- " * (len(SHARES) + 11) + "|")
    for group, rows in sorted(groups.items(), key=lambda item: statistics.mean(row["area"] for row in item[1])):
        columns = [[100 * row[key] for row in rows] for key in ("clean", "winf")]
        pair = next((" / ".join(map(str, both(row).values())) for row in rows if "autoattack" in row), "")
        columns += [[100 * row["curve"][place] for row in rows] for place in range(len(SHARES))]
        columns += [[100 * row[key] for row in rows] for key in ("area", "wpgd")]
        columns += [[100 * row["more"][key] for row in rows] for key in ("clean", "winf", "area")]
        columns += [[row[key] for row in rows if row.get(key)] for key in ("gradients", "seconds")]
        entries = [*map(spread, columns)]
        print(f"| {group} | " + " | ".join([*entries[:2], pair, *entries[2:]]) + " |")
    print("\n| choices, first seed, validation images | clean | W_inf | area |\n| --- | --- | --- | --- |")
    for cell in cells:
        if cell["cell"]["seed"] in (SEEDS[0], None):
            shown = ["failed"] * 3
            if "validation" in cell:
                shown = [f"{100 * cell['validation'][key]:.1f}" for key in ("clean", "winf", "area")]
            print(f"| {group_of(cell)} | " + " | ".join(shown) + " |")
    if out is not None:
        write_text(out, json.dumps([compact(cell) for cell in cells], separators=(",", ":")) + "\n")


def main() -> None:
    """Run cells, or print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "autoattack", "table"))
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--folder", type=Path, default=Path("runs/margin"))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), help="those of the data set, unless given")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--out", type=Path, help="file that keeps all cells, for `table`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.action == "run":
        run(args.name, args.folder, args.data_dir, args.methods or SETTINGS[args.name].methods, args.seeds)
    elif args.action == "autoattack":
        autoattack(args.name, args.folder, args.data_dir)
    else:
        table(args.name, args.folder, args.out)


if __name__ == "__main__":
    main()
