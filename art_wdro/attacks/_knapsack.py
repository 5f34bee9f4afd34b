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
from art_wdro._host.keywords import explains_foreign_keywords
from art_wdro._ranks import all_rows, average
from art_wdro._solvers.batches import Found, Samples
from art_wdro._solvers.newton import least_distances
from art_wdro._solvers.stepping_out import stepped_out_distances
from art_wdro._storage.arrays import mixed
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._threat.knapsack import knapsack
from art_wdro.attacks._base import ARTS_ORDER, WassersteinAttack, named

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

    attack_params = [*WassersteinAttack.attack_params, "max_iter", "search", "compile"]
    _order_one = True
    max_iter: int
    search: str
    compile: bool

    @explains_foreign_keywords
    @named(*ARTS_ORDER)
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
        compile: bool = False,
    ) -> None:
        """Create the attack.

        :param estimator: A `PyTorchClassifier` whose network puts out logits.
        :param p: Order of the Wasserstein distance, in [1, inf].
        :param norm: Ground norm: 1, 2, np.inf or "inf".
        :param eps: Budget in input units.
        :param max_iter: Gradient evaluations a sample, at most; samples for which no further run is worthwhile
            leave earlier.
        :param batch_size: Samples in one forward and backward pass.
        :param verbose: Show a progress bar over the samples.
        :param search: How least distances are found: "newton" follows Newton's rule for the radius; "stepping-out"
            takes steps of eps / 4 until the class flips and bisects the last one, which is cheaper and coarser (after
            WDA++ of arXiv:2510.10000, which chooses the class anew at every step).
        :param compile: Run the network through `torch.compile`, on CUDA as graphs. The first passes of every size of
            batch then take seconds to minutes, the others less than without (docs/performance.md says when it pays).
        :raises EstimatorError: If `estimator` is no `PyTorchClassifier`.
        :raises ValueError: If a value is not allowed.
        :raises TypeError: If a value is of the wrong type.
        """
        super().__init__(
            estimator,
            p=p,
            norm=norm,
            eps=eps,
            max_iter=max_iter,
            batch_size=batch_size,
            verbose=verbose,
            search=search,
            compile=compile,
        )

    def _check_params(self) -> None:
        super()._check_params()
        self.max_iter = arguments.integer("max_iter", self.max_iter, 1)
        self.search = arguments.choice("search", self.search, SEARCHES)
        self.compile = arguments.flag("compile", self.compile)

    def _attack(self, samples: Samples, checkpoint: Checkpoint | None) -> Tensor:
        found = self._search(samples, checkpoint)
        self.distances_: np.ndarray = found.distances.cpu().numpy()
        self.nearest_: np.ndarray = found.points.cpu().numpy()
        self.gradients_: float = average(found.gradients, len(samples.x))
        whole, own = all_rows(found.distances)
        filling = knapsack(whole, self.eps, self.p)
        self.fraction_: float = filling.fraction
        return mixed(torch.from_numpy(filling.flipped[own]), found.points, samples.x)

    def _search(self, samples: Samples, checkpoint: Checkpoint | None) -> Found:
        """Find the least distances."""
        _, r, box = self.threat()
        function = self._passes(host.logits_of(self.estimator, compiled=self.compile))
        driven: dict[str, Any] = {"max_iter": self.max_iter, "checkpoint": checkpoint, "bar": self._bar}
        if self.search == "stepping-out":
            return stepped_out_distances(function, samples, r, step=self.eps / 4, **driven)
        given: dict[str, Any] = {"box": box, "mask": samples.mask, "batch_size": samples.batch_size}
        return least_distances(function, samples.x, samples.labels, r=r, **given, **driven)
