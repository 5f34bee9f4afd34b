# SPDX-License-Identifier: MIT
"""W-PGD and W-FGSM as evasion attacks of ART: thin shells over the ascent loop."""

from __future__ import annotations

import abc
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator, LossGradientsMixin
from art.summary_writer import SummaryWriter, SummaryWriterDefault
from torch import Tensor
from tqdm.auto import tqdm

from art_wdro import _bridge, _checks
from art_wdro._ascent import SCHEDULES, ascend, step_lengths
from art_wdro._checkpoint import Progress, fingerprint
from art_wdro._coupling import gathering, is_first, shards, together
from art_wdro._datasets import as_arrays
from art_wdro._losses import PerSampleLoss, attack_objective
from art_wdro._rows import placed
from art_wdro._sensitivity import Objective

PATH_LENGTHS = {"constant": 1.875, "linear": 4.0}
"""Total length of the default steps in budgets, by schedule.

Sources: constant from Bai et al., 2023, arXiv:2306.09844, section 6; linear measured, docs/evaluation.md.
"""


class _Generate:
    """Hold `generate` outside of ART's metaclass, which would turn tensors and None into arrays."""

    def generate(
        self: Any,
        x: Any,
        y: Any | None = None,
        mask: Any | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Generate adversarial examples for the whole data set, which shares one budget.

        :param x: Inputs, (N, ...), as the classifier takes them, inside its clip_values: an array of any
            real dtype, a tensor on any device, or a `Dataset` or `DataLoader` of torch with or without labels. Not
            modified. What is made from a `numpy.memmap` or a data set lies in temporary files mapped into memory.
        :param y: Labels as indices (N,) or (N, 1) or one-hot rows (N, K); the targets of a targeted
            attack. None takes the classifier's predictions as labels.
        :param mask: Broadcastable to x; coordinates where it is 0 do not move.
        :param checkpoint: File for what a long attack has reached, written every half minute and deleted at the end:
            the same call goes on from it. Not under :func:`sharded`.
        :return: Adversarial examples, float32, shaped as x, with D_p(x, result) <= eps (1 + 1e-6).
        :raises ValueError: If an argument does not fit; the message says which and what is allowed.
        :raises TypeError: If x or y is not numeric, or an unknown keyword is given.
        """
        if kwargs:
            raise TypeError(
                f"generate got the unknown arguments {sorted(kwargs)}; allowed are x, y, mask and checkpoint"
            )
        adversarial: np.ndarray = self._generate(x, y, mask, checkpoint)
        return adversarial


class WassersteinAttack(_Generate, EvasionAttack):  # type: ignore[misc]
    """What all attacks under (W_p, l_r) share: the threat, checks, and the way in and out of tensors."""

    attack_params = [*EvasionAttack.attack_params, "p", "norm", "eps", "batch_size", "verbose"]
    _estimator_requirements = (BaseEstimator, LossGradientsMixin, ClassifierMixin)
    _order_one = False

    def __init__(
        self,
        estimator: PyTorchClassifier,
        p: float,
        norm: float | str,
        eps: float,
        batch_size: int,
        verbose: bool,
        summary_writer: bool | str | SummaryWriter = False,
    ) -> None:
        super().__init__(estimator=estimator, summary_writer=summary_writer)
        _bridge.require_pytorch(type(self), estimator)
        self.p = p
        self.norm = norm
        self.eps = eps
        self.batch_size = batch_size
        self.verbose = verbose

    def set_params(self, **kwargs: Any) -> None:
        """Change parameters; if one is refused, all stay as they were.

        :param kwargs: Parameters by name, those in `attack_params`.
        :raises ValueError: If a name is unknown or a value is not allowed.
        :raises TypeError: If a value is of the wrong type.
        """
        before = dict(self.__dict__)
        try:
            super().set_params(**kwargs)
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _check_params(self) -> None:
        super()._check_params()
        self.p = _checks.order(self.p, one=self._order_one)
        self.norm = _checks.ground_norm(self.norm)
        self.eps = _checks.real("eps", self.eps, 0.0)
        self.batch_size = _checks.integer("batch_size", self.batch_size, 1)
        self.verbose = _checks.flag("verbose", self.verbose)

    def _generate(self, x: Any, y: Any | None, mask: Any | None, checkpoint: Any) -> np.ndarray:
        classifier: PyTorchClassifier = self.estimator
        with together():
            file = None if checkpoint is None else _checks.file("checkpoint", checkpoint)
            if file is not None and shards() is not None:
                raise ValueError(f"checkpoint is '{file}' under sharded(); allowed there is None")
            x, y = as_arrays(x, y)
            inputs = _bridge.as_inputs(classifier, x)
            movable = None if mask is None else _as_mask(mask, inputs)
            if y is None and self.targeted:
                raise ValueError("y is None; a targeted attack needs the target labels")
            labels = None if y is None else _bridge.as_labels(classifier, y, len(inputs))
        with _bridge.undisturbed(classifier, self.batch_size):
            inputs = placed(inputs, classifier.device)
            if labels is None:
                labels = _bridge.predicted_labels(classifier, inputs, self.batch_size)
            movable = None if movable is None else movable.to(inputs.device)
            labels = labels.to(classifier.device)
            saved = None if file is None else self._progress(file, inputs, labels, movable)
            adversarial: np.ndarray = self._attack(inputs, labels, movable, saved).cpu().numpy()
            if saved is not None:
                saved.finish()
        return adversarial

    def _shows_progress(self) -> bool:
        return self.verbose and is_first()

    def _progress(self, file: Path, x: Tensor, labels: Tensor, mask: Tensor | None) -> Progress:
        """Return the checkpoint of this attack on these data."""
        names = sorted({*self.attack_params} - {"verbose", "summary_writer"})
        parameters = {name: repr(getattr(self, name)).split(" at 0x")[0] for name in names}
        weights = _bridge.network(self.estimator).state_dict().values()
        identity = _bridge.identity(self.estimator) | {
            "samples": len(x),
            "data": fingerprint(x, labels, *([] if mask is None else [mask])),
            "weights": fingerprint(*weights),
        }
        return Progress(file, type(self).__name__, parameters | identity)

    @abc.abstractmethod
    def _attack(self, x: Tensor, labels: Tensor, mask: Tensor | None, saved: Progress | None) -> Tensor:
        """Attack checked inputs in eval mode; labels are on the classifier's device, the rest perhaps on the host."""


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
        self.targeted = _checks.flag("targeted", self.targeted)
        self.precision = _checks.choice("precision", self.precision, tuple(_bridge.PRECISIONS))
        attack_objective(self.loss)

    def _attack(self, x: Tensor, labels: Tensor, mask: Tensor | None, saved: Progress | None) -> Tensor:
        objective = attack_objective(self.loss, self.targeted)
        ascent = ascend(
            Objective(
                _bridge.logits_of(self.estimator, precision=self.precision),
                objective,
                self.targeted,
                _bridge.SCALES.get(self.precision, 1.0),
            ),
            x,
            labels,
            p=self.p,
            r=_checks.ground_norm(self.norm),
            budget=self.eps,
            steps=tqdm(self._steps(), desc=type(self).__name__, leave=False, disable=not self._shows_progress()),
            box=_bridge.box(self.estimator),
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
            self.eps_step = _checks.real("eps_step", self.eps_step, 0.0, open_low=True)
        self.max_iter = _checks.integer("max_iter", self.max_iter, 0)
        self.schedule = _checks.choice("schedule", self.schedule, tuple(SCHEDULES))

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


def _as_mask(mask: Any, x: Tensor) -> Tensor:
    """Read a mask as ART's PGD does: broadcastable to x, boolean or non-negative floats, 0 holds still."""
    tensor = mask.detach() if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    if not (tensor.dtype == torch.bool or tensor.is_floating_point()):
        raise ValueError(f"mask has the dtype {tensor.dtype}; allowed are bool and floating point")
    if not (tensor >= 0).all():
        raise ValueError("mask holds negative or NaN values; allowed are zero and positive ones")
    try:
        return (tensor != 0).to(x.device).broadcast_to(x.shape)
    except RuntimeError:
        raise ValueError(
            f"mask has the shape {tuple(tensor.shape)}; needed is one that broadcasts to x, {tuple(x.shape)}"
        ) from None
