# SPDX-License-Identifier: MIT
"""Split mass beside AutoAttack, W-PGD and the knapsack, with both searches for least distances, and what each costs.

    python -m benchmarks.attacks.split_mass digits
    python -m benchmarks.attacks.split_mass cifar10 --data-dir DIR --samples 200

All figures are accuracies under W_2: what AutoAttack finds within eps lies in that ball too.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from art.estimators.classification import PyTorchClassifier

from art_wdro import WassersteinDistributionalAttack, WassersteinKnapsack, adversarial_accuracy, evaluate
from art_wdro._sources.data import Split
from benchmarks._cells import cells_of
from benchmarks._command import command, parsed, with_data
from benchmarks._files import keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks._timing import timed
from benchmarks.networks._data import load
from benchmarks.networks.robust import robust_network

Attack = WassersteinDistributionalAttack | WassersteinKnapsack
KAPPAS = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)


def reported(classifier: PyTorchClassifier, data: Split, threat: dict[str, Any], autoattack: bool) -> dict[str, Any]:
    """Return the figures of the attacks of a report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        report = evaluate(classifier, *data, autoattack=autoattack, certified=False, knapsack_iter=100, **threat)
    rows = [row for row in report.rows if row.attack != "knapsack's distances"]
    return {
        "rows": [
            {"attack": r.attack, "accuracy": r.accuracy, "gradients": r.gradients, "seconds": r.seconds} for r in rows
        ]
    }


def attacked(classifier: PyTorchClassifier, data: Split, name: str, attack: Attack) -> dict[str, Any]:
    """Return the figures of one attack."""
    accuracy, seconds = timed(lambda: adversarial_accuracy(classifier, *data, attack, batch_size=250))
    return {"attack": name, "accuracy": accuracy, "gradients": attack.gradients_, "seconds": seconds}


def attacks_of(classifier: PyTorchClassifier, threat: dict[str, Any]) -> dict[str, Attack]:
    """Return the attacks that are in no report."""
    attacks: dict[str, Attack] = {
        "knapsack, 30": WassersteinKnapsack(classifier, max_iter=30, **threat),
        "knapsack, stepping out": WassersteinKnapsack(classifier, max_iter=50, search="stepping-out", **threat),
    }
    for kappa in KAPPAS:
        attacks[f"WDA, kappa {kappa:g}"] = WassersteinDistributionalAttack(classifier, p=2, kappa=kappa, **threat)
    return attacks


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__))
    found.add_argument("--samples", type=int, default=500)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print accuracy under W_2 in percent, gradients a sample and seconds."""
    args = parsed(parser(), arguments, samples=12)
    classifier = robust_network(args.name, args.data_dir)
    data = Split(*(part[: args.samples] for part in load(args.name, args.data_dir, train=False)))
    rows: list[dict[str, Any]] = []
    table = Table("norm", "attack", "accuracy in %", "gradients", "seconds")

    def add(norm: str, row: dict[str, Any]) -> None:
        rows.append({"norm": norm, **row})
        figures = f"{100 * row['accuracy']:.1f}", f"{row['gradients']:.0f}", f"{row['seconds']:.1f}"
        table.row(norm, row["attack"], *figures)

    with cells_of(args, "split_mass") as cells:
        for norm, eps in DATA[args.name].budgets.items():
            threat = {"norm": norm, "eps": eps, "batch_size": 250, "verbose": False}
            autoattack = math.isinf(norm) and not args.quick  # which takes minutes
            cell, report = {"norm": f"{norm:g}"}, partial(reported, classifier, data, threat, autoattack)
            for row in cells.run({**cell, "part": "report"}, report)["rows"]:
                add(cell["norm"], row)
            for name, attack in attacks_of(classifier, threat).items():
                work = partial(attacked, classifier, data, name, attack)
                add(cell["norm"], cells.run({**cell, "attack": name}, work))
        keep(args.json, rows)


if __name__ == "__main__":
    main()
