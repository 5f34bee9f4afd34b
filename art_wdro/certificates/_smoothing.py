# SPDX-License-Identifier: MIT
"""Randomised smoothing: what votes under noise certify of ART's smoothed classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host.inputs import labelled_data
from art_wdro._host.precision import PRECISIONS
from art_wdro._host.smoothing import Smoothing, smoothing_of
from art_wdro._ranks import all_rows, count, together
from art_wdro.certificates._confidence import accuracy_left, failures, least_probability, radii_of_probabilities
from art_wdro.certificates._votes import NOISES, Noise, Stage, votes

DRAWS = 10_000
"""Draws that estimate a class's probability, unless others are asked for."""
COPIES, COPIES_ON_GPU = 64, 1024
"""Noisy copies in one forward pass, unless others are asked for; on a CPU as many as its cache holds."""
SELECTION, ESTIMATION = 0, 1
"""Rounds of votes: one selects the class, the other, of which the first knows nothing, estimates its probability."""


class Voting(NamedTuple):
    """How a smoothed classifier is asked.

    :param smoothing: What it is, by ART's names.
    :param noise: What is added to inputs.
    :param draws: Copies that estimate a probability.
    :param batch_size: Copies in one forward pass.
    :param precision: Number format of the passes.
    """

    smoothing: Smoothing
    noise: Noise
    draws: int
    batch_size: int
    precision: str


class Estimates(NamedTuple):
    """What votes said of samples.

    :param right: Whether the selected class is the label, (N,); the others have radius 0, and are not estimated.
    :param hits: Votes for it in the second round, (N,).
    :param miscount: Bound on the probability that a copy is not that of real arithmetic, (N,).
    :param voting: How they were asked.
    :param inputs: Coordinates of one input.
    """

    right: np.ndarray
    hits: np.ndarray
    miscount: np.ndarray
    voting: Voting
    inputs: int

    def radii(self, alpha: float, r: float) -> np.ndarray:
        """Return the radii in l_r, each of which holds with probability 1 - alpha, (N,)."""
        least = least_probability(self.hits, self.voting.draws, alpha) - self.miscount
        found = radii_of_probabilities(least, self.voting.noise.scale, self.voting.noise.kind)
        if math.isinf(r):
            found = found / math.sqrt(self.inputs)
        return np.where(self.right, found, 0.0)

    def pair(self, confidence: float, r: float) -> tuple[np.ndarray, np.ndarray, int]:
        """Return radii that all hold, longer ones, and how many of these do not, of all ranks, with this confidence."""
        risk, able = (1 - confidence) / 2, count(int(self.right.sum()))
        alpha = self.voting.smoothing.alpha
        surer, longer = self.radii(risk / max(1, able), r), self.radii(alpha, r)
        return _whole(surer), _whole(longer), failures(able, alpha, risk)


def voting_of(
    owner: Callable[..., object],
    classifier: PyTorchClassifier,
    *,
    n: int | None,
    noise: str | None,
    seed: int,
    batch_size: int | None,
    precision: str,
) -> Voting:
    """Check how a smoothed classifier is to be asked."""
    smoothing = smoothing_of(owner, classifier)
    copies = COPIES if classifier.device.type == "cpu" else COPIES_ON_GPU
    kind = "gaussian" if noise is None else arguments.choice("noise", noise, NOISES)
    return Voting(
        smoothing,
        Noise(kind, smoothing.scale, arguments.seed(seed)),
        DRAWS if n is None else arguments.integer("n", n, 1),
        copies if batch_size is None else arguments.integer("batch_size", batch_size, 1),
        arguments.choice("precision", precision, tuple(PRECISIONS)),
    )


def check_norm(voting: Voting, r: float) -> None:
    """Refuse a ground norm in which this noise certifies nothing.

    :raises ValueError: If the noise is uniform and the norm is not l_1.
    """
    if voting.noise.kind == "uniform" and r != 1.0:
        raise ValueError(
            f"norm is {r:g} with noise='uniform', whose radii are in l_1; allowed is 1, or noise='gaussian'"
        )


def estimated(classifier: PyTorchClassifier, x: Any, y: Any | None, voting: Voting) -> Estimates:
    """Ask a smoothed classifier for its class of every sample, and how likely that is where it is the label.

    :raises ValueError: If the data do not fit the classifier.
    """
    with together():
        inputs, labels = labelled_data(classifier, x, y)
    return estimates_of(classifier, inputs, labels, voting)


def estimates_of(classifier: PyTorchClassifier, inputs: Tensor, labels: Tensor, voting: Voting) -> Estimates:
    """As :func:`estimated`, of checked data."""
    own = all_rows(torch.zeros(len(inputs)))[1]
    samples = np.arange(own.start, own.stop)

    def ask(number: int, draws: int, which: np.ndarray) -> np.ndarray:
        rows, stage = inputs[torch.from_numpy(which).to(inputs.device)], Stage(number, draws, samples[which])
        return votes(classifier, rows, voting.noise, stage, voting.batch_size, voting.precision)

    selected = ask(SELECTION, voting.smoothing.sample_size, np.arange(len(inputs)))
    known = labels.cpu().numpy()
    right = (selected.argmax(1) == known) & (selected.max(1, initial=0) > 0)
    rows = np.flatnonzero(right)
    hits = np.zeros(len(inputs), dtype=np.int64)
    hits[rows] = ask(ESTIMATION, voting.draws, rows)[np.arange(len(rows)), known[rows]]
    return Estimates(right, hits, voting.noise.miscount(inputs), voting, inputs[0].numel() if len(inputs) else 0)


def smoothed_accuracy(estimates: Estimates, confidence: float, eps: Any, p: float, r: float) -> list[float]:
    """Bound the accuracy under W_p from below, for all of some budgets at once, with this confidence.

    :param eps: Budgets in input units.
    :return: One accuracy a budget.
    """
    surer, longer, failed = estimates.pair(confidence, r)
    return [accuracy_left(surer, longer, failed, budget, p) for budget in eps]


def _whole(values: np.ndarray) -> np.ndarray:
    """Return numbers of the samples of all ranks, (all samples,)."""
    return all_rows(torch.from_numpy(values))[0].numpy()
