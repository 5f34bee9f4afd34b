# SPDX-License-Identifier: MIT
"""Files to read: that they are there, and no larger than they look."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path


def require_file(path: Path, what: str) -> None:
    """Refuse what is no file that can be read.

    :param path: The file.
    :param what: What it is for, such as "model is".
    :raises OSError: With the reason: often a FileNotFoundError.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{what} '{path}', which is a directory; needed is a file")
    if not path.is_file():
        raise FileNotFoundError(f"{what} '{path}', and there is no such file")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{what} '{path}', which may not be read")


def check_stored(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse an archive of torch that unpacks to more than its file: torch compresses nothing.

    :raises ValueError: If it does.
    """
    members = archive.infolist()
    if any(info.compress_type != zipfile.ZIP_STORED for info in members):
        raise ValueError("its members are compressed, and torch writes none that are")
    if sum(info.file_size for info in members) > path.stat().st_size:
        raise ValueError("its members are larger than the file")
