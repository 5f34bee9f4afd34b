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
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerTRADESPyTorch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from art_wdro import DistributionalTRADESTrainer
from art_wdro._reproduction.machine import machine
from art_wdro.losses import redlr
from art_wdro.trainers._consistency import kl_consistency
from benchmarks._timing import compared, interleaved, keep
from benchmarks.networks.robust import SETTINGS, load, robust_network


def dense_redlr(logits: Tensor, labels: Tensor) -> Tensor:
    """ReDLR, unknown to the attack as a loss that is flat on misclassified samples."""
    return redlr(logits, labels)


class TimedTrainer(DistributionalTRADESTrainer):
    """A trainer that adds up what its estimate of Upsilon and its batch budgets cost."""

    seconds = 0.0

    def _budget(self, own: Tensor, count: int) -> Tensor:
        started = time.perf_counter()
        budget = super()._budget(own, count)
        self.seconds += time.perf_counter() - started
        return budget


def main() -> None:
    """Time a minibatch of each trainer on one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--train-samples", type=int, default=40000, help="the paper's; fewer where there are fewer")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    classifier = robust_network(args.name, args.data_dir)
    device = classifier.device
    for group in classifier.optimizer.param_groups:
        group["lr"] = 0.0
    data = load(args.name, args.data_dir, train=True)
    inputs, labels = (torch.from_numpy(part[: args.train_samples]) for part in data)
    x, y = inputs[: args.batch_size].to(device), labels[: args.batch_size].to(device)
    eps = SETTINGS[args.name].eps

    def sample(fraction: float) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = torch.randperm(len(inputs))[: int(fraction * len(inputs))]
        for part in chosen.split(args.batch_size):
            yield inputs[part], labels[part]

    held = ExitStack()

    def minibatch(trainer: DistributionalTRADESTrainer) -> Callable[[], object]:
        trainer._begin(sample)
        held.enter_context(trainer._replicas())
        return lambda: trainer._step(x, y, "the benchmark")

    def floor() -> None:
        model = classifier.model.eval()
        batch = x
        for _ in range(args.steps):
            batch = batch.detach().requires_grad_()
            torch.autograd.grad(cross_entropy(model(batch), y, reduction="sum"), batch)
        model.train()
        clean, attacked = model(x), model(batch.detach())
        classifier.optimizer.zero_grad()
        (cross_entropy(clean, y) + 6.0 * kl_consistency(clean, attacked)).backward()
        classifier.optimizer.step()

    shared: dict[str, Any] = {"eps": eps, "max_iter": args.steps, "verbose": False}
    ours = TimedTrainer(classifier, **shared)
    printed = DistributionalTRADESTrainer(classifier, upsilon="resample", loss=dense_redlr, **shared)
    pgd = ProjectedGradientDescent(classifier, eps_step=eps / 8, batch_size=args.batch_size, **shared)
    arts = AdversarialTrainerTRADESPyTorch(classifier, pgd, beta=6.0)
    encoded = one_hot(y, 10).float().cpu().numpy()
    contestants = {
        "floor": floor,
        "ours": minibatch(ours),
        "ours, cross-entropy in the attack": minibatch(DistributionalTRADESTrainer(classifier, loss="ce", **shared)),
        "ours, bfloat16 in the attack": minibatch(
            DistributionalTRADESTrainer(classifier, precision="bfloat16", **shared)
        ),
        "ours, Upsilon resampled": minibatch(DistributionalTRADESTrainer(classifier, upsilon="resample", **shared)),
        "Algorithm 1 as printed": minibatch(printed),
        "ART's TRADES": lambda: arts._batch_process(x.cpu().numpy(), encoded),
    }
    with held:
        times = interleaved(contestants, args.repeats)
    streaming = ours.seconds / (args.repeats + 1) / statistics.median(times["ours"])
    setting = {
        "network": args.name,
        "train_samples": len(inputs),
        "batch_size": len(x),
        "steps": args.steps,
        "repeats": args.repeats,
    }
    print(setting)
    print(machine())
    rows = table(times)
    print(f"streaming Upsilon and the batch budgets: {streaming:.2%} of our minibatch")
    keep(args.json, setting, rows=rows, streaming_share=streaming, seconds=times)


def table(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Print and return one row a trainer."""
    print("| trainer | seconds | of the floor | as printed over it |\n" + "| --- " * 4 + "|")
    rows = compared(times, "trainer", of_floor=("floor", False), printed_over_it=("Algorithm 1 as printed", True))
    for row in rows:
        print("| {trainer} | {seconds:.2f} | {of_floor:.2f} | {printed_over_it:.2f} |".format(**row))
    return rows


if __name__ == "__main__":
    main()
