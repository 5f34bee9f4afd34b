# SPDX-License-Identifier: MIT
"""The one way of timing: a stopwatch that waits for the GPU, contestants that take turns, medians of their rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from benchmarks._cells import Cells

T = TypeVar("T")


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """Return what a call returns, and the seconds that it took."""
    _wait()
    started = time.perf_counter()
    found = run()
    _wait()
    return found, time.perf_counter() - started


def interleaved(
    contestants: dict[str, Callable[[], object]], repeats: int, cells: Cells | None = None
) -> dict[str, list[float]]:
    """Time all contestants in turn, several times over, after one round to warm up; seconds by name.

    :param contestants: What is timed.
    :param repeats: Number of rounds.
    :param cells: Keeps each round, in which alone ratios are taken.
    """
    for run in contestants.values():
        run()

    def one_round() -> dict[str, Any]:
        return {name: timed(run)[1] for name, run in contestants.items()}

    rounds = [one_round() if cells is None else cells.run({"round": number}, one_round) for number in range(repeats)]
    return {name: [seconds[name] for seconds in rounds] for name in contestants}


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


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
