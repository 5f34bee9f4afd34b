# SPDX-License-Identifier: MIT
"""One report of a classifier under pointwise and distributional threats, and the figures in it."""

from art_wdro.evaluation._accuracy import adversarial_accuracy
from art_wdro.evaluation._distance import wasserstein_distance
from art_wdro.evaluation._evaluate import evaluate
from art_wdro.evaluation._first_order import AccuracyBounds, accuracy_bounds, sensitivity
from art_wdro.evaluation._knapsack import knapsack_accuracy
from art_wdro.evaluation._report import Report

__all__ = [
    "AccuracyBounds",
    "Report",
    "accuracy_bounds",
    "adversarial_accuracy",
    "evaluate",
    "knapsack_accuracy",
    "sensitivity",
    "wasserstein_distance",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
