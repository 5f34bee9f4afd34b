# SPDX-License-Identifier: MIT
"""Checkpoints: one file, whole or not there, read without running code from it, and refused where it does not fit."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from art_wdro._storage.arrays import Rows, parts
from art_wdro._storage.files import write_atomically

FORMAT = 1
SECONDS = 30.0
"""Least time between two checkpoints of a long computation."""


def save(file: Path, kind: str, settings: dict[str, Any], content: dict[str, Any]) -> None:
    """Write a checkpoint: complete, flushed to disk, then renamed to its place.

    :param file: Where it goes.
    :param kind: What it is a checkpoint of.
    :param settings: What must be equal when it is read: numbers, words, and lists and dicts of them.
    :param content: Tensors, numbers, words, and lists and dicts of them.
    """
    whole = {"format": FORMAT, "kind": kind, "settings": settings, "content": content}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:  # torch reads more into a name than is there
            torch.save(whole, stream)
        try:
            torch.load(temporary, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:
            raise ValueError(f"checkpoint cannot hold the state of a custom object: {error}") from error

    write_atomically(file, write)


def load(file: Path, kind: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Read a checkpoint, or return None where there is none yet.

    Nothing in the file is executed: torch reads tensors and plain values alone (`weights_only`).

    :param file: Where it lies.
    :param kind: What it must be a checkpoint of.
    :param settings: What it must have been made with.
    :return: Its content, on the host.
    :raises ValueError: If it is no whole checkpoint, or one of something else; the message says which setting differs.
    """
    if not file.exists():
        return None
    try:
        whole = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(
            f"checkpoint '{file}' cannot be read ({type(error).__name__}); delete it to begin anew"
        ) from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT or whole.get("kind") != kind:
        raise ValueError(f"checkpoint '{file}' is not one of {kind}; give another path")
    if not isinstance(whole.get("settings"), dict) or not isinstance(whole.get("content"), dict):
        raise ValueError(f"checkpoint '{file}' lacks a part; delete it to begin anew")
    for name in sorted({*settings, *whole["settings"]}):
        was, now = whole["settings"].get(name), settings.get(name)
        if was != now:
            raise ValueError(
                f"checkpoint '{file}' was made with {name} = {was!r}, and now it is {now!r}; give another path, or "
                "delete it to begin anew"
            )
    content: dict[str, Any] = whole["content"]
    return content


def fingerprint(*values: Any) -> int:
    """Compute a checksum of tensors; anything else that a state dict may hold counts by its text."""
    checksum = 0
    for value in values:
        if not isinstance(value, Tensor):
            checksum = zlib.crc32(repr(value).encode(), checksum)
            continue
        rows = Rows(value.detach()[None] if value.dim() == 0 else value.detach(), torch.device("cpu"))
        for some in parts(len(rows), rows.at_once(len(rows))):
            checksum = zlib.crc32(rows[some].contiguous().view(-1).view(torch.uint8).numpy().tobytes(), checksum)
    return checksum


def described(value: object) -> str:
    """Describe an object in words that another process would use too: without the address that a default repr has."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


class Checkpoint:
    """The checkpoint of one long computation: offered often, written now and then, deleted at the end."""

    def __init__(self, file: Path, kind: str, settings: dict[str, Any]) -> None:
        """Name the file, what it is a checkpoint of, and what must be equal when it is read."""
        self._file, self._kind, self._settings = file, kind, settings
        self._written = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return what was saved last, or None."""
        return load(self._file, self._kind, self._settings)

    def offer(self, content: Callable[[], dict[str, Any]]) -> None:
        """Save the content, if the last time is long enough ago."""
        if time.monotonic() - self._written >= SECONDS:
            save(self._file, self._kind, self._settings, content())
            self._written = time.monotonic()

    def finish(self) -> None:
        """Delete the file."""
        self._file.unlink(missing_ok=True)
