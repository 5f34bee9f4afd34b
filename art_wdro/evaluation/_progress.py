# SPDX-License-Identifier: MIT
"""The bar of an evaluation, by gradients: so many as all attacks may take, which is known before the first one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from art_wdro._solvers.passes import Advance


class Progress:
    """One bar for all attacks that say how many gradients they may take, and bars of their own for others.

    A sample that needs fewer gradients advances the bar by the rest, too, so that the bar reaches its end.
    """

    def __init__(self, gradients: int, shown: bool) -> None:
        """Open the bar.

        :param gradients: How many all attacks may take together, summed over the samples.
        :param shown: Whether bars are shown.
        """
        self._shown, self._left = shown, 0
        self._bar = self._open("evaluate", gradients, " gradients")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    @contextmanager
    def share(self, gradients: int) -> Iterator[None]:
        """Let one attack advance the bar by its share, and by what is left of that at its end, whatever that is."""
        self._left = gradients
        try:
            yield
        finally:
            self.advance(self._left)

    def advance(self, gradients: int) -> None:
        """Advance the bar, no farther than the share."""
        gradients = min(gradients, self._left)
        self._left -= gradients
        self._bar.update(gradients)

    @contextmanager
    def aside(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Show a bar of its own, whose time is none of the other's."""
        with self._open(name, total, unit) as bar:

            def advance(count: int) -> None:
                bar.update(count)

            yield advance
        self._bar.unpause()

    def _open(self, name: str, total: int, unit: str) -> tqdm[Any]:
        return tqdm(total=total, desc=name, unit=unit, unit_scale=True, leave=False, disable=not self._shown)
