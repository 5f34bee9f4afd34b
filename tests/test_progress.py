# SPDX-License-Identifier: MIT
"""The bar of a report: by gradients, out of as many as all attacks may take, and to its end."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from tqdm import tqdm

from art_wdro import WassersteinDistributionalAttack, WassersteinKnapsack, WassersteinPGD, evaluate
from art_wdro.evaluation._progress import Progress
from tests.conftest import digits, make_classifier


class Recorded(tqdm):
    """A bar that is written nowhere, and remembers itself and where it was."""

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings, file=io.StringIO())
        self.seen: list[float] = [0]
        self.shown = not self.disable  # a closed one is disabled
        bars.append(self)

    def update(self, n: float = 1) -> None:
        """Go on."""
        super().update(n)
        self.seen.append(self.seen[-1] + n)  # a bar that is not shown counts nothing


bars: list[Recorded] = []


@pytest.fixture
def shown(monkeypatch):
    bars.clear()
    monkeypatch.setattr("art_wdro.evaluation._progress.tqdm", Recorded)
    return bars


def report(classifier, x, y, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return evaluate(classifier, x, y, **{"eps": 0.1, "knapsack_iter": 100, "autoattack": False} | settings)


@pytest.mark.parametrize("attack", ["redlr", "ce", "pointwise", "split", "split unprobed", "newton", "stepping-out"])
def test_attacks_tell_of_every_gradient_and_of_those_they_do_not_need(digits_classifier, attack):
    x, y = (part[:50] for part in digits()[1])
    settings = {"eps": 0.1, "batch_size": 16, "verbose": False}
    cls, most, more, unseen = {
        "redlr": (WassersteinPGD, 7, {"max_iter": 7}, 0),
        "ce": (WassersteinPGD, 7, {"max_iter": 7, "loss": "ce"}, 0),
        "pointwise": (WassersteinPGD, 7, {"max_iter": 7, "p": math.inf}, 0),
        "split": (WassersteinDistributionalAttack, 32, {}, 0),
        "split unprobed": (WassersteinDistributionalAttack, 20, {"classes": 1}, 0),
        # several gradients of one forward pass count as one: 2 and 9 classes, and 3
        "newton": (WassersteinKnapsack, 100, {"max_iter": 100}, 9),
        "stepping-out": (WassersteinKnapsack, 10 + 3, {"max_iter": 10, "search": "stepping-out"}, 2),
    }[attack]
    told: list[int] = []
    attack = cls(digits_classifier, **settings | more)
    attack.advance = told.append
    attack.generate(x, y)
    assert most * len(x) - unseen * len(x) <= sum(told) <= most * len(x)
    assert min(told) >= 0
    if unseen == 0:
        assert sum(told) == most * len(x)
    assert max(told) < sum(told) / 3, "it goes ahead in small steps"
    if cls is WassersteinDistributionalAttack:
        assert attack.most_gradients == most


def test_the_bar_of_a_report_goes_by_gradients(digits_classifier, shown):
    x, y = (part[:60] for part in digits()[1])
    found = report(digits_classifier, x, y, batch_size=16)
    (bar,) = shown
    # PGD-20, W-PGD-20, W-PGD-100, WDA with its probes, and the search
    assert bar.total == len(x) * (20 + 20 + 100 + 32 + 100)
    assert bar.seen[-1] == bar.total
    assert max(np.diff(bar.seen)) < bar.total / 10
    spent = len(x) * sum(row.gradients for row in found.rows if row.attack != "knapsack's distances")
    assert spent < bar.total


def test_a_sample_that_needs_no_gradient_advances_it_at_once(digits_classifier, shown):
    x = digits()[1][0][:40]
    wrong = (digits_classifier.predict(x).argmax(1) + 1) % 10
    report(digits_classifier, x, wrong)
    assert shown[0].seen[-1] == shown[0].total
    assert len(shown[0].seen) > 20  # the steps of W-PGD, in which no sample takes part


def test_an_attack_that_fails_leaves_the_bar_where_it_would_have_left_it(digits_classifier, shown, monkeypatch):
    def exhausted(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(WassersteinDistributionalAttack, "_attack", exhausted)
    report(digits_classifier, *(part[:20] for part in digits()[1]))
    assert shown[0].seen[-1] == shown[0].total
    assert 20 * 32 in np.diff(shown[0].seen)


def test_without_verbose_nothing_is_shown(digits_classifier, shown, capfd):
    x, y = (part[:20] for part in digits()[1])
    report(digits_classifier, x, y, verbose=False)
    assert [bar.shown for bar in shown] == [False]
    assert capfd.readouterr() == ("", "")


def test_a_share_is_a_limit(shown):
    with Progress(10, shown=True) as progress:
        with progress.share(6):
            for count in (4, 4, 4):
                progress.advance(count)
        with progress.share(4):
            pass
    assert np.diff(shown[0].seen).tolist() == [4, 2, 0, 0, 4]


@pytest.mark.slow
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_autoattack_has_a_bar_of_its_own(shown, eps):
    """Its passes are estimated: on what PGD leaves of a linear network it takes all of its steps, or breaks little."""
    torch.manual_seed(0)
    classifier = make_classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), (1, 2, 2), 4)
    x = np.random.default_rng(0).random((6, 1, 2, 2), dtype=np.float32)
    y = classifier.predict(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    found = report(classifier, x, y, eps=eps, autoattack=True)
    left = round(6 * {row.attack: row.accuracy for row in found.rows}["PGD-20, CE"])
    assert left == 5 if eps < 0.1 else 0 < left < 5
    whole, own = shown
    assert own.desc == "AutoAttack, estimated"
    assert own.total == 5 * 200 + left * (3 * 500 + 5000)
    assert 0.5 * own.total < own.seen[-1] < 1.05 * own.total
    assert whole.seen[-1] == whole.total
    assert whole.shown
    assert own.shown
