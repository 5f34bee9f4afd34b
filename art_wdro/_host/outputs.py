# SPDX-License-Identifier: MIT
"""What networks take and put out: their number format, and the logits in outputs of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def number_format(model: nn.Module) -> torch.dtype:
    """Return the dtype that a network computes in: that of its first floating-point weight; float32 without one."""
    weights = (values.dtype for group in (model.parameters(), model.buffers()) for values in group)
    return next((dtype for dtype in weights if dtype.is_floating_point), torch.float32)


def logits_in(output: Any, count: int, classes: int) -> Tensor:
    """Return the logits, (count, classes), in what a network put out.

    They are the output itself, its attribute or entry `logits`, or the only tensor of that shape in a tuple or a dict.

    :raises ValueError: If there are none, or several.
    """
    found: Tensor = output if isinstance(output, Tensor) else _only(output, (count, classes))
    if found.shape != (count, classes):
        raise ValueError(
            f"classifier puts out the shape {tuple(found.shape)} for {count} samples; needed are "
            f"logits of shape ({count}, nb_classes={classes})"
        )
    return found


def _only(output: Any, shape: tuple[int, int]) -> Tensor:
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    parts = (
        [*output.values()] if isinstance(output, Mapping) else [*output] if isinstance(output, (tuple, list)) else []
    )
    found = [part for part in parts if isinstance(part, Tensor) and part.shape == shape]
    if len(found) == 1:
        return found[0]
    came = ", ".join(str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts)
    raise ValueError(
        f"classifier's network puts out a {type(output).__name__}" + (f" of {came}" if came else "") + "; needed are "
        f"logits of shape ({shape[0]}, nb_classes={shape[1]}): wrap it in a module that returns them"
    )
