# SPDX-License-Identifier: MIT
"""Margin training under a distributional budget: what it does with a minibatch."""

from __future__ import annotations

from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.keywords import explains_foreign_keywords
from art_wdro._host.precision import PRECISIONS
from art_wdro._solvers.boundary import Boundary, boundary
from art_wdro.losses import as_float
from art_wdro.trainers._anchor import Anchor
from art_wdro.trainers._augmentation import indices_of
from art_wdro.trainers._base import FineTuner
from art_wdro.trainers._common import Common
from art_wdro.trainers._consistency import kl_consistency
from art_wdro.trainers._dual import RunningThresholds, dual_accuracy, hinge_loss
from art_wdro.trainers._minibatches import Minibatches
from art_wdro.trainers._run import Method
from art_wdro.trainers._update import Figures, Updates

REACH = 1.3
"""How far boundary points are searched for, in tau: a little beyond it, or tau could not grow."""


class WassersteinMarginTrainer(FineTuner):
    """Fine-tune a network against distributional threats (W_p, l_r): descend the worst case of the 0-1 loss itself.

    For the 0-1 loss the worst distribution is a knapsack over the least distances d_i to another class, and by duality

        1 - A_eps = min over tau of  (eps / tau)^p + mean_i (1 - (d_i / tau)^p)_+.

    The trainer takes this error averaged over budgets up to eps, the area above the curve of accuracy over eps. For
    each minibatch the nearest points of another class are searched in eval mode, tau_k follows as the one threshold of
    the whole data set for the budget k eps / K, and the network takes one step, in train mode, on

        anchor KL(f_0(x) || f(x)) + (1 - anchor) CE(f(x), y) + beta mean_k mean_i (1 - (d_i / tau_k)^p)_+,

    f_0 the network as it was before training, where the gradient of d_i is that of the margin at its boundary point
    over its slope there (implicit function theorem); in the mean over k no margin weighs more than 1, so that an
    untrained network can start with it. A misclassified sample is drawn back to the boundary as one as far before it is
    pushed off; samples beyond all tau_k, on either side, are left to the first two terms. p = inf has tau_k = k eps / K
    and (1 - d_i / tau_k)_+ in place of the 0-1 step; with `budgets=1` that is max-margin training.

    Labels alone in the place of the anchor make a robust network confident, and less robust: it loses distances faster
    than the margins gain them (docs/results/frontier.md). To train from scratch, pass `anchor=0`.

    The interface is that of :class:`DistributionalTRADESTrainer`, without `attack`. In `history`, margin_loss is the
    mean of the hinges, anchor_loss the KL divergence (absent without an anchor), tau the threshold of eps at the end of
    the epoch in input units, and train_adversarial_accuracy the dual's value for eps on the minibatches; they stand in
    the place of upsilon, budget_ratio, consistency_loss and pointwise_loss.

    Attributes: `history`, one dict an epoch; `best_epoch`, the epoch whose weights the classifier
    holds; `final_state`, the state dict after the last epoch, on the host.

    Source: docs/method.md, section Margin trainer. Pointwise, with the cross-entropy at the boundary point and a radius
    for each sample: Ding et al., MMA training, 2020, arXiv:1812.02637.
    """

    @explains_foreign_keywords
    def __init__(
        self,
        classifier: PyTorchClassifier,
        eps: float = 8 / 255,
        p: float = 2,
        norm: float | str = np.inf,
        max_iter: int = 10,
        beta: float = 0.5,
        budgets: int = 8,
        window: int = 16,
        seed: int | None = None,
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
        anchor: float = 1.0,
    ) -> None:
        """Create the trainer.

        :param classifier: A `PyTorchClassifier` with an optimiser, which the trainer uses.
        :param eps: Budget in input units.
        :param p: Order of the Wasserstein distance, in (1, inf].
        :param norm: Ground norm: 1, 2, np.inf or "inf".
        :param max_iter: Gradient evaluations a sample in the search for its boundary point, at least 2.
        :param beta: Weight of the adversarial error beside the clean cross-entropy: more of it trades clean accuracy
            for distances.
        :param budgets: Number of budgets, K, evenly spaced up to eps; 1 takes eps alone.
        :param window: Number of recent minibatches whose distances the thresholds are taken from.
        :param seed: Seed of the shuffling; None draws one from NumPy's global state.
        :param verbose: Show a progress bar.
        :param precision: Number format of the search's passes, as for :class:`WassersteinPGD`.
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
        :param compile: Run the search's passes through `torch.compile`, as for :class:`WassersteinPGD`, and not the
            update's.
        :param anchor: Share of what the network said of clean inputs before training in their loss, in [0, 1]; the rest
            is that of the labels. 0 to train from scratch.
        :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
        :raises ValueError: If a value is not allowed, or the classifier has no optimiser.
        :raises TypeError: If a value is of the wrong type.
        """
        max_iter = arguments.integer("max_iter", max_iter, 2)
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
        super().__init__(classifier, None, beta, common)
        self._budgets = arguments.integer("budgets", budgets, 1)
        self._window = arguments.integer("window", window, 1)
        self._precision = arguments.choice("precision", precision, tuple(PRECISIONS))
        self._compile = arguments.flag("compile", compile)
        self._anchor = arguments.real("anchor", anchor, 0, 1)

    def _method(self, updates: Updates, minibatches: Minibatches) -> Method:
        return DualDescent(self, updates)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            name: getattr(self, f"_{name}") for name in ("budgets", "window", "precision", "compile", "anchor")
        }


class DualDescent(Method):
    """What margin training does with the minibatches of one run."""

    def __init__(self, trainer: WassersteinMarginTrainer, updates: Updates) -> None:
        """Take the trainer's parameters, and what it needs of its classifier."""
        self._updates, self._classifier = updates, trainer._classifier
        self._beta, common = trainer._beta, trainer._common
        self._eps, self._p, self._r, self._max_iter = common.eps, common.p, common.norm, common.max_iter
        self._logits_of = host.logits_of(
            self._classifier, training=True, precision=trainer._precision, compiled=trainer._compile
        )
        self._cast = host.weights_in(self._classifier, trainer._precision, trainer._compile)
        self._box = host.box(self._classifier)
        self._thresholds = RunningThresholds(
            self._eps, self._p, trainer._budgets, trainer._window, self._classifier.device
        )
        self._share = trainer._anchor
        self._anchor = Anchor(self._classifier) if self._share > 0 else None

    def step(self, x: Tensor, y: Tensor, where: str) -> Figures | None:
        """Search the boundary points of a minibatch, and update the network once."""
        labels = indices_of(y)
        reach = self._reach()
        with self._updates.frozen(), self._cast():
            found = boundary(self._logits_of, x, labels, self._r, reach=reach, max_iter=self._max_iter, box=self._box)
        said = self._said(x, found)
        taus = self._thresholds.update(found.distances, reach)
        accuracy = dual_accuracy(found.distances, taus[-1], self._eps, self._p)

        def outer(clean: Tensor, at_boundary: Tensor) -> tuple[Tensor, Figures]:
            loss = self._pushed(at_boundary, labels, found, taus)
            figures = {"margin_loss": loss, "train_adversarial_accuracy": accuracy}
            if said is None:
                return self._beta * loss, figures
            held = kl_consistency(said, as_float(clean))
            return self._beta * loss + self._share * held, {**figures, "anchor_loss": held}

        return self._updates(y, [x, found.x], outer, where, 1 - self._share)

    def _reach(self) -> Tensor:
        """Return how far boundary points of the next minibatch are searched for, a scalar tensor."""
        return REACH * self._thresholds.values[-1].clamp(min=self._eps)

    def _said(self, x: Tensor, found: Boundary) -> Tensor | None:
        """Return what the network said of a minibatch before training, (n, K), if it is held to that."""
        if self._anchor is None:
            return None
        self._anchor.look(found.distances > 0)
        with self._updates.frozen():
            return self._anchor.logits(x)

    def _pushed(self, at_boundary: Tensor, labels: Tensor, found: Boundary, taus: Tensor) -> Tensor:
        """Return what is descended beside the clean loss, a scalar tensor."""
        return hinge_loss(at_boundary, labels, found.distances, found.slopes, taus, self._p)

    def finish_epoch(self) -> dict[str, Any]:
        """Return the threshold of eps at the end of the epoch."""
        if self._anchor is not None:
            self._anchor.tell()
        return {"tau": self._thresholds.values[-1].item()}

    def watched(self) -> Figures:
        """Return the threshold of eps."""
        return {"tau": self._thresholds.values[-1]}

    def learnt(self) -> dict[str, Any]:
        """Return the thresholds and what they were taken from, and the network as it was."""
        return {**self._thresholds.state(), "anchor": [] if self._anchor is None else self._anchor.state()}

    def relearn(self, learnt: dict[str, Any]) -> None:
        """Go on from what :meth:`learnt` returned."""
        self._thresholds.set_state(learnt)
        if self._anchor is not None:
            self._anchor.set_state(learnt["anchor"])
