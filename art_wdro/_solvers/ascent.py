# SPDX-License-Identifier: MIT
"""The ascent loop of W-PGD and W-FGSM: gradients of all samples, one shared step, one projection.

Steps are the outer loop and batches the inner one, because the budget couples all samples: Upsilon and
D_p belong to the whole data set, and a batch size is a matter of memory alone.

Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, equations (10) and (11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_wdro._ranks import Gather, alone
from art_wdro._solvers.iterate import Best, Iterate
from art_wdro._solvers.objective import Objective, Value
from art_wdro._storage.arrays import Rows, Some, parts, staged
from art_wdro._storage.checkpoint import Progress
from art_wdro._threat.geometry import sample_lengths
from art_wdro._threat.norms import dual_exponent, power_mean
from art_wdro._threat.threat import Box, Threat

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
    gather: Gather = alone,
    progress: Progress | None = None,
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
    :param gather: Gathers numbers where `x` is a shard of the data set, perhaps an empty one.
    :param progress: Where to save complete iterates, and to go on from.
    :param on_gradient: Called with step, batch number, inputs, labels and gradients of each batch.
    :return: The kept iterate, Upsilon at the inputs, and the budget.
    """
    data = Rows(x, device or x.device).pinned()
    movable = None if mask is None else Rows(mask, data.device).pinned()
    iterate = Iterate(data, Threat(p, r, box, gather), batch_size)
    best = Best(data, gather) if keep_best else None
    # a listener expects every batch
    evaluation = _Evaluation(objective, labels, batch_size, sparse=objective.rectified and on_gradient is None)
    first_upsilon = torch.zeros((), dtype=torch.float64, device=data.device)
    eps = first_upsilon if callable(budget) else torch.full_like(first_upsilon, budget)
    done = 0

    saved = None if progress is None else progress.load()
    if saved is not None:
        done, first_upsilon, eps = saved["steps"], saved["upsilon"].to(eps), saved["eps"].to(eps)
        iterate.x.fill(saved["x"])
        evaluation.set_state(saved["evaluation"])
        if best is not None:
            best.set_state(saved["best"])

    def state() -> dict[str, Any]:
        kept = None if best is None else best.state()
        figures = {"steps": step + 1, "upsilon": first_upsilon, "eps": eps}
        return figures | {"x": iterate.x.whole(), "evaluation": evaluation.state(), "best": kept}

    for step, relative_step in enumerate(steps):
        if step < done:
            continue
        iterate.slopes.zero_()
        for number, (rows, point, gradient) in enumerate(evaluation.gradients(iterate.x)):
            if movable is not None:
                gradient *= movable[rows]
            if on_gradient is not None:
                on_gradient(step, number, point, labels[rows], gradient)
            iterate.take_direction(rows, point, gradient)
        upsilon = power_mean(iterate.slopes, dual_exponent(p), gather=gather)
        if step == 0:
            first_upsilon = upsilon
            eps = budget(upsilon) if callable(budget) else eps
        if best is not None:
            best.compare(evaluation.losses, evaluation.standing)
        lengths = sample_lengths(iterate.slopes, upsilon, p) * (relative_step * eps)
        evaluation.moved = iterate.step(lengths, eps, best)
        if progress is not None:
            progress.offer(state)

    kept = iterate.x
    if best is not None:
        evaluation.update(kept)
        best.compare(evaluation.losses, evaluation.standing)
        kept = iterate.offer_to(best)
    return Ascent(iterate.round_into_ball(kept, eps), first_upsilon, eps)


class _Evaluation:
    """Losses and gradients of the whole data set at one iterate after another.

    A rectified loss is flat where a sample no longer stands: such a sample needs no backward pass, and while it has not
    moved no forward pass either.
    """

    def __init__(self, objective: Objective, labels: Tensor, batch_size: int, sparse: bool) -> None:
        self._objective, self._labels = objective, labels
        self._batch_size, self._sparse = batch_size, sparse
        self._batches = parts(len(labels), batch_size)
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

    def state(self) -> dict[str, Tensor]:
        """Return what is known of the last iterate evaluated, and which samples moved since."""
        return {"losses": self.losses, "standing": self.standing, "moved": self.moved}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` returned."""
        for name, values in state.items():
            setattr(self, name, values.to(self.losses.device))

    def _update(self, x: Rows, chosen: Sequence[Some]) -> None:
        for rows, point in staged(chosen, x):
            self._set(rows, self._objective.value(point, self._labels[rows]))

    def _set(self, rows: Some, value: Value) -> None:
        self.losses[rows] = value.losses.double()
        self.standing[rows] = value.standing

    def _chosen(self, which: Tensor) -> list[Tensor]:
        indices = which.nonzero()[:, 0]
        return [indices[part] for part in parts(len(indices), self._batch_size)]
