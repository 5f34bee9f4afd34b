# SPDX-License-Identifier: MIT
"""What every rank does in tests/test_ranks.py, under torchrun: attack its shard, train, save what came out.

torchrun --nproc-per-node N rank_worker.py FOLDER CASE...
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from art.defences.preprocessor import Mixup
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from art_wdro import (
    DistributionalTRADESTrainer,
    WassersteinKnapsack,
    WassersteinMarginTrainer,
    WassersteinPGD,
    accuracy_bounds,
    adversarial_accuracy,
    certified_accuracy,
    certified_radii,
    evaluate,
    lipschitz_certificate,
    loss_certificate,
    sensitivity,
    sharded,
    shift_and_flip,
    wasserstein_distance,
)
from art_wdro.trainers._update import Updates
from tests.conftest import BUDGETS, Problem, digits, linear_problem, make_classifier, on_device, on_host

THREATS = [(p, r) for p in (1.5, 2.0, np.inf) for r in (1.0, 2.0, np.inf)]
SHARDS = {1: [60], 2: [23, 37], 3: [41, 0, 19]}
"""Sizes of the shards by the number of ranks: uneven, one of them empty."""


def attack(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Attack this rank's shard in every way; figures of the whole come out on every rank."""
    classifier = linear_problem().classifier
    found = {}
    for p, r in THREATS:
        for loss in ("ce", "redlr"):
            attack = WassersteinPGD(classifier, p=p, norm=r, eps=BUDGETS[r], loss=loss, batch_size=7, verbose=False)
            found[f"pgd {p} {r} {loss}"] = attack.generate(x, y)
        found[f"sensitivity {p} {r}"] = sensitivity(classifier, x, y, p, r)
    knapsack = WassersteinKnapsack(classifier, eps=0.03, max_iter=20, batch_size=7, verbose=False)
    found["knapsack"] = knapsack.generate(x, y)
    found["distances"] = knapsack.distances_
    found["fraction"] = knapsack.fraction_
    found["distance"] = wasserstein_distance(x, found["knapsack"])
    found["accuracy"] = adversarial_accuracy(classifier, x, y, eps=0.03)
    found["bounds"] = np.array(accuracy_bounds(classifier, x, y, eps=0.03))
    report = evaluate(classifier, x, y, eps=0.03, knapsack_iter=20, verbose=False)
    found["report"] = np.array([row.accuracy for row in report.rows] + [report.upsilon, report.samples])
    part = evaluate(classifier, x, y, eps=0.03, knapsack_iter=20, samples=24, seed=5, verbose=False)
    found["part"] = np.array([row.accuracy for row in part.rows] + [part.samples, part.drawn_from, *part.indices])
    found["digest"] = np.array([*bytes.fromhex(part.provenance["data_sha256"])])
    found["standing"] = np.stack([*part.standing.values()])
    return {name: np.asarray(value) for name, value in found.items()}


def certify(x: np.ndarray, y: np.ndarray, rank: int) -> dict[str, np.ndarray]:
    """Certify this rank's shard in every way; figures of the whole come out on every rank."""
    classifier = linear_problem().classifier
    constant = lipschitz_certificate(classifier, norm=2).upper * (1 + rank)  # each holds, and the first rank's is best
    found = {
        "radii": certified_radii(classifier, x, y, 2, batch_size=7),
        "accuracy": certified_accuracy(classifier, x, y, 2, 2, 0.05),
        "loss": loss_certificate(classifier, x, y, 2, 2, 0.05, seconds=1, batch_size=7),
        "given": loss_certificate(classifier, x, y, 2, 2, 0.05, "margin", constant=constant),
        "exact": lipschitz_certificate(classifier, x, 0.1, 2, seconds=1).exact,
    }
    smoothed = PyTorchRandomizedSmoothing(
        classifier.model, nn.CrossEntropyLoss(), (30,), 5, clip_values=(0, 1), device_type="cpu", sample_size=50
    )
    found["votes"] = certified_radii(smoothed, x, y, 2, n=300)
    found["by votes"] = certified_accuracy(smoothed, x, y, 2, 2, [0.02, 0.05], n=300)
    report = evaluate(smoothed, x, y, norm=2, eps=0.05, n=300, knapsack_iter=20)
    found["report"] = np.array([report.certified_accuracy(0.05), report.samples, report.failed, len(report.distances)])
    return {name: np.asarray(value) for name, value in found.items()}


def refusals_of_nothing() -> list[str]:
    """What is said where no rank has a sample."""
    classifier, x, y = linear_problem()
    said = []
    for function in (certified_accuracy, loss_certificate):
        try:
            function(classifier, x[:0], y[:0])
        except ValueError as error:
            said.append(str(error))
    return said


class Smooth(nn.Module):
    """A small network without batch norm and dropout, whose kinks do not magnify float noise."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def train_margins(batch_size: int, rank: int = 0) -> dict[str, np.ndarray]:
    """Fine-tune on the distances of the knapsack; the last minibatch is uneven. The first rank's weights count."""
    torch.manual_seed(0)
    model = Smooth()
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    x = digits()[0][0][:103]
    y = classifier.predict(x).argmax(1)  # so that there are distances without any training
    with torch.no_grad():
        for weight in model.parameters():
            weight += rank
    trainer = WassersteinMarginTrainer(classifier, eps=0.01, max_iter=6, seed=3, window=2, verbose=False)
    trainer.fit(x, y, batch_size=batch_size, nb_epochs=2)
    names = ("loss", "margin_loss", "tau", "train_adversarial_accuracy")
    found = {name: on_host(value) for name, value in model.state_dict().items()}
    return found | {"history": np.array([[record[name] for name in names] for record in trainer.history])}


def train(
    batch_size: int,
    upsilon: str,
    checkpoint: str | None = None,
    epochs: int = 2,
    weight: torch.Tensor | None = None,
    samples: int = 103,
    on_epoch=None,
    defence=None,
) -> dict[str, np.ndarray]:
    """Fine-tune on digits, the whole of which every rank has; the last minibatch is uneven."""
    torch.manual_seed(0)
    model = Smooth()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    classifier = make_classifier(
        model,
        (1, 8, 8),
        10,
        optimizer=optimiser,
        loss=on_device(nn.CrossEntropyLoss(weight, label_smoothing=0.1)),
        preprocessing_defences=defence,
    )
    trainer = DistributionalTRADESTrainer(
        classifier, eps=0.1, max_iter=3, seed=3, upsilon=upsilon, gamma=0.5, sample_fraction=0.25, verbose=False
    )
    (x, y), (x_test, y_test) = digits()
    settings = {"batch_size": batch_size, "nb_epochs": epochs, "checkpoint": checkpoint, "on_epoch": on_epoch}
    trainer.fit(x[:samples], y[:samples], (x_test[:50], y_test[:50]), **settings)
    found = {name: on_host(value) for name, value in model.state_dict().items()}
    names = ("loss", "upsilon", "budget_ratio", "pointwise_loss", "train_adversarial_accuracy", "wp_accuracy")
    return found | {"history": np.array([[record[name] for name in names] for record in trainer.history])}


def flipped(x: torch.Tensor) -> torch.Tensor:
    return x.flip(3)


def train_recipe(
    batch_size: int, kind=DistributionalTRADESTrainer, augment=flipped, checkpoint: str | None = None, source="arrays"
) -> dict[str, np.ndarray]:
    """Fine-tune with all that a recipe adds."""
    torch.manual_seed(0)
    model = Smooth()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    classifier = make_classifier(model, (1, 8, 8), 10, optimizer=optimiser)
    settings = {"ema": 0.8, "weight_perturbation": 0.01, "max_grad_norm": 1.0}
    trainer = kind(classifier, eps=0.05, max_iter=3, seed=3, verbose=False, **settings)
    x, y = (part[:103] for part in digits()[0])
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, total_steps=10, cycle_momentum=False)
    pairs = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    data = {"arrays": (x, y), "set": (pairs,), "loader": (DataLoader(pairs, 24, shuffle=True),)}
    trainer.fit(
        *data[source],
        batch_size=batch_size,
        nb_epochs=2,
        scheduler=cycle,
        scheduler_step="batch",
        augment=augment,
        checkpoint=checkpoint,
    )
    found = {name: on_host(value) for name, value in model.state_dict().items()}
    found |= {f"final {name}": on_host(value) for name, value in trainer.final_state.items()}
    return found | {"history": np.array([record["loss"] for record in trainer.history])}


def train_recipes(batch_size: int, folder: Path) -> dict[str, np.ndarray]:
    """Fine-tune by recipes: over a data set, with random augmentation, and ended and gone on with."""
    found = train_recipe(batch_size)
    for source in ("set", "loader"):
        found |= {f"{source} {name}": value for name, value in train_recipe(batch_size, source=source).items()}
    margins = train_recipe(batch_size, WassersteinMarginTrainer)
    found |= {f"margin {name}": value for name, value in margins.items()}
    random = {"augment": shift_and_flip(1), "source": "loader"}
    found |= {f"random {name}": value for name, value in train_recipe(batch_size, **random).items()}
    update, left = Updates.__call__, 7

    def counted(updates: Updates, *given):
        nonlocal left
        left -= 1
        if left == 0 and dist.get_rank() == 1:  # one rank hears of it, and all end
            os.kill(os.getpid(), signal.SIGTERM)
        return update(updates, *given)

    Updates.__call__ = counted
    with contextlib.suppress(SystemExit):
        train_recipe(batch_size, **random, checkpoint=str(folder / "recipe.ckpt"))
    found["left"] = np.array(left)
    Updates.__call__ = update
    resumed = train_recipe(batch_size, **random, checkpoint=str(folder / "recipe.ckpt"))
    return found | {f"resumed {name}": value for name, value in resumed.items()}


def refused(problem: Problem, mine: slice, batch_size: int) -> dict[str, np.ndarray]:
    """Give one rank what it must refuse, and all ranks what they must agree on; then go on together."""
    rank = dist.get_rank()
    x, y = problem.x[mine].copy(), problem.y[mine]
    x[0] = np.nan if rank == 1 else x[0]
    said = []
    for call in (lambda: attack(x, y), lambda: sensitivity(problem.classifier, x, y)):
        try:
            call()
        except (ValueError, RuntimeError) as error:
            said.append(str(error))
    try:
        train(batch_size, "streaming", samples=103 - rank)
    except ValueError as error:
        said.append(str(error))
    figures = []
    train(batch_size, "streaming", on_epoch=lambda *_: figures.append(sensitivity(*problem)))
    both = sensitivity(problem.classifier, problem.x[mine], problem.y[mine])  # the ranks are still together
    return {"said": np.array(said), "figures": np.array(figures), "both": np.array(both)}


def run(case: str, folder: Path) -> dict[str, np.ndarray]:
    """Run one case on this rank."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    problem, batch_size = linear_problem(), 24 // ranks
    ends = np.cumsum([0, *SHARDS[ranks]])
    mine = slice(ends[rank], ends[rank + 1])
    with sharded():
        if case == "attack":
            return attack(problem.x[mine], problem.y[mine])
        if case == "train":
            found = train(batch_size, "streaming")
            found |= {f"resampled {name}": value for name, value in train(batch_size, "resample").items()}
            return found | {f"margin {name}": value for name, value in train_margins(batch_size, rank).items()}
        if case == "recipe":
            return train_recipes(batch_size, folder)
        if case == "weighted":
            settings = {"weight": torch.arange(1.0, 11.0), "upsilon": "streaming"}
            found = train(batch_size, **settings)
            mixed = train(batch_size, **settings, defence=Mixup(10))
            return found | {f"mixed {name}": value for name, value in mixed.items()}
        if case == "refused":
            return refused(problem, mine, batch_size)
        if case == "certificates":
            return certify(problem.x[mine], problem.y[mine], rank) | {"said": np.array(refusals_of_nothing())}
        if case == "resume":
            train(batch_size, "streaming", str(folder / "run.ckpt"), epochs=1)
            return train(batch_size, "streaming", str(folder / "run.ckpt"))
        if rank == 1:  # the case is "die"
            os.kill(os.getpid(), signal.SIGKILL)
        return attack(problem.x[mine], problem.y[mine])


def main() -> None:
    """Run the cases in turn on this rank, and save what each found."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    for case in sys.argv[2:]:
        found = run(case, folder)
        if case == "attack":  # in the process group, but not in sharded()
            problem = linear_problem()
            found["outside"] = WassersteinPGD(problem.classifier, verbose=False).generate(problem.x, problem.y)
        np.savez(folder / f"{case}-{dist.get_rank()}.npz", **found)
    dist.destroy_process_group()
    threads = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], f"{threads} outlive the process group"


if __name__ == "__main__":
    main()
