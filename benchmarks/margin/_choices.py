# SPDX-License-Identifier: MIT
"""Which settings of a method the validation images choose, and what the table shows."""

from __future__ import annotations

from typing import Any

from benchmarks._settings import SEEDS

CLEAN_LOSS = 0.01
"""Clean accuracy that a choice may cost on the validation images."""
LEAST_CLEAN = 0.2
"""Clean accuracy on them that a choice needs from scratch: twice a constant prediction's, which withstands all."""


def method_of(variant: str) -> str:
    """Return the method that a name is a variant of."""
    return variant.partition(", beta")[0]


def chosen(cells: list[dict[str, Any]], start: dict[str, Any]) -> dict[str, Any] | None:
    """Choose among cells of the first seed: the largest area on the validation images without loss of clean accuracy.

    Where every cell loses more than `CLEAN_LOSS`, or from scratch has less than `LEAST_CLEAN`, the one with most. None
    if all of them failed.
    """
    floor = LEAST_CLEAN if start["setting"]["scratch"] else start["validation"]["clean"] - CLEAN_LOSS
    usable = [cell for cell in cells if "failed" not in cell]
    kept = [cell for cell in usable if cell["validation"]["clean"] >= floor]
    if kept:
        return max(kept, key=lambda cell: cell["validation"]["area"])
    return max(usable, key=lambda cell: cell["validation"]["clean"], default=None)


def chosen_groups(cells: list[dict[str, Any]]) -> set[str]:
    """Return the choice of each method that the validation images led to."""
    start = start_of(cells)
    first = [cell for cell in cells if cell["cell"]["seed"] == SEEDS[0]]
    variants: dict[str, list[dict[str, Any]]] = {}
    for cell in first:
        variants.setdefault(method_of(cell["cell"]["method"]), []).append(cell)
    best = [chosen(cells_of_one, start) for cells_of_one in variants.values()]
    return {group_of(cell) for cell in best if cell is not None}


def in_table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the start, what the validation images led to, of all seeds, and whatever else has several seeds."""
    several = {group_of(cell) for cell in cells if cell["cell"]["seed"] not in (SEEDS[0], None)}
    shown = chosen_groups(cells) | several | {group_of(start_of(cells))}
    return [cell for cell in cells if group_of(cell) in shown]


def start_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the cell of the network that training starts from."""
    return next(cell for cell in cells if cell["cell"]["method"] == "start")


def group_of(cell: dict[str, Any]) -> str:
    """Return what cells that differ in the seed alone have in common."""
    own: dict[str, Any] = cell["cell"]
    return f"{own['method']}, {own['rate']}" if own["rate"] else str(own["method"])
