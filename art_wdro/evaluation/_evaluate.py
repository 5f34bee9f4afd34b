# SPDX-License-Identifier: MIT
"""One report of a classifier under pointwise and distributional threats, with the checks that make it meaningful."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from tqdm.auto import tqdm

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.inputs import labelled_data
from art_wdro._ranks import all_rows, count, everywhere, is_first
from art_wdro.attacks._pgd import WassersteinFGM
from art_wdro.certificates._problem import why_uncertified
from art_wdro.certificates._radii import certified_radii
from art_wdro.evaluation._attempts import KNAPSACK, Case, Outcome, attempts_on
from art_wdro.evaluation._autoattack import check_autoattack
from art_wdro.evaluation._first_order import bounds_of, upsilon_of
from art_wdro.evaluation._report import Report, Row
from art_wdro.evaluation._sanity import check_model, check_order


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
    keep_arrays: bool = False,
    on_row: Callable[[Row, np.ndarray], None] | None = None,
    verbose: bool = True,
) -> Report:
    """Evaluate a classifier: clean, pointwise by PGD and AutoAttack, distributional by W-PGD and the knapsack.

    The figure to quote is the knapsack's: W-PGD is a heuristic for the same quantity and usually far above it. With the
    accuracy by certified radii it brackets the truth.

    :param classifier: A `PyTorchClassifier` whose network puts out logits.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch: the whole data set, which shares the budget.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param p: Order of the Wasserstein distance, in (1, inf].
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param eps: Budget in input units, pointwise and distributional alike.
    :param batch_size: Samples in one forward and backward pass.
    :param knapsack_iter: Gradient evaluations a sample in the search for least distances, at most.
    :param autoattack: Whether to run the AutoAttack package (not ART's attack of that name): None runs it where it is
        installed and the inputs lie in [0, 1].
    :param certified: Whether to compute certified radii, for an accuracy that no attack can pass: None does so where
        the network has bounds and it takes little.
    :param keep_arrays: Keep the adversarial arrays in the report.
    :param on_row: Called with each attack's figures and adversarial array as soon as they are there.
    :param verbose: Show a progress bar over the attacks.
    :return: The report; its `warnings` are also issued as `UserWarning`.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit.
    :raises ImportError: If AutoAttack is asked for and not installed.
    """
    host.require_pytorch(evaluate, classifier)
    p, r = arguments.order(p), arguments.ground_norm(norm)
    eps = arguments.real("eps", eps, 0.0)
    inputs, labels = labelled_data(classifier, x, y)
    certified = None if certified is None else arguments.flag("certified", certified)
    reason = why_uncertified(classifier, count(len(inputs)), certified)
    case = Case(classifier, inputs, labels, p, r, eps, arguments.integer("batch_size", batch_size, 1))
    attempts = attempts_on(case, knapsack_iter, check_autoattack(classifier, autoattack, r))

    found = check_model(classifier, inputs, labels, case.batch_size) if len(inputs) else []
    rows: list[Row] = []
    arrays: dict[str, np.ndarray] = {}
    outcomes: dict[str, Outcome] = {}
    for attempt in tqdm(attempts, desc="evaluate", leave=False, disable=not (verbose and is_first())):
        outcome = outcomes[attempt.name] = attempt.outcome(outcomes)
        rows.append(case.row(attempt, outcome))
        shown = outcome.points.numpy().view()
        shown.flags.writeable = attempt.order is not None  # without an attack it is the user's own
        if keep_arrays:
            arrays[attempt.name] = shown
        if on_row is not None:
            on_row(rows[-1], shown)
    # one radius for all samples is no worst case, nor meant as one
    found += check_order([row for row in rows if outcomes[row.attack].mass is None])
    distances = outcomes[KNAPSACK].distances
    assert distances is not None
    report = Report(
        p=p,
        norm=r,
        eps=eps,
        samples=count(len(inputs)),
        rows=tuple(sorted(rows, key=lambda row: (row.order is not None, row.order != math.inf))),
        upsilon=upsilon_of(classifier, inputs, labels, p=p, r=r, loss="redlr", batch_size=case.batch_size),
        bounds={loss: bounds_of(case.attack(WassersteinFGM, loss=loss), inputs, labels) for loss in ("redlr", "ce")},
        distances=whole(distances),
        radii=None if reason is not None else whole(certified_radii(classifier, inputs, labels, r, largest=distances)),
        uncertified=reason if certified is None else None,
        warnings=tuple(dict.fromkeys(text for rank in everywhere(found) for text in rank)),
        arrays=arrays,
        mass=next(whole(outcome.mass) for outcome in outcomes.values() if outcome.mass is not None),
    )
    for text in report.warnings:
        warnings.warn(text, UserWarning, stacklevel=2)
    return report


def whole(values: np.ndarray) -> np.ndarray:
    """Return numbers of the samples of all ranks, (all samples,)."""
    return all_rows(torch.from_numpy(values))[0].numpy()
