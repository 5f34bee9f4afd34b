# SPDX-License-Identifier: MIT
"""Certified radii of samples, and the accuracy that they guarantee."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_wdro._bounds.certified import PairConstants, certain_radii
from art_wdro._bounds.intervals import Interval
from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.predictions import predicted_labels
from art_wdro._host.smoothing import is_smoothed
from art_wdro._ranks import all_rows, count, together
from art_wdro._storage.arrays import parts
from art_wdro._threat.knapsack import knapsack
from art_wdro.certificates._problem import Problem, balls_around, certified_problem, radii_of, radius_of
from art_wdro.certificates._smoothing import check_norm, estimated, smoothed_accuracy, voting_of

AT_ONCE = 16
"""Samples bounded at once, unless others are asked for."""


def certified_radii(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    norm: float | str = np.inf,
    *,
    largest: Any | None = None,
    batch_size: int | None = None,
    seconds: float | None = None,
    n: int | None = None,
    noise: str | None = None,
    seed: int = 0,
    precision: str = "float32",
) -> np.ndarray:
    """Find for every sample a radius within which no input of the box is classified otherwise.

    That holds in exact arithmetic; in float32 a point within rounding of the border can still come out on either side.
    The radius is the larger of two: the margin over its Lipschitz constant in the box, and the largest radius, to 1 %,
    for which linear bounds carried backwards through the network keep the margin positive.

    Of a `PyTorchRandomizedSmoothing` of ART, with a network of any kind, each radius holds with probability 1 - alpha
    on its own, over the noise: `sample_size` draws select a class, and `n` others bound its probability. What then
    holds of all samples together is :func:`certified_accuracy`.

    :param classifier: As for :func:`lipschitz_certificate`, or a `PyTorchRandomizedSmoothing`.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param norm: Ground norm: 1, 2, np.inf or "inf". Smoothing knows l_2; in l_inf that is divided by the root of the
        number of inputs, which leaves little of it.
    :param largest: Radius beyond which is not searched, in input units, one number or (N,); the distances that an
        attack found save time. None takes the size of the box.
    :param batch_size: Samples bounded at once, or noisy copies in one pass, a matter of memory; None takes 16, or 64
        copies on a CPU and 1024 elsewhere.
    :param seconds: Time for each sample, after which the best radius so far is taken, with a `UserWarning`; None sets
        no limit. The network's constants, once for each label, and the bounds at the sample are outside of it.
    :param n: Draws that bound a probability, as in `certify` of ART, of a smoothed classifier alone; None takes 10,000.
    :param noise: "gaussian" or "uniform", of a smoothed classifier alone, with the standard deviation `scale`; None
        takes Gaussian noise, as ART does. Uniform noise is for norm=1.
    :param seed: Of the noise.
    :param precision: Number format of the votes' passes, "float32", "bfloat16" or "float16": the classifier that is
        certified is the network in that format.
    :return: Radii, (N,), in input units: 0 where the sample is misclassified already, or nothing is certain; inf where
        all of the box is.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit, the network holds a layer without bounds, or the noise of a
        smoothed classifier is not ART's.

    Source: CROWN, Zhang et al., 2018, arXiv:1811.00866; for graphs with sums, Xu et al., 2020, arXiv:2002.12920; for
    votes, Cohen et al., 2019, arXiv:1902.02918, and for uniform noise Yang et al., 2020, arXiv:2002.08118.
    """
    r = arguments.ground_norm(norm)
    if is_smoothed(classifier):
        voting = voting_of(
            certified_radii, classifier, n=n, noise=noise, seed=seed, batch_size=batch_size, precision=precision
        )
        check_norm(voting, r)
        estimates = estimated(classifier, x, y, voting)
        found = estimates.radii(voting.smoothing.alpha, r)
        return found if largest is None else np.minimum(found, radii_of("largest", largest, len(found)).numpy())
    host.require_pytorch(certified_radii, classifier)
    refuse_draws(n=n, noise=noise)
    limit = np.inf if seconds is None else arguments.real("seconds", seconds, 0.0, infinite=True)
    return _bounded_radii(classifier, certified_problem(classifier, x, y), r, largest, batch_size, limit)


def refuse_draws(**asked: object) -> None:
    """Refuse arguments that are about noise, by name, for a classifier without it."""
    for name, value in asked.items():
        if value is not None:
            raise ValueError(f"{name} is {value!r} for a classifier that does not vote under noise; allowed is None")


def _bounded_radii(
    classifier: PyTorchClassifier,
    problem: Problem,
    r: float,
    largest: Any | None,
    batch_size: int | None,
    seconds: float,
) -> np.ndarray:
    """Return the radii that bounds on the network give, (N,)."""
    batch_size = AT_ONCE if batch_size is None else arguments.integer("batch_size", batch_size, 1)
    inputs, labels, nodes, box = problem
    size = radius_of(box.upper - box.lower, r)
    with together():
        most = radii_of("largest", np.inf if largest is None else largest, len(inputs)).clamp(max=size)
    constants = PairConstants(nodes, Interval(box.lower[None], box.upper[None]), classifier.nb_classes, r)
    found, unfinished = torch.zeros(len(inputs), dtype=torch.float64), torch.zeros(len(inputs), dtype=torch.bool)
    for part in parts(len(inputs), batch_size):
        balls = balls_around(inputs[part], most[part], r, box)
        own = torch.stack([constants.of(label) for label in labels[part].tolist()])
        found[part], unfinished[part] = certain_radii(
            nodes, balls, labels[part], own, most[part], seconds * len(labels[part])
        )
    if unfinished.any():
        warnings.warn(
            f"seconds is {seconds:g}, which was not enough for {int(unfinished.sum())} of {len(inputs)} samples; their "
            "radii hold, and may be short",
            UserWarning,
            stacklevel=3,
        )
    found = torch.where(found >= size, math.inf, found)
    with host.undisturbed(classifier, batch_size):  # the classifier itself rounds otherwise
        predicted = predicted_labels(classifier, inputs.float(), 256).cpu()
    return torch.where(predicted == labels, found, 0.0).numpy()


def certified_accuracy(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    p: float = 2,
    norm: float | str = np.inf,
    eps: Any = 8 / 255,
    *,
    confidence: float = 0.999,
    batch_size: int | None = None,
    seconds: float | None = None,
    n: int | None = None,
    noise: str | None = None,
    seed: int = 0,
    precision: str = "float32",
) -> Any:
    """Compute an accuracy below which no distribution in the W_p ball, inside the box, takes the classifier.

    It is the knapsack over certified radii: the attacker needs at least those distances.

    Of a `PyTorchRandomizedSmoothing` of ART radii hold one by one with probability 1 - alpha; the accuracy is what
    holds with `confidence` of all samples, for every budget at once: radii that all hold, and longer ones of which a
    few do not (docs/certificates.md has the proof). It is that of votes without end, which never abstain.

    :param classifier: As for :func:`lipschitz_certificate`, or a `PyTorchRandomizedSmoothing`.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param p: Order of the Wasserstein distance, in [1, inf].
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param eps: Budget in input units, or an array of budgets.
    :param confidence: Probability, over the noise, with which the accuracy of a smoothed classifier holds; bounds on
        a network always do.
    :param batch_size: As for :func:`certified_radii`, and so the parameters after it.
    :param seconds: Time for each sample.
    :param n: Draws that bound a probability.
    :param noise: "gaussian" or "uniform".
    :param seed: Of the noise.
    :param precision: Number format of the votes' passes.
    :return: Accuracy in [0, 1]: a float for one budget, an array shaped as `eps` for many.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit, the network holds a layer without bounds, or the noise of a
        smoothed classifier is not ART's.
    """
    p, r = arguments.order(p, one=True), arguments.ground_norm(norm)
    budgets = [arguments.real("eps", value, 0.0) for value in ([eps] if np.ndim(eps) == 0 else np.asarray(eps).flat)]
    confidence = arguments.probability("confidence", confidence)
    if is_smoothed(classifier):
        voting = voting_of(
            certified_accuracy, classifier, n=n, noise=noise, seed=seed, batch_size=batch_size, precision=precision
        )
        check_norm(voting, r)
        estimates = estimated(classifier, x, y, voting)
        _require_samples(count(len(estimates.hits)))
        found = smoothed_accuracy(estimates, confidence, budgets, p, r)
    else:
        host.require_pytorch(certified_accuracy, classifier)
        refuse_draws(n=n, noise=noise)
        limit = np.inf if seconds is None else arguments.real("seconds", seconds, 0.0, infinite=True)
        radii = _bounded_radii(classifier, certified_problem(classifier, x, y), r, None, batch_size, limit)
        whole = all_rows(torch.from_numpy(radii))[0].numpy()
        _require_samples(len(whole))
        found = [knapsack(whole, budget, p).accuracy for budget in budgets]
    return found[0] if np.ndim(eps) == 0 else np.array(found).reshape(np.shape(eps))


def _require_samples(samples: int) -> None:
    if samples == 0:
        raise ValueError("x has no samples on any rank; needed is at least one")
