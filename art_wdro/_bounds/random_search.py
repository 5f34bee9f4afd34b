# SPDX-License-Identifier: MIT
"""The largest dual norm of a margin's Jacobian from below: norms at inputs of a ball, by a random search."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from art_wdro._bounds.intervals import Ball
from art_wdro._bounds.jacobians import Region
from art_wdro._bounds.layers import Activation, Affine, Node, run
from art_wdro._storage.arrays import parts
from art_wdro._threat.norms import dual_exponent

NEAR = 1e-9
"""How near to a kink an input is too near, relative to how far units move over the ball."""
SAMPLES = 256
"""Random inputs that the lower bound starts from."""
CLIMB = 20
"""Rounds of a random search that starts from them."""
PATIENCE = 3
"""Rounds without a gain after which it stops."""
ENTRIES = 2**21
"""Numbers in one array of gradients, at most."""


class LowerBound:
    """The largest norm at inputs that were visited so far."""

    def __init__(
        self, nodes: Sequence[Node], ball: Ball, classes: int, reach: Sequence[Tensor], deadline: float
    ) -> None:
        """Begin at 0.

        :param nodes: The network.
        :param ball: A single ball.
        :param classes: K, the number of logits.
        :param reach: What :func:`reach` returned.
        :param deadline: Monotonic time after which nothing more is visited.
        """
        self.value = 0.0
        self._nodes, self._ball, self._classes, self._reach, self._deadline = nodes, ball, classes, reach, deadline
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
        for part in parts(len(x), max(1, ENTRIES // (self._classes * x[0].numel()))):
            if not self._is_over():
                found[part] = torch.where(self._off_kinks(x[part]), self._norms_at(x[part]), 0.0)
        found = torch.where(self._ball.outside(x) <= 0, found, 0.0)
        self.value = max(self.value, found.max().item())
        return found

    def _off_kinks(self, x: Tensor) -> Tensor:
        """Tell at which inputs no unit is near a kink, (B,)."""
        found = torch.ones(len(x), dtype=torch.bool)
        with torch.no_grad():
            values = run(self._nodes, x)
        for node in self._nodes:
            if not isinstance(node.operation, Activation):
                continue
            source = node.inputs[0]
            size = self._reach[source] * self._width
            for kink in node.operation.kinks:
                near = ((values[source] - kink).abs() <= NEAR * size) & (size > 0)
                found &= ~near.flatten(1).any(1)
        return found

    def _norms_at(self, x: Tensor) -> Tensor:
        """Return the largest norms over the pairs of classes that there was time for, 0 where one overflows, (B,)."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = run(self._nodes, x)[-1]
        norms = torch.zeros(len(x), dtype=torch.float64)
        blocks = parts(self._classes, max(1, ENTRIES // x.numel()))
        for place, block in enumerate(blocks):
            first = self._gradients(logits, x, block)
            norms = torch.maximum(norms, self._farthest(first, first))
            for other in blocks[place + 1 :]:
                if self._is_over():
                    break
                norms = torch.maximum(norms, self._farthest(first, self._gradients(logits, x, other)))
        return torch.where(torch.isfinite(norms), norms, 0.0)

    def _gradients(self, logits: Tensor, x: Tensor, block: slice) -> Tensor:
        """Return gradients of a block of logits, (B, some, D): of those that there is time for, one at least."""
        # in one piece, lest rows between larger arrays keep those from being given back
        found = x.new_zeros(len(x), block.stop - block.start, x[0].numel())
        for place, label in enumerate(range(block.start, block.stop)):
            if place and self._is_over():
                return found[:, :place]
            with torch.enable_grad():
                own = logits[:, label].sum()
            found[:, place] = torch.autograd.grad(own, x, retain_graph=True)[0].flatten(1)
        return found

    def _farthest(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the largest dual norm of a difference between rows of the two, (B,); inf after an overflow."""
        found = first.new_zeros(len(first))
        for part in parts(first.shape[1], max(1, ENTRIES // second[..., 0].numel())):
            # torch's other mode, by products, loses half the digits
            mode = "donot_use_mm_for_euclid_dist"
            norms = torch.cdist(first[:, part], second, p=dual_exponent(self._ball.r), compute_mode=mode)
            found = torch.maximum(found, norms.flatten(1).amax(1))
            if self._is_over():
                break
        finite = torch.isfinite(first).flatten(1).all(1) & torch.isfinite(second).flatten(1).all(1)
        return torch.where(finite, found, math.inf)

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
    return [size[0].nan_to_num(math.inf, math.inf) for size in sizes]
