# SPDX-License-Identifier: MIT
"""What an attack goes on from has to be what an attack on these samples can have left: in the box, in the ball."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from art_wdro._storage.arrays import Rows, parts, staged
from art_wdro._threat.norms import power_mean, sample_norms

if TYPE_CHECKING:
    from art_wdro._solvers.batches import Samples

SLACK = 1e-5
"""How far a saved point may be from where it should be, relative to its distance, rounding apart."""
ROUNDING = 2.0**-23
"""Spacing of float32 numbers, relative to them."""


def check_found(saved: dict[str, Any], samples: Samples, r: float, radius: float = math.inf) -> None:
    """Refuse what no search for points of another class has left.

    :param saved: Its distances, (N,), its points, shaped as the inputs, and the indices of the samples it searches for.
    :param samples: The data set.
    :param r: Exponent of the ground norm.
    :param radius: Most that a point may be away, in input units.
    :raises ValueError: If the distances are not those of the points, or the points lie outside of box, mask or radius.
    """
    distances, chosen = saved["distances"], saved["chosen"]
    norms, rounding = (values.to(distances.device) for values in _norms(saved["points"], samples, r))
    _require(distances.shape == norms.shape, "distances of other samples")
    _require(not chosen.is_floating_point() and bool(((chosen >= 0) & (chosen < len(norms))).all()), "unknown samples")
    reached = torch.isfinite(distances)
    _require(bool((~(distances < 0) & ~distances.isnan()).all()), "distances below 0")
    _require(_close(norms, distances)[reached].all(), "points at other distances than those noted")
    _require((norms - rounding <= radius * (1 + SLACK)).all(), "points outside of the ball")
    others = torch.ones_like(reached)
    others[chosen] = False
    _require((norms[others] == 0).all(), "points of samples that were not searched for")


def check_iterate(saved: dict[str, Any], samples: Samples, p: float, r: float, eps: float | None) -> None:
    """Refuse what no ascent in the W_p ball has left.

    :param saved: Its iterate, shaped as the inputs, the best one before it or None, and its budget.
    :param samples: The data set.
    :param p: Order of the Wasserstein distance.
    :param r: Exponent of the ground norm.
    :param eps: The budget, in input units; None takes the one that was saved.
    :raises ValueError: If the budget is another one, or an iterate lies outside of box, mask or ball.
    """
    budget = float(saved["eps"])
    _require(eps is None or budget == eps, "another budget")
    for points in (saved["x"], *([] if saved["best"] is None else [saved["best"]["x"]])):
        norms, rounding = _norms(points, samples, r)
        spent = power_mean((norms - rounding).clamp(min=0.0), p)
        _require(spent <= budget * (1 + SLACK), "points outside of the ball")


def _norms(points: Tensor, samples: Samples, r: float) -> tuple[Tensor, Tensor]:
    """Return how far points are from their samples, (N,), and how much of it may be rounding, (N,).

    :raises ValueError: If they lie outside of the box, or what the mask holds has moved.
    """
    _require(points.shape == samples.x.shape and points.dtype == samples.x.dtype, "points of another shape")
    data, movable = samples.rows(), samples.movable()
    found = torch.zeros(2, len(data), dtype=torch.float64, device=data.device)
    chosen = parts(len(data), data.at_once(samples.batch_size))
    for rows, origin, point in staged(chosen, data, Rows(points, data.device)):
        _require(torch.isfinite(point).all(), "points that are not finite")
        if samples.box is not None:
            _require(((point >= samples.box[0]) & (point <= samples.box[1])).all(), "points outside of the box")
        if movable is not None:
            _require(((point == origin) | movable[rows]).all(), "coordinates that the mask holds and that moved")
        found[0, rows] = sample_norms(point.double() - origin.double(), r)
        found[1, rows] = ROUNDING * sample_norms(torch.maximum(point.abs(), origin.abs()), r)
    return found[0], found[1]


def _close(found: Tensor, noted: Tensor) -> Tensor:
    return (found - noted).abs() <= SLACK * noted


def _require(holds: bool | Tensor, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"checkpoint does not fit this attack: it holds {otherwise}; delete it to begin anew")
