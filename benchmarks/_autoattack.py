# SPDX-License-Identifier: MIT
"""AutoAttack on the networks of cells that were run, on top of the searches for their least distances."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_wdro._sources.data import Split
from art_wdro.evaluation._autoattack import autoattack_points
from benchmarks._cells import Content
from benchmarks._files import keep

IMAGES = 200
"""Test images of AutoAttack, the first of those of the searches."""


def attack_standing(
    file: Path, cell: Content, point: Content, classifier: PyTorchClassifier, test: Split, at_once: int
) -> dict[str, float]:
    """Run AutoAttack, standard, on images that the searches leave standing, and keep in the file what stays right.

    :param file: The cell's file.
    :param cell: What it holds, the budget in its setting.
    :param point: The part of it with the least distances of one set of weights, which gets the figure "autoattack".
    :param classifier: The classifier with these weights.
    :param test: The test images of the searches.
    :param at_once: Images in one pass.
    :return: What :func:`both` does.
    """
    eps, distances = cell["setting"]["eps"], np.array(point["distances"][:IMAGES])
    standing = np.flatnonzero(distances > eps)
    right = 0
    if len(standing):
        x, y = test.choose(standing)
        points, _ = autoattack_points(classifier, torch.from_numpy(x), torch.from_numpy(y), math.inf, eps, at_once)
        right = int((classifier.predict(points.numpy()).argmax(1) == y).sum())
    point["autoattack"] = right / len(distances)
    keep(file, cell)
    return both(point, eps)


def both(point: Content, eps: float) -> dict[str, float]:
    """Return W_inf accuracy in % on AutoAttack's images: by the searches, and by AutoAttack on top of them."""
    searches = float(np.mean(np.array(point["distances"][:IMAGES]) > eps))
    return {"searches": round(100 * searches, 1), "autoattack": round(100 * point["autoattack"], 1)}
