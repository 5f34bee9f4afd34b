# SPDX-License-Identifier: MIT
"""Which estimate of Upsilon should `DistributionalTRADESTrainer` use: a fresh sample or the recent batches?

Part 1 follows one fine-tuning and compares, at the same weights, what each estimate says with Upsilon of
the whole training set. Part 2 completes a fine-tuning with each estimate and compares what comes out.

    python -m benchmarks.paper.upsilon_estimates            # half an hour on one thread

Fashion-MNIST is read from the four IDX files of Debian's package dataset-fashion-mnist, or of its authors. Figures go
to benchmarks/results unless --json or --quick is given.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from art_wdro._reproduction.machine import machine
from benchmarks._cells import Cells, Content, cells_of
from benchmarks._command import command, parsed
from benchmarks._files import RESULTS, keep
from benchmarks._tables import Table
from benchmarks.paper._upsilon_cases import CASES, Case, held_out, load, pretrained, quick, start
from benchmarks.paper._upsilon_errors import record, summarise_errors, summarise_truth
from benchmarks.paper._upsilon_fits import FEW, FITS, complete, summarise_fits

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
Run = Callable[[str, Callable[[], Content]], Content]
"""Runs a part of a seed, by its name, or finds what it gave."""


def measure_seed(case: Case, folder: Path, seed: int, fits: Sequence[str], run: Run) -> tuple[Content, Any, Content]:
    """Run both parts for one seed: return accuracies before, rows of part 1, figures by estimate of part 2."""
    data = load(case, folder, seed)
    weights = functools.cache(lambda: pretrained(case, data, seed))  # trained when a cell first needs them
    perturbed = replace(case, last_layer=False)
    before = run("pre-training", lambda: held_out(case, start(perturbed, data, weights(), seed), data))
    rows = run("part 1", lambda: {"rows": record(case, data, weights(), seed)})["rows"]
    # every seed takes the estimates in another order, so that a slow spell of the machine hits no one of them
    names = [*fits[seed % len(fits) :], *fits[: seed % len(fits)]]

    def fitted(name: str) -> Content:
        return complete(case, data, weights(), seed, name)

    completed = {name: run(name, functools.partial(fitted, name)) for name in (names if case.complete else ())}
    return before, rows, completed


def measure(case: Case, folder: Path, fits: Sequence[str], cells: Cells, progress: tqdm[Any]) -> dict[str, Any]:
    """Run both parts of a case for all its seeds."""

    def run(seed: int, part: str, work: Callable[[], Content]) -> Content:
        progress.set_description(f"{case.name}, seed {seed}, {part}")
        found = cells.run({"case": case.name, "seed": seed, "part": part}, work)
        progress.update()
        return found

    found = [measure_seed(case, folder, seed, fits, functools.partial(run, seed)) for seed in case.seeds]
    before, recorded, completed = map(list, zip(*found, strict=True))
    return {
        "case": asdict(case),
        "before": {key: float(np.mean([figures[key] for figures in before])) for key in before[0]},
        "truth": summarise_truth(recorded),
        "errors": summarise_errors(recorded),
        "fits": summarise_fits(completed) if case.complete else None,
        "runs": completed if case.complete else None,
    }


def print_case(result: dict[str, Any]) -> None:
    """Print the tables of a case in Markdown."""
    case, truth = result["case"], result["truth"]
    batches = math.ceil(case["train_size"] / case["batch_size"])
    print(f"\n### {case['name']}\n")
    print(
        f"{case['train_size']} training and {case['test_size']} test images, batches of {case['batch_size']} "
        f"({batches} an epoch), {case['epochs']} epochs, learning rate {case['learning_rate']}, eps {case['eps']}, "
        f"{case['max_iter']} attack steps, seeds {', '.join(map(str, case['seeds']))}. Before the fine-tuning: "
        f"{result['before']['clean']:.1%} clean, {result['before']['w2']:.1%} under W_2.\n"
    )
    print(
        f"Upsilon, measured {truth['measurements']} times: {truth['first']:.2f} at the start, "
        f"{truth['last_tenth']:.2f} over the last tenth, between {truth['least']:.2f} and {truth['greatest']:.2f}; "
        f"median change from one measurement to the next {truth['median_change']:.1%}; standard deviation of "
        f"Upsilon_B / Upsilon {truth['batch_spread']:.2f}; one sample's share of Upsilon^2 "
        f"{truth['largest_sample_median']:.1%} in the median and {truth['largest_sample_greatest']:.0%} at most.\n"
    )
    table = Table(
        "estimate", "median error (seeds)", "90% error", "mean bias", "median bias", "budget ratio", "largest eps_B/eps"
    )
    for name, row in result["errors"].items():
        seeds = f"{row['median_error_least_seed']:.1%} to {row['median_error_greatest_seed']:.1%}"
        errors = f"{row['median_error']:.1%} ({seeds})", f"{row['error_90']:.1%}"
        biases = f"{row['bias']:+.1%}", f"{row['median_bias']:+.1%}"
        table.row(name, *errors, *biases, f"{row['budget_ratio']:.3f}", f"{row['largest_share']:.1f}")
    if result["fits"] is not None:
        print()
        print_fits(result["fits"])


def print_fits(fits: dict[str, dict[str, float]]) -> None:
    """Print the table of part 2."""
    heads = "estimate", "clean", "W_2", "W_2 minus reference", "budget ratio", "its greatest epoch"
    table = Table(*heads, "largest eps_B/eps", "time of an epoch")
    for name, row in fits.items():
        table.row(
            name,
            f"{row['clean']:.1%} ± {row['clean_spread']:.1%}",
            f"{row['w2']:.1%} ± {row['w2_spread']:.1%}",
            f"{100 * row['w2_difference']:+.1f} ± {100 * row['w2_difference_spread']:.1f} points",
            f"{row['budget_ratio']:.3f}",
            f"{row['budget_ratio_greatest']:.2f}",
            f"{row['largest_share']:.1f}",
            f"{row['seconds_ratio']:.2f} ({row['seconds_ratio_least']:.2f} to {row['seconds_ratio_greatest']:.2f})",
        )


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("--case", choices=[case.name for case in CASES], action="append", help="only this case")
    found.add_argument("--data-dir", type=Path, default=DEBIAN, help="folder of the four gzipped IDX files")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cases, print their tables, write JSON."""
    args = parsed(parser(), arguments)
    torch.set_num_threads(1)
    cases = [case for case in CASES if args.case is None or case.name in args.case]
    if args.quick:
        cases = [quick(case) for case in cases if case.data == "digits"]
    elif not args.data_dir.is_dir():
        print(f"no folder {args.data_dir}; the Fashion-MNIST cases are left out", file=sys.stderr)
        cases = [case for case in cases if case.data == "digits"]
    fits = FEW if args.quick else tuple(FITS)
    steps = sum(len(case.seeds) * (2 + len(fits) * case.complete) for case in cases)
    began = time.perf_counter()
    with cells_of(args, "upsilon_estimates") as cells, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="art")
        with tqdm(total=steps, dynamic_ncols=True) as progress:
            results = [measure(case, args.data_dir, fits, cells, progress) for case in cases]
        for result in results:
            print_case(result)
        minutes = (time.perf_counter() - began) / 60
        print(f"\n{machine()}, {minutes:.0f} minutes on one CPU thread")
        report = {"machine": machine(), "device": "CPU, one thread", "minutes": round(minutes, 1), "cases": results}
        keep(args.json or (None if args.quick else RESULTS / "upsilon_estimates.json"), report)


if __name__ == "__main__":
    main()
