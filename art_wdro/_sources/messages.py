# SPDX-License-Identifier: MIT
"""Errors of other libraries as one line of text."""

from __future__ import annotations

LENGTH = 300
"""Characters of a message that are shown."""
TRUST = "give --trust (trust=True) if you know where it comes from"


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def short(error: BaseException) -> str:
    """Return an error's type and the beginning of its message, on one line."""
    text = one_line(str(error))
    text = f"{text[:LENGTH]}..." if len(text) > LENGTH else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
