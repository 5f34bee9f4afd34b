# SPDX-License-Identifier: MIT
"""The knapsack attack: least distances first, then the budget goes to the cheapest samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._ranks import all_rows, average
from art_wdro._solvers.newton import least_distances
from art_wdro._solvers.stepping_out import stepped_out_distances
from art_wdro._storage.arrays import mixed
from art_wdro._storage.checkpoint import Progress
from art_wdro._threat.knapsack import fill
from art_wdro.attacks._base import WassersteinAttack

SEARCHES = ("newton", "stepping-out")


class WassersteinKnapsack(WassersteinAttack):
    """The worst distribution for accuracy: flip the samples that are cheapest to flip, leave the rest alone.

    For the 0-1 loss the worst distribution in a W_p ball is a knapsack over the least adversarial distances, so the
    strength of this attack is that of its search for least distances, and one search answers every eps and p:
    pass `distances_` to :func:`knapsack_accuracy`.

    Set by `generate`:

    - `distances_`, (N,): least l_r distance found of every sample to another class, in input units; 0 where it is
      misclassified already, inf where none was found.
    - `nearest_`, shaped as x: the samples at those distances.
    - `fraction_`: the part, in [0, 1), of one more sample that the rest of the budget would flip if mass may be split.
      The array that `generate` returns leaves that sample alone; `knapsack_accuracy` counts the part.
    - `gradients_`: gradient evaluations a sample, on average.

    p = inf is the pointwise minimum-norm attack, and p = 1 is allowed.
    """

    attack_params = [*WassersteinAttack.attack_params, "max_iter", "search"]
    _order_one = True

    def __init__(
        self,
        estimator: PyTorchClassifier,
        p: float = 2,
        norm: float | str = np.inf,
        eps: float = 8 / 255,
        max_iter: int = 300,
        batch_size: int = 128,
        verbose: bool = True,
        search: str = "newton",
    ) -> None:
        """Create the attack.

        :param estimator: A `PyTorchClassifier` whose network puts out logits.
        :param p: Order of the Wasserstein distance, in [1, inf].
        :param norm: Ground norm: 1, 2, np.inf or "inf".
        :param eps: Budget in input units.
        :param max_iter: Gradient evaluations a sample, at most; samples for which no further run is worthwhile
            leave earlier.
        :param batch_size: Samples in one forward and backward pass.
        :param verbose: Show a progress bar over the batches.
        :param search: How least distances are found: "newton" follows Newton's rule for the radius; "stepping-out"
            takes steps of eps / 4 until the class flips and bisects the last one, which is cheaper and coarser (WDA++
            of arXiv:2510.10000).
        :raises EstimatorError: If `estimator` is no `PyTorchClassifier`.
        :raises ValueError: If a value is not allowed.
        :raises TypeError: If a value is of the wrong type.
        """
        super().__init__(estimator, p, norm, eps, batch_size, verbose)
        self.max_iter = max_iter
        self.search = search
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        self.max_iter = arguments.integer("max_iter", self.max_iter, 1)
        self.search = arguments.choice("search", self.search, SEARCHES)

    def _attack(self, x: Tensor, labels: Tensor, mask: Tensor | None, saved: Progress | None) -> Tensor:
        setting: dict[str, Any] = {
            "max_iter": self.max_iter,
            "batch_size": self.batch_size,
            "box": host.box(self.estimator),
            "mask": mask,
            "device": self.estimator.device,
            "progress": self._bar,
        }
        function, r = host.logits_of(self.estimator), arguments.ground_norm(self.norm)
        if self.search == "newton":
            found = least_distances(function, x, labels, r, saved=saved, **setting)
        else:
            found = stepped_out_distances(function, x, labels, r, step=self.eps / 4, **setting)
        self.distances_: np.ndarray = found.distances.cpu().numpy()
        self.nearest_: np.ndarray = found.x.cpu().numpy()
        self.gradients_: float = average(found.gradients, len(x))
        whole, own = all_rows(found.distances)
        filling = fill(whole.cpu().numpy(), self.eps, self.p)
        self.fraction_: float = filling.fraction
        return mixed(torch.from_numpy(filling.flipped[own]), found.x, x)
