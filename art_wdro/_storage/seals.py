# SPDX-License-Identifier: MIT
"""Seals: the end of a file says what it is, with a digest of all that is before it and of itself.

The end, because torch reads archives that something follows, and maps them into memory; and because a file is then
written in one go while its digest is computed.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

MAGIC = b"art-wdro checkpoint\n"
"""Last bytes of a sealed file."""
DIGEST = 64
"""Length of the digest, SHA-256 in hexadecimal digits."""
LENGTH = 8
"""Length of the number, in hexadecimal digits, that says how long the marks are."""
CHUNK = 2**22
"""Bytes that are read at once to compute a digest."""


@dataclass(frozen=True)
class Seal:
    """The end of a sealed file: marks as JSON, the digest, the length of the marks, and the magic bytes.

    :param marks: What the file is, in plain values.
    :param digest: SHA-256 of all bytes of the file but these.
    """

    marks: dict[str, Any]
    digest: str


class Sealing:
    """A stream that computes the digest of what is written to it."""

    def __init__(self, stream: BinaryIO) -> None:
        """Write to a stream."""
        self._stream, self._digest = stream, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes.

        :raises OSError: If the stream cannot take them; kept in `error`, because torch raises another one in its place.
        """
        try:
            self._stream.write(data)
        except OSError as error:
            self.error = error
            raise
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Hand over what was written to the system."""
        self._stream.flush()

    def finish(self, marks: dict[str, Any]) -> None:
        """Write the seal."""
        words = json.dumps(marks).encode()
        end = f"{len(words):0{LENGTH}x}".encode() + MAGIC
        self._digest.update(words + end)
        self._stream.write(words + self._digest.hexdigest().encode() + end)
        self._stream.flush()


def seal_of(stream: BinaryIO) -> Seal | None:
    """Read the seal of a file, without comparing its digest; None if it has none."""
    size = stream.seek(0, os.SEEK_END)
    fixed = DIGEST + LENGTH + len(MAGIC)
    stream.seek(max(0, size - fixed))
    end = stream.read(fixed)
    if len(end) < fixed or not end.endswith(MAGIC):
        return None
    try:
        length = int(end[DIGEST : DIGEST + LENGTH], 16)
        stream.seek(size - fixed - length)
        marks = json.loads(stream.read(length))
        return Seal(marks, end[:DIGEST].decode("ascii")) if isinstance(marks, dict) else None
    except (ValueError, OSError):  # damaged
        return None


def check_seal(stream: BinaryIO, seal: Seal) -> None:
    """Compare the digest of a file with its seal, a part of the file at a time.

    :raises ValueError: If they differ.
    """
    size = stream.seek(0, os.SEEK_END)
    fixed = DIGEST + LENGTH + len(MAGIC)
    digest, left = hashlib.sha256(), size - fixed
    stream.seek(0)
    while left > 0:
        data = stream.read(min(left, CHUNK))
        digest.update(data)
        left -= len(data) or left
    end = stream.read(fixed)
    digest.update(end[DIGEST:])
    if digest.hexdigest().encode() != end[:DIGEST] or seal.digest.encode() != end[:DIGEST]:
        raise ValueError("its content does not fit its digest: it is damaged")
