# SPDX-License-Identifier: MIT
"""Brackets of the accuracy under W_2: what is certified from below, what the knapsack attack leaves from above.

    python -m benchmarks.attacks.brackets digits
    python -m benchmarks.attacks.brackets fashion-mnist --data-dir DIR --samples 200

The networks are those of benchmarks/networks/certified.py, trained if need be.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_wdro import WassersteinKnapsack, certified_radii, knapsack_accuracy
from art_wdro._sources.data import Split
from benchmarks._cells import cells_of
from benchmarks._command import command, parsed
from benchmarks._files import keep
from benchmarks._settings import CERTIFIED_BUDGETS, DATA
from benchmarks._tables import Table
from benchmarks._timing import timed
from benchmarks.networks._architectures import classifier_of
from benchmarks.networks._data import load
from benchmarks.networks.certified import FEW, candidates, with_networks


def bracketed(classifier: PyTorchClassifier, data: Split, norm: float) -> dict[str, Any]:
    """Attack and certify: return clean accuracy, a bracket at each budget, and seconds a sample of the certificate."""
    attack = WassersteinKnapsack(classifier, norm=norm, max_iter=100, batch_size=250, verbose=False)
    attack.generate(*data)
    radii, seconds = timed(lambda: certified_radii(classifier, *data, norm, largest=attack.distances_))
    brackets = {
        f"{eps:g}": [float(knapsack_accuracy(found, eps)) for found in (radii, attack.distances_)]
        for eps in CERTIFIED_BUDGETS[norm]
    }
    return {"clean": float(np.mean(attack.distances_ > 0)), "W_2": brackets, "seconds": seconds / len(data.x)}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_networks(command(__doc__))
    found.add_argument("--samples", type=int, default=500)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Certify and attack."""
    args = parsed(parser(), arguments, samples=4, networks=FEW)
    data = Split(*(part[: args.samples] for part in load(args.name, args.data_dir, train=False)))
    table, rows = Table("network", "clean", "norm", "W_2 brackets in % at each eps", "seconds a sample"), []
    with cells_of(args, "brackets") as cells:
        for candidate in candidates(args.name, args.data_dir, args.networks):
            classifier = classifier_of(candidate.model, DATA[args.name].shape)
            for norm in candidate.norms:
                cell = {"network": candidate.name, "norm": f"{norm:g}"}
                found = cells.run(cell, partial(bracketed, classifier, data, norm))
                rows.append({"network": candidate.name, "clean": found["clean"], "norm": cell["norm"]})
                rows[-1] |= {"W_2": found["W_2"], "seconds": found["seconds"]}
                text = ", ".join(f"[{100 * a:.1f}, {100 * b:.1f}] at {eps}" for eps, (a, b) in found["W_2"].items())
                clean, seconds = f"{100 * found['clean']:.1f}", f"{found['seconds']:.2f}"
                table.row(candidate.name, clean, f"l_{norm:g}", text, seconds)
        keep(args.json, rows)


if __name__ == "__main__":
    main()
