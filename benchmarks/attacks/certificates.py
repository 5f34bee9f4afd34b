# SPDX-License-Identifier: MIT
"""Lipschitz certificates beside the product of norms, and bounds on the worst expected loss beside what attacks reach.

    python -m benchmarks.attacks.certificates digits
    python -m benchmarks.attacks.certificates fashion-mnist --data-dir DIR --samples 100

The networks are those of benchmarks/networks/certified.py, trained if need be.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from art_wdro import WassersteinPGD, lipschitz_certificate, loss_certificate, sensitivity
from art_wdro._bounds.intervals import Interval
from art_wdro._bounds.jacobians import propagate
from art_wdro._bounds.operator_norms import JacobianNorms
from art_wdro._bounds.pairs import differences
from art_wdro._bounds.tracing import graph_of
from art_wdro._sources.data import Split
from benchmarks._cells import cells_of
from benchmarks._command import command, parsed
from benchmarks._files import keep
from benchmarks._settings import CERTIFIED_BUDGETS
from benchmarks._tables import Table
from benchmarks.networks._architectures import CLASSES, classifier_of
from benchmarks.networks._data import load
from benchmarks.networks.certified import FEW, candidates, with_networks

FIGURES = ("eps", "clean", "attack", "first order", "radii", "lipschitz", "product")


def product_of_norms(model: nn.Module, shape: tuple[int, ...], norm: float) -> float:
    """Bound the Lipschitz constant over [0, 1] by the product of the layers' norms."""
    nodes, box = graph_of(model, shape), torch.zeros(1, *shape, dtype=torch.float64)
    region = propagate(nodes, Interval(box, box + 1))
    pair = differences(torch.tensor([0]), torch.tensor([1]), CLASSES)  # the product is the same for all
    return JacobianNorms(nodes, region, norm).product(pair).item()


def bounded(model: nn.Module, data: Split, norm: float, seconds: float) -> dict[str, Any]:
    """Bound the Lipschitz constant, and from it the worst expected loss: return a row, and rows a budget."""
    x, y = data
    classifier = classifier_of(model, x.shape[1:])
    product = product_of_norms(model, x.shape[1:], norm)
    found = lipschitz_certificate(classifier, norm=norm, seconds=seconds)
    slope, losses = sensitivity(classifier, x, y, 2, norm, "ce"), []
    budgets = CERTIFIED_BUDGETS[norm]
    for eps in (budgets[0] / 5, budgets[0], budgets[-1]):
        bound = loss_certificate(classifier, x, y, 2, norm, eps, "ce", constant=found.upper)
        attack = WassersteinPGD(
            classifier, p=2, norm=norm, eps=eps, max_iter=100, schedule="linear", loss="ce", verbose=False
        )
        adversarial = torch.from_numpy(attack.generate(x, y))
        with torch.no_grad():
            reached = cross_entropy(model(adversarial), torch.from_numpy(y).long()).item()
        row = {"eps": eps, "clean": bound.clean, "attack": reached, "first order": bound.clean + eps * slope}
        row |= {"radii": bound.by_radii, "lipschitz": bound.by_lipschitz, "product": bound.clean + eps * product}
        losses.append(row)
    return {"lower": found.lower, "upper": found.upper, "product": product, "losses": losses}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_networks(command(__doc__))
    found.add_argument("--samples", type=int, default=200)
    found.add_argument("--seconds", type=float, default=30.0, help="for each Lipschitz constant")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    args = parsed(parser(), arguments, samples=2, seconds=0.1, networks=FEW)
    data = Split(*(part[: args.samples] for part in load(args.name, args.data_dir, train=False)))
    constants, losses = [], []
    with cells_of(args, "certificates") as cells:
        table = Table("network", "norm", "lower", "upper", "product of norms")
        for candidate in candidates(args.name, args.data_dir, args.networks):
            for norm in candidate.norms:
                cell = {"network": candidate.name, "norm": f"{norm:g}"}
                found = cells.run(cell, partial(bounded, candidate.model, data, norm, args.seconds))
                losses += [{**cell, **row} for row in found.pop("losses")]
                constants.append({**cell, **found})
                table.row(candidate.name, f"l_{norm:g}", *(f"{value:.4g}" for value in found.values()))
        print()
        table = Table("network", "norm", *FIGURES)
        for row in losses:
            table.row(row["network"], f"l_{row['norm']}", *(f"{row[key]:.4g}" for key in FIGURES))
        keep(args.json, {"constants": constants, "losses": losses})


if __name__ == "__main__":
    main()
