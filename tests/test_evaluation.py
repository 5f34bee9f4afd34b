# SPDX-License-Identifier: MIT
"""The report: figures recomputable from its arrays, its forms, its warnings; the first-order bounds."""

from __future__ import annotations

import builtins
import copy
import json
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import nn

import art_wdro
from art_wdro import (
    Report,
    WassersteinDistributionalAttack,
    WassersteinFGM,
    WassersteinPGD,
    accuracy_bounds,
    adversarial_accuracy,
    evaluate,
    knapsack_accuracy,
    sensitivity,
    wasserstein_distance,
)
from art_wdro.evaluation._attempts import Case, Pool, attempts_on
from art_wdro.evaluation._autoattack import left_out
from art_wdro.evaluation._intervals import ends, knapsack_of, resampled, wilson
from art_wdro.evaluation._provenance import digest_of_data, digest_of_weights
from art_wdro.evaluation._report import Row
from art_wdro.evaluation._sanity import check_order, check_rows
from tests.conftest import NORMS, digits, linear_problem, make_classifier, on_device


@pytest.fixture(scope="module")
def report(trained):
    classifier, x, y = trained
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return evaluate(classifier, x, y, eps=0.05, autoattack=True, keep_arrays=True, verbose=False)


@pytest.fixture(scope="module")
def trained(_trained_state):
    from tests.conftest import DigitsNetwork

    model = DigitsNetwork()
    model.load_state_dict(_trained_state)
    return make_classifier(model, (1, 8, 8), 10), *(part[:100] for part in digits()[1])


def test_figures_can_be_computed_from_the_arrays(report, trained):
    classifier, x, y = trained
    assert {row.attack for row in report.rows} == set(report.arrays)
    for row in report.rows:
        adversarial = report.arrays[row.attack]
        mass = report.mass if row.attack.startswith("WDA") else np.ones(len(y))
        standing, before = (classifier.predict(points).argmax(1) == y for points in (adversarial, x))
        assert row.accuracy == pytest.approx(np.mean(mass * standing + (1 - mass) * before))
        if row.order is not None:
            moved = x + mass[:, None, None, None] ** (1 / row.order) * (adversarial - x)
            assert row.spent == pytest.approx(wasserstein_distance(x, moved, row.order))
            assert row.spent <= 0.05 * (1 + 1e-6)
            assert row.gradients > 0
    assert report.upsilon == pytest.approx(sensitivity(classifier, x, y), rel=1e-5)
    assert report.accuracy(0.05) == knapsack_accuracy(report.distances, 0.05, 2)
    assert report.accuracy([0.01, 0.02], np.inf).shape == (2,)


def test_stronger_attacks_leave_less(report):
    left = {row.attack: row.accuracy for row in report.rows}
    assert left["knapsack"] <= left["W-PGD-100, ReDLR, linear"] <= left["W-PGD-20, ReDLR, step eps/20 (paper)"]
    assert left["knapsack's distances"] <= left["AutoAttack, standard"] + 0.01
    assert left["AutoAttack, standard"] <= left["PGD-20, CE"] < left["none"]


def test_forms_of_the_report(report, tmp_path):
    text, markdown, data = str(report), report.to_markdown(), json.loads(report.to_json())
    html = report._repr_html_()
    for row in report.rows:
        assert row.attack in text
        low, high = report.intervals[row.attack]
        assert low <= row.accuracy <= high
        shown = f"{100 * row.accuracy:.1f} ± {100 * max(high - row.accuracy, row.accuracy - low):.1f}"
        assert f"| {row.threat} | {row.attack} | {shown} |" in markdown
        assert f"<td>{shown}</td>" in html
    assert data["attacks"][0]["threat"] == "clean"
    assert data["attacks"][0]["order"] is None
    assert data["attacks"][1]["order"] == "inf"
    assert data["norm"] == "inf"
    assert len(data["distances"]) == data["samples"] == 100
    assert data == report.to_dict()
    report.save_figure(tmp_path / "curve.png", orders=(1,))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_pointwise_order_needs_no_extra_row(linear):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = evaluate(linear.classifier, linear.x, linear.y, p=np.inf, eps=0.02, knapsack_iter=30, verbose=False)
    assert {row.threat for row in found.rows} == {"clean", "W_inf"}
    assert found.to_dict()["p"] == "inf"


def test_where_reports_come_from(report, trained):
    classifier, x, y = trained
    data = report.to_dict()
    assert data["versions"]["art-wdro"] == art_wdro.__version__
    assert (data["input_shape"], data["classes"], data["seed"], data["indices"]) == ([1, 8, 8], 10, 0, None)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    assert data["data_sha256"] == digest_of_data(inputs, labels)
    assert data["weights_sha256"] == digest_of_weights(classifier.model)
    other = labels.clone()
    other[7] = (other[7] + 1) % 10
    digests = [digest_of_data(*pair) for pair in ((inputs, labels), (inputs, other), (inputs.flip(0), labels.flip(0)))]
    digests.append(digest_of_data(inputs.flatten(1), labels))
    assert len(set(digests)) == 4
    changed = copy.deepcopy(classifier.model)
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-6
    assert digest_of_weights(changed) != digest_of_weights(classifier.model)
    assert digest_of_weights(nn.ReLU()) is None
    for name, shares in report.standing.items():
        row = next(row for row in report.rows if row.attack == name)
        assert shares.mean() == pytest.approx(row.accuracy)
        assert data["standing"][name] == shares.tolist()


def test_intervals_are_written_beside_figures(report):
    data = report.to_dict()
    for row, told in zip(report.rows, data["attacks"], strict=True):
        assert told["interval"] == list(report.intervals[row.attack])
    drawn = resampled([knapsack_of(report.distances, 0.05, 2.0)], 100, 0)[0]
    drawn += report.rows[-1].accuracy - report.accuracy(0.05)  # whole samples alone are flipped
    assert report.intervals["knapsack"] == ends(drawn, report.rows[-1].accuracy, 100)
    assert report.intervals["none"] == wilson(report.rows[0].accuracy, 100)


@pytest.mark.slow
def test_the_shared_budget_of_w_pgd_spreads_more_than_single_samples():
    """What docs/evaluation.md says of its intervals."""
    (x, y), (x_test, y_test) = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.Adam(model.parameters(), lr=5e-3))
    classifier.fit(x, y, batch_size=64, nb_epochs=15)
    attack = WassersteinPGD(classifier, eps=0.1, max_iter=50, schedule="linear", batch_size=500, verbose=False)
    draws = np.random.default_rng(0).integers(len(x_test), size=(40, 200))
    left = np.array([adversarial_accuracy(classifier, x_test[rows], y_test[rows], attack) for rows in draws])
    assert left.std() > 1.3 * math.sqrt(left.mean() * (1 - left.mean()) / 200)


def test_a_figure_shows_itself_and_what_is_in_it(report):
    figure = report.plot(orders=(1,))
    assert figure._repr_png_().startswith(b"\x89PNG")
    curves, spending = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in curves.lines}
    budgets = curves.lines[0].get_xdata()
    np.testing.assert_allclose(lines["knapsack, $W_{2}$"], 100 * report.accuracy(budgets))
    assert {"knapsack, $W_{1}$", "knapsack, $W_{\\infty}$", "clean"} <= set(lines)
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"PGD-20, CE, W_inf", "W-PGD-100, ReDLR, linear, W_2", "knapsack, W_2"} <= shown
    spent = sum(patch.get_height() for patch in spending.patches if hasattr(patch, "get_height"))
    assert spent == pytest.approx(100, abs=1)  # the budget is spent to the end


def test_bracket_is_shaded(linear):
    radii = np.full(4, 0.1)
    plain = Report(2.0, math.inf, 0.2, 4, (Row("none", None, 1.0, 0, 0, 0),), 0.0, {}, np.full(4, 0.3))
    for found, areas in ((plain, 0), (replace(plain, radii=radii), 1), (replace(plain, distances=np.zeros(4)), 0)):
        assert len(found.plot().axes[0].collections) == areas


def test_the_interval_of_a_certificate_by_votes_is_that_of_its_radii():
    rng = np.random.default_rng(0)
    radii = rng.uniform(0, 0.3, 100)
    plain = Report(2.0, 2.0, 0.1, 100, (Row("none", None, 1.0, 0, 0, 0),), 0.0, {}, 2 * radii, radii=radii)
    votes = replace(plain, surer=0.8 * radii, failed=3, confidence=0.999)
    below = plain.certified_accuracy(0.1) - votes.certified_accuracy(0.1)
    assert 0 < below < 0.031
    expected = np.array(plain.intervals["certified"]) - below
    assert votes.intervals["certified"] == pytest.approx(expected)
    assert f"certified: {100 * votes.certified_accuracy(0.1):.1f} ± " in str(votes)


def test_a_random_part(linear):
    x, y = linear.x[np.argsort(linear.y)], np.sort(linear.y)
    setting = {"eps": 0.02, "knapsack_iter": 10, "autoattack": False, "certified": False, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = evaluate(linear.classifier, x, y, samples=20, seed=3, keep_arrays=True, **setting)
        chosen = evaluate(linear.classifier, x[found.indices], y[found.indices], **setting)
        other = evaluate(linear.classifier, x, y, samples=20, seed=4, **setting)
    assert (found.samples, found.drawn_from, found.seed) == (20, len(x), 3)
    assert np.array_equal(found.arrays["none"], x[found.indices])
    assert set(y[found.indices]) == set(y)
    assert f"20 samples of {len(x)}, drawn at random by class (seed 3)" in str(found)
    np.testing.assert_array_equal(found.distances, chosen.distances)
    assert found.provenance == chosen.provenance != other.provenance
    assert "drawn at random" not in str(chosen)
    for samples, message in ((len(x) + 1, "allowed is at most"), (0, "a whole number >= 1")):
        with pytest.raises(ValueError, match=f"samples is {samples}; allowed is {message.removeprefix('allowed is ')}"):
            evaluate(linear.classifier, x, y, samples=samples)
    with pytest.raises(ValueError, match="seed is -1; allowed is a whole number >= 0"):
        evaluate(linear.classifier, x, y, seed=-1)


def test_rows_are_told_as_they_come(linear):
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = evaluate(
            linear.classifier,
            linear.x,
            linear.y,
            eps=0.02,
            autoattack=False,
            on_row=lambda *row: told.append(row),
            verbose=False,
        )
    assert sorted(map(str, (row for row, _ in told))) == sorted(map(str, found.rows))
    assert all(array.shape == linear.x.shape for _, array in told)


# --- warnings ---------------------------------------------------------------------------------------------------


def warned(classifier, x, y) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = evaluate(classifier, x, y, eps=0.02, autoattack=False, knapsack_iter=20, verbose=False)
    assert [str(w.message) for w in caught if w.category is UserWarning] == list(found.warnings)
    return list(found.warnings)


def test_probabilities_are_noticed(linear):
    model = nn.Sequential(*linear.classifier.model, nn.Softmax(dim=1))
    assert any(
        "puts out probabilities" in text for text in warned(make_classifier(model, (30,), 5), linear.x, linear.y)
    )
    assert not any("probabilities" in text for text in warned(linear.classifier, linear.x, linear.y))


def test_randomness_is_noticed(linear):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear.classifier.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.inner(x)
            return out + 0.1 * torch.randn_like(out)

    assert any(
        "two forward passes differ" in text for text in warned(make_classifier(Noisy(), (30,), 5), linear.x, linear.y)
    )


def test_logits_that_are_no_numbers_are_noticed(linear):
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear.classifier.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x[:, :1] > 0.6, torch.nan, self.inner(x))

    found = warned(make_classifier(Broken(), (30,), 5), linear.x, linear.y)
    assert any("logits are NaN" in text for text in found)
    assert not any("two forward passes differ" in text for text in found)


@pytest.mark.slow
def test_autoattack_is_feasible_at_a_small_eps(trained):
    classifier = trained[0]
    x = np.random.default_rng(0).random((40, 1, 8, 8), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = evaluate(
            classifier,
            x,
            classifier.predict(x).argmax(1),
            eps=1e-3,
            autoattack=True,
            knapsack_iter=20,
            keep_arrays=True,
            verbose=False,
        )
    for row in found.rows[1:]:
        assert row.spent <= 1e-3 * (1 + 1e-6)
        if not row.attack.startswith("WDA"):
            assert row.spent == pytest.approx(wasserstein_distance(x, found.arrays[row.attack], row.order))


def test_vanishing_gradients_are_noticed(linear):
    class Saturated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear.classifier.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # one in ten samples saturates
            steep = torch.where(torch.arange(len(x), device=x.device) % 10 == 0, 1e4, 1.0)[:, None]
            return torch.tanh(steep * self.inner(x)) + 3 * torch.arange(5, device=x.device)

    x, y = linear.x, np.full(len(linear.x), 4)
    assert any("have no gradient" in text for text in warned(make_classifier(Saturated(), (30,), 5), x, y))


def test_more_accuracy_under_the_larger_threat_is_noticed():
    rows = [
        Row("none", None, 0.9, 0, 0, 0),
        Row("AutoAttack", math.inf, math.nan, math.nan, 0, math.nan, "MemoryError: no room"),
        Row("PGD", math.inf, 0.5, 0, 0, 0),
        Row("W-PGD", 2.0, 0.51, 0, 0, 0),
        Row("knapsack", 2.0, 0.3, 0, 0, 0),
    ]
    (text,) = check_order(rows)
    assert "W-PGD leaves 51.0 % under W_2, more than the 50.0 % of PGD under W_inf" in text


def test_one_radius_for_all_samples_is_not_compared():
    rows = [Row("PGD", math.inf, 0.5, 0, 0, 0), Row("WDA", 2.0, 0.6, 0, 0, 0)]
    assert len(check_rows(SimpleNamespace(undefined=0, elsewhere=0, mass={}), rows)) == 1
    assert check_rows(SimpleNamespace(undefined=0, elsewhere=0, mass={"WDA": np.ones(1)}), rows) == []


def test_the_row_of_autoattack_says_what_to_install(linear, monkeypatch):
    classifier = make_classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), (1, 2, 2), 4)
    x, y = np.random.default_rng(0).random((8, 1, 2, 2), dtype=np.float32), np.arange(8) % 4

    def rows(**more) -> dict[str, Row]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = evaluate(classifier, x, y, eps=0.01, knapsack_iter=5, verbose=False, **more)
        return {row.attack: row for row in found.rows}

    def without(name: str) -> NoReturn:
        raise ImportError(name)

    monkeypatch.setattr("art_wdro.evaluation._autoattack.import_module", without)
    row = rows()["AutoAttack, standard"]
    assert row.failure == "not installed: pip install '.[autoattack]' in a clone of art-wdro"
    assert row.threat == "W_inf"
    assert math.isnan(row.accuracy)
    assert "AutoAttack, standard" not in rows(autoattack=False)
    assert left_out(linear.classifier, None, math.inf) == []  # whose inputs are no images


def test_figure_without_matplotlib_and_autoattack_that_does_not_fit(report, linear, monkeypatch, tmp_path):
    own = builtins.__import__

    def without(name, *arguments):
        if name.split(".")[0] in ("matplotlib", "autoattack", "pyautoattack"):
            raise ImportError(name)
        return own(name, *arguments)

    with pytest.raises(ValueError, match=r"autoattack is True; it needs clip_values \(0, 1\)"):
        evaluate(linear_problem(clip_values=(-1, 2)).classifier, linear.x, linear.y, autoattack=True)
    with pytest.raises(ValueError, match="it needs 4 classes or more, and there are 3"):
        evaluate(make_classifier(nn.Flatten(), (1, 1, 3), 3), np.zeros((4, 1, 1, 3)), np.zeros(4), autoattack=True)
    with pytest.raises(ValueError, match=r"it needs images \(C, H, W\), and inputs are \(30,\)"):
        evaluate(linear.classifier, linear.x, linear.y, autoattack=True)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="needs matplotlib: pip install"):
        report.save_figure(tmp_path / "curve.png")
    monkeypatch.setattr("art_wdro.evaluation._autoattack.import_module", without)
    with pytest.raises(ImportError, match="the package is not installed"):
        evaluate(linear.classifier, linear.x, linear.y, autoattack=True)


# --- first-order bounds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["redlr", "ce"])
def test_bounds_follow_their_formula(digits_classifier, norm, loss):
    x, y = (part[:150] for part in digits()[1])
    eps = {1.0: 0.2, 2.0: 0.05, np.inf: 0.01}[norm]
    found = accuracy_bounds(digits_classifier, x, y, norm=norm, eps=eps, loss=loss)
    with torch.no_grad():
        z = digits_classifier.model.eval()(on_device(x)).cpu().double()
    hit = z.argmax(1).numpy() == y
    top = z.sort(dim=1, descending=True).values
    if loss == "ce":
        losses = (z.logsumexp(1) - z[range(150), y]).numpy()
        missed = losses[~hit].mean()
    else:
        losses = np.where(hit, -((top[:, 0] - top[:, 1]) / (top[:, 0] - top[:, 2])).numpy(), 0)
        missed = 0.0
    gap = missed - losses.mean()
    attack = WassersteinFGM(digits_classifier, norm=norm, eps=eps, loss=loss, verbose=False)
    with torch.no_grad():
        z = digits_classifier.model.eval()(on_device(attack.generate(x, y))).cpu().double()
    left = z.argmax(1).numpy() == y
    top = z.sort(dim=1, descending=True).values
    after = (z.logsumexp(1) - z[range(150), y]).numpy()
    if loss == "redlr":
        after = np.where(left, -((top[:, 0] - top[:, 1]) / (top[:, 0] - top[:, 2])).numpy(), 0)
    first_order = (gap - eps * sensitivity(digits_classifier, x, y, norm=norm, loss=loss)) / gap
    expected = max(0.0, min(first_order, (missed - after.mean()) / gap))
    assert found.clean == hit.mean()
    assert found.ratio_lower == pytest.approx(expected, abs=1e-5)
    assert found.upper == left.mean()
    assert found.lower <= found.upper <= found.clean
    assert found.lower == pytest.approx(found.ratio_lower * found.clean)
    assert found.upper == pytest.approx(found.ratio_upper * found.clean)
    if loss == "redlr":  # for a small eps they hold
        assert found.lower <= adversarial_accuracy(digits_classifier, x, y, norm=norm, eps=eps) + 0.02


def test_the_loss_after_the_step_bounds_where_it_rises_faster_than_its_slope(linear):
    """As the cross-entropy of a linear model does, which is convex."""
    classifier, x, y = linear
    found = accuracy_bounds(classifier, x, y, eps=0.03, loss="ce")
    adversarial = WassersteinFGM(classifier, eps=0.03, loss="ce", verbose=False).generate(x, y)
    with torch.no_grad():
        clean, after = (
            nn.functional.cross_entropy(classifier.model(on_device(a)), on_device(y), reduction="none")
            for a in (x, adversarial)
        )
    missed = clean[::10].mean().item()  # one sample in ten
    gap, left = missed - clean.mean().item(), missed - after.mean().item()
    assert 0 < left < gap - 0.03 * sensitivity(classifier, x, y, loss="ce")
    assert found.ratio_lower == pytest.approx(left / gap, rel=1e-4)


def test_bounds_at_the_edges(linear):
    same = accuracy_bounds(linear.classifier, linear.x, linear.y, eps=0)
    assert same.lower == pytest.approx(same.clean)
    assert same.upper == same.clean == pytest.approx(0.9)
    right = linear.classifier.predict(linear.x).argmax(1)
    assert math.isnan(accuracy_bounds(linear.classifier, linear.x, right, loss="ce").lower)
    assert accuracy_bounds(linear.classifier, linear.x, (right + 1) % 5).upper == 0.0
    with pytest.raises(ValueError, match="loss is 'dlr'; allowed is one of 'redlr', 'ce'"):
        accuracy_bounds(linear.classifier, linear.x, linear.y, loss="dlr")


# --- rows that fail, and points of all rows ---------------------------------------------------------------------


def test_a_row_that_fails_says_why(linear, monkeypatch):
    def exhausted(*_, **__):
        raise MemoryError("no room for 9.9 GB")

    monkeypatch.setattr(WassersteinDistributionalAttack, "_attack", exhausted)
    monkeypatch.setattr("art_wdro.evaluation._evaluate.certified_radii", exhausted)
    monkeypatch.setattr("art_wdro.evaluation._evaluate.upsilon_of", exhausted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = evaluate(linear.classifier, linear.x, linear.y, eps=0.02, knapsack_iter=20, verbose=False)
    failed = [row for row in found.rows if row.failure]
    assert [(row.attack, row.failure) for row in failed] == [("WDA, kappa 2", "MemoryError: no room for 9.9 GB")]
    assert found.rows[-1].accuracy < found.rows[0].accuracy
    assert found.radii is None
    assert found.uncertified == "MemoryError: no room for 9.9 GB"
    assert math.isnan(found.upsilon)
    assert "WDA, kappa 2 failed: MemoryError" in str(found)
    assert json.loads(found.to_json())["attacks"][-2]["accuracy"] is None


def test_where_every_attack_fails_the_error_is_raised(linear):
    class Detached(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return linear.classifier.model(x).detach()

    with pytest.raises(ValueError, match="do not depend differentiably"):
        evaluate(make_classifier(Detached(), (30,), 5), linear.x, linear.y, autoattack=False, verbose=False)


def test_distances_are_the_least_over_all_rows(linear, monkeypatch):
    # a search that finds nothing
    nothing = lambda runs, point, logits: runs.excess(logits)[1].double()  # noqa: E731
    monkeypatch.setattr("art_wdro._solvers.runs.NewtonRuns.offer", nothing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = evaluate(linear.classifier, linear.x, linear.y, eps=0.05, autoattack=False, verbose=False)
    left = {row.attack: row.accuracy for row in found.rows}
    assert left["PGD-20, CE"] < left["none"]
    assert left["knapsack's distances"] <= left["PGD-20, CE"]
    assert found.accuracy(0.05, np.inf) <= left["PGD-20, CE"]
    assert left["knapsack"] <= left["W-PGD-100, ReDLR, linear"]
    assert any("other attacks came nearer to" in text for text in found.warnings)


def test_the_nearest_points_are_kept_and_those_that_a_search_missed_are_counted():
    """Of samples left of a border at 1/2, and one beyond it."""
    layer = nn.Linear(1, 2)
    layer.weight.data, layer.bias.data = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.0])
    x = on_device(torch.tensor([[0.25], [0.375], [0.75]]))
    case = Case(
        make_classifier(layer, (1,), 2), x, on_device(torch.zeros(3, dtype=torch.int64)), 2.0, math.inf, 0.375, 8
    )
    pool = Pool(case)
    nearest = on_device(torch.tensor([[0.625], [0.75], [0.75]]))
    pool.search(nearest)
    assert pool.elsewhere == 0
    pool.search(on_device(torch.tensor([[1.0], [0.7525], [0.75]])))  # twice as far, and a little less than 1 %
    assert pool.elsewhere == 1
    assert pool.distances.tolist() == [0.375, 0.375, 0.0]
    assert torch.equal(pool.nearest, nearest)
    pointwise = attempts_on(case, 1, autoattack=False)[-1]
    assert pointwise.name == "knapsack's distances"
    assert torch.equal(pointwise.run(pool).points, nearest)  # a distance of eps is within eps


def test_gradients_are_those_that_were_spent(report):
    spent = {row.attack: row.gradients for row in report.rows}
    assert spent["PGD-20, CE"] == 20
    assert 0 < spent["W-PGD-100, ReDLR, linear"] < 100
