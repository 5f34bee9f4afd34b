# SPDX-License-Identifier: MIT
"""What is most likely a mistake, said before a figure is believed: a budget in bytes, a network that only guesses."""

from __future__ import annotations

import math

import numpy as np

Z = 1.645
"""Standard deviations that chance exceeds in one case of twenty."""


def fraction(text: str) -> float:
    """Read a number, a fraction such as 8/255, or inf.

    :raises ValueError: If it is none of these.
    """
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except ZeroDivisionError as error:
        raise ValueError(f"{text!r} divides by zero") from error


def check_eps(eps: float, norm: float, shape: tuple[int, ...], allow: bool) -> str | None:
    """Refuse a budget with which every input can become any other.

    :param eps: The budget, for inputs in [0, 1].
    :param norm: Exponent r of the ground norm.
    :param shape: Shape of one input, of d numbers; no two are more than d^(1/r) apart.
    :param allow: Whether it is meant.
    :return: A doubt about a smaller budget, or None.
    :raises ValueError: If the budget is no smaller than that and not meant.
    """
    widest = math.prod(shape) ** (1 / norm)
    meant = f"; did you mean {eps:g}/255?" if eps.is_integer() else ";"
    if eps >= widest and not allow:
        raise ValueError(
            f"eps is {eps:g}, and inputs in [0, 1] are at most {widest:g} apart in l_{norm:g}{meant} "
            "--allow-large-eps takes it as it is"
        )
    if eps >= 1 and eps.is_integer() and not allow:
        return f"eps is {eps:g}, for inputs in [0, 1]{meant}"
    return None


def chance_warning(accuracy: float, labels: np.ndarray, classes: int) -> str | None:
    """Tell whether a clean accuracy is one that needs no network.

    :param accuracy: The clean accuracy.
    :param labels: Class indices, (N,).
    :param classes: Number of classes.
    :return: The warning, or None.
    """
    correct, most = accuracy * len(labels), np.bincount(labels).max() / len(labels)
    hint = "does it expect standardised inputs (--mean, --std), another order of channels, or other labels?"
    if correct <= _above(len(labels), 1 / classes):
        return f"the clean accuracy is {100 * accuracy:.1f} %, what guessing among {classes} classes can give; {hint}"
    if _above(len(labels), most) > len(labels) * most >= _above(len(labels), accuracy):
        return (
            f"the clean accuracy is {100 * accuracy:.1f} %, less than the {100 * most:.1f} % of the most frequent "
            f"label; {hint}"
        )
    return None


def _above(count: int, share: float) -> float:
    """Return what a binomial variable exceeds in one case of twenty, as the normal distribution has it."""
    return count * share + Z * math.sqrt(count * share * (1 - share))
