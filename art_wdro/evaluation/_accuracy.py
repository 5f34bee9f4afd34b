# SPDX-License-Identifier: MIT
"""The accuracy that an attack leaves."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from art_wdro._host import classifier as host
from art_wdro._host.doubts import doubts_of_scores
from art_wdro._host.inputs import labelled_data
from art_wdro._host.predictions import accuracy_left
from art_wdro.attacks._base import WassersteinAttack
from art_wdro.attacks._pgd import WassersteinPGD


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
    `UserWarning` says so if the figure is doubtful: if the network puts out probabilities, is random or couples the
    samples of a batch, or if the classifier's own predictions are not those of its logits.

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
    host.require_pytorch(adversarial_accuracy, classifier)
    inputs, labels = labelled_data(classifier, x, y)
    if attack is None:
        attack = WassersteinPGD(
            classifier, p=p, norm=norm, eps=eps, max_iter=max_iter, batch_size=batch_size, verbose=verbose
        )
    if not isinstance(attack, EvasionAttack):
        raise TypeError(f"attack is {attack!r}; allowed is an EvasionAttack of ART")
    if attack.targeted:
        raise ValueError(f"attack is {attack!r}; allowed is an untargeted one, since y are the true labels")
    for text in doubts_of_scores(classifier, inputs, labels, batch_size):
        warnings.warn(text, UserWarning, stacklevel=2)
    with host.undisturbed(classifier, batch_size):
        array = inputs.cpu().numpy()
        own = isinstance(attack, WassersteinAttack)  # another one might write to what it is given
        adversarial = attack.generate(array if own else array.copy(), labels.cpu().numpy())
    mass = getattr(attack, "mass_", None)
    return accuracy_left(classifier, inputs, torch.from_numpy(adversarial), labels, mass, batch_size)
