# SPDX-License-Identifier: MIT
"""A random part of a data set that has every class in proportion."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._ranks import all_rows


def stratified(labels: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Draw without replacement, each sample with the same probability, every class in proportion to within one.

    The samples are put in order by class, in random order inside of each, and every so many of them are taken from a
    random start.

    :param labels: Class indices, (N,).
    :param samples: How many to draw.
    :param seed: Seed of the draw.
    :return: Indices, ascending, (samples,).
    :raises ValueError: If there are not so many.

    Source: Madow and Madow, On the theory of systematic sampling, Annals of Mathematical Statistics 1944.
    """
    if samples > len(labels):
        raise ValueError(f"samples is {samples}; allowed is at most {len(labels)}, the size of the data set")
    generator = np.random.default_rng(seed)
    classes = generator.permutation(int(labels.max(initial=0)) + 1)
    order = np.lexsort((generator.random(len(labels)), classes[labels]))
    places = (np.arange(samples) + generator.random()) * (len(labels) / samples)
    return np.sort(order[np.minimum(places.astype(np.int64), len(labels) - 1)])


def subset(x: Tensor, labels: Tensor, samples: Any, seed: int) -> tuple[Tensor, Tensor, np.ndarray | None]:
    """Return a random part of a data set, of that of all ranks where there are several, and the indices in the whole.

    :param x: Inputs, (N, ...).
    :param labels: Class indices, (N,).
    :param samples: How many are wanted; None takes all, without indices.
    :param seed: Seed of the draw.
    """
    if samples is None:
        return x, labels, None
    whole, own = all_rows(labels)
    indices = stratified(whole.cpu().numpy(), arguments.integer("samples", samples, 1), seed)
    mine = torch.from_numpy(indices[(indices >= own.start) & (indices < own.stop)] - own.start)
    return x[mine.to(x.device)], labels[mine.to(labels.device)], indices
