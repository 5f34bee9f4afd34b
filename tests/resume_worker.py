# SPDX-License-Identifier: MIT
"""Training runs in every mode, which may be killed at any moment, for tests/test_trainer_resume.py."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.data_generators import NumpyDataGenerator, PyTorchDataGenerator
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

from art_wdro import DistributionalTRADESTrainer, WassersteinMarginTrainer, shift_and_flip
from art_wdro.trainers._update import Updates
from tests.conftest import DigitsNetwork, digits, make_classifier

(X, Y), (X_TEST, Y_TEST) = digits()
SAMPLES, SIZE, EPOCHS = 80, 16, 3


class Noisy(Dataset):
    """Images with noise of their own whenever one is read."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return (torch.from_numpy(X[index]) + 0.1 * torch.rand(1, 8, 8)).clamp(0, 1), int(Y[index])


def shuffled_loader() -> DataLoader:
    return DataLoader(Noisy(), batch_size=SIZE, shuffle=True, generator=torch.Generator().manual_seed(3))


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "resample": {"constructor": {"upsilon": "resample", "gamma": 0.5}},
    "augment": {"fit": {"augment": shift_and_flip(1)}},
    "recipe": {
        "constructor": {"ema": 0.9, "weight_perturbation": 0.01, "max_grad_norm": 1.0, "update_precision": "bfloat16"},
        "fit": {"scheduler_step": "batch", "augment": shift_and_flip(1)},
    },
    "data set": {"data": Noisy},
    "loader": {"data": shuffled_loader, "fit": {"augment": shift_and_flip(1)}},
    "generator": {
        "generator": lambda: NumpyDataGenerator(X[:SAMPLES], Y[:SAMPLES], SIZE, shuffle=True),
        "fit": {"augment": shift_and_flip(1)},
    },
    "loader of a generator": {"generator": lambda: PyTorchDataGenerator(shuffled_loader(), SAMPLES, SIZE)},
    "margin": {"kind": WassersteinMarginTrainer},
    "margin recipe": {
        "kind": WassersteinMarginTrainer,
        "constructor": {"ema": 0.9, "weight_perturbation": 0.01},
        "fit": {"scheduler_step": "batch", "augment": shift_and_flip(1)},
    },
}
"""What differs between the runs: the constructor's arguments, those of `fit`, and where the data come from."""
WORKERS = {"workers": {"data": lambda: DataLoader(Noisy(), batch_size=SIZE, shuffle=True, num_workers=2)}}
"""A run whose images are read by processes of their own."""


def run(mode: str, checkpoint: Path | None, minutes: float | None = 0.0, epochs: int = EPOCHS) -> dict[str, Any]:
    """Train a network with batch norm and dropout, and return all that came out."""
    told = (MODES | WORKERS)[mode]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    model = DigitsNetwork()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=optimiser)
    kind = told.get("kind", DistributionalTRADESTrainer)
    trainer = kind(classifier, eps=0.1, max_iter=2, seed=1, verbose=False, **told.get("constructor", {}))
    fit = {"nb_epochs": epochs, "validation_data": (X_TEST[:30], Y_TEST[:30]), "checkpoint": checkpoint}
    fit |= {"checkpoint_minutes": minutes if checkpoint else None} | told.get("fit", {})
    if fit.get("scheduler_step") == "batch":
        fit["scheduler"] = OneCycleLR(optimiser, 0.1, total_steps=epochs * -(-SAMPLES // SIZE))
    if "generator" in told:
        trainer.fit_generator(told["generator"](), **fit)
    else:
        data = (told["data"](),) if "data" in told else (X[:SAMPLES], Y[:SAMPLES])
        trainer.fit(*data, batch_size=SIZE, **fit)
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in trainer.history]
    state = {"kept": model.state_dict(), "final": trainer.final_state, "optimiser": optimiser.state_dict()["state"]}
    return state | {"history": history, "best": trainer.best_epoch}


def die_after(updates: int, seconds: float) -> None:
    """Let this process be killed so many updates and seconds on: nothing can be done about it then."""
    left, update = updates, Updates.__call__

    def counted(own: Updates, *given: Any) -> Any:
        nonlocal left
        left -= 1
        if left == -1:
            threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        return update(own, *given)

    Updates.__call__ = counted


def main(mode: str, checkpoint: Path, result: Path, epochs: int, death: tuple[int, float] | None = None) -> None:
    """Run with a checkpoint, and save what comes out, unless death comes first."""
    if death is not None:
        die_after(*death)
    torch.save(run(mode, checkpoint, epochs=epochs), result)
    os._exit(0)  # a timer must not count any more
