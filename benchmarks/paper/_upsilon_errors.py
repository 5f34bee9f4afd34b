# SPDX-License-Identifier: MIT
"""Part 1 of upsilon_estimates.py: every estimate along one fine-tuning, beside the true Upsilon."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro import DistributionalTRADESTrainer, sensitivity
from art_wdro._threat.norms import dual_norms, power_mean
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._trades import AlgorithmOne
from art_wdro.trainers._update import Updates
from art_wdro.trainers._upsilon import RunningUpsilon
from benchmarks.paper._upsilon_cases import Case, Data, start

FRACTIONS = (0.05, 0.1, 0.2)
WINDOWS = (1, 2, 4, 8, 16, 32, 64)
TRUE = "true Upsilon"
REFERENCE = "resample 10%"


class Recorder(DistributionalTRADESTrainer):
    """A trainer that resamples 10% and notes what every other estimate would have said."""

    def __init__(self, classifier: PyTorchClassifier, data: Data, every: int, **kwargs: Any) -> None:
        """Take the training set, and the minibatches from one measurement to the next."""
        super().__init__(classifier, upsilon="resample", sample_fraction=0.1, **kwargs)
        self.data, self.every = data, every
        self.rows: list[dict[str, Any]] = []

    def _method(self, updates: Updates, minibatches: Minibatches) -> AlgorithmOne:
        return _Recorded(self, updates, minibatches)


class _Recorded(AlgorithmOne):
    """Algorithm 1 beside which the other estimates run."""

    def __init__(self, trainer: Recorder, updates: Updates, minibatches: Minibatches) -> None:
        super().__init__(trainer, updates, minibatches)
        self._data, self._every, self._rows = trainer.data, trainer.every, trainer.rows
        self._streams = {f"streaming {window}": RunningUpsilon(1.0, 2, window) for window in WINDOWS}
        self._streams["streaming 16, eta 0.1"] = RunningUpsilon(0.1, 2, 16)
        self._slow = RunningUpsilon(0.1, 2, 1)
        self._draws = torch.Generator().manual_seed(trainer._common.seed or 0)
        self._seen = 0

    def _budget(self, own: Tensor, samples: int) -> Tensor:
        budget = super()._budget(own, samples)
        whole = self._running.value
        assert whole is not None
        estimates = {name: stream.stream(own, samples).item() for name, stream in self._streams.items()}
        estimates["resample 10%, eta 0.1"] = self._slow.update(whole).item()
        if self._seen % self._every == 0:
            norms = self._norms()
            for fraction in FRACTIONS:
                chosen = torch.randperm(len(norms), generator=self._draws)[: math.ceil(fraction * len(norms))]
                estimates[f"resample {fraction:.0%}"] = power_mean(norms[chosen], 2.0).item()
            estimates[REFERENCE] = whole.item()
            estimates[TRUE] = power_mean(norms, 2.0).item()
            squares = norms.square()
            largest = (squares.max() / squares.sum()).item() if estimates[TRUE] > 0 else 0.0
            self._rows.append({"own": own.item(), "largest_share": largest, "estimates": estimates})
        self._seen += 1
        return budget

    def _norms(self) -> Tensor:
        """Compute the gradient norms of the whole training set at the present weights."""
        x, y = (torch.as_tensor(part) for part in self._data[:2])
        rows = [slice(i, i + 500) for i in range(0, len(x), 500)]
        norms = [dual_norms(self._objective.gradient(x[i], y[i]).gradient, self._r) for i in rows]
        return torch.cat(norms)


def check_truth(classifier: PyTorchClassifier, data: Data, rows: list[dict[str, Any]]) -> None:
    """Refuse a first measurement that is not what the public function says of the same weights."""
    expected = sensitivity(classifier, data[0], data[1])
    if not math.isclose(rows[0]["estimates"][TRUE], expected, rel_tol=1e-3):
        raise RuntimeError(f"Upsilon is measured as {rows[0]['estimates'][TRUE]}, and is {expected}")


def record(case: Case, data: Data, weights: dict[str, Tensor], seed: int) -> list[dict[str, Any]]:
    """Run part 1 for one seed: return a row for every measured minibatch."""
    trainer = Recorder(
        start(case, data, weights, seed),
        data,
        case.every,
        eps=case.eps,
        max_iter=case.max_iter,
        seed=seed,
        verbose=False,
    )
    trainer.fit(data[0], data[1], batch_size=case.batch_size, nb_epochs=case.epochs)
    check_truth(start(case, data, weights, seed), data, trainer.rows)
    return trainer.rows


def summarise_errors(seeds: list[list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Reduce the rows of all seeds to error figures per estimate."""
    names = [TRUE, *(f"resample {f:.0%}" for f in FRACTIONS), "resample 10%, eta 0.1"]
    names += [*(f"streaming {w}" for w in WINDOWS), "streaming 16, eta 0.1"]
    summary = {}
    for name in names:
        errors, ratios, largest = [], [], []
        for rows in seeds:
            own, truth, estimate = (
                np.array(values)
                for values in zip(
                    *((row["own"], row["estimates"][TRUE], row["estimates"][name]) for row in rows), strict=True
                )
            )
            # as the trainer does, a batch that is wholly misclassified gets nothing
            shares = np.divide(own, estimate, out=np.zeros_like(own), where=estimate > 0)
            errors.append(estimate / truth - 1)
            ratios.append(np.sqrt(np.mean(shares**2)))
            largest.append(shares.max())
        pooled = np.concatenate(errors)
        medians = [np.median(np.abs(e)) for e in errors]
        summary[name] = {
            "median_error": float(np.median(np.abs(pooled))),
            "median_error_least_seed": float(min(medians)),
            "median_error_greatest_seed": float(max(medians)),
            "error_90": float(np.quantile(np.abs(pooled), 0.9)),
            "bias": float(np.mean(pooled)),
            "median_bias": float(np.median(pooled)),
            "budget_ratio": float(np.mean(ratios)),
            "budget_ratio_deviation": float(np.mean(np.abs(np.array(ratios) - 1))),
            "largest_share": float(max(largest)),
        }
    return summary


def summarise_truth(seeds: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Describe what is estimated: how it varies over batches and time, and what one sample contributes."""
    truths = [np.array([row["estimates"][TRUE] for row in rows]) for rows in seeds]
    return {
        "measurements": sum(map(len, truths)),
        "first": float(np.mean([t[0] for t in truths])),
        "last_tenth": float(np.mean([t[-math.ceil(len(t) / 10) :].mean() for t in truths])),
        "least": float(min(t.min() for t in truths)),
        "greatest": float(max(t.max() for t in truths)),
        "median_change": float(np.median(np.concatenate([np.abs(t[1:] / t[:-1] - 1) for t in truths]))),
        "batch_spread": float(
            np.median([np.std([row["own"] / row["estimates"][TRUE] for row in rows]) for rows in seeds])
        ),
        "largest_sample_median": float(np.median([row["largest_share"] for rows in seeds for row in rows])),
        "largest_sample_greatest": float(max(row["largest_share"] for rows in seeds for row in rows)),
    }
