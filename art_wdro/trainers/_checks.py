# SPDX-License-Identifier: MIT
"""What is checked of a classifier, its optimiser and a scheduler before a run trains: nothing may train in silence."""

from __future__ import annotations

import inspect

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from art_wdro._host import classifier as host
from art_wdro.trainers._copies import Copies
from art_wdro.trainers._modes import set_training_mode
from art_wdro.trainers._random import random_state, set_random_state

USED = ("param_groups", "state_dict", "load_state_dict", "zero_grad", "step")
"""What training uses of an optimiser."""


def check_optimiser(classifier: PyTorchClassifier) -> None:
    """Refuse a classifier without an optimiser that takes one step from one gradient.

    :raises ValueError: If it has none, or one that wants to evaluate the loss itself.
    """
    host.require_optimiser(classifier)
    own = host.optimiser(classifier)
    lacking = [name for name in USED if not hasattr(own, name)]
    if lacking:
        raise ValueError(
            f"classifier has the optimizer {type(own).__name__}, which lacks {', '.join(lacking)}; needed is one of "
            "torch, or one that behaves as such"
        )
    # a scheduler puts a function of its own in the place of the bound method
    arguments = inspect.signature(getattr(type(own), "step", own.step)).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [a.name for a in arguments if a.default is a.empty and a.kind in plain and a.name != "self"]
    if needed:
        raise ValueError(
            f"classifier has the optimizer {type(own).__name__}, whose step needs {', '.join(needed)}; allowed are "
            "optimizers that take one step from one gradient, such as SGD and Adam"
        )


def check_parameters(classifier: PyTorchClassifier) -> None:
    """Refuse an optimiser that does not hold every parameter that is to be trained.

    It may hold others beside them, frozen ones or those of a loss.

    :raises ValueError: If one is missing, or the network has nothing to train.
    """
    trained = {name: w for name, w in host.network(classifier).named_parameters() if w.requires_grad}
    if not trained:
        raise ValueError(
            "classifier has a network without a parameter to train; needed is at least one with requires_grad=True"
        )
    held = {id(weight) for group in host.optimiser(classifier).param_groups for weight in group["params"]}
    missing = [name for name, weight in trained.items() if id(weight) not in held]
    if not missing:
        return
    shown = missing[:5]
    more = f" and {len(missing) - len(shown)} more" if len(missing) > len(shown) else ""
    raise ValueError(
        f"classifier has an optimizer that lacks {len(missing)} of the network's {len(trained)} trainable parameters "
        f"({', '.join(shown)}{more}); make the optimizer after the network has its layers, and set "
        "requires_grad=False on what shall stay as it is"
    )


def check_scheduler(classifier: PyTorchClassifier, scheduler: LRScheduler | None) -> None:
    """Refuse a scheduler that would not change the rates of the classifier's optimiser.

    :raises TypeError: If it is none of torch.
    :raises ValueError: If it is one of another optimiser.
    """
    if scheduler is None:
        return
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(f"scheduler is {scheduler!r}; allowed is a learning rate scheduler of torch or None")
    own, of = host.optimiser(classifier), getattr(scheduler, "optimizer", None)
    if of is None:
        return  # torch 2.4 does not let every scheduler name its optimiser
    # an optimiser that wraps another one has its groups
    shared = {id(group) for group in own.param_groups} & {id(group) for group in of.param_groups}
    if not shared:
        raise ValueError(
            f"scheduler is a {type(scheduler).__name__} of another optimizer than the classifier's; needed is one made "
            "with classifier.optimizer"
        )


def check_single_sample(classifier: PyTorchClassifier, x: Tensor, origin: str) -> None:
    """Refuse a minibatch of a single sample where the network cannot be trained on one, as with many a batch norm.

    One forward pass in train mode tells; the classifier and all random state are left as they were.

    :param x: Any input, (1, ...).
    :param origin: What makes such a minibatch, and how to avoid it: the end of an error.
    :raises ValueError: If the network refuses it.
    """
    model = host.network(classifier)
    buffers = Copies(model.buffers)
    buffers.take()
    state = random_state(classifier.device)
    try:
        with host.restored(classifier), torch.no_grad():
            set_training_mode(model)
            host.logits_of(classifier, training=True)(x.to(classifier.device))
    except torch.cuda.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"the network does not train on a minibatch of one sample ({why}); {origin}") from error
    finally:
        set_random_state(state, classifier.device)
        buffers.put_back()
