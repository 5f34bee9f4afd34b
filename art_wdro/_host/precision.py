# SPDX-License-Identifier: MIT
"""A network's passes in half precision, and in float32 for the samples that half precision would lose."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Number formats of an attack's forward passes, by name; None leaves it to the network."""
LARGEST = 256.0
"""Size to which the largest derivative by a sample's logits is scaled: float16 ends at 65504 and loses digits below
6e-5, and a network's backward pass grows it by some and shrinks it by more."""
CASTING = {
    layer.forward
    for layer in (
        nn.Linear,
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
    )
}
"""What layers do with weights that autocast casts at every pass."""
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
    for module in _castable(cast):
        module.to(dtype)
    return cast


class CastWeights:
    """Weights of a network in half precision, which take the places of its own ones while these stand still.

    For training, where weights change from one attack to the next: a copy of the network would have to follow.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Find the weights that autocast would cast at every pass.

        :param model: The network.
        :param dtype: The number format.
        """
        self._places = [
            (module, name, weight)
            for module in _castable(model)
            for name, weight in module.named_parameters(recurse=False)
            if weight.dtype == torch.float32
        ]
        self._cast = [nn.Parameter(torch.empty_like(weight, dtype=dtype), False) for _, _, weight in self._places]

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Cast the weights as they are now, and let the network use them."""
        if not self._places:  # of which torch takes no list
            yield
            return
        with torch.no_grad():
            torch._foreach_copy_([*self._cast], [weight for _, _, weight in self._places])
        try:
            for (module, name, _), cast in zip(self._places, self._cast, strict=True):
                module._parameters[name] = cast
            yield
        finally:
            for module, name, weight in self._places:
                module._parameters[name] = weight


def cast_weights(model: nn.Module, precision: str, compiled: bool) -> Callable[[], AbstractContextManager[None]]:
    """Return what lets a network that is trained use weights cast once an attack, where its passes cast them at all.

    A compiler casts them in the graph. float16 needs both formats, for samples that it would lose.

    :param model: The network.
    :param precision: A name in `PRECISIONS`.
    :param compiled: Whether the passes are compiled.
    """
    if compiled or precision != "bfloat16":
        return nullcontext
    return CastWeights(model, torch.bfloat16).placed


def _castable(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that do nothing with their weights but what autocast casts them for."""
    for module in model.modules():
        if type(module).forward in CASTING and not (hasattr(module, "parametrizations") or module._forward_pre_hooks):
            yield module


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
