# SPDX-License-Identifier: MIT
"""The experiments of docs/results: the paper's grid, its claim under stronger attacks, and what each choice is worth.

    python -m benchmarks.paper.experiments grid --data-dir DIR
    python -m benchmarks.paper.experiments decisive --data-dir DIR
    python -m benchmarks.paper.experiments ablations --data-dir DIR
    python -m benchmarks.paper.experiments combined --data-dir DIR
    python -m benchmarks.paper.experiments cifar10 --data-dir DIR

All but the last take Fashion-MNIST as torchvision keeps it in DIR, the last one DIR/train.npz and DIR/test.npz.
`benchmarks.networks.pretrained` makes the networks they start from. A run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from art_wdro._reproduction.laboratory import Laboratory
from art_wdro._reproduction.protocol import Cell
from art_wdro._reproduction.reproduction import Reproduction
from benchmarks._command import command, parsed
from benchmarks._files import keep
from benchmarks._settings import LONGER
from benchmarks.paper._protocols import (
    ABLATIONS,
    CIFAR10,
    FASHION,
    POINTWISE,
    SCRATCH,
    SHORT,
    LaboratoryWithoutBudgets,
    LocalLaboratory,
    Site,
)

TARGETS = ("table1", "table2", "table3", "table4", "table5", "fig7.1", "fig7.2", "fig7.3", "fig7.4")
Figures = dict[str, Any]
Settings = dict[str, dict[str, Any]]
"""Parameters of the trainer, by name."""


def grid(site: Site) -> Iterator[Figures]:
    """Run tables 1 to 5 and figures 7.1 to 7.4 on Fashion-MNIST."""
    laboratory = site.laboratory(FASHION, "grid")
    reproduction = Reproduction(laboratory, TARGETS, site.out / "grid", site.seeds, site.network("fashion-mnist"))
    for cell in site.some(sorted(reproduction.planned, key=lambda cell: cell.seed)):
        yield run(laboratory, cell)
    reproduction.write(TARGETS)


def decisive(site: Site) -> Iterator[Figures]:
    """Run the compared cells of Fashion-MNIST again, with AutoAttack, beside a pointwise attack for as long."""
    network, protocol = site.network("fashion-mnist"), replace(FASHION, autoattack=True, strong_samples=300)
    yield run(site.laboratory(protocol, "decisive"), Cell("before", network))
    settings: Settings = {"paper": {}, "pointwise": POINTWISE}
    for name, trainer in settings.items():
        laboratory = site.laboratory(protocol, f"decisive/{name}", **trainer)
        yield run(laboratory, Cell("after", network, 0, "whole", 0.01, 1.0))


def ablations(site: Site) -> Iterator[Figures]:
    """Change one choice at a time, on Fashion-MNIST."""
    for seed in site.seeds:
        for name, trainer in site.some(ABLATIONS.items()):
            kind = LaboratoryWithoutBudgets if name == "without-budgets" else LocalLaboratory
            laboratory = site.laboratory(SHORT, f"ablations/{name}", kind, **trainer)
            start = "none" if name == "no-perturbation" else "whole"
            eta = 0.1 if name == "eta-0.1" else 1.0
            yield run(laboratory, Cell("after", site.network("fashion-mnist"), seed, start, 0.01, eta))


def cifar10(site: Site) -> Iterator[Figures]:
    """Run the decisive cells on CIFAR-10: the paper's, a pointwise attack, longer steps, and the combined objective."""
    network = site.network("cifar10")
    yield run(site.laboratory(CIFAR10, "cifar10"), Cell("before", network))
    longer = {"eps_step": LONGER * CIFAR10.eps / CIFAR10.max_iter}
    settings: Settings = {"paper": {}, "pointwise": POINTWISE, "path-1.875": longer, "combined": {"gamma": 3.0}}
    for seed in site.seeds:
        for name, trainer in site.some(settings.items()):
            if name != "combined" or seed == 0:
                laboratory = site.laboratory(CIFAR10, f"cifar10/{name}", **trainer)
                yield run(laboratory, Cell("after", network, seed, "whole", 0.01, 1.0))


def combined(site: Site) -> Iterator[Figures]:
    """Add the pointwise term where fine-tuning loses W_inf accuracy, tau = 0.1, and in training from scratch."""
    for seed in site.seeds:
        for gamma in site.some((0.0, 3.0, 6.0)):
            laboratory = site.laboratory(SHORT, f"combined/gamma-{gamma:g}", gamma=gamma)
            yield run(laboratory, Cell("after", site.network("fashion-mnist"), seed, "whole", 0.1, 1.0))
    settings: Settings = {f"gamma-{gamma:g}": {"gamma": gamma} for gamma in (0.0, 1.0, 3.0, 6.0)}
    settings["pointwise"] = POINTWISE
    for seed in site.seeds:
        for name, trainer in site.some(settings.items()):
            laboratory = site.laboratory(SCRATCH, f"scratch/{name}", **trainer)
            yield run(laboratory, Cell("after", site.network("digits"), seed, "none", 0.1, 1.0))


EXPERIMENTS: dict[str, Callable[[Site], Iterator[Figures]]] = {
    "grid": grid,
    "decisive": decisive,
    "ablations": ablations,
    "combined": combined,
    "cifar10": cifar10,
}


def run(laboratory: Laboratory, cell: Cell) -> Figures:
    """Run a cell, print its figures and return them."""
    found = laboratory.run(cell)
    strong = found.get("strong") or {"attacks": []}
    accuracies = {f"{row['threat']} {row['attack']}": round(100 * row["accuracy"], 1) for row in strong["attacks"]}
    shown: Figures = {key: found[key] for key in ("test", "train", "reference") if key in found}
    figures: Figures = {"cell": cell.name, "seconds": round(found["seconds"]), **shown, "strong": accuracies}
    print(json.dumps(figures), flush=True)
    return figures


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("experiment", nargs="?", choices=tuple(EXPERIMENTS), help="some cells of each with --quick")
    found.add_argument("--data-dir", type=Path)
    found.add_argument("--out", type=Path, default=Path("runs/experiments"))
    found.add_argument("--device")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one set of experiments."""
    line = parser()
    args = parsed(line, arguments)
    torch.set_num_threads(1)
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            site = Site(Path(folder), None, "cpu", quick=True)
            keep(args.json, [figures for run_all in EXPERIMENTS.values() for figures in run_all(site)])
    elif args.experiment is None:
        line.error(f"an experiment is missing: one of {', '.join(EXPERIMENTS)}")
    else:
        site = Site(args.out, args.data_dir, args.device, quick=False)
        keep(args.json, list(EXPERIMENTS[args.experiment](site)))


if __name__ == "__main__":
    main()
