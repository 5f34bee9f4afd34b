# SPDX-License-Identifier: MIT
"""What makes an evaluation meaningless, and rows of a report that contradict each other."""

from __future__ import annotations

import math

import torch

from art_wdro._host import classifier as host
from art_wdro._host.doubts import doubts_of_scores
from art_wdro._solvers.objective import Objective
from art_wdro.evaluation._attempts import Case, Pool
from art_wdro.evaluation._report import Row
from art_wdro.losses import predicted

FLAT = 0.01
"""Share of the correctly classified samples that may have no gradient."""


def check_model(case: Case) -> list[str]:
    """Look for what makes an evaluation meaningless: doubts of any attack, other predictions, vanishing gradients."""
    classifier, size = case.classifier, case.batch_size
    found = doubts_of_scores(classifier, case.x, case.labels, size)
    x, labels = (values[:size].to(classifier.device) for values in (case.x, case.labels))
    function = host.logits_of(classifier)
    with host.undisturbed(classifier, size):
        with torch.no_grad():
            correct = predicted(function(x)) == labels
        if correct.any():
            gradient = Objective.of(function, "redlr").gradient(x[correct], labels[correct]).gradient
            vanishing = (gradient.flatten(1) == 0).all(1).double().mean().item()
            if vanishing > FLAT:
                found.append(
                    f"{100 * vanishing:.0f} % of the correctly classified samples have no gradient; attacks by "
                    "gradient overrate such a classifier"
                )
    return found


def check_rows(pool: Pool, rows: list[Row]) -> list[str]:
    """Look for what makes figures of rows doubtful."""
    found = []
    if pool.undefined:
        found.append(
            f"some logits are NaN, of up to {pool.undefined} samples in a row; they count as misclassified, and "
            "figures of a network that puts out NaN mean little"
        )
    if pool.elsewhere:
        found.append(
            f"other attacks came nearer to {pool.elsewhere} samples than the search for least distances; the distances "
            "are the least of all, and more gradients (knapsack_iter) may find shorter ones"
        )
    # one radius for all samples is no worst case, nor meant as one
    return found + check_order([row for row in rows if row.attack not in pool.mass])


def check_order(rows: list[Row]) -> list[str]:
    """Compare the threats: the W_p ball holds the W_inf ball of equal eps, so it leaves no more accuracy."""
    rows = [row for row in rows if not row.failure]
    pointwise = min((row for row in rows if row.order == math.inf), key=lambda row: row.accuracy, default=None)
    if pointwise is None:
        return []
    return [
        f"{row.attack} leaves {100 * row.accuracy:.1f} % under {row.threat}, more than the "
        f"{100 * pointwise.accuracy:.1f} % of {pointwise.attack} under W_inf, which is impossible for true values: "
        "it is too weak here"
        for row in rows
        if row.order not in (None, math.inf) and row.accuracy > pointwise.accuracy
    ]
