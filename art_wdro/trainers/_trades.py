# SPDX-License-Identifier: MIT
"""Distributional TRADES: what Algorithm 1 does with a minibatch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.keywords import explains_foreign_keywords
from art_wdro._host.precision import PRECISIONS
from art_wdro._host.predictions import labels_for
from art_wdro._ranks import count
from art_wdro._solvers.ascent import Ascent, ascend, step_lengths
from art_wdro._solvers.batches import Samples
from art_wdro._solvers.objective import Objective, sensitivity_of
from art_wdro._threat.norms import mean_of_sums, merged_sums, power_sums
from art_wdro._threat.threat import Threat
from art_wdro.attacks._base import WassersteinAttack
from art_wdro.losses import PerSampleLoss, attack_objective, predicted
from art_wdro.trainers._augmentation import indices_of
from art_wdro.trainers._base import FineTuner
from art_wdro.trainers._common import Common
from art_wdro.trainers._consistency import CONSISTENCIES
from art_wdro.trainers._minibatches import Batch, Minibatches
from art_wdro.trainers._run import Method
from art_wdro.trainers._update import Figures, Updates
from art_wdro.trainers._upsilon import RunningUpsilon, batch_budget

EPS, P, NORM = arguments.Default(8 / 255), arguments.Default(2), arguments.Default(np.inf)
"""The threat where neither the user nor an attack names one."""
ATTACK_LABELS = ("true", "predicted")
UPSILON_ESTIMATES = ("resample", "streaming")


class DistributionalTRADESTrainer(FineTuner):
    """Fine-tune a network against distributional threats (W_p, l_r): TRADES with a shared budget.

    Each minibatch gets its share eps_B = eps (Upsilon_B / Upsilon)^(q/p) of the data set's budget, is
    attacked with W-PGD in eval mode, and the network takes one step, in train mode, on

        CE(f(x), y) + beta C(f(x), f(x')) + gamma C(f(x), f(x'_inf)).

    A drop-in for ART's `AdversarialTrainerTRADESPyTorch(classifier, attack, beta)` from which `attack` is left out: one
    given to it replaces the built-in one. With validation data, the epoch with the highest accuracy under (W_p, l_r)
    is kept.

    Attributes: `history`, one dict an epoch; `best_epoch`, the epoch whose weights the classifier holds; `final_state`,
    the state dict after the last epoch, on the host.

    Each dict of `history` holds: epoch (from 0), loss, clean_loss, consistency_loss, pointwise_loss (None without
    gamma), train_clean_accuracy and train_adversarial_accuracy (of the minibatches in train mode), upsilon (at the end
    of the epoch), budget_ratio (the p-mean of eps_B over eps, 1 when the batch budgets add up to the whole; both None
    with an `attack`), learning_rate (at its beginning), seconds, and the validation figures clean_accuracy,
    winf_accuracy (pointwise PGD on the cross-entropy) and wp_accuracy (:class:`WassersteinPGD` with its default step),
    None without validation data; and skipped_batches, those left out because their loss was not finite.

    Source: Bai, He, Jiang, Obloj, Wasserstein distributional adversarial training for deep neural
    networks, 2025, arXiv:2502.09352, Algorithm 1. Where the paper leaves a point open, docs/method.md
    says what was decided.
    """

    @explains_foreign_keywords
    def __init__(
        self,
        classifier: PyTorchClassifier,
        attack: EvasionAttack | None = None,
        beta: float = 6.0,
        eps: float = EPS,
        p: float = P,
        norm: float | str = NORM,
        max_iter: int = 20,
        eta: float = 1.0,
        upsilon: str = "streaming",
        sample_fraction: float = 0.1,
        consistency: str = "kl",
        attack_label: str = "true",
        gamma: float = 0.0,
        seed: int | None = None,
        eps_step: float | None = None,
        loss: str | PerSampleLoss = "redlr",
        window: int = 16,
        verbose: bool = True,
        precision: str = "float32",
        on_nonfinite: str = "raise",
        sync_batch_norm: bool = False,
        update_precision: str = "float32",
        ema: float | None = None,
        weight_perturbation: float = 0.0,
        max_grad_norm: float | None = None,
        summary_writer: bool | str | SummaryWriter = False,
        compile: bool = False,
    ) -> None:
        """Create the trainer.

        :param classifier: A `PyTorchClassifier` with an optimiser, which the trainer uses.
        :param attack: An evasion attack of ART to use in place of the built-in one, which ends the distributional
            method: an attack that treats every sample on its own makes this pointwise TRADES, and a `UserWarning` says
            so. eps, p and norm then describe the validation alone; those not given are the attack's, if it has them and
            they are allowed here, as they are now.
        :param beta: Weight of the consistency term.
        :param eps: Budget of the data set, in input units.
        :param p: Order of the Wasserstein distance, in (1, inf].
        :param norm: Ground norm: 1, 2, np.inf or "inf".
        :param max_iter: Steps of the attack, in training and in validation.
        :param eta: Update rate of Upsilon, in (0, 1]. Below 1 Upsilon lags behind the network, and the batch
            budgets of an epoch may add up to more or less than the whole.
        :param upsilon: "streaming" estimates Upsilon from the attack's own gradients on recent batches, at
            no cost; "resample" from a fresh sample of the training set before each minibatch, as
            printed.
        :param sample_fraction: Size of that sample, in (0, 1].
        :param consistency: C: "kl", the divergence of TRADES, or "ce", the cross-entropy as printed.
        :param attack_label: Label in the attack's loss: "true" or "predicted".
        :param gamma: Weight of the pointwise term of equation (5.6); 0 leaves it out.
        :param seed: Seed of the shuffling and resampling; None draws one from NumPy's global state.
        :param eps_step: Length of the attack's steps, relative to eps as a batch's are to its budget. None
            takes eps / max_iter.
        :param loss: Loss of the attack, as for :class:`WassersteinPGD`.
        :param window: Number of recent batches in the streaming estimate.
        :param verbose: Show a progress bar.
        :param precision: Number format of the attack's passes, as for :class:`WassersteinPGD`.
        :param on_nonfinite: What to do with a minibatch whose loss or gradient is NaN or infinite: "raise" an error
            that names it, or "skip" it and count it in `history`.
        :param sync_batch_norm: Under :func:`sharded`, take batch statistics over all ranks; needs CUDA.
        :param update_precision: Number format of the update's forward passes: "float32" leaves it to the network,
            "bfloat16" runs them under torch's autocast. Weights, optimiser and losses stay in float32.
        :param ema: Weight of the past in an exponential moving average of the network, in [0, 1), which is then what is
            validated, selected and left in the classifier; `final_state` is the network's own. None takes no average.
        :param weight_perturbation: Length of an adversarial perturbation of each weight tensor, relative to its norm,
            where the gradient of an update is taken (Wu, Xia, Wang, 2020); 0 leaves it out.
        :param max_grad_norm: Norm to which a longer gradient is cut; None cuts none.
        :param summary_writer: TensorBoard, as for ART's attacks: True writes to runs/DATE_HOST-fit, a string to that
            folder, and a `SummaryWriter` of ART is used as it is. Figures of minibatches are those of the first rank.
        :param compile: Run the attack's passes through `torch.compile`, as for :class:`WassersteinPGD`, and not the
            update's.
        :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
        :raises ValueError: If a value is not allowed, or the classifier has no optimiser.
        :raises TypeError: If a value is of the wrong type.
        """
        eps = _taken(attack, "eps", eps, lambda value: arguments.real("eps", value, 0.0))
        norm = _taken(attack, "norm", norm, arguments.ground_norm)
        # the p of other attacks is another thing, as in ART's Wasserstein
        p = _taken(attack if isinstance(attack, WassersteinAttack) else None, "p", p, arguments.order)
        common = Common(
            eps,
            p,
            norm,
            max_iter,
            seed,
            verbose,
            on_nonfinite,
            sync_batch_norm,
            update_precision,
            ema,
            weight_perturbation,
            max_grad_norm,
            summary_writer,
        )
        super().__init__(classifier, attack, beta, common)
        if attack is not None and not (isinstance(attack, WassersteinAttack) and math.isfinite(attack.p)):
            warnings.warn(
                f"attack is a {type(attack).__name__}, which attacks every sample on its own: the trainer is pointwise "
                "TRADES with it; leave attack out for the distributional method. Epochs are selected under W_p and l_r "
                f"with p = {self._common.p:g}, r = {self._common.norm:g} and eps = {self._common.eps:g}",
                UserWarning,
                stacklevel=3,
            )
        self._gamma = arguments.real("gamma", gamma, 0.0)
        self._eta = arguments.real("eta", eta, 0.0, 1.0, open_low=True)
        self._upsilon = arguments.choice("upsilon", upsilon, UPSILON_ESTIMATES)
        self._sample_fraction = arguments.real("sample_fraction", sample_fraction, 0.0, 1.0, open_low=True)
        self._consistency = arguments.choice("consistency", consistency, tuple(CONSISTENCIES))
        self._attack_label = arguments.choice("attack_label", attack_label, ATTACK_LABELS)
        self._window = arguments.integer("window", window, 1)
        self._eps_step = None if eps_step is None else arguments.real("eps_step", eps_step, 0.0, open_low=True)
        self._precision = arguments.choice("precision", precision, tuple(PRECISIONS))
        self._compile = arguments.flag("compile", compile)
        self._loss = loss
        attack_objective(loss)

    def _method(self, updates: Updates, minibatches: Minibatches) -> Method:
        return AlgorithmOne(self, updates, minibatches)

    def _settings(self) -> dict[str, Any]:
        names = (
            "gamma",
            "eta",
            "upsilon",
            "sample_fraction",
            "attack_label",
            "window",
            "precision",
            "compile",
            "consistency",
        )
        own = {name: getattr(self, f"_{name}") for name in names}
        loss = {"loss": self._loss}
        own |= loss if isinstance(self._loss, str) else host.described_parts(self._classifier, loss)
        return super()._settings() | own | {"steps": self._steps()}

    def _steps(self) -> list[float]:
        """Return the lengths of the attack's steps, relative to the budget."""
        eps, count = self._common.eps, self._common.max_iter
        return step_lengths(1 / count if self._eps_step is None or eps == 0 else self._eps_step / eps, count)


def _taken(attack: EvasionAttack | None, name: str, given: Any, read: Callable[[object], float]) -> Any:
    """Return an argument as it was given, or where it was not the value of an attack that has an allowed one."""
    if not isinstance(given, arguments.Default):
        return given
    try:
        return read(getattr(attack, name, given))
    except (TypeError, ValueError):
        return given


class AlgorithmOne(Method):
    """What Algorithm 1 does with the minibatches of one run."""

    def __init__(self, trainer: DistributionalTRADESTrainer, updates: Updates, minibatches: Minibatches) -> None:
        """Take the trainer's parameters, and what it needs of its classifier.

        :raises ValueError: If Upsilon is to be resampled from a generator that shows one batch at a time.
        """
        if trainer._attack is None and trainer._upsilon == "resample" and not minibatches.resamples:
            raise ValueError(
                "upsilon is 'resample', which draws from the whole training set, and the generator shows one batch "
                "at a time; allowed are a NumpyDataGenerator, or upsilon='streaming'"
            )
        self._of, self._updates, self._minibatches = trainer, updates, minibatches
        self._classifier: PyTorchClassifier = trainer._classifier
        self._eps, self._p, self._r = trainer._common.eps, trainer._common.p, trainer._common.norm
        self._steps, self._consistency = trainer._steps(), CONSISTENCIES[trainer._consistency]
        logits_of = host.logits_of(
            self._classifier, training=True, precision=trainer._precision, compiled=trainer._compile
        )
        self._cast = host.weights_in(self._classifier, trainer._precision, trainer._compile)
        # a GPU has its next passes queued before the last ones are done, and asking which samples need them would wait
        whole = self._classifier.device.type != "cpu"
        self._objective = replace(Objective.of(logits_of, trainer._loss), whole=whole)
        self._pointwise = Objective.of(logits_of, "ce")
        self._box = host.box(self._classifier)
        self._running = RunningUpsilon(trainer._eta, self._p, trainer._window)
        self._budgets: Tensor | None = None  # power sums of the eps_B so far
        self._last: Tensor | None = None  # and the last eps_B

    def step(self, x: Tensor, y: Tensor, where: str) -> Figures | None:
        """Attack a minibatch with its share of the budget, and update the network once."""
        targets, y = y, indices_of(y)
        with self._updates.frozen():
            batches = [x, self._perturb(x, y)]
            if self._of._gamma > 0:
                batches.append(self._ascend(self._pointwise, x, y, math.inf, self._eps).x)

        def outer(clean: Tensor, attacked: Tensor, *pointwise: Tensor) -> tuple[Tensor, Figures]:
            figures = {"consistency_loss": self._consistency(clean, attacked)}
            loss = self._of._beta * figures["consistency_loss"]
            for logits in pointwise:
                figures["pointwise_loss"] = self._consistency(clean, logits)
                loss = loss + self._of._gamma * figures["pointwise_loss"]
            figures["train_adversarial_accuracy"] = (predicted(attacked) == y).double().mean()
            return loss, figures

        return self._updates(targets, batches, outer, where)

    def finish_epoch(self) -> dict[str, Any]:
        """Return Upsilon at the end of the epoch, and the p-mean of its budgets over eps."""
        ratio = None
        if self._budgets is not None and self._eps > 0:
            ratio = mean_of_sums(self._budgets, self._p).item() / self._eps
        self._budgets = None
        value = None if self._running.value is None else self._running.value.item()
        return {"upsilon": value, "budget_ratio": ratio, "pointwise_loss": None}

    def watched(self) -> Figures:
        """Return Upsilon, and the budget of the last minibatch over eps."""
        found = {} if self._running.value is None else {"upsilon": self._running.value}
        return found if self._last is None or self._eps == 0 else {**found, "budget_ratio": self._last / self._eps}

    def learnt(self) -> dict[str, Any]:
        """Return Upsilon and what it was estimated from, and the sums over the epoch's budgets."""
        return {**self._running.state(), "budgets": self._budgets}

    def relearn(self, learnt: dict[str, Any]) -> None:
        """Go on from what :meth:`learnt` returned."""
        self._running.set_state(learnt, self._classifier.device)
        budgets = learnt["budgets"]
        self._budgets = None if budgets is None else budgets.to(self._classifier.device)

    def _perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """Solve the inner problem: attack a minibatch with its share of the budget."""
        attack = self._of._attack
        if attack is not None:
            labels = None if self._of._attack_label == "predicted" else y.cpu().numpy()
            with host.evaluating(self._classifier):  # others may change modes and leave gradients
                array = attack.generate(x.cpu().numpy(), y=labels)
            return torch.as_tensor(array, dtype=x.dtype, device=x.device)
        if self._of._upsilon == "resample":
            self._running.update(sensitivity_of(self._objective, self._labelled_sample(), self._p, self._r))
        whole = count(len(x))
        ascent = self._ascend(self._objective, x, self._labels(x, y), self._p, lambda own: self._budget(own, whole))
        self._last = ascent.budget
        sums = power_sums(ascent.budget[None], self._p, ascent.budget.new_full((1,), whole))
        self._budgets = sums if self._budgets is None else merged_sums(torch.stack([self._budgets, sums]), self._p)
        return ascent.x

    def _budget(self, own: Tensor, samples: int) -> Tensor:
        """Return eps_B from Upsilon_B of a minibatch of so many samples."""
        whole = self._running.stream(own, samples) if self._of._upsilon == "streaming" else self._running.value
        assert whole is not None
        return batch_budget(self._eps, own, whole, self._p)

    def _labelled_sample(self) -> Iterator[Batch]:
        for x, y in self._minibatches.sample(self._of._sample_fraction):
            x, y = x.to(self._classifier.device), indices_of(y).to(self._classifier.device)
            yield x, self._labels(x, y)

    def _labels(self, x: Tensor, y: Tensor) -> Tensor:
        return labels_for(self._classifier, x, len(x)) if self._of._attack_label == "predicted" else y

    def _ascend(
        self, objective: Objective, x: Tensor, labels: Tensor, p: float, budget: float | Callable[[Tensor], Tensor]
    ) -> Ascent:
        with self._cast():
            return ascend(
                objective,
                Samples(x, labels, self._box, batch_size=len(x)),
                Threat(p, self._r, self._box),
                budget=budget,
                steps=self._steps,
                keep_best=False,
            )
