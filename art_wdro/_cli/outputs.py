# SPDX-License-Identifier: MIT
"""Files that a command writes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from art_wdro._storage.files import check_target, write_atomically


def writable(**files: Path | None) -> list[Path]:
    """Check that all files can be written, before any work is done for them."""
    given = {name: path for name, path in files.items() if path is not None}
    for name, path in given.items():
        check_target(path, name)
    return list(given.values())


def save(path: Path | None, write: Callable[[Path], object]) -> None:
    """Write a file, if it is wanted.

    :raises OSError: With the file and the reason, if it cannot be written.
    """
    if path is None:
        return
    try:
        write_atomically(path, write)
    except OSError as error:
        raise OSError(f"'{path}' cannot be written: {error.strerror or error}") from error


def save_text(path: Path | None, text: str) -> None:
    """Write a text file, if it is wanted; errors are those of `save`."""
    save(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def telling(files: list[Path]) -> Iterator[None]:
    """Say after Ctrl-C where the finished parts are, and after a failed write which files there were to write.

    :raises OSError: With the files, if one could not be written and it is not known which.
    """
    try:
        yield
    except KeyboardInterrupt:
        there = [str(path) for path in files if path.exists()]
        print(f"finished parts are in {', '.join(there)}" if there else "no part was saved", file=sys.stderr)
        raise
    except OSError as error:
        if error.strerror is None or error.filename is not None:
            raise
        names = ", ".join(map(str, files)) or "no file of this command"
        raise OSError(f"{error.strerror}: {names}, or a temporary file in {tempfile.gettempdir()}") from error
