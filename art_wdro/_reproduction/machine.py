# SPDX-License-Identifier: MIT
"""What a figure was measured with."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch

from art_wdro.evaluation._provenance import versions

CPUINFO = Path("/proc/cpuinfo")


def machine(device: str | None = None) -> dict[str, Any]:
    """Describe processor, GPU and versions, in plain values.

    :param device: The device that was asked for; "cpu" leaves out the GPU.
    """
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    return {
        "processor": ", ".join(sorted(names)) or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() and device != "cpu" else None,
        **versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
