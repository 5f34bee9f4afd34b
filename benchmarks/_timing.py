# SPDX-License-Identifier: MIT
"""What the benchmarks of speed share: interleaved timing, ratios, and a file of figures beside the machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from art_wdro._reproduction.machine import machine


def interleaved(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time all contestants in turn, several times over, after one round to warm up; seconds by name."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            _wait()
            started = time.perf_counter()
            run()
            _wait()
            if repeat > 0:
                times[name].append(time.perf_counter() - started)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Return the median over the rounds of one contestant's time over another's of the same round."""
    return statistics.median(own / other for own, other in zip(times[name], times[base], strict=True))


def compared(times: dict[str, list[float]], label: str, **ratios: tuple[str, bool]) -> list[dict[str, Any]]:
    """Return one row a contestant: its name, its median seconds, and ratios to others.

    :param times: What :func:`interleaved` returned.
    :param label: What the rows call a contestant.
    :param ratios: By key: another contestant, and whether its time is divided by this one's or the other way round.
    """
    rows: list[dict[str, Any]] = []
    for name, own in times.items():
        row: dict[str, Any] = {label: name, "seconds": statistics.median(own)}
        for key, (other, inverse) in ratios.items():
            row[key] = ratio(times, other, name) if inverse else ratio(times, name, other)
        rows.append(row)
    return rows


def keep(file: Path | None, setting: dict[str, Any], **results: Any) -> None:
    """Write a setting, the machine and the results as JSON, if a file is named."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"setting": setting, "machine": machine(), **results}, indent=1) + "\n")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
