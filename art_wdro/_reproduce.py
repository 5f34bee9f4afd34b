# SPDX-License-Identifier: MIT
"""The tables and figures of the training paper from the cells of a laboratory, with the published figures beside ours.

Source: Bai, He, Jiang, Obloj, Wasserstein distributional adversarial training for deep neural networks, 2025,
arXiv:2502.09352.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from art_wdro._experiments import Cell, Laboratory, Result
from art_wdro._files import write_atomically, write_text
from art_wdro._published import BEFORE, BEST, BUDGET, CONFIGURATIONS, GRIDS, NETWORKS, ZHANG

LABELS = {"clean": "clean", "budget": "W_2, a budget each minibatch", "winf": "W_inf", "wp": "W_2"}
CURVES = {
    "fig7.2": ("accuracy under $W_2$ in %", "wp", "wp_accuracy"),
    "fig7.3": ("accuracy under $W_\\infty$ in %", "winf", "winf_accuracy"),
    "fig7.4": ("$\\Upsilon$", "upsilon", "upsilon"),
}
"""Label, figure on the test set and figure on the validation set (of Upsilon: the training set), by figure."""
TARGETS = (*(f"table{number}" for number in range(1, 12)), "fig7.1", *CURVES)
"""Everything that can be reproduced."""


@dataclass(frozen=True)
class Entry:
    """What a place of a table holds, in percent: ours by seed, and what the paper reports."""

    found: tuple[float, ...]
    published: float | None = None

    def __str__(self) -> str:
        """Return the mean, the standard deviation over seeds, and the published figure in brackets."""
        text = f"{statistics.mean(self.found):.2f}" if self.found else "-"
        text += f" ± {statistics.stdev(self.found):.2f}" if len(self.found) > 1 else ""
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
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]
        return "\n".join([self.caption, "", *lines, ""])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        rows = {
            name: [
                entry if isinstance(entry, str) else {"found": list(entry.found), "published": entry.published}
                for entry in entries
            ]
            for name, entries in self.rows.items()
        }
        return {"caption": self.caption, "columns": self.columns, "rows": rows}


class Reproduction:
    """Runs what the targets need, cell by cell, and keeps their tables and figures up to date."""

    def __init__(
        self, laboratory: Laboratory, targets: Sequence[str], out: Path, seeds: Sequence[int], network: str | None
    ) -> None:
        """Plan the cells.

        :param laboratory: Runs the cells.
        :param targets: Names in `TARGETS`.
        :param out: Folder for tables and figures.
        :param seeds: Seeds of the fine-tunings; whatever has no seed in the paper takes the first.
        :param network: A network to take the place of the paper's, as for `load_classifier`.
        """
        self._laboratory, self._targets, self._out = laboratory, targets, out
        self._seeds, self._network = seeds, network
        planned = dict.fromkeys(cell for target in targets for cell in self._cells(target))
        # curves hold everything that a mere fine-tuning does
        self._planned = [c for c in planned if c.kind != "after" or replace(c, kind="curves") not in planned]

    def run(self) -> dict[str, Any]:
        """Run all cells, and return what the targets show as plain values."""
        shown = self.write()
        progress = tqdm(self._planned, desc="reproduce")
        for cell in progress:
            progress.set_postfix_str(cell.name)
            self._laboratory.run(cell)
            shown = self.write()
        return shown

    def write(self) -> dict[str, Any]:
        """Write every target from the cells that are there, and return what they show."""
        shown: dict[str, Any] = {}
        for target in self._targets:
            if target.startswith("table"):
                table = self.table(target)
                write_text(self._out / f"{target}.md", table.to_markdown())
                shown[target] = table.to_dict()
            else:
                shown[target] = self._curves(target)
                write_atomically(self._out / f"{target}.png", partial(self._draw, target))
        write_text(self._out / "figures.json", json.dumps(shown, indent=1))
        return shown

    def table(self, target: str) -> Table:
        """Return a table, with a dash for what has not been run."""
        if target in GRIDS:
            return self._grid(target)
        if target == "table5":
            return self._best()
        kind, published = ("before", BEFORE) if target == "table1" else ("budget", BUDGET)
        keys = [key for key in LABELS if key in next(iter(published.values()))]
        what = "The networks as they come" if kind == "before" else "Attacks on training images"
        table = Table(f"{what}. Accuracy in %, ours (published).", [LABELS[key] for key in keys])
        results = [self._find(Cell(kind, network, self._seeds[0])) for network in self._networks()]
        strong = _strong([[result] for result in results])
        table.columns += strong
        for place, (network, result) in enumerate(zip(self._networks(), results, strict=True)):
            part = {} if result is None else result["test" if kind == "before" else "train"]
            theirs = published.get(network, {})
            own = [Entry(_percent([part.get(key)]), theirs.get(key)) for key in keys]
            table.rows[network] = [*own, *(entries[place] for entries in strong.values())]
        return table

    def _grid(self, target: str) -> Table:
        network, start, published = GRIDS[target]
        columns = [f"tau = {tau:g}, eta = {eta:g}" for tau, eta in CONFIGURATIONS]
        own = self._network or network
        where = {"whole": "all weights perturbed and trained", "last-layer": "the last layer drawn anew and trained"}
        caption = f"{own} fine-tuned, {where[start]}. Accuracy in %, ours (published for {network})."
        table = Table(caption, columns)
        cells = [[self._find(cell) for cell in self._seeded(own, start, *key)] for key in CONFIGURATIONS]
        for name in ("clean", "winf", "wp"):
            table.rows[LABELS[name]] = [
                Entry(_percent([_tested(result, name) for result in results]), published[key][name])
                for key, results in zip(CONFIGURATIONS, cells, strict=True)
            ]
        table.rows |= _strong(cells)
        return table

    def _best(self) -> Table:
        """Take the configuration of each network that is best on the validation images."""
        table = Table(
            "The best fine-tuning of each network, chosen on validation images. Accuracy in %, ours (published).",
            [
                "configuration",
                *(f"{LABELS[key]}{more}" for key in ("clean", "winf", "wp") for more in ("", ", change")),
            ],
        )
        for network in self._networks():
            before = self._find(Cell("before", network, self._seeds[0]))
            found: dict[str, list[Result]] = {}
            for start in ("whole", "last-layer"):
                for tau, eta in CONFIGURATIONS:
                    results = [self._find(cell) for cell in self._seeded(network, start, tau, eta)]
                    done = [result for result in results if result is not None]
                    if done:
                        found[f"{start}, tau = {tau:g}, eta = {eta:g}"] = done
            name = max(found, key=lambda key: statistics.mean(map(_validated, found[key])), default="-")
            row: list[Entry | str] = [name]
            for key in ("clean", "winf", "wp"):
                values = _percent([result["test"][key] for result in found.get(name, [])])
                base = _percent([_tested(before, key)])
                theirs, first = BEST.get(network, {}).get(key), BEFORE.get(network, {}).get(key)
                changed = None if theirs is None or first is None else theirs - first
                row += [Entry(values, theirs), Entry(tuple(v - b for b in base for v in values), changed)]
            table.rows[network] = row
        return table

    def _curves(self, target: str) -> dict[str, Any]:
        """Return the numbers of a figure."""
        if target == "fig7.1":
            found = {network: self._find(Cell("upsilon", network, self._seeds[0])) for network in self._networks()}
            return {
                k: {"samples": r["samples"], "reference": r["reference"]} for k, r in found.items() if r is not None
            }
        result = self._find(self._case())
        if result is None:
            return {}
        _, name, other = CURVES[target]
        dashed = [r["train_upsilon"] if name == "upsilon" else r[other] for r in _dashed(result, name)]
        return {"test": [epoch["test"][name] for epoch in result["epochs"]], "dashed": dashed}

    def _draw(self, target: str, path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes, numbers = figure.subplots(), self._curves(target)
        if target == "fig7.1":
            for place, (network, found) in enumerate(numbers.items()):
                (dots,) = axes.plot(range(1, 11), found["samples"], "o", label=network, color=f"C{place}")
                axes.axhline(found["reference"], linestyle=":", color=dots.get_color())
            axes.set(xlabel="sample of a tenth of the training set", ylabel="$\\Upsilon$", ylim=(0, None))
        elif numbers:
            label, name, _ = CURVES[target]
            scale = 1 if name == "upsilon" else 100
            epochs = range(1, len(numbers["test"]) + 1)
            axes.plot(epochs, [scale * value for value in numbers["test"]], label="test")
            other = "training" if name == "upsilon" else "validation"
            axes.plot(epochs, [scale * value for value in numbers["dashed"]], "--", label=other)
            axes.set(xlabel="epoch", ylabel=label)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        figure.savefig(path, dpi=120)

    def _networks(self) -> tuple[str, ...]:
        return NETWORKS if self._network is None else (self._network,)

    def _seeded(self, network: str, start: str, tau: float, eta: float) -> list[Cell]:
        return [Cell("after", network, seed, start, tau, eta) for seed in self._seeds]

    def _case(self) -> Cell:
        """Return the paper's case study, of which it shows curves."""
        return Cell("curves", self._network or ZHANG, self._seeds[0], "whole", 0.01, 1.0)

    def _cells(self, target: str) -> Iterator[Cell]:
        kinds = {"table1": "before", "table2": "budget", "table5": "before", "fig7.1": "upsilon"}
        if target in kinds:
            yield from (Cell(kinds[target], network, self._seeds[0]) for network in self._networks())
        if target in CURVES:
            yield self._case()
        wanted = [(n, s) for key, (n, s, _) in GRIDS.items() if key == target]
        if target == "table5":
            wanted = [(network, start) for network in self._networks() for start in ("whole", "last-layer")]
        for network, start in wanted:
            for tau, eta in CONFIGURATIONS:
                yield from self._seeded(self._network or network, start, tau, eta)

    def _find(self, cell: Cell) -> Result | None:
        found = self._laboratory.find(cell)
        return self._laboratory.find(replace(cell, kind="curves")) if found is None and cell.kind == "after" else found


def _percent(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(100 * value for value in values if value is not None)


def _tested(result: Result | None, name: str) -> float | None:
    return None if result is None else result["test"][name]


def _validated(result: Result) -> float:
    accuracy: float = result["history"][result["best_epoch"]]["wp_accuracy"]
    return accuracy


def _dashed(result: Result, name: str) -> list[Result]:
    records: list[Result] = result["epochs"] if name == "upsilon" else result["history"]
    return records


def _strong(cells: list[list[Result | None]]) -> dict[str, list[Entry | str]]:
    """Return for every attack that the training did not use one entry for each list of results."""
    reports = [[result["strong"] for result in results if result and result.get("strong")] for results in cells]
    first = next((found[0] for found in reports if found), None)
    if first is None:
        return {}
    return {
        f"{attack['threat']}, {attack['attack']}, {first['samples']} images": [
            Entry(_percent([report["attacks"][place]["accuracy"] for report in found])) for found in reports
        ]
        for place, attack in enumerate(first["attacks"])
        if attack["order"] is not None
    }
