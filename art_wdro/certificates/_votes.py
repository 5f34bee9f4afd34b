# SPDX-License-Identifier: MIT
"""Votes of a network on noisy copies of inputs, counted as whole numbers.

A copy is x + scale z, rounded to a multiple of a step that is small beside the noise. In real arithmetic that rounding
is a part of the base classifier, whose smoothed version is certified; in float64 the rounded copies are those of real
arithmetic but for the rare ones that lie on the border of two steps, and how rare they are is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro.losses import predicted

BLOCK = 64
"""Copies that are drawn at once, so that draws do not depend on the batches they are classified in."""
STEP = 2.0**-12
"""Step that copies are rounded to, in units of the power of 2 below the scale of the noise."""
DRAWING = 2.0**-50
"""Error of a copy's coordinate before it is rounded, relative to the largest that it is computed from."""
REACH = 8.0
"""Size of the noise that is counted among those, in scales."""
NOISES = ("gaussian", "uniform")
"""Kinds of noise; both have the standard deviation `scale` in every coordinate."""


class Noise(NamedTuple):
    """What is added to inputs.

    :param kind: A name in `NOISES`.
    :param scale: Standard deviation, in input units.
    :param seed: Draws are those of this number, of the stage and of the sample.
    """

    kind: str
    scale: float
    seed: int

    @property
    def step(self) -> float:
        """The step that copies are rounded to, a power of 2 in input units."""
        return STEP * 2.0 ** math.floor(math.log2(self.scale))

    def miscount(self, x: Tensor) -> np.ndarray:
        """Bound the probability that a copy of an input, (N, ...), is not that of real arithmetic, (N,)."""
        flat = x.flatten(1).double()
        largest = flat.abs().amax(1).cpu().numpy() + REACH * self.scale
        return np.asarray(2 * flat.shape[1] * DRAWING * largest / self.step)


class Stage(NamedTuple):
    """One round of votes.

    :param number: Which round it is: others have other draws.
    :param draws: Noisy copies of each sample.
    :param samples: Numbers of the samples in the data set of all ranks, (N,): each has its own draws.
    """

    number: int
    draws: int
    samples: np.ndarray


def votes(
    classifier: PyTorchClassifier, x: Tensor, noise: Noise, stage: Stage, batch_size: int, precision: str = "float32"
) -> np.ndarray:
    """Count how often the network gives noisy copies of each input each class.

    :param classifier: The classifier, whose logits are taken.
    :param x: Inputs, (N, ...).
    :param noise: What is added to them.
    :param stage: How many copies of each, and which.
    :param batch_size: Copies in one forward pass.
    :param precision: Number format of the passes, a name in `PRECISIONS`.
    :return: Counts, (N, K), int64; copies for which a logit is NaN are counted nowhere.
    """
    classes = classifier.nb_classes
    counts = torch.zeros(len(x) * (classes + 1), dtype=torch.int64, device=classifier.device)
    with host.undisturbed(classifier, batch_size), torch.no_grad():
        function = host.logits_of(classifier, precision=precision)
        for rows, copies in _batches(x, noise, stage, batch_size, classifier.device):
            found = predicted(function(copies))
            places = rows * (classes + 1) + torch.where(found < 0, classes, found)
            counts.index_add_(0, places, torch.ones_like(places))
    return counts.view(len(x), classes + 1)[:, :classes].cpu().numpy()


def _batches(
    x: Tensor, noise: Noise, stage: Stage, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield noisy copies with the numbers of their samples, in full batches but for the last."""
    copies = torch.empty(batch_size, *x.shape[1:], device=device)
    rows = torch.empty(batch_size, dtype=torch.int64, device=device)
    filled = 0
    for number in range(len(x)):
        for block in _copies(x[number].to(device), noise, stage, int(stage.samples[number])):
            while len(block):
                taken = min(len(block), batch_size - filled)
                copies[filled : filled + taken] = block[:taken]
                rows[filled : filled + taken] = number
                filled, block = filled + taken, block[taken:]
                if filled == batch_size:
                    yield rows, copies
                    filled = 0
    if filled:
        yield rows[:filled], copies[:filled]


def _copies(x: Tensor, noise: Noise, stage: Stage, number: int) -> Iterator[Tensor]:
    """Yield the noisy copies of one input in blocks, (B, ...), float64.

    :param number: That of the sample in the whole data set.
    """
    source = _source(noise, (stage.number, number), x.device)
    centre = x.double() / noise.step
    for start in range(0, stage.draws, BLOCK):
        # a whole block, since on a GPU what is drawn depends on how much is
        block = source((BLOCK, *x.shape))[: stage.draws - start]
        yield block.mul_(noise.scale / noise.step).add_(centre).round_().mul_(noise.step)


def _source(noise: Noise, stream: tuple[int, int], device: torch.device) -> Callable[[tuple[int, ...]], Tensor]:
    """Return what draws standard noise of a shape, float64; on a GPU it is drawn there."""
    root = np.random.SeedSequence([noise.seed, *stream])
    wide = math.sqrt(3.0)
    if device.type == "cuda":
        generator = torch.Generator(device).manual_seed(int(root.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        settings: dict[str, Any] = {"dtype": torch.float64, "device": device, "generator": generator}
        if noise.kind == "gaussian":
            return lambda shape: torch.randn(shape, **settings)
        return lambda shape: torch.rand(shape, **settings).mul_(2 * wide).sub_(wide)
    numbers = np.random.Generator(np.random.SFC64(root))
    if noise.kind == "gaussian":
        return lambda shape: torch.from_numpy(numbers.standard_normal(shape)).to(device)
    return lambda shape: torch.from_numpy(numbers.uniform(-wide, wide, shape)).to(device)
