# SPDX-License-Identifier: MIT
"""Several processes under torchrun give what one gives: attacks on uneven shards, figures, training."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from art.defences.preprocessor import Mixup
from torch import nn

from art_wdro import WassersteinMarginTrainer, _ranks, sharded
from art_wdro.trainers._modes import Modes
from art_wdro.trainers._update import Updates
from tests import rank_worker
from tests.conftest import make_classifier, on_device

ROOT = Path(__file__).parent.parent


CASES = {2: ("attack", "train", "refused", "resume", "recipe"), 3: ("attack", "train", "weighted")}
"""What the ranks of one job do in turn, by their number; the imports of a process take longer than a case."""

T = TypeVar("T")
Found = list[dict[str, np.ndarray]]
"""What one case gave, by rank."""


def torchrun(folder: Path, ranks: int, *cases: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    worker = [str(ROOT / "tests" / "rank_worker.py"), str(folder), *cases]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*command, "--log-dir", str(folder / "log"), *worker],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Callable[[int], dict[str, Found]]:
    """The job of so many ranks, run when it is first asked for: what it found, by case."""

    @functools.cache
    def run(ranks: int) -> dict[str, Found]:
        folder = tmp_path_factory.mktemp(f"ranks-{ranks}")
        done = torchrun(folder, ranks, *CASES[ranks])
        assert done.returncode == 0, done.stderr[-3000:]
        return {case: [dict(np.load(folder / f"{case}-{rank}.npz")) for rank in range(ranks)] for case in CASES[ranks]}

    return run


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    problem = rank_worker.linear_problem()
    return rank_worker.attack(problem.x, problem.y)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_attacks_on_shards_equal_the_attack_on_all(job, alone, ranks):
    found = job(ranks)["attack"]
    for name, expected in alone.items():
        if name.startswith(("pgd", "knapsack", "distances")):
            whole = np.concatenate([part[name] for part in found])
            np.testing.assert_allclose(whole, expected, atol=2e-5, err_msg=name)
        else:
            for part in found:
                np.testing.assert_allclose(part[name], expected, rtol=1e-4, err_msg=name)
    for part in found:
        np.testing.assert_array_equal(part["outside"], found[0]["outside"])
        assert len(part["outside"]) == 60


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_training_over_ranks_equals_training_alone(job, ranks):
    found = job(ranks)["train"]
    expected = rank_worker.train(24, "streaming")
    expected |= {f"resampled {name}": value for name, value in rank_worker.train(24, "resample").items()}
    expected |= {f"margin {name}": value for name, value in rank_worker.train_margins(24).items()}
    for part in found:
        assert part.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(part[name], value, rtol=2e-3, atol=2e-4, err_msg=name)
            np.testing.assert_array_equal(part[name], found[0][name], err_msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the network was right on")
def test_a_recipe_over_ranks_equals_that_alone(job):
    """Averaged and perturbed weights, a cycle by minibatch, augmentation; random ones agree over the ranks."""
    found = job(2)["recipe"]
    expected = rank_worker.train_recipe(24)
    for source in ("set", "loader"):
        read = rank_worker.train_recipe(24, source=source)
        expected |= {f"{source} {name}": value for name, value in read.items()}
    margins = rank_worker.train_recipe(24, rank_worker.WassersteinMarginTrainer)
    expected |= {f"margin {name}": value for name, value in margins.items()}
    for part in found:
        for name, value in expected.items():
            np.testing.assert_allclose(part[name], value, rtol=2e-3, atol=2e-4, err_msg=name)
        for name, value in found[0].items():
            np.testing.assert_array_equal(part[name], value, err_msg=name)
        assert part["left"] == 0  # it ended after the minibatch that the signal met
        for name, value in part.items():
            if name.startswith("random "):
                np.testing.assert_array_equal(part[name.replace("random", "resumed", 1)], value, err_msg=name)


@pytest.mark.slow
def test_class_weights_and_soft_labels_count_over_all_ranks(job):
    found = job(3)["weighted"]
    settings = {"weight": torch.arange(1.0, 11.0), "upsilon": "streaming"}
    expected = rank_worker.train(24, **settings)
    expected |= {f"mixed {k}": value for k, value in rank_worker.train(24, **settings, defence=Mixup(10)).items()}
    for name, value in expected.items():
        if "history" not in name:
            np.testing.assert_allclose(found[0][name], value, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_what_one_rank_refuses_all_refuse(job):
    first, second = job(2)["refused"]
    assert list(first["said"][:2]) == ["rank 1 refused its arguments; see its own error"] * 2
    assert all("x holds NaN or inf (first in sample 0)" in text for text in second["said"][:2])
    assert first["said"][2] == "rank 1 differs in data; all ranks must give fit the same arguments"
    assert second["said"][2] == "rank 0 differs in data; all ranks must give fit the same arguments"
    problem = rank_worker.linear_problem()
    upsilon = rank_worker.sensitivity(*problem)
    assert first["figures"] == pytest.approx([upsilon] * 2)  # on_epoch, on the first rank alone
    assert len(second["figures"]) == 0
    assert [float(first["both"]), float(second["both"])] == pytest.approx([upsilon] * 2)


@pytest.mark.slow
def test_a_checkpoint_over_ranks_goes_on(job):
    found = job(2)["resume"]
    expected = rank_worker.train(24, "streaming")
    for part in found:
        for name, value in expected.items():
            np.testing.assert_allclose(part[name], value, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job(tmp_path):
    started = time.perf_counter()
    done = torchrun(tmp_path, 2, "die")
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    assert time.perf_counter() - started < 60


def test_sharded_needs_a_process_group():
    assert not dist.is_initialized()
    with pytest.raises(RuntimeError, match="start the script with torchrun"), sharded():
        pass


class Threads:
    """Threads in the place of ranks, each with its own context: they exchange numbers, and nothing else."""

    def __init__(self, count: int) -> None:
        self.count, self._barrier = count, threading.Barrier(count, timeout=60)
        self._numbers: list[torch.Tensor | None] = [None] * count
        self._own = threading.local()

    def __call__(self, numbers: torch.Tensor) -> torch.Tensor:
        self._numbers[self._own.rank] = numbers.detach()
        self._barrier.wait()
        found = torch.stack(self._numbers)
        self._barrier.wait()
        return found

    def run(self, work: Callable[[int], T]) -> list[T]:
        """Let every rank work, and return what each found."""

        def as_rank(rank: int) -> T:
            self._own.rank = rank
            token = _ranks._current.set(self)
            try:
                return work(rank)
            finally:
                _ranks._current.reset(token)

        with ThreadPoolExecutor(self.count) as pool:
            return [*pool.map(as_rank, range(self.count))]


def test_all_ranks_go_by_the_number_of_the_first():
    assert Threads(3).run(lambda rank: _ranks.agreed(10 + rank)) == [10, 10, 10]


@pytest.mark.parametrize("counts", [{}, {"weight": torch.tensor([1.0, 5.0, 0.2])}, {"ignore_index": 0}])
@pytest.mark.parametrize("sizes", [[7, 1], [2, 5, 1]])
def test_uneven_parts_of_a_minibatch_weigh_by_their_samples(monkeypatch, sizes, counts):
    """The mean of the ranks' gradients, which the replicas step along, is the gradient of the whole minibatch."""
    generator = torch.Generator().manual_seed(0)
    x, other = on_device(torch.rand(2, 8, 4, generator=generator)).unbind(0)
    y, start = on_device(torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])), nn.Linear(4, 3)
    monkeypatch.setattr("art_wdro.trainers._update.share_buffers", lambda *_: None)

    def outer(clean: torch.Tensor, moved: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return 3 * ((clean - moved) ** 2).sum(1).mean(), {}

    def gradients(rows: slice) -> list[torch.Tensor]:
        model = copy.deepcopy(start)
        settings = {
            "loss": on_device(nn.CrossEntropyLoss(**counts)),
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        }
        classifier = make_classifier(model, (4,), 3, **settings)
        updates = Updates(classifier, WassersteinMarginTrainer(classifier)._common)
        updates._modes = Modes(classifier)
        updates._forward = lambda *batches: tuple(model(batch) for batch in batches)
        updates(y[rows], [x[rows], other[rows]], outer, "a minibatch")
        return [parameter.grad for parameter in model.parameters()]

    ends = np.cumsum([0, *sizes])
    parts = [slice(*pair) for pair in itertools.pairwise(ends)]
    found = Threads(len(sizes)).run(lambda rank: gradients(parts[rank]))
    for own, whole in zip(zip(*found, strict=True), gradients(slice(None)), strict=True):
        torch.testing.assert_close(torch.stack(own).mean(0), whole)
