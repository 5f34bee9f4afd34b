# SPDX-License-Identifier: MIT
"""Where figures are kept, and in which form: JSON files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from art_wdro._reproduction.machine import machine
from art_wdro._storage.files import write_text

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs"
"""What runs make on their way, out of version control."""
RESULTS = ROOT / "benchmarks" / "results"
"""The figures behind the docs, in version control; so are those of docs/results."""


def keep(file: Path | None, content: Any) -> None:
    """Write figures as JSON, if a file is named."""
    if file is not None:
        write_text(file, json.dumps(content, indent=1) + "\n")


def keep_cells(file: Path | None, cells: list[dict[str, Any]]) -> None:
    """Write cells as JSON in one line, rounded to five digits, if a file is named."""
    if file is not None:
        write_text(file, json.dumps([compact(cell) for cell in cells], separators=(",", ":")) + "\n")


def compact(cell: dict[str, Any]) -> dict[str, Any]:
    """Round what nobody needs to sixteen digits."""
    found: dict[str, Any] = json.loads(json.dumps(cell), parse_float=lambda text: float(f"{float(text):.5g}"))
    return found


def documented(setting: dict[str, Any], **results: Any) -> dict[str, Any]:
    """Put a setting and the machine before the results."""
    return {"setting": setting, "machine": machine(), **results}
