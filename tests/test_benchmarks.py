# SPDX-License-Identifier: MIT
"""Every benchmark runs end to end with --quick, and what it gives holds together; a stopped run loses no cell."""

from __future__ import annotations

import copy
import json
import math
import os
import pkgutil
import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

import benchmarks
from art_wdro import WassersteinMarginTrainer
from art_wdro._sources.data import Split
from benchmarks import _autoattack, _cells
from benchmarks._cells import Cells, cells_of, file_of, read_cells, run_cell
from benchmarks._command import command, parsed, share, with_data, with_shard
from benchmarks._counting import Counter
from benchmarks._files import compact, keep, keep_cells
from benchmarks._one_side import OneSide
from benchmarks._settings import DATA, QUICK, SHARES
from benchmarks._tables import Table, spread
from benchmarks._timing import compared, interleaved
from benchmarks.attacks import _rivals
from benchmarks.frontier import (
    _curves,
    _margins,
    _softened,
    _transport,
)
from benchmarks.frontier import (
    _rivals as frontier_rivals,
)
from benchmarks.frontier import (
    _settings as frontier_settings,
)
from benchmarks.frontier import training as frontier
from benchmarks.margin import _cells as margin_cells
from benchmarks.margin import _choices
from benchmarks.margin import figure as margin_figure
from benchmarks.networks import _architectures
from benchmarks.paper import summary
from benchmarks.paper._protocols import WithoutBudgets
from benchmarks.speed.gpu import run_tests
from tests.conftest import linear_problem, make_classifier, weights

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "benchmarks").rglob("*.py"))


def programs() -> list[str]:
    """Every module in a folder of the package, but those that are private."""
    found = []
    for folder in pkgutil.iter_modules(benchmarks.__path__):
        if folder.ispkg:
            path = [str(ROOT / "benchmarks" / folder.name)]
            found += [f"{folder.name}.{module.name}" for module in pkgutil.iter_modules(path)]
    return [name for name in found if not name.split(".")[1].startswith("_")]


def rows_by(rows: list[dict[str, Any]], *keys: str) -> dict[Any, dict[str, Any]]:
    found = {tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]: row for row in rows}
    assert len(found) == len(rows)
    return found


def robust(found: Any) -> None:
    (row,) = found
    assert 0.1 < row["pgd"] < row["clean"]
    assert row["clean"] > 0.7
    assert row["parameters"] == 26298  # by hand: 272 + 8224 + 16512 + 1290


def pretrained(found: Any) -> None:
    assert [row["epoch"] for row in found] == list(range(DATA[QUICK].pretrained.epochs))
    assert found[-1]["accuracy"] > 0.5 > found[0]["accuracy"]


def certified(found: Any) -> None:
    by_name = rows_by(found, "network")
    assert len(by_name) == 6
    assert by_name["adversarial training"]["clean"] > 0.7
    assert by_name["orthogonal, margin 1"]["clean"] > 0.5


def evaluation(found: Any) -> None:
    accuracy = {row["threat"] + " " + row["attack"]: row["accuracy"] for row in found["attacks"]}
    assert accuracy["W_2 knapsack"] <= accuracy["W_2 W-PGD-100, ReDLR, linear"] <= accuracy["clean none"]
    assert accuracy["W_inf knapsack's distances"] <= accuracy["W_inf PGD-20, CE"] < accuracy["clean none"]
    curve = list(found["curve"].values())
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] == pytest.approx(accuracy["W_2 knapsack"], abs=1 / found["samples"])
    by_setting = rows_by(found["settings"], "steps", "path", "schedule", "loss")
    assert len(by_setting) == 9
    assert by_setting[50, 4.0, "linear", "redlr"]["accuracy"] <= by_setting[20, 1.0, "constant", "redlr"]["accuracy"]


def least_distances(found: Any) -> None:
    by_method = rows_by(found["rows"], "norm", "method")
    medians = [by_method[norm, "art-wdro, 300"]["median"] for norm in ("l_inf", "l_2", "l_1")]
    assert 0 < medians[0] < medians[1] < medians[2]  # as the norms themselves
    for (_, method), row in by_method.items():
        assert 0 <= row["found"] <= 1
        if method.startswith("art-wdro"):
            assert row["found"] == 1
            assert 0 < row["gradients"] <= int(method.split(", ")[1])
    theirs = {method for _, method in by_method if method.startswith("ART")}
    assert theirs == {"ART Carlini L_inf", "ART Carlini L_2", "ART DeepFool", "ART ElasticNet"}


def split_mass(found: Any) -> None:
    assert {row["norm"] for row in found} == {"inf", "2"}
    for norm in ("inf", "2"):
        left = {row["attack"]: row["accuracy"] for row in found if row["norm"] == norm}
        assert len(left) == 13  # of 14 rows, WDA with kappa 2 is there twice
        assert left["knapsack"] <= left["W-PGD-100, ReDLR, linear"] < left["none"]
        assert left["knapsack"] <= left["WDA, kappa 1"] + 1e-9


def brackets(found: Any) -> None:
    assert [(row["network"], row["norm"]) for row in found] == [
        ("clean", "inf"),
        ("clean", "2"),
        ("orthogonal, margin 1", "2"),
    ]
    for row in found:
        lows, highs = zip(*row["W_2"].values(), strict=True)
        assert all(0 <= low <= high <= row["clean"] for low, high in zip(lows, highs, strict=True))
        assert list(lows) == sorted(lows, reverse=True)
    assert found[-1]["W_2"]["0.125"][0] > 0.1


def pictures(found: Any) -> None:
    clean, pointwise, shared, knapsack = found["rows"]
    assert clean["spent"] == 0 == clean["moved"]
    assert pointwise["largest"] <= 1 + 1e-5
    assert max(shared["spent"], knapsack["spent"]) <= 1 + 1e-5
    assert knapsack["accuracy"] <= min(pointwise["accuracy"], shared["accuracy"]) <= clean["accuracy"]
    for low, high in zip(*(found["curve"][end] for end in ("certified", "knapsack")), strict=True):
        assert 0 <= low <= high <= clean["accuracy"]
    assert found["bracket"] == pytest.approx([found["curve"][end][25] for end in ("certified", "knapsack")])


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_what_pages_say_of_the_pictures_is_what_was_measured(page):
    found = json.loads((ROOT / "benchmarks/results/pictures.json").read_text(encoding="utf-8"))
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    clean, pointwise, _, knapsack = (round(100 * row["accuracy"]) for row in found["rows"])
    low, high = (f"{100 * end:.1f}" for end in found["bracket"])
    assert f"leaves {100 - round(100 * found['rows'][-1]['moved'])} images alone, flips {clean - knapsack}" in text
    assert f"leaves {knapsack} % where PGD leaves {pointwise} %" in text
    assert re.search(rf"the truth is between {low} .*{high} %", text)


@pytest.mark.slow
def test_pictures_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_architectures, "KEPT", tmp_path)
    files = [tmp_path / "images.png", tmp_path / "curve.png"]
    import_module("benchmarks.attacks.pictures").main(["--quick", "--figure", str(files[0]), "--curve", str(files[1])])
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert "[certified, knapsack] at 0.05: [" in capsys.readouterr().out


def smoothing(found: Any) -> None:
    assert found["setting"]["votes"] == 500
    lows, highs = zip(*found["bracket"]["curve"].values(), strict=True)
    for ends in (lows, highs):
        assert list(ends) == sorted(ends, reverse=True)
    assert all(0 <= low <= high <= 1 for low, high in zip(lows, highs, strict=True))
    assert lows[0] > 0.7
    assert found["bracket"]["curve"]["0.1"][0] > 0.3 > found["bracket"]["curve"]["0.6"][0]
    assert 0 < found["bracket"]["gradients"] <= 16 * 20
    cost = rows_by(found["cost"], "who")
    assert cost["here"]["of_ours"] == 1
    assert all(row["passes_a_second"] > 0 for row in cost.values())


def noisy(found: Any) -> None:
    (row,) = found
    assert row["scale"] == 0.25
    assert row["clean"] > 0.7


def certificates(found: Any) -> None:
    assert len(found["constants"]) == 3
    for row in found["constants"]:
        assert 0 <= row["lower"] <= row["upper"] <= row["product"] * (1 + 1e-6)
    assert len(found["losses"]) == 9
    for row in found["losses"]:
        assert row["clean"] <= row["attack"] <= row["radii"] + 1e-6
        assert row["attack"] <= row["lipschitz"] + 1e-6 <= row["product"] + 1e-5


def speed_attacks(found: Any) -> None:
    rows = rows_by(found["rows"], "attack")
    assert len(rows) == 6
    assert rows["bare loop"]["of_bare_loop"] == 1
    assert rows["ART's PGD"]["art_over_it"] == 1
    assert all(min(row["seconds"], row["of_bare_loop"], row["art_over_it"]) > 0 for row in rows.values())
    assert rows["W-PGD, cross-entropy, p = inf"]["accuracy_left"] < 0.9
    assert all(len(seconds) == found["setting"]["repeats"] for seconds in found["seconds"].values())


def speed_training(found: Any) -> None:
    rows = rows_by(found["rows"], "trainer")
    assert len(rows) == 7
    assert rows["floor"]["of_floor"] == rows["Algorithm 1 as printed"]["printed_over_it"] == 1
    assert all(min(row["seconds"], row["of_floor"], row["printed_over_it"]) > 0 for row in rows.values())
    assert 0 < found["streaming_share"] < 1


def speed_knapsack(found: Any) -> None:
    row = rows_by(found["rows"], "norm", "rival")["l_2", "ART DeepFool"]
    assert row["our_max_iter"] in (5, 20)
    assert 0 < row["our_median"] <= 1.001 * row["median"]
    assert row["our_gradients"] <= row["our_max_iter"]
    assert row["time_over_ours"] > 0


def large(found: Any) -> None:
    assert [row["work"] for row in found["rows"]] == [
        "sensitivity",
        "PGD, 1 step",
        "wasserstein_distance",
        "fit, 1 epoch",
    ]
    assert all(row["seconds"] > 0 and row["growth"] >= 0 for row in found["rows"])
    assert found["setting"]["images"] == int(found["setting"]["gigabytes"] * 1e9 / (4 * 3 * 224**2))


def growth(found: Any) -> None:
    small, twice = found["rows"]
    assert twice["bytes"] == 2 * small["bytes"] == 2 * 4 * 3 * 16**2 * small["count"]
    assert min(small[key] for key in ("seconds", "floor", "copies", "of_bare_loop", "nanoseconds")) > 0


def ranks(found: Any) -> None:
    (row,) = found["rows"]
    assert row["ranks"] == 1
    assert 0.1 < row["accuracy"] < 0.95
    assert row["seconds"] == np.median(found["seconds"]) > 0


def experiments(found: Any) -> None:
    kinds = [re.split(r"[-.]", row["cell"])[0] for row in found]
    assert kinds == ["before", "curves", "before", *["after"] * 8, "before", "after", "after"]
    for row in found:
        assert 0.5 < row["test"]["clean"] <= 1
        assert row["test"]["wp"] <= row["test"]["clean"]
    strong = [row["strong"] for row in found if row["strong"]]
    assert len(strong) == 3  # the decisive cells
    assert all(left["W_2 knapsack"] <= left["W_2 W-PGD-100, ReDLR, linear"] + 1e-9 for left in strong)


def summarised(found: Any) -> None:
    assert [cell["variant"] for cell in found] == [".", "paper", "pointwise"]
    assert all(len(cell["strong"]["distances"]) == cell["protocol"]["strong_samples"] for cell in found)


def upsilon_estimates(found: Any) -> None:
    assert [result["case"]["name"] for result in found["cases"]] == ["digits, whole network", "digits, last layer"]
    for result in found["cases"]:
        assert result["before"]["w2"] < result["before"]["clean"]
        assert result["errors"]["true Upsilon"]["median_error"] == 0
        assert result["errors"]["streaming 1"]["budget_ratio"] == pytest.approx(1)
        assert result["errors"]["resample 10%"]["median_error"] > 0
        assert result["fits"]["resample 10%"]["w2_difference"] == 0
        assert all(0 < fit["w2"] <= fit["clean"] <= 1 for fit in result["fits"].values())


def margin_training(found: Any) -> None:
    cells = rows_by([{**cell, "key": tuple(cell["cell"].values())} for cell in found], "key")
    assert len(cells) == 8
    assert {cell["cell"]["method"] for cell in found} == {
        "start",
        "paper",
        "margin",
        "margin, beta 2",
        "margin, augmented",
        "margin, weights perturbed",
    }
    for cell in found:
        assert 0 < cell["area"] <= cell["clean"]
        assert cell["curve"] == sorted(cell["curve"], reverse=True)
        assert cell["cell"]["method"] == "start" or 0 < cell["gradients"] <= 10


def margin_analysis(found: Any) -> None:
    assert [row["cell"].split(",")[0] for row in found] == ["margin", "start"]
    for row in found:
        assert row["quantiles"] == sorted(row["quantiles"])
        assert all(0 < area < 1 for area in row["areas"])
    assert len(found[0]["tau"]) == 1
    assert found[0]["tau"][0] > 1  # beyond the mean budget lies the threshold


def margin_drawn(found: Any) -> None:
    page = (ROOT / "docs/results/margin.md").read_text(encoding="utf-8")
    for row in found:
        (line,) = re.findall(rf"^\| \**{re.escape(row['method'])}\** \|(.*)$", page, re.M)[:1]
        entries = [float(re.match(r"[\d.]+", entry.strip())[0]) for entry in line.split("|")[3 : 3 + len(SHARES)]]
        assert [round(value, 1) for value in row["curve"]] == pytest.approx(entries, abs=0.1)


def frontier_training(found: Any) -> None:
    assert {frontier_settings.point_of(cell["cell"]) for cell in found} == set(frontier_settings.QUICK_POINTS)
    for cell in found:
        assert set(cell["points"]) == ({"last"} if cell["cell"]["method"] == "start" else {"last", "average"})
        assert cell["cell"]["method"] == "start" or 0 < cell["gradients"] <= 10
        for point in cell["points"].values():
            assert 0 < point["area"] < point["clean"]
            share = np.mean(np.array(point["distances"]) > cell["setting"]["eps"])
            assert point["winf"] == pytest.approx(share, abs=1e-5)


def frontier_drawn(found: Any) -> None:
    page = (ROOT / "docs/results/frontier.md").read_text(encoding="utf-8")
    assert "fashion-mnist" in {row["data"] for row in found}
    for row in found:
        name = row["method"] if row["knob"] is None else f"{row['method']}, {row['knob']}"
        name += ", averaged" if row["weights"] == "average" else ""
        lines = re.findall(rf"^\| {re.escape(name)} \|(.*)$", page, re.M)
        entries = [
            [float(re.match(r"[\d.]+", entry.strip())[0]) for entry in line.split("|")[1:4]]
            for line in lines
            if line.count("|") == 5
        ]
        shown = [row["clean"], row["winf"], row["area"]]
        assert any(entry == pytest.approx(shown, abs=0.06) for entry in entries), name


def one_step(found: Any) -> None:
    assert [row["eps"] for row in found] == [0.05, 0.1, 0.2]
    for row in found:
        assert 0 <= row["knapsack"] <= row["W-FGSM, least lengths"] <= row["ART's FGM, pointwise"] <= 1


def gpu(found: Any) -> None:
    parts = found["parts"]
    assert len(parts) == 11
    assert parts["tests"]["failed"] == []
    assert parts["attacks, two convolutions"]["bare loop"] == 1
    assert len(parts["attacks, ResNet"]) >= 9
    assert len(parts["compiled, ResNet"]) == 6
    assert 0 < parts["knapsack, ResNet"]["of the bare loop's"] < 3
    assert all(rate > 0 for rate in parts["training, two convolutions"].values())


def optimality(found: Any) -> None:
    rows = [row for row in found["rows"] if row["attack"] == "ours"]
    assert [row["norm"] for row in rows] == ["inf", "2.0", "1.0"]
    assert all(0 < row["optimality"] <= 1 for row in found["rows"])
    assert all(0 < row["gradients"] <= 30 for row in rows)


def published(found: Any) -> None:
    rows = {(row["eps"], row["attack"]): row for row in found["rows"]}
    assert len(rows) == 16
    for (_, name), row in rows.items():
        assert row["spent"] <= 1 + 1e-6 or name == "WDA++, all points"
        assert 0 <= row["mixture"] <= 100
        assert row["gradients"] <= row["passes"] or name.startswith(("WDA", "knapsack"))
    for eps in (0.1, 0.05):
        theirs, here = rows[eps, "W-PGD-50, as published"], rows[eps, "W-PGD-50"]
        assert (theirs["gradients"], theirs["passes"]) == (50, 100)
        assert here["left"] == pytest.approx(theirs["left"], abs=5)  # an image of 24
        assert here["passes"] < theirs["passes"]
    assert rows[0.05, "WDA++, all points"]["spent"] > 1


def variants(found: Any) -> None:
    assert [row["network"] for row in found] == ["l2", "step"]
    assert all(0.2 < row["pgd"] <= row["own"] < row["clean"] for row in found)


def optimality_drawn(found: Any) -> None:
    page = (ROOT / "docs/search.md").read_text(encoding="utf-8")
    assert {row["norm"] for row in found} == {"inf", "2.0", "1.0"}
    for row in found:
        assert 0 < row["ours"] <= 1
        assert 0 < row["next"] <= 1
        assert all(f"{row[key]:.3f}" in page for key in ("ours", "next"))


CHECKS: dict[str, Callable[[Any], None]] = {
    "attacks.brackets": brackets,
    "attacks.certificates": certificates,
    "attacks.evaluation": evaluation,
    "attacks.least_distances": least_distances,
    "attacks.one_step": one_step,
    "attacks.optimality": optimality,
    "attacks.optimality_figure": optimality_drawn,
    "attacks.pictures": pictures,
    "attacks.published": published,
    "attacks.smoothing": smoothing,
    "attacks.split_mass": split_mass,
    "frontier.figure": frontier_drawn,
    "frontier.training": frontier_training,
    "margin.analysis": margin_analysis,
    "margin.figure": margin_drawn,
    "margin.training": margin_training,
    "networks.certified": certified,
    "networks.noisy": noisy,
    "networks.pretrained": pretrained,
    "networks.robust": robust,
    "networks.variants": variants,
    "paper.experiments": experiments,
    "paper.summary": summarised,
    "paper.upsilon_estimates": upsilon_estimates,
    "speed.attacks": speed_attacks,
    "speed.gpu": gpu,
    "speed.growth": growth,
    "speed.knapsack": speed_knapsack,
    "speed.large": large,
    "speed.ranks": ranks,
    "speed.training": speed_training,
}
"""What holds of the figures of a quick run, by program."""


def state_of_the_repository() -> dict[Path, float]:
    """The files that a quick run must not touch, and when they were written."""
    folders = (ROOT / "benchmarks" / "results", ROOT / "docs")
    return {file: file.stat().st_mtime for folder in folders for file in folder.rglob("*")}


@pytest.fixture
def seeded() -> Iterator[None]:
    """Random states as in a process of its own, and put back."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)
        yield
    np.random.set_state(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", programs())
def test_quick_run(name, tmp_path, monkeypatch, capsys, seeded):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_cells, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(_architectures, "KEPT", tmp_path / "runs" / "networks")
    before = state_of_the_repository()
    import_module(f"benchmarks.{name}").main(["--quick", "--json", "found.json"])
    assert [file.name for file in tmp_path.iterdir()] == ["found.json"]
    assert state_of_the_repository() == before
    found = json.loads(Path("found.json").read_text(encoding="utf-8"))
    CHECKS[name](found)
    output = capsys.readouterr().out
    if name != "paper.experiments":  # which prints a line of JSON a cell
        check_tables(output)
    assert "Traceback" not in output


def check_tables(output: str) -> None:
    """There is a table, and all rows of each are as long as its head."""
    tables = re.findall(r"^\|.*\n\|(?: --- \|)+\n(?:\|.*\n)+", output, re.M)
    assert tables
    for table in tables:
        assert len({len(line.split("|")) for line in table.splitlines()}) == 1


def test_every_program_has_a_check():
    assert sorted(CHECKS) == programs()


@pytest.mark.parametrize("name", programs())
def test_command_line(name, capsys):
    module = import_module(f"benchmarks.{name}")
    line = module.parser().parse_args(["--quick"])
    assert line.quick
    assert line.json is None
    assert f"python -m benchmarks.{name}" in module.__doc__ or f"-m benchmarks.{name}" in module.__doc__
    with pytest.raises(SystemExit):
        module.main(["--quick", "--json", str(ROOT / "benchmarks/results/none.json")])
    assert "--quick writes none there" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_share_the_attacks_of_a_ranking(tmp_path, capsys, seeded):
    program = import_module("benchmarks.attacks.optimality")
    folder = tmp_path / "cells"
    line = ["--quick", "--norms", "inf", "2", "--directory", str(folder)]
    program.main([*line, "--shard", "0/2"])
    first = {file.name for file in folder.iterdir()}
    program.main([*line, "--shard", "1/2"])
    assert "inf-60-ours.json" in first
    assert {file.name for file in folder.iterdir()} > first
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    capsys.readouterr()
    program.main([*line, "--json", str(tmp_path / "found.json")])
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before  # none was run again
    rows = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"]
    assert {row["norm"] for row in rows} == {"inf", "2.0"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["own", "--network", "a:b"], "`own` needs --network and --images"),
        (["--quick", "--shard", "0/2"], "--shard needs --directory"),
        (["--quick", "--shard", "2/2"], "allowed are 0/N to N-1/N"),
    ],
)
def test_bad_rankings_are_refused(line, says, capsys):
    with pytest.raises(SystemExit):
        import_module("benchmarks.attacks.optimality").main(line)
    assert says in capsys.readouterr().err


def test_sources_leave_the_path_and_the_folder_alone():
    assert len(SOURCES) > 40
    assert [file for file in SOURCES if re.search(r"sys\.path|chdir", file.read_text(encoding="utf-8"))] == []


def test_a_stream_has_other_images_in_every_epoch():
    data = Split(np.arange(14.0), np.arange(14))
    stream = margin_cells.Stream(data, size=7, batch_size=3)
    x, y = zip(*(stream.get_batch() for _ in range(6)), strict=True)
    assert [len(part) for part in x] == [3, 3, 1] * 2
    assert np.array_equal(np.concatenate(x), data.x)
    assert np.array_equal(np.concatenate(y), data.y)


def test_autoattack_is_run_on_what_stands_and_kept(tmp_path, monkeypatch):
    problem = linear_problem(clip_values=(0.0, 1.0))
    test = Split(problem.x[1:7], problem.y[1:7])  # all of them right
    other = torch.from_numpy(problem.x[problem.y != test.y[0]][1:2])
    point = {"distances": [0.3, 0.05, 0.2, 0.4, 0.15, math.inf]}
    cell = {"setting": {"eps": 0.1}, "points": {"last": point}}
    monkeypatch.setattr(_autoattack, "IMAGES", 5)

    def first_flipped(_, x, y, r, eps, at_once):
        assert (len(x), r, eps, at_once) == (4, math.inf, 0.1, 7)
        return torch.cat([other, x[1:]]), 0.0

    monkeypatch.setattr(_autoattack, "autoattack_points", first_flipped)
    shown = _autoattack.attack_standing(tmp_path / "a.json", cell, point, problem.classifier, test, 7)
    assert shown == {"searches": 80.0, "autoattack": 60.0}
    assert json.loads((tmp_path / "a.json").read_text())["points"]["last"]["autoattack"] == 0.6


# The trainers that differ from the package's


def test_without_budgets_every_minibatch_gets_the_whole_eps():
    problem = linear_problem(clip_values=(0.0, 1.0))
    model = problem.classifier.model
    classifier = make_classifier(model, (30,), 5, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    trainer = WithoutBudgets(classifier, eps=0.05, max_iter=2, seed=0, verbose=False)
    trainer.fit(problem.x, problem.y, batch_size=20, nb_epochs=1)
    assert trainer.history[0]["upsilon"] is None
    assert trainer.history[0]["budget_ratio"] == pytest.approx(1)


# The frontier's trainers and curves


def by_hand(problem, loss_of) -> dict[str, torch.Tensor]:
    """The weights of a linear network after one step of 0.5 along a loss of the network, the inputs and the labels."""
    model, x, y = copy.deepcopy(problem.classifier.model), torch.from_numpy(problem.x), torch.from_numpy(problem.y)
    loss_of(model, x, y).backward()
    return {name: (value - 0.5 * value.grad).detach() for name, value in model.named_parameters()}


def close(found, expected) -> bool:
    return all(torch.allclose(found[name], value, rtol=0, atol=1e-6) for name, value in expected.items())


def frontier_trained(kind, problem, **options) -> dict[str, torch.Tensor]:
    """The weights of a copy of a linear network after one minibatch, which is the whole set."""
    model = copy.deepcopy(problem.classifier.model)
    classifier = make_classifier(model, (30,), 5, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    trainer = kind(classifier, seed=0, verbose=False, **options)
    trainer.fit(problem.x, problem.y, batch_size=len(problem.x), nb_epochs=1)
    return weights(classifier)


def test_adversarial_training_descends_the_loss_of_attacked_inputs_alone():
    problem = linear_problem(clip_values=(0.0, 1.0))

    def loss_of(model, x, y):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(model(x), y), x)
        return cross_entropy(model((x + 0.05 * slope.sign()).clamp(0, 1).detach()), y)

    one_step = {"eps": 0.05, "p": math.inf, "loss": "ce", "max_iter": 1, "eps_step": 0.05}
    assert close(frontier_trained(frontier_rivals.AdversarialTraining, problem, **one_step), by_hand(problem, loss_of))


def test_max_margin_training_without_margins_is_plain_training():
    problem = linear_problem(clip_values=(0.0, 1.0))
    plain = by_hand(problem, lambda model, x, y: cross_entropy(model(x), y))
    none = {"eps": 1e-6, "p": math.inf, "budgets": 1}
    assert close(frontier_trained(_margins.MaxMarginTraining, problem, beta=2.0, **none), plain)
    some = {"eps": 0.05, "p": math.inf, "budgets": 1}
    assert not close(frontier_trained(_margins.MaxMarginTraining, problem, beta=2.0, **some), plain)


def test_what_margin_training_differs_in_from_its_variants():
    problem = linear_problem(clip_values=(0.0, 1.0))
    settings = {"eps": 0.05}
    right = problem.classifier.predict(problem.x).argmax(1) == problem.y
    sure = problem._replace(x=problem.x[right], y=problem.y[right])
    assert 5 < right.sum() < len(right) - 5
    for own, other in ((problem, False), (sure, True)):
        plain = frontier_trained(WassersteinMarginTrainer, own, anchor=0, **settings)
        assert close(frontier_trained(OneSide, own, **settings), plain) is other
    for kind in (_margins.AllClasses, _margins.KnapsackTraining, _margins.ScaledThresholds):
        more = {"scale": 0.9} if kind is _margins.ScaledThresholds else {}
        assert not close(frontier_trained(kind, sure, **settings, **more), plain)
    assert close(frontier_trained(_margins.ScaledThresholds, sure, **settings), plain)


def test_softened_labels_are_half_of_what_the_network_said():
    problem = linear_problem(clip_values=(0.0, 1.0))

    def loss_of(model, x, y):
        logits = model(x)
        return cross_entropy(logits, 0.5 * one_hot(y, 5) + 0.5 * logits.detach().softmax(1))

    assert close(frontier_trained(_softened.SoftenedMargin, problem, beta=0.0), by_hand(problem, loss_of))


def test_a_multiplier_follows_clean_accuracy():
    problem = linear_problem(clip_values=(0.0, 1.0))
    model = problem.classifier.model
    classifier = make_classifier(model, (30,), 5, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    trainer = _margins.HeldMargin(classifier, points=2.0, beta=3.0, seed=0, verbose=False)
    trainer.fit(problem.x, problem.y, batch_size=len(problem.x), nb_epochs=1)
    assert trainer.history[0]["beta"] == pytest.approx(3 * math.exp(2 * 0.02))  # the first step sees no loss yet


def test_a_price_of_one_is_a_projection():
    delta = torch.tensor([-0.3, -0.1, 0.0, 0.2])
    assert _transport.shrunk(delta, 0.1, 1.0).tolist() == pytest.approx([-0.1, -0.1, 0.0, 0.1])
    assert _transport.shrunk(delta, 0.1, 0.5).tolist() == pytest.approx([-0.2, -0.1, 0.0, 0.15])
    assert torch.equal(_transport.shrunk(delta, 0.1, 0.0), delta)


def test_the_worst_mean_is_the_least_of_the_dual():
    losses = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(3).requires_grad_()
    for divergence in (0.02, 0.5, 5.0):
        value = _transport.worst_mean(losses, divergence)
        scales = torch.linspace(0, 20, 20001, dtype=torch.float64)[:, None] + 0.1
        dual = divergence * (scales - 0.1)[:, 0] + scales[:, 0] * (
            torch.logsumexp(losses.detach() / scales, 1) - math.log(50)
        )
        assert value.item() == pytest.approx(dual.min().item(), abs=1e-6)
        (weight,) = torch.autograd.grad(value, losses)
        assert weight.sum().item() == pytest.approx(1)


def test_figures_at_equal_clean_accuracy_are_interpolated():
    def cell(knob, clean, area):
        found = {"clean": clean, "winf": 0.5, "area": area, "wpgd": 0.5}
        return {"cell": {"method": "TRADES", "knob": knob, "seed": 0}, "points": {"last": found}}

    points = _curves.points_of([cell("beta 6", 0.8, 0.4), cell("beta 3", 0.9, 0.2), cell("radius 2", 0.7, 0.5)])
    curves = _curves.curves_of(points, "TRADES", "last")
    assert [[point.knob for point in curve] for curve in curves] == [["beta 3", "beta 6"], ["radius 1", "radius 2"]]
    assert _curves.at_clean(curves, 85, "area") == pytest.approx(30)
    assert _curves.at_clean(curves, 75, "area") == pytest.approx(45)
    assert _curves.at_clean(curves, 95, "area") is None


def test_shares_are_all_cells():
    shares = [frontier.wanted(frontier.parser().parse_args(["run", "cifar10", "--shard", f"{i}/3"])) for i in range(3)]
    everything = frontier_settings.cells_of((0,))
    assert sorted(str(cell) for share in shares for cell in share) == sorted(map(str, everything))
    with pytest.raises(SystemExit, match="--only is 'TRADE'"):
        frontier.wanted(frontier.parser().parse_args(["run", "cifar10", "--only", "TRADE"]))


# The tests on a GPU, a part of benchmarks.speed.gpu


@pytest.mark.parametrize(
    ("body", "seconds", "broken"),
    [
        ("pass", None, None),
        ("os._exit(3)", None, "pytest ended with the code 3"),
        ("pytest.exit('enough', 0)", None, "pytest ended with the code 0"),
        ("time.sleep(100)", 8.0, "stopped after 8 seconds"),
    ],
)
def test_tests_that_did_not_come_to_an_end_are_no_success(tmp_path, body, seconds, broken):
    """The second test fails in any case, and is written at once."""
    file = tmp_path / "test_some.py"
    heads = ("good(): pass", "bad(): raise ValueError('unlike any other')", f"last(): {body}")
    file.write_text("import os, time, pytest\n" + "".join(f"def test_{head}\n" for head in heads))
    found = run_tests(["-c", os.devnull, str(file)], tmp_path, seconds)
    names = found["failed" if broken is None else "failed until then"]
    assert [name.split("::")[-1] for name in names] == ["test_bad"]
    assert found.get("broken") == broken
    assert ("failed" in found) == (broken is None)
    assert "unlike any other" in (tmp_path / "failures.txt").read_text()


# What the programs share


def test_a_run_that_is_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(_cells, "RUNS", tmp_path)
    args = Namespace(name="digits", samples=3, quick=False, json=None, data_dir=None)
    done: list[int] = []

    def work(number: int) -> dict[str, Any]:
        if number == 2 and 2 not in done:
            done.append(number)
            raise KeyboardInterrupt
        done.append(number)
        return {"square": number**2, "inf": math.inf}

    def whole_run() -> list[dict[str, Any]]:
        with cells_of(args, "squares") as cells:
            return [cells.run({"number": number}, lambda number=number: work(number)) for number in range(4)]

    with pytest.raises(KeyboardInterrupt):
        whole_run()
    folder = tmp_path / "cells/squares-digits"
    assert sorted(file.name for file in folder.iterdir()) == ["0.json", "1.json"]
    (folder / ".0-killed.json").write_text('{"half a')  # what a killed write leaves
    found = whole_run()
    assert done == [0, 1, 2, 2, 3]  # 2 was begun twice, 0 and 1 were found
    assert found == [{"square": number**2, "inf": math.inf} for number in range(4)]
    assert read_cells(folder) == []  # a run that has ended begins anew
    assert whole_run() == found
    assert done[5:] == [0, 1, 2, 3]


def test_a_cell_of_another_setting_is_refused(tmp_path):
    Cells(tmp_path, {"samples": 3}).run({"number": 1}, dict)
    with pytest.raises(ValueError, match="was made with another setting; move it away"):
        Cells(tmp_path, {"samples": 4}).run({"number": 1}, dict)


def test_some_of_a_setting_may_differ(tmp_path):
    file = file_of(tmp_path, {"method": "margin, beta 2", "rate": "cosine 0.1", "seed": 0})
    assert file.name == "margin-beta-2-cosine-0.1-0.json"
    run_cell(file, {"setting": {"eps": 0.1, "methods": ("a",)}}, lambda: {"area": 0.5})
    again = run_cell(file, {"setting": {"eps": 0.1, "methods": ("a", "b")}}, dict, indifferent=("methods",))
    assert again["area"] == 0.5
    with pytest.raises(ValueError, match="another setting"):
        run_cell(file, {"setting": {"eps": 0.2, "methods": ("a",)}}, dict, indifferent=("methods",))


def test_gradients_are_counted_a_sample_in_eval_mode():
    model = nn.Linear(3, 2).eval()
    counter = Counter(model)
    x = torch.ones(5, 3, requires_grad=True)
    model(x).sum().backward()
    model(x[:2]).sum().backward()
    with torch.no_grad():
        model(x)
    assert counter.gradients == 7
    model.train()
    model(x).sum().backward()
    assert counter.gradients == 7


def test_contestants_take_turns_and_rounds_are_kept(tmp_path):
    calls: list[str] = []
    contestants = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = interleaved(contestants, 2, Cells(tmp_path, {}))
    assert calls == ["a", "b"] * 3  # one round to warm up
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}
    assert interleaved(contestants, 2, Cells(tmp_path, {})) == times
    assert calls == ["a", "b"] * 4


def test_ratios_are_taken_within_a_round():
    times = {"a": [1.0, 2.0, 30.0], "b": [2.0, 4.0, 10.0]}
    rows = compared(times, "name", of_a=("a", False), b_over_it=("b", True))
    assert rows == [
        {"name": "a", "seconds": 2.0, "of_a": 1.0, "b_over_it": 2.0},
        {"name": "b", "seconds": 4.0, "of_a": 2.0, "b_over_it": 1.0},
    ]


def test_tables_are_markdown(capsys):
    table = Table("", "clean", "seconds")
    table.row("margin", spread([80.0, 82.0]))
    assert capsys.readouterr().out == "|  | clean | seconds |\n| --- | --- | --- |\n| margin | 81.0 ± 1.4 |  |\n"
    assert spread([]) == ""
    assert spread([1.0]) == "1.0"


def test_files_of_figures(tmp_path):
    keep(None, {})
    keep(tmp_path / "new/a.json", {"a": 1 / 3})
    assert (tmp_path / "new/a.json").read_text() == '{\n "a": 0.3333333333333333\n}\n'
    keep_cells(tmp_path / "b.json", [{"a": 1 / 3, "b": 12}])
    assert (tmp_path / "b.json").read_text() == '[{"a":0.33333,"b":12}]\n'
    assert compact({"a": [2 / 3]}) == {"a": [0.66667]}


def test_quick_values_give_way_to_the_command_line():
    line = with_data(command("text"))
    line.add_argument("--samples", type=int, default=500)
    assert vars(parsed(line, ["digits"], samples=8)) == {
        "quick": False,
        "json": None,
        "name": "digits",
        "data_dir": None,
        "samples": 500,
    }
    line = with_data(command("text"))
    line.add_argument("--samples", type=int, default=500)
    line.add_argument("--repeats", type=int, default=7)
    args = parsed(line, ["--quick", "--repeats", "3"], samples=8, repeats=1)
    assert (args.name, args.samples, args.repeats) == (QUICK, 8, 3)


def test_processes_share_work_and_leave_none():
    line = with_shard(command("text"), "the items")
    shards = [line.parse_args(["--shard", f"{number}/3"]).shard for number in range(3)]
    parts = [share(range(7), shard) for shard in shards]
    assert [list(part) for part in parts] == [[0, 3, 6], [1, 4], [2, 5]]
    assert list(share(range(7), line.parse_args([]).shard)) == list(range(7))


def test_a_data_set_must_be_named(capsys):
    with pytest.raises(SystemExit):
        parsed(with_data(command("text")), [])
    assert "a data set is missing, or --quick" in capsys.readouterr().err


def test_libraries_that_are_not_there(monkeypatch, capsys):
    monkeypatch.setattr(_rivals, "find_spec", lambda name: None)
    assert _rivals.installed(quick=True) == set()
    assert "foolbox is not installed (pip install foolbox==3.3.4); its searches are left out" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="foolbox is not installed"):
        _rivals.installed(quick=False)


@pytest.mark.parametrize("file", sorted((ROOT / "docs/results").glob("*.json")), ids=lambda file: file.stem)
def test_stored_cells_are_read(file, capsys):
    cells = json.loads(file.read_text(encoding="utf-8"))
    if file.stem.startswith("margin_"):
        chosen = _choices.chosen_groups(cells)
        assert chosen
        for name in chosen:
            curves = margin_figure.curves_of(cells, name, np.array(SHARES))
            assert (np.diff(curves) <= 0).all()
            assert (curves[:, 0] > 0).all()
    elif file.stem.startswith("frontier_"):
        points = _curves.points_of(cells)
        assert points[0].method == "start"
        assert all((point.figures["area"] < point.figures["clean"]).all() for point in points)
        for cell in cells:  # what the page says is what the distances say
            for point in cell["points"].values():
                share = np.mean(np.array(point["distances"], float) > cell["setting"]["eps"])
                assert point["winf"] == pytest.approx(share, abs=1e-5)
    else:
        summary.summarise(cells)
        page = (ROOT / "docs/results/README.md").read_text(encoding="utf-8")
        printed = [
            line for line in capsys.readouterr().out.splitlines() if " ± " in line or line.startswith("| before")
        ]
        assert printed
        assert [line for line in printed if line not in page] == []


def test_a_curve_is_drawn(tmp_path, capsys):
    margin_figure.main(["--figure", str(tmp_path / "margin.png"), "--methods", "start"])
    assert (tmp_path / "margin.png").read_bytes().startswith(b"\x89PNG")
    assert "| start | 1 | 72.2 |" in capsys.readouterr().out
