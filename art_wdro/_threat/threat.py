# SPDX-License-Identifier: MIT
"""The threat (W_p, l_r) in a box."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from art_wdro._ranks import Gather

Box = tuple[Tensor, Tensor]
"""Lower and upper bounds of the inputs, broadcastable to one sample."""


class Threat(NamedTuple):
    """The threat (W_p, l_r) in a box.

    :param p: Order of the Wasserstein distance, in (1, inf].
    :param r: Exponent of the ground norm.
    :param box: Bounds of the inputs, or None.
    :param gather: Gathers numbers where the samples are a shard of the data set.
    """

    p: float
    r: float
    box: Box | None
    gather: Gather
