# SPDX-License-Identifier: MIT
"""What training.py compares: methods with the values of their knobs, data sets, one recipe for each data set."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from art_wdro import DistributionalTRADESTrainer, WassersteinMarginTrainer
from art_wdro.trainers._base import FineTuner
from benchmarks._one_side import OneSide
from benchmarks._settings import DATA, LONGER, QUICK
from benchmarks.frontier._margins import (
    AllClasses,
    HeldMargin,
    KnapsackTraining,
    MaxMarginTraining,
    ScaledThresholds,
)
from benchmarks.frontier._rivals import AdversarialTraining
from benchmarks.frontier._softened import SoftenedMargin, SoftenedTRADES
from benchmarks.frontier._transport import ARMORTraining, UDRTraining

MAX_ITER = 10
"""Gradient evaluations a sample in the inner problem, of every method."""
START = "start"
"""The network that all methods start from."""


class Setting(NamedTuple):
    """What the cells of one data set share.

    :param data: Name of its images in `DATA`.
    :param eps: Budget.
    :param images: Images of an epoch, one random part of the training set for all cells.
    :param epochs: Number of epochs.
    :param batch: Images in a minibatch.
    :param rate: First learning rate, which falls to 0 along a cosine, step by step.
    :param momentum: Momentum of SGD.
    :param weight_decay: Its weight decay.
    :param ema: Weight of the past in the average of the weights.
    :param padding: Pixels by which images are shifted, half of them flipped; None leaves them as they are.
    :param precision: Number format of the training's attacks.
    :param test_images: Random test images.
    :param gradients: Gradients a sample of the search for their least distances.
    :param at_once: Test images in one pass of the evaluation.
    """

    data: str
    eps: float
    images: int
    epochs: int
    batch: int
    rate: float
    momentum: float
    weight_decay: float
    ema: float
    padding: int | None
    precision: str
    test_images: int
    gradients: int
    at_once: int


class Method(NamedTuple):
    """A trainer, and the values of its knobs.

    Options are those of the trainer, but for three in parts of the setting: `radius`, its eps over the setting's,
    `path`, the length of all steps of its attack together over its eps, and `epochs`, over the setting's too.

    :param cls: The trainer.
    :param options: What holds for all values of the knobs unless one says otherwise.
    :param knobs: Options by name; a name's first word is the knob. The first one is the default.
    """

    cls: type[FineTuner]
    options: dict[str, Any]
    knobs: dict[str, dict[str, Any]]


def values(knob: str, *numbers: float) -> dict[str, dict[str, Any]]:
    """Return the values of one knob."""
    return {f"{knob} {number:g}": {knob: number} for number in numbers}


PAPER, MARGIN = DistributionalTRADESTrainer, WassersteinMarginTrainer
POINTWISE = {"p": math.inf, "loss": "ce", "path": 2.5}
"""PGD as pointwise trainers use it: 10 steps of a quarter of the radius."""
PERTURBED = 0.005
"""Length of the weights' perturbation in TRADES-AWP, as its authors have it."""
METHODS: dict[str, Method] = {
    "TRADES": Method(PAPER, POINTWISE, values("beta", 6, 3, 12, 1.5) | values("radius", 1.5, 2)),
    "TRADES, 1.5 eps": Method(
        PAPER, {**POINTWISE, "radius": 1.5, "beta": 2}, values("beta", 2, 1, 3, 0.5) | values("epochs", 3)
    ),
    "TRADES, 2 eps": Method(PAPER, {**POINTWISE, "radius": 2.0}, values("beta", 1, 0.5)),
    "margin": Method(MARGIN, {"beta": 1.0}, values("beta", 0.5, 1, 2, 3, 6) | values("epochs", 3)),
    "paper": Method(PAPER, {}, values("beta", 6, 3, 12) | values("radius", 1.5, 2)),
    "longer steps": Method(PAPER, {"path": LONGER}, values("beta", 6, 3, 12) | values("radius", 1.5)),
    "longer steps, 1.5 eps": Method(PAPER, {"path": LONGER, "radius": 1.5}, values("beta", 2, 1)),
    "TRADES-AWP": Method(
        PAPER, {**POINTWISE, "weight_perturbation": PERTURBED}, values("beta", 6, 3) | values("radius", 1.5, 2)
    ),
    "TRADES-AWP, 1.5 eps": Method(
        PAPER, {**POINTWISE, "radius": 1.5, "weight_perturbation": PERTURBED}, values("beta", 2)
    ),
    "AT": Method(AdversarialTraining, POINTWISE, values("radius", 1, 0.5, 1.5, 2, 1.25)),
    "MMA": Method(
        MaxMarginTraining,
        {"p": math.inf, "budgets": 1, "beta": 2.0, "radius": 1.5},
        values("radius", 1.5, 1, 2, 3) | values("epochs", 3),
    ),
    "max-margin": Method(OneSide, {"p": math.inf, "budgets": 1}, values("beta", 1.5, 6) | values("radius", 2)),
    "combined": Method(PAPER, {"max_iter": MAX_ITER // 2}, values("gamma", 3, 1, 6)),
    "UDR": Method(UDRTraining, POINTWISE, values("price", 1, 0.5) | values("radius", 1.5)),
    "ARMOR_D": Method(
        ARMORTraining, {**POINTWISE, "beta": 12.0}, values("divergence", 0.02, 0.1) | values("radius", 1.5)
    ),
    "AT, W_2": Method(AdversarialTraining, {"path": LONGER}, values("radius", 1.5, 1, 2)),
    "margin, half anchored": Method(MARGIN, {"anchor": 0.5}, values("beta", 2, 1, 3, 6)),
    "margin, labels": Method(MARGIN, {"anchor": 0.0}, values("beta", 3, 1.5, 6, 12) | values("epochs", 3)),
    "margin, one side": Method(OneSide, {"beta": 3.0}, values("beta", 3, 1.5, 6, 12, 1, 24) | values("epochs", 3)),
    "margin, CE": Method(KnapsackTraining, {}, values("beta", 3, 1.5, 6, 12)),
    "margin, held": Method(HeldMargin, {"beta": 3.0}, values("points", 0, 1, 2)),
    "margin, all classes": Method(AllClasses, {}, values("beta", 3, 1.5, 6)),
    "margin, thresholds": Method(ScaledThresholds, {"beta": 3.0}, values("scale", 0.9, 1.1)),
    "margin-AWP": Method(OneSide, {"weight_perturbation": PERTURBED}, values("beta", 6, 3, 12)),
    "margin, softened": Method(SoftenedMargin, {}, values("beta", 6, 3, 12)),
    "TRADES, softened": Method(SoftenedTRADES, POINTWISE, values("beta", 6, 3) | values("radius", 1.5)),
    "TRADES, softened, 1.5 eps": Method(SoftenedTRADES, {**POINTWISE, "radius": 1.5}, values("beta", 2, 1)),
}
"""Methods by name, the ones that decide first."""

FASHION = Setting(
    data="fashion-mnist",
    eps=DATA["fashion-mnist"].eps,
    images=30000,
    epochs=1,
    batch=128,
    rate=0.01,
    momentum=0.9,
    weight_decay=5e-4,
    ema=0.99,
    padding=None,
    precision="float32",
    test_images=1000,
    gradients=100,
    at_once=250,
)
CIFAR = FASHION._replace(
    data="cifar10",
    eps=DATA["cifar10"].eps,
    images=8000,
    rate=0.02,
    ema=0.9,
    padding=4,
    precision="bfloat16",
    test_images=500,
    gradients=60,
)
SETTINGS = {
    "fashion-mnist": FASHION,
    "cifar10": CIFAR,
    "cifar10-resnet18": CIFAR._replace(images=12500, ema=0.95, gradients=40),
    QUICK: FASHION._replace(
        data=QUICK, images=160, batch=32, ema=0.9, test_images=24, gradients=30, padding=1, eps=DATA[QUICK].eps
    ),
}
QUICK_POINTS = (
    START,
    "TRADES, beta 6",
    "TRADES, beta 3",
    "margin, beta 1",
    "margin, one side, beta 3",
    "AT, radius 1",
    "MMA, radius 1.5",
    "UDR, price 1",
)
"""What a quick run runs."""


def cells_of(seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the cells of some seeds: the start, then every method's first value, then their second, and so on."""
    found: list[dict[str, Any]] = [{"method": START, "knob": None, "seed": None}]
    most = max(len(method.knobs) for method in METHODS.values())
    for seed in seeds:
        for place in range(most):
            for name, method in METHODS.items():
                found += [{"method": name, "knob": k, "seed": seed} for k in [*method.knobs][place : place + 1]]
    return found


def point_of(cell: dict[str, Any]) -> str:
    """Return what cells that differ in the seed alone have in common."""
    return cell["method"] if cell["knob"] is None else f"{cell['method']}, {cell['knob']}"


def called_with(cell: dict[str, Any], eps: float) -> tuple[type[FineTuner], dict[str, Any]]:
    """Return the trainer of a cell and its options.

    :param cell: The cell.
    :param eps: The setting's budget.
    """
    method = METHODS[cell["method"]]
    options = {"max_iter": MAX_ITER, "radius": 1.0, **method.options, **method.knobs[cell["knob"]]}
    options["eps"] = options.pop("radius") * eps
    if "path" in options:
        options["eps_step"] = options.pop("path") * options["eps"] / options["max_iter"]
    return method.cls, options
