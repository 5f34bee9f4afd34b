# SPDX-License-Identifier: MIT
"""Lipschitz constants of the margins, bounded from both sides."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_wdro._bounds.branch_and_bound import Bounds, largest_jacobian
from art_wdro._bounds.layers import run
from art_wdro._bounds.operator_norms import operator_norms
from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.inputs import as_inputs
from art_wdro.certificates._problem import balls_around, finite_box, radii_of, radius_of, traced_graph


class LipschitzCertificate(NamedTuple):
    """Bounds on the largest dual norm of the gradient of a difference of two logits.

    :param lower: Met at an input that the search has seen, so that no Lipschitz constant is smaller.
    :param upper: Met at none: |(z_j - z_k)(x) - (z_j - z_k)(x')| <= upper ||x - x'||_r for all j and k. The margin and
        the cross-entropy have this Lipschitz constant too.
    :param exact: Whether the two are one up to rounding.
    """

    lower: Any
    upper: Any
    exact: Any


def lipschitz_certificate(
    classifier: PyTorchClassifier,
    x: Any | None = None,
    radius: Any | None = None,
    norm: float | str = np.inf,
    *,
    seconds: float = 10.0,
    branches: int | None = None,
) -> LipschitzCertificate:
    """Bound the Lipschitz constant of the margins from both sides, over the whole box or over balls around samples.

    Branch and bound over the cells on which the network is affine narrows the bounds until they meet, or the time is
    over; they hold at any time. For smooth activations the box of inputs is halved instead, which helps in few
    dimensions alone. The bounds hold for the network in exact arithmetic on its weights: they are computed in float64
    and widened by a relative 1e-11 after every operation, for what that rounds away.

    :param classifier: A `PyTorchClassifier` with finite clip_values, whose network consists of linear layers,
        convolutions, batch norms, pools, padding, reshapes, indexing, sums, cat, maxima, clamp, abs, ReLU, LeakyReLU,
        ReLU6, ELU, Hardtanh, Softplus, GELU, SiLU, Tanh or Sigmoid, with preprocessing=(mean, std) or none.
    :param x: Centres of balls, (N, ...); None takes the whole box.
    :param radius: Radius of the balls in input units, one number or (N,); a ball ends at the box.
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param seconds: Time for the search; with `x`, for each sample.
    :param branches: Parts into which a search may cut the inputs, for the same result on every machine; None sets no
        limit.
    :return: The bounds: two floats and a bool for the box, arrays (N,) for samples.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit, or the network holds anything else.

    Source: Tight robustness certificates and Wasserstein distributional attacks for deep neural networks, 2025,
    arXiv:2510.10000, for the certificate; the search is ours.
    """
    host.require_pytorch(lipschitz_certificate, classifier)
    r = arguments.ground_norm(norm)
    seconds = arguments.real("seconds", seconds, 0.0, infinite=True)
    branches = None if branches is None else arguments.integer("branches", branches, 1)
    if (x is None) != (radius is None):
        raise ValueError(
            f"x is {'None' if x is None else 'given'} and radius is {radius!r}; allowed are both, or none for the box"
        )
    box = finite_box(classifier)
    classes = classifier.nb_classes
    if x is None:
        nodes = traced_graph(classifier, box)
        half = (box.upper - box.lower) / 2
        ball = balls_around((box.lower + half)[None], radius_of(half, r)[None], r, box)
        return LipschitzCertificate(*largest_jacobian(nodes, ball, classes, seconds=seconds, branches=branches))
    inputs = as_inputs(classifier, x).double().cpu()
    radii = radii_of("radius", radius, len(inputs)).clamp(max=radius_of(box.upper - box.lower, r))
    nodes = traced_graph(classifier, box, inputs)
    shapes = [values.shape[1:] for values in run(nodes, box.lower[None])]
    norms = operator_norms(nodes, shapes)
    found: list[Bounds] = []
    for centre, own in zip(inputs, radii, strict=True):
        ball = balls_around(centre[None], own[None], r, box)
        found.append(largest_jacobian(nodes, ball, classes, seconds=seconds, branches=branches, norms=norms))
    columns = zip((float, float, bool), range(3), strict=True)
    return LipschitzCertificate(*(np.array([bounds[at] for bounds in found], dtype) for dtype, at in columns))
