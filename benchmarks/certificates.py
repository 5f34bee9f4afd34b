# SPDX-License-Identifier: MIT
"""Lipschitz certificates beside the product of norms, and bounds on the worst expected loss beside what attacks reach.

    python benchmarks/certificates.py digits
    python benchmarks/certificates.py fashion-mnist --data-dir DIR --samples 100

The networks are those of certified_training.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from certified_training import BUDGETS, SIDES, networks
from networks import load
from torch.nn.functional import cross_entropy

from art_wdro import WassersteinPGD, lipschitz_certificate, loss_certificate, sensitivity
from art_wdro._bounds.intervals import Interval
from art_wdro._bounds.jacobians import propagate
from art_wdro._bounds.operator_norms import JacobianNorms
from art_wdro._bounds.pairs import differences
from art_wdro._bounds.tracing import graph_of
from art_wdro._sources.classifiers import as_classifier


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SIDES))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    test, side = load(args.name, args.data_dir, train=False), SIDES[args.name]
    x, y = test.x[: args.samples], test.y[: args.samples]
    constants, losses = [], []
    for key, model, norms in networks(args.name, args.data_dir):
        classifier = as_classifier(model, (1, side, side), 10, "cpu")
        nodes = graph_of(model, (1, side, side))
        box = torch.zeros(1, 1, side, side, dtype=torch.float64)
        region = propagate(nodes, Interval(box, box + 1))
        for norm in norms:
            pair = differences(torch.tensor([0]), torch.tensor([1]), 10)  # the product is the same for all
            product = JacobianNorms(nodes, region, norm).product(pair).item()
            found = lipschitz_certificate(classifier, norm=norm, seconds=args.seconds)
            row = {"network": key, "norm": f"{norm:g}", "lower": found.lower, "upper": found.upper, "product": product}
            constants.append(row)
            print("| {network} | l_{norm} | {lower:.4g} | {upper:.4g} | {product:.4g} |".format(**row), flush=True)
            slope = sensitivity(classifier, x, y, 2, norm, "ce")
            for eps in (BUDGETS[norm][0] / 5, BUDGETS[norm][0], BUDGETS[norm][-1]):
                bound = loss_certificate(classifier, x, y, 2, norm, eps, "ce", constant=found.upper)
                attack = WassersteinPGD(
                    classifier, 2, norm, eps, max_iter=100, schedule="linear", loss="ce", verbose=False
                )
                adversarial = torch.from_numpy(attack.generate(x, y))
                with torch.no_grad():
                    reached = cross_entropy(model(adversarial), torch.from_numpy(y).long()).item()
                row = {"network": key, "norm": f"{norm:g}", "eps": eps, "clean": bound.clean, "attack": reached}
                row |= {"first order": bound.clean + eps * slope, "radii": bound.by_radii}
                row |= {"lipschitz": bound.by_lipschitz, "product": bound.clean + eps * product}
                losses.append(row)
    print()
    for row in losses:
        figures = " | ".join(f"{value:.4g}" for value in row.values() if not isinstance(value, str))
        print(f"| {row['network']} | l_{row['norm']} | {figures} |")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"constants": constants, "losses": losses}, indent=1))


if __name__ == "__main__":
    main()
