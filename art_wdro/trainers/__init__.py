# SPDX-License-Identifier: MIT
"""Trainers of ART against distributional threats, and the starts of a fine-tuning."""

from art_wdro.trainers._margin import WassersteinMarginTrainer
from art_wdro.trainers._starts import perturb_weights, reinitialise_last_layer
from art_wdro.trainers._trades import DistributionalTRADESTrainer
from art_wdro.trainers._transforms import shift_and_flip

__all__ = [
    "DistributionalTRADESTrainer",
    "WassersteinMarginTrainer",
    "perturb_weights",
    "reinitialise_last_layer",
    "shift_and_flip",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
