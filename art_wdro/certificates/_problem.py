# SPDX-License-Identifier: MIT
"""What bounds are computed of: the graph of a classifier's network, its box and samples, in float64 on the host."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._bounds.cost import multiplications
from art_wdro._bounds.intervals import Ball, Interval
from art_wdro._bounds.layers import Node, run
from art_wdro._bounds.tracing import graph_of
from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.inputs import as_numbers, labelled_data
from art_wdro._host.preprocessing import standardisation
from art_wdro._ranks import together

AFFORDABLE = 2**40
"""Multiplications up to which a report computes certified radii unasked: about a minute on one core."""
FEW_WEIGHTS = 2**20
"""Weights of a network up to which it traces it to estimate them."""
PROBES = 16
"""Inputs on which the traced network is compared with the classifier, at random and of the data."""
SAME = 1e-3
"""Difference of logits, relative to each and to the largest, up to which the two are the same function in float32."""
BEYOND = 1e-9
"""How far beyond a box's corners, relatively, a ball around all of it reaches, for what float64 rounds away."""


class Problem(NamedTuple):
    """What is certified.

    :param inputs: Samples, (N, ...), float64.
    :param labels: Class indices, (N,).
    :param nodes: The network.
    :param box: The bounds of one input.
    """

    inputs: Tensor
    labels: Tensor
    nodes: list[Node]
    box: Interval


def certified_problem(classifier: PyTorchClassifier, x: Any, y: Any | None) -> Problem:
    """Check data and return them on the host in float64, with the network's nodes and the bounds of one input."""
    inputs, labels = labelled_data(classifier, x, y)
    inputs = inputs.double().cpu()
    with together():
        box = finite_box(classifier)
        return Problem(inputs, labels.cpu(), traced_graph(classifier, box, inputs), box)


def traced_graph(classifier: PyTorchClassifier, box: Interval, x: Tensor | None = None) -> list[Node]:
    """Trace the classifier's network with its preprocessing, and see on some inputs that it is the same function.

    :raises ValueError: If it cannot be traced, or is not.
    """
    nodes = _graph(classifier)
    _require_the_same(classifier, nodes, box, x)
    return nodes


def _graph(classifier: PyTorchClassifier) -> list[Node]:
    """Trace the classifier's network with its preprocessing."""
    return graph_of(host.network(classifier), tuple(classifier.input_shape), standardisation(classifier))


def _require_the_same(classifier: PyTorchClassifier, nodes: list[Node], box: Interval, x: Tensor | None = None) -> None:
    """Refuse a classifier that computes something else than the nodes, on some inputs."""
    drawn = torch.rand(PROBES, *box.lower.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = [box.lower[None], box.upper[None], box.lower + (box.upper - box.lower) * drawn]
    probes = torch.cat([*points, *([] if x is None else [x[:PROBES]])]).float()
    try:
        with host.undisturbed(classifier, len(probes)), torch.no_grad():
            given = host.logits_of(classifier)(probes.to(classifier.device)).double().cpu()
            # one by one, lest a step that mixes samples pass for a layer
            traced = torch.cat([run(nodes, probe[None].double())[-1] for probe in probes])
    except RuntimeError as error:
        raise ValueError(f"classifier's network cannot be followed: {error}") from error
    if not torch.isfinite(given).all():
        raise ValueError("classifier puts out NaN or inf for inputs in its clip_values; needed are finite logits")
    tolerance = SAME * given.abs().max().item()
    if traced.shape != given.shape or not torch.allclose(traced, given, rtol=SAME, atol=tolerance):
        raise ValueError("classifier computes something else than the layers that torch.fx finds in its network")


def finite_box(classifier: PyTorchClassifier) -> Interval:
    """Return the bounds of one input.

    :raises ValueError: If there are none, or `input_shape` leaves a dimension open.
    """
    bounds, shape = host.box(classifier), tuple(host.example(classifier).shape[1:])
    if bounds is None or not all(torch.isfinite(bound).all() for bound in bounds):
        raise ValueError(f"classifier has clip_values={classifier.clip_values}; needed are finite ones, the box")
    return Interval(*(bound.double().cpu().expand(shape) for bound in bounds))


def balls_around(centres: Tensor, radii: Tensor, r: float, box: Interval) -> Ball:
    """Return the l_r balls around samples, (N, ...), each ended by the box."""
    return Ball(centres, radii, r, Interval(*(bound.expand_as(centres) for bound in box)))


def radius_of(extent: Tensor, r: float) -> Tensor:
    """Return a radius that reaches all of a box of this extent."""
    size: Tensor = torch.linalg.vector_norm(extent.flatten(), r) * (1 + BEYOND)
    return size


def radii_of(name: str, values: Any, count: int) -> Tensor:
    """Read a number >= 0, or one a sample; inf is one."""
    if np.ndim(values) == 0:
        return torch.full((count,), arguments.real(name, values, 0.0, infinite=True), dtype=torch.float64)
    radii = as_numbers(values, name).double().cpu()
    if radii.shape != (count,) or not (radii >= 0).all():
        raise ValueError(f"{name} is {values!r}; allowed is a number >= 0, or {count} of them")
    return radii


def why_uncertified(classifier: PyTorchClassifier, samples: int, wanted: bool | None) -> str | None:
    """Tell why no certified radii are to be computed; None if they are.

    :param classifier: The classifier.
    :param samples: How many samples there are.
    :param wanted: Whether the user wants them; None wants them where that takes little.
    :raises ValueError: If they are wanted and the network has no bounds.
    """
    if wanted is False:
        return "it was not wanted"
    weights = sum(weight.numel() for weight in host.network(classifier).parameters())
    if wanted is None and weights > FEW_WEIGHTS:
        return f"a network of {weights} weights takes long; certified=True computes it"
    try:
        box = finite_box(classifier)
        nodes = _graph(classifier)
        if wanted is None and _takes_long(nodes, box, samples, classifier.nb_classes):
            sizes = f"{samples} samples, {classifier.nb_classes} classes and a network of {weights} weights"
            return f"{sizes} take long; certified=True computes it"
        _require_the_same(classifier, nodes, box)
    except ValueError as error:
        if wanted:
            raise
        return str(error)
    return None


def _takes_long(nodes: list[Node], box: Interval, samples: int, classes: int) -> bool:
    """Tell whether certified radii are too long a work to be done unasked."""
    with torch.no_grad():
        shapes = [values.shape[1:] for values in run(nodes, box.lower[None])]
    return multiplications(nodes, shapes, samples, classes) > AFFORDABLE
