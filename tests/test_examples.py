# SPDX-License-Identifier: MIT
"""The examples run as a user runs them; data sets are written in the layout that torchvision reads."""

from __future__ import annotations

import json
import re
import runpy
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from art_wdro import knapsack_accuracy
from art_wdro._cli.demo import BEFORE, KNAPSACK, Measured, noise_of, print_table
from art_wdro.evaluation._intervals import knapsack_of, resampled
from art_wdro.trainers._update import Updates
from tests.conftest import images, write_cifar10

EXAMPLES = Path(__file__).parents[1] / "examples"
# a whole minibatch and half of one
QUICK = ["--pretrain-epochs", "1", "--epochs", "2", "--train-samples", "96", "--test-samples", "20"]


CHANCE = pytest.mark.filterwarnings("ignore:the network was right on")
"""Networks that were hardly trained."""


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """The demo's main function, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return runpy.run_path(str(EXAMPLES / "demo.py"))["main"]


def check(output: str, figure: Path, certified: bool = True) -> None:
    assert re.search(r"^before +\d+\.\d", output, re.M)
    assert re.search(r"^after, distributional +\d+\.\d", output, re.M)
    left = [float(found) for found in re.findall(r"^ +(\d+\.\d) %  ", output, re.M)]
    assert len(left) == 6
    assert left[0] == max(left)
    assert left[-1] <= min(left) + 100 / 20  # the last image that the knapsack flips counts in part
    brackets = re.findall(r"no attack leaves less than .* %: the truth is in \[(\d+\.\d), (\d+\.\d)\] %", output)
    assert len(brackets) == (2 if certified else 0)
    assert all(float(low) <= float(high) for low, high in brackets)
    if certified:
        assert float(brackets[1][1]) >= float(brackets[0][1])  # at half the budget
    else:
        assert re.search(r"^No certificate: \w+", output, re.M)
    assert re.search(r"^after, margin trainer +\d+\.\d", output, re.M)
    assert "Under the knapsack, whose search the margin trainer used in short, on 20 images, seed 0:" in output
    gains = re.findall(r"^.* gains? [+-]\d+\.\d points, (?:no )?more than noise \(\d+\.\d\)$", output, re.M)
    assert len(gains) == 3
    for name in ("distributional", "margin"):
        assert re.search(rf"^the {name} trainer is ahead of ART's by [+-]\d+\.\d points, ", output, re.M)
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@CHANCE
def test_demo_on_digits(demo, capsys, tmp_path):
    demo(QUICK)
    check(capsys.readouterr().out, tmp_path / "runs/demo.png")


@pytest.mark.slow
@CHANCE
@pytest.mark.parametrize("colour", [False, True])
def test_demo_on_an_npz_file(demo, capsys, tmp_path, colour):
    x, y = images(300, 12, 12, 3) if colour else images(300, 12, 12)
    np.savez(tmp_path / "own.npz", x=x, y=y)
    demo([*QUICK, "--npz", "own.npz", "--figure", "figures/own.png"])
    check(capsys.readouterr().out, tmp_path / "figures/own.png")


@pytest.mark.slow
@CHANCE
def test_demo_on_fashion_mnist(demo, capsys, tmp_path):
    raw = tmp_path / "sets/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 300), ("t10k", 60)):
        x, y = images(count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, *x.shape) + x.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + y.astype(np.uint8).tobytes())
    demo([*QUICK, "--data", "fashion-mnist", "--data-dir", "sets"])
    check(capsys.readouterr().out, tmp_path / "runs/demo.png", certified=False)


@pytest.mark.slow
@CHANCE
def test_demo_on_cifar10(demo, capsys, tmp_path, monkeypatch):
    write_cifar10(tmp_path / "sets", monkeypatch)
    demo([*QUICK, "--data", "cifar10", "--data-dir", "sets"])
    check(capsys.readouterr().out, tmp_path / "runs/demo.png", certified=False)


def measured(distances: np.ndarray) -> Measured:
    return Measured({KNAPSACK: 100 * knapsack_accuracy(distances, 0.1, 2)}, distances)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "no more"), (1.005, "no more"), (1.5, "more")])
def test_the_demo_calls_a_difference_noise_that_chance_makes(capsys, factor, verdict):
    """Of two networks of unlike images; an advantage that every image shares is more than noise however small."""
    generator = np.random.default_rng(0)
    before, art, other = (generator.uniform(0, 0.4, 500) for _ in range(3))
    args = SimpleNamespace(eps=0.1, seed=0)
    print_table(
        {
            name: measured(found)
            for name, found in ((BEFORE, before), ("ART", art), ("o", factor * other), ("m", other))
        },
        args,
    )
    (line,) = re.findall("^the distributional trainer is ahead.*", capsys.readouterr().out, re.M)
    assert f" points, {verdict} than noise (" in line
    # apart, the images of each make a spread of their own
    apart = [resampled([knapsack_of(found, 0.1, 2.0)], 500, seed)[0].std() for seed, found in ((1, art), (2, other))]
    noise = noise_of(measured(art), measured(other), args)
    assert noise == pytest.approx(200 * np.hypot(*apart), rel=0.1)
    assert noise_of(measured(art), measured(1.02 * art), args) < noise / 10


def test_demo_refuses_a_file_that_is_not_there(demo, capsys):
    with pytest.raises(SystemExit):
        demo(["--npz", "nowhere.npz"])
    assert "--npz is nowhere.npz, and there is no such file" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--original"]])
def test_drop_in(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["drop_in.py", *arguments])
    runpy.run_path(str(EXAMPLES / "drop_in.py"))
    figures = [float(found) for found in re.findall(r"^accuracy .*: (0\.\d+)$", capsys.readouterr().out, re.M)]
    clean, pointwise, shared, knapsack = figures
    assert clean > 0.7
    assert knapsack < min(shared, pointwise) < clean


def test_drop_in_differs_in_two_lines():
    lines = (EXAMPLES / "drop_in.py").read_text().splitlines()
    assert [line.split("# changed: ")[1] for line in lines if "# changed: " in line] == [
        "the import",
        "the constructor",
    ]
    indented = [line.strip() for line in lines if line.startswith("    from ") or line.startswith("    trainer = ")]
    assert [line.split("(")[0] for line in indented] == [
        "from art.defences.trainer import AdversarialTrainerTRADESPyTorch",
        "from art_wdro import DistributionalTRADESTrainer  # changed: the import",
        "trainer = AdversarialTrainerTRADESPyTorch",
        "trainer = DistributionalTRADESTrainer",
    ]


@pytest.fixture
def cifar10(monkeypatch, tmp_path):
    """The recipe's main function, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return runpy.run_path(str(EXAMPLES / "cifar10.py"))["main"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:W-PGD.* is too weak here")  # 100 images are few, and two epochs teach little
def test_a_recipe_from_scratch(cifar10, capsys, tmp_path, monkeypatch):
    """It learns, leaves weights and a report, and goes on where it was stopped, to the same weights."""
    update, updates = Updates.__call__, []

    def counted(*given):
        if len(updates) == 20:
            raise KeyboardInterrupt
        updates.append(update(*given))
        return updates[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Updates, "__call__", counted)
        with pytest.raises(KeyboardInterrupt):
            cifar10(["--quick", "--device", "cpu", "--out", "run", "--checkpoint-minutes", "0"])
    monkeypatch.setattr(Updates, "__call__", lambda *given: updates.append(given) or update(*given))
    cifar10(["--quick", "--device", "cpu", "--out", "run", "--summary"])
    assert len(updates) == 30  # two epochs of 15 minibatches
    out = capsys.readouterr().out
    assert "1800 training, 200 validation and 100 test images, distributional" in out
    clean = json.loads((tmp_path / "run/report.json").read_text())["attacks"][0]
    assert clean["accuracy"] > 0.5
    assert list((tmp_path / "run/logs").glob("events*"))
    cifar10(["--quick", "--device", "cpu", "--out", "whole"])
    resumed, whole = (torch.load(tmp_path / name / "weights.pth", weights_only=True) for name in ("run", "whole"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["trades", "margin"])
def test_a_recipe_on_ones_own_images(cifar10, capsys, tmp_path, method):
    for name, count in (("train", 260), ("test", 40)):
        x, y = images(count, 32, 32, 3)
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    cifar10(["--quick", "--data", ".", "--device", "cpu", "--method", method, "--bfloat16"])
    assert f"60 training, 200 validation and 40 test images, {method}" in capsys.readouterr().out
    assert (tmp_path / "runs/cifar10/weights.pth").is_file()


def test_a_recipe_wants_data(cifar10, capsys):
    with pytest.raises(SystemExit):
        cifar10([])
    assert "--data is not given; needed is a folder, or --quick" in capsys.readouterr().err


@pytest.mark.slow
def test_the_generic_trainer_gives_every_batch_a_budget_of_its_own(capsys):
    runpy.run_path(str(EXAMPLES / "adversarial_trainer.py"))
    output = capsys.readouterr().out
    spent = {name: float(found) for name, found in re.findall(r"^(.*): ([\d.]+) eps$", output, re.M)}
    whole, pieces, most = spent.values()
    assert whole <= 1.0005
    assert pieces <= 1.0005 < most
    one_call, batches, clean, knapsack = (
        float(found) for found in re.findall(r"^accuracy .*: (0\.\d+)$", output, re.M)
    )
    assert knapsack < min(one_call, batches) < clean
    assert clean > 0.7
