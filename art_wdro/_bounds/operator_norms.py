# SPDX-License-Identifier: MIT
"""Lipschitz constants by products of operator norms, alone and together with interval bounds of the Jacobian.

A product of norms is loose where many layers follow one another, an interval bound where many units are undecided. At
every node through which all paths lead, the Jacobian is a later factor times an earlier one: the first is bounded by
intervals, the second by norms, and the least of these products counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from art_wdro._bounds.intervals import WIDENING
from art_wdro._bounds.jacobians import Jacobian, Region
from art_wdro._bounds.layers import Affine, Node
from art_wdro._storage.arrays import parts
from art_wdro._threat.norms import dual_exponent, sample_norms

DENSE = 2**25
"""Entries of the largest matrix whose spectral norm is computed; beyond, a bound by row and column sums serves."""
GRAM_ROUNDING = 1e-12
"""Error of the largest eigenvalue of a Gram matrix, relative to its largest row sum, for each of its rows."""
ENTRIES = 2**20
"""Numbers in one array from which a part of such a matrix is made, at most."""
OPERATOR_NORMS = (1.0, 2.0, math.inf)
"""Exponents for which operator norms are bounded; other ground norms are compared with these."""
OperatorNorms = dict[int, dict[float, float]]
"""Operator norms of affine maps by node and exponent."""


def operator_norms(nodes: Sequence[Node], shapes: Sequence[torch.Size]) -> OperatorNorms:
    """Bound the l_1, l_2 and l_inf operator norms of all affine maps.

    :param nodes: The network.
    :param shapes: Shape of one output of every node.
    :return: The norms by exponent, by the node of the map.
    """
    return {
        index: _norms_of(node.operation, shapes[node.inputs[0]])
        for index, node in enumerate(nodes)
        if isinstance(node.operation, Affine)
    }


def lipschitz_constants(nodes: Sequence[Node], region: Region, r: float, norms: OperatorNorms) -> list[float]:
    """Bound how fast every node changes with the network's input, both in l_r.

    :param nodes: The network.
    :param region: One box of inputs, of which activations' slopes are taken.
    :param r: Exponent of the norm, 1, 2 or inf.
    :param norms: What :func:`operator_norms` returned.
    :return: Products and sums of operator norms, one a node.
    """
    constants: list[float] = []
    for index, node in enumerate(nodes):
        if not node.inputs:
            constants.append(1.0)
        elif isinstance(node.operation, Affine):
            constants.append(constants[node.inputs[0]] * norms[index][r])
        elif node.operation is not None:
            constants.append(constants[node.inputs[0]] * region.slopes[index].largest().max().item())
        else:
            constants.append(sum(constants[source] for source in node.inputs))
    return [constant * (1 + WIDENING) ** len(nodes) for constant in constants]


def _norms_of(operation: Affine, shape: torch.Size) -> dict[float, float]:
    """Bound the operator norms of W: exactly for 1 and inf, and for 2 if W is a matrix and not too large."""
    ones = torch.ones(1, *shape, dtype=torch.float64)
    out = operation.absolute(ones)
    rows = out.max().item()
    columns = operation.absolute_transposed(torch.ones_like(out), shape).max().item()
    spectral = math.sqrt(rows * columns)
    if operation.pull is not None and ones.numel() * out.numel() <= DENSE:
        spectral = _spectral_norm(_matrix(operation, shape, out.shape[1:]))
    return {1.0: columns, 2.0: spectral, math.inf: rows}


def _matrix(operation: Affine, shape: torch.Size, out: torch.Size) -> Tensor:
    """Return W, (outputs, inputs), from the transposed map: forwards a large bias would take the weights' digits."""
    rows = []
    for part in parts(out.numel(), max(1, ENTRIES // out.numel())):
        units = torch.zeros(part.stop - part.start, out.numel(), dtype=torch.float64)
        units[:, part] = torch.eye(len(units), dtype=torch.float64)
        rows.append(operation.transposed(units.view(-1, *out), shape).flatten(1))
    return torch.cat(rows)


def _spectral_norm(matrix: Tensor) -> float:
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    if not torch.isfinite(gram).all():
        return math.inf
    rounding = GRAM_ROUNDING * len(gram) * gram.abs().sum(1).max().item()
    return math.sqrt(torch.linalg.eigvalsh(gram)[-1].clamp(min=0.0).item() + rounding)


class JacobianNorms:
    """Upper bounds on the dual norm of Jacobians over parts of a box.

    :param nodes: The network.
    :param region: What is known over the whole box, one row.
    :param r: Exponent of the ground norm.
    :param norms: What :func:`operator_norms` returned; None computes it.
    """

    def __init__(self, nodes: Sequence[Node], region: Region, r: float, norms: OperatorNorms | None = None) -> None:
        inputs = region.values[0].lower[0].numel()
        norms = operator_norms(nodes, [values.lower.shape[1:] for values in region.values]) if norms is None else norms
        self.r = r
        self.constants = {t: lipschitz_constants(nodes, region, t, norms) for t in OPERATOR_NORMS}
        # ||x||_t <= factor ||x||_r
        self.factors = {t: inputs ** max(0.0, 1 / t - 1 / r) for t in OPERATOR_NORMS}

    def product(self, rows: Tensor) -> Tensor:
        """Return the bound for combinations of the logits, (M, K), by the product of operator norms alone, (M,)."""
        exponents = (self.r,) if self.r in OPERATOR_NORMS else OPERATOR_NORMS
        found = [sample_norms(rows, dual_exponent(t)) * self.constants[t][-1] * self.factors[t] for t in exponents]
        return torch.stack(found).nan_to_num(math.inf, math.inf).amin(0)

    def bound(self, jacobian: Jacobian) -> Tensor:
        """Return the least bound over all ways to cut the network in two, (B,)."""
        found = [
            sample_norms(weights, dual_exponent(t)) * self.constants[t][index] * self.factors[t]
            for index, weights in jacobian.cuts.items()
            for t in OPERATOR_NORMS
        ]
        return torch.stack(found).nan_to_num(math.inf, math.inf).amin(0) * (1 + WIDENING)
