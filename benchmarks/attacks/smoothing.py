# SPDX-License-Identifier: MIT
"""Brackets of smoothed classifiers under W_2 and l_2: certified by votes from below, attacked from above.

    python -m benchmarks.attacks.smoothing fashion-mnist --data-dir DIR --json A.json
    python -m benchmarks.attacks.smoothing cifar10 --data-dir DIR --json B.json
    python -m benchmarks.attacks.smoothing cifar10 --draw A.json B.json --figure docs/smoothing.png

The networks are those of benchmarks/networks/noisy.py, trained if need be. ART's own `certify` is timed beside, with
scipy's Clopper-Pearson bound, since statsmodels need not be there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from scipy.stats import beta

from art_wdro import certified_radii, evaluate
from art_wdro._sources.data import Split
from art_wdro._storage.files import write_atomically
from art_wdro.evaluation._report import empty_figure
from benchmarks._command import command, parsed, with_data
from benchmarks._files import compact, documented, keep
from benchmarks._tables import Table
from benchmarks._timing import compared, interleaved, timed
from benchmarks.networks._data import load
from benchmarks.networks.noisy import smoothed_network

BUDGETS = tuple(round(0.02 * step, 2) for step in range(31))
SHOWN = (0.0, 0.1, 0.2, 0.3, 0.5)
"""Budgets of the table, of those of the figure."""
CONFIDENCE = 0.999
TITLES = {"fashion-mnist": "Fashion-MNIST, a small CNN", "cifar10": "CIFAR-10 (JPEG), a small ResNet"}


def bracketed(smoothed: PyTorchRandomizedSmoothing, data: Split, votes: int, gradients: int) -> dict[str, Any]:
    """Evaluate: return clean accuracy, both ends of the bracket at each budget, and the seconds of each."""
    report = evaluate(
        *(smoothed, *data), norm=2, eps=0.25, n=votes, knapsack_iter=gradients, batch_size=64, confidence=CONFIDENCE
    )
    clean, attack = report.rows
    ends = {"certified": report.certified_accuracy(BUDGETS), "attack": report.accuracy(BUDGETS)}
    return {
        "clean": clean.accuracy,
        "seconds": {"certified": clean.seconds, "attack": attack.seconds},
        "gradients": attack.gradients,
        "found": float(np.isfinite(report.distances).mean()),
        "curve": {f"{eps:g}": [float(end[at]) for end in ends.values()] for at, eps in enumerate(BUDGETS)},
    }


def costs(smoothed: PyTorchRandomizedSmoothing, data: Split, votes: int, repeats: int) -> list[dict[str, Any]]:
    """Time the same votes here and by ART, by turns, at ART's batch size and at ours or, on a GPU, a large one."""
    smoothed._lower_confidence_bound = lambda hits, draws: beta.ppf(smoothed.alpha, hits, draws - hits + 1)
    selected, _ = smoothed.certify(data.x, n=100)
    labels = np.maximum(selected, 0)
    contestants: dict[str, Callable[[], object]] = {
        f"ART, batches of {size}": partial(smoothed.certify, data.x, n=votes, batch_size=size)
        for size in (32, 64 if smoothed.device.type == "cpu" else 1024)
    }
    contestants["here"] = partial(certified_radii, smoothed, data.x, labels, 2, n=votes)
    rows = compared(interleaved(contestants, repeats), "who", of_ours=("here", False))
    passes = len(data.x) * (votes + smoothed.sample_size)
    return [row | {"passes_a_second": passes / row["seconds"]} for row in rows]


def draw(files: Sequence[Path], file: Path) -> None:
    """Draw the brackets of several data sets beside each other."""
    figure = empty_figure()
    figure.set_size_inches(9, 3.6)
    for axes, source in zip(np.atleast_1d(figure.subplots(1, len(files))), files, strict=True):
        found = json.loads(source.read_text(encoding="utf-8"))
        low, high = 100 * np.array([*found["bracket"]["curve"].values()]).T
        axes.axhline(100 * found["bracket"]["clean"], color="#000000", linestyle=":", label="clean")
        axes.plot(BUDGETS, high, color="#d55e00", label="attack on the smoothed classifier")
        axes.plot(BUDGETS, low, color="#0072b2", label="certified")
        axes.fill_between(BUDGETS, low, high, color="#0072b2", alpha=0.15, linewidth=0)
        axes.set(
            title=TITLES.get(found["setting"]["data"], "digits"), xlabel="budget eps of (W_2, l_2), in input units"
        )
        axes.set(ylabel="accuracy in %", xlim=(0, BUDGETS[-1]), ylim=(0, 100))
        axes.legend(fontsize=8)
    write_atomically(file, partial(figure.savefig, dpi=120))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__))
    found.add_argument("--samples", type=int, default=100)
    found.add_argument("--votes", type=int, default=10_000, help="n, for each image")
    found.add_argument("--gradients", type=int, default=60, help="gradients of the mean softmax, for each image")
    found.add_argument("--repeats", type=int, default=5, help="rounds of timing")
    found.add_argument("--timed", type=int, default=4, help="images that are timed")
    found.add_argument("--draw", type=Path, nargs="+", help="files of earlier runs, which are drawn")
    found.add_argument("--figure", type=Path)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Certify and attack, and time the votes; or draw what was found."""
    args = parsed(parser(), arguments, samples=30, votes=500, gradients=20, repeats=1, timed=2)
    if args.draw:
        draw(args.draw, args.figure)
        return
    data = Split(*(part[: args.samples] for part in load(args.name, args.data_dir, train=False)))
    smoothed = smoothed_network(args.name, args.data_dir)
    found, seconds = timed(lambda: bracketed(smoothed, data, args.votes, args.gradients))
    few = Split(*(part[: args.timed] for part in data))
    cost = costs(smoothed, few, min(args.votes, 2000), args.repeats)
    table = Table("eps", "certified in %", "attack in %")
    for eps in SHOWN:
        table.row(f"{eps:g}", *(f"{100 * end:.1f}" for end in found["curve"][f"{eps:g}"]))
    print()
    times = Table("votes by", "seconds", "of ours", "passes a second")
    for row in cost:
        times.row(row["who"], f"{row['seconds']:.2f}", f"{row['of_ours']:.2f}", f"{row['passes_a_second']:.0f}")
    setting = {"data": args.name, "samples": len(data.x), "votes": args.votes, "scale": smoothed.scale}
    setting |= {"confidence": CONFIDENCE, "gradients": args.gradients}
    keep(args.json, documented(setting, bracket=compact(found), cost=[compact(row) for row in cost], seconds=seconds))


if __name__ == "__main__":
    main()
