# SPDX-License-Identifier: MIT
"""AutoAttack as one of the attacks of a report."""

from __future__ import annotations

import math
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro._host.extras import install, missing
from art_wdro._ranks import average, total
from art_wdro._solvers.passes import Advance, Passes
from art_wdro._threat.geometry import displace, project_on_balls
from art_wdro.evaluation._report import Row

AUTOATTACK = "AutoAttack, standard"
"""Its name in a report."""
NORM_NAMES = {1.0: "L1", 2.0: "L2", math.inf: "Linf"}
"""What AutoAttack calls the ground norms."""
STEPS, TARGETS, QUERIES = 100, 9, 5000
"""Steps of its attacks by gradient, classes towards which the targeted ones go in turn, and queries of its last one."""


def check_autoattack(classifier: PyTorchClassifier, wanted: bool | None, r: float = math.inf) -> bool:
    """Tell whether AutoAttack is to be run.

    :param classifier: The classifier.
    :param wanted: Whether the user wants it; None wants it where it is installed and fits.
    :param r: Exponent of the ground norm.
    :raises ImportError: If it is wanted and not installed.
    :raises ValueError: If it is wanted and does not fit the classifier.
    """
    unit, images = _has_unit_box(classifier), len(classifier.input_shape) == 3
    if wanted is None:
        return _fits(classifier, r) and _autoattack_class() is not None
    if wanted and _autoattack_class() is None:
        raise ImportError(f"autoattack is True and the package is not installed: {install('autoattack')}")
    if wanted and r not in NORM_NAMES:
        raise ValueError(f"autoattack is True; it knows {', '.join(NORM_NAMES.values())}, and norm is {r:g}")
    if wanted and not unit:
        raise ValueError(f"autoattack is True; it needs clip_values (0, 1), and they are {classifier.clip_values}")
    if wanted and not images:
        raise ValueError(f"autoattack is True; it needs images (C, H, W), and inputs are {classifier.input_shape}")
    if wanted and classifier.nb_classes < 4:
        raise ValueError(f"autoattack is True; it needs 4 classes or more, and there are {classifier.nb_classes}")
    return wanted


def left_out(classifier: PyTorchClassifier, wanted: bool | None, r: float) -> list[Row]:
    """Return the row of AutoAttack where it fits and is only not installed, which says what to install; else none."""
    if wanted is not None or not _fits(classifier, r) or _autoattack_class() is not None:
        return []
    return [Row(AUTOATTACK, math.inf, math.nan, math.nan, 0.0, math.nan, missing("autoattack"), installed=False)]


def _fits(classifier: PyTorchClassifier, r: float) -> bool:
    """Tell whether AutoAttack takes the classifier's inputs, its classes and the ground norm."""
    images = len(classifier.input_shape) == 3
    return _has_unit_box(classifier) and images and classifier.nb_classes >= 4 and r in NORM_NAMES


def _has_unit_box(classifier: PyTorchClassifier) -> bool:
    bounds = host.box(classifier)
    return bounds is not None and bool((bounds[0] == 0).all() and (bounds[1] == 1).all())


def _autoattack_class() -> Any:
    """Find AutoAttack under either of the names that its distributions install; they differ in some arguments too."""
    for module in ("autoattack", "pyautoattack"):
        try:
            return import_module(module).AutoAttack
        except ImportError:
            continue
    return None


def autoattack_passes(standing: int, left: int, classes: int) -> int:
    """Estimate how many passes the standard version takes, forward and backward, summed over samples.

    Step by step APGD takes both, FAB two forward ones and a backward one, and a query of Square one forward.

    :param standing: Samples that are classified correctly, which the first attack sees.
    :param left: Samples that are after it, which all others see.
    :param classes: Number of classes.
    """
    each = STEPS * min(TARGETS, classes - 1) * (2 + 3) + QUERIES
    return 2 * STEPS * standing + each * left


def autoattack_points(
    classifier: PyTorchClassifier,
    x: Tensor,
    labels: Tensor,
    r: float,
    eps: float,
    batch_size: int,
    advance: Advance | None = None,
) -> tuple[Tensor, float]:
    """Attack with the standard version of AutoAttack: return the points, on the host, and gradients a sample.

    :param advance: Is told of its passes, forward and backward.
    """
    if len(x) == 0:
        total(torch.zeros(2, dtype=torch.float64))  # the others count their evaluations
        return x.cpu(), 0.0
    function = Passes(host.logits_of(classifier))

    def told(x: Tensor) -> Tensor:
        if advance is not None:
            advance(len(x) * (2 if x.requires_grad else 1))
        return function(x)

    with host.undisturbed(classifier, batch_size):
        cls, device = _autoattack_class(), classifier.device
        quiet = {"verbose": False} if "verbose" in signature(cls).parameters else {}
        attack = cls(told, norm=NORM_NAMES[r], eps=eps, seed=0, device=str(device), **quiet)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(TARGETS, classifier.nb_classes - 1)
        size = "bs" if "bs" in signature(attack.run_standard_evaluation).parameters else "batch_size"
        adversarial = attack.run_standard_evaluation(x.to(device), labels.to(device), **{size: batch_size})
        adversarial = adversarial[0] if isinstance(adversarial, tuple) else adversarial
        # rounding alone may exceed a small eps
        radii = torch.full((len(x),), eps, dtype=torch.float64, device=device)
        delta = project_on_balls(adversarial.detach() - x.to(device), radii, r)
        adversarial = displace(x.to(device), delta).clamp(0.0, 1.0)
    return adversarial.cpu(), average(function.gradients, len(x))
