# SPDX-License-Identifier: MIT
"""The attacks that a report tries, each a record with its name, its order and how it is run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host.predictions import accuracy_left
from art_wdro._storage.arrays import mixed
from art_wdro.attacks._base import WassersteinAttack
from art_wdro.attacks._distributional import WassersteinDistributionalAttack
from art_wdro.attacks._knapsack import WassersteinKnapsack
from art_wdro.attacks._pgd import WassersteinPGD
from art_wdro.evaluation._autoattack import autoattack_points
from art_wdro.evaluation._distance import distance_of_mass
from art_wdro.evaluation._report import Row

KAPPA = 2.0
"""Into how many parts the attack that splits mass does so: the best or next to it where that was measured."""
KNAPSACK = "knapsack"
"""Name of the attempt whose distances the report keeps."""
AnyAttack = TypeVar("AnyAttack", bound=WassersteinAttack)


class Outcome(NamedTuple):
    """What an attempt made of the data set.

    :param points: What became of the inputs, (N, ...), on the host.
    :param gradients: Gradient evaluations a sample, on average.
    :param seconds: Wall time.
    :param mass: Which part of each sample's mass is there, the rest still at the input, (N,); None means all of it.
    :param distances: Least distances that it found, (N,), if it searches for them.
    :param nearest: The points at those distances.
    """

    points: Tensor
    gradients: float
    seconds: float = 0.0
    mass: np.ndarray | None = None
    distances: np.ndarray | None = None
    nearest: Tensor | None = None


@dataclass(frozen=True)
class Attempt:
    """An attack that a report tries.

    :param name: Its name and setting.
    :param order: Order of the threat: p, inf for a pointwise one, None for clean data.
    :param run: Makes the outcome, given those of the attempts before it.
    """

    name: str
    order: float | None
    run: Callable[[Mapping[str, Outcome]], Outcome]

    def outcome(self, earlier: Mapping[str, Outcome]) -> Outcome:
        """Run it; one that needed time of its own is timed."""
        started = time.perf_counter()
        found = self.run(earlier)
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

    def row(self, attempt: Attempt, outcome: Outcome) -> Row:
        """Return the figures of an outcome."""
        points, mass = outcome.points, outcome.mass
        accuracy = accuracy_left(self.classifier, self.x, points, self.labels, mass, self.batch_size)
        spent = 0.0
        if attempt.order is not None:
            spent = distance_of_mass(self.x.cpu(), points, mass, attempt.order, self.r)
        return Row(attempt.name, attempt.order, accuracy, spent, outcome.seconds, outcome.gradients)


def attempts_on(case: Case, knapsack_iter: int, autoattack: bool) -> list[Attempt]:
    """Return the attempts in the order in which they are run.

    :param case: What is evaluated.
    :param knapsack_iter: Gradient evaluations a sample in the search for least distances, at most.
    :param autoattack: Whether AutoAttack is one of them.
    """
    p, step = case.p, case.eps / 20 if case.eps > 0 else None
    kappa = 1.0 if math.isinf(p) else KAPPA
    attempts = [
        Attempt("none", None, lambda _: Outcome(case.x.cpu(), 0.0)),
        _ascent(case, "PGD-20, CE", p=math.inf, loss="ce"),
        *([Attempt("AutoAttack, standard", math.inf, lambda _: _autoattack(case))] if autoattack else []),
        _ascent(case, "W-PGD-20, ReDLR, step eps/20 (paper)", eps_step=step),
        _ascent(case, "W-PGD-100, ReDLR, linear", max_iter=100, schedule="linear"),
        _split(case, kappa),
        _knapsack(case, knapsack_iter),
    ]
    if not math.isinf(p):
        attempts.append(Attempt("knapsack's distances", math.inf, lambda earlier: _pointwise(case, earlier[KNAPSACK])))
    return attempts


def _ascent(case: Case, name: str, **setting: Any) -> Attempt:
    attack = case.attack(WassersteinPGD, **setting)

    def run(_: Mapping[str, Outcome]) -> Outcome:
        return Outcome(attack.attack_tensors(case.x, case.labels).cpu(), float(attack.max_iter))

    return Attempt(name, attack.p, run)


def _split(case: Case, kappa: float) -> Attempt:
    attack = case.attack(WassersteinDistributionalAttack, kappa=kappa)

    def run(_: Mapping[str, Outcome]) -> Outcome:
        points = attack.attack_tensors(case.x, case.labels).cpu()
        return Outcome(points, attack.gradients_, mass=attack.mass_)

    return Attempt(f"WDA, kappa {kappa:g}", attack.p, run)


def _knapsack(case: Case, max_iter: int) -> Attempt:
    attack = case.attack(WassersteinKnapsack, max_iter=max_iter)

    def run(_: Mapping[str, Outcome]) -> Outcome:
        points, nearest = attack.attack_tensors(case.x, case.labels).cpu(), torch.from_numpy(attack.nearest_)
        return Outcome(points, attack.gradients_, distances=attack.distances_, nearest=nearest)

    return Attempt(KNAPSACK, attack.p, run)


def _pointwise(case: Case, knapsack: Outcome) -> Outcome:
    """Attack pointwise with the distances that are there, at no further cost."""
    assert knapsack.distances is not None
    assert knapsack.nearest is not None
    points = mixed(torch.from_numpy(knapsack.distances <= case.eps), knapsack.nearest, case.x.cpu())
    return Outcome(points, knapsack.gradients, knapsack.seconds)


def _autoattack(case: Case) -> Outcome:
    return Outcome(*autoattack_points(case.classifier, case.x, case.labels, case.r, case.eps, case.batch_size))
