# SPDX-License-Identifier: MIT
"""Evasion attacks of ART under one budget that all samples share."""

from art_wdro.attacks._distributional import WassersteinDistributionalAttack
from art_wdro.attacks._knapsack import WassersteinKnapsack
from art_wdro.attacks._pgd import WassersteinFGM, WassersteinPGD

__all__ = ["WassersteinDistributionalAttack", "WassersteinFGM", "WassersteinKnapsack", "WassersteinPGD"]

for _name in __all__:
    globals()[_name].__module__ = __name__
