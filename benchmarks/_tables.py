# SPDX-License-Identifier: MIT
"""Tables in Markdown, printed row by row as the figures come."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from art_wdro.evaluation._forms import markdown_lines


class Table:
    """A table whose head is printed at once, and each row as soon as it is there."""

    def __init__(self, *head: str) -> None:
        self._head = list(head)
        print("\n".join(markdown_lines(self._head, [])), flush=True)

    def row(self, *entries: object) -> None:
        """Print a row, which may be shorter than the head."""
        texts = [str(entry) for entry in entries]
        texts += [""] * (len(self._head) - len(texts))
        print(markdown_lines(self._head, [texts])[-1], flush=True)


def spread(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation over seeds, or nothing where there is none."""
    if not values:
        return ""
    more = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{more}"
