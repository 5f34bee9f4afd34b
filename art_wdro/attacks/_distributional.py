# SPDX-License-Identifier: MIT
"""The Wasserstein distributional attack: every sample is split, a part of its mass stays and a part goes far."""

from __future__ import annotations

import math

import numpy as np
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.keywords import explains_foreign_keywords
from art_wdro._ranks import average
from art_wdro._solvers.balls import attack_in_balls, most_gradients
from art_wdro._solvers.batches import Samples
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro.attacks._base import ARTS_ORDER, WassersteinAttack, named


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

    attack_params = [*WassersteinAttack.attack_params, "kappa", "max_iter", "classes", "compile"]
    _order_one = True
    kappa: float
    max_iter: int
    classes: int
    compile: bool

    @explains_foreign_keywords
    @named(*ARTS_ORDER)
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
        compile: bool = False,
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
        :param verbose: Show a progress bar over the samples.
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
            kappa=kappa,
            max_iter=max_iter,
            classes=classes,
            batch_size=batch_size,
            verbose=verbose,
            compile=compile,
        )

    def _check_params(self) -> None:
        super()._check_params()
        self.kappa = arguments.real("kappa", self.kappa, 1.0)
        if math.isinf(self.p) and self.kappa != 1.0:
            raise ValueError(f"kappa is {self.kappa:g} with p = inf; allowed is 1, since no mass may exceed eps there")
        self.max_iter = arguments.integer("max_iter", self.max_iter, 1)
        self.classes = arguments.integer("classes", self.classes, 1)
        self.compile = arguments.flag("compile", self.compile)

    @property
    def most_gradients(self) -> int:
        """Gradient evaluations a sample, at most."""
        return most_gradients(self.max_iter, min(self.classes, self.estimator.nb_classes - 1))

    @property
    def radius(self) -> float:
        """How far the moving part goes, in input units."""
        return float(self.eps * self.kappa ** (1 / self.p))

    def _attack(self, samples: Samples, checkpoint: Checkpoint | None) -> Tensor:
        found = attack_in_balls(
            self._passes(host.logits_of(self.estimator, compiled=self.compile)),
            samples,
            self.threat().r,
            radius=self.radius,
            max_iter=self.max_iter,
            classes=self.classes,
            checkpoint=checkpoint,
            bar=self._bar,
        )
        # who is misclassified already has the distance 0, and stays
        self.mass_: np.ndarray = (found.distances > 0).cpu().numpy() / self.kappa
        self.gradients_: float = average(found.gradients, len(samples.x))
        return found.points
