# SPDX-License-Identifier: MIT
"""Passes through the network: the one place that decides which batches it sees, and what is counted of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LogitsOf = Callable[[Tensor], Tensor]
"""Maps inputs (N, ...) to logits (N, K), sample by sample, differentiably."""
Advance = Callable[[int], None]
"""Is told of gradients as they are done with: those that are taken, and those that a sample may take and will not."""
SHAPES = 5
"""Sizes of batch that a search shows the network: the full one and its halvings, the last of which is padded most."""
COMPILED = "_orig_mod", "_torchdynamo_orig_callable"
"""What modules and functions have that torch.compile has made."""
COST = 8.0
"""What a pass on a CPU costs beside its samples, in samples; on a GPU small passes cost no less than full ones."""


def owning(logits_of: LogitsOf) -> LogitsOf:
    """Return a function of logits that gives the network a tensor of its own, which a layer may overwrite."""
    if getattr(logits_of, "owns_input", False):
        return logits_of
    return lambda x: logits_of(x.clone())


def input_gradient(values: Tensor, x: Tensor, retain_graph: bool = False) -> Tensor:
    """Differentiate the sum of per-sample values, (N,), by the inputs, (N, ...).

    :raises ValueError: If they do not depend on them differentiably.
    """
    found = None
    if values.requires_grad:
        ones = torch.ones_like(values)
        (found,) = torch.autograd.grad(values, x, ones, retain_graph=retain_graph, allow_unused=True)
    if found is None:
        raise ValueError("the classifier's logits do not depend differentiably on x")
    return found


class Passes:
    """A function of logits that counts its passes, and shows the network batches of few sizes.

    What tunes itself to a size (cuDNN's benchmark, graphs, compilers) does so a few times then, and not at every step.
    The sizes are a full one and its halvings; until they are set, batches are shown as they come. Inputs that fill none
    are padded with copies of the last one, whose logits are dropped: samples do not depend on their batch.

    Attributes: `gradients`, how many inputs it was differentiated by; `counts`, how many passes there were of so many
    inputs, padding apart.
    """

    owns_input = True

    def __init__(self, logits_of: LogitsOf, sizes: Sequence[int] = (), advance: Advance | None = None) -> None:
        """Wrap a function; the attribute `differentiable_once` says so of one whose graph torch's compiler makes.

        :param logits_of: Maps inputs to logits.
        :param sizes: Sizes of the batches, in falling order.
        :param advance: Is told of gradients.
        """
        self._logits_of, self.sizes = owning(logits_of), sizes
        compiled = any(hasattr(logits_of, name) for name in COMPILED)
        self.differentiable_once: bool = compiled or getattr(logits_of, "differentiable_once", False)
        self.gradients, self._advance = 0, advance
        self.counts: Counter[int] = Counter()

    @classmethod
    def of(cls, logits_of: LogitsOf) -> Passes:
        """Return the function itself, if it is one that counts, or one around it."""
        return logits_of if isinstance(logits_of, cls) else cls(logits_of)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits, (N, K)."""
        if x.requires_grad:
            self.gradients += len(x)
            self.done_with(len(x))
        if not self.sizes or len(x) == 0:
            return self._pass(x, 0)
        pieces = cut(len(x), self.sizes, COST if x.device.type == "cpu" else math.inf)
        if len(pieces) == 1:
            return self._padded(x)
        return torch.cat([self._padded(x[piece]) for piece in pieces])

    def done_with(self, gradients: int) -> None:
        """Tell of gradients that are taken, or that will not be."""
        if self._advance is not None:
            self._advance(gradients)

    def _padded(self, x: Tensor) -> Tensor:
        return self._pass(x, min(size for size in self.sizes if size >= len(x)) - len(x))

    def _pass(self, x: Tensor, lacking: int) -> Tensor:
        self.counts[len(x)] += 1
        if lacking == 0:
            return self._logits_of(x)
        padding = x[-1:].detach().expand(lacking, *x.shape[1:])
        return self._logits_of(torch.cat([x, padding]))[: len(x)]


def cut(count: int, sizes: Sequence[int], cost: float) -> list[slice]:
    """Cut so many rows into parts, each of which fits one of the sizes, as cheaply as may be.

    :param count: Rows.
    :param sizes: Sizes in falling order.
    :param cost: What a part costs beside its size, in rows.

    >>> cut(70, [64, 32, 16], 8), cut(60, [64, 32, 16], 8)
    ([slice(0, 64, None), slice(64, 70, None)], [slice(0, 60, None)])
    """
    found, start = [], 0
    while start < count:
        take = min(count - start, _first(count - start, tuple(sizes), cost)[0])
        found.append(slice(start, start + take))
        start += take
    return found


def _first(count: int, sizes: tuple[int, ...], cost: float) -> tuple[int, float]:
    """Return the size of the first part, and what all parts cost: one with padding, or a full one and the rest."""
    if count == 0:
        return 0, 0.0
    if count > sizes[0]:
        return sizes[0], math.inf  # however the rest is cut, a full batch comes first
    above = min(size for size in sizes if size >= count)
    below = max((size for size in sizes if size <= count), default=above)
    split = below + cost + _first(max(0, count - below), sizes, cost)[1]
    return (above, above + cost) if above + cost <= split else (below, split)
