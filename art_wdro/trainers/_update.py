# SPDX-License-Identifier: MIT
"""One update of the network: the outer problem's loss, its gradient over all ranks, the optimiser's step."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_wdro._host import classifier as host
from art_wdro._ranks import count, ranks, shards, total
from art_wdro.trainers._augmentation import indices_of
from art_wdro.trainers._replicas import replicated, share_buffers

log = logging.getLogger("art_wdro")
Figures = dict[str, Tensor]
"""Mean figures of a minibatch, by name."""
Outer = Callable[..., tuple[Tensor, Figures]]
"""Maps the logits of all batches of an update to the loss beside the cross-entropy, a mean, and its figures."""


class Updates:
    """The updates of one run of training, in train mode."""

    def __init__(self, classifier: PyTorchClassifier, skip: bool) -> None:
        """Take what is updated.

        :param classifier: Whose network and optimiser they are.
        :param skip: Whether a minibatch whose loss or gradient is not finite is skipped.
        """
        self._classifier, self._skip = classifier, skip
        self._forward: nn.Module | None = None

    @contextmanager
    def replicated(self) -> Iterator[None]:
        """Hold the forward passes of the updates, over all ranks, for as long as training lasts.

        A replica keeps the process group, and reference cycles keep the replica: they are collected here, because
        threads of a group that nobody destroys can abort the process when it exits.
        """
        logits_of = host.logits_of(self._classifier, training=True)
        self._forward = replicated(host.network(self._classifier), logits_of, shards())
        try:
            yield
        finally:
            self._forward = None
            if shards() is not None:
                gc.collect()

    def __call__(self, y: Tensor, batches: Sequence[Tensor], outer: Outer, where: str) -> Figures | None:
        """Take one step of the outer problem.

        :param y: Labels of this rank's part of the minibatch, (n,), or soft targets, (n, K).
        :param batches: The clean inputs, (n, ...), and further ones that `outer` wants.
        :param outer: The loss beside the classifier's cross-entropy on clean inputs.
        :param where: Name of the minibatch, for an error.
        :return: The mean figures of this rank's part, or None if it was skipped.
        :raises FloatingPointError: If the loss or its gradient is not finite, unless such minibatches are skipped.
        """
        assert self._forward is not None
        model, optimiser = host.network(self._classifier), host.optimiser(self._classifier)
        buffers = [buffer.clone() for buffer in model.buffers()]
        set_training_mode(model)
        try:
            with torch.enable_grad():
                clean, *others = self._forward(*batches)
                targets = y if y.dim() == 1 else y.to(clean.dtype)
                clean_loss = training_loss(self._classifier)(clean, targets)
                loss, figures = outer(clean, *others)
                optimiser.zero_grad()
                # the replicas' gradients are averaged, whatever share of the minibatch, and of the weights, each has
                weighed = weight_of(self._classifier, y)
                share = weighed / total(weighed[None])[0]
                (ranks() * (share * clean_loss + len(y) / count(len(y)) * loss)).backward()
                loss = clean_loss.detach() + loss.detach()
            if not _is_finite(loss, model):
                optimiser.zero_grad()
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
                self._refuse(loss, where)
                return None
            optimiser.step()
            share_buffers(model, shards())
        finally:
            model.eval()
        accuracy = (clean.argmax(1) == indices_of(y)).double().mean()
        figures = {"loss": loss, "clean_loss": clean_loss, **figures, "train_clean_accuracy": accuracy}
        return {name: figure.detach() for name, figure in figures.items()}

    def _refuse(self, loss: Tensor, where: str) -> None:
        if self._skip:
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
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    finite = torch.stack([torch.isfinite(values).all() for values in (loss, *gradients)]).all()
    return count(int(finite)) == ranks()


def set_training_mode(model: nn.Module) -> None:
    """Put a network in train mode, but leave frozen parts in eval mode.

    Frozen is a module whose parameters all have `requires_grad` False. If a single layer is trained and others are
    frozen, all the rest is, dropout and parameterless norms included.
    """
    trained = [m for m in model.modules() if any(w.requires_grad for w in m.parameters(recurse=False))]
    frozen = any(not w.requires_grad for w in model.parameters())
    model.train(len(trained) > 1 or not frozen)
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(w.requires_grad for w in parameters):
            module.eval()
    for module in trained:
        module.training = True
