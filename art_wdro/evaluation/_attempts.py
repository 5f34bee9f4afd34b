# SPDX-License-Identifier: MIT
"""The attacks that a report tries, each a record with its name, its order and how it is run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro._host.predictions import predicted_labels, standing_shares
from art_wdro._ranks import all_rows, mean, shards
from art_wdro._storage.arrays import mixed
from art_wdro._threat.knapsack import knapsack
from art_wdro.attacks._base import WassersteinAttack
from art_wdro.attacks._distributional import WassersteinDistributionalAttack
from art_wdro.attacks._knapsack import WassersteinKnapsack
from art_wdro.attacks._pgd import WassersteinPGD
from art_wdro.evaluation._autoattack import AUTOATTACK, autoattack_passes, autoattack_points
from art_wdro.evaluation._distance import distance_of_mass, lengths_between
from art_wdro.evaluation._progress import Progress
from art_wdro.evaluation._report import KNAPSACK, Row

KAPPA = 2.0
"""Into how many parts the attack that splits mass does so: the best or next to it where that was measured."""
NEARER = 1.01
"""By how much another attempt's point must be nearer than the search's to count as one that the search missed."""
T = TypeVar("T")
AnyAttack = TypeVar("AnyAttack", bound=WassersteinAttack)


class Outcome(NamedTuple):
    """What an attempt made of the data set.

    :param points: What became of the inputs, (N, ...), on the host.
    :param gradients: Gradient evaluations a sample, on average.
    :param seconds: Wall time.
    :param mass: Which part of each sample's mass is there, the rest still at the input, (N,); None means all of it.
    """

    points: Tensor
    gradients: float
    seconds: float = 0.0
    mass: np.ndarray | None = None


@dataclass(frozen=True)
class Attempt:
    """An attack that a report tries.

    :param name: Its name and setting.
    :param order: Order of the threat: p, inf for a pointwise one, None for clean data.
    :param run: Makes the outcome, given what all attempts before it found, and the bar that it advances.
    :param gradients: Gradient evaluations a sample, at most, by which it does so; 0 of an attempt that does not.
    """

    name: str
    order: float | None
    run: Callable[[Pool, Progress], Outcome]
    gradients: int = 0

    def outcome(self, pool: Pool, progress: Progress) -> Outcome:
        """Run it, and take its time unless it says what that was."""
        started = time.perf_counter()
        with progress.share(self.gradients * len(pool.distances)):
            found = self.run(pool, progress)
        return found if found.seconds else found._replace(seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class Case:
    """What is evaluated: a classifier on checked data under one threat.

    :param classifier: The classifier.
    :param x: Inputs, (N, ...).
    :param labels: Class indices, (N,).
    :param p: Order of the Wasserstein distance.
    :param r: Exponent of the ground norm.
    :param eps: Budget in input units.
    :param batch_size: Samples in one pass.
    """

    classifier: PyTorchClassifier
    x: Tensor
    labels: Tensor
    p: float
    r: float
    eps: float
    batch_size: int

    def attack(self, cls: type[AnyAttack], **setting: Any) -> AnyAttack:
        """Return an attack under the threat, or under that of another order p."""
        threat = {"p": self.p, "norm": self.r, "eps": self.eps, "batch_size": self.batch_size, "verbose": False}
        return cls(self.classifier, **threat | setting)

    def predictions(self, points: Tensor) -> Tensor:
        """Return the classes of points, (N,), on the host, -1 where a logit is NaN."""
        with host.undisturbed(self.classifier, self.batch_size):
            return predicted_labels(self.classifier, points, self.batch_size).cpu()


class Pool:
    """All points of another class that attempts have found: every one bounds its sample's least distance from above."""

    def __init__(self, case: Case) -> None:
        """Start with the inputs themselves."""
        self._case = case
        self._x, self._labels = case.x.cpu(), case.labels.cpu()
        self._clean = case.predictions(case.x) == self._labels
        self.distances = torch.where(self._clean, torch.inf, 0.0).double()
        self.nearest = self._x.clone()
        self.undefined = self.elsewhere = 0
        self.costs: dict[str, tuple[float, float]] = {}
        self.mass: dict[str, np.ndarray] = {}
        self.standing: dict[str, np.ndarray] = {}
        self.errors: list[Exception] = []

    def attempted(self, attempt: Attempt, progress: Progress) -> tuple[Row, Tensor | None]:
        """Run an attempt, take over what it found, and return its figures and points; without clean data, an error."""
        if attempt.order is None:
            outcome = attempt.outcome(self, progress)
            return self._take(attempt, outcome), outcome.points
        made, error = tried(lambda: attempt.outcome(self, progress))
        if made is None:
            assert error is not None
            self.errors.append(error)
            return Row(attempt.name, attempt.order, math.nan, math.nan, 0.0, math.nan, told(error)), None
        return self._take(attempt, made), made.points

    def _take(self, attempt: Attempt, outcome: Outcome) -> Row:
        classes = self._case.predictions(outcome.points)
        self.undefined = max(self.undefined, int((classes < 0).sum()))
        standing = classes == self._labels
        self._join(outcome.points, ~standing)
        self.costs[attempt.name] = outcome.gradients, outcome.seconds
        if outcome.mass is not None:
            self.mass[attempt.name] = outcome.mass
        shares = standing_shares(standing, self._clean, outcome.mass)
        self.standing[attempt.name] = shares.double().numpy()
        spent = 0.0
        if attempt.order is not None:
            spent = distance_of_mass(self._x, outcome.points, outcome.mass, attempt.order, self._case.r)
        return Row(attempt.name, attempt.order, mean(shares), spent, outcome.seconds, outcome.gradients)

    def search(self, points: Tensor) -> None:
        """Take over what the search for least distances found, and count the samples that others got nearer to."""
        others = self.distances
        own = self._join(points, self._case.predictions(points) != self._labels)
        self.elsewhere = int((self._clean & (NEARER * others < own)).sum())

    def within(self, chosen: Tensor) -> Tensor:
        """Return the inputs, with the chosen samples, boolean (N,), moved to the nearest points found."""
        return mixed(chosen, self.nearest, self._x)

    def _join(self, points: Tensor, flipped: Tensor) -> Tensor:
        """Take over the flipped points that are the nearest yet, and return the distances of all flipped ones, (N,)."""
        own = torch.where(flipped, lengths_between(self._x, points, self._case.r), torch.inf)
        nearer = own < self.distances
        self.distances = torch.where(nearer, own, self.distances)
        self.nearest = mixed(nearer, points, self.nearest)
        return own


def tried(run: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Run what a report can do without: return what it made, or the error. Ranks wait for each other, and raise it."""
    try:
        return run(), None
    except Exception as error:
        if shards() is not None:
            raise
        return None, error


def told(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def attempts_on(case: Case, knapsack_iter: int, autoattack: bool) -> list[Attempt]:
    """Return the attempts in the order in which they are run: the searches first, whose points the last ones pool.

    :param case: What is evaluated.
    :param knapsack_iter: Gradient evaluations a sample in the search for least distances, at most.
    :param autoattack: Whether AutoAttack is one of them.
    """
    p, step = case.p, case.eps / 20 if case.eps > 0 else None
    kappa = 1.0 if math.isinf(p) else KAPPA
    search = case.attack(WassersteinKnapsack, max_iter=knapsack_iter)
    return [
        Attempt("none", None, lambda *_: Outcome(case.x.cpu(), 0.0)),
        _ascent(case, "PGD-20, CE", p=math.inf, loss="ce"),
        *([Attempt(AUTOATTACK, math.inf, lambda *found: _autoattack(case, *found))] if autoattack else []),
        _ascent(case, "W-PGD-20, ReDLR, step eps/20 (paper)", eps_step=step),
        _ascent(case, "W-PGD-100, ReDLR, linear", max_iter=100, schedule="linear"),
        _split(case, kappa),
        Attempt(KNAPSACK, p, lambda *found: _knapsack(case, search, *found), search.max_iter),
        *([] if math.isinf(p) else [Attempt("knapsack's distances", math.inf, lambda pool, _: _pointwise(case, pool))]),
    ]


def _ascent(case: Case, name: str, **setting: Any) -> Attempt:
    attack = case.attack(WassersteinPGD, **setting)

    def run(_: Pool, progress: Progress) -> Outcome:
        attack.advance = progress.advance
        points = attack.attack_tensors(case.x, case.labels).cpu()
        return Outcome(points, attack.gradients_)

    return Attempt(name, attack.p, run, attack.max_iter)


def _split(case: Case, kappa: float) -> Attempt:
    attack = case.attack(WassersteinDistributionalAttack, kappa=kappa)

    def run(_: Pool, progress: Progress) -> Outcome:
        attack.advance = progress.advance
        points = attack.attack_tensors(case.x, case.labels).cpu()
        return Outcome(points, attack.gradients_, mass=attack.mass_)

    return Attempt(f"WDA, kappa {kappa:g}", attack.p, run, attack.most_gradients)


def _knapsack(case: Case, attack: WassersteinKnapsack, pool: Pool, progress: Progress) -> Outcome:
    """Search the least distances, and spend the budget on the least ones that any attempt found."""
    started = time.perf_counter()
    attack.advance = progress.advance
    attack.attack_tensors(case.x, case.labels)
    pool.search(torch.from_numpy(attack.nearest_))
    distances, own = all_rows(pool.distances)
    filling = knapsack(distances, case.eps, case.p)
    points = pool.within(torch.from_numpy(filling.flipped[own]))
    return Outcome(points, attack.gradients_, time.perf_counter() - started)


def _pointwise(case: Case, pool: Pool) -> Outcome:
    """Attack pointwise with the distances that are there, at no further cost."""
    return Outcome(pool.within(pool.distances <= case.eps), *pool.costs.get(KNAPSACK, (0.0, 0.0)))


def _autoattack(case: Case, pool: Pool, progress: Progress) -> Outcome:
    """Attack by AutoAttack: its first attack sees what is classified correctly, the others about what PGD left."""
    standing, left = int((pool.distances > 0).sum()), int(torch.isinf(pool.distances).sum())
    passes = autoattack_passes(standing, left, case.classifier.nb_classes)
    data = case.classifier, case.x, case.labels, case.r, case.eps, case.batch_size
    with progress.aside("AutoAttack, estimated", passes, " passes") as advance:
        return Outcome(*autoattack_points(*data, advance))
