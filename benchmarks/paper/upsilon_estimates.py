# SPDX-License-Identifier: MIT
"""Which estimate of Upsilon should `DistributionalTRADESTrainer` use: a fresh sample or the recent batches?

Part 1 follows one fine-tuning and compares, at the same weights, what each estimate says with Upsilon of
the whole training set. Part 2 completes a fine-tuning with each estimate and compares what comes out.

    python -m benchmarks.paper.upsilon_estimates            # half an hour on one thread
    python -m benchmarks.paper.upsilon_estimates --quick    # one minute, prints only

Fashion-MNIST is read from the four IDX files of Debian's package dataset-fashion-mnist, or of its authors.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from art_wdro import (
    DistributionalTRADESTrainer,
    adversarial_accuracy,
    perturb_weights,
    reinitialise_last_layer,
    sensitivity,
)
from art_wdro._reproduction.machine import machine
from art_wdro._threat.norms import dual_norms, power_mean
from art_wdro.trainers._upsilon import RunningUpsilon
from benchmarks.networks.robust import read_idx

FRACTIONS = (0.05, 0.1, 0.2)
WINDOWS = (1, 2, 4, 8, 16, 32, 64)
TRUE = "true Upsilon"
REFERENCE = "resample 10%"
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
RESULTS = Path(__file__).parents[1] / "results" / "upsilon_estimates.json"
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A data set, a way to start the fine-tuning, and how long to do what.

    :param every: Minibatches from one measurement of the true Upsilon to the next.
    :param complete: Whether part 2 runs too.
    """

    name: str
    data: str
    last_layer: bool
    learning_rate: float
    batch_size: int
    epochs: int
    pretraining_epochs: int
    seeds: tuple[int, ...]
    every: int
    complete: bool
    train_size: int
    test_size: int
    eps: float = 0.1
    max_iter: int = 20


CASES = (
    Case("digits, whole network", "digits", False, 0.05, 32, 3, 15, (0, 1, 2, 3, 4), 1, True, 1297, 500),
    Case("digits, last layer", "digits", True, 0.1, 32, 3, 15, (0, 1, 2, 3, 4), 1, True, 1297, 500),
    Case("Fashion-MNIST, whole network", "fashion", False, 0.05, 64, 3, 6, (0, 1, 2), 4, True, 4800, 1000),
    Case("Fashion-MNIST, last layer", "fashion", True, 0.1, 64, 3, 6, (0, 1, 2), 4, False, 4800, 1000),
)


def quick(case: Case) -> Case:
    """Shrink a case to some seconds."""
    size = min(case.train_size, 640)
    return replace(case, epochs=1, pretraining_epochs=2, seeds=(0,), every=4, train_size=size, test_size=100)


# Data and networks


def load(case: Case, folder: Path, seed: int) -> Data:
    """Return training and test images in [0, 1] with labels, drawn by the seed."""
    rng = np.random.default_rng(seed)
    if case.data == "digits":
        digits = load_digits()
        images, labels = (digits.images[:, None] / 16).astype(np.float32), digits.target
        order = rng.permutation(len(images))
        train, test = order[: case.train_size], order[-case.test_size :]
        return images[train], labels[train], images[test], labels[test]
    parts = []
    for name, size in (("train", case.train_size), ("t10k", case.test_size)):
        images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")[:, None]
        labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz").astype(np.int64)
        chosen = rng.permutation(len(images))[:size]
        parts += [images[chosen].astype(np.float32) / 255, labels[chosen]]
    return tuple(parts)


def network(data: str) -> nn.Module:
    """Build the small convolutional network of a data set."""
    if data == "digits":
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1)]
        features = 32 * 4 * 4
    else:
        layers = [nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1)]
        features = 32 * 7 * 7
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(features, 100), nn.ReLU(), nn.Linear(100, 10))


def classifier_of(model: nn.Module, data: Data, learning_rate: float, momentum: float = 0.0) -> PyTorchClassifier:
    """Wrap a network with a fresh SGD optimiser."""
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        data[0].shape[1:],
        10,
        optimizer=torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum),
        clip_values=(0, 1),
        device_type="cpu",
    )


def pretrained(case: Case, data: Data, seed: int) -> dict[str, Tensor]:
    """Return the weights of a network that pointwise TRADES made robust."""
    torch.manual_seed(seed)
    classifier = classifier_of(network(case.data), data, 0.05, momentum=0.9)
    trainer = DistributionalTRADESTrainer(
        classifier, eps=case.eps, p=math.inf, loss="ce", max_iter=5, eps_step=case.eps / 2.5, seed=seed, verbose=False
    )
    trainer.fit(data[0], data[1], batch_size=case.batch_size, nb_epochs=case.pretraining_epochs)
    return classifier.model.state_dict()


def start(case: Case, data: Data, weights: dict[str, Tensor], seed: int) -> PyTorchClassifier:
    """Return the classifier with which every fine-tuning of a seed starts."""
    model = network(case.data)
    model.load_state_dict(weights)
    classifier = classifier_of(model, data, case.learning_rate)
    if case.last_layer:
        reinitialise_last_layer(classifier, seed=seed)
    else:
        perturb_weights(classifier, seed=seed)
    return classifier


# Part 1: every estimate along one fine-tuning


class Recorder(DistributionalTRADESTrainer):
    """A trainer that resamples 10% and notes what every other estimate would have said."""

    def __init__(self, classifier: PyTorchClassifier, data: Data, every: int, **kwargs: Any) -> None:
        """Take the training set, and the minibatches from one measurement to the next."""
        super().__init__(classifier, upsilon="resample", sample_fraction=0.1, **kwargs)
        self._data = data
        self._every = every
        self.rows: list[dict[str, Any]] = []

    def _begin(self, sample: Callable[[float], Iterator[tuple[Tensor, Tensor]]] | None) -> None:
        super()._begin(sample)
        self._streams = {f"streaming {window}": RunningUpsilon(1.0, 2, window) for window in WINDOWS}
        self._streams["streaming 16, eta 0.1"] = RunningUpsilon(0.1, 2, 16)
        self._slow = RunningUpsilon(0.1, 2, 1)
        self._draws = torch.Generator().manual_seed(self._seed or 0)
        self._seen = 0

    def _budget(self, own: Tensor, count: int) -> Tensor:
        budget = super()._budget(own, count)
        whole = self._running.value
        assert whole is not None
        estimates = {name: stream.stream(own, count).item() for name, stream in self._streams.items()}
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
            self.rows.append({"own": own.item(), "largest_share": largest, "estimates": estimates})
        self._seen += 1
        return budget

    def _norms(self) -> Tensor:
        """Compute the gradient norms of the whole training set at the present weights."""
        x, y = (torch.as_tensor(part) for part in self._data[:2])
        rows = [slice(i, i + 500) for i in range(0, len(x), 500)]
        norms = [dual_norms(self._objective.gradient(x[i], y[i])[1], self._norm) for i in rows]
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


# Part 2: complete fine-tunings


class Watched(DistributionalTRADESTrainer):
    """A trainer that keeps the budgets of all its minibatches."""

    def _begin(self, sample: Callable[[float], Iterator[tuple[Tensor, Tensor]]] | None) -> None:
        super()._begin(sample)
        self.shares: list[Tensor] = []

    def _budget(self, own: Tensor, count: int) -> Tensor:
        budget = super()._budget(own, count)
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
    started = time.process_time()
    trainer.fit(data[0], data[1], batch_size=case.batch_size, nb_epochs=case.epochs)
    seconds = (time.process_time() - started) / case.epochs
    ratios = [record["budget_ratio"] for record in trainer.history]
    return evaluate(case, classifier, data) | {
        "budget_ratio": float(np.mean(ratios)),
        "budget_ratio_deviation": float(np.mean(np.abs(np.array(ratios) - 1))),
        "budget_ratio_greatest": float(max(ratios)),
        "largest_share": float(torch.stack(trainer.shares).max()),
        "seconds_per_epoch": seconds,
    }


def evaluate(case: Case, classifier: PyTorchClassifier, data: Data) -> dict[str, float]:
    """Measure held-out accuracy, clean and under W-PGD with its default steps."""
    return {
        "clean": adversarial_accuracy(classifier, data[2], data[3], eps=0.0),
        "w2": adversarial_accuracy(classifier, data[2], data[3], eps=case.eps),
    }


def summarise_fits(seeds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Reduce complete fine-tunings to means, spreads over seeds and paired differences to the reference."""
    summary = {}
    for name in FITS:
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
            "clean_spread": spread([run["clean"] for run in runs]),
            "w2_spread": spread([run["w2"] for run in runs]),
            "w2_difference": float(np.mean(differences)),
            "w2_difference_spread": spread(differences),
            "seconds_ratio": float(np.median(seconds)),
            "seconds_ratio_least": min(seconds),
            "seconds_ratio_greatest": max(seconds),
        }
    return summary


def spread(values: Iterable[float]) -> float:
    """Return the standard deviation over seeds, 0 for a single one."""
    values = list(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


# The run


def measure(case: Case, folder: Path, progress: tqdm[Any]) -> dict[str, Any]:
    """Run both parts of a case for all its seeds."""
    recorded, completed, before = [], [], []
    for seed in case.seeds:
        progress.set_description(f"{case.name}, seed {seed}, pre-training")
        data = load(case, folder, seed)
        weights = pretrained(case, data, seed)
        before.append(evaluate(case, start(replace(case, last_layer=False), data, weights, seed), data))
        progress.set_description(f"{case.name}, seed {seed}, part 1")
        recorded.append(record(case, data, weights, seed))
        progress.update()
        runs = {}
        # every seed takes the estimates in another order, so that a slow spell of the machine hits no one of them
        names = list(FITS)[seed % len(FITS) :] + list(FITS)[: seed % len(FITS)]
        for name in names if case.complete else ():
            progress.set_description(f"{case.name}, seed {seed}, {name}")
            runs[name] = complete(case, data, weights, seed, name)
            progress.update()
        completed.append(runs)
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
    print(
        "| estimate | median error (seeds) | 90% error | mean bias | median bias | budget ratio | largest eps_B/eps |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, row in result["errors"].items():
        print(
            f"| {name} | {row['median_error']:.1%} ({row['median_error_least_seed']:.1%} to "
            f"{row['median_error_greatest_seed']:.1%}) | {row['error_90']:.1%} | {row['bias']:+.1%} | "
            f"{row['median_bias']:+.1%} | {row['budget_ratio']:.3f} | {row['largest_share']:.1f} |"
        )
    if result["fits"] is None:
        return
    print(
        "\n| estimate | clean | W_2 | W_2 minus reference | budget ratio | its greatest epoch | largest eps_B/eps "
        "| time of an epoch |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, row in result["fits"].items():
        print(
            f"| {name} | {row['clean']:.1%} ± {row['clean_spread']:.1%} | {row['w2']:.1%} ± {row['w2_spread']:.1%} | "
            f"{100 * row['w2_difference']:+.1f} ± {100 * row['w2_difference_spread']:.1f} points | "
            f"{row['budget_ratio']:.3f} | {row['budget_ratio_greatest']:.2f} | {row['largest_share']:.1f} | "
            f"{row['seconds_ratio']:.2f} ({row['seconds_ratio_least']:.2f} to {row['seconds_ratio_greatest']:.2f}) |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one minute, one seed, small sets; writes no file")
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append", help="only this case")
    parser.add_argument("--output", type=Path, help=f"JSON file to write (default: benchmarks/results/{RESULTS.name})")
    parser.add_argument(
        "--fashion-mnist",
        type=Path,
        default=Path("/usr/share/datasets/fashion-mnist"),
        help="folder of the four gzipped IDX files",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="art")
    cases = [case for case in CASES if arguments.case is None or case.name in arguments.case]
    if not arguments.fashion_mnist.is_dir():
        print(f"no folder {arguments.fashion_mnist}; the Fashion-MNIST cases are left out", file=sys.stderr)
        cases = [case for case in cases if case.data == "digits"]
    cases = [quick(case) if arguments.quick else case for case in cases]
    steps = sum(len(case.seeds) * (1 + len(FITS) * case.complete) for case in cases)
    began = time.perf_counter()
    results = []
    with tqdm(total=steps, dynamic_ncols=True) as progress:
        for case in cases:
            results.append(measure(case, arguments.fashion_mnist, progress))
    for result in results:
        print_case(result)
    minutes = (time.perf_counter() - began) / 60
    print(f"\n{machine()}, {minutes:.0f} minutes on one CPU thread")
    output = arguments.output or (None if arguments.quick else RESULTS)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine(), "device": "CPU, one thread", "minutes": round(minutes, 1), "cases": results}
        output.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
