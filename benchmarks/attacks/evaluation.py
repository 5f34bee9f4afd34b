# SPDX-License-Identifier: MIT
"""How far W-PGD is from the knapsack on networks that were trained to be robust, and how strong W-PGD can be made.

    python -m benchmarks.attacks.evaluation digits
    python -m benchmarks.attacks.evaluation cifar10 --data-dir DIR

trains the network if need be, evaluates it, and then tries settings of W-PGD.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from art.estimators.classification import PyTorchClassifier

from art_wdro import WassersteinPGD, adversarial_accuracy, evaluate
from art_wdro._sources.data import Split
from benchmarks._cells import cells_of
from benchmarks._command import command, parsed, with_data
from benchmarks._files import keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks._timing import timed
from benchmarks.networks._data import load
from benchmarks.networks.robust import robust_network

PAPER = (20, 1.0, "constant", "redlr")
GRID = [
    PAPER,
    (50, 1.875, "constant", "redlr"),
    (50, 4.0, "constant", "redlr"),
    (50, 1.875, "linear", "redlr"),
    (50, 4.0, "linear", "redlr"),
    (50, 8.0, "linear", "redlr"),
    (100, 4.0, "linear", "redlr"),
    (50, 4.0, "linear", "dlr"),
    (50, 4.0, "linear", "ce"),
]
"""Steps, their total length in eps, schedule and loss."""
PARTS = (0.25, 0.5, 0.75, 1.0)
"""Budgets of the knapsack's curve, in eps."""


def reported(classifier: PyTorchClassifier, data: Split, eps: float, autoattack: bool | None) -> dict[str, Any]:
    """Evaluate the network: return the report, as text too, and the knapsack's curve."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report prints them
        report = evaluate(classifier, *data, eps=eps, batch_size=250, autoattack=autoattack)
    curve = {f"{share:g} eps": float(report.accuracy(share * eps)) for share in PARTS}
    plain = {key: value for key, value in report.to_dict().items() if key not in ("distances", "standing")}
    return {"report": plain, "text": report.to_markdown(), "curve": curve}


def attacked(
    classifier: PyTorchClassifier, data: Split, eps: float, setting: tuple[int, float, str, str]
) -> dict[str, float]:
    """Attack with one setting of W-PGD: return the accuracy left, and seconds."""
    steps, path, schedule, loss = setting
    attack = WassersteinPGD(
        classifier,
        eps=eps,
        eps_step=path * eps / steps,
        max_iter=steps,
        schedule=schedule,
        loss=loss,
        batch_size=250,
        verbose=False,
    )
    accuracy, seconds = timed(lambda: adversarial_accuracy(classifier, *data, attack))
    return {"accuracy": accuracy, "seconds": seconds}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__))
    found.add_argument("--samples", type=int, default=500)
    found.add_argument("--no-autoattack", dest="autoattack", action="store_false", default=None)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate one network."""
    args = parsed(parser(), arguments, samples=20, autoattack=False)
    classifier, eps = robust_network(args.name, args.data_dir), DATA[args.name].eps
    data = Split(*(part[: args.samples] for part in load(args.name, args.data_dir, train=False)))
    with cells_of(args, "evaluation") as cells:
        whole = cells.run({"part": "report"}, lambda: reported(classifier, data, eps, args.autoattack))
        print(whole["text"])
        print("Knapsack under W_2:", ", ".join(f"{100 * v:.1f} % at {k}" for k, v in whole["curve"].items()))
        print()
        table, settings = Table("steps", "total length / eps", "schedule", "loss", "accuracy in %", "seconds"), []
        for setting in GRID:
            row: dict[str, Any] = dict(zip(("steps", "path", "schedule", "loss"), setting, strict=True))
            found = cells.run(row, partial(attacked, classifier, data, eps, setting))
            settings.append(row | {"accuracy": found["accuracy"]})
            figures = f"{100 * found['accuracy']:.1f}", f"{found['seconds']:.1f}"
            table.row(row["steps"], f"{row['path']:g}", row["schedule"], row["loss"], *figures)
        content = {"network": args.name, "curve": whole["curve"], "settings": settings}
        keep(args.json, whole["report"] | content)


if __name__ == "__main__":
    main()
