# SPDX-License-Identifier: MIT
"""Keywords that scripts for ART give to constructors, and that have another place here or none."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Constructor = TypeVar("Constructor", bound=Callable[..., None])

INSTEAD = {
    "alpha": "leave it out",
    "attack": "it searches boundary points itself; leave it out",
    "attacks": "the trainer has an attack of its own; leave it out",
    "batch_size": "give it to fit",
    "classifier": "call it estimator",
    "decay": "the steps have no momentum; leave it out",
    "drop_last": "give it to fit",
    "eps_step": "the length of its steps follows from eps; leave it out",
    "estimator": "call it classifier",
    "loss_type": "call it loss where there is one, and leave it out otherwise",
    "max_iter": "it takes a single step; leave it out",
    "minimal": "WassersteinKnapsack searches least distances; leave it out",
    "mode": "leave it out",
    "nb_epochs": "give it to fit",
    "nb_random_init": "attacks start at the inputs; leave it out",
    "num_random_init": "attacks start at the inputs; leave it out",
    "proxy_classifier": "leave it out",
    "random_eps": "the budget is the same in every call; leave it out",
    "ratio": "the clean loss is a term of the objective; leave it out",
    "scheduler": "give it to fit",
    "summary_writer": "WassersteinPGD, WassersteinFGM and the trainers write summaries; leave it out",
    "targeted": "WassersteinPGD and WassersteinFGM alone attack towards targets; leave it out",
    "use_amp": "precision is the number format of an attack's passes, update_precision of a trainer's; leave it out",
    "validation_data": "give it to fit",
    "warmup": "leave it out",
}
"""What to do with a keyword of ART's attacks and trainers that a constructor here does not take."""


def explains_foreign_keywords(constructor: Constructor) -> Constructor:
    """Let a constructor say what to do with a keyword of ART's that it lacks; its signature stays."""
    parameters = inspect.signature(constructor).parameters

    @functools.wraps(constructor)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in parameters and name in INSTEAD:
                raise TypeError(f"{name} has no counterpart in {type(self).__name__}(): {INSTEAD[name]}")
        constructor(self, *args, **kwargs)

    return checked  # type: ignore[return-value]
