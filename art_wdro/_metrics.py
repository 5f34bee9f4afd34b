# SPDX-License-Identifier: MIT
"""Figures of a classifier or an attack under (W_p, l_r): distance, sensitivity, adversarial accuracy."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro import _bridge, _checks, _inputs
from art_wdro._attack_base import WassersteinAttack
from art_wdro._attacks import WassersteinFGM, WassersteinPGD
from art_wdro._coupling import gathering, mean, shards, together
from art_wdro._datasets import as_arrays
from art_wdro._losses import PerSampleLoss, are_probabilities
from art_wdro._norms import power_mean, sample_norms
from art_wdro._rows import Rows, parts, staged
from art_wdro._sensitivity import Objective, Value, upsilon


def wasserstein_distance(x: Any, x_adv: Any, p: float = 2, norm: float | str = np.inf) -> float:
    """Compute D_p = (mean_i ||x_adv_i - x_i||_r^p)^(1/p), in float64.

    D_p keeps every sample paired with its own copy, so it is an upper bound on the W_p distance of the
    two data sets. (SciPy's function of the same name is the true distance of one-dimensional samples.)

    :param x: Inputs, (N, ...).
    :param x_adv: The same samples, moved; same shape.
    :param p: Order, in [1, inf].
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :return: D_p in input units.
    :raises ValueError: If the shapes differ or are empty, values are not finite, or p or norm is not allowed.

    >>> round(wasserstein_distance([[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.5], [0.0, 7.0]]), 6)
    5.0
    """
    p, r = _checks.order(p, one=True), _checks.ground_norm(norm)
    first, second = (_inputs.as_numbers(a, name).cpu() for a, name in ((x, "x"), (x_adv, "x_adv")))
    if first.shape != second.shape:
        raise ValueError(f"x_adv has the shape {tuple(second.shape)} and x {tuple(first.shape)}; needed are equal ones")
    if first.dim() < 2 or (first.numel() == 0 and shards() is None):
        raise ValueError(f"x has the shape {tuple(first.shape)}; needed is (N, ...) with at least one sample")
    return distance_of_mass(first, second, None, p, r)


def distance_of_mass(x: Tensor, x_adv: Tensor, mass: np.ndarray | None, p: float, r: float) -> float:
    """Return (mean_i mass_i ||x_adv_i - x_i||_r^p)^(1/p), where the rest of each sample's mass stays.

    :param x: Inputs, (N, ...).
    :param x_adv: The same samples, moved.
    :param mass: Which part of each moved, (N,); None means all of it.
    :param p: Order, in [1, inf].
    :param r: Exponent of the ground norm.
    :raises ValueError: If values are not finite.
    """
    before, after = (Rows(values, values.device) for values in (x, x_adv))
    lengths = torch.empty(len(x), dtype=torch.float64)
    for rows, *pair in staged(parts(len(before), before.at_once(len(before))), before, after):
        for name, values in zip(("x", "x_adv"), pair, strict=True):
            if not torch.isfinite(values).all():
                raise ValueError(f"{name} holds NaN or inf; allowed are finite numbers")
        lengths[rows] = sample_norms(pair[1].double() - pair[0].double(), r)
    if mass is not None:
        lengths *= torch.from_numpy(mass) ** (1 / p)
    return power_mean(lengths, p, gather=gathering()).item()


def sensitivity(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    p: float = 2,
    norm: float | str = np.inf,
    loss: str | PerSampleLoss = "redlr",
    batch_size: int = 128,
) -> float:
    """Compute Upsilon = (mean_i ||grad J(x_i)||_s^q)^(1/q), the slope of the worst expected loss at eps = 0.

    :param classifier: A `PyTorchClassifier` whose network puts out logits.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: Labels as indices or one-hot rows; None takes the classifier's predictions.
    :param p: Order of the Wasserstein distance, in [1, inf], with dual q.
    :param norm: Ground norm l_r: 1, 2, np.inf or "inf", with dual l_s.
    :param loss: As for :class:`WassersteinPGD`.
    :param batch_size: Samples in one forward and backward pass.
    :return: Upsilon, in loss per input unit.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If a value is not allowed.

    Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, Theorem 4.1.
    """
    _bridge.require_pytorch(sensitivity, classifier)
    p, r = _checks.order(p, one=True), _checks.ground_norm(norm)
    batch_size = _checks.integer("batch_size", batch_size, 1)
    objective = _bridge.objective_of(classifier, loss)
    with together():
        x, y = as_arrays(x, y)
        inputs = _inputs.as_inputs(classifier, x)
        labels = None if y is None else _inputs.as_labels(classifier, y, len(inputs))
    with _bridge.undisturbed(classifier, batch_size):
        if labels is None:
            labels = _bridge.predicted_labels(classifier, inputs, batch_size)
        batches = ((x, y) for _, x, y in _bridge.batches_of(classifier, batch_size, inputs, labels))
        return upsilon(objective, batches, p, r, gathering()).item()


class AccuracyBounds(NamedTuple):
    """First-order bounds on the adversarial accuracy A_eps: asymptotic in eps, estimates rather than certificates.

    :param lower: Lower bound on A_eps, in [0, 1]; NaN where the loss gives none.
    :param upper: Upper bound on A_eps: the accuracy that W-FGSM leaves.
    :param clean: A, the clean accuracy.
    :param ratio_lower: The bound on A_eps / A.
    :param ratio_upper: The bound on A_eps / A.
    """

    lower: float
    upper: float
    clean: float
    ratio_lower: float
    ratio_upper: float


def accuracy_bounds(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    p: float = 2,
    norm: float | str = np.inf,
    eps: float = 8 / 255,
    loss: str = "redlr",
    batch_size: int = 128,
) -> AccuracyBounds:
    """Compute the asymptotic first-order bounds on the adversarial accuracy under (W_p, l_r).

    With V(0) the mean clean loss, W(0) its mean over misclassified samples (0 for ReDLR) and V the mean loss after
    W-FGSM, R = A_eps / A lies between min{(W(0) - V(0) - eps Upsilon), (W(0) - V)} / (W(0) - V(0)) and the accuracy
    after W-FGSM over A, up to o(eps). They say nothing certain at a given eps; the knapsack and certificates do.

    :param classifier: A `PyTorchClassifier` whose network puts out logits.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param p: Order of the Wasserstein distance, in (1, inf].
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param eps: Budget in input units.
    :param loss: "redlr" or "ce". With "ce" and no misclassified sample there is no lower bound.
    :param batch_size: Samples in one forward and backward pass.
    :return: The bounds.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit.

    Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, section 5.
    """
    _bridge.require_pytorch(accuracy_bounds, classifier)
    loss = _checks.choice("loss", loss, ("redlr", "ce"))
    inputs, labels = _inputs.labelled_data(classifier, x, y)
    attack = WassersteinFGM(classifier, p, norm, eps, loss, batch_size=batch_size, verbose=False)
    adversarial = torch.from_numpy(attack.generate(inputs, labels))
    slope = sensitivity(classifier, inputs, labels, p, norm, loss, batch_size)
    objective = _bridge.objective_of(classifier, loss)
    with _bridge.undisturbed(classifier, batch_size):
        clean, attacked = (_values(objective, data, labels, batch_size, classifier) for data in (inputs, adversarial))
    accuracy, left = mean(clean.standing), mean(attacked.standing)
    before, after = mean(clean.losses), mean(attacked.losses)
    missed = 0.0 if loss == "redlr" else mean(clean.losses[~clean.standing])
    if accuracy == 0.0:
        return AccuracyBounds(0.0, left, 0.0, math.nan, math.nan)
    gap = missed - before
    ratio = math.nan
    if not math.isnan(gap):
        ratio = max(0.0, min(gap - attack.eps * slope, missed - after) / gap) if gap > 0 else 0.0
    return AccuracyBounds(ratio * accuracy, left, accuracy, ratio, left / accuracy)


def _values(objective: Objective, x: Tensor, labels: Tensor, batch_size: int, classifier: PyTorchClassifier) -> Value:
    losses = torch.zeros(len(x), dtype=torch.float64, device=classifier.device)
    standing = torch.zeros(len(x), dtype=torch.bool, device=classifier.device)
    for rows, points, own in _bridge.batches_of(classifier, batch_size, x, labels):
        losses[rows], standing[rows] = objective.value(points, own)
    return Value(losses, standing)


def _standing(classifier: PyTorchClassifier, x: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Tell which samples are classified correctly, on the host."""
    return _bridge.predicted_labels(classifier, x, batch_size).cpu() == labels.cpu()


def adversarial_accuracy(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    attack: EvasionAttack | None = None,
    *,
    p: float = 2,
    norm: float | str = np.inf,
    eps: float = 8 / 255,
    max_iter: int = 20,
    batch_size: int = 128,
    verbose: bool = False,
) -> float:
    """Measure the accuracy on what an attack makes of the whole data set.

    An attack that splits mass, as :class:`WassersteinDistributionalAttack` does, counts by the mass at each point. A
    `UserWarning` says so if the network puts out probabilities, with which attacks fail and accuracies are too high.

    :param classifier: The classifier to evaluate.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param attack: Any untargeted evasion attack of ART; None attacks with :class:`WassersteinPGD` and
        the parameters below, which are read only then.
    :param p: Order of the Wasserstein distance.
    :param norm: Ground norm.
    :param eps: Budget in input units; 0 gives the clean accuracy.
    :param max_iter: Steps of the attack.
    :param batch_size: Samples in one pass.
    :param verbose: Show the attack's progress bar.
    :return: Accuracy in [0, 1].
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit, or the attack is targeted.
    :raises TypeError: If `attack` is no evasion attack.
    """
    _bridge.require_pytorch(adversarial_accuracy, classifier)
    inputs, labels = _inputs.labelled_data(classifier, x, y)
    if attack is None:
        attack = WassersteinPGD(
            classifier, p=p, norm=norm, eps=eps, max_iter=max_iter, batch_size=batch_size, verbose=verbose
        )
    if not isinstance(attack, EvasionAttack):
        raise TypeError(f"attack is {attack!r}; allowed is an EvasionAttack of ART")
    if attack.targeted:
        raise ValueError(f"attack is {attack!r}; allowed is an untargeted one, since y are the true labels")
    with _bridge.undisturbed(classifier, batch_size):
        few = inputs[:16].to(classifier.device)
        with torch.no_grad():
            if len(few) and are_probabilities(_bridge.logits_of(classifier)(few)):
                warnings.warn(
                    "the classifier puts out probabilities; attacks need logits, and leave too much accuracy without",
                    UserWarning,
                    stacklevel=2,
                )
        array = inputs.cpu().numpy()
        own = isinstance(attack, WassersteinAttack)  # another one might write to what it is given
        adversarial = attack.generate(array if own else array.copy(), labels.cpu().numpy())
    mass = getattr(attack, "mass_", None)
    return accuracy_left(classifier, inputs, torch.from_numpy(adversarial), labels, mass, batch_size)


def accuracy_left(
    classifier: PyTorchClassifier,
    x: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    mass: np.ndarray | None,
    batch_size: int,
) -> float:
    """Return the accuracy on what an attack made of a data set.

    :param classifier: The classifier.
    :param x: Inputs, (N, ...).
    :param adversarial: What became of them.
    :param labels: Class indices, (N,).
    :param mass: Which part of each sample's mass is there, the rest still at the input, (N,); None means all of it.
    :param batch_size: Samples in one pass.
    """
    with _bridge.undisturbed(classifier, batch_size):
        standing = _standing(classifier, adversarial, labels, batch_size)
        if mass is not None:
            moved, before = torch.from_numpy(mass), _standing(classifier, x, labels, batch_size)
            standing = moved * standing + (1 - moved) * before
    return mean(standing)
