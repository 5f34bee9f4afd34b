# SPDX-License-Identifier: MIT
"""The Wasserstein distributional attack: every sample is split, a part of its mass stays and a part goes far."""

from __future__ import annotations

import math

import numpy as np
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._ranks import average
from art_wdro._solvers.balls import attack_in_balls
from art_wdro._storage.checkpoint import Progress
from art_wdro.attacks._base import WassersteinAttack


class WassersteinDistributionalAttack(WassersteinAttack):
    """Split every correctly classified sample: 1 - 1/kappa of its mass stays, 1/kappa goes kappa^(1/p) eps far.

    The distribution has 2N support points: the inputs, and what `generate` returns. It lies in the W_p ball, since
    1/kappa (kappa^(1/p) eps)^p = eps^p. kappa = 1 moves everything by eps, the pointwise attack; a larger one reaches
    further with less. (ART's `Wasserstein` is another thing: it moves pixel mass inside a single image.)

    Set by `generate`:

    - `mass_`, (N,): the part of each sample's mass that is at its attack point: 1/kappa, and 0 where the sample is
      misclassified already and stays. :func:`adversarial_accuracy` counts with it.
    - `gradients_`: gradient evaluations a sample, on average.

    D_p of the array that `generate` returns, every sample moved as a whole, may exceed eps: the mass is what makes it
    feasible, (mean_i mass_i ||x'_i - x_i||^p)^(1/p) <= eps.

    Source: Tight robustness certificates and Wasserstein distributional attacks for deep neural networks, 2025,
    arXiv:2510.10000. There the radius is the same for all samples; :class:`WassersteinKnapsack` spends what each one
    needs.
    """

    attack_params = [*WassersteinAttack.attack_params, "kappa", "max_iter", "classes"]
    _order_one = True

    def __init__(
        self,
        estimator: PyTorchClassifier,
        p: float = 1,
        norm: float | str = np.inf,
        eps: float = 8 / 255,
        kappa: float = 1.0,
        max_iter: int = 20,
        classes: int = 3,
        batch_size: int = 128,
        verbose: bool = True,
    ) -> None:
        """Create the attack.

        :param estimator: A `PyTorchClassifier` whose network puts out logits.
        :param p: Order of the Wasserstein distance, in [1, inf].
        :param norm: Ground norm: 1, 2, np.inf or "inf".
        :param eps: Budget in input units.
        :param kappa: Into how many parts of equal mass a sample falls, one of which moves; >= 1, and 1 for p = inf,
            where no mass may move farther than eps.
        :param max_iter: Steps towards the class that the probes chose.
        :param classes: Classes with the largest logits that are probed, with 4 steps each; 1 probes none.
        :param batch_size: Samples in one forward and backward pass.
        :param verbose: Show a progress bar over the batches.
        :raises EstimatorError: If `estimator` is no `PyTorchClassifier`.
        :raises ValueError: If a value is not allowed.
        :raises TypeError: If a value is of the wrong type.
        """
        super().__init__(estimator, p, norm, eps, batch_size, verbose)
        self.kappa = kappa
        self.max_iter = max_iter
        self.classes = classes
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        self.kappa = arguments.real("kappa", self.kappa, 1.0)
        if math.isinf(self.p) and self.kappa != 1.0:
            raise ValueError(f"kappa is {self.kappa:g} with p = inf; allowed is 1, since no mass may exceed eps there")
        self.max_iter = arguments.integer("max_iter", self.max_iter, 1)
        self.classes = arguments.integer("classes", self.classes, 1)

    @property
    def radius(self) -> float:
        """How far the moving part goes, in input units."""
        return float(self.eps * self.kappa ** (1 / self.p))

    def _attack(self, x: Tensor, labels: Tensor, mask: Tensor | None, saved: Progress | None) -> Tensor:
        found = attack_in_balls(
            host.logits_of(self.estimator),
            x,
            labels,
            self.radius,
            arguments.ground_norm(self.norm),
            max_iter=self.max_iter,
            classes=self.classes,
            batch_size=self.batch_size,
            box=host.box(self.estimator),
            mask=mask,
            device=self.estimator.device,
            progress=self._bar,
        )
        self.mass_: np.ndarray = found.standing.cpu().numpy() / self.kappa
        self.gradients_: float = average(found.gradients, len(x))
        return found.x
