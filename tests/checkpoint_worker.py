# SPDX-License-Identifier: MIT
"""A training run that kills itself with SIGKILL at a given moment, for tests/test_checkpoint.py."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import torch

from art_wdro import DistributionalTRADESTrainer
from art_wdro._storage import checkpoint, files
from art_wdro.trainers._update import Updates
from tests.conftest import DigitsNetwork, digits, make_classifier


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, number: int) -> None:
    """Replace what runs at the moment by something that kills this process the given number of calls on."""
    left = number

    def countdown(run, instead):
        def step(*args, **kwargs):
            nonlocal left
            left -= 1
            return (instead if left < 0 else run)(*args, **kwargs)

        return step

    def half(whole: dict, file: io.BytesIO) -> None:
        content = io.BytesIO()
        torch.serialization.save(whole, content)
        file.write(content.getvalue()[: content.tell() // 2])
        file.flush()
        die()

    if moment == "batch":
        Updates.__call__ = countdown(Updates.__call__, die)
    if moment == "write":
        checkpoint.torch.save = countdown(torch.save, half)
    if moment == "flush":
        files.os.fsync = countdown(os.fsync, die)


def run(checkpoint: Path | None) -> dict[str, object]:
    """Fine-tune a network with batch norm and dropout, which draws from torch's random state."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DigitsNetwork()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 2, gamma=0.1)
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=optimiser)
    trainer = DistributionalTRADESTrainer(classifier, eps=0.1, max_iter=2, seed=1, verbose=False)
    (x, y), (x_test, y_test) = digits()
    trainer.fit(x[:96], y[:96], (x_test[:60], y_test[:60]), 32, 4, scheduler, checkpoint=checkpoint)
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in trainer.history]
    state = {"kept": model.state_dict(), "final": trainer.final_state, "optimiser": optimiser.state_dict()["state"]}
    return state | {"history": history, "best": trainer.best_epoch}


def main(checkpoint: Path, result: Path, moment: str, number: int = 0) -> None:
    """Run with a checkpoint, and save what comes out, unless the moment comes first."""
    arm(moment, number)
    torch.serialization.save(run(checkpoint), result)
