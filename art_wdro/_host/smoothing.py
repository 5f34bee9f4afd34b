# SPDX-License-Identifier: MIT
"""What the package takes from a smoothed classifier of ART, which predicts by votes under noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.estimators.certification.randomized_smoothing.randomized_smoothing import RandomizedSmoothingMixin
from art.estimators.classification import PyTorchClassifier
from art.exceptions import EstimatorError

from art_wdro._host import arguments

OWN_STEPS = {
    "_noisy_samples": RandomizedSmoothingMixin._noisy_samples,
    "_prediction_counts": RandomizedSmoothingMixin._prediction_counts,
    "_predict_classifier": PyTorchRandomizedSmoothing._predict_classifier,
}
"""The steps by which ART adds noise and counts votes."""


class Smoothing(NamedTuple):
    """How a smoothed classifier votes, by ART's names.

    :param scale: Standard deviation of the noise, in input units.
    :param alpha: Probability with which a sample's radius may be too long.
    :param sample_size: Draws that select the class.
    """

    scale: float
    alpha: float
    sample_size: int


def is_smoothed(classifier: object) -> bool:
    """Tell whether a classifier predicts by votes under noise."""
    return isinstance(classifier, RandomizedSmoothingMixin)


def smoothing_of(owner: Callable[..., object], classifier: PyTorchClassifier) -> Smoothing:
    """Read how a smoothed classifier votes.

    :raises EstimatorError: If it is no `PyTorchRandomizedSmoothing`.
    :raises ValueError: If its noise is not ART's, which is Gaussian, its scale or alpha is none, or its classes are not
        those of its network's logits.
    """
    if not isinstance(classifier, PyTorchRandomizedSmoothing):
        raise EstimatorError(owner, [PyTorchRandomizedSmoothing], classifier)
    for name, step in OWN_STEPS.items():
        if getattr(type(classifier), name) is not step or name in vars(classifier):
            raise ValueError(
                f"classifier is a {type(classifier).__name__} with a {name} of its own; allowed is the one of ART, "
                "which draws Gaussian noise"
            )
    if classifier.postprocessing_defences:
        raise ValueError(
            f"classifier has postprocessing_defences={classifier.postprocessing_defences}; allowed are none, since "
            "votes are counted on logits"
        )
    scale = arguments.real("classifier.scale", classifier.scale, 0.0, open_low=True)
    return Smoothing(
        scale,
        arguments.probability("classifier.alpha", classifier.alpha),
        arguments.integer("classifier.sample_size", classifier.sample_size, 1),
    )
