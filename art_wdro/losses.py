# SPDX-License-Identifier: MIT
"""Losses that an attack ascends: per-sample functions, and torch modules over them.

`cross_entropy`, `dlr` and `redlr` take logits (N, K) and class indices (N,) and return (N,).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]

ADDS_UP = 1e-4
"""How far from 1 the sum of a row of probabilities may be."""

DENOMINATOR_FLOOR = 1e-6
"""Floor of z_(1) - z_(3): a near-tie must not blow one sample's gradient up into the whole budget."""


def predicted(logits: Tensor) -> Tensor:
    """Return the class with the largest logit, (N,); -1, which is no class, where a logit is NaN."""
    return logits.argmax(1).masked_fill(logits.isnan().any(1), -1)


def rivals(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logit of the label and the largest one of another class, z_y and max_{j != y} z_j, (N,) each."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own, logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute max_{j != y} z_j - z_y, (N,): above 0 where another class wins."""
    own, other = rivals(logits, labels)
    return other - own


def differences(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute z_j - z_y for every class j, (N, K), and -inf at the label itself."""
    own = logits.gather(1, labels[:, None])
    return (logits - own).scatter(1, labels[:, None], -torch.inf)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy of every sample."""
    return F.cross_entropy(logits, labels, reduction="none")


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the difference of logits ratio -(z_y - max_{j != y} z_j) / (z_(1) - z_(3)).

    Two classes have no third logit; there the ratio's denominator is 1 and the loss is the margin.

    :param logits: Logits, (N, K), K >= 2.
    :param labels: Class indices, (N,).
    :return: Losses, (N,), without a unit.

    >>> dlr(torch.tensor([[4.0, 1.0, 0.0], [4.0, 1.0, 0.0]]), torch.tensor([0, 1])).tolist()
    [-0.75, 0.75]

    Source: Croce, Hein, 2020, arXiv:2003.01690, equation (6).
    """
    return _ratio(logits, labels, rectified=False)


def redlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the rectified DLR: min(DLR, 0), zero (and flat) once a sample is misclassified.

    A tie counts as misclassified. An attacker with a shared budget saves it on such samples.

    :param logits: Logits, (N, K), K >= 2.
    :param labels: Class indices, (N,).
    :return: Losses, (N,), without a unit.

    >>> redlr(torch.tensor([[4.0, 1.0, 0.0], [4.0, 1.0, 0.0]]), torch.tensor([0, 1])).tolist()
    [-0.75, 0.0]

    Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, section 5.
    """
    return _ratio(logits, labels, rectified=True)


def dlr_towards_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute (z_t - max_{j != t} z_j) / (z_(1) - (z_(3) + z_(4)) / 2), which rises towards the target t.

    DLR itself would stand still at 1 while the target is third. Under four classes the denominator is 1.

    Source: Croce, Hein, 2020, arXiv:2003.01690, equation (7), with the best other class in place of the true one.
    """
    gain = -margins(logits, labels)
    if logits.shape[1] < 4:
        return gain
    top = logits.topk(4, dim=1).values
    return gain / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp(min=DENOMINATOR_FLOOR)


def redlr_towards_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the minimum of 0 and :func:`dlr_towards_target`: flat once the target class wins.

    Minimising ReDLR itself towards a target would be flat wherever the target does not win yet, which
    is everywhere the attack has work to do; the rectification belongs on the other side.
    """
    gain = dlr_towards_target(logits, labels)
    return torch.where(gain < 0, gain, 0.0)


def _ratio(logits: Tensor, labels: Tensor, rectified: bool) -> Tensor:
    """Compute DLR or ReDLR, which under three classes is the margin."""
    if logits.shape[1] < 3:
        gap = margins(logits, labels)
        return torch.where(gap < 0, gap, 0.0) if rectified else gap
    # torch's compiler makes a few launches of either, and does not trace a function with a `jvp` of its own
    if torch.compiler.is_compiling() or not (logits.requires_grad and torch.is_grad_enabled()):
        return _parts(logits, labels, rectified).loss
    found: Tensor = _Ratio.apply(logits, labels, rectified)[0]
    return found


class _Parts(NamedTuple):
    """A ratio (z_rival - z_y) / (z_(1) - z_(3)) and what its gradient is made of.

    :param loss: The ratio, (N,).
    :param slope: Its derivative by z_rival, (N,).
    :param by_spread: Its derivative by z_(3), (N,).
    :param pair: The rival and the label, (N, 2).
    :param ends: The first and the third class, (N, 2).
    """

    loss: Tensor
    slope: Tensor
    by_spread: Tensor
    pair: Tensor
    ends: Tensor


def _parts(logits: Tensor, labels: Tensor, rectified: bool) -> _Parts:
    """Compute the ratio of at least three classes in operations that torch differentiates."""
    values, classes = logits.topk(3, dim=1)
    own, first = logits.gather(1, labels[:, None])[:, 0], classes[:, 0] == labels
    other, rival = (torch.where(first, top[:, 1], top[:, 0]) for top in (values, classes))
    spread = values[:, 0] - values[:, 2]
    divisor = spread.clamp(min=DENOMINATOR_FLOOR)
    loss, slope = (other - own) / divisor, divisor.reciprocal()
    if rectified:
        below = loss < 0
        loss, slope = torch.where(below, loss, 0.0), slope * below
    by_spread = slope * loss * (spread >= DENOMINATOR_FLOOR)
    return _Parts(loss, slope, by_spread, torch.stack([rival, labels], 1), classes[:, ::2])


class _Ratio(torch.autograd.Function):
    """The ratio with its gradient in closed form, which takes a third of the launches of automatic differentiation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, labels: Tensor, rectified: bool) -> tuple[Tensor, ...]:
        return tuple(_parts(logits, labels, rectified))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, labels, ctx.rectified = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(logits, labels, *output)
        ctx.save_for_forward(*output)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *rest: None) -> tuple[Tensor | None, ...]:
        parts = _Parts(*ctx.saved_tensors)
        pair, ends = tangent.gather(1, parts.pair), tangent.gather(1, parts.ends)
        gained = (pair[:, 0] - pair[:, 1]) * parts.slope - (ends[:, 0] - ends[:, 1]) * parts.by_spread
        return gained, None, None, None, None

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, *known = ctx.saved_tensors
        # with gradients on, somebody will differentiate this one
        parts = _parts(logits, labels, ctx.rectified) if torch.is_grad_enabled() else _Parts(*known)
        by_gap, by_spread = gradients[0] * parts.slope, gradients[0] * parts.by_spread
        # one after the other, as no class comes twice in a pair: on a GPU the order of sums would be left to chance
        gradient = torch.zeros_like(logits).scatter(1, parts.pair, torch.stack([by_gap, -by_gap], 1))
        return gradient.scatter_add(1, parts.ends, torch.stack([-by_spread, by_spread], 1)), None, None


def class_indices(labels: Tensor, nb_classes: int) -> Tensor:
    """Read labels as class indices.

    :param labels: Indices (N,) or (N, 1), or one-hot rows (N, K), of any integer or float dtype.
    :param nb_classes: K.
    :return: Indices, (N,), int64.
    :raises ValueError: If the shape is none of these.
    """
    if labels.dim() == 2 and labels.shape[1] == nb_classes and nb_classes > 1:
        return labels.to(torch.uint8 if labels.dtype == torch.bool else labels.dtype).argmax(dim=1)
    if labels.dim() == 1 or (labels.dim() == 2 and labels.shape[1] == 1):
        return labels.reshape(-1).long()
    raise ValueError(
        f"labels have the shape {tuple(labels.shape)}; allowed are indices (N,) or (N, 1) "
        f"and one-hot rows (N, {nb_classes})"
    )


class _LogitRatioLoss(nn.Module):
    """Share the label forms and the mutable `reduction` of ART's losses."""

    _per_sample: PerSampleLoss

    def __init__(self, reduction: str = "mean") -> None:
        """Create the loss.

        :param reduction: "none", "mean" or "sum". ART changes the attribute later, and so may you.
        :raises ValueError: If it is none of these.
        """
        super().__init__()
        _check_reduction(reduction)
        self.reduction = reduction

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss.

        :param logits: Logits, (N, K) with K >= 2. Half precision is widened to float32 first.
        :param labels: Class indices (N,) or (N, 1), or one-hot rows (N, K), any real dtype.
        :return: (N,) for the reduction "none", otherwise a scalar.
        :raises ValueError: If a shape or the reduction does not fit.
        """
        _check_reduction(self.reduction)
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(f"logits have the shape {tuple(logits.shape)}; needed is (N, K), K >= 2")
        if len(labels) != len(logits):
            raise ValueError(f"labels has {len(labels)} rows and logits {len(logits)}; give one each")
        losses = type(self)._per_sample(as_float(logits), class_indices(labels, logits.shape[1]))
        if self.reduction == "none":
            return losses
        return losses.mean() if self.reduction == "mean" else losses.sum()


class DLRLoss(_LogitRatioLoss):
    """Difference of logits ratio, scale- and shift-free: -(z_y - max_{j != y} z_j) / (z_(1) - z_(3)).

    Use it as `loss=` of an attack of this package, as a plain torch loss, or as the loss of a
    `PyTorchClassifier` that an attack of ART then ascends. For training a network it is not meant.
    With two classes the denominator is 1.

    Source: Croce, Hein, 2020, arXiv:2003.01690, equation (6).

    >>> logits = torch.tensor([[4.0, 1.0, 0.0], [4.0, 1.0, 0.0]])
    >>> DLRLoss(reduction="none")(logits, torch.tensor([0, 1])).tolist()
    [-0.75, 0.75]
    """

    _per_sample = staticmethod(dlr)


class ReDLRLoss(_LogitRatioLoss):
    """Rectified difference of logits ratio: DLR while a sample is classified correctly, 0 afterwards.

    Usable in the same three ways as :class:`DLRLoss`. Its zero gradient on misclassified samples
    leaves the budget of a distributional attack to the others.

    Source: Bai, He, Jiang, Obloj, 2023, arXiv:2306.09844, section 5.

    >>> logits = torch.tensor([[4.0, 1.0, 0.0], [4.0, 1.0, 0.0]])
    >>> ReDLRLoss(reduction="none")(logits, torch.tensor([0, 1])).tolist()
    [-0.75, 0.0]
    """

    _per_sample = staticmethod(redlr)


class _Objective(NamedTuple):
    """What an attack ascends away from the true labels, and towards target labels."""

    untargeted: PerSampleLoss
    targeted: PerSampleLoss


def _negated(loss: PerSampleLoss) -> PerSampleLoss:
    return lambda logits, labels: -loss(logits, labels)


LOSSES: dict[str, _Objective] = {
    "ce": _Objective(cross_entropy, _negated(cross_entropy)),
    "dlr": _Objective(dlr, dlr_towards_target),
    "redlr": _Objective(redlr, redlr_towards_target),
}
"""The losses an attack knows by name."""
RECTIFIED = (redlr, redlr_towards_target)
"""Those that are flat once a sample is where the attacker wants it: an attack leaves it out from then on."""


def attack_objective(loss: str | PerSampleLoss, targeted: bool = False) -> PerSampleLoss:
    """Turn the `loss` argument of an attack into the per-sample function it ascends.

    :param loss: A name in `LOSSES`, a torch loss module (its reduction is overruled on a copy), or a
        callable of logits (N, K) and class indices (N,) that returns (N,).
    :param targeted: Whether the labels are targets to move towards.
    :return: A function of logits and class indices.
    :raises ValueError: If the name is unknown.
    :raises TypeError: If `loss` is neither a name nor callable.
    """
    if isinstance(loss, _LogitRatioLoss):
        loss = "redlr" if isinstance(loss, ReDLRLoss) else "dlr"
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"loss is {loss!r}; allowed are {', '.join(map(repr, LOSSES))} or a callable")
        return LOSSES[loss].targeted if targeted else LOSSES[loss].untargeted
    if not callable(loss):
        raise TypeError(f"loss is {loss!r}; allowed are {', '.join(map(repr, LOSSES))} or a callable")
    if hasattr(loss, "reduction"):
        loss = copy.copy(loss)
        loss.reduction = "none"
    checked = _checked(loss)
    return _negated(checked) if targeted else checked


def _checked(loss: PerSampleLoss) -> PerSampleLoss:
    def per_sample(logits: Tensor, labels: Tensor) -> Tensor:
        losses = loss(logits, labels)
        if losses.shape != labels.shape:
            raise ValueError(
                f"loss returned the shape {tuple(losses.shape)} for {len(labels)} samples; an attack "
                f"needs one value a sample, ({len(labels)},)"
            )
        return losses

    return per_sample


def are_probabilities(outputs: Tensor) -> bool:
    """Tell whether what should be logits, (N, K), are probabilities: in [0, 1], with rows that add up to 1."""
    outputs = outputs.double()
    inside = bool(((outputs >= 0) & (outputs <= 1)).all())
    return inside and torch.allclose(outputs.sum(1), outputs.new_ones(()), atol=ADDS_UP)


def as_float(logits: Tensor) -> Tensor:
    """Widen half-precision logits to float32, where differences of close logits keep their digits."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; allowed are 'none', 'mean' and 'sum'")
