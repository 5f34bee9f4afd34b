# SPDX-License-Identifier: MIT
"""One report of a classifier under pointwise and distributional threats, with the checks that make it meaningful."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from tqdm.auto import tqdm

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.inputs import labelled_data
from art_wdro._host.predictions import accuracy_left
from art_wdro._ranks import all_rows, count, everywhere, is_first
from art_wdro._storage.arrays import mixed
from art_wdro.attacks._distributional import WassersteinDistributionalAttack
from art_wdro.attacks._knapsack import WassersteinKnapsack
from art_wdro.attacks._pgd import WassersteinPGD
from art_wdro.certificates._problem import why_uncertified
from art_wdro.certificates._radii import certified_radii
from art_wdro.evaluation._autoattack import autoattack_runner, check_autoattack
from art_wdro.evaluation._distance import distance_of_mass
from art_wdro.evaluation._first_order import accuracy_bounds, sensitivity
from art_wdro.evaluation._report import Report, Row
from art_wdro.evaluation._sanity import check_model, check_order

Attack = WassersteinPGD | WassersteinDistributionalAttack | WassersteinKnapsack
KAPPA = 2.0
"""Into how many parts the attack that splits mass does so: the best or next to it where that was measured."""


def evaluate(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any | None = None,
    *,
    p: float = 2,
    norm: float | str = np.inf,
    eps: float = 8 / 255,
    batch_size: int = 128,
    knapsack_iter: int = 300,
    autoattack: bool | None = None,
    certified: bool | None = None,
    keep_arrays: bool = False,
    on_row: Callable[[Row, np.ndarray], None] | None = None,
    verbose: bool = True,
) -> Report:
    """Evaluate a classifier: clean, pointwise by PGD and AutoAttack, distributional by W-PGD and the knapsack.

    The figure to quote is the knapsack's: W-PGD is a heuristic for the same quantity and usually far above it. With the
    accuracy by certified radii it brackets the truth.

    :param classifier: A `PyTorchClassifier` whose network puts out logits.
    :param x: Inputs, (N, ...), or a `Dataset` or `DataLoader` of torch: the whole data set, which shares the budget.
    :param y: True labels as indices or one-hot rows; None where x brings them.
    :param p: Order of the Wasserstein distance, in (1, inf].
    :param norm: Ground norm: 1, 2, np.inf or "inf".
    :param eps: Budget in input units, pointwise and distributional alike.
    :param batch_size: Samples in one forward and backward pass.
    :param knapsack_iter: Gradient evaluations a sample in the search for least distances, at most.
    :param autoattack: Whether to run the AutoAttack package (not ART's attack of that name): None runs it where it is
        installed and the inputs lie in [0, 1].
    :param certified: Whether to compute certified radii, for an accuracy that no attack can pass: None does so where
        the network has bounds and it takes little.
    :param keep_arrays: Keep the adversarial arrays in the report.
    :param on_row: Called with each attack's figures and adversarial array as soon as they are there.
    :param verbose: Show a progress bar over the attacks.
    :return: The report; its `warnings` are also issued as `UserWarning`.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If an argument does not fit.
    :raises ImportError: If AutoAttack is asked for and not installed.
    """
    host.require_pytorch(evaluate, classifier)
    p, r = arguments.order(p), arguments.ground_norm(norm)
    eps = arguments.real("eps", eps, 0.0)
    inputs, labels = labelled_data(classifier, x, y)
    certified = None if certified is None else arguments.flag("certified", certified)
    reason = why_uncertified(classifier, count(len(inputs)), certified)
    threat: dict[str, Any] = {"norm": r, "eps": eps, "batch_size": batch_size, "verbose": False}
    knapsack = WassersteinKnapsack(classifier, p=p, max_iter=knapsack_iter, **threat)
    step = eps / 20 if eps > 0 else None
    split = WassersteinDistributionalAttack(classifier, p=p, kappa=1.0 if math.isinf(p) else KAPPA, **threat)
    attacks: dict[str, Attack] = {
        "PGD-20, CE": WassersteinPGD(classifier, p=math.inf, loss="ce", **threat),
        "W-PGD-20, ReDLR, step eps/20 (paper)": WassersteinPGD(classifier, p=p, eps_step=step, **threat),
        "W-PGD-100, ReDLR, linear": WassersteinPGD(classifier, p=p, max_iter=100, schedule="linear", **threat),
        f"WDA, kappa {split.kappa:g}": split,
        "knapsack": knapsack,
    }
    runs: list[tuple[str, float | None, Callable[[], tuple[np.ndarray, float]]]] = [
        ("none", None, lambda: (inputs.cpu().numpy(), 0.0)),
        *((name, attack.p, _runner(attack, inputs, labels)) for name, attack in attacks.items()),
    ]
    if check_autoattack(classifier, autoattack, r):
        run = autoattack_runner(classifier, inputs, labels, r, eps, batch_size)
        runs.insert(2, ("AutoAttack, standard", math.inf, run))

    found = check_model(classifier, inputs, labels, batch_size) if len(inputs) else []
    rows: list[Row] = []
    arrays: dict[str, np.ndarray] = {}

    def add(name: str, order: float | None, adversarial: np.ndarray, seconds: float, gradients: float) -> None:
        mass = split.mass_ if attacks.get(name) is split else None
        moved = torch.from_numpy(adversarial)
        accuracy = accuracy_left(classifier, inputs, moved, labels, mass, batch_size)
        spent = 0.0 if order is None else distance_of_mass(inputs.cpu(), moved, mass, order, r)
        rows.append(Row(name, order, accuracy, spent, seconds, gradients))
        shown = adversarial.view()
        shown.flags.writeable = order is not None  # without an attack it is the user's own
        if keep_arrays:
            arrays[name] = shown
        if on_row is not None:
            on_row(rows[-1], shown)

    for name, order, run in tqdm(runs, desc="evaluate", leave=False, disable=not (verbose and is_first())):
        started = time.perf_counter()
        adversarial, gradients = run()
        add(name, order, adversarial, time.perf_counter() - started, gradients)
    if not math.isinf(p):  # pointwise from the same distances, at no cost
        within = knapsack.distances_ <= eps
        pointwise = mixed(torch.from_numpy(within), torch.from_numpy(knapsack.nearest_), inputs.cpu()).numpy()
        add("knapsack's distances", math.inf, pointwise, rows[-1].seconds, rows[-1].gradients)
        rows.sort(key=lambda row: (row.order is not None, row.order != math.inf))  # clean, W_inf, W_p
        # one radius for all samples is no worst case, nor meant as one
        found += check_order([row for row in rows if attacks.get(row.attack) is not split])
    radii = None
    if reason is None:
        radii = certified_radii(classifier, inputs, labels, r, largest=knapsack.distances_)
        radii = all_rows(torch.from_numpy(radii))[0].numpy()
    report = Report(
        p=p,
        norm=r,
        eps=eps,
        samples=count(len(inputs)),
        rows=tuple(rows),
        upsilon=sensitivity(classifier, inputs, labels, p, r, "redlr", batch_size),
        bounds={
            loss: accuracy_bounds(classifier, inputs, labels, p, r, eps, loss, batch_size) for loss in ("redlr", "ce")
        },
        distances=all_rows(torch.from_numpy(knapsack.distances_))[0].numpy(),
        radii=radii,
        uncertified=reason if certified is None else None,
        warnings=tuple(dict.fromkeys(text for rank in everywhere(found) for text in rank)),
        arrays=arrays,
        mass=all_rows(torch.from_numpy(split.mass_))[0].numpy(),
    )
    for text in report.warnings:
        warnings.warn(text, UserWarning, stacklevel=2)
    return report


def _runner(attack: Attack, x: Tensor, labels: Tensor) -> Callable[[], tuple[np.ndarray, float]]:
    def run() -> tuple[np.ndarray, float]:
        adversarial = attack.generate(x, labels)
        gradients = float(attack.max_iter) if isinstance(attack, WassersteinPGD) else attack.gradients_
        return adversarial, gradients

    return run
