# SPDX-License-Identifier: MIT
"""Claims: the path of a sealed file that one run replaces and removes, and nothing there that it did not put there.

The file that a run went on from or wrote last is locked for as long as the run lasts, and known by its seal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

from art_wdro._storage.files import beside
from art_wdro._storage.seals import Seal, seal_of

if sys.platform != "win32":
    import fcntl


class Claim:
    """A path, and what of this run lies there."""

    def __init__(self, file: Path) -> None:
        """Name the path; nothing there is this run's yet."""
        self._file = file
        self._own: Seal | None = None
        self._held: BinaryIO | None = None

    def take(self, look: Callable[[], Seal | None]) -> None:
        """Make what is there this run's own, so that no other run goes on from it.

        :param look: Returns the seal of what is there, or None where nothing is; raises where it does not fit.
        :raises ValueError: If another run holds it.
        """
        while look() is not None:
            try:
                stream = self._file.open("rb")
            except FileNotFoundError:
                continue
            if not _lock(stream):
                stream.close()
                raise ValueError(f"checkpoint '{self._file}' is in use by a run that is not done; give another path")
            self.release()
            self._held = stream
            # another run may have replaced it just now
            if self._file.exists() and os.path.samestat(os.fstat(stream.fileno()), self._file.stat()):
                self._own = look()
                return
        self.release()

    def try_writing(self) -> None:
        """Refuse a path where no file can be made.

        :raises ValueError: If it is one.
        """
        folder = self._file.parent
        try:
            while not folder.exists():
                folder = folder.parent
            with beside(folder / self._file.name):
                pass
        except OSError as error:
            reason = error.strerror
            raise ValueError(f"checkpoint '{self._file}' cannot be written ({reason}); give another path") from error

    def check(self) -> None:
        """Refuse to write over what this run did not put there.

        :raises ValueError: If something else lies there.
        """
        if self._is_taken() and not self._is_own():
            _refuse(self._file)

    def place(self, temporary: Path, file: Path) -> None:
        """Put a complete file in its place.

        :raises ValueError: If something else than this run's own lies there.
        """
        stream = temporary.open("rb")
        try:
            _lock(stream)
            seal = seal_of(stream)
            self.check()
            if self._is_taken():
                os.replace(temporary, file)
            else:
                _put(temporary, file)
        except BaseException:
            stream.close()
            raise
        self.release()
        self._held, self._own = stream, seal

    def remove(self) -> bool:
        """Delete the file, and tell whether nothing is left there: what this run did not put there stays."""
        if self._is_taken() and self._is_own():
            self._file.unlink()
        return not self._is_taken()

    def release(self) -> None:
        """Let others use the file."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _is_taken(self) -> bool:
        return self._file.exists() or self._file.is_symlink()

    def _is_own(self) -> bool:
        if self._own is None or not self._file.is_file() or self._file.is_symlink():
            return False
        with self._file.open("rb") as stream:
            return seal_of(stream) == self._own


def _refuse(file: Path) -> NoReturn:
    raise ValueError(
        f"checkpoint '{file}' is not this run's any more: something else was put there, which stays; move it away, or "
        "give another path"
    )


def _lock(stream: BinaryIO) -> bool:
    """Hold a file until the stream is closed or the process ends; tell whether no other one holds it."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: two runs are told apart when they write
    return True


def _put(temporary: Path, file: Path) -> None:
    """Put a file where none is.

    :raises ValueError: If one has appeared there.
    """
    try:
        os.link(temporary, file)
    except FileExistsError:
        _refuse(file)
    except OSError:  # a file system without links
        if file.exists():
            _refuse(file)
        os.replace(temporary, file)
