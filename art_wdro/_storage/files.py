# SPDX-License-Identifier: MIT
"""Files that are whole or not there: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NAME_LENGTH = 255
"""Bytes in the name of a file or directory, at most, on the file systems in use."""
STEM = 32
"""Most characters of a file's name in that of the temporary file beside it, so that a long one fits there too."""


def write_atomically(
    path: Path, write: Callable[[Path], object], place: Callable[[Path, Path], object] = os.replace
) -> None:
    """Let `write` make a file, and put it in place only when it is complete.

    :param path: Where the file goes; its directory is made if need be.
    :param write: Writes to the path that it is given, which has the same ending.
    :param place: Puts the complete file, its first argument, in its place.
    """
    path = path.resolve()  # a link keeps pointing where it points
    if path.exists() and not path.is_file():
        write(path)  # a pipe or a device cannot be replaced
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as temporary:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(path.stat().st_mode if path.exists() else 0o666 & ~_umask())
        place(temporary, path)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Make an empty file beside a path, and remove it if it is still there afterwards."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:STEM]}-", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def check_target(path: Path, name: str) -> None:
    """Refuse a path that no file can be written to, before any work is done for it.

    :raises ValueError: If it is a directory, its name is too long, or its parent is none or may not be written to.
    """
    refusal = f"{name} is '{path}', where no file can be written"
    try:
        target = path.resolve()
        if target.is_dir():
            raise ValueError(f"{refusal}: it is a directory")
        parent = target.parent
        while not parent.exists():
            if len(os.fsencode(parent.name)) > NAME_LENGTH:
                raise ValueError(f"{refusal}: the name of a directory is too long")
            parent = parent.parent
        if target.exists() and not target.is_file():  # a pipe or a device
            if not os.access(target, os.W_OK):
                raise PermissionError("permission denied")
            return
        if len(os.fsencode(target.name)) > NAME_LENGTH:
            raise OSError("its name is too long")
        with beside(parent / target.name):  # where it will be written first
            pass
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{refusal}: {getattr(error, 'strerror', None) or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
