# SPDX-License-Identifier: MIT
"""How long certified radii take, in multiplications, from the sizes of a network and of its data."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from art_wdro._bounds.certified import SLOPE_STEPS, TURNS
from art_wdro._bounds.layers import Activation, Affine, Node
from art_wdro._bounds.operator_norms import DENSE
from art_wdro._bounds.slopes import FEW

A_NUMBER = 128
"""Multiplications in a matrix product that take as long as what is done with one number at one node."""
A_STEP = 2**17
"""The same for one step of a batch of 16 through one node, a sample."""
JACOBIAN = 3
"""The same for an interval of slopes carried back through a layer, in units of a line carried back."""
A_SLOPE = 1.5
"""The same for a step towards better slopes, which takes three, at every other bound."""
SPECTRAL = 2
"""The same for the spectral norm of a matrix, in units of its long side times its short side squared."""


def multiplications(nodes: Sequence[Node], shapes: Sequence[torch.Size], samples: int, classes: int) -> float:
    """Estimate what the certified radii of some samples take at most: where no unit's slope is known beforehand.

    Each bound of a sample carries two lines a unit back to the input from every activation, and K - 1 lines from the
    logits, a few of them again for better slopes; each label that occurs takes K - 1 Jacobians; each matrix takes a
    spectral norm once.

    :param nodes: The network.
    :param shapes: Shape of one output of every node.
    :param samples: N.
    :param classes: K.
    :return: Multiplications, of which a core does some 1.6e10 a second.
    """
    row, lines, norms = 0.0, 0.0, 0.0
    steps = 2 * len(nodes)
    for index, (node, shape) in enumerate(zip(nodes, shapes, strict=True)):
        operation = node.operation
        if isinstance(operation, Activation):
            lines += 2 * shape.numel() * row
            steps += 2 * index + len(nodes)
        elif isinstance(operation, Affine):
            row += operation.products
            short, long = sorted((shapes[node.inputs[0]].numel(), shape.numel()))
            norms += SPECTRAL * short**2 * long if operation.pull is not None and short * long <= DENSE else 0.0
        row += A_NUMBER * shape.numel()
    margins = (classes - 1) * row
    slopes = A_SLOPE * SLOPE_STEPS * min(classes - 1, FEW) * row
    return (
        samples * (TURNS + 2) * (lines + margins + slopes + A_STEP * steps)
        + min(samples, classes) * JACOBIAN * margins
        + norms
    )
