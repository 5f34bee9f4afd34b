# SPDX-License-Identifier: MIT
"""The threat (W_p, l_r) in a box."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

Box = tuple[Tensor, Tensor]
"""Lower and upper bounds of the inputs, broadcastable to one sample."""


class Threat(NamedTuple):
    """The threat (W_p, l_r) in a box.

    :param p: Order of the Wasserstein distance, in [1, inf].
    :param r: Exponent of the ground norm.
    :param box: Bounds of the inputs, or None.
    """

    p: float
    r: float
    box: Box | None


def as_box(bounds: tuple[Any, Any] | None, device: torch.device) -> Box | None:
    """Return bounds given as numbers, arrays or tensors as float32 tensors on a device; None stays."""
    if bounds is None:
        return None
    lower, upper = (torch.as_tensor(bound, dtype=torch.float32, device=device) for bound in bounds)
    return lower, upper
