# SPDX-License-Identifier: MIT
"""A report of a smoothed classifier: what votes certify, and what an attack on the mean softmax leaves.

The attack searches least distances on the logarithm of the network's mean softmax over a few draws of noise that are
held fixed, and goes along the way to the point found. Where on that way the smoothed class is another one is decided by
votes, with the confidence that the certificate has too.

Source: Salman et al., Provably robust deep learning via adversarially trained smoothed classifiers, 2019,
arXiv:1906.04584, for the mean softmax; the search along the way is ours.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from scipy.special import bdtrc
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro._ranks import all_rows, average, count, mean
from art_wdro._solvers.newton import least_distances
from art_wdro._storage.arrays import mixed
from art_wdro._threat.geometry import clip
from art_wdro._threat.knapsack import knapsack
from art_wdro._threat.norms import sample_norms
from art_wdro.certificates._smoothing import Voting, estimates_of
from art_wdro.certificates._votes import Stage, votes
from art_wdro.evaluation._attempts import Case
from art_wdro.evaluation._distance import distance_of_mass, lengths_between
from art_wdro.evaluation._report import KNAPSACK, Report, Row

FIXED = 16
"""Draws of noise over which the softmax is averaged."""
DECISIVE = 4.0
"""Median difference of the two largest logits up to which they are enlarged: there a softmax is nearly a vote."""
SAMPLES = 64
"""Samples on which it is measured."""
FIRST_STAGE = 2
"""Number of the first round of votes here; a certificate has those before it."""
TESTS = 5
"""Tests of each sample along its way, which together cost what its radius costs; one more is at the sample itself."""
SHORTER, LONGER = 0.7, 1.3
"""Ends of the places that are tested, in units of the way to the point found."""
BEYOND = 0.5
"""How far the farther end lies beyond that, in scales of the noise: near a border few votes tell classes apart."""


class Flips(NamedTuple):
    """Points at which the smoothed class is not the label, with confidence for all of them at once.

    :param distances: Distances of the points, (N,), 0 for the sample itself, inf where no such point is known.
    :param points: The points, (N, ...).
    :param gradients: Gradients of the network, a sample.
    """

    distances: np.ndarray
    points: Tensor
    gradients: float


def flips(
    classifier: PyTorchClassifier,
    inputs: Tensor,
    labels: Tensor,
    voting: Voting,
    *,
    r: float,
    max_iter: int,
    risk: float,
) -> Flips:
    """Search near points at which the smoothed classifier has another class.

    :param classifier: The smoothed classifier.
    :param inputs: Samples, (N, ...).
    :param labels: Class indices, (N,).
    :param voting: How it is asked.
    :param r: Exponent of the ground norm.
    :param max_iter: Evaluations of the mean softmax a sample, at most; each takes `FIXED` gradients.
    :param risk: Probability with which any of the points may have the label's class after all.
    """
    labels = labels.to(classifier.device)
    with host.undisturbed(classifier, voting.batch_size):
        box = host.box(classifier)
        function = _mean_logits(classifier, voting, inputs[:SAMPLES])
        size = max(1, voting.batch_size // FIXED)
        found = least_distances(function, inputs, labels, r=r, max_iter=max_iter, box=box, batch_size=size)
    test = _Test(classifier, labels.cpu().numpy(), voting, risk / max(1, (TESTS + 1) * count(len(inputs))))
    x, points = inputs.cpu(), found.points.cpu()
    way = points.double() - x.double()
    nearest = x.clone()
    already = test.flipped(x, np.arange(len(x)), voting.draws)
    last = 2**TESTS - 1
    low, high = np.full(len(x), -1), np.full(len(x), last)
    walked = sample_norms(way, 2.0).numpy()
    open_ = np.flatnonzero(~already & torch.isfinite(found.distances).cpu().numpy() & (walked > 0))
    growth = (LONGER + BEYOND * voting.noise.scale / np.where(walked > 0, walked, 1.0)) / SHORTER
    for _ in range(TESTS):
        middle = (low + high) // 2
        places = torch.from_numpy(SHORTER * growth ** (middle / (last - 1)))
        reached = (x.double() + way * places.view(-1, *[1] * (x.dim() - 1))).float()
        tried = reached if box is None else clip(reached, *(bound.cpu() for bound in box))
        beyond = np.zeros(len(x), dtype=bool)
        beyond[open_] = test.flipped(tried[torch.from_numpy(open_)], open_, math.ceil(voting.draws / TESTS))
        nearest = mixed(torch.from_numpy(beyond), tried, nearest)
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    known = already | (high < last)
    distances = np.where(known, lengths_between(x, nearest, r).numpy(), math.inf)
    return Flips(distances, nearest, FIXED * average(found.gradients, len(x)))


def _mean_logits(classifier: PyTorchClassifier, voting: Voting, some: Tensor) -> host.LogitsOf:
    """Return the logarithm of the mean softmax over fixed draws as a function of inputs.

    Where logits are so small that the softmax is far from a vote, they are enlarged.

    :param some: Samples, (n, ...), on which that is seen.
    """
    logits_of = host.logits_of(classifier)
    generator = torch.Generator().manual_seed(voting.noise.seed)
    shape = host.example(classifier).shape[1:]
    noise = voting.noise.scale * torch.randn(FIXED, *shape, generator=generator).to(classifier.device)
    with torch.no_grad():
        found = logits_of((some.to(classifier.device)[:, None] + noise).flatten(0, 1))
        gaps = found.topk(min(2, found.shape[1]), 1).values
        gap = (gaps[:, 0] - gaps[:, -1]).nan_to_num().median().item() if len(gaps) else DECISIVE
    factor = max(1.0, DECISIVE / gap) if gap > 0 else 1.0

    def function(x: Tensor) -> Tensor:
        copies = (x[:, None] + noise).flatten(0, 1)
        shares = (factor * logits_of(copies)).log_softmax(1).view(len(x), FIXED, -1)
        return shares.logsumexp(1) - math.log(FIXED)

    return function


class _Test:
    """Tests whether the smoothed class is another than the label, each with a small risk of a wrong yes."""

    def __init__(self, classifier: PyTorchClassifier, labels: np.ndarray, voting: Voting, risk: float) -> None:
        self.classifier, self.labels, self.voting, self.risk = classifier, labels, voting, risk
        self.samples = np.arange(len(labels)) + all_rows(torch.zeros(len(labels)))[1].start
        self.stage = FIRST_STAGE

    def flipped(self, points: Tensor, rows: np.ndarray, draws: int) -> np.ndarray:
        """Tell at which points of some samples the label's class is certainly not the likeliest, (n,).

        One round of votes picks the rival, another compares the two: if the rival were not likelier, its share of the
        votes for either would be binomial of 1/2 at most, but for copies that are not those of real arithmetic.
        """
        at, own = np.arange(len(rows)), self.labels[rows]
        picked = self._ask(points, rows, self.voting.smoothing.sample_size)
        picked[at, own] = -1
        rivals = picked.argmax(1)
        counts = self._ask(points, rows, draws)
        rival, either = counts[at, rivals], counts[at, rivals] + counts[at, own]
        half = 0.5 + 2 * self.voting.noise.miscount(points) * draws / np.maximum(either, 1)
        return np.asarray((rival > 0) & (bdtrc(rival - 1.0, either, np.minimum(half, 1.0)) <= self.risk))

    def _ask(self, points: Tensor, rows: np.ndarray, draws: int) -> np.ndarray:
        stage = Stage(self.stage, draws, self.samples[rows])
        self.stage += 1
        voting = self.voting
        return votes(self.classifier, points, voting.noise, stage, voting.batch_size, voting.precision)


def smoothed_report(
    case: Case, voting: Voting, *, confidence: float, max_iter: int, certified: bool
) -> tuple[Report, dict[str, Tensor]]:
    """Bracket the accuracy of a smoothed classifier; both ends hold at once with the confidence.

    :param case: What is evaluated.
    :param voting: How it is asked.
    :param confidence: Probability, over the noise.
    :param max_iter: Evaluations of the mean softmax a sample, at most.
    :param certified: Whether the certificate is wanted.
    :return: The report, and what became of the inputs by row.
    """
    x, each = case.x.cpu(), (1 + confidence) / 2
    started = time.perf_counter()
    estimates = estimates_of(case.classifier, case.x, case.labels, voting)
    right = mean(torch.from_numpy(estimates.right))
    clean = Row("none", None, right, 0.0, time.perf_counter() - started, 0.0)
    started = time.perf_counter()
    found = flips(case.classifier, case.x, case.labels, voting, r=case.r, max_iter=max_iter, risk=1 - each)
    row, points = _attacked(found, x, case, started)
    surer, longer, failed = estimates.pair(each, case.r)
    report = Report(
        p=case.p,
        norm=case.r,
        eps=case.eps,
        samples=count(len(x)),
        rows=(clean, row),
        upsilon=math.nan,
        bounds={},
        distances=all_rows(torch.from_numpy(found.distances))[0].numpy(),
        radii=longer if certified else None,
        surer=surer,
        failed=failed,
        confidence=confidence,
        standing={clean.attack: all_rows(torch.from_numpy(estimates.right).double())[0].numpy()},
    )
    return report, {clean.attack: x, row.attack: points}


def _attacked(found: Flips, x: Tensor, case: Case, started: float) -> tuple[Row, Tensor]:
    """Spend the budget on the points, and return the row of a report with what became of the inputs.

    :param started: When the search began, by `time.perf_counter`.
    """
    whole, own = all_rows(torch.from_numpy(found.distances))
    filling = knapsack(whole, case.eps, case.p)
    points = mixed(torch.from_numpy(filling.flipped[own]), found.points, x)
    spent = distance_of_mass(x, points, None, case.p, case.r)
    seconds, left = time.perf_counter() - started, 1.0 - float(filling.flipped.mean())
    return Row(KNAPSACK, case.p, left, spent, seconds, found.gradients), points
