# SPDX-License-Identifier: MIT
"""The ascent loop of W-PGD and W-FGSM: gradients of all samples, one shared step, one projection.

Steps are the outer loop and batches the inner one, because the budget couples all samples: Upsilon and
D_p belong to the whole data set, and a batch size is a matter of memory alone.

Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, equations (10) and (11).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_wdro._solvers.batches import Bar, Samples, silent
from art_wdro._solvers.iterate import Best, Iterate
from art_wdro._solvers.objective import Gradient, Objective, Value
from art_wdro._solvers.passes import LogitsOf, Passes
from art_wdro._solvers.resumed import check_iterate
from art_wdro._storage.arrays import Rows, Some, few_sizes, parts, put, staged
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._threat.geometry import sample_lengths
from art_wdro._threat.norms import dual_exponent, power_mean, whole_power_mean
from art_wdro._threat.threat import Threat, as_box
from art_wdro.losses import PerSampleLoss

log = logging.getLogger("art_wdro")
OnGradient = Callable[[int, int, Tensor, Tensor, Tensor], None]
"""Called with step, batch number, inputs, labels and gradients of each batch."""
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, count: 1.0,
    "linear": lambda step, count: 2.0 * (count - step) / (count + 1),
}
"""Length of a step as a multiple of the mean length, by the step's number and their count."""
PATH_LENGTHS = {"constant": 1.875, "linear": 4.0}
"""Total length of the default steps in budgets, by schedule.

Sources: constant from Bai et al., 2023, arXiv:2306.09844, section 6; linear measured, docs/evaluation.md.
"""


def step_lengths(mean: float, count: int, schedule: str = "constant") -> list[float]:
    """Return the lengths of all steps, with the given mean.

    >>> step_lengths(0.5, 3, "linear")
    [0.75, 0.5, 0.25]
    """
    return [mean * SCHEDULES[schedule](step, count) for step in range(count)]


def relative_steps(eps: float, eps_step: float | None, count: int, schedule: str) -> list[float]:
    """Return the lengths of all steps in budgets: none for a budget of 0.

    :param eps: Budget in input units.
    :param eps_step: Mean length in input units; None takes the path's length in `PATH_LENGTHS`.
    :param count: Number of steps.
    :param schedule: A name in `SCHEDULES`.
    """
    if eps == 0 or count == 0:
        return []
    return step_lengths(PATH_LENGTHS[schedule] / count if eps_step is None else eps_step / eps, count, schedule)


def w_pgd(
    logits_of: LogitsOf,
    x: Tensor,
    labels: Tensor,
    *,
    p: float = 2.0,
    r: float = math.inf,
    eps: float,
    steps: int = 20,
    eps_step: float | None = None,
    schedule: str = "constant",
    loss: str | PerSampleLoss = "redlr",
    targeted: bool = False,
    box: tuple[Any, Any] | None = (0.0, 1.0),
    mask: Tensor | None = None,
    batch_size: int = 128,
    keep_best: bool = True,
    checkpoint: Checkpoint | None = None,
    bar: Bar[float] = silent,
    on_gradient: OnGradient | None = None,
) -> Tensor:
    """Attack a whole data set in the ball (mean_i ||x'_i - x_i||_r^p)^(1/p) <= eps: W-PGD, and W-FGSM with one step.

    :param logits_of: Maps inputs (N, ...) to logits (N, K), sample by sample, differentiably.
    :param x: Inputs, (N, ...), inside the box, on the device that computes or on the host.
    :param labels: Class indices, (N,), on the device that computes.
    :param p: Order of the Wasserstein distance, in (1, inf].
    :param r: Exponent of the ground norm: 1, 2 or inf.
    :param eps: Budget in input units.
    :param steps: Number of steps.
    :param eps_step: W_p length of a step in input units, the mean one of a schedule; None takes 1.875 eps / steps
        (schedule "linear": 4 eps / steps).
    :param schedule: "constant" steps, or steps that fall "linear"ly to 0.
    :param loss: "redlr", "dlr", "ce", a torch loss module, or a callable of logits (N, K) and class indices (N,) that
        returns (N,).
    :param targeted: Whether the labels are targets.
    :param box: Lower and upper bounds of the inputs, in input units; None sets none.
    :param mask: Where coordinates may move, boolean, (N, ...); None moves all.
    :param batch_size: Samples in one forward and backward pass.
    :param keep_best: Return the whole iterate with the fewest standing samples, not the last one.
    :param checkpoint: Where to save complete iterates, and to go on from.
    :param bar: Wraps the iteration over steps, for a progress bar.
    :param on_gradient: Is shown the gradients of every batch.
    :return: The attacked inputs, shaped as `x`, where those lie.

    The sample near the border is flipped, and the rest of the budget goes to the other one:

    >>> import torch
    >>> x, labels = torch.tensor([[0.45], [0.1]]), torch.tensor([0, 0])
    >>> logits_of = lambda x: torch.cat([1 - 2 * x, torch.zeros_like(x), torch.full_like(x, -9.0)], 1)
    >>> x_adv = w_pgd(logits_of, x, labels, eps=0.2)
    >>> logits_of(x_adv).argmax(1).tolist(), round((x_adv - x).square().mean().sqrt().item(), 6)
    ([1, 0], 0.2)
    """
    ascent = ascend(
        Objective.of(Passes.of(logits_of), loss, targeted),
        Samples(x, labels, as_box(box, labels.device), mask, batch_size),
        Threat(p, r, as_box(box, labels.device)),
        budget=eps,
        steps=bar(relative_steps(eps, eps_step, steps, schedule)),
        keep_best=keep_best,
        checkpoint=checkpoint,
        on_gradient=on_gradient,
    )
    return ascent.x


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
    samples: Samples,
    threat: Threat,
    *,
    budget: float | Callable[[Tensor], Tensor],
    steps: Iterable[float],
    keep_best: bool,
    checkpoint: Checkpoint | None = None,
    on_gradient: OnGradient | None = None,
) -> Ascent:
    """Ascend the mean loss inside the W_p ball: x <- clip(project(x + alpha T(x))).

    Upsilon, and with it T, is computed anew at every iterate. No value is read back from the device, but with a
    rectified loss two numbers a step: of samples that need a gradient, and of those that need a value.

    At most three arrays of the size of the inputs are held beside them: the current iterate, the best one, and the
    directions, which take a byte a number unless r = 2.

    :param objective: The loss to ascend, per sample.
    :param samples: The whole data set, or this rank's shard of it, perhaps an empty one.
    :param threat: The ball and the box, p in (1, inf].
    :param budget: eps in input units, or a function that finds it from Upsilon at the inputs.
    :param steps: alpha / eps of every step, perhaps behind a progress bar; see :func:`step_lengths`.
    :param keep_best: Keep the whole iterate with the fewest standing samples (then: the highest mean
        loss), the first and the last included; False keeps the last and spares its evaluation. Never
        a pick of iterates per sample, which could overspend.
    :param checkpoint: Where to save complete iterates, and to go on from.
    :param on_gradient: Is shown the gradients of every batch.
    :return: The kept iterate, Upsilon at the inputs, and the budget.
    """
    run = _Run(objective, samples, threat, keep_best, on_gradient)
    run.eps = run.upsilon if callable(budget) else torch.full_like(run.upsilon, budget)
    saved = None if checkpoint is None else checkpoint.load()
    if saved is not None:
        check_iterate(saved, samples, threat.p, threat.r, None if callable(budget) else float(run.eps))
    done = 0 if saved is None else run.set_state(saved)
    for step, relative_step in enumerate(steps):
        if step < done:
            continue
        upsilon = run.look(step)
        if step == 0:
            run.upsilon = upsilon
            run.eps = budget(upsilon) if callable(budget) else run.eps
        run.move(upsilon, relative_step)
        if log.isEnabledFor(logging.DEBUG):
            run.tell(step, upsilon)
        if checkpoint is not None:
            checkpoint.offer(lambda: run.state() | {"steps": step + 1})  # noqa: B023
    return Ascent(run.finish(), run.upsilon, run.eps)


class _Run:
    """One ascent: its iterate, the best one so far, and what it knows of them."""

    def __init__(
        self, objective: Objective, samples: Samples, threat: Threat, keep_best: bool, on_gradient: OnGradient | None
    ) -> None:
        data = samples.rows()
        self.iterate = Iterate(data, threat, samples.batch_size)
        self.best = Best(data) if keep_best else None
        self.upsilon = torch.zeros((), dtype=torch.float64, device=data.device)
        self.eps = self.upsilon
        self._labels, self._movable, self._p = samples.labels, samples.movable(), threat.p
        self._on_gradient = on_gradient
        # a listener expects every batch
        sparse = objective.rectified and on_gradient is None
        if sparse and len(data):
            passes = Passes.of(objective.logits_of)
            passes.sizes = few_sizes(len(data), samples.batch_size)
            objective = replace(objective, logits_of=passes)
        noted = sparse or keep_best or log.isEnabledFor(logging.DEBUG)
        self._sparse = sparse
        self._evaluation = _Evaluation(objective, samples.labels, samples.batch_size, sparse, noted)

    def look(self, step: int) -> Tensor:
        """Take the gradients at the iterate, note their directions, and return Upsilon there."""
        if self._sparse:  # what is left out has none
            self.iterate.slopes.zero_()
        together = self.iterate.at_once and self._on_gradient is None
        for number, (rows, point, gradient) in enumerate(self._evaluation.gradients(self.iterate.x, together)):
            if self._movable is not None:
                gradient *= self._movable[rows]
            if self._on_gradient is not None:
                self._on_gradient(step, number, point, self._labels[rows], gradient)
            self.iterate.take_direction(rows, point, gradient)
        return whole_power_mean(self.iterate.slopes, dual_exponent(self._p))

    def move(self, upsilon: Tensor, relative_step: float) -> None:
        """Compare the iterate with the best one, and leave it by one step."""
        if self.best is not None:
            self.best.compare(self._evaluation.losses, self._evaluation.standing)
        lengths = sample_lengths(self.iterate.slopes, upsilon, self._p) * (relative_step * self.eps)
        self.iterate.step(lengths, self.eps, self.best)
        if self._sparse:
            self._evaluation.moved = self.iterate.moved(lengths)

    def finish(self) -> Tensor:
        """Return the better of the last iterate and the best one before it."""
        kept = self.iterate.x
        if self.best is not None:
            self._evaluation.update(kept)
            self.best.compare(self._evaluation.losses, self._evaluation.standing)
            kept = self.iterate.offer_to(self.best)
        return self.iterate.round_into_ball(kept, self.eps)

    def tell(self, step: int, upsilon: Tensor) -> None:
        """Write a line to the log; D_p and the standing samples are of this process's samples alone."""
        standing, spent = self._evaluation.standing.sum(), power_mean(self.iterate.radii, self._p)
        log.debug("step %d: Upsilon %.6g, D_p %.6g, %d samples standing before it", step, upsilon, spent, standing)

    def state(self) -> dict[str, Any]:
        """Return what the ascent goes on from, as tensors and plain values."""
        best = None if self.best is None else self.best.state()
        figures = {"upsilon": self.upsilon, "eps": self.eps}
        return figures | {"x": self.iterate.x.whole(), "evaluation": self._evaluation.state(), "best": best}

    def set_state(self, saved: dict[str, Any]) -> int:
        """Go on from what :meth:`state` returned, and return how many steps are done."""
        self.upsilon, self.eps = (saved[name].to(self.upsilon) for name in ("upsilon", "eps"))
        self.iterate.x.fill(saved["x"])
        self._evaluation.set_state(saved["evaluation"])
        if self.best is not None:
            self.best.set_state(saved["best"])
        done: int = saved["steps"]
        return done


class _Evaluation:
    """Losses and gradients of the whole data set at one iterate after another.

    A rectified loss is flat where a sample no longer stands: such a sample needs no backward pass, and while it has not
    moved no forward pass either.
    """

    def __init__(self, objective: Objective, labels: Tensor, batch_size: int, sparse: bool, noted: bool) -> None:
        """Begin with all samples standing.

        :param objective: The loss.
        :param labels: Class indices of the whole data set, (N,).
        :param batch_size: Samples in one pass.
        :param sparse: Whether samples that no longer stand are left out.
        :param noted: Whether anybody asks for losses and standing samples.
        """
        self._objective, self._labels = objective, labels
        self._batch_size, self._sparse, self._noted = batch_size, sparse, noted
        self._batches = parts(len(labels), batch_size)
        self.losses = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
        self.standing = torch.ones_like(labels, dtype=torch.bool)
        self.moved = torch.ones_like(self.standing)

    def gradients(self, x: Rows, together: bool) -> Iterator[tuple[Some, Tensor, Tensor]]:
        """Evaluate an iterate: yield rows, their points and gradients; rows left out have none.

        :param x: The iterate.
        :param together: Whether to yield all batches as one, which takes fewer launches.
        """
        chosen: Sequence[Some] = self._batches
        if self._sparse:
            self._update(x, self._chosen(self.moved & ~self.standing))
            chosen = self._chosen(self.standing)
            if isinstance(self._objective.logits_of, Passes):
                self._objective.logits_of.done_with(len(self._labels) - sum(map(len, chosen)))
        passes: Iterable[tuple[Some, Tensor, Gradient]] = (
            (rows, point, self._objective.gradient(point, self._labels[rows])) for rows, point in staged(chosen, x)
        )
        for rows, point, found in [_joined([*passes])] if together and len(chosen) > 1 else passes:
            if self._noted:
                self._set(rows, Value(found.losses, self._objective.standing(found.logits, self._labels[rows])))
            yield rows, point, found.gradient

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
        self.losses = put(self.losses, rows, value.losses.double())
        self.standing = put(self.standing, rows, value.standing)

    def _chosen(self, which: Tensor) -> list[Tensor]:
        indices = which.nonzero()[:, 0]
        return [indices[part] for part in parts(len(indices), self._batch_size)]


def _joined(passes: Sequence[tuple[Some, Tensor, Gradient]]) -> tuple[Some, Tensor, Gradient]:
    """Return batches that follow one another as one."""
    rows, points, found = zip(*passes, strict=True)
    whole = slice(rows[0].start, rows[-1].stop) if all(isinstance(some, slice) for some in rows) else torch.cat(rows)
    return whole, torch.cat(points), Gradient(*(torch.cat(parts) for parts in zip(*found, strict=True)))
