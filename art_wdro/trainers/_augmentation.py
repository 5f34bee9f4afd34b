# SPDX-License-Identifier: MIT
"""Preprocessors of a classifier that change a training set as a whole: its labels, or how many samples it has.

They are no function of one input that an attack could differentiate, so they are applied to the set before it trains,
as ART's `PyTorchClassifier.fit` applies them; all others stay part of the function from inputs to logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro._host.preprocessing import applied_to_set, set_operations, switched_off
from art_wdro.losses import class_indices
from art_wdro.trainers._random import seeded


class Augmentation:
    """What a classifier's preprocessors for fitting do to a training set, or to a generator's batch."""

    def __init__(self, classifier: PyTorchClassifier) -> None:
        self._classifier = classifier
        with seeded(0, classifier.device):
            self._operations = set_operations(classifier)

    def __bool__(self) -> bool:
        """Tell whether they do anything."""
        return bool(self._operations)

    def __call__(self, x: Tensor, labels: Tensor, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return inputs, in the classifier's box, and targets: class indices, (n,), or soft ones, (n, K).

        :param x: Inputs, (n, ...).
        :param labels: Class indices, (n,).
        :param seed: Seed of all they draw; None takes the random states as they are, and moves them on.
        """
        if not self._operations:
            return x, labels
        rows = torch.nn.functional.one_hot(labels, self._classifier.nb_classes).float()
        with nullcontext() if seed is None else seeded(seed, self._classifier.device):
            array, changed = applied_to_set(self._operations, x.cpu().numpy(), rows.cpu().numpy())
        inputs, targets = torch.from_numpy(array).to(x.device), torch.from_numpy(changed).to(labels.device)
        box = host.box(self._classifier)
        if box is not None:
            inputs = inputs.clamp(*(bound.to(x.device) for bound in box))
        hard = targets.dim() == 1 or bool((targets == targets.round()).all())
        return inputs, class_indices(targets, self._classifier.nb_classes) if hard else targets.float()

    @contextmanager
    def done(self) -> Iterator[None]:
        """Leave them out of the function from inputs to logits, as long as a set trains that has been changed."""
        with switched_off(self._operations):
            yield


def indices_of(targets: Tensor) -> Tensor:
    """Return the class indices, (n,), of hard targets, (n,), or soft ones, (n, K)."""
    return targets if targets.dim() == 1 else targets.argmax(1)
