# SPDX-License-Identifier: MIT
"""The parameters that all trainers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from art_wdro._host import arguments
from art_wdro.trainers._summary import checked_writer

ON_NONFINITE = ("raise", "skip")
UPDATE_PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
"""Number formats of an update's forward passes, by name; None leaves it to the network."""


@dataclass(frozen=True)
class Common:
    """The parameters that all trainers share, checked."""

    eps: float
    p: float
    norm: Any
    max_iter: int
    seed: int | None
    verbose: bool
    on_nonfinite: str
    sync_batch_norm: bool
    update_precision: str
    ema: float | None
    weight_perturbation: float
    max_grad_norm: float | None
    summary_writer: Any

    def __post_init__(self) -> None:
        """Check the values.

        :raises ValueError: If a value is not allowed.
        :raises TypeError: If a value is of the wrong type.
        """
        checked = {
            "eps": arguments.real("eps", self.eps, 0.0),
            "p": arguments.order(self.p),
            "norm": arguments.ground_norm(self.norm),
            "max_iter": arguments.integer("max_iter", self.max_iter, 1),
            "seed": None if self.seed is None else arguments.seed(self.seed),
            "verbose": arguments.flag("verbose", self.verbose),
            "on_nonfinite": arguments.choice("on_nonfinite", self.on_nonfinite, ON_NONFINITE),
            "sync_batch_norm": arguments.flag("sync_batch_norm", self.sync_batch_norm),
            "update_precision": arguments.choice("update_precision", self.update_precision, tuple(UPDATE_PRECISIONS)),
            "ema": None if self.ema is None else arguments.real("ema", self.ema, 0.0, 1.0, open_high=True),
            "weight_perturbation": arguments.real("weight_perturbation", self.weight_perturbation, 0.0),
            "max_grad_norm": None
            if self.max_grad_norm is None
            else arguments.real("max_grad_norm", self.max_grad_norm, 0.0, open_low=True),
            "summary_writer": checked_writer(self.summary_writer),
        }
        self.__dict__.update(checked)
