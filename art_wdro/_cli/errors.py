# SPDX-License-Identifier: MIT
"""What an error looks like on the command line: one line, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from art_wdro._sources.messages import one_line, short

OWN = (ValueError, TypeError, ImportError, OSError, FloatingPointError)
"""Errors whose message says enough without their type."""
TRACEBACK = "ART_WDRO_TRACEBACK"
"""Variable of the environment that leaves errors as they are."""


@contextmanager
def leaving_with_one_line(program: str) -> Iterator[None]:
    """Leave with exit code 2 and one line after an error, and with 130 after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"{program}: {sentence(error)}", file=sys.stderr)
        sys.exit(2)


def sentence(error: Exception) -> str:
    """Say on one line what went wrong."""
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "t allocate memory" in str(error):
        return f"out of memory ({short(error)}); fewer samples, smaller images or a smaller batch size need less"
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"'{error.filename}': {error.strerror}" if error.filename else error.strerror)
    if isinstance(error, OWN) or type(error).__name__ == "EstimatorError":  # ART's, which takes seconds to import
        return one_line(str(error)) or type(error).__name__
    return short(error)
