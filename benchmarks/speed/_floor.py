# SPDX-License-Identifier: MIT
"""The floor under the cost of an attack."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def bare_loop(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """Do K forwards and K backwards to the input of a batch, and nothing else."""
    batch = x
    for _ in range(steps):
        batch = batch.detach().requires_grad_()
        torch.autograd.grad(cross_entropy(model(batch), y, reduction="sum"), batch)


def bare_attack(
    model: nn.Module, x: np.ndarray, y: np.ndarray, batch_size: int, steps: int, device: torch.device
) -> None:
    """Run the bare loop over a data set in batches, in eval mode, parameters frozen."""
    model.eval().requires_grad_(False)
    for start in range(0, len(x), batch_size):
        batch, labels = (torch.from_numpy(part[start : start + batch_size]).to(device) for part in (x, y))
        bare_loop(model, batch, labels, steps)
    model.requires_grad_(True)
