# SPDX-License-Identifier: MIT
"""The one runner of cells: each is a file, whole or not there, so that a run that is stopped goes on where it was."""

from __future__ import annotations

import json
import re
import tempfile
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from art_wdro import __version__
from art_wdro._storage.files import write_text
from benchmarks._files import RUNS

Content = dict[str, Any]
INDIFFERENT = ("case", "data_dir", "directory", "figure", "json", "networks", "quick")
"""What a command line says that changes no cell: places, and which cells are wanted."""


def run_cell(file: Path, asked: Content, work: Callable[[], Content], indifferent: Collection[str] = ()) -> Content:
    """Run a cell and keep what it gave, or read what it gave.

    :param file: Its file.
    :param asked: What makes the cell what it is; its "setting" is what many cells share.
    :param work: Runs it.
    :param indifferent: Keys of the setting that no figure depends on.
    :return: What was asked and what it gave, as JSON has them.
    :raises ValueError: If the file was made with something else.
    """
    if not file.exists():
        write_text(file, json.dumps({**asked, **work()}, indent=1))
    found: Content = json.loads(file.read_text(encoding="utf-8"))
    for key, value in json.loads(json.dumps(asked)).items():
        if _without(found.get(key), indifferent) != _without(value, indifferent):
            raise ValueError(f"{file} was made with another {key}; move it away")
    return found


def file_of(folder: Path, cell: Content) -> Path:
    """Return where a cell is kept."""
    words = [re.sub(r"[^\w.]+", "-", str(word)) for word in cell.values() if word is not None]
    return folder / f"{'-'.join(words)}.json"


def read_cells(folder: Path) -> list[Content]:
    """Return all cells that are there."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in whole_files(folder)]


def whole_files(folder: Path) -> list[Path]:
    """Return the JSON files in a folder and below, without hidden ones, which killed writes leave."""
    return sorted(file for file in folder.rglob("*.json") if not file.name.startswith("."))


class Cells:
    """The cells of one run, under one setting."""

    def __init__(self, folder: Path, setting: Content) -> None:
        """Name where they are kept, and what they share."""
        self._folder, self._setting = folder, setting

    def run(self, cell: Content, work: Callable[[], Content]) -> Content:
        """Return what a cell gives, as JSON has it; run it if need be.

        :param cell: What tells it from the others.
        :param work: Runs it.
        :raises ValueError: If it was run under another setting.
        """
        asked = {"cell": cell, "setting": self._setting}
        found = run_cell(file_of(self._folder, cell), asked, work)
        return {key: value for key, value in found.items() if key not in asked}

    def clear(self) -> None:
        """Forget all cells."""
        for file in whole_files(self._folder):
            file.unlink()


@contextmanager
def cells_of(args: Namespace, program: str) -> Iterator[Cells]:
    """Keep the cells of a run until it is over: one that was stopped goes on, one that has ended begins anew.

    :param args: The command line, which is the setting.
    :param program: Name of the program.
    """
    setting = {key: value for key, value in vars(args).items() if key not in INDIFFERENT}
    with tempfile.TemporaryDirectory() as passing:
        kept = RUNS / "cells" / "-".join([program, *([setting["name"]] if "name" in setting else [])])
        cells = Cells(Path(passing) if args.quick else kept, {"art-wdro": __version__, **setting})
        yield cells
        cells.clear()


def _without(part: Any, keys: Collection[str]) -> Any:
    return {key: value for key, value in part.items() if key not in keys} if isinstance(part, dict) else part
