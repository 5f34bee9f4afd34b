# SPDX-License-Identifier: MIT
"""One report of a classifier under pointwise and distributional threats, with the checks that make it meaningful."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from tqdm.auto import tqdm

from art_wdro import _bridge, _checks, _inputs
from art_wdro._attacks import WassersteinPGD
from art_wdro._certificates import certified_radii
from art_wdro._certified_problem import why_uncertified
from art_wdro._coupling import all_rows, average, count, everywhere, is_first, total
from art_wdro._distributional_attack import WassersteinDistributionalAttack
from art_wdro._geometry import displace, project_on_balls
from art_wdro._knapsack_attack import WassersteinKnapsack
from art_wdro._losses import are_probabilities, attack_objective
from art_wdro._metrics import accuracy_bounds, accuracy_left, distance_of_mass, sensitivity
from art_wdro._report import Report, Row
from art_wdro._rows import mixed
from art_wdro._sensitivity import Objective

Attack = WassersteinPGD | WassersteinDistributionalAttack | WassersteinKnapsack
KAPPA = 2.0
"""Into how many parts the attack that splits mass does so: the best or next to it where that was measured."""
NORM_NAMES = {1.0: "L1", 2.0: "L2", math.inf: "Linf"}
"""What AutoAttack calls the ground norms."""


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
    _bridge.require_pytorch(evaluate, classifier)
    p, r = _checks.order(p), _checks.ground_norm(norm)
    eps = _checks.real("eps", eps, 0.0)
    inputs, labels = _inputs.labelled_data(classifier, x, y)
    certified = None if certified is None else _checks.flag("certified", certified)
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
        run = _autoattack_runner(classifier, inputs, labels, r, eps, batch_size)
        runs.insert(2, ("AutoAttack, standard", math.inf, run))

    found = _check_model(classifier, inputs, labels, batch_size) if len(inputs) else []
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
        found += _check_order([row for row in rows if attacks.get(row.attack) is not split])
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


def check_autoattack(classifier: PyTorchClassifier, wanted: bool | None, r: float = math.inf) -> bool:
    """Tell whether AutoAttack is to be run.

    :param classifier: The classifier.
    :param wanted: Whether the user wants it; None wants it where it is installed and fits.
    :param r: Exponent of the ground norm.
    :raises ImportError: If it is wanted and not installed.
    :raises ValueError: If it is wanted and does not fit the classifier.
    """
    bounds = _bridge.box(classifier)
    unit = bounds is not None and bool((bounds[0] == 0).all() and (bounds[1] == 1).all())
    images = len(classifier.input_shape) == 3
    if wanted is None:
        fits = unit and images and classifier.nb_classes >= 4 and r in NORM_NAMES
        return fits and _autoattack_class() is not None
    if wanted and _autoattack_class() is None:
        raise ImportError("autoattack is True and the package is not installed: pip install pyautoattack")
    if wanted and r not in NORM_NAMES:
        raise ValueError(f"autoattack is True; it knows {', '.join(NORM_NAMES.values())}, and norm is {r:g}")
    if wanted and not unit:
        raise ValueError(f"autoattack is True; it needs clip_values (0, 1), and they are {classifier.clip_values}")
    if wanted and not images:
        raise ValueError(f"autoattack is True; it needs images (C, H, W), and inputs are {classifier.input_shape}")
    if wanted and classifier.nb_classes < 4:
        raise ValueError(f"autoattack is True; it needs 4 classes or more, and there are {classifier.nb_classes}")
    return wanted


def _autoattack_class() -> Any:
    """Find AutoAttack under either of the names that its distributions install; they differ in some arguments too."""
    for module in ("autoattack", "pyautoattack"):
        try:
            return import_module(module).AutoAttack
        except ImportError:
            continue
    return None


def _autoattack_runner(
    classifier: PyTorchClassifier, x: Tensor, labels: Tensor, r: float, eps: float, batch_size: int
) -> Callable[[], tuple[np.ndarray, float]]:
    def run() -> tuple[np.ndarray, float]:
        if len(x) == 0:
            total(torch.zeros(2, dtype=torch.float64))  # the others count their evaluations
            return x.numpy(), 0.0
        function = _bridge.logits_of(classifier)
        evaluations = 0

        def counted(batch: Tensor) -> Tensor:
            nonlocal evaluations
            evaluations += len(batch) * batch.requires_grad
            return function(batch)

        with _bridge.undisturbed(classifier, batch_size):
            cls, device = _autoattack_class(), classifier.device
            quiet = {"verbose": False} if "verbose" in signature(cls).parameters else {}
            attack = cls(counted, norm=NORM_NAMES[r], eps=eps, seed=0, device=str(device), **quiet)
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classifier.nb_classes - 1)
            size = "bs" if "bs" in signature(attack.run_standard_evaluation).parameters else "batch_size"
            adversarial = attack.run_standard_evaluation(x.to(device), labels.to(device), **{size: batch_size})
            adversarial = adversarial[0] if isinstance(adversarial, tuple) else adversarial
            # rounding alone may exceed a small eps
            radii = torch.full((len(x),), eps, dtype=torch.float64, device=device)
            delta = project_on_balls(adversarial.detach() - x.to(device), radii, r)
            adversarial = displace(x.to(device), delta).clamp(0.0, 1.0)
        return adversarial.cpu().numpy(), average(evaluations, len(x))

    return run


def _check_model(classifier: PyTorchClassifier, x: Tensor, labels: Tensor, batch_size: int) -> list[str]:
    """Look for what makes an evaluation meaningless, on one batch.

    Source: the checks of AutoAttack, Croce, Hein, 2020, arXiv:2003.01690.
    """
    found = []
    x, labels = x[:batch_size].to(classifier.device), labels[:batch_size].to(classifier.device)
    function = _bridge.logits_of(classifier)
    with _bridge.undisturbed(classifier, batch_size):
        with torch.no_grad():
            first, second = function(x).double(), function(x).double()
        if are_probabilities(first):
            found.append("the classifier puts out probabilities; ReDLR, DLR and margins need logits")
        if not torch.isfinite(first).all():
            found.append("some logits are NaN or infinite; figures of such samples mean nothing")
        elif not torch.allclose(first, second, rtol=1e-4, atol=1e-5 * first.abs().max().item()):
            found.append(
                "two forward passes differ: the classifier is random, and gradients of one pass say little about it"
            )
        correct = first.argmax(1) == labels
        if correct.any():
            objective = Objective(function, attack_objective("redlr"))
            _, gradient = objective.gradient(x[correct], labels[correct])
            vanishing = (gradient.flatten(1) == 0).all(1).double().mean().item()
            if vanishing > 0.01:
                found.append(
                    f"{100 * vanishing:.0f} % of the correctly classified samples have no gradient; attacks by "
                    "gradient overrate such a classifier"
                )
    return found


def _check_order(rows: list[Row]) -> list[str]:
    """Compare the threats: the W_p ball holds the W_inf ball of equal eps, so it leaves no more accuracy."""
    pointwise = min((row for row in rows if row.order == math.inf), key=lambda row: row.accuracy)
    return [
        f"{row.attack} leaves {100 * row.accuracy:.1f} % under {row.threat}, more than the "
        f"{100 * pointwise.accuracy:.1f} % of {pointwise.attack} under W_inf, which is impossible for true values: "
        "it is too weak here"
        for row in rows
        if row.order not in (None, math.inf) and row.accuracy > pointwise.accuracy
    ]
