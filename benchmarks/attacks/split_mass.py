# SPDX-License-Identifier: MIT
"""Split mass beside AutoAttack, W-PGD and the knapsack, with both searches for least distances, and what each costs.

    python -m benchmarks.attacks.split_mass digits
    python -m benchmarks.attacks.split_mass cifar10 --data-dir DIR --samples 200

All figures are accuracies under W_2: what AutoAttack finds within eps lies in that ball too.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np

from art_wdro import WassersteinDistributionalAttack, WassersteinKnapsack, adversarial_accuracy, evaluate
from benchmarks.networks.robust import SETTINGS, load, robust_network

OTHER_NORMS = {2.0: 0.5, 1.0: 1.5}
"""Budgets for digits in the other ground norms."""
KAPPAS = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)


def main() -> None:
    """Print accuracy under W_2 in percent, gradients a sample and seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    classifier, data = robust_network(args.name, args.data_dir), load(args.name, args.data_dir, train=False)
    x, y = data.x[: args.samples], data.y[: args.samples]
    budgets = {np.inf: SETTINGS[args.name].eps} | (OTHER_NORMS if args.name == "digits" else {})
    rows = []

    def add(norm: float, name: str, accuracy: float, gradients: float, seconds: float) -> None:
        rows.append({"norm": f"{norm:g}", "attack": name, "accuracy": accuracy, "gradients": gradients})
        rows[-1]["seconds"] = seconds
        print(f"| {norm:g} | {name} | {100 * accuracy:.1f} | {gradients:.0f} | {seconds:.1f} |", flush=True)

    print("| norm | attack | accuracy in % | gradients | seconds |\n" + "| --- " * 5 + "|")
    for norm, eps in budgets.items():
        threat = {"norm": norm, "eps": eps, "batch_size": 250, "verbose": False}
        report = evaluate(classifier, x, y, autoattack=norm == np.inf, certified=False, knapsack_iter=100, **threat)
        for row in report.rows:
            if row.attack != "knapsack's distances":
                add(norm, row.attack, row.accuracy, row.gradients, row.seconds)
        attacks = {
            "knapsack, 30": WassersteinKnapsack(classifier, max_iter=30, **threat),
            "knapsack, stepping out": WassersteinKnapsack(classifier, max_iter=50, search="stepping-out", **threat),
        }
        for kappa in KAPPAS:
            attacks[f"WDA, kappa {kappa:g}"] = WassersteinDistributionalAttack(classifier, p=2, kappa=kappa, **threat)
        for name, attack in attacks.items():
            started = time.perf_counter()
            accuracy = adversarial_accuracy(classifier, x, y, attack, batch_size=250)
            add(norm, name, accuracy, attack.gradients_, time.perf_counter() - started)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
