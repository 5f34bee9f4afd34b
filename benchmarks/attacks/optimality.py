# SPDX-License-Identifier: MIT
"""Minimum-norm attacks ranked as AttackBench ranks them: by optimality against the best of all, sample by sample.

    pip install --no-deps adv-lib==0.2.8
    python -m benchmarks.attacks.optimality cifar10 --data-dir DIR

Every attack gets the same forward plus backward passes a sample, and settings that the benchmark ranks. Local
optimality is the area between the clean accuracy and an attack's curve of accuracy over eps, as a part of that area for
the least distances of all attacks. `own` in place of the data set takes a network and images of yours, as `art-wdro
evaluate` does:

    python -m benchmarks.attacks.optimality own --network MODULE:FUNCTION --images FILE.npz

Each attack is a file in `--directory`, written as soon as it has run. Several processes that share the folder share the
work: `--shard 0/4` to `--shard 3/4` run a quarter of the attacks each, and a call without it ranks them.

Source: Cina et al., AttackBench: evaluating gradient-based attacks for adversarial examples, AAAI 2025,
arXiv:2404.19460, equations (4) and (5).
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from art_wdro import __version__
from art_wdro._reproduction.machine import machine
from art_wdro._sources.data import load_data
from art_wdro._sources.networks import load_network
from art_wdro.functional import least_distances
from benchmarks._cells import Cells, cells_of
from benchmarks._command import NAMES, command, parsed, share, with_data, with_shard
from benchmarks._files import documented, keep
from benchmarks._tables import Table
from benchmarks.attacks._rivals import MOST, NORMS, Images, correct_of, installed, scored_distances
from benchmarks.networks._data import load
from benchmarks.networks.robust import robust_network

OURS = "ours"
OWN = "own"
"""In place of a data set: a network and images of the user's."""
Attack = Callable[[], Any]


def area(distances: np.ndarray, most: float) -> float:
    """Return the area under the accuracy on correctly classified samples over budgets up to the largest, exactly.

    >>> area(np.array([0.5, 2.0, np.inf]), 1.0)
    0.8333333333333334
    """
    return float(np.minimum(distances, most).mean())


def optimality(distances: np.ndarray, best: np.ndarray) -> float:
    """Return an attack's local optimality: 1 where it finds the best distances, 0 where it finds none.

    :param distances: What it found of correctly classified samples, (N,), inf where nothing.
    :param best: The least of all attacks, (N,); the area goes to the largest finite one.
    """
    most = float(best[np.isfinite(best)].max())
    return (most - area(distances, most)) / (most - area(best, most))


def contestants(images: Images, r: float, passes: int, libraries: set[str]) -> dict[str, Attack]:
    """Return the attacks under a ground norm, each with so many forward plus backward passes a sample."""
    model, x, y, steps = images.classifier.model, images.x, images.y, passes // 2

    def ours() -> Tensor:
        return least_distances(model, x, y, r=r, max_iter=steps, batch_size=len(x)).points

    found: dict[str, Attack] = {OURS: ours}
    if "adv_lib" not in libraries:
        return found
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # imported to draw
    from adv_lib.attacks import alma, ddn, fmn, pdpgd, sdf, tr
    from adv_lib.attacks.auto_pgd import minimal_apgd
    from adv_lib.attacks.fast_adaptive_boundary import fab

    # as the benchmark's registry sets them: alpha of 10 under l_inf
    found["FMN"] = lambda: fmn(model, x, y, norm=r, steps=steps, α_init=10.0 if np.isinf(r) else 1.0)
    # a step compares all classes, nine backward passes and a forward one
    found["FAB"] = lambda: fab(model, x, y, norm=r, n_iter=max(1, passes // 11))
    bisected = partial(minimal_apgd, model, x, y, norm=r, max_eps=MOST[r], binary_search_steps=10)
    found["Auto-PGD bisected"] = lambda: bisected(n_iter=max(2, steps // 10), loss_function="dlr")
    # one run for each of nine classes
    found["targeted Auto-PGD bisected"] = lambda: bisected(n_iter=max(2, steps // 90), targeted_version=True)
    found["PDPGD"] = lambda: pdpgd(model, x, y, norm=r, num_steps=steps)
    if r != np.inf:
        distance, rate = ("l1", 0.5) if r == 1.0 else ("l2", 0.1)
        found["ALMA"] = lambda: alma(model, x, y, distance=distance, num_steps=steps, init_lr_distance=rate)
    if r != 1.0:
        # a step compares all classes
        found["TR"] = lambda: tr(model, x, y, p=r, iter=max(1, passes // 11), adaptive=True)
    if r == 2.0:
        found["DDN"] = lambda: ddn(model, x, y, steps=steps, levels=None)
        found["SuperDeepFool"] = lambda: sdf(model, x, y, steps=max(1, passes // 11))
    return found


def cell_of(r: float, passes: int, attack: str) -> dict[str, Any]:
    """Return what tells an attack's cell from the others."""
    return {"norm": str(r), "passes": passes, "attack": attack}


def run_shard(images: Images, args: argparse.Namespace, libraries: set[str], cells: Cells) -> None:
    """Run this process's share of all attacks."""
    attacks = [
        (r, passes, name, run)
        for passes in sorted(args.passes, reverse=True)  # the long ones first
        for r in args.norms
        for name, run in contestants(images, r, passes, libraries).items()
    ]
    shown = Table("norm", "passes", "attack", "gradients", "seconds")
    for r, passes, name, run in share(attacks, args.shard):
        found = cells.run(cell_of(r, passes, name), partial(scored_distances, images, run, r))
        shown.row(r, passes, name, f"{found['gradients']:.0f}", f"{found['seconds']:.1f}")


def ranked(images: Images, r: float, passes: int, libraries: set[str], cells: Cells) -> list[dict[str, Any]]:
    """Run all attacks under a ground norm, and return a row each, the best one first."""
    found = {}
    for name, run in contestants(images, r, passes, libraries).items():
        found[name] = cells.run(cell_of(r, passes, name), partial(scored_distances, images, run, r))
    distances = {name: np.asarray(cell["distances"]) for name, cell in found.items()}
    best = np.minimum.reduce([*distances.values()])
    rows = [
        {
            **cell_of(r, passes, name),
            "optimality": optimality(own, best),
            "median": float(np.median(own)),
            "gradients": found[name]["gradients"],
            "seconds": found[name]["seconds"],
        }
        for name, own in distances.items()
    ]
    return sorted(rows, key=lambda row: -row["optimality"])


def rank(images: Images, args: argparse.Namespace, libraries: set[str], cells: Cells) -> list[dict[str, Any]]:
    """Rank all attacks under all norms, print what is found, and return the rows."""
    rows = []
    shown = Table("norm", "passes", "attack", "optimality", "median", "gradients", "seconds")
    for r in args.norms:
        for passes in args.passes:
            for row in ranked(images, r, passes, libraries, cells):
                rows.append(row)
                figures = (f"{row['optimality']:.4f}", f"{row['median']:.4g}", f"{row['gradients']:.0f}")
                shown.row(row["norm"], passes, row["attack"], *figures, f"{row['seconds']:.1f}")
    return rows


def images_of(args: argparse.Namespace) -> Images:
    """Return what a command line says is attacked."""
    name = args.name
    data = load_data(args.images) if name == OWN else load(name, args.data_dir, train=False)
    model = robust_network(name, args.data_dir).model if args.network is None else load_network(args.network)
    return correct_of(model, data, args.samples, "gpu" if args.gpu else "cpu")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__), (*NAMES, OWN))
    found.add_argument("--samples", type=int, default=500)
    found.add_argument(
        "--passes", type=int, nargs="+", default=[100, 200, 2000], help="forward plus backward, a sample"
    )
    found.add_argument("--norms", type=float, nargs="+", default=[*NORMS], help="inf, 2 and 1")
    found.add_argument("--network", help="a network for the images, module:function or a file")
    found.add_argument("--images", help="with `own`: a file .npz, torchvision:NAME or a folder of images")
    found.add_argument("--gpu", action="store_true", help="on a GPU, where there is one")
    found.add_argument("--directory", type=Path, help="where attacks are kept for good; else until all have run")
    return with_shard(found, "the attacks, with --directory")


def main(arguments: Sequence[str] | None = None) -> None:
    """Rank the attacks on one network."""
    line = parser()
    args = parsed(line, arguments, samples=20, passes=[60])
    if args.name == OWN and None in (args.network, args.images):
        line.error("`own` needs --network and --images")
    if args.shard and args.directory is None:
        line.error("--shard needs --directory")
    libraries = installed(args.quick, ["adv_lib"])
    torch.backends.cudnn.allow_tf32 = False  # what one pass calls misclassified the next one should
    images = images_of(args)
    print(machine())
    setting = {"name": args.name, "samples": args.samples, "gpu": args.gpu}
    for key in ("network", "images"):
        source = getattr(args, key)
        setting[key] = source and Path(source).name
    if args.directory is None:
        with cells_of(args, "optimality") as cells:
            rows = rank(images, args, libraries, cells)
    else:
        cells = Cells(args.directory, {"art-wdro": __version__, **setting})
        if args.shard:
            run_shard(images, args, libraries, cells)
            return
        rows = rank(images, args, libraries, cells)
    keep(args.json, documented({**setting, "correct": len(images.x)}, rows=rows))


if __name__ == "__main__":
    main()
