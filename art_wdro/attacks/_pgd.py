# SPDX-License-Identifier: MIT
"""W-PGD and W-FGSM as evasion attacks of ART: thin shells over the ascent loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter, SummaryWriterDefault
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.keywords import explains_foreign_keywords
from art_wdro._host.precision import PRECISIONS
from art_wdro._ranks import all_rows, average
from art_wdro._solvers.ascent import SCHEDULES, w_pgd
from art_wdro._solvers.batches import Samples
from art_wdro._solvers.one_step import flips_along_a_gradient
from art_wdro._storage.arrays import mixed
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._threat.knapsack import knapsack
from art_wdro.attacks._base import ARTS_ORDER, WassersteinAttack, named
from art_wdro.losses import PerSampleLoss, attack_objective

LENGTHS = ("formula", "least")
"""How far W-FGSM moves each sample."""


class WassersteinAscent(WassersteinAttack):
    """What W-PGD and W-FGSM share: the ascent loop and its parameters."""

    attack_params = [*WassersteinAttack.attack_params, "loss", "targeted", "summary_writer", "precision", "compile"]
    loss: str | PerSampleLoss
    targeted: bool
    precision: str
    compile: bool
    # what the single step of W-FGSM needs; W-PGD makes them parameters
    eps_step: float | None = None
    max_iter: int = 1
    schedule: str = "constant"

    @property
    def summary_writer(self) -> SummaryWriter | None:
        """The TensorBoard writer of ART, if any."""
        return self._summary_writer

    @summary_writer.setter
    def summary_writer(self, value: bool | str | SummaryWriter | None) -> None:
        self._summary_writer_arg = _checked_writer(value)
        given = isinstance(value, SummaryWriter) or not value
        self._summary_writer = (value or None) if given else SummaryWriterDefault(value)

    def _check_params(self) -> None:
        super()._check_params()
        self.targeted = arguments.flag("targeted", self.targeted)
        self.precision = arguments.choice("precision", self.precision, tuple(PRECISIONS))
        self.compile = arguments.flag("compile", self.compile)
        attack_objective(self.loss)

    def _attack(self, samples: Samples, checkpoint: Checkpoint | None) -> Tensor:
        p, r, box = self.threat()
        function = self._passes(host.logits_of(self.estimator, precision=self.precision, compiled=self.compile))
        adversarial = w_pgd(
            function,
            samples.x,
            samples.labels,
            p=p,
            r=r,
            eps=self.eps,
            steps=self.max_iter,
            eps_step=self.eps_step,
            schedule=self.schedule,
            loss=self.loss,
            targeted=self.targeted,
            box=box,
            mask=samples.mask,
            batch_size=samples.batch_size,
            keep_best=self._keeps_best(),
            checkpoint=checkpoint,
            bar=self._bar,
            on_gradient=None if self.summary_writer is None else self._write_summary,
        )
        self.gradients_: float = average(function.gradients, len(samples.x))
        if self.summary_writer is not None:
            self.summary_writer.reset()
        return adversarial

    def _keeps_best(self) -> bool:
        return False

    def _write_summary(self, step: int, batch: int, x: Tensor, labels: Tensor, gradient: Tensor) -> None:
        assert self.summary_writer is not None
        self.summary_writer.update(
            batch_id=batch,
            global_step=step,
            grad=gradient.cpu().numpy(),
            patch=None,
            estimator=self.estimator,
            x=x.cpu().numpy(),
            y=torch.nn.functional.one_hot(labels, self.estimator.nb_classes).float().cpu().numpy(),
            targeted=self.targeted,
        )


class WassersteinPGD(WassersteinAscent):
    """Projected gradient ascent in the Wasserstein ball around a data set (W-PGD).

    The attacker moves every sample, within one budget that all of them share: the threat (W_p, l_r)
    allows (mean_i ||x'_i - x_i||_r^p)^(1/p) <= eps. p = inf is the usual pointwise threat.

    The result depends on the data set as a whole: attack all of it in one call. `batch_size` is a
    matter of memory and changes nothing else.

    The labels y matter: without them the classifier's predictions stand in, the budget may turn mistakes into hits, and
    an accuracy against true labels comes out too high. Each call spends eps anew: batch by batch, as ART's
    `AdversarialTrainer` and loops over loaders call it, every batch has a budget of its own. ART's `AutoAttack`
    discards moves beyond eps sample by sample, so that inside it this attack loses what it gained.

    W-PGD is a heuristic and leaves more accuracy than the worst distribution does: quote :class:`WassersteinKnapsack`
    (docs/index.md has a table of which attack when).
    On networks that are not robust, `loss="ce"` pays for samples that are lost already, and pointwise PGD may leave
    less.

    Returns the whole iterate with the lowest accuracy; with p = inf and the cross-entropy the last one, which
    makes it ART's `ProjectedGradientDescent`.

    Not ART's attack `Wasserstein`, which moves pixel mass inside a single image.

    Source: Bai, He, Jiang, Obloj, Wasserstein distributional robustness of neural networks, NeurIPS
    2023, arXiv:2306.09844.
    """

    attack_params = [*WassersteinAscent.attack_params, "eps_step", "max_iter", "schedule"]

    @explains_foreign_keywords
    @named(*ARTS_ORDER)
    def __init__(
        self,
        estimator: PyTorchClassifier,
        p: float = 2,
        norm: float | str = np.inf,
        eps: float = 8 / 255,
        eps_step: float | None = None,
        max_iter: int = 20,
        loss: str | PerSampleLoss = "redlr",
        targeted: bool = False,
        batch_size: int = 128,
        summary_writer: bool | str | SummaryWriter = False,
        verbose: bool = True,
        schedule: str = "constant",
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        """Create the attack.

        The strongest setting measured is `max_iter=100, schedule="linear"` (docs/evaluation.md); the training paper's
        is `max_iter=20, eps_step=eps / 20`.

        :param estimator: A `PyTorchClassifier` whose network puts out logits.
        :param p: Order of the Wasserstein distance, in (1, inf], inf included.
        :param norm: Ground norm: 1, 2, np.inf or "inf".
        :param eps: Budget in input units.
        :param eps_step: W_p length of a step in input units, the mean one of a schedule. None takes 1.875 eps /
            max_iter (schedule "linear": 4 eps / max_iter), which lets the budget be spent and redistributed. The
            training paper (arXiv:2502.09352) uses eps / max_iter, a milder attack: there the projection never binds.
        :param max_iter: Number of steps.
        :param loss: "redlr", "dlr", "ce", a torch loss module, or a callable of logits (N, K) and class
            indices (N,) that returns (N,). A targeted attack descends it towards the target ("redlr":
            flat once the target is reached).
        :param targeted: Whether the labels given to `generate` are targets.
        :param batch_size: Samples in one forward and backward pass.
        :param summary_writer: TensorBoard summaries, as in ART: False, True, a path or a SummaryWriter.
        :param verbose: Show a progress bar over the steps.
        :param schedule: "constant" steps, or steps that fall "linear"ly to 0, which attack harder.
        :param precision: "float32", or "bfloat16" or "float16": then the network's passes run under torch's autocast,
            the logits and all reductions in float32. Faster where the hardware knows the format (docs/performance.md
            says what it does to the attack).
        :param compile: Run the network through `torch.compile`, on CUDA as graphs. The first passes of every size of
            batch then take seconds to minutes, the others less than without (docs/performance.md says when it pays).
        :raises EstimatorError: If `estimator` is no `PyTorchClassifier`.
        :raises ValueError: If a value is not allowed.
        :raises TypeError: If a value is of the wrong type.
        """
        super().__init__(
            estimator,
            _checked_writer(summary_writer),
            p=p,
            norm=norm,
            eps=eps,
            eps_step=eps_step,
            max_iter=max_iter,
            loss=loss,
            targeted=targeted,
            batch_size=batch_size,
            verbose=verbose,
            schedule=schedule,
            precision=precision,
            compile=compile,
        )

    def _check_params(self) -> None:
        super()._check_params()
        if self.eps_step is not None:
            self.eps_step = arguments.real("eps_step", self.eps_step, 0.0, open_low=True)
        self.max_iter = arguments.integer("max_iter", self.max_iter, 0)
        self.schedule = arguments.choice("schedule", self.schedule, tuple(SCHEDULES))

    def _keeps_best(self) -> bool:
        # p = inf with the cross-entropy is the pointwise PGD of everybody else, which returns its last iterate
        return not (np.isinf(self.p) and (self.loss == "ce" or isinstance(self.loss, torch.nn.CrossEntropyLoss)))


class WassersteinFGM(WassersteinAscent):
    """One ascent step of W_p length eps (W-FGSM), the first-order worst distribution.

    A first-order formula: on networks that are not robust its one step gives steep samples far more than flips them,
    and it leaves more accuracy than pointwise FGM of the same eps. With `lengths="least"` every sample goes the least
    of some lengths along its gradient that flips it, and the budget goes to the cheapest: that never leaves more than
    pointwise FGM. The figure to quote is that of :class:`WassersteinKnapsack` either way (docs/index.md has a table of
    which attack when).

    With `lengths="least"`, `generate` sets `distances_`, (N,): the lengths, in input units, 0 where a sample is
    misclassified already and inf where none flips it.

    Sources: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, equation (10); the least lengths are ours.
    """

    attack_params = [*WassersteinAscent.attack_params, "lengths"]
    eps_step: float | None
    lengths: str

    @explains_foreign_keywords
    @named(*ARTS_ORDER)
    def __init__(
        self,
        estimator: PyTorchClassifier,
        p: float = 2,
        norm: float | str = np.inf,
        eps: float = 8 / 255,
        loss: str | PerSampleLoss = "redlr",
        targeted: bool = False,
        batch_size: int = 128,
        summary_writer: bool | str | SummaryWriter = False,
        verbose: bool = True,
        precision: str = "float32",
        lengths: str = "formula",
        compile: bool = False,
    ) -> None:
        """Create the attack; the parameters are those of :class:`WassersteinPGD`.

        :param estimator: A `PyTorchClassifier` whose network puts out logits.
        :param p: Order of the Wasserstein distance, in (1, inf].
        :param norm: Ground norm: 1, 2, np.inf or "inf".
        :param eps: Budget in input units, and the length of the step.
        :param loss: The loss to ascend.
        :param targeted: Whether the labels given to `generate` are targets.
        :param batch_size: Samples in one forward and backward pass.
        :param summary_writer: TensorBoard summaries, as in ART.
        :param verbose: Show a progress bar.
        :param precision: "float32", "bfloat16" or "float16".
        :param lengths: "formula", each sample's share of the step as printed; or "least", the least length along its
            gradient, of the loss or of the cross-entropy, that flips it.
        :param compile: Run the network through `torch.compile`, which does not pay for one step of one data set.
        :raises EstimatorError: If `estimator` is no `PyTorchClassifier`.
        :raises ValueError: If a value is not allowed.
        :raises TypeError: If a value is of the wrong type.
        """
        super().__init__(
            estimator,
            _checked_writer(summary_writer),
            p=p,
            norm=norm,
            eps=eps,
            loss=loss,
            targeted=targeted,
            batch_size=batch_size,
            verbose=verbose,
            precision=precision,
            lengths=lengths,
            compile=compile,
        )

    def _check_params(self) -> None:
        super()._check_params()
        self.eps_step = self.eps
        self.lengths = arguments.choice("lengths", self.lengths, LENGTHS)
        if self.lengths == "least" and self.targeted:
            raise ValueError("targeted is True with lengths='least'; allowed is lengths='formula'")

    def _attack(self, samples: Samples, checkpoint: Checkpoint | None) -> Tensor:
        if self.lengths == "formula":
            return super()._attack(samples, checkpoint)
        losses = dict.fromkeys((attack_objective(self.loss), attack_objective("ce")))
        found = flips_along_a_gradient(
            self._passes(host.logits_of(self.estimator, precision=self.precision, compiled=self.compile)),
            samples,
            self.threat().r,
            eps=self.eps,
            losses=[*losses],
            checkpoint=checkpoint,
            bar=self._bar,
        )
        self.distances_: np.ndarray = found.distances.cpu().numpy()
        self.gradients_ = average(found.gradients, len(samples.x))
        whole, own = all_rows(found.distances)
        return mixed(torch.from_numpy(knapsack(whole, self.eps, self.p).flipped[own]), found.points, samples.x)


def _checked_writer(value: Any) -> bool | str | SummaryWriter:
    if value is None:
        return False
    if not isinstance(value, (bool, str, SummaryWriter)):
        raise ValueError(f"summary_writer is {value!r}; allowed are False, True, a path or a SummaryWriter of ART")
    return value
