# SPDX-License-Identifier: MIT
"""W-PGD and W-FGSM as evasion attacks of ART: thin shells over the ascent loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter, SummaryWriterDefault
from torch import Tensor
from tqdm.auto import tqdm

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._ranks import gathering
from art_wdro._solvers.ascent import SCHEDULES, ascend, step_lengths
from art_wdro._storage.checkpoint import Progress
from art_wdro.attacks._base import WassersteinAttack
from art_wdro.attacks._objective import objective_of
from art_wdro.losses import PerSampleLoss, attack_objective

PATH_LENGTHS = {"constant": 1.875, "linear": 4.0}
"""Total length of the default steps in budgets, by schedule.

Sources: constant from Bai et al., 2023, arXiv:2306.09844, section 6; linear measured, docs/evaluation.md.
"""


class WassersteinAscent(WassersteinAttack):
    """What W-PGD and W-FGSM share: the ascent loop and its parameters."""

    attack_params = [*WassersteinAttack.attack_params, "loss", "targeted", "summary_writer", "precision"]
    # what the single step of W-FGSM needs; W-PGD makes them parameters
    eps_step: float | None = None
    max_iter: int = 1
    schedule: str = "constant"

    def __init__(
        self,
        estimator: PyTorchClassifier,
        p: float,
        norm: float | str,
        eps: float,
        loss: str | PerSampleLoss,
        targeted: bool,
        batch_size: int,
        summary_writer: bool | str | SummaryWriter,
        verbose: bool,
        precision: str,
    ) -> None:
        super().__init__(estimator, p, norm, eps, batch_size, verbose, _checked_writer(summary_writer))
        self.loss = loss
        self.precision = precision
        self.targeted = targeted

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
        self.precision = arguments.choice("precision", self.precision, tuple(host.PRECISIONS))
        attack_objective(self.loss)

    def _attack(self, x: Tensor, labels: Tensor, mask: Tensor | None, saved: Progress | None) -> Tensor:
        ascent = ascend(
            objective_of(self.estimator, self.loss, targeted=self.targeted, precision=self.precision),
            x,
            labels,
            p=self.p,
            r=arguments.ground_norm(self.norm),
            budget=self.eps,
            steps=tqdm(self._steps(), desc=type(self).__name__, leave=False, disable=not self._shows_progress()),
            box=host.box(self.estimator),
            mask=mask,
            batch_size=self.batch_size,
            device=self.estimator.device,
            gather=gathering(),
            progress=saved,
            keep_best=self._keeps_best(),
            on_gradient=None if self.summary_writer is None else self._write_summary,
        )
        if self.summary_writer is not None:
            self.summary_writer.reset()
        return ascent.x

    def _steps(self) -> list[float]:
        """Return the lengths of all steps, relative to eps."""
        if self.eps == 0 or self.max_iter == 0:
            return []
        path = PATH_LENGTHS[self.schedule]
        mean = path / self.max_iter if self.eps_step is None else self.eps_step / self.eps
        return step_lengths(mean, self.max_iter, self.schedule)

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

    Returns the whole iterate with the lowest accuracy; with p = inf and the cross-entropy the last one, which
    makes it ART's `ProjectedGradientDescent`.

    Not ART's attack `Wasserstein`, which moves pixel mass inside a single image.

    Source: Bai, He, Jiang, Obloj, Wasserstein distributional robustness of neural networks, NeurIPS
    2023, arXiv:2306.09844.
    """

    attack_params = [*WassersteinAscent.attack_params, "eps_step", "max_iter", "schedule"]

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
        :raises EstimatorError: If `estimator` is no `PyTorchClassifier`.
        :raises ValueError: If a value is not allowed.
        :raises TypeError: If a value is of the wrong type.
        """
        super().__init__(estimator, p, norm, eps, loss, targeted, batch_size, summary_writer, verbose, precision)
        self.eps_step = eps_step
        self.max_iter = max_iter
        self.schedule = schedule
        self._check_params()

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

    Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, equation (10).
    """

    eps_step: float | None

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
        :raises EstimatorError: If `estimator` is no `PyTorchClassifier`.
        :raises ValueError: If a value is not allowed.
        :raises TypeError: If a value is of the wrong type.
        """
        super().__init__(estimator, p, norm, eps, loss, targeted, batch_size, summary_writer, verbose, precision)
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        self.eps_step = self.eps


def _checked_writer(value: Any) -> bool | str | SummaryWriter:
    if value is None:
        return False
    if not isinstance(value, (bool, str, SummaryWriter)):
        raise ValueError(f"summary_writer is {value!r}; allowed are False, True, a path or a SummaryWriter of ART")
    return value
