# SPDX-License-Identifier: MIT
"""Passes through the network: the one place that decides which batches it sees, and what is counted of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LogitsOf = Callable[[Tensor], Tensor]
"""Maps inputs (N, ...) to logits (N, K), sample by sample, differentiably."""
SHAPES = 5
"""Sizes of batch that a search shows the network: the full one and its halvings, the last of which is padded most."""
PADDED = 0.25
"""Part of a pass on a CPU that may be padding; above it two smaller passes cost less."""


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

    def __init__(self, logits_of: LogitsOf, sizes: Sequence[int] = ()) -> None:
        """Wrap a function.

        :param logits_of: Maps inputs to logits.
        :param sizes: Sizes of the batches, in falling order.
        """
        self._logits_of, self.sizes = owning(logits_of), sizes
        self.gradients = 0
        self.counts: Counter[int] = Counter()

    @classmethod
    def of(cls, logits_of: LogitsOf) -> Passes:
        """Return the function itself, if it is one that counts, or one around it."""
        return logits_of if isinstance(logits_of, cls) else cls(logits_of)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits, (N, K)."""
        self.gradients += len(x) * x.requires_grad
        if not self.sizes or len(x) == 0:
            return self._pass(x, 0)
        pieces = cut(len(x), self.sizes, PADDED if x.device.type == "cpu" else 1.0)
        if len(pieces) == 1:
            return self._padded(x)
        return torch.cat([self._padded(x[piece]) for piece in pieces])

    def _padded(self, x: Tensor) -> Tensor:
        return self._pass(x, min(size for size in self.sizes if size >= len(x)) - len(x))

    def _pass(self, x: Tensor, lacking: int) -> Tensor:
        self.counts[len(x)] += 1
        if lacking == 0:
            return self._logits_of(x)
        padding = x[-1:].detach().expand(lacking, *x.shape[1:])
        return self._logits_of(torch.cat([x, padding]))[: len(x)]


def cut(count: int, sizes: Sequence[int], padded: float) -> list[slice]:
    """Cut so many rows into parts that fit the sizes, of which padding is at most a given part but in the smallest.

    >>> cut(70, [64, 32, 16], 0.25), cut(30, [64, 32, 16], 0.25)
    ([slice(0, 64, None), slice(64, 70, None)], [slice(0, 30, None)])
    """
    found, start = [], 0
    while start < count:
        left = count - start
        above = min((size for size in sizes if size >= left), default=sizes[0])
        below = max((size for size in sizes if size <= left), default=left)
        take = min(left, above) if left >= (1 - padded) * above else below
        found.append(slice(start, start + take))
        start += take
    return found
