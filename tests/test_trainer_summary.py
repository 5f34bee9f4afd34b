# SPDX-License-Identifier: MIT
"""What a training shows on its way: scalars for TensorBoard, lines of the log, the progress bar."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from art.data_generators import NumpyDataGenerator
from art.summary_writer import SummaryWriter, SummaryWriterDefault
from tensorboardX.proto.event_pb2 import Event

from art_wdro import DistributionalTRADESTrainer, WassersteinMarginTrainer
from art_wdro.trainers import _summary
from art_wdro.trainers._update import Updates
from tests.conftest import digits, same, trainer, weights
from tests.test_trainer_updates import ReadBacks

(X, Y), (X_TEST, Y_TEST) = digits()
HELD = (X_TEST[:30], Y_TEST[:30])
both = pytest.mark.parametrize("kind", [DistributionalTRADESTrainer, WassersteinMarginTrainer])


class Recorder(SummaryWriter):
    """A writer of ART that keeps what is written."""

    def __init__(self) -> None:
        super().__init__(False)
        self.scalars: dict[str, dict[int, float]] = {}

    def _init_summary_writer(self, summary_writer: Any, init_counter: int) -> None:
        self._summary_writer = self

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Not called."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert type(value) in (int, float)
        self.scalars.setdefault(name, {})[step] = value

    def flush(self) -> None:
        """Nothing waits."""


def read(folder: Path) -> dict[str, dict[int, float]]:
    """Read the scalars in a folder's event files: records of a length, a checksum, an event and a checksum."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


@both
@pytest.mark.parametrize("call", ["fit", "fit_generator"])
def test_minibatches_and_epochs_are_written_as_scalars(digits_classifier, kind, call, monkeypatch):
    figures, update = [], Updates.__call__
    monkeypatch.setattr(Updates, "__call__", lambda *args: figures.append(update(*args)) or figures[-1])
    recorder = Recorder()
    scheduler = torch.optim.lr_scheduler.StepLR(digits_classifier.optimizer, 1, 0.5)
    training = trainer(kind, digits_classifier, summary_writer=recorder)
    settings = {"nb_epochs": 2, "validation_data": HELD, "scheduler": scheduler, "scheduler_step": "batch"}
    if call == "fit":
        training.fit(X[:96], Y[:96], batch_size=32, **settings)
    else:
        training.fit_generator(NumpyDataGenerator(X[:96], Y[:96], 32), **settings)
    found = recorder.scalars
    for name in figures[0]:
        assert found[f"minibatch/{name}"] == {step: figure[name].item() for step, figure in enumerate(figures)}
    assert found["minibatch/learning_rate"] == {step: 0.05 / 2**step for step in range(6)}
    own = ["upsilon", "budget_ratio"] if kind is DistributionalTRADESTrainer else ["tau"]
    for name in own:
        assert set(found[f"minibatch/{name}"]) == set(range(6))
        assert all(value > 0 for value in found[f"minibatch/{name}"].values())
    for number, record in enumerate(training.history):
        for name in record.keys() - {"epoch", "pointwise_loss"}:
            assert found[f"epoch/{name}"][number] == record[name]
    last = training.history[-1]
    assert found[f"minibatch/{own[0]}"][5] == pytest.approx(last[own[0]])


@both
def test_a_folder_is_written_to(digits_classifier, kind, tmp_path):
    """A run that goes on counts its minibatches on."""
    folder, file = tmp_path / "logs", tmp_path / "run.ckpt"
    start = weights(digits_classifier)
    for stop in (1, 2):
        digits_classifier.model.load_state_dict(start)
        training = trainer(kind, digits_classifier, summary_writer=str(folder))
        training.fit(X[:64], Y[:64], batch_size=32, nb_epochs=stop, checkpoint=file)
    found = read(folder)
    assert set(found["minibatch/loss"]) == {0, 1, 2, 3}
    assert set(found["epoch/loss"]) == {0, 1}
    assert found["epoch/loss"][1] == pytest.approx(training.history[1]["loss"])


def test_true_writes_below_runs_and_art_s_own_writer_is_taken(digits_classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = trainer(DistributionalTRADESTrainer, digits_classifier, summary_writer=True)
    assert not Path("runs").exists()  # before there is anything to write
    training.fit(X[:64], Y[:64], nb_epochs=1)
    (folder,) = Path("runs").glob("*-fit")
    assert "epoch/loss" in read(folder)
    own = SummaryWriterDefault("own")
    training = trainer(DistributionalTRADESTrainer, digits_classifier, summary_writer=own)
    training.fit(X[:64], Y[:64], nb_epochs=1)
    training.fit(X[:64], Y[:64], nb_epochs=1)  # it is the user's, and open
    own.summary_writer.close()
    assert "epoch/loss" in read(Path("own/generate-0"))


def test_figures_wait_until_there_are_many(digits_classifier, monkeypatch):
    """Writing reads back once for many minibatches, and not one by one."""
    monkeypatch.setattr(_summary, "PENDING", 4)
    flushed, flush = [], _summary.Summary._flush

    def watched(summary: _summary.Summary) -> None:
        flushed.append(len(summary._pending))
        flush(summary)

    monkeypatch.setattr(_summary.Summary, "_flush", watched)
    recorder = Recorder()
    training = trainer(DistributionalTRADESTrainer, digits_classifier, summary_writer=recorder)
    training.fit(X[:96], Y[:96], batch_size=16, nb_epochs=2)
    assert [count for count in flushed if count] == [4, 2, 4, 2]
    summary = _summary.Summary(recorder)
    with ReadBacks() as seen:
        for step in range(3):
            summary.minibatch(step, {"loss": torch.ones(()), "rate": 0.5})
    assert seen.found == []


@both
def test_a_skipped_minibatch_has_a_rate_and_no_loss(digits_classifier, kind):
    recorder, model, calls = Recorder(), digits_classifier.model, []

    def spoil(module: Any, _: Any, out: torch.Tensor) -> torch.Tensor:
        calls.append(1) if model.training else None
        return out * (torch.nan if model.training and len(calls) <= 2 else 1.0)

    model.head.register_forward_hook(spoil)
    training = trainer(kind, digits_classifier, on_nonfinite="skip", summary_writer=recorder)
    training.fit(X[:64], Y[:64], batch_size=32, nb_epochs=1)
    assert set(recorder.scalars["minibatch/loss"]) == {1}
    assert set(recorder.scalars["minibatch/learning_rate"]) == {0, 1}
    assert recorder.scalars["epoch/skipped_batches"] == {0: 1}


@both
def test_writing_changes_nothing(digits_classifier, kind, tmp_path):
    start, results = weights(digits_classifier), []
    for writer in (False, None, "", Recorder(), str(tmp_path)):
        digits_classifier.model.load_state_dict(start)
        torch.manual_seed(0)
        trainer(kind, digits_classifier, summary_writer=writer).fit(X[:64], Y[:64], HELD, batch_size=32, nb_epochs=2)
        results.append(weights(digits_classifier))
    assert all(same(results[0], other) for other in results[1:])


@both
def test_what_is_no_writer_is_told(digits_classifier, kind, monkeypatch):
    with pytest.raises(ValueError, match="summary_writer is 3; allowed are False, True, a path or a SummaryWriter"):
        trainer(kind, digits_classifier, summary_writer=3)
    monkeypatch.setattr(_summary, "find_spec", lambda name: None)
    for value in (True, "logs"):
        with pytest.raises(ImportError, match=rf"summary_writer is {value!r}, which needs tensorboardX or tensorboard"):
            trainer(kind, digits_classifier, summary_writer=value)
    trainer(kind, digits_classifier, summary_writer=Recorder())


def test_a_run_that_goes_on_says_so_in_the_log(digits_classifier, tmp_path, caplog):
    for stop in (1, 2):
        with caplog.at_level(logging.INFO, "art_wdro"):
            trainer(DistributionalTRADESTrainer, digits_classifier).fit(
                X[:64], Y[:64], batch_size=32, nb_epochs=stop, checkpoint=tmp_path / "run.ckpt"
            )
    assert "the run goes on after 1 epochs and 0 minibatches" in [record.getMessage() for record in caplog.records]


def test_the_bar_tells_the_epoch_and_what_is_left(digits_classifier, capsys, tmp_path):
    file = tmp_path / "run.ckpt"
    for stop in (1, 3):
        trainer(DistributionalTRADESTrainer, digits_classifier, verbose=True).fit(
            X[:96], Y[:96], batch_size=32, nb_epochs=stop, checkpoint=file
        )
    shown = capsys.readouterr().err
    assert "epoch 1 of 1: 100%" in shown
    assert "epoch 3 of 3" in shown
    assert "3/9" in shown  # where the second run begins
    assert "9/9 [00:0" in shown
    assert "<00:0" in shown
