# SPDX-License-Identifier: MIT
"""Tables and a drawing of the rankings that optimality.py keeps.

    python -m benchmarks.attacks.optimality_figure --figure docs/optimality.png

Without names of files it takes all rankings of benchmarks/results; so does a quick run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from art_wdro._storage.files import write_atomically
from art_wdro.evaluation._report import empty_figure
from benchmarks._command import command, parsed
from benchmarks._files import RESULTS, keep
from benchmarks._tables import Table
from benchmarks.attacks.optimality import OURS, OWN

NORMS = {"inf": "l_inf", "2.0": "l_2", "1.0": "l_1"}
Ranking = dict[str, dict[str, float]]
"""Optimality by attack and network."""


def network_of(setting: dict[str, Any]) -> str:
    """Return what a ranking's network is called: its factory, else its data set."""
    name: str = setting["name"]
    return str(setting["network"]).rpartition(":")[2] if name == OWN else name


def rankings(files: Sequence[Path]) -> tuple[dict[tuple[str, int], Ranking], dict[tuple[str, int], int]]:
    """Read files.

    :return: Rankings by norm and passes, and how many images there were by network and passes.
    """
    found: dict[tuple[str, int], Ranking] = {}
    images: dict[tuple[str, int], int] = {}
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        network = network_of(content["setting"])
        for row in content["rows"]:
            ranking = found.setdefault((row["norm"], row["passes"]), {})
            ranking.setdefault(row["attack"], {})[network] = row["optimality"]
            images[network, row["passes"]] = content["setting"]["correct"]
    return dict(sorted(found.items(), key=lambda item: ([*NORMS].index(item[0][0]), item[0][1]))), images


def networks_in(ranking: Ranking) -> list[str]:
    """Return the networks of a ranking in alphabetical order."""
    return sorted({network for own in ranking.values() for network in own})


def show(ranking: Ranking) -> None:
    """Print a ranking, the best on the average of the networks first, winners in bold."""
    networks = networks_in(ranking)
    table = Table("attack", *networks)
    best = {network: max(own.get(network, -1.0) for own in ranking.values()) for network in networks}
    for attack, own in sorted(ranking.items(), key=lambda item: -sum(item[1].values()) / len(item[1])):
        entries = [f"{own[network]:.3f}" if network in own else "" for network in networks]
        table.row(attack, *(f"**{e}**" if own.get(n) == best[n] else e for n, e in zip(networks, entries, strict=True)))


def draw(found: dict[tuple[str, int], Ranking], file: Path) -> None:
    """Draw a panel a norm and number of passes: a row a network, a dot an attack."""
    all_passes = sorted({passes for _, passes in found})
    figure = empty_figure()
    figure.set_size_inches(8, 0.6 + 1.9 * len(all_passes))
    panels = figure.subplots(len(all_passes), len(NORMS), squeeze=False, sharex=True, sharey="row")
    for line, passes in zip(panels, all_passes, strict=True):
        for axes, (norm, name) in zip(line, NORMS.items(), strict=True):
            ranking = found.get((norm, passes), {})
            networks = networks_in(ranking)
            for attack, own in sorted(ranking.items(), key=lambda item: item[0] == OURS):
                places = [networks.index(network) for network in own]
                look = {"color": "#d55e00", "s": 40} if attack == OURS else {"color": "#999999", "s": 14}
                axes.scatter([max(0.0, value) for value in own.values()], places, **look)
            axes.set_yticks(range(len(networks)), networks, fontsize=7)
            axes.set_title(f"{name}, {passes:,} passes", fontsize=8)
            axes.set_xlim(-0.03, 1.03)
    for axes in panels[-1]:
        axes.set_xlabel("optimality", fontsize=8)
    write_atomically(file, partial(figure.savefig, dpi=120))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("files", nargs="*", type=Path)
    found.add_argument("--figure", type=Path)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and draw them."""
    args = parsed(parser(), arguments)
    found, images = rankings(args.files or sorted(RESULTS.glob("optimality_*.json")))
    margins = []
    for (norm, passes), ranking in found.items():
        print(f"\n{NORMS[norm]}, {passes:,} passes\n")
        show(ranking)
        for network in networks_in(ranking):
            others = max(own[network] for attack, own in ranking.items() if attack != OURS and network in own)
            row = {"norm": norm, "passes": passes, "network": network, "images": images[network, passes]}
            margins.append({**row, "ours": ranking[OURS][network], "next": others})
    if args.figure is not None:
        draw(found, args.figure)
    keep(args.json, margins)


if __name__ == "__main__":
    main()
