# SPDX-License-Identifier: MIT
"""What the kernel says of this process's memory; Linux alone."""

from __future__ import annotations

import re
from pathlib import Path


def memory(field: str) -> int:
    """Read a figure of this process's memory, in bytes.

    :param field: Its name in /proc/self/status: "VmRSS", what is resident, or "VmHWM", the most that was.
    """
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget_peak() -> None:
    """Let "VmHWM" begin anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
