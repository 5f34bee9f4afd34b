# SPDX-License-Identifier: MIT
"""The tables and figures of the training paper from the cells of a laboratory, with the published figures beside ours.

Source: Bai, He, Jiang, Obloj, Wasserstein distributional adversarial training for deep neural networks, 2025,
arXiv:2502.09352.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from art_wdro._reproduction.laboratory import TRAINED, Laboratory, Result
from art_wdro._reproduction.protocol import Cell, Protocol
from art_wdro._reproduction.published import BEFORE, BEST, BUDGET, CONFIGURATIONS, GRIDS, NETWORKS, ZHANG
from art_wdro._reproduction.tables import Entry, Table
from art_wdro._storage.files import write_atomically, write_text
from art_wdro.evaluation._report import empty_figure
from art_wdro.trainers._trades import DistributionalTRADESTrainer

LABELS = {"clean": "clean", "budget": "W_2, a budget each minibatch", "winf": "W_inf", "wp": "W_2"}
CURVES = {
    "fig7.2": ("accuracy under $W_2$ in %", "wp", "validation"),
    "fig7.3": ("accuracy under $W_\\infty$ in %", "winf", "validation"),
    "fig7.4": ("$\\Upsilon$", "upsilon", "training"),
}
"""Label, figure and second set of images, by figure."""
PARAMETERS = signature(DistributionalTRADESTrainer).parameters
TARGETS = (*(f"table{number}" for number in range(1, 12)), "fig7.1", *CURVES)
"""Everything that can be reproduced."""


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
        self.planned = [c for c in planned if c.kind != "after" or replace(c, kind="curves") not in planned]

    def run(self) -> dict[str, Any]:
        """Run all cells, write the targets after each, and return what they show as plain values."""
        left = [cell for cell in self.planned if self._laboratory.find(cell) is None]
        for network in dict.fromkeys(cell.network for cell in left):
            own = [cell for cell in left if cell.network == network]
            self._laboratory.check(next((cell for cell in own if cell.kind in TRAINED), own[0]))
        progress = tqdm(left, desc="reproduce", initial=len(self.planned) - len(left), total=len(self.planned))
        for cell in progress:
            progress.set_postfix_str(cell.name)
            self._laboratory.run(cell)
            kinds = {cell, replace(cell, kind="after")}
            self.write([target for target in self._targets if kinds & {*self._cells(target)}])
        return self.write(self._targets)

    def write(self, targets: Sequence[str]) -> dict[str, Any]:
        """Write targets from the cells that are there, and return what they show."""
        shown: dict[str, Any] = {}
        for target in targets:
            if target.startswith("table"):
                table = self.table(target)
                write_text(self._out / f"{target}.md", table.to_markdown())
                shown[target] = table.to_dict()
            else:
                shown[target] = self._numbers(target)
                write_atomically(self._out / f"{target}.png", partial(self._draw, target, shown[target]))
            write_text(self._out / f"{target}.json", json.dumps(self._documented(shown[target]), indent=1))
        return self._documented(shown)

    def table(self, target: str) -> Table:
        """Return a table, with a dash for what has not been run."""
        if target in GRIDS:
            return self._grid(target)
        if target == "table5":
            return self._best()
        kind, published = ("before", BEFORE) if target == "table1" else ("budget", BUDGET)
        keys = [key for key in LABELS if key in published[ZHANG]]
        what = "The networks as they come." if kind == "before" else "Attacks on training images."
        table = Table(self._caption(what), [LABELS[key] for key in keys])
        results = [self._find(Cell(kind, network, self._seeds[0])) for network in self._networks()]
        strong = self._strong([[result] for result in results])
        table.columns += strong
        for place, (network, result) in enumerate(zip(self._networks(), results, strict=True)):
            part = {} if result is None else result["test" if kind == "before" else "train"]
            own = [Entry(_percent([part.get(key)]), published.get(network, {}).get(key)) for key in keys]
            table.rows[network] = [*own, *(entries[place] for entries in strong.values())]
        return table

    def _grid(self, target: str) -> Table:
        network, start, published = GRIDS[target]
        own = self._network or network
        where = {"whole": "all weights perturbed and trained", "last-layer": "the last layer drawn anew and trained"}
        beside = "" if own == network else f" Published are those of {network}."
        caption = self._caption(f"{own} fine-tuned, {where[start]}.{beside}")
        table = Table(caption, [f"tau = {tau:g}, eta = {eta:g}" for tau, eta in CONFIGURATIONS])
        cells = [[self._find(cell) for cell in self._seeded(own, start, *key)] for key in CONFIGURATIONS]
        for name in ("clean", "winf", "wp"):
            table.rows[LABELS[name]] = [
                self._entry(results, name, published[key].get(name))
                for key, results in zip(CONFIGURATIONS, cells, strict=True)
            ]
        table.rows |= self._strong(cells)
        return table

    def _best(self) -> Table:
        """Take the configuration of each network that is best on the validation images."""
        caption = self._caption("The best fine-tuning of each network, the configuration chosen on validation images.")
        table = Table(caption, ["configuration", "clean", "W_inf", "W_inf, change", "W_2", "W_2, change"])
        for network in self._networks():
            before = self._find(Cell("before", network, self._seeds[0]))
            found: dict[str, list[Result]] = {}
            for start in ("whole", "last-layer"):
                for tau, eta in CONFIGURATIONS:
                    results = [self._find(cell) for cell in self._seeded(network, start, tau, eta)]
                    done = [result for result in results if result is not None and "failed" not in result]
                    if len(done) == len(self._seeds):
                        found[f"{start}, tau = {tau:g}, eta = {eta:g}"] = done
            name = max(found, key=lambda key: statistics.mean(map(_validated, found[key])), default="-")
            best, theirs = found.get(name, []), BEST.get(network, {})
            row: list[Entry | str] = [f"{name} [best of {len(found)}]" if 0 < len(found) < 8 else name]
            for key in ("clean", "winf", "wp"):
                row.append(self._entry(best, key, theirs.get(key)))
                if key != "clean":
                    base = _percent([_tested(before, key)])
                    changed = tuple(v - b for b in base for v in _percent([_tested(result, key) for result in best]))
                    row.append(Entry(changed, theirs.get(f"{key} change")))
            table.rows[network] = row
        return table

    def _numbers(self, target: str) -> dict[str, Any]:
        """Return the numbers of a figure: accuracies in percent, Upsilon in loss per input unit."""
        if target == "fig7.1":
            found = {network: self._find(Cell("upsilon", network, self._seeds[0])) for network in self._networks()}
            return {
                k: {"samples": r["samples"], "reference": r["reference"]} for k, r in found.items() if r is not None
            }
        result = self._find(self._case())
        if result is None or "failed" in result:
            return {}
        _, name, other = CURVES[target]
        test = [epoch["test"][name] for epoch in result["epochs"]]
        if name == "upsilon":
            return {"test": test, other: [epoch["train_upsilon"] for epoch in result["epochs"]]}
        second = [record[f"{name}_accuracy"] for record in result["history"]]
        return {"test": list(_percent(test)), other: list(_percent(second))}

    def _draw(self, target: str, numbers: dict[str, Any], path: Path) -> None:
        figure = empty_figure()
        axes = figure.subplots()
        if target == "fig7.1":
            for place, (network, found) in enumerate(numbers.items()):
                axes.plot(range(1, len(found["samples"]) + 1), found["samples"], "o", label=network, color=f"C{place}")
                axes.axhline(found["reference"], linestyle=":", color=f"C{place}")
            axes.set(xlabel="sample of a tenth of the training set", ylabel="$\\Upsilon$", ylim=(0, None))
        else:
            for (name, values), style in zip(numbers.items(), ("-", "--"), strict=False):
                axes.plot(range(1, len(values) + 1), values, style, label=name)
            axes.set(xlabel="epoch", ylabel=CURVES[target][0])
        if numbers:
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

    def _entry(self, results: Sequence[Result | None], name: str, published: float | None) -> Entry:
        diverged = sum(result is not None and "failed" in result for result in results)
        return Entry(_percent([_tested(r, name) for r in results]), published, len(self._seeds), diverged)

    def _strong(self, cells: Sequence[Sequence[Result | None]]) -> dict[str, list[Entry | str]]:
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

    def _caption(self, what: str) -> str:
        """Say what a table shows and how its protocol differs from the paper's."""
        own, paper = asdict(self._laboratory.protocol), asdict(Protocol())
        own |= own.pop("trainer")
        paper |= {name: parameter.default for name, parameter in PARAMETERS.items() if name not in paper}
        names = [key for key in own if own[key] != paper[key] and key not in ("strong_samples", "autoattack")]
        differences = ", ".join(f"{key} {own[key]!r}" for key in names)
        seeds = ", ".join(map(str, self._seeds))
        done = next((r for r in map(self._laboratory.find, self.planned) if r is not None), None)
        images = "" if done is None else ", ".join(f"{count} {part}" for part, count in done["images"].items())
        return (
            f"{what} Accuracy in %, ours (published). Seeds: {seeds}."
            + (f" Images: {images}." if images else "")
            + (f" Other than the paper's: {differences}." if differences else "")
        )

    def _documented(self, shown: dict[str, Any]) -> dict[str, Any]:
        own = {"protocol": asdict(self._laboratory.protocol), "seeds": list(self._seeds), "network": self._network}
        return {"setting": own, **shown}


def _percent(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(100 * value for value in values if value is not None)


def _tested(result: Result | None, name: str) -> float | None:
    return None if result is None or "failed" in result else result["test"][name]


def _validated(result: Result) -> float:
    accuracy: float = result["history"][result["best_epoch"]]["wp_accuracy"]
    return accuracy
