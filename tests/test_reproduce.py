# SPDX-License-Identifier: MIT
"""The paper's tables and figures end to end, on a small data set with a small network, one epoch."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from art_wdro._cli import main
from art_wdro._experiments import Cell, Laboratory, Protocol
from art_wdro._published import BEST, GRIDS, NETWORKS
from art_wdro._reproduce import TARGETS, Entry, Reproduction
from art_wdro._robustbench import _importable

pytestmark = pytest.mark.slow
SETTING = ["--epochs", "1", "--batch-size", "16", "--max-iter", "2", "--strong-samples", "6", "--no-autoattack"]
SMALL = Protocol(data="small.npz", epochs=2, batch_size=16, max_iter=2)


def network() -> nn.Module:
    """Return a network for CIFAR-10's shape that is small."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with 60 images of CIFAR-10's shape, whose brightness says something of the class."""
    monkeypatch.chdir(tmp_path)
    generator, y = np.random.default_rng(0), np.arange(60) % 10
    x = generator.integers(0, 40, (60, 32, 32, 3)) + 20 * y[:, None, None, None]
    np.savez("small.npz", x=x.astype(np.uint8), y=y)
    return tmp_path


def reproduce(*arguments: str) -> None:
    main(["reproduce", *arguments, "--data", "small.npz", "--network", "tests.test_reproduce:network", *SETTING])


def test_all_tables_and_figures(folder, capsys, monkeypatch):
    reproduce("--all", "--seeds", "2", "--json", "all.json")
    printed = capsys.readouterr().out
    shown = json.loads((folder / "all.json").read_text())
    assert list(shown) == list(TARGETS)
    for target in TARGETS:
        assert (folder / "runs/reproduce" / f"{target}.{'md' if target.startswith('table') else 'png'}").is_file()
    assert "(50.53)" in printed
    best = shown["table4"]["rows"]["W_2"][3]
    assert best["published"] == 50.53
    assert len(best["found"]) == 2
    knapsack = shown["table4"]["rows"]["W_2, knapsack, 6 images"]
    assert all(len(entry["found"]) == 2 and entry["published"] is None for entry in knapsack)
    assert len(shown["table1"]["columns"]) == len(next(iter(shown["table1"]["rows"].values())))
    (numbers,) = shown["fig7.1"].values()
    assert len(numbers["samples"]) == 10
    assert numbers["reference"] > 0
    for figure in ("fig7.2", "fig7.3", "fig7.4"):
        assert len(shown[figure]["test"]) == len(shown[figure]["dashed"]) == 1

    def never(*_):
        raise AssertionError("a cell that is there is run again")

    monkeypatch.setattr(Laboratory, "_load", never)
    reproduce("--all", "--seeds", "2", "--json", "again.json")
    assert json.loads((folder / "again.json").read_text()) == shown


def test_an_interrupted_cell_goes_on(folder, monkeypatch):
    cell = Cell("curves", "tests.test_reproduce:network", 1, "whole", 0.1, 1.0)
    whole = Laboratory(SMALL, folder / "whole", verbose=False).run(cell)
    interrupted = Laboratory(SMALL, folder / "parts", verbose=False)
    figures = Laboratory._figures
    calls = []

    def stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return figures(self, *arguments)

    monkeypatch.setattr(Laboratory, "_figures", stop)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run(cell)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert interrupted.find(cell) is None
    again = Laboratory(SMALL, folder / "parts", verbose=False).run(cell)
    assert len(calls) == 2
    for key in ("test", "epochs", "best_epoch"):
        assert again[key] == whole[key], key
    assert not list((folder / "parts").glob("*.ckpt"))
    assert not list((folder / "parts").glob("*.epochs.json"))


def test_curves_stand_in_for_the_same_fine_tuning(folder):
    laboratory = Laboratory(SMALL, folder / "out", verbose=False, keep_weights=True)
    source = "tests.test_reproduce:network"
    both = Reproduction(laboratory, ["table4", "fig7.2"], folder / "out", [0], source)
    assert sum(cell.kind == "after" for cell in both._planned) == 3
    cell = Cell("curves", source, 0, "whole", 0.01, 1.0)
    curves = laboratory.run(cell)
    after = Laboratory(SMALL, folder / "other", verbose=False).run(replace(cell, kind="after"))
    assert after["test"] == curves["test"]
    assert both.table("table4").rows["clean"][3].found == (100 * curves["test"]["clean"],)
    assert (folder / "out" / f"{cell.name}.pt").is_file()


def test_the_best_configuration_is_chosen_on_validation_images(folder):
    laboratory = Laboratory(SMALL, folder / "out", verbose=False)
    source = "tests.test_reproduce:network"
    for tau, value in ((0.1, 0.5), (0.01, 0.75)):
        cell = Cell("after", source, 0, "whole", tau, 1.0)
        found = laboratory.run(cell)
        found["history"][found["best_epoch"]]["wp_accuracy"] = value
        (folder / "out" / f"{cell.name}.json").write_text(json.dumps(found))
    table = Reproduction(laboratory, ["table5"], folder / "out", [0], source).table("table5")
    (row,) = table.rows.values()
    assert row[0] == "whole, tau = 0.01, eta = 1"
    assert row[1].found == (100 * found["test"]["clean"],)


@pytest.mark.filterwarnings("ignore")  # robustbench and timm warn at import
def test_a_network_of_the_zoo_under_its_name(folder, monkeypatch):
    with _importable():
        import robustbench.utils as utils
    models = utils.all_models[utils.BenchmarkDataset.cifar_10][utils.ThreatModel.Linf]
    monkeypatch.setitem(models, "Test2026Small", {"model": network, "gdrive_id": "none"})
    file = folder / "models/cifar10/Linf/Test2026Small.pt"
    file.parent.mkdir(parents=True)
    model = network()
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-1].bias.copy_(torch.arange(10.0) == 0)
    torch.save(model.state_dict(), file)
    laboratory = Laboratory(SMALL, folder / "out", device="cpu", verbose=False)
    found = laboratory.run(Cell("before", "Test2026Small"))
    x, y = laboratory._test
    assert found["test"]["clean"] == (model(torch.from_numpy(x)).argmax(1).numpy() == y).mean() > 0
    assert set(NETWORKS) <= set(models)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no target; allowed are table1, "),
        (("table12",), "'table12' is not one of"),
        (("table1", "--eps", "0.5"), r"was made with eps = 0.03137.*, and now it is 0.5; give another folder"),
    ],
)
def test_bad_input(folder, arguments, message, capsys):
    if "--eps" in arguments:
        reproduce("table1")
    with pytest.raises(SystemExit, match="2"):
        reproduce(*arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("art-wdro: ")
    assert re.search(message, error)


def test_a_file_that_holds_no_cell(folder):
    laboratory = Laboratory(SMALL, folder / "out", verbose=False)
    cell = Cell("before", "tests.test_reproduce:network")
    (folder / "out").mkdir()
    (folder / "out" / f"{cell.name}.json").write_text("{")
    with pytest.raises(ValueError, match="holds no figures of a cell; delete it"):
        laboratory.run(cell)


def test_published_figures_agree_with_each_other():
    """Table 5 repeats the best of the other tables; Chen and Lee's network has none of its own there."""
    for network in NETWORKS:
        grids = [grid for name, _, grid in GRIDS.values() if name == network]
        cells = [figures for grid in grids for figures in grid.values()]
        assert not cells or BEST[network] == max(cells, key=lambda figures: figures["wp"])


def test_an_entry_reads_as_mean_spread_and_published():
    assert str(Entry((50.0, 52.0), 50.53)) == "51.00 ± 1.41 (50.53)"
    assert str(Entry((), 50.53)) == "- (50.53)"
    assert str(Entry((50.0,))) == "50.00"
