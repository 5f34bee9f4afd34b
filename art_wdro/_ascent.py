# SPDX-License-Identifier: MIT
"""The ascent loop of W-PGD and W-FGSM: gradients of all samples, one shared step, one projection.

Steps are the outer loop and batches the inner one, because the budget couples all samples: Upsilon and
D_p belong to the whole data set, and a batch size is a matter of memory alone.

Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, equations (10) and (11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from art_wdro._geometry import (
    allowed_radii,
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
from art_wdro._sensitivity import Objective, Value, clear_unusable

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
    on_gradient: Callable[[int, int, Tensor, Tensor, Tensor], None] | None = None,
) -> Ascent:
    """Ascend the mean loss inside the W_p ball: x <- clip(project(x + alpha T(x))).

    Upsilon, and with it T, is computed anew at every iterate. No value is read back from the device, but with a
    rectified loss the number of samples that need a gradient, at every step.

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
    :param on_gradient: Called with step, batch number, inputs, labels and gradients of each batch.
    :return: The kept iterate, Upsilon at the inputs, and the budget.
    """
    rows = [slice(i, i + batch_size) for i in range(0, len(x), batch_size)]
    current = x.clone()
    best = _Best(x) if keep_best else None
    # h(g) is -1, 0 or 1 for l_inf and l_1, and one byte holds that
    directions = torch.zeros_like(x, dtype=x.dtype if r == 2.0 else torch.int8)
    dual_norms = x.new_empty(len(x), dtype=torch.float64)
    norms = torch.empty_like(dual_norms)
    first_upsilon = x.new_zeros((), dtype=torch.float64)
    eps = torch.zeros_like(first_upsilon) if callable(budget) else torch.full_like(first_upsilon, budget)

    # a listener expects every batch
    evaluation = _Evaluation(objective, labels, rows, sparse=objective.rectified and on_gradient is None)

    for step, relative_step in enumerate(steps):
        dual_norms.zero_()
        for number, (batch, gradient) in enumerate(evaluation.gradients(current)):
            if mask is not None:
                gradient *= mask[batch]
            if on_gradient is not None:
                on_gradient(step, number, current[batch], labels[batch], gradient)
            dual_norms[batch] = clear_unusable(gradient, r)
            # only l_1's direction needs to know what the box lets move
            free = movable_coordinates(current[batch], gradient, *box) if box is not None and r == 1.0 else None
            direction = sample_direction(gradient, r, free)
            directions[batch] = direction.to(directions.dtype)
        if best is not None:
            best.offer(current, evaluation)
        upsilon = power_mean(dual_norms, dual_exponent(p))
        if step == 0:
            first_upsilon = upsilon
            eps = budget(upsilon) if callable(budget) else eps
        lengths = sample_lengths(dual_norms, upsilon, p) * (relative_step * eps)
        for batch in rows:
            delta = current[batch] - x[batch]
            delta += directions[batch] * per_sample(lengths[batch], delta)
            norms[batch] = sample_norms(delta, r)
            current[batch] = delta
        radii = allowed_radii(norms, eps, p)
        for batch in rows:
            moved = displace(x[batch], project_on_balls(current[batch], radii[batch], r))
            current[batch] = moved if box is None else moved.clamp(*box)
        evaluation.moved = (lengths > 0) | (radii < norms)

    if best is None:
        return Ascent(current, first_upsilon, eps)
    evaluation.update(current)
    best.offer(current, evaluation)
    return Ascent(best.x, first_upsilon, eps)


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

    def gradients(self, x: Tensor) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Evaluate an iterate: yield rows and their gradients; rows left out have none."""
        if self._sparse:
            self._update(x, self._chosen(self.moved & ~self.standing))
        for rows in self._chosen(self.standing) if self._sparse else self._batches:
            value, gradient = self._objective.gradient(x[rows], self._labels[rows])
            self._set(rows, value)
            yield rows, gradient

    def update(self, x: Tensor) -> None:
        """Evaluate an iterate without gradients."""
        self._update(x, self._chosen(self.moved) if self._sparse else self._batches)

    def _update(self, x: Tensor, batches: Iterable[slice | Tensor]) -> None:
        for rows in batches:
            self._set(rows, self._objective.value(x[rows], self._labels[rows]))

    def _set(self, rows: slice | Tensor, value: Value) -> None:
        self.losses[rows] = value.losses.double()
        self.standing[rows] = value.standing

    def _chosen(self, which: Tensor) -> list[Tensor]:
        size = self._batches[0].stop
        indices = which.nonzero()[:, 0]
        return [indices[start : start + size] for start in range(0, len(indices), size)]


class _Best:
    """The best whole iterate so far, chosen without a value leaving the device."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.clone()
        self._standing = x.new_full((), torch.inf, dtype=torch.float64)
        self._loss = x.new_full((), -torch.inf, dtype=torch.float64)

    def offer(self, x: Tensor, evaluation: _Evaluation) -> None:
        standing = evaluation.standing.double().mean()
        loss = evaluation.losses.nan_to_num().mean()
        # equal losses to float noise are equal, and the later iterate is kept: else the noise would choose
        as_high = loss >= self._loss - 1e-6 * loss.abs()
        better = (standing < self._standing) | ((standing == self._standing) & as_high)
        self._loss = torch.where(standing < self._standing, loss, torch.maximum(loss, self._loss))
        self._standing = torch.minimum(standing, self._standing)
        torch.where(better, x, self.x, out=self.x)
