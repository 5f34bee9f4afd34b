# SPDX-License-Identifier: MIT
"""The functions under the attacks and figures, of callables and tensors: for those who work without ART's classifier.

`logits_of` is any callable that maps inputs (N, ...) to logits (N, K), sample by sample and differentiably; put a
network in eval mode first. r is the exponent of the ground norm and p the order of the Wasserstein distance, as in the
papers. Nothing is checked here: the classes and functions of `art_wdro` do that, and call these.
"""

from art_wdro._solvers.ascent import w_pgd
from art_wdro._solvers.newton import least_distances
from art_wdro._solvers.objective import upsilon
from art_wdro._threat.knapsack import knapsack
from art_wdro.losses import dlr, redlr

__all__ = ["dlr", "knapsack", "least_distances", "redlr", "upsilon", "w_pgd"]
