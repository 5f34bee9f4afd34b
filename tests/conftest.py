# SPDX-License-Identifier: MIT
"""Networks and data that the tests share: linear models with known answers, and trained digits."""

from __future__ import annotations

import copy
import math
import os
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from hypothesis import settings
from sklearn.datasets import load_digits
from torch import nn

from art_wdro import WassersteinMarginTrainer
from art_wdro._reproduction.machine import machine

# the networks are so small that a second thread only waits
torch.set_num_threads(1)
# and so do those of the programs that tests start, and of the workers of pytest-xdist
os.environ.setdefault("OMP_NUM_THREADS", "1")
# 10 bits of TF32 would need tolerances of 1e-3, and sums in any order would repeat no bits
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.deterministic = True
# the first example pays for imports and thread pools, which says nothing about the code
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


DEVICES = {"cpu": "cpu", "cuda": "gpu"}
"""Devices that tests may run on, and what ART calls them."""
DEVICE = os.environ.get("ART_WDRO_TESTS_ON", "cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests run on a GPU: networks of the fixtures then lie there, and what is given to them."""
    parser.addoption("--device", choices=tuple(DEVICES), default="cpu", help="where networks lie")


def pytest_configure(config: pytest.Config) -> None:
    """Take the device before any test does; processes that tests start find it in the environment."""
    global DEVICE  # noqa: PLW0603
    DEVICE = os.environ["ART_WDRO_TESTS_ON"] = config.getoption("--device")
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device is cuda, and torch sees none")


def on_device(value: np.ndarray | torch.Tensor | nn.Module):
    """An array (as a tensor), a tensor or a network where the networks lie."""
    return (torch.from_numpy(value) if isinstance(value, np.ndarray) else value).to(DEVICE)


def on_host(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array, from wherever it lies."""
    return tensor.detach().cpu().numpy()


def pytest_report_header() -> str:
    """Say on what, and with which versions, the tests run."""
    return str(machine())


ORDERS = (1.5, 2.0, 3.0, math.inf)
BUDGETS = {1.0: 0.3, 2.0: 0.1, math.inf: 0.03}
NORMS = tuple(BUDGETS)


def dual(r: float) -> float:
    """The exponent s with 1/r + 1/s = 1."""
    return np.inf if r == 1 else 1.0 if math.isinf(r) else r / (r - 1)


class Problem(NamedTuple):
    classifier: PyTorchClassifier
    x: np.ndarray
    y: np.ndarray


def trainer(kind: Any, classifier: PyTorchClassifier, **settings: Any) -> Any:
    """Create a trainer with few steps; one with an anchor trains on labels alone, as networks here are untrained."""
    anchor = {"anchor": 0} if kind is WassersteinMarginTrainer else {}
    return kind(classifier, **({"eps": 0.1, "max_iter": 2, "seed": 0, "verbose": False} | anchor | settings))


def make_classifier(model: nn.Module, shape: tuple[int, ...], classes: int, **kwargs) -> PyTorchClassifier:
    settings = {"clip_values": (0.0, 1.0), "device_type": DEVICES[DEVICE], "loss": nn.CrossEntropyLoss()} | kwargs
    return PyTorchClassifier(model, input_shape=shape, nb_classes=classes, **settings)


def linear_problem(classes: int = 5, samples: int = 60, features: int = 30, seed: int = 0, **kwargs) -> Problem:
    """A linear model and samples that it classifies correctly, all but one in ten."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    x = rng.uniform(0.2, 0.8, (samples, features)).astype(np.float32)
    y = model(torch.from_numpy(x)).argmax(1).numpy()
    y[::10] = (y[::10] + 1) % classes
    return Problem(make_classifier(model, (features,), classes, **kwargs), x, y)


@pytest.fixture
def linear() -> Problem:
    return linear_problem()


class DigitsNetwork(nn.Module):
    """A small convolutional network with batch norm and dropout, so that modes matter."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.features(x)))


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = (data.images[order, None] / 16).astype(np.float32)
    y = data.target[order]
    return (x[:1297], y[:1297]), (x[1297:], y[1297:])


def images(count: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes whose brightness tells their class."""
    rng = np.random.default_rng(0)
    y = np.arange(count) % 10
    return rng.integers(0, 30, (count, *shape), np.uint8) + (20 * y.astype(np.uint8)).reshape(-1, *[1] * len(shape)), y


def write_cifar10(directory: Path, monkeypatch: pytest.MonkeyPatch, count: int = 40) -> None:
    """Write a stand-in for CIFAR-10 in the layout that torchvision reads, without its checksums."""
    folder = directory / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        x, y = images(count, 3, 32, 32)
        (folder / name).write_bytes(pickle.dumps({"data": x.reshape(count, -1), "labels": y.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)


@pytest.fixture(scope="session")
def _trained_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = DigitsNetwork()
    classifier = make_classifier(
        model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    )
    np.random.seed(0)
    classifier.fit(*digits()[0], batch_size=64, nb_epochs=8)
    return model.state_dict()


@pytest.fixture
def digits_classifier(_trained_state) -> PyTorchClassifier:
    """A fresh copy of a network trained on clean digits."""
    model = DigitsNetwork()
    model.load_state_dict(copy.deepcopy(_trained_state))
    torch.manual_seed(0)
    return make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.05))


def weights(classifier: PyTorchClassifier) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in classifier.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[k].cpu(), second[k].cpu()) for k in first)
