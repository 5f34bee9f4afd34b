# SPDX-License-Identifier: MIT
"""One update of the network: the outer problem's loss, its gradient over all ranks, the optimiser's step."""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_wdro._host import classifier as host
from art_wdro._ranks import count, ranks, shards, total
from art_wdro.trainers._augmentation import indices_of
from art_wdro.trainers._average import Average
from art_wdro.trainers._common import UPDATE_PRECISIONS, Common
from art_wdro.trainers._copies import Copies
from art_wdro.trainers._modes import Modes
from art_wdro.trainers._perturbation import Perturbation
from art_wdro.trainers._replicas import Forward, replicated, share_buffers

log = logging.getLogger("art_wdro")
Figures = dict[str, Tensor]
"""Mean figures of a minibatch, by name."""
Outer = Callable[..., tuple[Tensor, Figures]]
"""Maps the logits of all batches of an update to the loss beside the cross-entropy, a mean, and its figures."""


class Updates:
    """The updates of one run of training, in train mode."""

    def __init__(self, classifier: PyTorchClassifier, common: Common) -> None:
        """Take what is updated, and how.

        :param classifier: Whose network and optimiser they are.
        :param common: What the trainer was told.
        """
        self._classifier, self._common = classifier, common
        self._forward: nn.Module | None = None
        self._modes: Modes | None = None
        model = host.network(classifier)
        self._buffers = Copies(model.buffers)
        self._perturbation = Perturbation(model, common.weight_perturbation) if common.weight_perturbation > 0 else None
        self.average = (
            None
            if common.ema is None
            else Average(lambda: itertools.chain(model.parameters(), model.buffers()), common.ema)
        )

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Hold the forward passes of the updates, over all ranks, for as long as training lasts.

        A replica keeps the process group, and reference cycles keep the replica: they are collected here, because
        threads of a group that nobody destroys can abort the process when it exits.
        """
        logits_of = host.logits_of(self._classifier, training=True)
        half = UPDATE_PRECISIONS[self._common.update_precision]
        self._modes = Modes(self._classifier)
        self._forward = replicated(Forward(host.network(self._classifier), logits_of, half), shards())
        try:
            yield
        finally:
            self._forward = self._modes = None
            if shards() is not None:
                gc.collect()

    def frozen(self) -> AbstractContextManager[None]:
        """Hold the network still, in eval mode, while a minibatch is attacked."""
        assert self._modes is not None
        return self._modes.frozen()

    def __call__(
        self, y: Tensor, batches: Sequence[Tensor], outer: Outer, where: str, weight: float = 1.0
    ) -> Figures | None:
        """Take one step of the outer problem.

        One value is read back from the device: whether loss and gradient are finite. Figures are those of the weights
        before the step, and not of perturbed ones.

        :param y: Labels of this rank's part of the minibatch, (n,), or soft targets, (n, K).
        :param batches: The clean inputs, (n, ...), and further ones that `outer` wants.
        :param outer: The loss beside the classifier's cross-entropy on clean inputs.
        :param where: Name of the minibatch, for an error.
        :param weight: Of the classifier's cross-entropy.
        :return: The mean figures of this rank's part, or None if it was skipped.
        :raises FloatingPointError: If the loss or its gradient is not finite, unless such minibatches are skipped.
        """
        assert self._modes is not None
        model, optimiser = host.network(self._classifier), host.optimiser(self._classifier)
        self._buffers.take()
        with self._modes.training():
            figures = self._descend(y, batches, outer, weight)
            if self._perturbation is not None:
                self._buffers.put_back()
                with self._perturbation.applied():
                    loss = self._descend(y, batches, outer, weight)["loss"]
            else:
                loss = figures["loss"]
            if not _is_finite(loss, model):
                optimiser.zero_grad()
                self._buffers.put_back()
                self._refuse(loss, where)
                return None
            if self._common.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self._common.max_grad_norm)
            optimiser.step()
            share_buffers(model, shards())
        if self.average is not None:
            self.average.update()
        return figures

    def _descend(self, y: Tensor, batches: Sequence[Tensor], outer: Outer, weight: float) -> Figures:
        """Leave the gradient of the outer problem with the parameters, and return the figures."""
        assert self._forward is not None
        with torch.enable_grad():
            clean, *others = self._forward(*batches)
            targets = y if y.dim() == 1 else y.to(clean.dtype)
            clean_loss = training_loss(self._classifier)(clean, targets)
            loss, figures = outer(clean, *others)
            host.optimiser(self._classifier).zero_grad()
            torch.autograd.backward(self._shared(weight * clean_loss, loss, y))
        accuracy = (clean.argmax(1) == indices_of(y)).double().mean()
        whole = weight * clean_loss.detach() + loss.detach()
        figures = {"loss": whole, "clean_loss": clean_loss, **figures, "train_clean_accuracy": accuracy}
        return {name: figure.detach() for name, figure in figures.items()}

    def _shared(self, clean_loss: Tensor, loss: Tensor, y: Tensor) -> Tensor:
        """Return this rank's loss, of whose gradient the mean over ranks is that of the whole minibatch."""
        if shards() is None:
            return clean_loss + loss
        # the replicas' gradients are averaged, whatever share of the minibatch, and of the weights, each has
        weighed = weight_of(self._classifier, y)
        share = weighed / total(weighed[None])[0]
        return ranks() * (share * clean_loss + len(y) / count(len(y)) * loss)

    def _refuse(self, loss: Tensor, where: str) -> None:
        if self._common.on_nonfinite == "skip":
            log.info("skipped %s, whose loss or gradient is not finite", where)
            return
        what = "gradient is not finite" if torch.isfinite(loss) else f"loss is {loss.item()}"
        raise FloatingPointError(
            f"the {what} in {where}, and the weights are still those before it; a smaller learning rate may "
            "help, or on_nonfinite='skip'"
        )


def training_loss(classifier: PyTorchClassifier) -> nn.CrossEntropyLoss:
    """Return the cross-entropy that a trainer descends.

    The classifier's own one, with its class weights and label smoothing, if it has one; a plain one if
    its loss is something else, such as a loss set for attacking.
    """
    own = classifier.loss
    if not isinstance(own, nn.CrossEntropyLoss):
        return nn.CrossEntropyLoss()
    own = copy.copy(own)
    own.reduction = "mean"
    return own


def weight_of(classifier: PyTorchClassifier, y: Tensor) -> Tensor:
    """Return what the mean of :func:`training_loss` divides by: how many labels count, each with its class's weight.

    The mean over soft targets, (n, K), is one over all of them, whatever the weights.
    """
    own = training_loss(classifier)
    if y.dim() == 2:
        return torch.tensor(float(len(y)), device=y.device)
    weights = torch.ones_like(y, dtype=torch.float32) if own.weight is None else own.weight[y]
    return (weights * (y != own.ignore_index)).sum()


def _is_finite(loss: Tensor, model: nn.Module) -> bool:
    """Tell whether the loss of every rank and the gradient are finite."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None and weight.grad.numel()]
    # the largest entry, since the square of a finite one may be none
    largest = torch._foreach_norm(gradients, math.inf) if gradients else []
    finite = torch.isfinite(torch.stack([loss, *largest])).all()
    return bool(finite) if shards() is None else count(int(finite)) == ranks()
