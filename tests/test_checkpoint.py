# SPDX-License-Identifier: MIT
"""A run that is killed goes on as if it had not been; what is no checkpoint of it is refused."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from art_wdro import (
    DistributionalTRADESTrainer,
    WassersteinDistributionalAttack,
    WassersteinKnapsack,
    WassersteinPGD,
)
from art_wdro._storage import checkpoint
from art_wdro._storage.seals import check_seal
from tests import checkpoint_worker
from tests.conftest import NORMS, digits, linear_problem

ROOT = Path(__file__).parent.parent
(X, Y), (X_TEST, Y_TEST) = digits()


# every process is forked from one that has only imports behind it, which take longer than a run
PROCESSES = multiprocessing.get_context("forkserver")
# the second one torch would import with the first optimiser
PROCESSES.set_forkserver_preload([checkpoint_worker.__name__, "torch._dynamo"])


def exit_code(*arguments: object) -> int | None:
    process = PROCESSES.Process(target=checkpoint_worker.main, args=arguments, daemon=True)
    process.start()
    process.join(timeout=200)
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, object]:
    return checkpoint_worker.run(None)


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found.cpu(), expected.cpu())
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"), [("batch", 1), ("batch", 7), ("batch", 11), ("write", 0), ("write", 2), ("flush", 1)]
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, uninterrupted, moment, number):
    checkpoint, result = tmp_path / "run.ckpt", tmp_path / "result.pt"
    assert exit_code(checkpoint, result, moment, number) == -signal.SIGKILL
    assert not result.exists()
    assert exit_code(checkpoint, result, "never") == 0
    assert_same(torch.load(result, weights_only=True), uninterrupted)


def trainer(classifier, **settings) -> DistributionalTRADESTrainer:
    return DistributionalTRADESTrainer(classifier, **({"max_iter": 2, "seed": 0, "verbose": False} | settings))


def test_a_finished_run_only_reads(digits_classifier, tmp_path):
    file = tmp_path / "new" / "run.ckpt"
    first = trainer(digits_classifier)
    first.fit(X[:64], Y[:64], batch_size=32, nb_epochs=2, checkpoint=str(file))
    weights = {k: v.clone() for k, v in digits_classifier.model.state_dict().items()}
    with torch.no_grad():
        digits_classifier.model.head.weight.zero_()
    again = trainer(digits_classifier)
    again.fit(X[:64], Y[:64], batch_size=32, nb_epochs=2, checkpoint=file)
    assert again.history == first.history
    assert_same(dict(digits_classifier.model.state_dict()), weights)
    again.fit(X[:64], Y[:64], batch_size=32, nb_epochs=3, checkpoint=file)
    assert [record["epoch"] for record in again.history] == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"eps": 0.2}, {}, "was made with eps = 0.0313.*, and now it is 0.2; give another path, or delete it"),
        ({"upsilon": "resample"}, {}, "upsilon = 'streaming', and now it is 'resample'"),
        ({"loss": "ce"}, {}, "loss = 'redlr', and now it is 'ce'"),
        ({}, {"batch_size": 16}, "was made with data = "),
        ({}, {"x": np.concatenate([X[:30], X[90:91], X[31:64]])}, "was made with data = "),
        ({}, {"y": Y[:64][::-1].copy()}, "was made with data = "),
        ({}, {"validation_data": (X_TEST[:9], Y_TEST[:9])}, "was made with validation = "),
        ({}, {"nb_epochs": 1}, "nb_epochs is 1; allowed is at least the checkpoint's 2"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(digits_classifier, tmp_path, settings, arguments, message):
    file = tmp_path / "run.ckpt"
    given = {"x": X[:64], "y": Y[:64], "batch_size": 32, "nb_epochs": 2, "checkpoint": file}
    trainer(digits_classifier).fit(**given)
    weights = {k: v.clone() for k, v in digits_classifier.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        trainer(digits_classifier, **settings).fit(**given | arguments)
    assert_same(dict(digits_classifier.model.state_dict()), weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.optimizer.param_groups[0].update(lr=0.5), "was made with optimiser = "),
        (lambda c: c.optimizer.param_groups[0].update(momentum=0.5), "was made with optimiser = "),
        (lambda c: setattr(c.model, "dropout", torch.nn.Dropout(0.3)), "was made with network = "),
        (lambda c: c.model.head.weight.requires_grad_(False), "was made with trained = "),
        (lambda c: setattr(c.loss, "label_smoothing", 0.1), "was made with loss of the classifier = "),
        (lambda c: setattr(c, "_clip_values", np.float32([0, 2])), "was made with clip_values = "),
        (lambda c: c.optimizer.add_param_group({"params": [torch.zeros(1)]}), "was made with optimiser = "),
    ],
)
def test_a_checkpoint_of_another_classifier_is_refused(digits_classifier, tmp_path, change, message):
    given = {"x": X[:64], "y": Y[:64], "batch_size": 32, "nb_epochs": 1, "checkpoint": tmp_path / "run.ckpt"}
    trainer(digits_classifier).fit(**given)
    change(digits_classifier)
    weights = {k: v.clone() for k, v in digits_classifier.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        trainer(digits_classifier).fit(**given)
    assert_same(dict(digits_classifier.model.state_dict()), weights)


@pytest.mark.parametrize("part", ["network", "optimiser", "scheduler", "learnt", "history", "order"])
def test_a_checkpoint_that_lacks_a_part_changes_nothing(digits_classifier, tmp_path, part):
    file = tmp_path / "bare-name"
    scheduler = torch.optim.lr_scheduler.StepLR(digits_classifier.optimizer, 1)
    given = {"x": X[:64], "y": Y[:64], "batch_size": 32, "nb_epochs": 1, "checkpoint": file, "scheduler": scheduler}
    trainer(digits_classifier).fit(**given)
    whole = torch.load(file, weights_only=True)
    del whole["content"][part]
    checkpoint.save(file, "DistributionalTRADESTrainer", **whole)
    with torch.no_grad():
        digits_classifier.model.head.weight.add_(1.0)
    weights = {k: v.clone() for k, v in digits_classifier.model.state_dict().items()}
    rate = digits_classifier.optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match="checkpoint does not fit this run"):
        trainer(digits_classifier).fit(**given)
    assert_same(dict(digits_classifier.model.state_dict()), weights)
    assert digits_classifier.optimizer.param_groups[0]["lr"] == rate


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("opened-a-pickle",)


def test_what_is_no_whole_checkpoint_is_refused(digits_classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.ckpt"
    given = {"x": X[:64], "y": Y[:64], "batch_size": 32, "nb_epochs": 1, "checkpoint": file}
    trainer(digits_classifier).fit(**given)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], b"", b"text"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"run.ckpt' cannot be read .*; delete it to begin anew"):
            trainer(digits_classifier).fit(**given)
    torch.save({"format": 1, "content": Malicious()}, file)
    with pytest.raises(ValueError, match="cannot be read"):
        trainer(digits_classifier).fit(**given)
    assert not Path("opened-a-pickle").exists()
    torch.save(digits_classifier.model.state_dict(), file)
    with pytest.raises(ValueError, match="is not one of DistributionalTRADESTrainer; give another path"):
        trainer(digits_classifier).fit(**given)
    old = {"format": 1, "kind": "DistributionalTRADESTrainer", "settings": {}, "content": {}}
    torch.save(old, file)
    with pytest.raises(ValueError, match="has the format 1, and this version reads the format 2 alone"):
        trainer(digits_classifier).fit(**given)
    with pytest.raises(ValueError, match=r"checkpoint is '.*', where no file can be written"):
        trainer(digits_classifier).fit(**given | {"checkpoint": tmp_path})
    with pytest.raises(TypeError, match="checkpoint is 3; allowed is a path"):
        trainer(digits_classifier).fit(**given | {"checkpoint": 3})


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "run.ckpt"
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "FORMAT", 3)
        checkpoint.save(file, "a run", {}, {})
    with pytest.raises(ValueError, match="has the format 3, and this version reads the format 2 alone"):
        checkpoint.load(file, "a run", {})


def test_a_seal_belongs_to_one_file(tmp_path):
    files = [tmp_path / name for name in ("one.ckpt", "other.ckpt")]
    for file in files:
        checkpoint.save(file, "a run", {}, {})
    seal = checkpoint.check(files[0], "a run")
    with files[0].open("rb") as stream:
        check_seal(stream, seal)
    with files[1].open("rb") as stream, pytest.raises(ValueError, match="does not fit its digest"):
        check_seal(stream, seal)


def test_a_setting_that_only_one_side_has_is_another_one(tmp_path):
    file = tmp_path / "run.ckpt"
    checkpoint.save(file, "a run", {"eps": 0.1, "loss": "ce"}, {})
    for settings, message in (
        ({"eps": 0.1}, "loss = 'ce', and now it is None"),
        ({"eps": 0.1, "loss": "ce", "gamma": 1.0}, "gamma = None, and now it is 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            checkpoint.load(file, "a run", settings)


def test_a_scheduler_that_cannot_be_saved_is_said_at_once(digits_classifier, tmp_path):
    class Odd(torch.optim.lr_scheduler.StepLR):
        def state_dict(self):
            return super().state_dict() | {"odd": Malicious()}

    with pytest.raises(ValueError, match="checkpoint cannot hold the state of a custom object"):
        trainer(digits_classifier).fit(
            X[:32], Y[:32], nb_epochs=1, scheduler=Odd(digits_classifier.optimizer, 1), checkpoint=tmp_path / "run.ckpt"
        )


# --- long attacks -----------------------------------------------------------------------------------------------


class InterruptError(Exception):
    pass


def interrupted_after(classifier, passes: int):
    """Make the network fail after so many forward passes; return the passes seen, and the hook to remove."""
    seen = []

    def hook(module, inputs):
        seen.append(len(inputs[0]))
        if len(seen) > passes:
            raise InterruptError

    return seen, classifier.model[-1].register_forward_pre_hook(hook)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "redlr"])
@pytest.mark.parametrize("p", [2.0, np.inf])
def test_an_attack_goes_on_from_its_last_iterate(tmp_path, monkeypatch, norm, loss, p):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    problem = linear_problem()
    attack = WassersteinPGD(
        problem.classifier, p=p, norm=norm, eps=0.05, loss=loss, max_iter=8, batch_size=20, verbose=False
    )
    seen, hook = interrupted_after(problem.classifier, 1000)
    expected = attack.generate(problem.x, problem.y)
    passes, file = len(seen), tmp_path / "attack.ckpt"
    hook.remove()
    seen, hook = interrupted_after(problem.classifier, 13)
    with pytest.raises(InterruptError):
        attack.generate(problem.x, problem.y, checkpoint=file)
    hook.remove()
    assert file.exists()
    seen, hook = interrupted_after(problem.classifier, 1000)
    np.testing.assert_allclose(attack.generate(problem.x, problem.y, checkpoint=file), expected, atol=1e-6)
    assert len(seen) < passes - 6  # it did not begin anew
    assert not file.exists()
    hook.remove()


SEARCHES = {
    "knapsack": lambda c, **common: WassersteinKnapsack(c, max_iter=30, **common),
    "knapsack, from under l_inf": lambda c, **common: WassersteinKnapsack(c, norm=2, max_iter=110, **common),
    "stepping out": lambda c, **common: WassersteinKnapsack(c, max_iter=30, search="stepping-out", **common),
    "split": lambda c, **common: WassersteinDistributionalAttack(c, kappa=2.0, **common),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_goes_on_from_its_last_batch(tmp_path, monkeypatch, name):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    problem = linear_problem()
    attack = SEARCHES[name](problem.classifier, eps=0.05, batch_size=10, verbose=False)
    seen, hook = interrupted_after(problem.classifier, 1000)
    expected = attack.generate(problem.x, problem.y)
    state = {key: value for key, value in vars(attack).items() if key.endswith("_") and not key.startswith("_")}
    passes, file = len(seen), tmp_path / "attack.ckpt"
    hook.remove()
    _, hook = interrupted_after(problem.classifier, passes // 2)
    with pytest.raises(InterruptError):
        attack.generate(problem.x, problem.y, checkpoint=file)
    hook.remove()
    assert file.exists()
    seen, hook = interrupted_after(problem.classifier, passes)
    found = SEARCHES[name](problem.classifier, eps=0.05, batch_size=10, verbose=False)
    np.testing.assert_array_equal(found.generate(problem.x, problem.y, checkpoint=file), expected)
    assert len(seen) < 0.8 * passes
    assert not file.exists()
    assert len(state) >= 2
    for key, value in state.items():
        np.testing.assert_array_equal(getattr(found, key), value, err_msg=key)
    hook.remove()


KILLED = """
import os, signal, sys
from art_wdro._storage import checkpoint
from tests.conftest import linear_problem
from tests.test_checkpoint import ATTACKS
checkpoint.SECONDS, save, left = 0.0, checkpoint.save, 3
def counted(*arguments):
    global left
    save(*arguments)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save = counted
problem = linear_problem()
attack = ATTACKS[sys.argv[1]](problem.classifier, eps=0.05, batch_size=10, verbose=False)
attack.generate(problem.x, problem.y, checkpoint=sys.argv[2])
"""
ATTACKS = SEARCHES | {"W-PGD": lambda c, **common: WassersteinPGD(c, max_iter=8, **common)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_killed_attack_goes_on(tmp_path, name):
    file = tmp_path / "attack.ckpt"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, name, str(file)]
    killed = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    problem = linear_problem()
    attack = ATTACKS[name](problem.classifier, eps=0.05, batch_size=10, verbose=False)
    seen, hook = interrupted_after(problem.classifier, 1000)
    expected = attack.generate(problem.x, problem.y)
    whole = len(seen)
    seen.clear()
    np.testing.assert_array_equal(attack.generate(problem.x, problem.y, checkpoint=file), expected)
    assert len(seen) < whole
    assert not file.exists()
    hook.remove()


def test_an_attack_on_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    problem, file = linear_problem(), tmp_path / "attack.ckpt"
    attack = WassersteinPGD(problem.classifier, eps=0.05, max_iter=8, batch_size=20, verbose=False)
    _, hook = interrupted_after(problem.classifier, 13)
    with pytest.raises(InterruptError):
        attack.generate(problem.x, problem.y, checkpoint=file)
    hook.remove()
    with pytest.raises(ValueError, match="was made with data = "):
        attack.generate(problem.x, (problem.y + 1) % 5, checkpoint=file)
    other = problem.x.copy()
    other[30] = 0.5
    with pytest.raises(ValueError, match="was made with data = "):
        attack.generate(other, problem.y, checkpoint=file)
    with pytest.raises(ValueError, match="is not one of WassersteinKnapsack"):
        WassersteinKnapsack(problem.classifier, verbose=False).generate(problem.x, problem.y, checkpoint=file)
    attack.set_params(eps=0.06)
    with pytest.raises(ValueError, match=r"was made with eps = '0\.05', and now it is '0.06'"):
        attack.generate(problem.x, problem.y, checkpoint=file)
    attack.set_params(eps=0.05)
    with torch.no_grad():
        problem.classifier.model[-1].bias += 1
    with pytest.raises(ValueError, match="was made with weights = "):
        attack.generate(problem.x, problem.y, checkpoint=file)
