# SPDX-License-Identifier: MIT
"""Two reports held against each other: which test is taken, what is said to have changed, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from art_wdro import Report, knapsack_accuracy
from art_wdro._cli.main import main
from art_wdro.evaluation._compare import compare
from art_wdro.evaluation._intervals import mcnemar
from art_wdro.evaluation._loaded import load_report
from art_wdro.evaluation._report import Row

SAMPLES = 300


def made(seed: int, factor: float = 1.0, data: str = "a", samples: int = SAMPLES) -> Report:
    """A report of samples that `data` names, whose distances are `factor` times those of another network."""
    rng = np.random.default_rng([ord(data), samples])
    base = np.where(rng.random(samples) < 0.1, 0.0, rng.uniform(0, 0.3, samples))
    distances = factor * base * np.random.default_rng(seed).lognormal(0, 0.1, samples)
    rows, standing = [], {}
    for name, order, eps in (("none", None, 0.0), ("PGD-20, CE", math.inf, 0.1)):
        standing[name] = (distances > eps).astype(float)
        rows.append(Row(name, order, standing[name].mean(), eps, 0.0, 20.0))
    standing["W-PGD"] = np.clip(distances / 0.2, 0, 1)
    rows.append(Row("W-PGD", 2.0, standing["W-PGD"].mean(), 0.1, 0.0, 20.0))
    rows.append(Row("knapsack", 2.0, knapsack_accuracy(distances, 0.1), 0.1, 0.0, 20.0))
    provenance = {
        "data_sha256": data * 64,
        "weights_sha256": f"{seed}" * 64,
        "input_shape": [3],
        "classes": 4,
        "versions": {"art-wdro": "1"},
        "device": "cpu",
    }
    return Report(
        *(2.0, math.inf, 0.1, samples, tuple(rows), 1.0, {}, distances),
        radii=0.95 * distances,
        standing=standing,
        provenance=provenance,
    )


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write reports, or anything else, and return the files."""
    monkeypatch.chdir(tmp_path)

    def write(*reports: Report | dict | str) -> list[Path]:
        for number, report in enumerate(reports):
            text = report if isinstance(report, str) else None
            text = json.dumps(report) if isinstance(report, dict) else text
            Path(f"{number}.json").write_text(report.to_json() if text is None else text)
        return [Path(f"{number}.json") for number in range(len(reports))]

    return write


def compared(files: list[Path]):
    return compare(*map(load_report, files))


def test_of_the_same_images_each_row_has_its_test(written):
    first, second = made(1), made(2, 1.05)
    found = compared(written(first, second))
    assert {(c.threat, c.attack): c.test for c in found.changes} == {
        ("clean", "none"): "McNemar",
        ("W_inf", "PGD-20, CE"): "McNemar",
        ("W_2", "W-PGD"): "bootstrap of pairs of shares",
        ("W_2", "knapsack"): "bootstrap of pairs of distances",
        ("W_2", "certified"): "bootstrap of pairs of distances",
    }
    changes = {c.attack: c for c in found.changes}
    alone = mcnemar(first.standing["PGD-20, CE"] > 0, second.standing["PGD-20, CE"] > 0)
    assert min(1.0, alone) <= changes["PGD-20, CE"].p_value <= min(1.0, 5 * alone)
    assert changes["none"].p_value == 1.0
    for name in ("knapsack", "certified"):
        assert changes[name].p_value < 0.05
        assert changes[name].difference > 0
    shown = str(found)
    assert f"the same {SAMPLES} samples, compared one by one\nother weights\n" in shown
    low, high = first.intervals["knapsack"]
    half = 100 * max(high - first.accuracy(0.1), first.accuracy(0.1) - low)
    assert f"| W_2 | knapsack | {100 * first.accuracy(0.1):.1f} ± {half:.1f} |" in shown
    assert shown.splitlines()[-1].startswith("changed beyond the sampling error of the images (p < 0.05 for all rows")
    assert f"knapsack (W_2) {changes['knapsack'].difference:+.1f}" in shown.splitlines()[-1]


def test_a_report_is_no_other_than_itself_and_chance_is_no_change(written):
    same = compared(written(made(1), made(1)))
    assert {c.p_value for c in same.changes} == {1.0}
    assert str(same).endswith(": nothing")
    assert "the same weights" in str(same)
    assert str(compared(written(made(1), made(2)))).endswith(": nothing")


def test_other_images_are_two_draws(written):
    found = compared(written(made(1), made(2, 1.05, data="b", samples=250)))
    assert {c.test for c in found.changes} == {"bootstrap of shares", "bootstrap of distances"}
    assert str(found).endswith(": nothing")  # what is a change on the same images
    assert "other samples (300 and 250 samples), or of unknown ones" in str(found)
    assert str(compared(written(made(1), made(2, 2.0, data="b")))).count("knapsack (W_2) +") == 1


def test_pointwise_reports_are_compared_one_by_one(written):
    def pointwise(report: Report) -> Report:
        rows = (*report.rows[:2], Row("knapsack", math.inf, float((report.distances > 0.1).mean()), 0.1, 0.0, 20.0))
        return replace(report, p=math.inf, rows=rows)

    found = compared(written(pointwise(made(1)), pointwise(made(2, 1.5))))
    assert [(c.attack, c.test) for c in found.changes][2:] == [("knapsack", "McNemar"), ("certified", "McNemar")]
    assert found.changes[2].p_value < 0.05


def test_few_samples_prove_nothing(written):
    found = compared(written(made(1, samples=3), made(2, 50.0, samples=3)))
    assert min(c.p_value for c in found.changes) > 0.05


def test_circumstances_are_told(written):
    first, second = made(1), made(2)
    versions = {"versions": {"art-wdro": "2", "torch": "3"}, "device": "H"}
    failed = replace(second.rows[1], accuracy=math.nan, failure="no room")
    absent = replace(first.rows[2], accuracy=math.nan, failure="not installed", installed=False)
    first = replace(first, rows=(*first.rows[:2], absent, *first.rows[3:]))
    second = replace(
        second,
        rows=(second.rows[0], failed, *second.rows[3:]),
        provenance=second.provenance | versions,
        warnings=("mind",),
        seed=4,
    )
    notes = compared(written(first, second)).notes
    assert "version of art-wdro: 1, then 2" in notes
    assert "version of torch: None, then 3" in notes
    assert "device: cpu, then H" in notes
    assert "seed: 0, then 4" in notes
    assert "only in '0.json': W_2 W-PGD" in notes
    assert "failed in '1.json': W_inf PGD-20, CE" in notes
    assert "not installed in '0.json': W_2 W-PGD" in notes
    assert "Warning of '1.json': mind" in notes


def test_reports_without_digests_are_read(written):
    """Of an earlier form, which had no digests, intervals or shares."""
    older = made(1).to_dict()
    for name in (*made(1).provenance, "format", "interval_level", "certified_interval", "standing", "indices"):
        del older[name]
    for row in older["attacks"]:
        del row["interval"]
    found = compared(written(older, made(2, 2.0)))
    assert "McNemar" not in {c.test for c in found.changes}
    assert "whether the networks are the same is not known" in found.notes
    assert "knapsack (W_2) +" in str(found).splitlines()[-1]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"eps": 0.2}, "eps is 0.1 in the first and 0.2 in the second"),
        ({"p": 3.0}, "p is 2.0 in the first and 3.0 in the second"),
        ({"norm": 2.0}, "norm is inf in the first and 2.0 in the second"),
        ({"input_shape": [4]}, r"input_shape is \[3\] in the first and \[4\] in the second"),
        ({"classes": 5}, "classes is 4 in the first and 5 in the second"),
    ],
)
def test_what_cannot_be_compared(written, other, message):
    with pytest.raises(ValueError, match=rf"'0.json' and '1.json' cannot be compared: {message}; needed are equal"):
        compared(written(made(1), made(2).to_dict() | other))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("what", "is no report: it is no JSON"),
        ("[1]", "is no report: it holds a list; needed is an object"),
        ("{}", "is no report: it lacks 'distances'"),
        ({"complete": False}, "is no whole report: its evaluation did not come to the end"),
        ({"format": 2}, "has the format 2; this version reads formats up to 1"),
        ({"format": "x"}, "has the format 'x'; this version reads formats up to 1"),
        ({"distances": [1.0]}, "is no report: it has 1 distances for 300 samples"),
        ({"distances": [-1.0] * 300}, "is no report: its distances are not all numbers >= 0"),
        ({"distances": [], "samples": 0}, "is no report: it has no samples"),
        ({"distances": 3}, "is no report: "),
        ({"attacks": 3}, "is no report: "),
        ({"attacks": [{}]}, "is no report: it lacks 'accuracy'"),
        ({"attacks": [{"attack": "a", "threat": "clean", "accuracy": 2}]}, "is no report: an accuracy of it is 2.0"),
        ({"standing": {"none": [1]}}, "is no report: it has 1 shares for 300 samples"),
        ({"eps": -1}, "is no report: its eps is -1.0 and its p 2.0"),
        ({"eps": None}, "is no report: "),
        ({"standing": {}}, "is no report: it lacks 'none'"),
        ({"versions": "1"}, "is no report: its versions are no object"),
        ({"warnings": 1}, "is no report: its warnings are no list"),
        ({"norm": "all"}, "is no report: could not convert string to float: 'all'"),
        ({"certified_interval": []}, "is no report: list index out of range"),
        ({"certified": 10**400}, "is no report: int too large to convert to float"),
    ],
)
def test_what_is_no_report(written, capsys, content, message):
    written(made(1), made(1).to_dict() | content if isinstance(content, dict) else content)
    with pytest.raises(SystemExit) as stop:
        main(["compare", "0.json", "1.json"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"'1.json' {message}" in error
    assert len(error.strip().splitlines()) == 1


def test_the_command_prints_and_saves(written, capsys):
    written(made(1), made(2, 1.05))
    main(["compare", "0.json", "1.json", "--json", "out/c.json", "--seed", "3"])
    assert "| W_2 | knapsack |" in capsys.readouterr().out
    found = json.loads(Path("out/c.json").read_text())
    assert [row["attack"] for row in found["rows"] if row["changed"]]
    assert found["rows"][0]["test"] == "McNemar"
