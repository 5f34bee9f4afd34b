# SPDX-License-Identifier: MIT
"""Data sets for the command line and the demo: npz files, torchvision's data sets, folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Split(NamedTuple):
    """Images (N, C, H, W) in [0, 1], or other inputs (N, ...), and class indices (N,)."""

    x: np.ndarray
    y: np.ndarray

    def subset(self, count: int | None, seed: int) -> Split:
        """Draw `count` samples without replacement, or take all in a random order if there are no more."""
        order = np.random.default_rng(seed).permutation(len(self.x))[:count]
        return Split(self.x[order], self.y[order])


def as_images(x: np.ndarray) -> np.ndarray:
    """Turn bytes (N, H, W) or (N, H, W, C), or floats in [0, 1], into float32 images (N, C, H, W).

    Arrays of two dimensions, and images that have their channels first already, keep their shape.
    """
    scale = 255 if x.dtype == np.uint8 or x.max() > 1 else 1
    x = (x / scale).astype(np.float32)
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x


def load_data(
    source: str,
    train: bool = False,
    directory: str | Path = "data",
    download: bool = False,
    size: int | None = None,
) -> Split:
    """Load a data set.

    :param source: A file NAME.npz with x and y; "torchvision:NAME", such as "torchvision:CIFAR10"; or a folder with a
        subfolder of images for each class.
    :param train: Take the training part of a torchvision data set.
    :param directory: Where torchvision finds its data sets.
    :param download: Let torchvision fetch the data set.
    :param size: Height and width to which the images of a folder are resized and cropped.
    :return: Inputs and class indices.
    :raises ValueError: If the source names no data set, or does not hold one.
    :raises FileNotFoundError: If a file is not there.
    :raises ImportError: If torchvision is needed and not installed.
    """
    kind, _, name = source.partition(":")
    if kind == "torchvision":
        return _from_torchvision(name, train, directory, download)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, size)
    if path.suffix != ".npz":
        raise ValueError(f"data is {source!r}; allowed are a file .npz, torchvision:NAME or a folder of images")
    if not path.is_file():
        raise FileNotFoundError(f"data is {source!r}, and there is no such file")
    with np.load(path) as data:
        if not {"x", "y"} <= set(data.files):
            raise ValueError(f"data is {source!r}, which holds {data.files}; needed are x and y")
        x, y = data["x"], data["y"].reshape(-1)
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"data is {source!r}, which holds {len(x)} inputs and {len(y)} labels; needed is one each")
    return Split(as_images(x), y.astype(np.int64))


def _torchvision() -> Any:
    try:
        from torchvision import datasets
    except ImportError:
        raise ImportError("this data needs torchvision: pip install 'art-wdro[demo]'") from None
    return datasets


def _from_torchvision(name: str, train: bool, directory: str | Path, download: bool) -> Split:
    cls = getattr(_torchvision(), name, None)
    if not isinstance(cls, type):
        raise ValueError(f"data is 'torchvision:{name}', and torchvision has no data set {name!r}")
    try:
        part = cls(directory, train=train, download=download)
    except TypeError:
        part = cls(directory, split="train" if train else "test", download=download)
    except RuntimeError as error:
        raise FileNotFoundError(f"data is 'torchvision:{name}', and {directory} does not hold it: {error}") from error
    labels = part.targets if hasattr(part, "targets") else part.labels
    return Split(as_images(np.asarray(part.data)), np.asarray(labels).astype(np.int64))


def _from_folder(path: Path, size: int | None) -> Split:
    from PIL import UnidentifiedImageError

    datasets = _torchvision()
    try:
        folder = datasets.ImageFolder(str(path))
        images = [_resized(image, size) for image, _ in folder]
    except (FileNotFoundError, UnidentifiedImageError) as error:
        raise ValueError(f"data is {str(path)!r}, which is no folder of images: {error}") from error
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(f"data is {str(path)!r}, whose images have {len(shapes)} different sizes; give a size")
    return Split(as_images(np.stack(images)), np.asarray(folder.targets))


def _resized(image: Any, size: int | None) -> np.ndarray:
    if size is not None:
        from torchvision.transforms import functional

        image = functional.center_crop(functional.resize(image, size), [size, size])
    return np.asarray(image)
