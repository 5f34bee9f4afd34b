# SPDX-License-Identifier: MIT
"""Margins of a batch of samples towards other classes, and steps along them inside the box."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from art_wdro._solvers.passes import LogitsOf, input_gradient
from art_wdro._threat.geometry import movable_coordinates, project_in_box, sample_direction
from art_wdro._threat.norms import dual_exponent, per_sample, sample_norms
from art_wdro._threat.threat import Box
from art_wdro.losses import as_float, differences, margins, rivals

CERTAIN = 3e-6
"""Margin, relative to the two logits compared, from which a class counts as changed.

Predictions in other batches then agree. It is some 25 units in the last place of float32, and Newton's rule aims at
twice as much.
"""
LEADING = -1
"""In the place of a class: whichever other than the label has the largest logit."""
HALVINGS = 8
"""Halvings of a step that ends where the network puts out NaN, and of the way to another sample."""

Self = TypeVar("Self", bound="Margins")


def cosine(step: Tensor, steps: Tensor | int) -> Tensor:
    """Return what is left of schedules that fall from 1 towards 0 along a cosine, (N,), float64."""
    return (1 + torch.cos(math.pi * step.double() / steps)) / 2


@dataclass
class Spent:
    """Gradient evaluations, summed over samples."""

    gradients: int = 0


@dataclass(eq=False)
class Margins:
    """One batch of samples, the logits around them, and where they may move.

    Every tensor among the attributes has one row a sample, so that samples can be taken out and put in.

    :param logits_of: Maps inputs (N, ...) to logits (N, K), sample by sample, differentiably.
    :param x: Inputs, (N, ...), inside the box.
    :param labels: Class indices, (N,).
    :param r: Exponent of the ground norm.
    :param bounds: Bounds of the inputs, or None.
    :param mask: Where coordinates may move, boolean, (N, ...); None moves all.
    :param spent: What gradients are counted in.
    """

    logits_of: LogitsOf
    x: Tensor
    labels: Tensor
    r: float
    bounds: Box | None
    mask: Tensor | None
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        """Derive the box and the room of every coordinate."""
        x = self.x
        self.box = (x.new_full((), -torch.inf), x.new_full((), torch.inf)) if self.bounds is None else self.bounds
        self.lower, self.upper = (self.box[0] - x).clamp(max=0.0), (self.box[1] - x).clamp(min=0.0)
        if self.mask is not None:
            self.lower, self.upper = self.lower.where(self.mask, 0.0), self.upper.where(self.mask, 0.0)

    def __len__(self) -> int:
        return len(self.x)

    def rows(self) -> dict[str, Tensor]:
        """Return what has one row a sample, by name."""
        return {name: values for name, values in vars(self).items() if isinstance(values, Tensor)}

    def part(self: Self, rows: Tensor) -> Self:
        """Return the same for some of the samples, counting into the same sum."""
        return self.having({name: values[rows.to(values.device)] for name, values in self.rows().items()})

    def joined(self: Self, others: Self) -> Self:
        """Return the same with the samples of another batch behind."""
        theirs = others.rows()
        return self.having({name: torch.cat([values, theirs[name]]) for name, values in self.rows().items()})

    def replace(self, places: Tensor, others: Margins) -> None:
        """Put the samples of another batch in the places of some."""
        theirs = others.rows()
        for name, values in self.rows().items():
            values.index_copy_(0, places.to(values.device), theirs[name])

    def having(self: Self, rows: dict[str, Tensor]) -> Self:
        """Return the same with other rows, some of :meth:`rows` or all."""
        new = copy.copy(self)
        vars(new).update(rows)
        return new

    def evaluate(self, point: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits at a point, the margin towards the target or the leading class, and its usable gradient.

        :raises ValueError: If the logits do not depend on the point.
        """
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            logits = as_float(self.logits_of(point))
            margin = margins(logits, self.labels) if target is None else self.margins_to(target, logits)
            gradient = input_gradient(margin, point)
        self.spent.gradients += len(point)
        return logits.detach(), margin.detach(), self.usable(gradient, point.detach())

    def logits_at(self, point: Tensor) -> Tensor:
        """Return the logits at a point, (N, K), without a gradient."""
        with torch.no_grad():
            return as_float(self.logits_of(point))

    def margins_to(self, target: Tensor, logits: Tensor) -> Tensor:
        """Return z_t - z_y for one class t a sample, (N,), where t is `LEADING` the largest of all such."""
        ahead = differences(logits, self.labels)
        chosen = ahead.gather(1, target.clamp(min=0)[:, None])[:, 0]
        return torch.where(target == LEADING, ahead.amax(1), chosen)

    def finite_between(self, point: Tensor, beyond: Tensor) -> Tensor:
        """Return the points beyond; where the network puts out NaN there, one on the way that was halved until not."""
        for _ in range(HALVINGS):
            lost = self.logits_at(beyond).isnan().any(1)
            if not lost.any():
                break
            beyond = torch.where(per_sample(lost, beyond) > 0, (point + beyond) / 2, beyond)
        return beyond

    def distances(self, points: Tensor, reached: Tensor) -> Tensor:
        """Return how far points are, (N,), computed in float64, and inf where no class was reached."""
        return torch.where(reached, sample_norms(points.double() - self.x.double(), self.r), torch.inf)

    def nearest_classes(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Order the classes with the largest logits by distance to first order, margin over dual norm.

        :return: The class with the largest logit, (N,), the classes in order, (N, count), and their estimates.
        """
        x = self.x.detach().requires_grad_()
        with torch.enable_grad():
            logits = as_float(self.logits_of(x))
            ahead = differences(logits, self.labels)
            classes = ahead.detach().topk(min(count, logits.shape[1] - 1), dim=1).indices
            found = []
            again = getattr(self.logits_of, "differentiable_once", False)
            for column in range(classes.shape[1]):
                if again and column:
                    ahead = differences(as_float(self.logits_of(x)), self.labels)
                margin = ahead.gather(1, classes[:, column : column + 1])[:, 0]
                gradient = self.usable(input_gradient(margin, x, retain_graph=not again), self.x)
                slope = sample_norms(gradient, dual_exponent(self.r))
                found.append(torch.where(slope > 0, -margin.detach() / slope, torch.inf))
        self.spent.gradients += classes.numel()
        estimates, order = torch.stack(found, 1).sort(dim=1, stable=True)
        return classes[:, 0], classes.gather(1, order), estimates

    def excess(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far the leading other class exceeds the label's, (N,), and how far it must to count as certain."""
        own, other = rivals(logits, self.labels)
        return other - own, CERTAIN * torch.maximum(own.abs(), other.abs())

    def usable(self, gradient: Tensor, point: Tensor) -> Tensor:
        """Zero the gradient where the box or the mask holds a coordinate, and where it is not finite."""
        free = movable_coordinates(point, gradient, *self.box)
        if self.mask is not None:
            free &= self.mask
        return gradient.nan_to_num(posinf=0.0, neginf=0.0) * free

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the direction of a step: steepest for l_inf and l_2; l_1 takes l_2's, not one coordinate at a time."""
        return sample_direction(gradient, self.r if math.isinf(self.r) else 2.0)

    def project(self, delta: Tensor, radius: Tensor) -> Tensor:
        """Project perturbations on balls of given radii inside the box."""
        return project_in_box(delta, radius, self.r, self.lower, self.upper)
