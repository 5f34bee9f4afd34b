# SPDX-License-Identifier: MIT
"""What no attack can pass: Lipschitz constants, bounds on the worst expected loss, certified radii and accuracy."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn.functional import cross_entropy

from art_wdro import _bridge, _checks
from art_wdro._branch_and_bound import Bounds, largest_jacobian
from art_wdro._cells import run
from art_wdro._certified import certain_radii, class_pairs, pair_constants, worst_losses, worst_mean
from art_wdro._coupling import all_rows, together
from art_wdro._datasets import as_arrays
from art_wdro._intervals import Ball, Interval
from art_wdro._knapsack import knapsack_accuracy
from art_wdro._layers import Activation, Node
from art_wdro._rows import parts
from art_wdro._tracing import graph_of

AFFORDABLE = 2**26
"""Samples times units squared up to which a report computes certified radii unasked."""
INNERMOST = 0.25
"""The least radius at which losses are bounded, in units of eps; each of the others is twice as large."""


class LipschitzCertificate(NamedTuple):
    """Bounds on the largest dual norm of the gradient of a difference of two logits.

    :param lower: Met at some input, so that no Lipschitz constant is smaller.
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
        convolutions, batch norms, average pools, reshapes, sums, abs, ReLU, LeakyReLU, ReLU6, Hardtanh, Softplus, GELU,
        SiLU, Tanh or Sigmoid, with preprocessing=(mean, std) or none.
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
    _bridge.require_pytorch(lipschitz_certificate, classifier)
    r = _checks.ground_norm(norm)
    seconds = _checks.real("seconds", seconds, 0.0, infinite=True)
    branches = None if branches is None else _checks.integer("branches", branches, 1)
    if (x is None) != (radius is None):
        raise ValueError(
            f"x is {'None' if x is None else 'given'} and radius is {radius!r}; allowed are both, or none for the box"
        )
    box = _box(classifier)
    rows = class_pairs(classifier.nb_classes)[0]
    if x is None:
        nodes = _graph(classifier, None)
        half = (box.upper - box.lower) / 2
        ball = _balls(((box.lower + box.upper) / 2)[None], _size(half, r)[None], r, box)
        return LipschitzCertificate(*largest_jacobian(nodes, ball, rows, seconds=seconds, branches=branches))
    inputs = _bridge.as_inputs(classifier, x).double().cpu()
    radii = _radii("radius", radius, len(inputs))
    nodes = _graph(classifier, inputs)
    found: list[Bounds] = []
    for centre, own in zip(inputs, radii, strict=True):
        ball = _balls(centre[None], own[None], r, box)
        found.append(largest_jacobian(nodes, ball, rows, seconds=seconds, branches=branches))
    return LipschitzCertificate(*(np.array([bounds[column] for bounds in found]) for column in range(3)))


class LossCertificate(NamedTuple):
    """Bounds on the worst expected loss over the W_p ball.

    :param clean: The expected loss on the data.
    :param bound: The least of the bounds below: no distribution in the ball, inside the box, exceeds it.
    :param by_lipschitz: clean + eps L, with L the upper end of the Lipschitz certificate.
    :param by_radii: The dual of the problem over bounds on every sample's loss within growing radii.
    """

    clean: float
    bound: float
    by_lipschitz: float
    by_radii: float


def loss_certificate(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    p: float = 2,
    norm: float | str = np.inf,
    eps: float = 8 / 255,
    loss: str = "ce",
    *,
    certificate: LipschitzCertificate | None = None,
    seconds: float = 10.0,
    batch_size: int = 64,
) -> LossCertificate:
    """Bound the expected loss under every distribution in the W_p ball that stays in the box.

    :param classifier: As for :func:`lipschitz_certificate`.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param p: Order of the Wasserstein distance, in [1, inf].
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param eps: Budget in input units.
    :param loss: "ce", the cross-entropy, or "margin", max_j z_j - z_y over the other classes j.
    :param certificate: What :func:`lipschitz_certificate` returned for the whole box and this norm; None computes it.
    :param seconds: Time for that.
    :param batch_size: Samples bounded at once, a matter of memory.
    :return: The bounds.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit, or the network holds a layer without bounds.

    Source: Tight robustness certificates and Wasserstein distributional attacks for deep neural networks, 2025,
    arXiv:2510.10000, for clean + eps L; Blanchet, Murthy, 2019, arXiv:1604.01446, for the duality.
    """
    _bridge.require_pytorch(loss_certificate, classifier)
    p, r = _checks.order(p, one=True), _checks.ground_norm(norm)
    eps, loss = _checks.real("eps", eps, 0.0), _checks.choice("loss", loss, ("ce", "margin"))
    batch_size = _checks.integer("batch_size", batch_size, 1)
    inputs, labels, nodes, box = _problem(classifier, x, y)
    if certificate is None:
        certificate = lipschitz_certificate(classifier, norm=r, seconds=seconds)
    with torch.no_grad():
        logits = torch.cat([run(nodes, inputs[part])[-1] for part in parts(len(inputs), batch_size)])
    own = logits.gather(1, labels[:, None])
    margins = (logits - own).scatter(1, labels[:, None], -math.inf).amax(1)
    losses = margins if loss == "margin" else cross_entropy(logits, labels, reduction="none")
    size = _size(box.upper - box.lower, r)
    radii = _rings(eps, size.item())
    bounds = torch.zeros(len(inputs), len(radii), dtype=torch.float64)
    for part in parts(len(inputs), batch_size):
        for column, radius in enumerate(radii):
            balls = _balls(inputs[part], radius.expand(len(inputs[part])), r, box)
            bounds[part, column] = worst_losses(nodes, balls, labels[part], classifier.nb_classes, loss)
    losses, bounds = all_rows(losses)[0], torch.stack([all_rows(column)[0] for column in bounds.unbind(1)], 1)
    clean = losses.mean().item()
    by_lipschitz = clean + eps * certificate.upper
    by_radii = clean if eps == 0 else worst_mean(bounds, radii, losses, certificate.upper, eps, p)
    return LossCertificate(clean, min(by_lipschitz, by_radii), by_lipschitz, by_radii)


def certified_radii(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    norm: float | str = np.inf,
    *,
    largest: Any | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Find for every sample a radius within which no input of the box is classified otherwise.

    The larger of two: the margin over its Lipschitz constant in the box, and the largest radius, to 1 %, for which
    linear bounds carried backwards through the network keep the margin positive.

    :param classifier: As for :func:`lipschitz_certificate`.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param largest: Radius beyond which is not searched, in input units, one number or (N,); the distances that an
        attack found save time. None takes the size of the box.
    :param batch_size: Samples bounded at once, a matter of memory.
    :return: Radii, (N,), in input units: 0 where the sample is misclassified already, or nothing is certain.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit, or the network holds a layer without bounds.

    Source: CROWN, Zhang et al., 2018, arXiv:1811.00866; for graphs with sums, Xu et al., 2020, arXiv:2002.12920.
    """
    _bridge.require_pytorch(certified_radii, classifier)
    r = _checks.ground_norm(norm)
    batch_size = _checks.integer("batch_size", batch_size, 1)
    inputs, labels, nodes, box = _problem(classifier, x, y)
    size = _size(box.upper - box.lower, r)
    most = size.expand(len(inputs)) if largest is None else _radii("largest", largest, len(inputs)).clamp(max=size)
    constants = pair_constants(nodes, Interval(box.lower[None], box.upper[None]), classifier.nb_classes, r)
    found = torch.zeros(len(inputs), dtype=torch.float64)
    for part in parts(len(inputs), batch_size):
        balls = _balls(inputs[part], most[part], r, box)
        found[part] = certain_radii(nodes, balls, labels[part], constants, most[part])
    with _bridge.undisturbed(classifier, batch_size):  # the classifier itself rounds otherwise
        predicted = _bridge.predicted_labels(classifier, inputs.float(), 256).cpu()
    return torch.where(predicted == labels, found, 0.0).numpy()


def certified_accuracy(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    p: float = 2,
    norm: float | str = np.inf,
    eps: float = 8 / 255,
    *,
    batch_size: int = 16,
) -> float:
    """Compute an accuracy below which no distribution in the W_p ball, inside the box, takes the classifier.

    It is the knapsack over certified radii: the attacker needs at least those distances.
    :func:`certified_radii` and :func:`knapsack_accuracy` answer several budgets from one search.

    :param classifier: As for :func:`lipschitz_certificate`.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param p: Order of the Wasserstein distance, in [1, inf].
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param eps: Budget in input units.
    :param batch_size: Samples bounded at once, a matter of memory.
    :return: Accuracy in [0, 1].
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit, or the network holds a layer without bounds.
    """
    p, eps = _checks.order(p, one=True), _checks.real("eps", eps, 0.0)
    radii = certified_radii(classifier, x, y, norm, batch_size=batch_size)
    accuracy: float = knapsack_accuracy(all_rows(torch.from_numpy(radii))[0].numpy(), eps, p)
    return accuracy


def affordable(classifier: PyTorchClassifier, samples: int) -> str | None:
    """Tell why certified radii are not to be computed unasked; None if they are.

    :param classifier: The classifier.
    :param samples: How many samples there are.
    """
    try:
        nodes, box = _graph(classifier, None), _box(classifier)
    except ValueError as error:
        return str(error)
    values = run(nodes, box.lower[None])
    units = sum(v[0].numel() for v, node in zip(values, nodes, strict=True) if isinstance(node.operation, Activation))
    if samples * units**2 > AFFORDABLE:
        return f"{units} units and {samples} samples take long; certified=True computes them"
    return None


def _problem(classifier: PyTorchClassifier, x: Any, y: Any | None) -> tuple[Tensor, Tensor, list[Node], Interval]:
    """Check data and return them on the host in float64, with the network's nodes and the bounds of one input."""
    with together():
        x, y = as_arrays(x, y)
        inputs = _bridge.as_inputs(classifier, x)
        labels = _bridge.as_labels(classifier, y, len(inputs))
        inputs = inputs.double().cpu()
        return inputs, labels.cpu(), _graph(classifier, inputs), _box(classifier)


def _graph(classifier: PyTorchClassifier, x: Tensor | None) -> list[Node]:
    """Trace the classifier's network with its preprocessing, and see on a few inputs that it is the same function.

    :raises ValueError: If it cannot be traced, or is not.
    """
    nodes = graph_of(_bridge.network(classifier), tuple(classifier.input_shape), _bridge.standardisation(classifier))
    box = _box(classifier)
    centre = ((box.lower + box.upper) / 2)[None]
    x = centre if x is None else torch.cat([centre, x[:7]])
    with _bridge.undisturbed(classifier, len(x)), torch.no_grad():
        given = _bridge.logits_of(classifier)(x.float().to(classifier.device)).double().cpu()
        # one by one, lest a step that mixes samples pass for a layer
        traced = torch.cat([run(nodes, sample[None])[-1] for sample in x])
    if traced.shape != given.shape or not torch.allclose(
        traced, given, rtol=1e-3, atol=1e-4 * given.abs().max().item()
    ):
        raise ValueError("classifier computes something else than the layers that torch.fx finds in its network")
    return nodes


def _box(classifier: PyTorchClassifier) -> Interval:
    bounds = _bridge.box(classifier)
    if bounds is None or not all(torch.isfinite(bound).all() for bound in bounds):
        raise ValueError(f"classifier has clip_values={classifier.clip_values}; needed are finite ones, the box")
    return Interval(*(bound.double().cpu().expand(tuple(classifier.input_shape)) for bound in bounds))


def _balls(centres: Tensor, radii: Tensor, r: float, box: Interval) -> Ball:
    return Ball(centres, radii, r, Interval(*(bound.expand_as(centres) for bound in box)))


def _size(extent: Tensor, r: float) -> Tensor:
    """Return a radius that reaches all of a box of this extent."""
    size: Tensor = torch.linalg.vector_norm(extent.flatten(), r) * (1 + 1e-9)
    return size


def _rings(eps: float, size: float) -> Tensor:
    """Return the radii at which losses are bounded, eps and the size of the box among them."""
    count = max(0, math.ceil(math.log2(size / (INNERMOST * eps)))) if eps > 0 else 0
    return torch.tensor([*(INNERMOST * eps * 2.0**k for k in range(count)), size], dtype=torch.float64)


def _radii(name: str, values: Any, count: int) -> Tensor:
    """Read a radius, or one a sample."""
    if np.ndim(values) == 0:
        return torch.full((count,), _checks.real(name, values, 0.0), dtype=torch.float64)
    radii = _bridge.as_numbers(values, name).double().cpu()
    if radii.shape != (count,) or not (radii >= 0).all():
        raise ValueError(f"{name} is {values!r}; allowed is a number >= 0, or {count} of them")
    return radii
