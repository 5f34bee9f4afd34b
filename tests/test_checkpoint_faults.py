# SPDX-License-Identifier: MIT
"""No checkpoint is taken for what it is not: another's file, damaged bytes, another run, a disk without room."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from art.defences.preprocessor import GaussianAugmentation
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch.optim import lr_scheduler

from art_wdro import DistributionalTRADESTrainer, WassersteinKnapsack, WassersteinMarginTrainer, WassersteinPGD
from art_wdro._solvers.batches import Samples
from art_wdro._solvers.resumed import check_found, check_iterate
from art_wdro._storage import checkpoint, claims
from art_wdro._storage.descriptions import described, described_network
from tests.conftest import DigitsNetwork, digits, linear_problem, make_classifier, on_device
from tests.test_checkpoint import ROOT, InterruptError, assert_same, interrupted_after, trainer

pytestmark = pytest.mark.slow

(X, Y), _ = digits()
DATA = {"x": X[:32], "y": Y[:32], "batch_size": 16, "nb_epochs": 1}
ATTACKS = {
    "W-PGD": lambda classifier: WassersteinPGD(classifier, eps=0.05, max_iter=8, batch_size=20, verbose=False),
    "knapsack": lambda classifier: WassersteinKnapsack(classifier, eps=0.05, max_iter=30, batch_size=10, verbose=False),
}
PASSES = {"W-PGD": 13, "knapsack": 60}


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)


@pytest.fixture
def problem():
    return linear_problem()


def interrupted(name, problem, file, labelled=True):
    """Leave the checkpoint of an attack that was cut off."""
    _, hook = interrupted_after(problem.classifier, PASSES[name])
    with pytest.raises(InterruptError):
        ATTACKS[name](problem.classifier).generate(problem.x, problem.y if labelled else None, checkpoint=file)
    hook.remove()
    assert file.is_file()


def runs(problem, digits_classifier, file):
    """Whatever takes a checkpoint, by name, with its classifier."""
    for name, attack in ATTACKS.items():
        for labels in (problem.y, None):
            yield (
                name,
                problem.classifier,
                lambda a=attack, y=labels: a(problem.classifier).generate(problem.x, y, checkpoint=file),
            )
    for kind in (DistributionalTRADESTrainer, WassersteinMarginTrainer):
        made = kind(digits_classifier, max_iter=2, seed=0, verbose=False)
        yield kind.__name__, digits_classifier, lambda made=made: made.fit(**DATA, checkpoint=file)


# --- files of others ----------------------------------------------------------------------------------------------


def foreign(name, folder, problem):
    """Put a file that is no checkpoint of a run where its checkpoint would go; return what must stay."""
    file = folder / "mine.ckpt"
    if name == "words":
        file.write_text("my thesis\n")
    if name == "empty":
        file.touch()
    if name == "weights":
        torch.save(problem.classifier.model.state_dict(), file)
    if name == "link":
        (folder / "thesis.txt").write_text("my thesis\n")
        file.symlink_to(folder / "thesis.txt")
    if name == "directory":
        file.mkdir()
        (file / "thesis.txt").write_text("my thesis\n")
    if name == "pipe":
        os.mkfifo(file)
    if name == "other":
        other = WassersteinPGD(problem.classifier, eps=0.07, max_iter=9, batch_size=20, verbose=False)
        _, hook = interrupted_after(problem.classifier, 13)
        with pytest.raises(InterruptError):
            other.generate(problem.x[:50], problem.y[:50], checkpoint=file)
        hook.remove()
    return file


def content(folder):
    """All that lies in a folder, by name."""
    return {
        str(path.relative_to(folder)): (path.is_symlink(), path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", ["words", "empty", "weights", "link", "directory", "pipe", "other"])
def test_what_is_not_a_runs_own_is_refused_before_any_pass(tmp_path, problem, digits_classifier, name):
    file = foreign(name, tmp_path, problem)
    before = content(tmp_path)
    for _, classifier, run in runs(problem, digits_classifier, file):
        seen, hook = interrupted_after(classifier, 0) if classifier is problem.classifier else ([], None)
        weights = copy.deepcopy(classifier.model.state_dict())
        with pytest.raises(ValueError, match=r"checkpoint (is )?'.*mine.ckpt'"):
            run()
        assert not seen
        assert_same(dict(classifier.model.state_dict()), dict(weights))
        assert content(tmp_path) == before
        if hook is not None:
            hook.remove()


def test_checkpoints_of_attacks_and_trainers_are_told_apart(tmp_path, problem, digits_classifier):
    files = {}
    for name in ATTACKS:
        files[name] = tmp_path / name
        interrupted(name, problem, files[name])
    for kind in (DistributionalTRADESTrainer, WassersteinMarginTrainer):
        files[kind.__name__] = tmp_path / kind.__name__
        kind(digits_classifier, max_iter=2, seed=0, verbose=False).fit(**DATA, checkpoint=files[kind.__name__])
    before = content(tmp_path)
    for name, file in files.items():
        for kind, _, run in runs(problem, digits_classifier, file):
            if kind != name:
                with pytest.raises(ValueError, match=f"is not one of .*{'Trainer' if 'Trainer' in kind else ''}"):
                    run()
                assert content(tmp_path) == before


class Replacing(torch.nn.Module):
    """Put a file at a path after so many passes."""

    def __init__(self, inner, passes, put):
        super().__init__()
        self.inner, self._left, self._put = inner, [passes], put

    def forward(self, x):
        self._left[0] -= 1
        if self._left[0] == 0:
            self._put()
        return self.inner(x)


def during(classifier, passes, put):
    classifier._model._model = Replacing(classifier.model, passes, put)


PUTS = {
    "written over": lambda file: file.write_text("mine"),
    "moved there": lambda file: (file.with_name("x").write_text("mine"), file.with_name("x").replace(file)),
    "link": lambda file: (file.with_name("x").write_text("mine"), file.unlink(), file.symlink_to(file.with_name("x"))),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("put", PUTS)
def test_a_file_that_replaces_an_attacks_checkpoint_stays(tmp_path, problem, name, put):
    file = tmp_path / "run.ckpt"
    during(problem.classifier, PASSES[name], lambda: PUTS[put](file))
    with pytest.raises(ValueError, match="is not this run's any more: something else was put there, which stays"):
        ATTACKS[name](problem.classifier).generate(problem.x, problem.y, checkpoint=file)
    assert file.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"run.ckpt", "x"}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_file_that_appears_during_an_attack_stays(tmp_path, problem, monkeypatch, caplog, name, seconds):
    monkeypatch.setattr(checkpoint, "SECONDS", seconds)
    file = tmp_path / "run.ckpt"
    expected = ATTACKS[name](problem.classifier).generate(problem.x, problem.y)
    during(problem.classifier, 1, lambda: file.write_text("mine"))
    attack = ATTACKS[name](problem.classifier)
    if seconds:  # nothing is ever saved: the result is there, and so is the file
        np.testing.assert_array_equal(attack.generate(problem.x, problem.y, checkpoint=file), expected)
        assert "run.ckpt', where the checkpoint was to be, stays there: it is not this run's" in caplog.text
    else:
        with pytest.raises(ValueError, match="is not this run's any more"):
            attack.generate(problem.x, problem.y, checkpoint=file)
    assert file.read_text() == "mine"


def test_a_file_that_replaces_a_trainings_checkpoint_stays(digits_classifier, tmp_path):
    file = tmp_path / "run.ckpt"
    with pytest.raises(ValueError, match="is not this run's any more"):
        trainer(digits_classifier).fit(
            **DATA | {"nb_epochs": 2}, checkpoint=file, on_epoch=lambda *_: file.write_text("mine")
        )
    assert file.read_text() == "mine"


def test_a_checkpoint_that_vanishes_is_written_anew(digits_classifier, tmp_path):
    file = tmp_path / "run.ckpt"
    trainer(digits_classifier).fit(**DATA | {"nb_epochs": 2}, checkpoint=file, on_epoch=lambda *_: file.unlink())
    assert not file.exists()
    trainer(digits_classifier).fit(**DATA, checkpoint=file)
    assert file.exists()


def test_a_link_stays_and_leads_to_the_checkpoint(tmp_path, problem):
    file, target = tmp_path / "link", tmp_path / "target.ckpt"
    file.symlink_to(target)
    expected = ATTACKS["W-PGD"](problem.classifier).generate(problem.x, problem.y)
    interrupted("W-PGD", problem, file)
    assert file.is_symlink()
    assert target.is_file()
    found = ATTACKS["W-PGD"](problem.classifier).generate(problem.x, problem.y, checkpoint=file)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert file.is_symlink()
    assert not target.exists()


@pytest.mark.parametrize("saved", [False, True])
def test_a_second_run_at_once_is_refused_or_refuses(tmp_path, problem, monkeypatch, saved):
    file, failed = tmp_path / "run.ckpt", []
    expected = ATTACKS["W-PGD"](problem.classifier).generate(problem.x, problem.y)
    other = linear_problem()

    def second():
        try:
            ATTACKS["W-PGD"](other.classifier).generate(other.x, other.y, checkpoint=file)
        except ValueError as error:
            failed.append(str(error))

    during(problem.classifier, 13 if saved else 1, second)
    found = ATTACKS["W-PGD"](problem.classifier).generate(problem.x, problem.y, checkpoint=file)
    np.testing.assert_array_equal(found, expected)
    assert len(failed) == saved
    assert all("is in use by a run that is not done" in message for message in failed)
    assert not list(tmp_path.iterdir())


def test_a_second_training_at_once_is_refused(digits_classifier, tmp_path):
    file, other, messages = tmp_path / "run.ckpt", copy.deepcopy(digits_classifier.model), []
    second = make_classifier(other, (1, 8, 8), 10, optimizer=torch.optim.SGD(other.parameters(), lr=0.1))

    def start(*_):
        with pytest.raises(ValueError, match="is in use by a run that is not done") as caught:
            trainer(second).fit(**DATA | {"nb_epochs": 2}, checkpoint=file)
        messages.append(str(caught.value))

    trainer(digits_classifier).fit(**DATA | {"nb_epochs": 2}, checkpoint=file, on_epoch=start)
    assert len(messages) == 2
    assert len(torch.load(file, weights_only=True)["content"]["history"]) == 2


def test_two_runs_that_start_at_once_do_not_write_over_each_other(tmp_path):
    """Both found nothing; the one that writes second refuses to, and what the first wrote is whole."""
    file = tmp_path / "run.ckpt"
    first, second = (checkpoint.Checkpoint(file, kind, {"a": 1}) for kind in ("first", "second"))
    first.save({"number": 1})
    with pytest.raises(ValueError, match="is not this run's any more"):
        second.save({"number": 2})
    second.finish()
    first.save({"number": 3})
    first.close()
    assert checkpoint.load(file, "first", {"a": 1})["content"] == {"number": 3}


# --- damage -------------------------------------------------------------------------------------------------------


def positions(size, seed):
    """The first and last bytes of a file, and some between."""
    drawn = np.random.default_rng(seed).choice(size, 60, replace=False).tolist()
    return sorted({0, 1, size - 1, size - 2, size // 2, *drawn, *(size - step for step in range(3, 200, 20))})


@pytest.mark.parametrize("name", [*ATTACKS, "training"])
def test_every_flipped_byte_is_refused(tmp_path, problem, digits_classifier, name):
    file = tmp_path / "run.ckpt"
    if name == "training":
        trainer(digits_classifier).fit(**DATA, checkpoint=file)
        kind, settings = "DistributionalTRADESTrainer", torch.load(file, weights_only=True)["settings"]
    else:
        interrupted(name, problem, file)
        kind, settings = (
            type(ATTACKS[name](problem.classifier)).__name__,
            torch.load(file, weights_only=True)["settings"],
        )
    whole = file.read_bytes()
    assert checkpoint.load(file, kind, settings) is not None
    for position in positions(len(whole), 0):
        for mask in (0x01, 0x80):
            damaged = bytearray(whole)
            damaged[position] ^= mask
            file.write_bytes(damaged)
            with pytest.raises(
                ValueError, match=r"checkpoint '.*run.ckpt' (cannot be read|is not one of|has the format)"
            ):
                checkpoint.load(file, kind, settings)
            assert file.read_bytes() == damaged
    for damaged in (whole[:-1], whole[1:], whole + b"\n", whole[: len(whole) // 2], whole * 2):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read"):
            checkpoint.load(file, kind, settings)


def test_a_damaged_checkpoint_is_refused_by_the_run(tmp_path, problem):
    file = tmp_path / "run.ckpt"
    interrupted("knapsack", problem, file)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"cannot be read .*damaged.*; delete it to begin anew"):
        ATTACKS["knapsack"](problem.classifier).generate(problem.x, problem.y, checkpoint=file)
    assert file.read_bytes() == damaged


SAMPLES = Samples(torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.long), (torch.tensor(0.0), torch.tensor(1.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"points": torch.full((3, 4), 1.5)}, "points outside of the box"),
        ({"points": torch.full((3, 4), torch.nan)}, "points that are not finite"),
        ({"points": torch.full((3, 5), 0.5)}, "points of another shape"),
        ({"distances": torch.tensor([0.3, torch.inf, 0.0])}, "points at other distances"),
        ({"distances": torch.tensor([-0.25, torch.inf, 0.0])}, "distances below 0"),
        ({"distances": torch.tensor([0.25, torch.nan, 0.0])}, "distances below 0"),
        ({"distances": torch.zeros(2)}, "distances of other samples"),
        ({"chosen": torch.tensor([1, 7])}, "unknown samples"),
        ({"chosen": torch.tensor([1])}, "samples that were not searched for"),
    ],
)
def test_what_no_search_leaves_is_refused(change, message):
    points = SAMPLES.x.clone()
    points[0] += 0.25
    saved = {"points": points, "distances": torch.tensor([0.25, torch.inf, 0.0]), "chosen": torch.tensor([0, 1])}
    if message is None:
        check_found(saved, SAMPLES, torch.inf, 0.25)
        with pytest.raises(ValueError, match="points outside of the ball"):
            check_found(saved, SAMPLES, torch.inf, 0.2)
        held = Samples(SAMPLES.x, SAMPLES.labels, SAMPLES.box, torch.zeros(3, 4, dtype=torch.bool))
        with pytest.raises(ValueError, match="mask holds"):
            check_found(saved, held, torch.inf)
        return
    with pytest.raises(ValueError, match=message):
        check_found(saved | change, SAMPLES, torch.inf)


def test_what_no_ascent_leaves_is_refused():
    moved = SAMPLES.x + 0.1
    saved = {"x": moved, "best": {"x": SAMPLES.x}, "eps": torch.tensor(0.1)}
    check_iterate(saved, SAMPLES, 2.0, torch.inf, float(torch.tensor(0.1)))
    for change, message in (
        ({"eps": torch.tensor(0.2)}, "another budget"),
        ({"x": SAMPLES.x + 0.11}, "outside of the ball"),
        ({"best": {"x": SAMPLES.x + 0.11}}, "outside of the ball"),
    ):
        with pytest.raises(ValueError, match=message):
            check_iterate(saved | change, SAMPLES, 2.0, torch.inf, float(torch.tensor(0.1)))


# --- other runs ---------------------------------------------------------------------------------------------------


def scaled(factor):
    return lambda epoch: factor**epoch


SCHEDULERS = [
    (lambda o: lr_scheduler.StepLR(o, 2, 0.1), lambda o: lr_scheduler.StepLR(o, 1, 0.5)),
    (lambda o: lr_scheduler.StepLR(o, 2, 0.1), lambda o: lr_scheduler.StepLR(o, 2, 0.2)),
    (lambda o: lr_scheduler.LambdaLR(o, lambda e: 0.5**e), lambda o: lr_scheduler.LambdaLR(o, lambda e: 0.9**e)),
    (lambda o: lr_scheduler.LambdaLR(o, scaled(0.5)), lambda o: lr_scheduler.LambdaLR(o, scaled(0.9))),
    (lambda o: lr_scheduler.MultiStepLR(o, [2, 5]), lambda o: lr_scheduler.MultiStepLR(o, [2, 4])),
    (lambda o: lr_scheduler.CosineAnnealingLR(o, 9), lambda o: lr_scheduler.CosineAnnealingLR(o, 8)),
    (
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    ),
    (lambda o: lr_scheduler.LinearLR(o, 0.5), lambda o: lr_scheduler.LinearLR(o, 0.6)),
    (lambda o: lr_scheduler.PolynomialLR(o, 9), lambda o: lr_scheduler.PolynomialLR(o, 9, 2.0)),
    (lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3), lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 4)),
    (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 20), lambda o: lr_scheduler.OneCycleLR(o, 0.1, 21)),
    (lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1), lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2)),
    *(
        (
            lambda o, join=join: join(o, lr_scheduler.StepLR(o, 2), lr_scheduler.ExponentialLR(o, 0.9)),
            lambda o, join=join: join(o, lr_scheduler.StepLR(o, 2), lr_scheduler.ExponentialLR(o, 0.8)),
        )
        for join in (
            lambda o, *parts: lr_scheduler.SequentialLR(o, list(parts), [3]),
            lambda o, *parts: lr_scheduler.ChainedScheduler(list(parts)),
        )
    ),
]


@pytest.mark.parametrize(("one", "other"), SCHEDULERS)
def test_a_scheduler_is_told_by_what_it_was_made_with(one, other):
    def optimiser():
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)

    stepped = one(optimiser())
    assert described(stepped) == described(one(optimiser()))
    assert described(stepped) != described(other(optimiser()))
    before = described(stepped)
    for _ in range(5):
        stepped.optimizer.step()
        stepped.step(*([1.0] if isinstance(stepped, lr_scheduler.ReduceLROnPlateau) else []))
    assert described(stepped) == before


@pytest.mark.parametrize(("one", "other"), SCHEDULERS[:4])
def test_a_run_with_another_scheduler_is_refused(digits_classifier, tmp_path, one, other):
    def fit(make, **more):
        model = DigitsNetwork()
        model.load_state_dict(digits_classifier.model.state_dict())
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        classifier = make_classifier(model, (1, 8, 8), 10, optimizer=optimiser)
        trainer(classifier).fit(**DATA | more, scheduler=make(optimiser), checkpoint=tmp_path / "run.ckpt")

    fit(one)
    with pytest.raises(ValueError, match="was made with scheduler = "):
        fit(other)
    fit(one, nb_epochs=2)


@dataclass
class Scaled:
    """A loss with a parameter that its repr may show or not."""

    factor: object

    def __call__(self, logits, labels):
        return self.factor * logits.gather(1, labels[:, None])[:, 0]

    def method(self, logits, labels):
        return self(logits, labels)


class Silent(Scaled):
    def __repr__(self):
        return "Silent()"


class Module(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, logits, labels):
        return Scaled(self.factor)(logits, labels)


def middle(number):
    array = np.zeros(1600, np.float32)
    array[800] = number
    return array


def around(factor):
    def loss(logits, labels):
        return factor * logits.gather(1, labels[:, None])[:, 0]

    return loss


PAIRS = {
    "constants": (lambda z, y: -z[:, 0], lambda z, y: -z[:, 1]),
    "code": (lambda z, y: z[:, 0] + z[:, 1], lambda z, y: z[:, 0] - z[:, 1]),
    "closures": (around(1.0), around(2.0)),
    "closures over arrays": (around(on_device(middle(1))), around(on_device(middle(2)))),
    "closures over functions": (around(around(1.0)), around(around(2.0))),
    "defaults": (lambda z, y, a=1: a * z[:, 0], lambda z, y, a=2: a * z[:, 0]),
    "partials": (functools.partial(Scaled.__call__, Scaled(1.0)), functools.partial(Scaled.__call__, Scaled(2.0))),
    "methods": (Scaled(1.0).method, Scaled(2.0).method),
    "dataclasses": (Scaled(1.0), Scaled(2.0)),
    "silent objects": (Silent(1.0), Silent(2.0)),
    "nested objects": (Silent(Silent(1.0)), Silent(Silent(2.0))),
    "arrays in objects": (Silent(middle(1)), Silent(middle(2))),
    "types of arrays": (np.zeros(8, np.float32), np.zeros(8, np.int32)),
    "types of tensors": (torch.zeros(8), torch.zeros(8, dtype=torch.int32)),
    "places in sparse tensors": tuple(torch.eye(8)[k].to_sparse() for k in (1, 2)),
    "containers in objects": (Silent({"a": [1, {2}]}), Silent({"a": [1, {3}]})),
    "attributes of modules": (Module(1.0), Module(2.0)),
    "weights of modules": (torch.nn.CrossEntropyLoss(torch.ones(5)), torch.nn.CrossEntropyLoss(2 * torch.ones(5))),
    "smoothing": (torch.nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss(label_smoothing=0.1)),
    "ignored classes": (torch.nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss(ignore_index=1)),
    "words": ("ce", "dlr"),
    "generators": (np.random.default_rng(1), np.random.default_rng(2)),
    "preprocessing": tuple(StandardisationMeanStdPyTorch(middle(k), 1.0, device_type="cpu") for k in (1, 2)),
    "preprocessors": (GaussianAugmentation(sigma=0.1), GaussianAugmentation(sigma=0.2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_are_told_by_all_that_they_hold(name):
    one, other = PAIRS[name]
    assert described(one) != described(other)
    assert described(one) == described(one)
    assert "0x" not in described(one)
    if name not in ("generators", "methods", "partials") and not name.startswith("closures"):
        assert described(copy.deepcopy(one)) == described(one)


def networks():
    """Networks of every kind, each with another one that does something else with the same weights."""
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    other = copy.deepcopy(linear)
    with torch.no_grad():
        other[1].bias[3] += 1.0
    shifted = [copy.deepcopy(linear) for _ in range(2)]
    for number, network in enumerate(shifted):
        network.register_buffer("shift", torch.tensor(float(number)), persistent=False)
    tempered = [copy.deepcopy(linear) for _ in range(2)]
    tempered[1].temperature = 2.0
    yield "frozen", *(torch.jit.freeze(torch.jit.script(network)) for network in (linear, other))
    yield (
        "graph",
        *(torch.fx.symbolic_trace(network) for network in (linear, torch.nn.Sequential(*linear, torch.nn.ReLU()))),
    )
    yield "buffer", *shifted
    yield "attribute", *tempered
    yield "compiled", torch.compile(linear), torch.compile(torch.nn.Sequential(*linear, torch.nn.ReLU()))


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_networks_are_told_apart():
    for name, one, other in networks():
        assert described_network(one, attributes=True) == described_network(one, attributes=True), name
        assert described_network(one, attributes=True) != described_network(other, attributes=True), name


GLOBAL = 1.0


def test_globals_count(monkeypatch):
    loss = lambda z, y: GLOBAL * z[:, 0]  # noqa: E731
    before = described(loss)
    monkeypatch.setitem(globals(), "GLOBAL", 2.0)
    assert described(loss) != before


def test_what_cannot_be_compared_is_refused_by_name(tmp_path, problem):
    attack = WassersteinPGD(problem.classifier, loss=Silent(open(os.devnull)), verbose=False)  # noqa: SIM115
    with pytest.raises(ValueError, match=r"loss is Silent\(\), and a _io.TextIOWrapper cannot be compared"):
        attack.generate(problem.x, problem.y, checkpoint=tmp_path / "run.ckpt")
    attack.loss.factor.close()
    assert not list(tmp_path.iterdir())


DESCRIBED = """
import torch
from art_wdro._storage.descriptions import described
from tests import test_checkpoint_faults as faults
for name, pair in faults.PAIRS.items():
    print(name, *map(described, pair))
print(described(faults.DigitsNetwork), described({"a", "b", "c", 1}))
torch.manual_seed(0)
print([faults.described_network(network, True) for _, *pair in faults.networks() for network in pair])
"""


@pytest.mark.slow
def test_another_process_says_the_same():
    found = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", DESCRIBED]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=True)
        found.add(done.stdout)
    assert len(found) == 1


@pytest.mark.parametrize("name", ["constants", "closures", "attributes of modules", "silent objects"])
def test_a_run_with_another_loss_is_refused(tmp_path, problem, digits_classifier, name):
    one, other = PAIRS[name]
    file = tmp_path / "attack.ckpt"
    given = {"eps": 0.05, "max_iter": 8, "batch_size": 20, "verbose": False}
    _, hook = interrupted_after(problem.classifier, 13)
    with pytest.raises(InterruptError):
        WassersteinPGD(problem.classifier, loss=one, **given).generate(problem.x, problem.y, checkpoint=file)
    hook.remove()
    with pytest.raises(ValueError, match="was made with loss = "):
        WassersteinPGD(problem.classifier, loss=other, **given).generate(problem.x, problem.y, checkpoint=file)
    WassersteinPGD(problem.classifier, loss=one, **given).generate(problem.x, problem.y, checkpoint=file)
    file = tmp_path / "training.ckpt"
    trainer(digits_classifier, loss=one).fit(**DATA, checkpoint=file)
    with pytest.raises(ValueError, match="was made with loss = "):
        trainer(digits_classifier, loss=other).fit(**DATA, checkpoint=file)
    trainer(digits_classifier, loss=one).fit(**DATA, checkpoint=file)


def test_preprocessing_that_differs_in_the_middle_is_refused(tmp_path):
    def fit(number):
        torch.manual_seed(0)
        model = DigitsNetwork()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        shift = np.zeros((1, 8, 8), np.float32)
        shift[0, 4, 4] = number
        preprocessing = (shift, np.ones_like(shift))
        classifier = make_classifier(model, (1, 8, 8), 10, optimizer=optimiser, preprocessing=preprocessing)
        trainer(classifier).fit(**DATA, checkpoint=tmp_path / "run.ckpt")

    fit(0.1)
    with pytest.raises(ValueError, match="was made with preprocessing = "):
        fit(0.2)


@pytest.mark.filterwarnings("ignore:attack is a FastGradientMethod")
def test_an_attack_on_another_classifier_counts_with_its_weights(digits_classifier, tmp_path):
    torch.manual_seed(1)
    model = DigitsNetwork()
    other = make_classifier(model, (1, 8, 8), 10)
    file = tmp_path / "run.ckpt"
    trainer(digits_classifier, attack=FastGradientMethod(other, eps=0.1)).fit(**DATA, checkpoint=file)
    trainer(digits_classifier, attack=FastGradientMethod(other, eps=0.1)).fit(**DATA, checkpoint=file)
    with torch.no_grad():
        model.head.bias[3] += 1.0
    with pytest.raises(ValueError, match="was made with attack = "):
        trainer(digits_classifier, attack=FastGradientMethod(other, eps=0.1)).fit(**DATA, checkpoint=file)
    with pytest.raises(ValueError, match="was made with attack = "):
        trainer(digits_classifier, attack=FastGradientMethod(digits_classifier, eps=0.1)).fit(**DATA, checkpoint=file)


@pytest.mark.filterwarnings("ignore:attack is a FastGradientMethod")
def test_an_attack_on_the_classifier_itself_is_resumed_as_it_trains(digits_classifier, tmp_path):
    file = tmp_path / "run.ckpt"
    attack = FastGradientMethod(digits_classifier, eps=0.1)
    trainer(digits_classifier, attack=attack).fit(**DATA, checkpoint=file)
    trainer(digits_classifier, attack=attack).fit(**DATA | {"nb_epochs": 2}, checkpoint=file)
    with pytest.raises(ValueError, match="was made with attack = "):
        trainer(digits_classifier, attack=FastGradientMethod(digits_classifier, eps=0.2)).fit(**DATA, checkpoint=file)


def test_predicted_labels_are_compared_too(tmp_path, problem):
    file = tmp_path / "run.ckpt"
    expected = ATTACKS["W-PGD"](problem.classifier).generate(problem.x)
    interrupted("W-PGD", problem, file, labelled=False)
    with pytest.raises(ValueError, match="was made with data = "):
        ATTACKS["W-PGD"](problem.classifier).generate(problem.x, problem.y, checkpoint=file)
    found = ATTACKS["W-PGD"](problem.classifier).generate(problem.x, checkpoint=file)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    held = checkpoint.Checkpoint(file, "kind", {}, ("labels",))
    held.require("labels", "a")
    held.save({})
    held.close()
    again = checkpoint.Checkpoint(file, "kind", {}, ("labels",))
    with pytest.raises(ValueError, match="was made with labels = 'a', and now it is 'b'"):
        again.require("labels", "b")
    again.close()


# --- disks --------------------------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
from tests.test_checkpoint_faults import DATA, digits, DigitsNetwork, make_classifier, trainer
import torch
torch.manual_seed(0)
model = DigitsNetwork()
classifier = make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def limit(*_):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
trainer(classifier).fit(**DATA | {"nb_epochs": 2}, checkpoint=sys.argv[1], on_epoch=limit)
"""


@pytest.mark.parametrize("room", [0, 1000, 20000])
def test_a_full_disk_is_said_and_the_checkpoint_before_stays(tmp_path, room):
    file = tmp_path / "run.ckpt"
    command = [sys.executable, "-c", FULL, str(file), str(room)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    failed = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    last = failed.stderr.strip().splitlines()[-1]
    assert f"checkpoint '{file}' cannot be written (File too large); what was there before is as it was" in last
    assert len(torch.load(file, weights_only=True)["content"]["history"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.ckpt"]


@pytest.mark.parametrize("length", [256, 300, 5000])
def test_a_name_that_is_too_long_is_refused_before_any_pass(tmp_path, problem, digits_classifier, length):
    for _, classifier, run in runs(problem, digits_classifier, tmp_path / ("a" * length)):
        seen, hook = interrupted_after(classifier, 0) if classifier is problem.classifier else ([], None)
        with pytest.raises((ValueError, OSError), match=r"File name too long|where no file can be written"):
            run()
        assert not seen
        if hook is not None:
            hook.remove()


def test_the_longest_name_will_do(digits_classifier, tmp_path):
    file = tmp_path / ("a" * 250 + ".ckpt")
    trainer(digits_classifier).fit(**DATA, checkpoint=file)
    assert file.is_file()


def test_a_folder_that_takes_no_file_is_refused(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(claims, "beside", full)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\); give another path"):
        checkpoint.Checkpoint(tmp_path / "run.ckpt", "kind", {})
