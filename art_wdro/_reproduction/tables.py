# SPDX-License-Identifier: MIT
"""A table of the paper with ours beside it, as Markdown and plain values."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from art_wdro.evaluation._forms import markdown_lines


@dataclass(frozen=True)
class Entry:
    """One place of a table, in percent.

    :param found: Ours, one figure a seed that is done.
    :param published: What the paper reports.
    :param seeds: How many seeds were asked for.
    :param diverged: How many of them diverged.
    """

    found: tuple[float, ...]
    published: float | None = None
    seeds: int = 1
    diverged: int = 0

    def __str__(self) -> str:
        """Return mean and standard deviation over seeds, what is missing of them, and the published figure."""
        text = f"{statistics.mean(self.found):.2f}" if self.found else "-"
        text += f" ± {statistics.stdev(self.found):.2f}" if len(self.found) > 1 else ""
        text += f" [{len(self.found)} of {self.seeds} seeds]" if 0 < len(self.found) < self.seeds else ""
        text += f" [{self.diverged} diverged]" if self.diverged else ""
        return text if self.published is None else f"{text} ({self.published:.2f})"


@dataclass
class Table:
    """Ours beside the paper's."""

    caption: str
    columns: list[str]
    rows: dict[str, list[Entry | str]] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        head = ["", *self.columns]
        body = [[name, *map(str, entries)] for name, entries in self.rows.items()]
        return "\n".join([self.caption, "", *markdown_lines(head, body), ""])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        rows = {k: [e if isinstance(e, str) else asdict(e) for e in entries] for k, entries in self.rows.items()}
        return {"caption": self.caption, "columns": self.columns, "rows": rows}
