# SPDX-License-Identifier: MIT
"""Bounds on the worst expected loss over the W_p ball."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn.functional import cross_entropy

from art_wdro._bounds.certified import worst_losses, worst_mean
from art_wdro._bounds.layers import Node, run
from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._ranks import all_rows, count, gathered, together
from art_wdro._storage.arrays import parts
from art_wdro.certificates._lipschitz import lipschitz_certificate
from art_wdro.certificates._problem import balls_around, certified_problem, radius_of

RINGS = 16
"""Radii at which losses are bounded, at most."""
INNERMOST = 0.25
"""The least radius at which losses are bounded, in units of eps; each of the others is twice as large."""


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
    host.require_pytorch(loss_certificate, classifier)
    p, r = arguments.order(p, one=True), arguments.ground_norm(norm)
    eps, loss = arguments.real("eps", eps, 0.0), arguments.choice("loss", loss, ("ce", "margin"))
    batch_size = arguments.integer("batch_size", batch_size, 1)
    seconds = arguments.real("seconds", seconds, 0.0, infinite=True)
    constant = None if constant is None else arguments.real("constant", constant, 0.0)
    inputs, labels, nodes, box = certified_problem(classifier, x, y)
    if count(len(inputs)) == 0:
        raise ValueError("x has no samples on any rank; needed is at least one")
    with together():
        if constant is None:
            constant = lipschitz_certificate(classifier, norm=r, seconds=seconds).upper
    # each rank's search stops elsewhere, and all bounds hold
    constant = gathered(torch.tensor([constant], dtype=torch.float64)).min().item()
    losses = torch.zeros(len(inputs), dtype=torch.float64)
    for part in parts(len(inputs), batch_size):
        losses[part] = _losses(nodes, inputs[part], labels[part], loss)
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
    by_lipschitz = clean if eps == 0 else clean + eps * constant
    by_radii = clean if eps == 0 else worst_mean(bounds, radii, losses, constant, eps, p)
    return LossCertificate(clean, min(by_lipschitz, by_radii), by_lipschitz, by_radii)


def _losses(nodes: Sequence[Node], inputs: Tensor, labels: Tensor, loss: str) -> Tensor:
    """Return the loss of every sample, (B,)."""
    with torch.no_grad():
        logits = run(nodes, inputs)[-1]
    if loss == "ce":
        return cross_entropy(logits, labels, reduction="none")
    own = logits.gather(1, labels[:, None])
    return (logits - own).scatter(1, labels[:, None], -math.inf).amax(1)


def _rings(eps: float, size: float) -> Tensor:
    """Return the radii at which losses are bounded, eps and the size of the box among them."""
    octaves = math.log2(size) - math.log2(eps) - math.log2(INNERMOST) if eps > 0 else 0.0
    rings = min(RINGS, max(0, math.ceil(octaves)))
    return torch.tensor([*(INNERMOST * eps * 2.0**k for k in range(rings)), size], dtype=torch.float64)
