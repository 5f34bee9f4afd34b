# SPDX-License-Identifier: MIT
"""The ascent loop of W-PGD and W-FGSM: gradients of all samples, one shared step, one projection.

Steps are the outer loop and batches the inner one, because the budget couples all samples: Upsilon and
D_p belong to the whole data set, and a batch size is a matter of memory alone.

Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, equations (10) and (11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._geometry import (
    allowed_radii,
    clip,
    displace,
    dual_exponent,
    movable_coordinates,
    per_sample,
    power_mean,
    project_on_balls,
    sample_direction,
    sample_lengths,
    sample_norms,
)
from art_wdro._rows import Rows, Some, parts, staged
from art_wdro._sensitivity import Objective, Value, dual_norms

Box = tuple[Tensor, Tensor]
"""Lower and upper bounds of the inputs, broadcastable to one sample."""


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, count: 1.0,
    "linear": lambda step, count: 2.0 * (count - step) / (count + 1),
}
"""Length of a step as a multiple of the mean length, by the step's number and their count."""


def step_lengths(mean: float, count: int, schedule: str = "constant") -> list[float]:
    """Return the lengths of all steps, with the given mean.

    >>> step_lengths(0.5, 3, "linear")
    [0.75, 0.5, 0.25]
    """
    return [mean * SCHEDULES[schedule](step, count) for step in range(count)]


class Ascent(NamedTuple):
    """The result of an ascent.

    :param x: The kept iterate, shaped as the inputs; D_p to the inputs is at most `budget`.
    :param upsilon: Upsilon at the inputs, a scalar tensor.
    :param budget: The budget eps that was given or computed, a scalar tensor.
    """

    x: Tensor
    upsilon: Tensor
    budget: Tensor


def ascend(
    objective: Objective,
    x: Tensor,
    labels: Tensor,
    *,
    p: float,
    r: float,
    budget: float | Callable[[Tensor], Tensor],
    steps: Iterable[float],
    box: Box | None = None,
    mask: Tensor | None = None,
    batch_size: int,
    keep_best: bool,
    device: torch.device | None = None,
    on_gradient: Callable[[int, int, Tensor, Tensor, Tensor], None] | None = None,
) -> Ascent:
    """Ascend the mean loss inside the W_p ball: x <- clip(project(x + alpha T(x))).

    Upsilon, and with it T, is computed anew at every iterate. No value is read back from the device, but with a
    rectified loss two numbers a step: of samples that need a gradient, and of those that need a value.

    At most three arrays of the size of `x` are held beside it: the current iterate, the best one, and the directions,
    which take a byte a number unless r = 2.

    :param objective: The loss to ascend, per sample.
    :param x: Inputs of the whole data set, (N, ...), inside the box.
    :param labels: Class indices, (N,).
    :param p: Order of the Wasserstein distance, in (1, inf].
    :param r: Exponent of the ground norm.
    :param budget: eps in input units, or a function that finds it from Upsilon at the inputs.
    :param steps: alpha / eps of every step, perhaps behind a progress bar; see :func:`step_lengths`.
    :param box: Bounds of the inputs, or None.
    :param mask: Where coordinates may move, boolean, (N, ...); None moves all.
    :param batch_size: Samples in one forward and backward pass.
    :param keep_best: Keep the whole iterate with the fewest standing samples (then: the highest mean
        loss), the first and the last included; False keeps the last and spares its evaluation. Never
        a pick of iterates per sample, which could overspend.
    :param device: The device that computes; None is that of `x`. Labels, mask and box lie there; `x` may lie on the
        host, and then so does the result.
    :param on_gradient: Called with step, batch number, inputs, labels and gradients of each batch.
    :return: The kept iterate, Upsilon at the inputs, and the budget.
    """
    data = Rows(x, device or x.device)
    batches = parts(len(data), batch_size)
    chunks = parts(len(data), data.at_once(batch_size))
    movable = None if mask is None else Rows(mask, data.device)
    current = data.clone()
    best = _Best(data) if keep_best else None
    # h(g) is -1, 0 or 1 for l_inf and l_1, and one byte holds that
    directions = data.like(x.dtype if r == 2.0 else torch.int8)
    slopes = torch.zeros(len(data), dtype=torch.float64, device=data.device)
    norms = torch.empty_like(slopes)
    first_upsilon = slopes.new_zeros(())
    eps = torch.zeros_like(first_upsilon) if callable(budget) else torch.full_like(first_upsilon, budget)

    # a listener expects every batch
    evaluation = _Evaluation(objective, labels, batches, sparse=objective.rectified and on_gradient is None)

    for step, relative_step in enumerate(steps):
        slopes.zero_()
        for number, (rows, point, gradient) in enumerate(evaluation.gradients(current)):
            if movable is not None:
                gradient *= movable[rows]
            if on_gradient is not None:
                on_gradient(step, number, point, labels[rows], gradient)
            slopes[rows] = dual_norms(gradient, r)
            # only l_1's direction needs to know what the box lets move
            free = movable_coordinates(point, gradient, *box) if box is not None and r == 1.0 else None
            direction = sample_direction(gradient, r, free)
            # a length of 0 cancels any byte, but not NaN
            directions[rows] = direction.nan_to_num_(0.0, 0.0, 0.0) if r == 2.0 else direction
        upsilon = power_mean(slopes, dual_exponent(p))
        if step == 0:
            first_upsilon = upsilon
            eps = budget(upsilon) if callable(budget) else eps
        lengths = sample_lengths(slopes, upsilon, p) * (relative_step * eps)
        if best is not None:
            best.compare(evaluation)
        for rows, point, origin, direction in staged(chunks, current, data, directions):
            if best is not None:
                best.offer(rows, point)
            delta = point - origin
            delta += direction * per_sample(lengths[rows], delta)
            norms[rows] = sample_norms(delta, r)
            current[rows] = delta
        radii = allowed_radii(norms, eps, p)
        for rows, delta, origin in staged(chunks, current, data):
            moved = origin + project_on_balls(delta, radii[rows], r)
            current[rows] = moved if box is None else clip(moved, *box)
        evaluation.moved = (lengths > 0) | (radii < norms)

    if best is not None:
        evaluation.update(current)
        best.compare(evaluation)
        for rows, point in staged(chunks, current):
            best.offer(rows, point)
        current = best.x
    _round_into_ball(current, data, chunks, eps, p, r, box)
    return Ascent(current.whole(), first_upsilon, eps)


def _round_into_ball(
    points: Rows, data: Rows, chunks: list[slice], eps: Tensor, p: float, r: float, box: Box | None
) -> None:
    """Project once more, in place: rounding x + delta to nearest may have taken an iterate out of the ball."""
    norms = torch.empty(len(data), dtype=torch.float64, device=data.device)
    for rows, point, origin in staged(chunks, points, data):
        norms[rows] = sample_norms(point - origin, r)
    radii = allowed_radii(norms, eps, p)
    for rows, point, origin in staged(chunks, points, data):
        moved = displace(origin, project_on_balls(point - origin, radii[rows], r))
        points[rows] = moved if box is None else clip(moved, *box)


class _Evaluation:
    """Losses and gradients of the whole data set at one iterate after another.

    A rectified loss is flat where a sample no longer stands: such a sample needs no backward pass, and while it has not
    moved no forward pass either.
    """

    def __init__(self, objective: Objective, labels: Tensor, batches: list[slice], sparse: bool) -> None:
        self._objective, self._labels, self._batches, self._sparse = objective, labels, batches, sparse
        self.losses = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
        self.standing = torch.ones_like(labels, dtype=torch.bool)
        self.moved = torch.ones_like(self.standing)

    def gradients(self, x: Rows) -> Iterator[tuple[Some, Tensor, Tensor]]:
        """Evaluate an iterate: yield rows, their points and gradients; rows left out have none."""
        if self._sparse:
            self._update(x, self._chosen(self.moved & ~self.standing))
        for rows, point in staged(self._chosen(self.standing) if self._sparse else self._batches, x):
            value, gradient = self._objective.gradient(point, self._labels[rows])
            self._set(rows, value)
            yield rows, point, gradient

    def update(self, x: Rows) -> None:
        """Evaluate an iterate without gradients."""
        self._update(x, self._chosen(self.moved) if self._sparse else self._batches)

    def _update(self, x: Rows, chosen: Sequence[Some]) -> None:
        for rows, point in staged(chosen, x):
            self._set(rows, self._objective.value(point, self._labels[rows]))

    def _set(self, rows: Some, value: Value) -> None:
        self.losses[rows] = value.losses.double()
        self.standing[rows] = value.standing

    def _chosen(self, which: Tensor) -> list[Tensor]:
        size = self._batches[0].stop
        indices = which.nonzero()[:, 0]
        return [indices[part] for part in parts(len(indices), size)]


class _Best:
    """The best whole iterate so far, chosen without a value leaving the device."""

    def __init__(self, x: Rows) -> None:
        self.x = x.clone()
        self._standing = torch.full((), torch.inf, dtype=torch.float64, device=x.device)
        self._loss = -self._standing
        self._better = torch.zeros((), device=x.device)

    def compare(self, evaluation: _Evaluation) -> None:
        """Decide whether an iterate is better than the kept one."""
        standing = evaluation.standing.double().mean()
        loss = evaluation.losses.nan_to_num().mean()
        # equal losses to float noise are equal, and the later iterate is kept: else the noise would choose
        as_high = loss >= self._loss - 1e-6 * loss.abs()
        self._better = ((standing < self._standing) | ((standing == self._standing) & as_high)).float()
        self._loss = torch.where(standing < self._standing, loss, torch.maximum(loss, self._loss))
        self._standing = torch.minimum(standing, self._standing)

    def offer(self, rows: slice, x: Tensor) -> None:
        """Keep rows of the compared iterate if it is better."""
        self.x.take(rows, x, self._better)
