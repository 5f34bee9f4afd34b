# SPDX-License-Identifier: MIT
"""Distributional TRADES: what Algorithm 1 does with a minibatch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.predictions import predicted_labels
from art_wdro._ranks import count, gathering
from art_wdro._solvers.ascent import Ascent, ascend, step_lengths
from art_wdro._solvers.objective import Objective, upsilon
from art_wdro._storage.checkpoint import described
from art_wdro._threat.norms import mean_of_sums, merged_sums, power_sums
from art_wdro.attacks._objective import objective_of
from art_wdro.losses import PerSampleLoss
from art_wdro.trainers._base import FineTuner
from art_wdro.trainers._consistency import CONSISTENCIES
from art_wdro.trainers._minibatches import Batch
from art_wdro.trainers._upsilon import RunningUpsilon, batch_budget

ATTACK_LABELS = ("true", "predicted")
UPSILON_ESTIMATES = ("resample", "streaming")


class DistributionalTRADESTrainer(FineTuner):
    """Fine-tune a network against distributional threats (W_p, l_r): TRADES with a shared budget.

    Each minibatch gets its share eps_B = eps (Upsilon_B / Upsilon)^(q/p) of the data set's budget, is
    attacked with W-PGD in eval mode, and the network takes one step, in train mode, on

        CE(f(x), y) + beta C(f(x), f(x')) + gamma C(f(x), f(x'_inf)).

    A drop-in for ART's `AdversarialTrainerTRADESPyTorch(classifier, attack, beta)`: an `attack` given to it
    replaces the built-in one. With validation data, the epoch with the highest accuracy under (W_p, l_r)
    is kept.

    Attributes: `history`, one dict an epoch (see `fit`); `best_epoch`, the epoch whose weights the classifier
    holds; `final_state`, the state dict after the last epoch, on the host.

    Source: Bai, He, Jiang, Obloj, Wasserstein distributional adversarial training for deep neural
    networks, 2025, arXiv:2502.09352, Algorithm 1. Where the paper leaves a point open, docs/method.md
    says what was decided.
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        attack: EvasionAttack | None = None,
        beta: float = 6.0,
        eps: float = 8 / 255,
        p: float = 2,
        norm: float | str = np.inf,
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
    ) -> None:
        """Create the trainer.

        :param classifier: A `PyTorchClassifier` with an optimiser, which the trainer uses.
        :param attack: An evasion attack of ART to use in place of the built-in one; eps, p and norm then
            describe the validation alone.
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
        :param precision: Number format of the attack's passes, as for :class:`WassersteinPGD`; the update's stay as the
            network has them.
        :param on_nonfinite: What to do with a minibatch whose loss or gradient is NaN or infinite: "raise" an error
            that names it, or "skip" it and count it in `history`.
        :param sync_batch_norm: Under :func:`sharded`, take batch statistics over all ranks; needs CUDA.
        :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
        :raises ValueError: If a value is not allowed, or the classifier has no optimiser.
        :raises TypeError: If a value is of the wrong type.
        """
        super().__init__(classifier, attack, beta, eps, p, norm, max_iter, seed, verbose, on_nonfinite, sync_batch_norm)
        self._gamma = arguments.real("gamma", gamma, 0.0)
        self._eta = arguments.real("eta", eta, 0.0, 1.0, open_low=True)
        self._upsilon = arguments.choice("upsilon", upsilon, UPSILON_ESTIMATES)
        self._sample_fraction = arguments.real("sample_fraction", sample_fraction, 0.0, 1.0, open_low=True)
        self._consistency = CONSISTENCIES[arguments.choice("consistency", consistency, tuple(CONSISTENCIES))]
        self._attack_label = arguments.choice("attack_label", attack_label, ATTACK_LABELS)
        self._window = arguments.integer("window", window, 1)
        step = None if eps_step is None else arguments.real("eps_step", eps_step, 0.0, open_low=True)
        relative = 1 / self._max_iter if step is None or self._eps == 0 else step / self._eps
        self._steps = step_lengths(relative, self._max_iter)
        self._precision = arguments.choice("precision", precision, tuple(host.PRECISIONS))
        self._loss, self._consistency_name = loss, consistency
        self._objective = objective_of(classifier, loss, precision=self._precision)
        self._pointwise = objective_of(classifier, "ce", precision=self._precision)

    def _begin(self, sample: Callable[[float], Iterator[Batch]] | None) -> None:
        self._running = RunningUpsilon(self._eta, self._p, self._window)
        self._budgets: Tensor | None = None  # power sums of the eps_B so far
        self._sample = sample
        if self._attack is None and self._upsilon == "resample" and sample is None:
            raise ValueError(
                "upsilon is 'resample', which draws from the whole training set, and the generator shows one batch "
                "at a time; allowed are a NumpyDataGenerator, or upsilon='streaming'"
            )

    def _step(self, x: Tensor, y: Tensor, where: str) -> dict[str, Tensor] | None:
        with host.evaluating(self._classifier):
            adversarial = self._perturb(x, y)
            batches = [x, adversarial]
            if self._gamma > 0:
                batches.append(self._ascend(self._pointwise, x, y, math.inf, self._eps).x)

        def outer(clean: Tensor, attacked: Tensor, *pointwise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            figures = {"consistency_loss": self._consistency(clean, attacked)}
            loss = self._beta * figures["consistency_loss"]
            for logits in pointwise:
                figures["pointwise_loss"] = self._consistency(clean, logits)
                loss = loss + self._gamma * figures["pointwise_loss"]
            figures["train_adversarial_accuracy"] = (attacked.argmax(1) == y).double().mean()
            return loss, figures

        return self._update(y, batches, outer, where)

    def _settings(self) -> dict[str, Any]:
        names = ("gamma", "eta", "upsilon", "sample_fraction", "attack_label", "window", "precision")
        own = {name: getattr(self, f"_{name}") for name in names}
        loss = self._loss if isinstance(self._loss, str) else described(self._loss)
        return super()._settings() | own | {"loss": loss, "consistency": self._consistency_name, "steps": self._steps}

    def _progress(self) -> dict[str, Any]:
        return self._running.state()

    def _resume(self, progress: dict[str, Any]) -> None:
        self._running.set_state(progress, self._classifier.device)

    def _finish_epoch(self) -> dict[str, Any]:
        ratio = None
        if self._budgets is not None and self._eps > 0:
            ratio = mean_of_sums(self._budgets, self._p).item() / self._eps
        self._budgets = None
        upsilon = None if self._running.value is None else self._running.value.item()
        return {"upsilon": upsilon, "budget_ratio": ratio, "pointwise_loss": None}

    def _perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """Solve the inner problem: attack a minibatch with its share of the budget."""
        if self._attack is not None:
            labels = None if self._attack_label == "predicted" else y.cpu().numpy()
            array = self._attack.generate(x.cpu().numpy(), y=labels)
            return torch.as_tensor(array, dtype=x.dtype, device=x.device)
        if self._upsilon == "resample":
            self._running.update(upsilon(self._objective, self._labelled_sample(), self._p, self._norm, gathering()))
        whole = count(len(x))
        ascent = self._ascend(self._objective, x, self._labels(x, y), self._p, lambda own: self._budget(own, whole))
        sums = power_sums(ascent.budget[None], self._p, ascent.budget.new_tensor([whole]))
        self._budgets = sums if self._budgets is None else merged_sums(torch.stack([self._budgets, sums]), self._p)
        return ascent.x

    def _budget(self, own: Tensor, count: int) -> Tensor:
        whole = self._running.stream(own, count) if self._upsilon == "streaming" else self._running.value
        assert whole is not None
        return batch_budget(self._eps, own, whole, self._p)

    def _labelled_sample(self) -> Iterator[Batch]:
        assert self._sample is not None
        for x, y in self._sample(self._sample_fraction):
            x, y = x.to(self._classifier.device), y.to(self._classifier.device)
            yield x, self._labels(x, y)

    def _labels(self, x: Tensor, y: Tensor) -> Tensor:
        return predicted_labels(self._classifier, x, len(x)) if self._attack_label == "predicted" else y

    def _ascend(
        self, objective: Objective, x: Tensor, labels: Tensor, p: float, budget: float | Callable[[Tensor], Tensor]
    ) -> Ascent:
        return ascend(
            objective,
            x,
            labels,
            p=p,
            r=self._norm,
            budget=budget,
            steps=self._steps,
            box=host.box(self._classifier),
            batch_size=len(x),
            keep_best=False,
            gather=gathering(),
        )
