# SPDX-License-Identifier: MIT
"""Digests of words and arrays, computed a part at a time."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from art_wdro._storage.arrays import Rows, parts

DIGITS = 16
"""Hexadecimal digits of a digest that is compared, 64 bits."""


def fingerprint(*tensors: Tensor) -> str:
    """Compute a digest of tensors, with their types and shapes."""
    return sha256(*tensors)[:DIGITS]


def sha256(*tensors: Tensor) -> str:
    """Compute the whole SHA-256 of tensors, with their types and shapes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        values = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
        rows = Rows(values[None] if values.dim() == 0 else values, torch.device("cpu"))
        for some in parts(len(rows), rows.at_once(len(rows))):
            digest.update(rows[some].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_text(text: str) -> str:
    """Compute a digest of words."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def digest_of_array(array: np.ndarray) -> str:
    """Compute a digest of an array of numbers or words, with its type and shape."""
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    if array.size:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:DIGITS]
