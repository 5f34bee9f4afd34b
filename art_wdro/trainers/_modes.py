# SPDX-License-Identifier: MIT
"""The modes of a network along a run, train for updates and eval for all else, worked out once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro._host import classifier as host


class Modes:
    """Switches a network between the mode of its updates and eval mode, touching what differs and nothing else."""

    def __init__(self, classifier: PyTorchClassifier) -> None:
        """Work out which modules are in train mode during an update; the network is left in eval mode."""
        self._classifier, self._model = classifier, host.network(classifier)
        self._weights = [weight for weight in self._model.parameters() if weight.requires_grad]
        set_training_mode(self._model)
        self._trained = [module for module in self._model.modules() if getattr(module, "training", False)]
        self._model.eval()
        # a module that does more on a change of mode, such as merging weights, has to hear of each
        self._plain = all(_switches_plainly(module) for module in self._model.modules())

    @contextmanager
    def training(self) -> Iterator[None]:
        """Put the network in train mode, but for frozen parts."""
        try:
            if self._plain:
                self._switch(True)
            else:
                set_training_mode(self._model)
            yield
        finally:
            if self._plain:
                self._switch(False)
            else:
                self._model.eval()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let no parameter want a gradient while inputs are attacked: a compiled network would compute them all."""
        with host.differentiable_by_inputs(self._classifier):
            try:
                for weight in self._weights:
                    weight.requires_grad_(False)
                yield
            finally:
                for weight in self._weights:
                    weight.requires_grad_(True)

    def _switch(self, training: bool) -> None:
        for module in self._trained:
            module.training = training


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


def _switches_plainly(module: nn.Module) -> bool:
    """Tell whether `train` and `eval` of a module do nothing but set the flag of it and its children."""
    return all(
        name not in vars(module) and getattr(type(module), name) is getattr(nn.Module, name)
        for name in ("train", "eval")
    )
