# SPDX-License-Identifier: MIT
"""What a report was made with: versions, the device, and digests of data and weights."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro._ranks import everywhere
from art_wdro._storage.arrays import Rows, parts
from art_wdro._storage.digests import sha256
from art_wdro._version import __version__


def versions() -> dict[str, str]:
    """Return the versions that figures depend on."""
    packages = ("torch", "numpy", "adversarial-robustness-toolbox")
    return {"python": platform.python_version(), "art-wdro": __version__} | {name: version(name) for name in packages}


def provenance(classifier: PyTorchClassifier, x: Tensor, labels: Tensor) -> dict[str, Any]:
    """Describe what a report is made with, in plain values.

    :param classifier: The classifier.
    :param x: Inputs, (N, ...), of this rank.
    :param labels: Class indices, (N,).
    """
    device = classifier.device
    return {
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "input_shape": list(x.shape[1:]),
        "classes": classifier.nb_classes,
        "data_sha256": digest_of_data(x, labels),
        "weights_sha256": digest_of_weights(host.network(classifier)),
    }


def digest_of_data(x: Tensor, labels: Tensor) -> str:
    """Return the SHA-256 of inputs and labels as they are evaluated, the same however many ranks they lie on."""
    data, host_labels = Rows(x, torch.device("cpu")), labels.cpu()
    each = bytearray()
    for rows in parts(len(data), data.at_once(len(data))):
        for sample, label in zip(data[rows].contiguous(), host_labels[rows].tolist(), strict=True):
            each += hashlib.sha256(sample.view(-1).view(torch.uint8).numpy().tobytes() + str(label).encode()).digest()
    return hashlib.sha256(b"".join([str(list(x.shape[1:])).encode(), *everywhere(bytes(each))])).hexdigest()


def digest_of_weights(model: torch.nn.Module) -> str | None:
    """Return the SHA-256 of a network's state dict; None where it has no tensors, as of a frozen TorchScript."""
    names, tensors = [], []
    for name, values in model.state_dict().items():
        if isinstance(values, Tensor):
            names.append(name.removeprefix("_orig_mod."))
            tensors.append(values)
    if not tensors:
        return None
    return hashlib.sha256("\n".join([*names, sha256(*tensors)]).encode()).hexdigest()
