# SPDX-License-Identifier: MIT
"""The command line that all programs share."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks._files import RESULTS, ROOT
from benchmarks._settings import DATA, QUICK

T = TypeVar("T")
NAMES = tuple(name for name in DATA if name != QUICK)
FIXED = (RESULTS, ROOT / "docs")
"""Folders of figures in version control, which a quick run leaves alone."""


def command(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every program takes.

    :param doc: The program's docstring, its help.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds on scikit-learn's digits, to see it run")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser


def with_data(parser: argparse.ArgumentParser, names: Collection[str] = NAMES) -> argparse.ArgumentParser:
    """Add the name of a data set and the folder that holds it."""
    parser.add_argument("name", nargs="?", choices=tuple(names), help="not with --quick, which has its own")
    parser.add_argument("--data-dir", type=Path, help="folder of the data set")
    return parser


def with_shard(parser: argparse.ArgumentParser, what: str) -> argparse.ArgumentParser:
    """Add which share of the work a process takes, for :func:`share`.

    :param parser: From :func:`command`.
    :param what: What is shared, and when, for the help.
    """
    parser.add_argument("--shard", type=_shard, metavar="I/N", help=f"take every N-th of {what}, from the I-th on")
    return parser


def share(items: Sequence[T], shard: tuple[int, int] | None) -> Sequence[T]:
    """Return the share of a process, or all where none is asked for.

    >>> share("abcde", (1, 2)), share("abcde", None)
    ('bd', 'abcde')
    """
    number, count = shard or (0, 1)
    return items[number::count]


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, **quick: Any) -> argparse.Namespace:
    """Read a command line.

    :param parser: From :func:`command`.
    :param arguments: Its words; None takes the process's.
    :param quick: Values that options have under --quick unless they are given.
    """
    args = parser.parse_args(arguments)
    if args.quick:
        parser.set_defaults(**quick)
        args = parser.parse_args(arguments)
        if "name" in args:
            args.name = QUICK
        for file in (args.json, getattr(args, "figure", None), getattr(args, "curve", None)):
            if file is not None and any(folder in file.resolve().parents for folder in FIXED):
                parser.error(f"{file} is among the figures in version control; --quick writes none there")
    elif getattr(args, "name", QUICK) is None:
        parser.error("a data set is missing, or --quick")
    return args


def _shard(text: str) -> tuple[int, int]:
    """Read "0/4" as (0, 4)."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"shard is {text!r}; allowed are 0/N to N-1/N")
    return int(number), int(count)
