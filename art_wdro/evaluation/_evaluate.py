# SPDX-License-Identifier: MIT
"""One report of a classifier under pointwise and distributional threats, with the checks that make it meaningful."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.inputs import labelled_data
from art_wdro._host.smoothing import is_smoothed
from art_wdro._ranks import all_rows, count, everywhere, is_first
from art_wdro.attacks._pgd import WassersteinFGM
from art_wdro.certificates._problem import why_uncertified
from art_wdro.certificates._radii import certified_radii, refuse_draws
from art_wdro.certificates._smoothing import voting_of
from art_wdro.evaluation._attempts import Attempt, Case, Pool, attempts_on, told, tried
from art_wdro.evaluation._autoattack import check_autoattack, left_out
from art_wdro.evaluation._first_order import bounds_of, upsilon_of
from art_wdro.evaluation._progress import Progress
from art_wdro.evaluation._provenance import provenance
from art_wdro.evaluation._report import Report, Row
from art_wdro.evaluation._sanity import check_model, check_rows
from art_wdro.evaluation._smoothed import smoothed_report
from art_wdro.evaluation._subset import subset

LOSSES = ("redlr", "ce")
"""Those whose first-order bounds are reported."""


def evaluate(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    *,
    p: float = 2,
    norm: float | str = np.inf,
    eps: float = 8 / 255,
    batch_size: int = 128,
    knapsack_iter: int = 300,
    autoattack: bool | None = None,
    certified: bool | None = None,
    n: int | None = None,
    confidence: float = 0.999,
    keep_arrays: bool = False,
    on_row: Callable[[Row, np.ndarray], None] | None = None,
    verbose: bool = True,
    samples: int | None = None,
    seed: int = 0,
) -> Report:
    """Evaluate a classifier: clean, pointwise by PGD and AutoAttack, distributional by W-PGD and the knapsack.

    The figure to quote is the knapsack's: W-PGD is a heuristic for the same quantity and usually far above it. With the
    accuracy by certified radii it brackets the truth. Of a `PyTorchRandomizedSmoothing` of ART the report has that
    bracket alone, by votes under its noise: ground norms other than l_2 leave little of the certificate.

    :param classifier: A `PyTorchClassifier` whose network puts out logits, or a `PyTorchRandomizedSmoothing`.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch: the whole data set, which shares the budget.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param p: Order of the Wasserstein distance, in (1, inf]; of a smoothed classifier in [1, inf].
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param eps: Budget in input units, pointwise and distributional alike.
    :param batch_size: Samples in one forward and backward pass.
    :param knapsack_iter: Gradient evaluations a sample in the search for least distances, at most.
    :param autoattack: Whether to run the AutoAttack package (not ART's attack of that name): None runs it where it is
        installed and the inputs lie in [0, 1]; where only the package is missing, its row says what to install.
    :param certified: Whether to compute certified radii, for an accuracy that no attack can pass: None does so where
        the network has bounds and it takes little, and of a smoothed classifier.
    :param n: Votes that bound a probability, of a smoothed classifier alone; None takes 10,000.
    :param confidence: Probability, over the noise, with which both ends of the bracket of a smoothed classifier hold.
    :param keep_arrays: Keep the adversarial arrays in the report.
    :param on_row: Called with each attack's figures and adversarial array as soon as they are there.
    :param verbose: Show a progress bar, by gradients of all attacks; AutoAttack has its own, by an estimate.
    :param samples: Evaluate a random part of so many samples, every class in proportion; None evaluates all.
    :param seed: Seed of that draw, and of the draws behind the intervals of the report.
    :return: The report; its `warnings` are also issued as `UserWarning`.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit.
    :raises ImportError: If AutoAttack is asked for and not installed.
    """
    votes = is_smoothed(classifier)  # which are not ascended, so that p = 1 is fine
    threat = arguments.order(p, one=votes), arguments.ground_norm(norm), arguments.real("eps", eps, 0.0)
    certified = None if certified is None else arguments.flag("certified", certified)
    if not votes:
        host.require_pytorch(evaluate, classifier)
        refuse_draws(n=n)
    data, drawn = _data(classifier, x, y, samples, seed)
    if votes:
        asked = {"n": n, "confidence": confidence, "max_iter": knapsack_iter, "certified": certified is not False}
        return replace(_smoothed(classifier, data, threat, batch_size, asked, (keep_arrays, on_row)), **drawn)
    case = Case(classifier, *data, *threat, arguments.integer("batch_size", batch_size, 1))
    reason = why_uncertified(classifier, count(len(case.x)), certified)
    attempts = attempts_on(case, knapsack_iter, check_autoattack(classifier, autoattack, case.r))
    found, pool = check_model(case) if len(case.x) else [], Pool(case)
    rows, drawn["arrays"] = _tried_all(pool, attempts, keep_arrays, on_row, verbose)
    report = _reported(case, pool, rows + left_out(classifier, autoattack, case.r), reason, found)
    report = replace(report, uncertified=None if certified is False else report.uncertified, **drawn)
    for text in report.warnings:
        warnings.warn(text, UserWarning, stacklevel=2)
    return report


def _data(
    classifier: PyTorchClassifier, x: Any, y: Any, samples: Any, seed: Any
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """Return the checked data to evaluate, and what a report says of where they and the network come from."""
    seed = arguments.integer("seed", seed, 0)
    inputs, labels = labelled_data(classifier, x, y)
    whole = count(len(inputs))
    inputs, labels, indices = subset(inputs, labels, samples, seed)
    origin = provenance(classifier, inputs, labels)
    return (inputs, labels), {"seed": seed, "indices": indices, "drawn_from": whole, "provenance": origin}


def _tried_all(
    pool: Pool,
    attempts: list[Attempt],
    keep: bool,
    on_row: Callable[[Row, np.ndarray], None] | None,
    verbose: bool,
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Run the attempts, and return their rows and arrays.

    :raises Exception: What the first one raised, if all but clean data failed.
    """
    rows: list[Row] = []
    arrays: dict[str, np.ndarray] = {}
    gradients = len(pool.distances) * sum(attempt.gradients for attempt in attempts)
    with Progress(gradients, bool(verbose) and is_first()) as progress:
        for attempt in attempts:
            row, points = pool.attempted(attempt, progress)
            rows.append(row)
            if points is None:
                continue
            arrays[attempt.name] = shown = points.numpy().view()
            shown.flags.writeable = attempt.order is not None  # without an attack it is the user's own
            if on_row is not None:
                on_row(row, arrays[attempt.name] if keep else arrays.pop(attempt.name))
    if len(pool.errors) == len(attempts) - 1:
        raise pool.errors[0]
    return rows, arrays


def _smoothed(
    classifier: PyTorchClassifier,
    data: tuple[Tensor, Tensor],
    threat: tuple[float, float, float],
    batch_size: Any,
    asked: dict[str, Any],
    arrays: tuple[bool, Callable[[Row, np.ndarray], None] | None],
) -> Report:
    """Evaluate a smoothed classifier.

    :param data: Inputs and labels, checked.
    :param threat: Order, ground norm and budget.
    :param batch_size: Noisy copies in one pass.
    :param asked: What `evaluate` calls n, confidence and knapsack_iter, and whether the certificate is wanted.
    :param arrays: Whether to keep the arrays, and what is called with each.
    """
    confidence = arguments.probability("confidence", asked["confidence"])
    max_iter = arguments.integer("knapsack_iter", asked["max_iter"], 1)
    voting = voting_of(
        evaluate, classifier, n=asked["n"], noise=None, seed=0, batch_size=batch_size, precision="float32"
    )
    case = Case(classifier, *data, *threat, voting.batch_size)
    report, points = smoothed_report(
        case, voting, confidence=confidence, max_iter=max_iter, certified=asked["certified"]
    )
    keep, on_row = arrays
    found = {name: array.numpy() for name, array in points.items()}
    for row in report.rows:
        if on_row is not None:
            on_row(row, found[row.attack])
    return replace(report, arrays=found if keep else {})


def _reported(case: Case, pool: Pool, rows: list[Row], reason: str | None, found: list[str]) -> Report:
    """Join the rows with what else is known of the case.

    :param reason: Why no radii are to be certified; None if they are.
    :param found: What makes a figure doubtful, so far.
    """
    data = case.classifier, case.x, case.labels
    threat: dict[str, Any] = {"p": case.p, "r": case.r, "batch_size": case.batch_size}
    radii = None
    if reason is None:
        radii, error = tried(lambda: certified_radii(*data, case.r, largest=pool.distances.numpy()))
        reason = None if error is None else told(error)
    upsilon, error = tried(lambda: upsilon_of(*data, loss="redlr", **threat))
    steps = {loss: case.attack(WassersteinFGM, loss=loss) for loss in LOSSES}
    bounds = {loss: tried(partial(bounds_of, step, case.x, case.labels))[0] for loss, step in steps.items()}
    found = [*found, *check_rows(pool, rows)]
    mass = [*pool.mass.values()]
    return Report(
        p=case.p,
        norm=case.r,
        eps=case.eps,
        samples=count(len(case.x)),
        rows=tuple(sorted(rows, key=lambda row: (row.order is not None, row.order != math.inf))),
        upsilon=math.nan if upsilon is None else upsilon,
        bounds={loss: found for loss, found in bounds.items() if found is not None},
        distances=whole(pool.distances.numpy()),
        radii=None if radii is None else whole(radii),
        uncertified=reason,
        warnings=tuple(dict.fromkeys(text for rank in everywhere(found) for text in rank)),
        mass=whole(mass[0]) if mass else None,
        standing={name: whole(shares) for name, shares in pool.standing.items()},
    )


def whole(values: np.ndarray) -> np.ndarray:
    """Return numbers of the samples of all ranks, (all samples,)."""
    return all_rows(torch.from_numpy(values))[0].numpy()
