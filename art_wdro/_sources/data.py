# SPDX-License-Identifier: MIT
"""Data sets for the command line and the demo: npz files, torchvision's data sets, folders of images."""

from __future__ import annotations

import os
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from art_wdro._host.extras import install
from art_wdro._sources.files import require_file
from art_wdro._sources.messages import short

GREY = ("1", "L", "LA", "La")
"""What Pillow calls images without colours."""


class Split(NamedTuple):
    """Images (N, C, H, W) in [0, 1], or other inputs (N, ...), and class indices (N,)."""

    x: np.ndarray
    y: np.ndarray

    def choose(self, indices: np.ndarray) -> Split:
        """Return the samples with these indices."""
        return Split(self.x[indices], self.y[indices])


def as_images(x: np.ndarray) -> np.ndarray:
    """Turn bytes (N, H, W) or (N, H, W, C), or floats in [0, 1], into float32 images (N, C, H, W).

    Arrays of two dimensions, and images that have their channels first already, keep their shape.

    :raises ValueError: If the values are neither bytes nor numbers in [0, 1], or no array of inputs.
    """
    if x.ndim < 2:
        raise ValueError(f"x has the shape {x.shape}; needed is (N, ...)")
    if x.dtype.kind not in "fiub":
        raise ValueError(f"x has the dtype {x.dtype}; allowed are bytes and numbers in [0, 1]")
    if x.dtype == np.uint8 and x.ndim > 2:  # in float64, but without an array of it
        x = np.divide(x, 255, out=np.empty(x.shape, np.float32), dtype=np.float64, casting="same_kind")
    x = np.asarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        raise ValueError("x holds NaN or inf; allowed are finite numbers")
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"x lies in [{x.min():g}, {x.max():g}]; allowed are images in bytes and numbers in [0, 1]")
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x


def as_classes(y: np.ndarray, count: int) -> np.ndarray:
    """Turn labels (N,), (N, 1) or one-hot rows (N, K) into class indices (N,).

    :raises ValueError: If there are not `count` of them, or they are no whole numbers.
    """
    if y.dtype.kind not in "fiub":
        raise ValueError(f"y has the dtype {y.dtype}; allowed are class indices and one-hot rows")
    if y.ndim == 2 and y.shape[1] > 1:
        y = y.argmax(1)
    y = y.reshape(-1)
    if len(y) != count or count == 0:
        raise ValueError(f"x holds {count} inputs and y {len(y)} labels; needed is one each")
    if not np.array_equal(y, np.floor(y)):
        raise ValueError("y holds labels that are no whole numbers")
    return y.astype(np.int64)


def load_data(
    source: str,
    train: bool = False,
    directory: str | Path = "data",
    download: bool = False,
    size: int | None = None,
    channels: int | None = None,
) -> Split:
    """Load a data set.

    :param source: A file NAME.npz with x and y; "torchvision:NAME", such as "torchvision:CIFAR10"; or a folder with a
        subfolder of images for each class.
    :param train: Take the training part of a torchvision data set.
    :param directory: Where torchvision finds its data sets.
    :param download: Let torchvision fetch the data set.
    :param size: Height and width to which the images of a folder are resized and cropped.
    :param channels: Channels of a folder's images, 1 or 3; None leaves grey ones grey if all are, and others have 3.
    :return: Inputs and class indices.
    :raises ValueError: If the source names no data set, or does not hold one.
    :raises OSError: If a file is not there (a FileNotFoundError) or cannot be read.
    :raises ImportError: If torchvision is needed and not installed.
    """
    kind, _, name = source.partition(":")
    if kind == "torchvision":
        return _from_torchvision(name, train, directory, download)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, size, channels)
    if path.suffix != ".npz":
        raise ValueError(f"data is {source!r}; allowed are a file .npz, torchvision:NAME or a folder of images")
    require_file(path, "data is")
    try:
        return _from_npz(path)
    except Exception as error:
        reason = error if isinstance(error, ValueError) else short(error)
        raise ValueError(f"data is {source!r}, which cannot be used: {reason}") from error


def _from_npz(path: Path) -> Split:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
    if not {"x", "y"} <= set(sizes):
        raise ValueError(f"it holds {list(sizes)}; needed are x and y")
    for name in ("x", "y"):
        if sizes[name] > memory:  # a small file can unpack to anything
            raise ValueError(f"{name} takes {sizes[name] / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f} GB")
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
        inputs, labels = data["x"], data["y"]
    if not isinstance(inputs, np.ndarray) or not isinstance(labels, np.ndarray):
        raise ValueError("its x or y is no array")  # NumPy hands out the bytes of any other file
    x = as_images(inputs)
    return Split(x, as_classes(labels, len(x)))


def _torchvision() -> Any:
    try:
        from torchvision import datasets
    except ImportError:
        raise ImportError(f"this data needs torchvision: {install('demo')}") from None
    return datasets


def _from_torchvision(name: str, train: bool, directory: str | Path, download: bool) -> Split:
    cls = getattr(_torchvision(), name, None)
    if not isinstance(cls, type):
        raise ValueError(f"data is 'torchvision:{name}', and torchvision has no data set {name!r}")
    try:
        try:
            part: Any = cls(directory, train=train, download=download)
        except TypeError:
            part = cls(directory, split="train" if train else "test", download=download)
    except RuntimeError as error:
        raise FileNotFoundError(f"data is 'torchvision:{name}', and {directory} does not hold it: {error}") from error
    except Exception as error:
        raise ValueError(f"data is 'torchvision:{name}', which torchvision could not load: {short(error)}") from error
    labels = getattr(part, "targets", getattr(part, "labels", None))
    if not hasattr(part, "data") or labels is None:
        raise ValueError(f"data is 'torchvision:{name}', which is not held as arrays; an npz file or a folder will do")
    x = as_images(np.asarray(part.data))
    return Split(x, as_classes(np.asarray(labels), len(x)))


def _from_folder(path: Path, size: int | None, channels: int | None) -> Split:
    datasets = _torchvision()
    try:
        folder = datasets.ImageFolder(str(path))
    except OSError as error:
        raise ValueError(f"data is {str(path)!r}, which is no folder of images: {error}") from error
    images = [_read_image(file, size, channels) for file, _ in folder.samples]
    sizes = {image.shape[1:] for image in images}
    if len(sizes) > 1:
        raise ValueError(f"data is {str(path)!r}, whose images have {len(sizes)} different sizes; give a size")
    count = max(len(image) for image in images)
    x = np.stack([np.broadcast_to(image, (count, *image.shape[1:])) for image in images])
    return Split(as_images(x), np.asarray(folder.targets))


def _read_image(file: str, size: int | None, channels: int | None) -> np.ndarray:
    """Return an image as bytes (C, H, W)."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"it has the mode {image.mode}; needed are 8 bits for each channel")
                grey = channels == 1 or (channels is None and image.mode in GREY)
                array = np.asarray(_resized(image.convert("L" if grey else "RGB"), size))
                return array[None] if grey else array.transpose(2, 0, 1)
    except Exception as error:
        raise ValueError(f"data has the image '{file}', which cannot be read: {short(error)}") from error


def _resized(image: Any, size: int | None) -> Any:
    if size is not None:
        from torchvision.transforms import functional

        image = functional.center_crop(functional.resize(image, size), [size, size])
    return image
