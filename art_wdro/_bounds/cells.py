# SPDX-License-Identifier: MIT
"""Cells of inputs on which a network is affine, and whether a ball of inputs meets them, by linear programmes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from art_wdro._bounds.intervals import Ball
from art_wdro._bounds.layers import Activation, Node, run
from art_wdro._threat.geometry import sample_direction
from art_wdro._threat.norms import dual_exponent, sample_norms

OUTSIDE = -1e-5
"""How far every point must be beyond some border for a cell to count as empty: above the solver's tolerance."""
ROUNDED = 1e-11
"""Relative change over the box below which a unit is where it is, up to rounding."""
CUTS = 30
"""Planes that a round ball is cut with, at most."""
LEAST_SECONDS = 0.01
"""Time that a linear programme is given even where none is left: a negative limit would be none to the solver."""


class Cell:
    """The inputs for which every unit's input lies in a given interval, as linear inequalities A x <= b.

    :param nodes: The network.
    :param units: For each activation, the intervals of its units, two tensors of the shape of one input of it.
    :param shape: Shape of one input of the network.
    """

    def __init__(self, nodes: Sequence[Node], units: dict[int, tuple[Tensor, Tensor]], shape: torch.Size) -> None:
        pieces = {index: _affine(nodes[index].operation, *ends) for index, ends in units.items()}

        def inputs_of_units(x: Tensor) -> Tensor:
            values = run(nodes, x.view(1, *shape), pieces)
            return torch.cat([values[nodes[index].inputs[0]].flatten() for index in units])

        start = torch.zeros(math.prod(shape), dtype=torch.float64)
        weights = torch.autograd.functional.jacobian(inputs_of_units, start)  # type: ignore[no-untyped-call]
        offsets = inputs_of_units(start)
        rows, limits = [], []
        for sign, side in ((-1.0, 0), (1.0, 1)):
            ends = torch.cat([interval[side].flatten() for interval in units.values()])
            held = torch.isfinite(ends)
            rows.append(sign * weights[held])
            limits.append(sign * (ends - offsets)[held])
        self.matrix, self.limits = torch.cat(rows).numpy(), torch.cat(limits).numpy()

    def deepest(self, ball: Ball, seconds: float) -> tuple[float, Tensor]:
        """Find the point of a single ball that is farthest from the cell's borders.

        The inputs are in units of the box around the ball, and every border is in units of how much it rises there. A
        ball in another norm than l_inf is cut by planes until the point lies in it, or none is left.

        :param ball: The ball.
        :param seconds: Time for it.
        :return: How far it is from them, negative if the ball misses the cell, 0 where it was not found out, and it.
        """
        deadline = time.monotonic() + seconds
        centre = ball.centre[0].flatten().numpy()
        lower, upper = (bound[0].flatten().numpy() for bound in ball.hull())
        width = upper - lower
        matrix, limits = _normed(self.matrix * width, self.limits - self.matrix @ lower)
        bounds = [(0.0, 1.0)] * len(lower) + [(None, 1.0)]
        objective = np.append(np.zeros(len(lower)), -1.0)
        room, x = 0.0, centre
        for _ in range(CUTS):
            if not (np.isfinite(matrix).all() and np.isfinite(limits).all()):
                return 0.0, ball.centre[0]
            left = max(LEAST_SECONDS, deadline - time.monotonic())
            given = np.column_stack([matrix, np.ones(len(matrix))])
            found = linprog(objective, given, limits, bounds=bounds, method="highs", options={"time_limit": left})
            if found.status != 0:
                return 0.0, ball.centre[0]
            room, x = float(found.x[-1]), lower + width * found.x[:-1]
            delta = torch.from_numpy(x - centre)[None]
            beyond = sample_norms(delta, ball.r).item() - ball.radius.item()
            if room < OUTSIDE or beyond <= 0 or time.monotonic() > deadline:
                break
            # the plane that touches the ball in the direction of the point
            normal = sample_direction(delta, dual_exponent(ball.r)).numpy()
            plane, limit = _normed(normal * width, normal @ (centre - lower) + ball.radius.item())
            matrix, limits = np.vstack([matrix, plane]), np.append(limits, limit)
        return room, torch.from_numpy(x).view_as(ball.centre[0])


def _normed(matrix: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide inequalities by the norms of their rows; leave out what no input changes, up to rounding."""
    sizes = np.linalg.norm(matrix, axis=1)
    held = sizes > ROUNDED * np.abs(limits)
    return matrix[held] / sizes[held, None], limits[held] / sizes[held]


def _affine(activation: object, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and offset of an activation on intervals on which it is affine."""
    assert isinstance(activation, Activation)
    below, above = upper - 1.0 - upper.abs(), lower + 1.0 + lower.abs()  # beyond what an end rounds
    inner = torch.where(torch.isinf(lower), below, torch.where(torch.isinf(upper), above, (lower + upper) / 2))
    inner = torch.where(torch.isinf(lower) & torch.isinf(upper), 0.0, inner)
    slope = activation.slope(inner)
    return slope, activation.apply(inner) - slope * inner
