# SPDX-License-Identifier: MIT
"""Split mass beside W-PGD and the knapsack, with both searches for least distances, on the digits network.

python benchmarks/split_mass.py
"""

from __future__ import annotations

import numpy as np
from networks import load, robust_network

from art_wdro import WassersteinDistributionalAttack, WassersteinKnapsack, WassersteinPGD, adversarial_accuracy

BUDGETS = {np.inf: 0.1, 2.0: 0.5, 1.0: 1.5}
SEARCHES = (("newton", 100), ("newton", 30), ("stepping-out", 50))
KAPPAS = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)


def main() -> None:
    """Print accuracy under W_2 in percent, and gradients a sample."""
    classifier, data = robust_network("digits", None), load("digits", None, train=False)
    x, y = data.x[:500], data.y[:500]
    print("| norm | attack | accuracy in % | gradients |\n" + "| --- " * 4 + "|")
    for norm, eps in BUDGETS.items():
        threat = {"p": 2, "norm": norm, "eps": eps, "verbose": False}
        attacks = {
            f"knapsack, {search}, {steps}": WassersteinKnapsack(classifier, max_iter=steps, search=search, **threat)
            for search, steps in SEARCHES
        }
        attacks["W-PGD-100, linear"] = WassersteinPGD(classifier, max_iter=100, schedule="linear", **threat)
        for kappa in KAPPAS:
            attacks[f"WDA, kappa {kappa:g}"] = WassersteinDistributionalAttack(classifier, kappa=kappa, **threat)
        for name, attack in attacks.items():
            accuracy = adversarial_accuracy(classifier, x, y, attack)
            gradients = getattr(attack, "gradients_", float(attack.max_iter))
            print(f"| {norm:g} | {name} | {100 * accuracy:.1f} | {gradients:.0f} |", flush=True)


if __name__ == "__main__":
    main()
