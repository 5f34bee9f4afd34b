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

from art_wdro import _bridge, _checks, _inputs
from art_wdro._branch_and_bound import Bounds, largest_jacobian
from art_wdro._certified import certain_radii, class_pairs, pair_constants, worst_losses, worst_mean
from art_wdro._certified_problem import balls_around, certified_problem, finite_box, radii_of, radius_of, traced_graph
from art_wdro._coupling import all_rows
from art_wdro._intervals import Interval
from art_wdro._knapsack import fill
from art_wdro._layers import run
from art_wdro._norm_bounds import operator_norms
from art_wdro._rows import parts

RINGS = 16
"""Radii at which losses are bounded, at most."""
INNERMOST = 0.25
"""The least radius at which losses are bounded, in units of eps; each of the others is twice as large."""


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
    box = finite_box(classifier)
    rows = class_pairs(classifier.nb_classes)[0]
    if x is None:
        nodes = traced_graph(classifier, box)
        half = (box.upper - box.lower) / 2
        ball = balls_around((box.lower + half)[None], radius_of(half, r)[None], r, box)
        return LipschitzCertificate(*largest_jacobian(nodes, ball, rows, seconds=seconds, branches=branches))
    inputs = _inputs.as_inputs(classifier, x).double().cpu()
    radii = radii_of("radius", radius, len(inputs)).clamp(max=radius_of(box.upper - box.lower, r))
    nodes = traced_graph(classifier, box, inputs)
    shapes = [values.shape[1:] for values in run(nodes, box.lower[None])]
    norms = operator_norms(nodes, shapes)
    found: list[Bounds] = []
    for centre, own in zip(inputs, radii, strict=True):
        ball = balls_around(centre[None], own[None], r, box)
        found.append(largest_jacobian(nodes, ball, rows, seconds=seconds, branches=branches, norms=norms))
    return LipschitzCertificate(*(np.array([bounds[column] for bounds in found]) for column in range(3)))


class LossCertificate(NamedTuple):
    """Bounds on the worst expected loss over the W_p ball.

    :param clean: The expected loss on the data.
    :param bound: The least of the bounds below: no distribution in the ball, inside the box, exceeds it.
    :param by_lipschitz: clean + eps L.
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
    constant: float | None = None,
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
    :param constant: A Lipschitz constant of the margins in the box, such as
        `lipschitz_certificate(classifier, norm=norm).upper`; None computes it.
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
    seconds = _checks.real("seconds", seconds, 0.0, infinite=True)
    constant = None if constant is None else _checks.real("constant", constant, 0.0)
    inputs, labels, nodes, box = certified_problem(classifier, x, y)
    if constant is None:
        constant = lipschitz_certificate(classifier, norm=r, seconds=seconds).upper
    with torch.no_grad():
        logits = torch.cat([run(nodes, inputs[part])[-1] for part in parts(len(inputs), batch_size)])
    own = logits.gather(1, labels[:, None])
    margins = (logits - own).scatter(1, labels[:, None], -math.inf).amax(1)
    losses = margins if loss == "margin" else cross_entropy(logits, labels, reduction="none")
    size = radius_of(box.upper - box.lower, r)
    eps = min(eps, size.item())  # nothing can go farther
    radii = _rings(eps, size.item())
    bounds = torch.zeros(len(inputs), len(radii), dtype=torch.float64)
    for part in parts(len(inputs), batch_size):
        for column, radius in enumerate(radii):
            balls = balls_around(inputs[part], radius.expand(len(inputs[part])), r, box)
            bounds[part, column] = worst_losses(nodes, balls, labels[part], classifier.nb_classes, loss)
    losses, bounds = all_rows(losses)[0], torch.stack([all_rows(column)[0] for column in bounds.unbind(1)], 1)
    clean = losses.mean().item()
    by_lipschitz = clean + eps * constant
    by_radii = clean if eps == 0 else worst_mean(bounds, radii, losses, constant, eps, p)
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

    That holds in exact arithmetic; in float32 a point within rounding of the border can still come out on either side.
    The radius is the larger of two: the margin over its Lipschitz constant in the box, and the largest radius, to 1 %,
    for which linear bounds carried backwards through the network keep the margin positive.

    :param classifier: As for :func:`lipschitz_certificate`.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param largest: Radius beyond which is not searched, in input units, one number or (N,); the distances that an
        attack found save time. None takes the size of the box.
    :param batch_size: Samples bounded at once, a matter of memory.
    :return: Radii, (N,), in input units: 0 where the sample is misclassified already, or nothing is certain; inf where
        all of the box is.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit, or the network holds a layer without bounds.

    Source: CROWN, Zhang et al., 2018, arXiv:1811.00866; for graphs with sums, Xu et al., 2020, arXiv:2002.12920.
    """
    _bridge.require_pytorch(certified_radii, classifier)
    r = _checks.ground_norm(norm)
    batch_size = _checks.integer("batch_size", batch_size, 1)
    inputs, labels, nodes, box = certified_problem(classifier, x, y)
    size = radius_of(box.upper - box.lower, r)
    most = size.expand(len(inputs)) if largest is None else radii_of("largest", largest, len(inputs)).clamp(max=size)
    constants = pair_constants(nodes, Interval(box.lower[None], box.upper[None]), classifier.nb_classes, r)
    found = torch.zeros(len(inputs), dtype=torch.float64)
    for part in parts(len(inputs), batch_size):
        balls = balls_around(inputs[part], most[part], r, box)
        found[part] = certain_radii(nodes, balls, labels[part], constants, most[part])
    found = torch.where(found >= size, math.inf, found)
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
    _bridge.require_pytorch(certified_accuracy, classifier)
    p, eps = _checks.order(p, one=True), _checks.real("eps", eps, 0.0)
    radii = certified_radii(classifier, x, y, norm, batch_size=batch_size)
    return fill(all_rows(torch.from_numpy(radii))[0].numpy(), eps, p).accuracy


def _rings(eps: float, size: float) -> Tensor:
    """Return the radii at which losses are bounded, eps and the size of the box among them."""
    count = min(RINGS, max(0, math.ceil(math.log2(size / (INNERMOST * eps))))) if eps > 0 else 0
    return torch.tensor([*(INNERMOST * eps * 2.0**k for k in range(count)), size], dtype=torch.float64)
