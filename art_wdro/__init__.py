# SPDX-License-Identifier: MIT
"""Distributional (Wasserstein) threats for the Adversarial Robustness Toolbox."""

from art_wdro._attacks import WassersteinFGM, WassersteinPGD
from art_wdro._certificates import (
    LipschitzCertificate,
    LossCertificate,
    certified_accuracy,
    certified_radii,
    lipschitz_certificate,
    loss_certificate,
)
from art_wdro._coupling import sharded
from art_wdro._distributional_attack import WassersteinDistributionalAttack
from art_wdro._evaluation import evaluate
from art_wdro._knapsack import knapsack_accuracy
from art_wdro._knapsack_attack import WassersteinKnapsack
from art_wdro._losses import DLRLoss, ReDLRLoss
from art_wdro._margin_trainer import WassersteinMarginTrainer
from art_wdro._metrics import AccuracyBounds, accuracy_bounds, adversarial_accuracy, sensitivity, wasserstein_distance
from art_wdro._report import Report
from art_wdro._robustbench import load_robustbench
from art_wdro._starts import perturb_weights, reinitialise_last_layer
from art_wdro._trainer import DistributionalTRADESTrainer
from art_wdro._version import __version__ as __version__

__all__ = [
    "AccuracyBounds",
    "DLRLoss",
    "DistributionalTRADESTrainer",
    "LipschitzCertificate",
    "LossCertificate",
    "ReDLRLoss",
    "Report",
    "WassersteinDistributionalAttack",
    "WassersteinFGM",
    "WassersteinKnapsack",
    "WassersteinMarginTrainer",
    "WassersteinPGD",
    "accuracy_bounds",
    "adversarial_accuracy",
    "certified_accuracy",
    "certified_radii",
    "evaluate",
    "knapsack_accuracy",
    "lipschitz_certificate",
    "load_robustbench",
    "loss_certificate",
    "perturb_weights",
    "reinitialise_last_layer",
    "sensitivity",
    "sharded",
    "wasserstein_distance",
]
