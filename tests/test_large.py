# SPDX-License-Identifier: MIT
"""Data larger than memory: mapped files, and data sets and loaders of torch, give what arrays give."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from art_wdro import (
    DistributionalTRADESTrainer,
    WassersteinKnapsack,
    WassersteinPGD,
    accuracy_bounds,
    adversarial_accuracy,
    evaluate,
    sensitivity,
    wasserstein_distance,
)
from art_wdro._storage import arrays
from tests.conftest import NORMS, digits, linear_problem, on_host

(X, Y), _ = digits()


@pytest.fixture(params=["r", "r+", "c"])
def mapped(request, tmp_path, monkeypatch):
    """The linear problem with its inputs in a mapped file, of which pages are given back all the time."""
    monkeypatch.setattr(arrays, "TOUCHED", 500)
    problem = linear_problem()
    np.save(tmp_path / "x.npy", problem.x)
    return problem._replace(x=np.load(tmp_path / "x.npy", mmap_mode=request.param))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "redlr"])
def test_an_attack_on_a_mapped_file(mapped, norm, loss):
    attack = WassersteinPGD(mapped.classifier, norm=norm, eps=0.1, loss=loss, batch_size=7, verbose=False)
    found = attack.generate(mapped.x, mapped.y)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, attack.generate(np.array(mapped.x), mapped.y))
    found[0] = 0.0  # the user's own, though it lies in a file
    np.testing.assert_array_equal(mapped.x, linear_problem().x)


def test_figures_of_a_mapped_file(mapped):
    classifier, x, y = mapped
    plain = np.array(x)
    knapsack = WassersteinKnapsack(classifier, eps=0.03, max_iter=20, batch_size=7, verbose=False)
    found, distances = knapsack.generate(x, y), knapsack.distances_
    np.testing.assert_array_equal(found, knapsack.generate(plain, y))
    np.testing.assert_array_equal(distances, knapsack.distances_)
    assert wasserstein_distance(x, found) == wasserstein_distance(plain, np.array(found))
    assert sensitivity(classifier, x, y) == sensitivity(classifier, plain, y)
    assert accuracy_bounds(classifier, x, y) == accuracy_bounds(classifier, plain, y)
    assert adversarial_accuracy(classifier, x, y, eps=0.05) == adversarial_accuracy(classifier, plain, y, eps=0.05)
    reports = [
        evaluate(classifier, data, y, eps=0.03, knapsack_iter=20, verbose=False).to_dict() for data in (x, plain)
    ]
    for report in reports:
        for row in report["attacks"]:
            del row["seconds"]
    assert reports[0] == reports[1]


def test_a_mapped_file_of_bytes(tmp_path):
    problem = linear_problem(clip_values=(0, 255))
    np.save(tmp_path / "x.npy", (255 * problem.x).astype(np.uint8))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    attack = WassersteinPGD(problem.classifier, eps=5, verbose=False)
    np.testing.assert_array_equal(attack.generate(x, problem.y), attack.generate(x.astype(np.float32), problem.y))


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.uint16, np.float64])
@pytest.mark.parametrize("step", [1, 2])
def test_mapped_files_that_torch_cannot_share(tmp_path, dtype, step):
    problem = linear_problem(clip_values=(0, 255))
    np.save(tmp_path / "x.npy", np.round(255 * problem.x).astype(dtype))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")[::step]
    attack = WassersteinPGD(problem.classifier, eps=5, verbose=False)
    expected = attack.generate(np.array(x, dtype=np.float32), problem.y[::step])
    np.testing.assert_array_equal(attack.generate(x, problem.y[::step]), expected)


def test_distances_of_mapped_doubles_keep_their_digits(tmp_path):
    for name, value in (("x", 1.0), ("x_adv", 1.0 + 1e-12)):
        np.save(tmp_path / f"{name}.npy", np.full((2, 1), value, ">f8"))
    x, x_adv = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "x_adv"))
    assert wasserstein_distance(x, x_adv) == pytest.approx(1e-12, rel=1e-3, abs=0)


@pytest.mark.parametrize("kind", ["anonymous", "copy on write"])
def test_private_mappings_keep_what_was_written_to_them(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(arrays, "TOUCHED", 500)
    problem = linear_problem()
    size = problem.x.nbytes
    (tmp_path / "x").write_bytes(bytes(size))
    with (tmp_path / "x").open("rb") as file:
        access = {"access": mmap.ACCESS_COPY} if kind == "copy on write" else {"flags": mmap.MAP_PRIVATE}
        private = mmap.mmap(-1 if kind == "anonymous" else file.fileno(), size, **access)
    x = np.ndarray(problem.x.shape, np.float32, buffer=private)
    x[:] = problem.x
    attack = WassersteinPGD(problem.classifier, eps=0.1, batch_size=7, verbose=False)
    np.testing.assert_array_equal(attack.generate(x, problem.y), attack.generate(problem.x, problem.y))
    np.testing.assert_array_equal(x, problem.x)


def test_a_full_disk_is_an_error_that_names_tmpdir(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"no room for a temporary file of 4.0 GB: '.*\(TMPDIR\)'"):
        arrays.mapped_zeros((10**9,), torch.float32)


def test_the_users_own_array_cannot_be_written_through_a_report():
    classifier, x, y = linear_problem()
    report = evaluate(classifier, x, y, eps=0.03, knapsack_iter=20, keep_arrays=True, verbose=False)
    with pytest.raises(ValueError, match="read-only"):
        report.arrays["none"][0] = 0.0


def test_bad_values_of_a_mapped_file_are_found(tmp_path):
    problem = linear_problem()
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=problem.x.shape)
    x[:] = problem.x
    x[41, 3] = np.nan
    with pytest.raises(ValueError, match=r"x holds NaN or inf \(first in sample 41\)"):
        WassersteinPGD(problem.classifier, verbose=False).generate(x, problem.y)
    x[41, 3] = 2.0
    with pytest.raises(ValueError, match=r"outside of the classifier's clip_values .*\(first in sample 41\)"):
        WassersteinPGD(problem.classifier, verbose=False).generate(x, problem.y)


def fine_tuned(classifier, *arguments, **keywords) -> np.ndarray:
    trainer = DistributionalTRADESTrainer(classifier, max_iter=2, seed=0, verbose=False)
    trainer.fit(*arguments, batch_size=32, nb_epochs=1, **keywords)
    return on_host(classifier.model.head.weight).copy()


def test_training_on_a_mapped_file_and_on_a_data_set(digits_classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "TOUCHED", 500)
    start = {k: v.clone() for k, v in digits_classifier.model.state_dict().items()}
    np.save(tmp_path / "x.npy", X[:100])
    pairs = TensorDataset(torch.from_numpy(X[:100]), torch.from_numpy(Y[:100]))
    given = [
        (X[:100], Y[:100]),
        (np.load(tmp_path / "x.npy", mmap_mode="r"), Y[:100]),
        (pairs,),
    ]
    found = []
    for arguments in given:
        digits_classifier.model.load_state_dict(start)
        torch.manual_seed(0)
        found.append(fine_tuned(digits_classifier, *arguments))
    for weights in found[1:]:
        np.testing.assert_array_equal(weights, found[0])
    assert not np.array_equal(found[0], on_host(start["head.weight"]))


def test_validation_on_a_data_set(digits_classifier):
    held = TensorDataset(torch.from_numpy(X[100:140]), torch.from_numpy(Y[100:140]))
    for validation in ((X[100:140], Y[100:140]), held):
        trainer = DistributionalTRADESTrainer(digits_classifier, max_iter=2, seed=0, verbose=False)
        trainer.fit(X[:32], Y[:32], validation, nb_epochs=1)
        assert trainer.history[0]["wp_accuracy"] is not None


class Plain(Dataset):
    """Inputs without labels."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.x[index]


def test_data_sets_and_loaders_where_arrays_are_due():
    classifier, x, y = linear_problem()
    pairs = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    attack = WassersteinPGD(classifier, eps=0.05, verbose=False)
    expected = attack.generate(x, y)
    np.testing.assert_array_equal(attack.generate(pairs), expected)
    np.testing.assert_array_equal(attack.generate(DataLoader(pairs, batch_size=11)), expected)
    np.testing.assert_array_equal(attack.generate(Plain(x), y), expected)
    np.testing.assert_array_equal(attack.generate(Plain(x)), attack.generate(x))
    assert sensitivity(classifier, pairs) == sensitivity(classifier, x, y)
    assert accuracy_bounds(classifier, pairs) == accuracy_bounds(classifier, x, y)
    assert adversarial_accuracy(classifier, pairs, eps=0.05) == adversarial_accuracy(classifier, x, y, eps=0.05)
    report = evaluate(classifier, pairs, eps=0.03, knapsack_iter=20, verbose=False)
    assert report.samples == len(x)
    with pytest.raises(ValueError, match="y is given, and x brings labels of its own"):
        attack.generate(pairs, y)
    with pytest.raises(ValueError, match="x yields no samples"):
        attack.generate(Plain(x[:0]))
    with pytest.raises(ValueError, match=r"x yields inputs of shape \(29,\) .* after \(30,\)"):
        attack.generate(DataLoader([x[0], x[1][:29]], batch_size=1))


RESIDENT = r"""
import re, sys
from pathlib import Path
import numpy as np, torch
from art.estimators.classification import PyTorchClassifier
from art_wdro._storage import arrays
from art_wdro import WassersteinPGD, sensitivity, wasserstein_distance

def memory(field):
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

arrays.TOUCHED = 2**25
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 3))
classifier = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), (1024,), 3, clip_values=(0, 1), device_type="cpu")
x = np.memmap(sys.argv[1], np.float32, "w+", shape=(2**17, 1024))  # a sparse file of 512 MiB
y = np.zeros(len(x), dtype=int)
attack = WassersteinPGD(classifier, eps=0.05, loss="ce", max_iter=2, batch_size=256, verbose=False)
attack.generate(x[:256], y[:256])
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = memory("VmRSS")
found = attack.generate(x, y)
sensitivity(classifier, x, y)
length = wasserstein_distance(x, found)
print(length, (memory("VmHWM") - before) / x.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_does_not_grow_with_a_mapped_file(tmp_path):
    command = [sys.executable, "-c", RESIDENT, str(tmp_path / "x")]
    length, share = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert 0.045 < length <= 0.05 * (1 + 1e-6)
    assert share < 0.4  # held in memory, the arrays would be 2.25 times the file
