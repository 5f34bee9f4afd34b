# SPDX-License-Identifier: MIT
"""What to install for the optional parts, the extras of setup.cfg."""


def install(extra: str) -> str:
    """Return the command that installs an extra. The package is on no index, so it is one for a clone."""
    return f"pip install '.[{extra}]' in a clone of art-wdro"


def missing(extra: str) -> str:
    """Say that an extra is not installed, and how it is."""
    return f"not installed: {install(extra)}"
