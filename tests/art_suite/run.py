# SPDX-License-Identifier: MIT
"""Run ART's own tests of TRADES and PGD against the classes of art_wdro; see README.md."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from torch import nn

TESTS = "defences/trainer/test_adversarial_trainer_trades_pytorch.py", "attacks/test_projected_gradient_descent.py"
FIRST_RIGHT = 32
"""Right answers among the first 100 test images before training: ART's TRADES tests assert an accuracy of 0.32."""


def unpack_tests(sdist: Path | None, folder: Path) -> None:
    """Bring the tests and pytest settings of ART's sdist into `folder`; its copy of the package art stays out."""
    if sdist is None:
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
        package = "adversarial-robustness-toolbox==" + version("adversarial-robustness-toolbox")
        subprocess.run([sys.executable, "-m", "pip", "download", *options, package], check=True)
        sdist = next(folder.glob("*.tar.gz"))
    if sdist.is_file():
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / "sdist", filter="data")
        sdist = next((folder / "sdist").iterdir())
    shutil.copytree(sdist / "tests", folder / "tests")
    shutil.copy(sdist / "pyproject.toml", folder)


def trained(layers: list[nn.Module], x: np.ndarray, y: np.ndarray, steps: int) -> nn.Sequential:
    """Train a small network on all samples at once."""
    network = nn.Sequential(*layers)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimiser.step()
    return network


def write_stand_ins(folder: Path) -> None:
    """Write what the sdist lacks: MNIST (here: upscaled digits) and the weights of ART's test networks."""
    models = folder / "utils" / "resources" / "models"
    models.mkdir(parents=True)
    (folder / "data").mkdir()
    torch.manual_seed(0)

    def save(name: str, layer: nn.Module) -> None:
        weight = layer.weight.detach().numpy()
        np.save(models / f"W_{name}.npy", weight.T if weight.ndim == 2 else weight)
        np.save(models / f"B_{name}.npy", layer.bias.detach().numpy())

    digits = load_digits()
    pixels = np.pad(np.kron(digits.images, np.ones((1, 3, 3))), ((0, 0), (2, 2), (2, 2))) * 255 / 16
    x, y = (pixels[:, None] / 255).astype(np.float32), digits.target.astype(np.int64)
    layers = [nn.Conv2d(1, 1, 7), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(25, 10)]
    network = trained(layers, x[:1000], y[:1000], steps=40)
    save("CONV2D_MNIST", network[0])
    save("DENSE_MNIST", network[4])
    right = (network(torch.from_numpy(x)).argmax(1).numpy() == y)[1000:]
    chosen = np.flatnonzero(right)[:FIRST_RIGHT], np.flatnonzero(~right)[: 100 - FIRST_RIGHT]
    first = np.random.default_rng(0).permutation(np.concatenate(chosen))
    order = {"train": np.arange(1000), "test": 1000 + np.append(first, np.setdiff1d(np.arange(len(right)), first))}
    arrays = {f"x_{part}": pixels[rows].astype(np.uint8) for part, rows in order.items()}
    arrays |= {f"y_{part}": y[rows] for part, rows in order.items()}
    np.savez(folder / "data" / "mnist.npz", **arrays)

    x, y = load_iris(return_X_y=True)
    layers = [nn.Linear(4, 10), nn.Linear(10, 10), nn.Linear(10, 3)]
    network = trained(layers, (x / x.max()).astype(np.float32), y.astype(np.int64), steps=300)
    for number, layer in enumerate(network, 1):
        save(f"DENSE{number}_IRIS", layer)


def main() -> int:
    """Prepare a temporary folder, and run pytest in it."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="Further options are pytest's.")
    parser.add_argument("--art-sdist", type=Path, help="ART's sdist, packed or unpacked; downloaded if not given")
    parser.add_argument("--control", action="store_true", help="substitute nothing: test ART's own classes")
    options, others = parser.parse_known_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import substitution

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack_tests(options.art_sdist, folder)
        write_stand_ins(folder)
        settings = ["--rootdir", name, "-c", str(folder / "pyproject.toml"), "-p", "no:cacheprovider", "-rs"]
        tests = [str(folder / "tests" / test) for test in TESTS]
        return int(pytest.main([*settings, *others, *tests], plugins=[substitution.Plugin(folder, options.control)]))


if __name__ == "__main__":
    sys.exit(main())
