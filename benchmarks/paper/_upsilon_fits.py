# SPDX-License-Identifier: MIT
"""Part 2 of upsilon_estimates.py: whole fine-tunings with each estimate."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from art_wdro import DistributionalTRADESTrainer
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._trades import AlgorithmOne
from art_wdro.trainers._update import Updates
from benchmarks.paper._upsilon_cases import Case, Data, held_out, start
from benchmarks.paper._upsilon_errors import REFERENCE

REPLICATE = "resample 10%, other shuffles"
FITS: dict[str, dict[str, Any]] = {
    REFERENCE: {"upsilon": "resample"},
    REPLICATE: {"upsilon": "resample"},
    "resample 10%, eta 0.1": {"upsilon": "resample", "eta": 0.1},
    "streaming 1": {"window": 1},
    "streaming 4": {"window": 4},
    "streaming 16": {"window": 16},
    "streaming 16, eta 0.1": {"window": 16, "eta": 0.1},
    "streaming 64": {"window": 64},
}
"""Settings of the trainer, by the name of the estimate."""
FEW = (REFERENCE, REPLICATE, "streaming 16")
"""Those of a quick run."""


class Watched(DistributionalTRADESTrainer):
    """A trainer that keeps the budgets of all its minibatches."""

    def _method(self, updates: Updates, minibatches: Minibatches) -> AlgorithmOne:
        watched = _Watched(self, updates, minibatches)
        self.shares = watched.shares
        return watched


class _Watched(AlgorithmOne):
    """Algorithm 1 that keeps the budgets of one run, in eps."""

    def __init__(self, trainer: Watched, updates: Updates, minibatches: Minibatches) -> None:
        super().__init__(trainer, updates, minibatches)
        self.shares: list[Tensor] = []

    def _budget(self, own: Tensor, samples: int) -> Tensor:
        budget = super()._budget(own, samples)
        self.shares.append(budget / self._eps)
        return budget


def complete(case: Case, data: Data, weights: dict[str, Tensor], seed: int, name: str) -> dict[str, Any]:
    """Run part 2 for one seed and estimate: return the figures of a whole fine-tuning."""
    classifier = start(case, data, weights, seed)
    trainer = Watched(
        classifier,
        eps=case.eps,
        max_iter=case.max_iter,
        seed=seed + 1000 * (name == REPLICATE),
        verbose=False,
        **({"upsilon": "streaming"} | FITS[name]),
    )
    started = time.process_time()  # on one thread, beside other work
    trainer.fit(data[0], data[1], batch_size=case.batch_size, nb_epochs=case.epochs)
    seconds = (time.process_time() - started) / case.epochs
    ratios = [record["budget_ratio"] for record in trainer.history]
    return held_out(case, classifier, data) | {
        "budget_ratio": float(np.mean(ratios)),
        "budget_ratio_deviation": float(np.mean(np.abs(np.array(ratios) - 1))),
        "budget_ratio_greatest": float(max(ratios)),
        "largest_share": float(torch.stack(trainer.shares).max()),
        "seconds_per_epoch": seconds,
    }


def summarise_fits(seeds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Reduce complete fine-tunings to means, spreads over seeds and paired differences to the reference."""
    summary = {}
    for name in seeds[0]:
        runs = [runs[name] for runs in seeds]
        references = [runs[REFERENCE] for runs in seeds]
        differences = [run["w2"] - own["w2"] for run, own in zip(runs, references, strict=True)]
        seconds = [
            run["seconds_per_epoch"] / own["seconds_per_epoch"] for run, own in zip(runs, references, strict=True)
        ]
        summary[name] = {
            **{key: float(np.mean([run[key] for run in runs])) for key in runs[0]},
            "budget_ratio_greatest": max(run["budget_ratio_greatest"] for run in runs),
            "largest_share": max(run["largest_share"] for run in runs),
            "clean_spread": deviation([run["clean"] for run in runs]),
            "w2_spread": deviation([run["w2"] for run in runs]),
            "w2_difference": float(np.mean(differences)),
            "w2_difference_spread": deviation(differences),
            "seconds_ratio": float(np.median(seconds)),
            "seconds_ratio_least": min(seconds),
            "seconds_ratio_greatest": max(seconds),
        }
    return summary


def deviation(values: Iterable[float]) -> float:
    """Return the standard deviation over seeds, 0 for a single one."""
    values = list(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
