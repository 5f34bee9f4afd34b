# SPDX-License-Identifier: MIT
"""Checks of scalar arguments: each takes a name and a value, and returns a plain Python value.

Every refusal names the argument, the value and what is allowed.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from art_wdro._storage.files import check_target
from art_wdro._threat.geometry import GROUND_NORMS


class Default(float):
    """A number as the default of an argument, which can be told from the same number given."""


def _refuse(kind: type[Exception], name: str, value: object, allowed: str) -> Exception:
    return kind(f"{name} is {value!r}; allowed is {allowed}")


def real(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    infinite: bool = False,
) -> float:
    """Read a number between `low` and `high`, both included unless `open_low` or `open_high`.

    :raises TypeError: If it is no real number (a NumPy scalar or a 0-d array or tensor is one).
    :raises ValueError: If it is NaN, out of range, or infinite and may not be.
    """
    allowed = f"a number {'>' if open_low else '>='} {low:g}"
    allowed += f" and {'<' if open_high else '<='} {high:g}" if high < math.inf else ""
    allowed = "a finite number" if low == -math.inf else allowed + (", inf included" if infinite else "")
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _refuse(TypeError, name, value, allowed)
    number = float(value)
    inside = low <= number <= high and not (open_low and number == low) and not (open_high and number == high)
    if not inside or (math.isinf(number) and not infinite):
        raise _refuse(ValueError, name, value, allowed)
    return number


def probability(name: str, value: object) -> float:
    """Read a probability that is neither 0 nor 1.

    :raises TypeError: If it is no real number.
    :raises ValueError: If it is no such probability.
    """
    number = real(name, value)
    if not 0.0 < number < 1.0:
        raise _refuse(ValueError, name, value, "a number between 0 and 1, without the ends")
    return number


def integer(name: str, value: object, low: int) -> int:
    """Read a whole number of at least `low`.

    :raises TypeError: If it is no integer.
    :raises ValueError: If it is too small.
    """
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _refuse(TypeError, name, value, f"a whole number >= {low}")
    if value < low:
        raise _refuse(ValueError, name, value, f"a whole number >= {low}")
    return int(value)


def flag(name: str, value: object) -> bool:
    """Read a Boolean.

    :raises ValueError: If it is none (the error ART's attacks give here).
    """
    if not isinstance(value, (bool, np.bool_)):
        raise _refuse(ValueError, name, value, "True or False")
    return bool(value)


def choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """Read one of several words.

    :raises ValueError: If it is none of them.
    """
    if not isinstance(value, str) or value not in allowed:
        raise _refuse(ValueError, name, value, "one of " + ", ".join(map(repr, allowed)))
    return value


def file(name: str, value: object) -> Path:
    """Read the path of a file that can be written.

    :raises TypeError: If it is no path.
    :raises ValueError: If no file can be written there.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise _refuse(TypeError, name, value, "a path")
    path = Path(value)
    check_target(path, name)
    return path


def order(value: object, *, one: bool = False) -> float:
    """Read the Wasserstein order `p`.

    :param one: Whether p = 1 is allowed. An ascent direction needs p > 1: at p = 1 the dual exponent
        is infinite and the whole budget would go to the steepest sample.
    :raises TypeError: If it is no number.
    :raises ValueError: If it is below 1, or 1 where that is not allowed.
    """
    if isinstance(value, str) and value == "inf":
        value = math.inf
    return real("p", value, 1.0, open_low=not one, infinite=True)


def ground_norm(value: object) -> float:
    """Read the ground norm `norm`: 1, 2, inf or "inf".

    :raises TypeError: If it is no number.
    :raises ValueError: If there is no such ground norm here.
    """
    if isinstance(value, str) and value == "inf":
        value = math.inf
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    allowed = ", ".join(f"{r:g}" for r in GROUND_NORMS)
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, np.number)):
        raise _refuse(TypeError, "norm", value, f"one of {allowed}")
    if float(value) not in GROUND_NORMS:
        raise _refuse(ValueError, "norm", value, f"one of {allowed}")
    return float(value)


def seed(value: object) -> int:
    """Read a seed; None draws one from NumPy's global state, which is what ART's trainers use.

    :raises TypeError: If it is no integer.
    :raises ValueError: If it is negative or too large.
    """
    if value is None:
        return int(np.random.randint(2**31))
    number = integer("seed", value, 0)
    if number >= 2**63:
        raise _refuse(ValueError, "seed", value, "a whole number below 2**63")
    return number
