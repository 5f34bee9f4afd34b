# SPDX-License-Identifier: MIT
"""Distributional (Wasserstein) threats for the Adversarial Robustness Toolbox."""

import logging

from art_wdro._ranks import sharded
from art_wdro._sources.robustbench import load_robustbench
from art_wdro._version import __version__ as __version__
from art_wdro.attacks import WassersteinDistributionalAttack, WassersteinFGM, WassersteinKnapsack, WassersteinPGD
from art_wdro.certificates import (
    LipschitzCertificate,
    LossCertificate,
    certified_accuracy,
    certified_radii,
    lipschitz_certificate,
    loss_certificate,
)
from art_wdro.evaluation import (
    AccuracyBounds,
    Report,
    accuracy_bounds,
    adversarial_accuracy,
    evaluate,
    knapsack_accuracy,
    sensitivity,
    wasserstein_distance,
)
from art_wdro.losses import DLRLoss, ReDLRLoss
from art_wdro.trainers import (
    DistributionalTRADESTrainer,
    WassersteinMarginTrainer,
    perturb_weights,
    reinitialise_last_layer,
)

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

logging.getLogger(__name__).addHandler(logging.NullHandler())
