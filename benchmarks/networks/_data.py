# SPDX-License-Identifier: MIT
"""The images of the benchmarks: scikit-learn's digits, npz files, and the gzipped files of MNIST's format."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from art_wdro._sources.data import Split
from benchmarks._settings import QUICK

DIGITS = ("digits", QUICK)
TRAINED_ON = 1297
"""How many of the 1797 digits are for training."""


def load(name: str, directory: Path | None, train: bool) -> Split:
    """Load one part of a data set, in a fixed random order.

    :param name: Name in `DATA`.
    :param directory: Folder with train.npz and test.npz, each with x (N, H, W[, C]) in bytes and y (N,), or with the
        gzipped files of MNIST's format, as the Debian package dataset-fashion-mnist brings them.
    :param train: Whether to take the training part.
    """
    whole = stored(name, directory, train)
    order = np.random.default_rng(0).permutation(len(whole.x))
    if name in DIGITS:
        order = order[:TRAINED_ON] if train else order[TRAINED_ON:]
    return whole.choose(order)


def stored(name: str, directory: Path | None, train: bool) -> Split:
    """Load one part of a data set in the order in which it is stored; of digits, which have no parts, the whole."""
    if name in DIGITS:
        from sklearn.datasets import load_digits  # needed for nothing else

        digits = load_digits()
        return Split((digits.images[:, None] / 16).astype(np.float32), digits.target)
    if directory is None:
        raise SystemExit(f"{name} needs --data-dir")
    file = directory / ("train.npz" if train else "test.npz")
    if file.exists():
        with np.load(file) as data:
            x, y = data["x"], data["y"]
    else:
        stem = "train" if train else "t10k"
        x = _read_idx(directory / f"{stem}-images-idx3-ubyte.gz")
        y = _read_idx(directory / f"{stem}-labels-idx1-ubyte.gz")
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    return Split(np.ascontiguousarray(x, dtype=np.float32) / 255, y.astype(np.int64))


def _read_idx(path: Path) -> np.ndarray:
    """Read a gzipped file of bytes in MNIST's format, IDX."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
