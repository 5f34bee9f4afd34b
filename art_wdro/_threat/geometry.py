# SPDX-License-Identifier: MIT
"""Geometry of the threat model (W_p, l_r): steepest direction, projection, budgets of samples.

Everything here is a function of tensors alone. A perturbation `delta` has shape (N, ...): one row a sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from art_wdro._threat.norms import dual_exponent, per_sample, power_mean, sample_norms, whole_power_mean

GROUND_NORMS: tuple[float, ...] = (1.0, 2.0, math.inf)
"""The ground norms l_r for which a direction and a projection exist below."""
SIGN_NORMS = (1.0, math.inf)
"""Those whose steepest direction is made of -1, 0 and 1."""
BISECTIONS = 24
"""Halvings of an interval until its float32 numbers are exhausted, and most steps in place of them."""
STEPS = 24
"""Most steps towards the scale of a projection in a box; every one leaves a point that is inside the ball."""
QUEUED = 4
"""Those of them that are taken where nobody asks whether fewer are enough."""
LEAST = 1e-300
"""What a length is divided by at least, so that 0 / 0 is 0: less than any in float32, and no quotient overflows."""
FULL = 1e-6
"""Distance from its bound, in widths of the box, within which a coordinate is full: it may be float32 noise."""


def movable_coordinates(x: Tensor, gradient: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Tell where a step along the gradient stays inside the box, boolean, shaped as `x`.

    A coordinate within float noise of its bound is full, or the noise would decide where the step goes.

    :param x: Points in the box, (N, ...).
    :param gradient: Gradients, same shape.
    :param lower: Lower bounds, broadcastable to `x`; -inf for none.
    :param upper: Upper bounds, broadcastable to `x`; inf for none.
    """
    slack = ((upper - lower) * FULL).nan_to_num(posinf=0.0)
    return ((gradient > 0) & (x < upper - slack)) | ((gradient < 0) & (x > lower + slack))


def sample_direction(gradient: Tensor, r: float, movable: Tensor | None = None) -> Tensor:
    """Compute h(g_i) = argmax of <h, g_i> over ||h||_r <= 1, for every sample.

    <h(g), g> = ||g||_s with s dual to r (the equality case of Hoelder's inequality). A zero gradient
    has the direction zero.

    :param gradient: Gradients g, (N, ...).
    :param r: Exponent of the ground norm.
    :param movable: Where a coordinate can still move inside the box, boolean, same shape. Only l_1
        reads it: there the whole step goes to one coordinate, which would be lost on a full one.
    :return: Directions, same shape and dtype as `gradient`.
    """
    if math.isinf(r):
        return gradient.sign()
    flat = gradient.flatten(1)
    if r == 2.0:
        # the squares of a tiny gradient would underflow in float32
        norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True, dtype=torch.float64).to(flat.dtype)
        return (flat / torch.where(norms > 0, norms, 1.0)).view_as(gradient)
    if r == 1.0:
        size = flat.abs() if movable is None else flat.abs() * movable.flatten(1)
        steepest = size.argmax(dim=1, keepdim=True)
        step = flat.gather(1, steepest).sign() * (size.gather(1, steepest) > 0)
        return torch.zeros_like(flat).scatter_(1, steepest, step).view_as(gradient)
    raise NotImplementedError(f"no steepest direction for the ground norm l_{r}")


def sample_lengths(dual_norms: Tensor, sensitivity: Tensor, p: float) -> Tensor:
    """Compute (||g_i||_s / Upsilon)^(q-1), how far each sample moves in a step of unit W_p length.

    Samples with zero gradient get 0, for p = inf too.

    :param dual_norms: ||g_i||_s, (N,).
    :param sensitivity: Upsilon, a scalar tensor.
    :param p: Order of the Wasserstein distance, in (1, inf]; q is its dual.
    :return: Lengths in units of the step, (N,).

    Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, section 5.
    """
    if math.isinf(p):
        return (dual_norms > 0).to(dual_norms.dtype)
    ratio = dual_norms / sensitivity.clamp(min=LEAST)
    return ratio if p == 2.0 else ratio.pow(dual_exponent(p) - 1.0)


def steepest_direction(gradient: Tensor, p: float, r: float) -> Tensor:
    """Compute T, the direction of unit D_p along which mean_i <g_i, T_i> is largest.

    T_i = h(g_i) (||g_i||_s / Upsilon)^(q-1), and the largest value is Upsilon.

    :param gradient: Gradients of the whole data set, (N, ...).
    :param p: Order of the Wasserstein distance, in (1, inf].
    :param r: Exponent of the ground norm.
    :return: T, same shape and dtype as `gradient`.

    Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, Theorem 4.1.
    """
    dual_norms = sample_norms(gradient, dual_exponent(r))
    upsilon = power_mean(dual_norms, dual_exponent(p))
    lengths = per_sample(sample_lengths(dual_norms, upsilon, p), gradient)
    return sample_direction(gradient, r) * lengths


def allowed_radii(norms: Tensor, eps: Tensor | float, p: float) -> Tensor:
    """Compute the radius of each sample's ball in the projection on the W_p ball.

    p = inf: min(||delta_i||, eps); otherwise rho ||delta_i|| with rho = min(1, eps / D_p).

    D_p is that of the whole data set, of which the samples may be a shard.

    :param norms: ||delta_i||_r of the samples, (N,).
    :param eps: Budget in input units.
    :param p: Order of the Wasserstein distance.
    :return: Radii, (N,).
    """
    if math.isinf(p):
        return norms.clamp(max=eps)
    return norms * (eps / whole_power_mean(norms, p).clamp(min=LEAST)).clamp(max=1.0)


def project_on_balls(delta: Tensor, radii: Tensor, r: float) -> Tensor:
    """Project each delta_i on its own l_r ball: argmin ||z - delta_i||_2 with ||z||_r <= radii_i.

    :param delta: Perturbations, (N, ...).
    :param radii: Radii in input units, (N,).
    :param r: Exponent of the ground norm.
    :return: Projected perturbations, same shape. A point inside its ball stays as it is.

    Source for l_1: Duchi et al., Efficient projections onto the l_1-ball, ICML 2008, figure 1.
    """
    if math.isinf(r):
        bound = per_sample(radii, delta)
        return clip(delta, -bound, bound)
    flat = delta.flatten(1)
    norms = sample_norms(flat, r)
    inside = norms <= radii
    if r == 2.0:
        scale = torch.where(inside, 1.0, radii / torch.where(inside, 1.0, norms))
        return (flat * per_sample(scale, flat)).view_as(delta)
    if r == 1.0:
        size = flat.abs().double()
        descending = size.sort(dim=1, descending=True).values
        excess = descending.cumsum(1) - radii[:, None]
        count = torch.arange(1, size.shape[1] + 1, device=size.device)
        active = (descending * count > excess).sum(1, keepdim=True).clamp(min=1)
        threshold = excess.gather(1, active - 1) / active
        left = (size - threshold).clamp(min=0.0)
        # where the ball is tiny beside delta, the difference has lost the digits that tell it from the radius
        total = left.sum(1)
        left *= torch.where(total > radii, radii / torch.where(total > 0, total, 1.0), 1.0)[:, None]
        return torch.where(inside[:, None], flat, (flat.sign() * left).to(flat.dtype)).view_as(delta)
    raise NotImplementedError(f"no projection on a ball of the ground norm l_{r}")


def project_in_box(delta: Tensor, radii: Tensor, r: float, lower: Tensor, upper: Tensor) -> Tensor:
    """Project each delta_i on its ball inside a box: argmin ||z - delta_i||_2.

    The minimum is over ||z||_r <= radii_i and lower <= z <= upper.

    Clipping after :func:`project_on_balls` would leave a part of the radius unused. The solution is
    clip(shrink(delta_i)), where shrink scales (l_2) or lowers all sizes (l_1) by one number.

    :param delta: Perturbations, (N, ...).
    :param radii: Radii in input units, (N,).
    :param r: Exponent of the ground norm.
    :param lower: Least allowed perturbations, at most 0, shaped as `delta`.
    :param upper: Largest allowed perturbations, at least 0, shaped as `delta`.
    :return: Projected perturbations, same shape, in their ball to a relative 1e-6.
    """
    if math.isinf(r):
        return clip(project_on_balls(delta, radii, r), lower, upper)
    size, room = delta.abs(), torch.where(delta > 0, upper, -lower)
    # a GPU has its next operations queued, and would wait for the answer whether fewer are enough
    asks = size.device.type == "cpu"
    if r == 2.0:
        return _scaled(size, room, radii, asks).copysign(delta)
    if r == 1.0:
        return _lowered(size, room, radii, asks).copysign(delta)
    raise NotImplementedError(f"no projection in a box for the ground norm l_{r}")


def _scaled(size: Tensor, room: Tensor, radii: Tensor, asks: bool) -> Tensor:
    """Return min(c_i size_i, room_i) with the c_i <= 1 that makes its length the radius, or 1 where that is shorter.

    Where a number c leaves it too short, the coordinates that reach their room at c stay there, and the others alone
    take up the rest of the radius: c grows so until no further coordinate reaches its room, in three or four steps.
    """
    room = torch.minimum(size, room)  # more is never needed, and 0 times an infinite one would be NaN
    inside = sample_norms(room, 2.0) <= radii
    square, factor = radii.square(), (radii / sample_norms(size, 2.0).clamp(min=LEAST)).clamp(max=1.0)
    for _ in range(STEPS if asks else QUEUED):
        # 1 or 0: booleans and selecting by them take four to ten times as long on a CPU
        full = (size * per_sample(factor, size)).ge_(room)
        rest = (square - sample_norms(room * full, 2.0).square()).clamp(min=0.0).sqrt()
        free = sample_norms(size.addcmul(size, full, value=-1.0), 2.0)
        before, factor = factor, torch.maximum(factor, (rest / free.clamp(min=LEAST)).clamp(max=1.0))
        if asks and bool((inside | (factor <= before)).all()):
            break
    return torch.minimum(size * per_sample(torch.where(inside, 1.0, factor), size), room)


def _lowered(size: Tensor, room: Tensor, radii: Tensor, asks: bool) -> Tensor:
    """Return min(size_i - c_i, room_i), at least 0, with the c_i that makes its sum the radius, or 0 if it is less.

    The sum falls in c along straight pieces. Where every step asks whether all is done, c goes on along the piece at
    hand, by Newton's rule, and four to ten steps are taken. Where that would leave the interval that c is known to lie
    in, and where nothing is asked, the interval is halved. A factor near 1 makes up for the rounding of c.
    """
    rounding, nothing = 2 * torch.finfo(size.dtype).eps, size.new_zeros(())
    keeps = by = torch.zeros_like(radii)
    fits = sample_norms(size, math.inf)
    for _ in range(1 + BISECTIONS):
        left = size - per_sample(by, size)
        lowered = clip(left, nothing, room)
        total = lowered.flatten(1).sum(1)
        fit = total <= radii
        keeps, fits = torch.where(fit, keeps, by), torch.where(fit, by, fits)
        middle = (keeps + fits) / 2
        if asks:
            # how many coordinates move with c
            moving, excess = left.eq_(lowered).flatten(1).sum(1), total - radii
            if bool(((fits <= keeps) | (excess.abs() <= rounding * (radii + moving * by))).all()):
                break
            newton = by + excess / moving
            middle = torch.where(newton.clamp(keeps, fits) == newton, newton, middle)
        by = middle
    return lowered * per_sample((radii / total.double().clamp(min=LEAST)).clamp(max=1.0), lowered)


def project(delta: Tensor, eps: Tensor | float, p: float, r: float) -> Tensor:
    """Shrink a perturbation into the W_p ball: D_p of the result is at most eps.

    :param delta: Perturbations of the whole data set, (N, ...).
    :param eps: Budget in input units.
    :param p: Order of the Wasserstein distance, in [1, inf].
    :param r: Exponent of the ground norm.
    :return: The perturbation itself where it is feasible, otherwise its rows projected on balls of
        radius rho ||delta_i||_r (p = inf: of radius eps).
    """
    return project_on_balls(delta, allowed_radii(sample_norms(delta, r), eps, p), r)


def displace(x: Tensor, delta: Tensor) -> Tensor:
    """Compute x + delta rounded towards x, so that no coordinate moves further than delta says.

    Rounding to nearest would let |x + delta - x| exceed |delta| by half a unit in the last place of
    x, which is more than a budget's share when the budget is small.

    :param x: Inputs, (N, ...).
    :param delta: Perturbations, same shape.
    :return: Displaced inputs, same shape.
    """
    moved = x + delta
    # 1 where it overshot, else 0; comparing and selecting would take twice as long
    overshot = (moved - x).abs_().sub_(delta.abs()).sign_().clamp_(min=0.0)
    return moved.lerp_(torch.nextafter(moved, x), overshot)


def clip(values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Clip to bounds that broadcast: what `clamp` does, which on a CPU takes five times as long with such bounds."""
    if values.is_cuda:
        return values.clamp(lower, upper)
    return torch.minimum(torch.maximum(values, lower), upper)
