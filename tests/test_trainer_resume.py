# SPDX-License-Identifier: MIT
"""A training that is killed at any moment, or asked to end, goes on to the same weights, bit for bit, in every mode."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from art.data_generators import NumpyDataGenerator

from art_wdro import DistributionalTRADESTrainer, WassersteinMarginTrainer
from art_wdro.trainers._run import Run
from art_wdro.trainers._state import Progress
from art_wdro.trainers._update import Updates
from tests import resume_worker
from tests.conftest import digits, same, weights
from tests.resume_worker import EPOCHS, MODES, SAMPLES, SIZE
from tests.test_checkpoint import ROOT, assert_same

(X, Y), _ = digits()
BATCHES = SAMPLES // SIZE
# its networks are untrained, which is as good as any to hold on to
pytestmark = pytest.mark.filterwarnings("ignore:the network was right on")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([resume_worker.__name__, "torch._dynamo"])


class InterruptError(Exception):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, instead: Any) -> None:
    """Let something happen in place of an update, once there were so many."""
    left, update = after, Updates.__call__

    def counted(updates: Updates, *args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            instead()
        return update(updates, *args)

    monkeypatch.setattr(Updates, "__call__", counted)


def fail() -> None:
    raise InterruptError


@pytest.mark.parametrize("mode", MODES)
def test_a_run_goes_on_inside_of_an_epoch_with_the_same_bits(mode, tmp_path, monkeypatch):
    """Interrupted twice, in the first epoch and in the last one; no minibatch is trained on again."""
    expected = resume_worker.run(mode, tmp_path / "whole.ckpt", None)
    file, trained, add = tmp_path / "run.ckpt", [], Progress.add
    monkeypatch.setattr(Progress, "add", lambda *given: (trained.append(0), add(*given)))
    for after in (3, BATCHES * (EPOCHS - 1) - 2):
        with monkeypatch.context() as patch:
            interrupt(patch, after, fail)
            with pytest.raises(InterruptError):
                resume_worker.run(mode, file)
    found = resume_worker.run(mode, file)
    assert_same(found, expected)
    assert len(trained) == EPOCHS * BATCHES


def test_a_checkpoint_changes_nothing(tmp_path):
    for mode in ("recipe", "generator", "loader"):
        assert_same(resume_worker.run(mode, tmp_path / f"{mode}.ckpt"), resume_worker.run(mode, None))


def exit_code(*arguments: object) -> int | None:
    process = PROCESSES.Process(target=resume_worker.main, args=arguments, daemon=True)
    process.start()
    process.join(timeout=200)
    return process.exitcode


def killed(mode: str, tmp_path: Path, kills: int, epochs: int) -> None:
    """Kill a run at random moments, let it go on each time, and compare what comes out."""
    moments, file, result = random.Random(mode), tmp_path / "run.ckpt", tmp_path / "result.pt"
    for _ in range(kills):
        death = moments.randrange(6), moments.uniform(0, 0.03)
        assert exit_code(mode, file, result, epochs, death) == -signal.SIGKILL
        assert not result.exists()
    assert exit_code(mode, file, result, epochs) == 0
    assert_same(torch.load(result, weights_only=True), resume_worker.run(mode, tmp_path / "whole.ckpt", None, epochs))


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    killed("recipe", tmp_path, 2, EPOCHS)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bits(tmp_path, mode):
    killed(mode, tmp_path, 20, 40)


# --- SIGTERM ------------------------------------------------------------------------------------------------------


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("after", [0, 3, BATCHES, EPOCHS * BATCHES - 1])
@pytest.mark.parametrize("mode", ["plain", "margin recipe"])
def test_a_run_that_is_asked_to_end_finishes_its_minibatch(tmp_path, monkeypatch, capsys, mode, after):
    expected = resume_worker.run(mode, tmp_path / "whole.ckpt", None)
    file, before = tmp_path / "run.ckpt", signal.getsignal(signal.SIGTERM)
    trained, update = [], Updates.__call__
    monkeypatch.setattr(Updates, "__call__", lambda *args: trained.append(update(*args)) or trained[-1])
    with monkeypatch.context() as patch:
        interrupt(patch, after, terminate)
        with pytest.raises(SystemExit) as ended:
            resume_worker.run(mode, file, None)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert (
        f"asked to end: the run is saved in '{file}', and the same call goes on from there" in capsys.readouterr().err
    )
    assert len(trained) == after + 1
    assert_same(resume_worker.run(mode, file, None), expected)
    assert len(trained) == EPOCHS * BATCHES


@pytest.mark.parametrize("error", [RuntimeError, ConnectionResetError, EOFError, FileNotFoundError])
@pytest.mark.parametrize("mode", ["data set", "loader", "loader of a generator"])
def test_data_that_cannot_be_read_any_more_as_the_run_is_asked_to_end(tmp_path, monkeypatch, mode, error):
    """What torch raises depends on what a process that reads data was about when it died."""
    expected = resume_worker.run(mode, tmp_path / "whole.ckpt", None)
    left, read = [SAMPLES + 2 * SIZE + 5], resume_worker.Noisy.__getitem__

    def dying(data: resume_worker.Noisy, index: int) -> Any:
        left[0] -= 1
        if left[0] == 0:
            terminate()
            raise error("a process that reads data died")
        return read(data, index)

    with monkeypatch.context() as patch:
        patch.setattr(resume_worker.Noisy, "__getitem__", dying)
        with pytest.raises(SystemExit) as ended:
            resume_worker.run(mode, tmp_path / "run.ckpt", None)
    assert ended.value.code == 143
    assert_same(resume_worker.run(mode, tmp_path / "run.ckpt", None), expected)


GROUP = """
import pathlib, sys
from tests import resume_worker
resume_worker.main("workers", pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), 6)
"""


@pytest.mark.slow
def test_processes_that_read_data_are_asked_to_end_as_well(tmp_path):
    """As a cluster does it, to all processes of a job at once: torch raises when one of them dies."""
    file, result = tmp_path / "run.ckpt", tmp_path / "result.pt"
    command = [sys.executable, "-c", GROUP, str(file), str(result)]
    settings = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, **settings)
    deadline = time.monotonic() + 120
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "asked to end: the run is saved in" in said
    assert not result.exists()
    subprocess.run(command, cwd=ROOT, check=True, timeout=200)
    expected = resume_worker.run("workers", tmp_path / "whole.ckpt", None, 6)
    assert_same(torch.load(result, weights_only=True), expected)


def test_a_handler_that_was_there_is_called(tmp_path, monkeypatch):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with monkeypatch.context() as patch:
            interrupt(patch, 1, terminate)
            with pytest.raises(SystemExit):
                resume_worker.run("plain", tmp_path / "run.ckpt")
        assert heard == [signal.SIGTERM]
        resume_worker.run("plain", None)  # without a checkpoint the signal is the user's
        terminate()
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_comes_when_all_is_done_is_passed_on(tmp_path, monkeypatch):
    heard, leave = [], Run.leave_weights
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    random_state = Run.set_random_state
    try:
        first = resume_worker.run("plain", tmp_path / "run.ckpt")
        # nothing is left to train, so that no minibatch can notice
        monkeypatch.setattr(Run, "set_random_state", lambda run: (terminate(), random_state(run))[1])
        assert_same(resume_worker.run("plain", tmp_path / "run.ckpt"), first)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert Run.leave_weights is leave


def test_a_thread_of_its_own_trains_and_hears_of_no_signals(tmp_path):
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(resume_worker.run("plain", tmp_path / "run.ckpt")))
    thread.start()
    thread.join()
    assert_same(found[0], resume_worker.run("plain", None))


# --- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DistributionalTRADESTrainer, WassersteinMarginTrainer])
@pytest.mark.parametrize(
    ("minutes", "error", "message"),
    [
        (-1, ValueError, "checkpoint_minutes is -1; allowed is a number >= 0"),
        ("often", TypeError, "checkpoint_minutes is 'often'; allowed is a number >= 0"),
        (5, ValueError, "checkpoint_minutes is 5 without a checkpoint; allowed is None, or a checkpoint with it"),
    ],
)
def test_minutes_are_a_number_and_want_a_checkpoint(digits_classifier, kind, minutes, error, message, tmp_path):
    checkpoint = None if minutes == 5 else tmp_path / "run.ckpt"
    settings = {"nb_epochs": 1, "checkpoint": checkpoint, "checkpoint_minutes": minutes}
    start = weights(digits_classifier)
    for call, data in (("fit", (X[:64], Y[:64])), ("fit_generator", (NumpyDataGenerator(X[:64], Y[:64], 32),))):
        with pytest.raises(error, match=message):
            getattr(kind(digits_classifier, verbose=False), call)(*data, **settings)
    assert same(start, weights(digits_classifier))


def test_few_minutes_save_often_and_many_do_not(digits_classifier, tmp_path, monkeypatch):
    saved, save = [], Run.save
    monkeypatch.setattr(Run, "save", lambda run, checkpoint: (saved.append(run.minibatches), save(run, checkpoint)))
    for minutes, expected in ((0, [1, 2, 3, 0]), (60, [0]), (None, [0])):
        saved.clear()
        trainer = DistributionalTRADESTrainer(digits_classifier, max_iter=1, seed=0, verbose=False)
        file = tmp_path / f"{minutes}.ckpt"
        trainer.fit(X[:96], Y[:96], None, 32, 1, checkpoint=file, checkpoint_minutes=minutes)
        assert saved == expected


def test_an_epoch_that_was_begun_counts(digits_classifier, tmp_path, monkeypatch):
    """Fewer epochs than the checkpoint has begun would leave the weights of half an epoch."""
    given = {"batch_size": 32, "checkpoint": tmp_path / "run.ckpt", "checkpoint_minutes": 0}
    interrupt(monkeypatch, 4, fail)
    trainer = DistributionalTRADESTrainer(digits_classifier, max_iter=1, seed=0, verbose=False)
    with pytest.raises(InterruptError):
        trainer.fit(X[:96], Y[:96], nb_epochs=3, **given)
    start = weights(digits_classifier)
    with pytest.raises(ValueError, match="nb_epochs is 1; allowed is at least the checkpoint's 2"):
        trainer.fit(X[:96], Y[:96], nb_epochs=1, **given)
    assert same(start, weights(digits_classifier))


def test_a_generator_that_is_another_one_is_refused(digits_classifier, tmp_path):
    def fitted(samples: slice, epochs: int) -> None:
        generator = NumpyDataGenerator(X[samples], Y[samples], batch_size=32)
        trainer = DistributionalTRADESTrainer(digits_classifier, max_iter=1, seed=0, verbose=False)
        trainer.fit_generator(generator, epochs, checkpoint=tmp_path / "run.ckpt")

    fitted(slice(0, 64), 1)
    with pytest.raises(ValueError, match="the generator's first batch is not the one that the run began with"):
        fitted(slice(1, 65), 2)


def test_a_generator_that_ends_is_told(digits_classifier):
    class Ending(NumpyDataGenerator):
        def get_batch(self):
            raise StopIteration

    trainer = DistributionalTRADESTrainer(digits_classifier, max_iter=1, verbose=False)
    with pytest.raises(ValueError, match="generator ends after 0 batches; needed is one that begins anew"):
        trainer.fit_generator(Ending(X[:64], Y[:64], 32), 1)
