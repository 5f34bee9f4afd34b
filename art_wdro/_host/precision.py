# SPDX-License-Identifier: MIT
"""A network's passes in half precision, and in float32 for the samples that half precision would lose."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Number formats of an attack's forward passes, by name; None leaves it to the network."""
LARGEST = 256.0
"""Size to which the largest derivative by a sample's logits is scaled: float16 ends at 65504 and loses digits below
6e-5, and a network's backward pass grows it by some and shrinks it by more."""
FEWEST = 2.0**-12
"""Largest logit of a sample, in absolute value, from which float16 is too coarse: its numbers lie 2^-24 apart there."""


def with_cast_weights(model: nn.Module, precision: str) -> nn.Module | None:
    """Return a copy of a network whose weights are cast where autocast would cast them at every pass.

    :param model: The network.
    :param precision: A name in `PRECISIONS`.
    :return: The copy; None where nothing is to be cast, or the network cannot be copied.
    """
    dtype = PRECISIONS[precision]
    if dtype is None:
        return None
    try:
        cast = copy.deepcopy(model)
    except (RuntimeError, TypeError):  # what modules with locks, files or non-leaf tensors raise
        return None
    for module in cast.modules():
        # parametrised weights are computed anew, in their own format
        if isinstance(module, (nn.Linear, _ConvNd)) and not hasattr(module, "parametrizations"):
            module.to(dtype)
    return cast


def in_precision(
    function: Callable[[Tensor], Tensor], half: Callable[[Tensor], Tensor], precision: str, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return a function of inputs (N, ...) whose passes run in another number format.

    bfloat16 has the range of float32. float16 has not: there every sample's gradient is scaled on its own, and a sample
    whose logits or gradient leave the format's range is computed anew in float32.

    :param function: Maps inputs to logits (N, K), sample by sample.
    :param half: The same, for passes under autocast.
    :param precision: A name in `PRECISIONS`: half precision where torch's autocast allows it.
    :param device: The device that computes.
    """
    dtype = PRECISIONS[precision]
    if dtype is None:
        return function
    if dtype == torch.float16:
        return lambda x: _Float16.apply(x, function, half)

    def cast(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype):
            return half(x)

    return cast


class _Float16(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], half: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.x, ctx.function = x.detach().requires_grad_(ctx.needs_input_grad[0]), function
        with torch.set_grad_enabled(ctx.needs_input_grad[0]), torch.autocast(x.device.type, torch.float16):
            ctx.half = half(ctx.x)
        logits: Tensor = ctx.half.detach().float()
        ctx.lost = ~torch.isfinite(logits).all(1) | (logits.abs().amax(1) < FEWEST)
        lost = ctx.lost.nonzero()[:, 0]
        if len(lost):
            with torch.no_grad():
                logits[lost] = function(x[lost]).float()
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.half.requires_grad:
            raise ValueError("the classifier's logits do not depend differentiably on x")
        by_logits = gradients[0]
        scale = LARGEST / by_logits.abs().amax(1).clamp(min=1e-30)
        scaled = (by_logits * scale[:, None]).to(ctx.half.dtype)
        # a caller may differentiate several margins of one pass, but where torch's compiler forbids it
        retained = not getattr(ctx.function, "differentiable_once", False)
        (gradient,) = torch.autograd.grad(ctx.half, ctx.x, scaled, retain_graph=retained)
        flat = gradient.flatten(1)
        lost = ctx.lost | ~torch.isfinite(flat).all(1) | ((flat == 0).all(1) & (by_logits != 0).any(1))
        gradient = gradient / scale.view(-1, *[1] * (gradient.dim() - 1))
        rows = lost.nonzero()[:, 0]
        if len(rows):
            with torch.enable_grad():
                x = ctx.x.detach()[rows].requires_grad_()
                (gradient[rows],) = torch.autograd.grad(ctx.function(x).float(), x, by_logits[rows])
        return gradient, None, None
