# SPDX-License-Identifier: MIT
"""The largest dual norm of a margin's Jacobian from below: norms at inputs of a ball, by a random search."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from art_wdro._bounds.intervals import Ball
from art_wdro._bounds.jacobians import Region
from art_wdro._bounds.layers import Activation, Affine, Node, run
from art_wdro._storage.arrays import parts
from art_wdro._threat.norms import dual_exponent, sample_norms

NEAR = 1e-9
"""How near to a kink an input is too near, relative to how far units move over the ball."""
SAMPLES = 256
"""Random inputs that the lower bound starts from."""
CLIMB = 20
"""Rounds of a random search that starts from them."""
PATIENCE = 3
"""Rounds without a gain after which it stops."""
ENTRIES = 2**24
"""Numbers in one array of gradients, at most."""


class LowerBound:
    """The largest norm at inputs that were visited so far."""

    def __init__(
        self, nodes: Sequence[Node], ball: Ball, rows: Tensor, reach: Sequence[Tensor], deadline: float
    ) -> None:
        """Begin at 0.

        :param nodes: The network.
        :param ball: A single ball.
        :param rows: The combinations of the logits, (M, K).
        :param reach: What :func:`reach` returned.
        :param deadline: Monotonic time after which nothing more is visited.
        """
        self.value = 0.0
        self._nodes, self._ball, self._rows, self._reach, self._deadline = nodes, ball, rows, reach, deadline
        self._width = (ball.hull().upper - ball.hull().lower).max().item()

    def climb(self) -> None:
        """Raise the lower bound by norms at random inputs, and at inputs near the best of them."""
        generator = torch.Generator().manual_seed(0)
        x = self._ball.draw(SAMPLES, generator)
        norms = self.visit(x)
        width = self._ball.hull().upper - self._ball.hull().lower
        last_gain = 0
        for turn in range(CLIMB):
            if self._is_over() or turn - last_gain > PATIENCE:
                break
            best, before = norms.topk(SAMPLES // 8).indices, self.value
            around = x[best.repeat(4)]
            noise = torch.randn(around.shape, dtype=torch.float64, generator=generator)
            tried = self._ball.pulled(around + noise * width / 2 ** (1 + turn / 2))
            x, norms = torch.cat([x[best], tried]), torch.cat([norms[best], self.visit(tried)])
            last_gain = turn if self.value > before else last_gain

    def visit(self, x: Tensor) -> Tensor:
        """Raise the lower bound by the largest norms at inputs, (B, ...); return them, 0 where they do not count.

        They count inside the ball, and off the kinks, where a derivative may be that of a cell beyond the ball.
        """
        found = torch.zeros(len(x), dtype=torch.float64)
        for part in parts(len(x), max(1, ENTRIES // (len(self._rows) * x[0].numel()))):
            if not self._is_over():
                found[part] = self._norms_at(x[part])
        found = torch.where(self._ball.outside(x) <= 0, found, 0.0)
        self.value = max(self.value, found.max().item())
        return found

    def _norms_at(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            values = run(self._nodes, x)
            logits = values[-1]
            gradients = [torch.autograd.grad(z.sum(), x, retain_graph=True)[0].flatten(1) for z in logits.unbind(1)]
        margins = torch.einsum("mk,bkd->bmd", self._rows, torch.stack(gradients, 1))
        norms = sample_norms(margins.flatten(0, 1), dual_exponent(self._ball.r)).view(len(x), -1).amax(1)
        for node in self._nodes:
            if not isinstance(node.operation, Activation):
                continue
            source = node.inputs[0]
            size = self._reach[source] * self._width
            for kink in node.operation.kinks:
                near = ((values[source] - kink).abs() <= NEAR * size) & (size > 0)
                norms = torch.where(near.flatten(1).any(1), 0.0, norms)
        return norms.detach()

    def _is_over(self) -> bool:
        return time.monotonic() > self._deadline


def reach(nodes: Sequence[Node], region: Region) -> list[Tensor]:
    """Bound how strongly every unit depends on all inputs together."""
    sizes: list[Tensor] = []
    for index, node in enumerate(nodes):
        if not node.inputs:
            sizes.append(torch.ones_like(region.values[0].lower))
        elif isinstance(node.operation, Affine):
            sizes.append(node.operation.absolute(sizes[node.inputs[0]]))
        elif isinstance(node.operation, Activation):
            sizes.append(sizes[node.inputs[0]] * region.slopes[index].largest())
        else:
            sizes.append(torch.stack([sizes[source] for source in node.inputs]).sum(0))
    return [size[0] for size in sizes]
