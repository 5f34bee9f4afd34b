# SPDX-License-Identifier: MIT
"""The cost of one training minibatch: Algorithm 1 as printed, our trainer's, ART's TRADES, and the floor.

    python -m benchmarks.speed.training fashion-mnist --data-dir DIR

The floor is the attack's forwards and input gradients and one update of TRADES, nothing else. As printed, Algorithm 1
draws a tenth of the training set anew for every minibatch, and its attack computes every gradient. The learning rate
is 0, so that all rounds meet the same network.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerTRADESPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from art_wdro import DistributionalTRADESTrainer
from art_wdro._reproduction.machine import machine
from art_wdro.losses import redlr
from art_wdro.trainers._consistency import kl_consistency
from art_wdro.trainers._minibatches import Minibatches, Shuffled
from art_wdro.trainers._trades import AlgorithmOne
from art_wdro.trainers._update import Updates
from benchmarks._cells import cells_of
from benchmarks._command import command, parsed, with_data
from benchmarks._files import documented, keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks._timing import compared, interleaved, timed
from benchmarks.networks._architectures import CLASSES
from benchmarks.networks._data import load
from benchmarks.networks.robust import robust_network
from benchmarks.speed._floor import bare_loop

BETA = 6.0


def dense_redlr(logits: Tensor, labels: Tensor) -> Tensor:
    """ReDLR, unknown to the attack as a loss that is flat on misclassified samples."""
    return redlr(logits, labels)


class TimedTrainer(DistributionalTRADESTrainer):
    """A trainer that notes what its estimate of Upsilon and each batch budget cost."""

    def __init__(self, classifier: PyTorchClassifier, **setting: Any) -> None:
        super().__init__(classifier, **setting)
        self.seconds: list[float] = []

    def _method(self, updates: Updates, minibatches: Minibatches) -> AlgorithmOne:
        return _Timed(self, updates, minibatches)


class _Timed(AlgorithmOne):
    """Algorithm 1 with a stopwatch."""

    def __init__(self, trainer: TimedTrainer, updates: Updates, minibatches: Minibatches) -> None:
        super().__init__(trainer, updates, minibatches)
        self._seconds = trainer.seconds

    def _budget(self, own: Tensor, samples: int) -> Tensor:
        budget, seconds = timed(lambda: super(_Timed, self)._budget(own, samples))
        self._seconds.append(seconds)
        return budget


class Minibatch:
    """One minibatch, and the training set it is from."""

    def __init__(self, classifier: PyTorchClassifier, images: tuple[Tensor, Tensor], size: int, **attack: Any) -> None:
        """Take the first images as the minibatch.

        :param classifier: The network, whose optimiser has the learning rate 0.
        :param images: Images and labels of the training set.
        :param size: Number of images in the minibatch.
        :param attack: Parameters of all attacks.
        """
        self._classifier, self._size, self._attack = classifier, size, attack
        self._whole = Shuffled(*images, size, drop_last=False, seed=0)
        self.x, self.y = (part[:size].to(classifier.device) for part in images)

    def trainer(self, kind: type[DistributionalTRADESTrainer], **setting: Any) -> DistributionalTRADESTrainer:
        """Return a trainer with the parameters of all attacks."""
        return kind(self._classifier, **self._attack, **setting)

    @contextmanager
    def by_ours(self, trainer: DistributionalTRADESTrainer) -> Iterator[Callable[[], object]]:
        """Yield what one of our trainers does with the minibatch, for as long as the context lasts."""
        updates = Updates(self._classifier, trainer._common)
        method = trainer._method(updates, self._whole)
        with updates.prepared():
            yield partial(method.step, self.x, self.y, "the benchmark")

    def floor(self) -> None:
        """Do the attack's forwards and input gradients, and one update."""
        model, optimiser = self._classifier.model.eval(), self._classifier.optimizer
        bare_loop(model, self.x, self.y, self._attack["max_iter"])
        model.train()
        clean, attacked = model(self.x), model(self.x)
        optimiser.zero_grad()
        torch.autograd.backward(cross_entropy(clean, self.y) + BETA * kl_consistency(clean, attacked))
        optimiser.step()

    def by_art(self) -> Callable[[], object]:
        """Return what ART's TRADES does with the minibatch."""
        step = self._attack["eps"] / 8
        pgd = ProjectedGradientDescent(self._classifier, eps_step=step, batch_size=self._size, **self._attack)
        trainer = AdversarialTrainerTRADESPyTorch(self._classifier, pgd, beta=BETA)
        encoded = one_hot(self.y, CLASSES).float().cpu().numpy()
        return lambda: trainer._batch_process(self.x.cpu().numpy(), encoded)


def table(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Print and return one row a trainer."""
    shown = Table("trainer", "seconds", "of the floor", "as printed over it")
    rows = compared(times, "trainer", of_floor=("floor", False), printed_over_it=("Algorithm 1 as printed", True))
    for row in rows:
        shown.row(row["trainer"], *(f"{row[key]:.2f}" for key in ("seconds", "of_floor", "printed_over_it")))
    return rows


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__))
    found.add_argument("--train-samples", type=int, default=40000, help="the paper's; fewer where there are fewer")
    found.add_argument("--batch-size", type=int, default=512)
    found.add_argument("--steps", type=int, default=20)
    found.add_argument("--repeats", type=int, default=5)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Time a minibatch of each trainer on one network."""
    args = parsed(parser(), arguments, train_samples=320, batch_size=32, steps=3, repeats=2)
    classifier = robust_network(args.name, args.data_dir)
    for group in classifier.optimizer.param_groups:
        group["lr"] = 0.0
    data = load(args.name, args.data_dir, train=True)
    images, labels = (torch.from_numpy(part[: args.train_samples]) for part in data)
    attack: dict[str, Any] = {"eps": DATA[args.name].eps, "max_iter": args.steps, "verbose": False}
    minibatch = Minibatch(classifier, (images, labels), args.batch_size, **attack)
    ours = minibatch.trainer(TimedTrainer)
    trainers = {
        "ours": ours,
        "ours, cross-entropy in the attack": minibatch.trainer(DistributionalTRADESTrainer, loss="ce"),
        "ours, bfloat16 in the attack": minibatch.trainer(DistributionalTRADESTrainer, precision="bfloat16"),
        "ours, Upsilon resampled": minibatch.trainer(DistributionalTRADESTrainer, upsilon="resample"),
        "Algorithm 1 as printed": minibatch.trainer(DistributionalTRADESTrainer, upsilon="resample", loss=dense_redlr),
    }
    contestants: dict[str, Callable[[], object]] = {"floor": minibatch.floor}
    setting = {"network": args.name, "train_samples": len(images), "batch_size": len(minibatch.x)}
    setting |= {"steps": args.steps, "repeats": args.repeats}
    with ExitStack() as held, cells_of(args, "speed_training") as cells:
        for name, trainer in trainers.items():
            contestants[name] = held.enter_context(minibatch.by_ours(trainer))
        contestants["ART's TRADES"] = minibatch.by_art()
        times = interleaved(contestants, args.repeats, cells)
        assert isinstance(ours, TimedTrainer)
        streaming = statistics.mean(ours.seconds) / statistics.median(times["ours"])
        print(setting)
        print(machine())
        rows = table(times)
        print(f"streaming Upsilon and the batch budgets: {streaming:.2%} of our minibatch")
        keep(args.json, documented(setting, rows=rows, streaming_share=streaming, seconds=times))


if __name__ == "__main__":
    main()
