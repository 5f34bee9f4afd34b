# SPDX-License-Identifier: MIT
"""What makes an evaluation meaningless, and rows of a report that contradict each other."""

from __future__ import annotations

import math

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro._solvers.objective import Objective
from art_wdro.evaluation._attempts import Pool
from art_wdro.evaluation._report import Row
from art_wdro.losses import are_probabilities, predicted

SAME, SAME_OF_LARGEST = 1e-4, 1e-5
"""Difference of two passes' logits, relative to each and to the largest, up to which the network is not random."""
FLAT = 0.01
"""Share of the correctly classified samples that may have no gradient."""


def check_model(classifier: PyTorchClassifier, x: Tensor, labels: Tensor, batch_size: int) -> list[str]:
    """Look for what makes an evaluation meaningless, on one batch.

    Source: the checks of AutoAttack, Croce, Hein, 2020, arXiv:2003.01690.
    """
    found = []
    x, labels = x[:batch_size].to(classifier.device), labels[:batch_size].to(classifier.device)
    function = host.logits_of(classifier)
    with host.undisturbed(classifier, batch_size):
        with torch.no_grad():
            first, second = function(x).double(), function(x).double()
        if are_probabilities(first):
            found.append("the classifier puts out probabilities; ReDLR, DLR and margins need logits")
        close = SAME * first.abs() + SAME_OF_LARGEST * first.abs().max()
        if torch.isfinite(first).all() and ((first - second).abs() > close).any():
            found.append(
                "two forward passes differ: the classifier is random, and gradients of one pass say little about it"
            )
        correct = predicted(first) == labels
        if correct.any():
            objective = Objective.of(function, "redlr")
            _, gradient = objective.gradient(x[correct], labels[correct])
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
