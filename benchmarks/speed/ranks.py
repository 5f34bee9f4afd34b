# SPDX-License-Identifier: MIT
"""An attack on one data set by several ranks, each on its shard with one thread.

for n in 1 2; do torchrun --standalone --nproc-per-node $n -m benchmarks.speed.ranks cifar10 --data-dir DIR; done
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist

from art_wdro import WassersteinPGD, adversarial_accuracy, sharded
from benchmarks.networks.robust import SETTINGS, load, robust_network


def main() -> None:
    """Time the attack on this rank's shard; the first rank prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    classifier = robust_network(args.name, args.data_dir)
    data = load(args.name, args.data_dir, train=False)
    mine = slice(dist.get_rank(), args.samples, dist.get_world_size())
    x, y = data.x[mine], data.y[mine]
    attack = WassersteinPGD(classifier, eps=SETTINGS[args.name].eps, loss="ce", batch_size=64, verbose=False)
    seconds = []
    with sharded():
        for _ in range(args.repeats + 1):
            dist.barrier()
            started = time.perf_counter()
            adversarial = attack.generate(x, y)
            dist.barrier()
            seconds.append(time.perf_counter() - started)
        left = adversarial_accuracy(classifier, adversarial, y, eps=0.0)
    if dist.get_rank() == 0:
        text = f"{dist.get_world_size()} ranks, {args.samples} images: {statistics.median(seconds[1:]):.2f} s"
        print(f"{text}, accuracy left {100 * left:.2f} %")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
