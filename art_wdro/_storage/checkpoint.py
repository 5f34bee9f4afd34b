# SPDX-License-Identifier: MIT
"""Checkpoints: one file, whole or not there, read without running code from it, and refused where it does not fit.

What they hold besides is in `seals.py`, who may write them in `claims.py`, and what they compare in `descriptions.py`.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from pickle import UnpicklingError
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, cast

import torch
from torch import Tensor

from art_wdro._storage.claims import Claim
from art_wdro._storage.files import write_atomically
from art_wdro._storage.seals import Seal, Sealing, check_seal, seal_of

FORMAT = 2
SECONDS = 30.0
"""Least time between two checkpoints of a long computation."""
COPIED = 2**24
"""Bytes of a tensor that is read at once; a larger one of an attack is mapped into memory."""
log = logging.getLogger("art_wdro")


def save(
    file: Path,
    kind: str,
    settings: dict[str, Any],
    content: dict[str, Any],
    place: Callable[[Path, Path], object] = os.replace,
) -> None:
    """Write a checkpoint: complete, sealed, flushed to disk, then put in its place.

    :param file: Where it goes.
    :param kind: What it is a checkpoint of.
    :param settings: What must be equal when it is read: numbers, words, and lists and dicts of them.
    :param content: Tensors, numbers, words, and lists and dicts of them.
    :param place: Puts the complete file, its first argument, in its place.
    :raises OSError: If it cannot be written; what is there stays.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            sealing = Sealing(stream)
            try:
                torch.save({"settings": settings, "content": content}, cast(BinaryIO, sealing))
            except RuntimeError:  # what torch makes of an error of the stream
                if sealing.error is not None:
                    raise sealing.error from None
                raise
            sealing.finish({"format": FORMAT, "kind": kind, "run": uuid.uuid4().hex})
        try:
            torch.load(temporary, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:
            raise ValueError(f"checkpoint cannot hold the state of a custom object: {error}") from error

    try:
        write_atomically(file, write, place)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno, f"checkpoint '{file}' cannot be written ({reason}); what was there before is as it was"
        ) from error


def check(file: Path, kind: str) -> Seal | None:
    """Refuse what is there if it is no checkpoint of this kind, without reading its content.

    :param file: The path.
    :param kind: What it must be a checkpoint of.
    :return: Its seal, or None if nothing is there.
    :raises ValueError: If something else is there.
    """
    try:
        if not file.exists():
            return None
        if not file.is_file():
            raise ValueError(f"checkpoint '{file}' is no regular file; give another path")
        with file.open("rb") as stream:
            return _seal(file, stream, kind)
    except OSError as error:
        raise ValueError(f"checkpoint '{file}' cannot be read ({error.strerror}); give another path") from error


def load(
    file: Path, kind: str, settings: dict[str, Any], later: Collection[str] = (), *, mapped: bool = False
) -> dict[str, Any] | None:
    """Read a checkpoint, or return None where there is none yet.

    Nothing in the file is executed: torch reads tensors and plain values alone (`weights_only`), after all bytes of the
    file were compared with its digest.

    :param file: Where it lies.
    :param kind: What it must be a checkpoint of.
    :param settings: What it must have been made with.
    :param later: Names of further settings that the caller will compare.
    :param mapped: Whether large tensors are mapped into memory: they must be read before the file can change.
    :return: Its settings and its content, on the host.
    :raises ValueError: If it is no whole checkpoint, or one of something else; the message says which setting differs.
    """
    seal = check(file, kind)
    if seal is None:
        return None
    try:
        with file.open("rb") as stream:
            check_seal(stream, seal)
        whole: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        raise ValueError(f"checkpoint '{file}' cannot be read ({error}); delete it to begin anew") from error
    if not isinstance(whole.get("settings"), dict) or not isinstance(whole.get("content"), dict):
        raise ValueError(f"checkpoint '{file}' lacks a part; delete it to begin anew")
    for name in sorted({*settings, *whole["settings"]} - {*later}):
        compare(file, name, whole["settings"].get(name), settings.get(name))
    return {"settings": whole["settings"], "content": _read(whole["content"]) if mapped else whole["content"]}


def compare(file: Path, name: str, was: object, now: object) -> None:
    """Refuse a checkpoint that was made with another setting.

    :raises ValueError: If it was; the message names the setting.
    """
    if was != now:
        raise ValueError(
            f"checkpoint '{file}' was made with {name} = {was!r}, and now it is {now!r}; give another path, or "
            "delete it to begin anew"
        )


def _read(content: Any) -> Any:
    """Copy all that is small out of a mapped file."""
    if isinstance(content, Tensor):
        return content.clone() if content.numel() * content.element_size() <= COPIED else content
    if isinstance(content, dict):
        return {name: _read(value) for name, value in content.items()}
    return [_read(value) for value in content] if isinstance(content, list) else content


class Checkpoint:
    """The checkpoint of one long computation: offered often, written now and then, deleted at the end.

    A context, which holds the file that it went on from or wrote last against other runs.
    """

    def __init__(
        self,
        file: Path,
        kind: str,
        settings: dict[str, Any],
        later: Collection[str] = (),
        *,
        mapped: bool = False,
        writes: bool = True,
    ) -> None:
        """Read what is there, before anything is computed.

        :param file: The file.
        :param kind: What it is a checkpoint of.
        :param settings: What must be equal when it is read.
        :param later: Names of the settings that :meth:`require` will bring.
        :param mapped: Whether large tensors that are read are mapped into memory.
        :param writes: Whether this process is the one that writes it.
        :raises ValueError: If something else is there, or it cannot be read, written or is in use.
        """
        self._file, self._kind, self._settings = file.resolve(), kind, settings  # a link stays, and leads to it
        self._claim = Claim(self._file)
        self._written = time.monotonic()
        try:
            if writes:
                self._claim.take(lambda: check(self._file, kind))
            self._saved = load(self._file, kind, settings, later, mapped=mapped)
            if writes:
                self._claim.try_writing()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let others use the file."""
        self._claim.release()

    def load(self) -> dict[str, Any] | None:
        """Return what an earlier run saved last, or None."""
        return None if self._saved is None else self._saved["content"]

    def require(self, name: str, value: Any) -> None:
        """Bring a setting that was not known before.

        :raises ValueError: If what was read was made with another one.
        """
        if self._saved is not None:
            compare(self._file, name, self._saved["settings"].get(name), value)
        self._settings = {**self._settings, name: value}

    def offer(self, content: Callable[[], dict[str, Any]]) -> None:
        """Save the content, if the last time is long enough ago."""
        if time.monotonic() - self._written >= SECONDS:
            self.save(content())

    def save(self, content: dict[str, Any]) -> None:
        """Save the content.

        :raises ValueError: If what lies there is not what this run put there.
        :raises OSError: If it cannot be written.
        """
        self._saved = None
        self._claim.check()
        save(self._file, self._kind, self._settings, content, self._claim.place)
        self._written = time.monotonic()

    def finish(self) -> None:
        """Delete the file; what this run did not put there stays, and the log says so."""
        try:
            if self._claim.remove():
                return
            reason = "it is not this run's"
        except OSError as error:
            reason = str(error.strerror)
        log.warning("'%s', where the checkpoint was to be, stays there: %s", self._file, reason)


def _seal(file: Path, stream: BinaryIO, kind: str) -> Seal:
    """Read the seal of a checkpoint.

    :raises ValueError: If it has none, or one of another format or kind.
    """
    seal = seal_of(stream)
    if seal is None:
        _refuse_unsealed(file, kind)
    elif seal.marks.get("format") != FORMAT:
        _refuse_format(file, seal.marks.get("format"))
    elif seal.marks.get("kind") != kind:
        raise ValueError(f"checkpoint '{file}' is not one of {kind}; give another path")
    return seal


def _refuse_unsealed(file: Path, kind: str) -> NoReturn:
    """Say what a file without a seal is: a checkpoint of format 1, something else that torch reads, or unknown."""
    try:
        whole = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whatever torch makes of a file that it did not write
        whole = None
    names = whole.keys() if isinstance(whole, dict) else set()
    if names == {"format", "kind", "settings", "content"}:
        _refuse_format(file, whole["format"])
    if whole is None or names == {"settings", "content"}:
        raise ValueError(
            f"checkpoint '{file}' cannot be read (it is cut off or damaged, or no checkpoint: then give another path); "
            "delete it to begin anew"
        )
    raise ValueError(f"checkpoint '{file}' is not one of {kind}; give another path")


def _refuse_format(file: Path, number: object) -> NoReturn:
    raise ValueError(
        f"checkpoint '{file}' has the format {number}, and this version reads the format {FORMAT} alone; finish it "
        "with the version that wrote it, or delete it to begin anew"
    )
