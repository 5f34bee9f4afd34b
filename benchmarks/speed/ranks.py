# SPDX-License-Identifier: MIT
"""An attack on one data set by several ranks, each on its shard with one thread.

    for n in 1 2; do torchrun --standalone --nproc-per-node $n -m benchmarks.speed.ranks cifar10 --data-dir DIR; done

Without torchrun, as in a quick run, there is one rank.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from art_wdro import WassersteinPGD, adversarial_accuracy, sharded
from benchmarks._command import command, parsed, with_data
from benchmarks._files import documented, keep
from benchmarks._settings import DATA
from benchmarks._tables import Table
from benchmarks._timing import interleaved
from benchmarks.networks._data import load
from benchmarks.networks.robust import robust_network


@contextmanager
def process_group() -> Iterator[None]:
    """Join the ranks that torchrun has started, or be the only one."""
    with tempfile.TemporaryDirectory() as folder:
        if "RANK" in os.environ:
            dist.init_process_group("gloo")
        else:
            dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def in_step(run: Callable[[], object]) -> Callable[[], None]:
    """Let all ranks start together, and none end before the last."""

    def together() -> None:
        dist.barrier()
        run()
        dist.barrier()

    return together


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = with_data(command(__doc__))
    found.add_argument("--samples", type=int, default=512)
    found.add_argument("--repeats", type=int, default=3)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the attack on this rank's shard; the first rank prints."""
    args = parsed(parser(), arguments, samples=64)
    torch.set_num_threads(1)
    with process_group():
        classifier = robust_network(args.name, args.data_dir)
        data = load(args.name, args.data_dir, train=False)
        mine = slice(dist.get_rank(), args.samples, dist.get_world_size())
        x, y, eps = data.x[mine], data.y[mine], DATA[args.name].eps
        attack = WassersteinPGD(classifier, eps=eps, loss="ce", batch_size=64, verbose=False)
        with sharded():
            times = interleaved({"attack": in_step(lambda: attack.generate(x, y))}, args.repeats)
            left = adversarial_accuracy(classifier, attack.generate(x, y), y, eps=0.0)
        if dist.get_rank() == 0:
            row = {"ranks": dist.get_world_size(), "images": args.samples, "accuracy": left}
            row["seconds"] = statistics.median(times["attack"])
            table = Table("ranks", "images", "seconds", "accuracy left in %")
            table.row(row["ranks"], row["images"], f"{row['seconds']:.2f}", f"{100 * left:.2f}")
            setting = {"network": args.name, "repeats": args.repeats}
            keep(args.json, documented(setting, rows=[row], seconds=times["attack"]))


if __name__ == "__main__":
    main()
