# SPDX-License-Identifier: MIT
"""Networks trained against another norm, and against a single step, which masks gradients: small ones, to search on.

    python -m benchmarks.networks.variants fashion-mnist --data-dir DIR

Once trained, they are `benchmarks.networks.variants:fashion_mnist_l2` and `:fashion_mnist_step` for programs that take
a network, run in the root of the repository. DIR is as in networks/robust.py.

Sources: Madry et al., 2018, arXiv:1706.06083; that networks learn to mislead a single step, Tramer et al., 2018,
arXiv:1705.07204.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_wdro._sources.data import Split
from art_wdro.functional import w_pgd
from benchmarks._command import command, parsed, with_data
from benchmarks._files import keep
from benchmarks._settings import QUICK
from benchmarks._tables import Table
from benchmarks._timing import timed
from benchmarks.networks._architectures import KEPT, network_for, trained
from benchmarks.networks._data import load
from benchmarks.networks.certified import Loss, train

SAMPLES = 20000
"""Training images, at most."""


class Variant(NamedTuple):
    """How a network is trained: on images attacked pointwise, by steps up the cross-entropy.

    :param r: Exponent of the norm.
    :param eps: Radius in input units.
    :param steps: Steps of the attack.
    :param eps_step: Length of a step.
    :param epochs: Passes over the images.
    """

    r: float
    eps: float
    steps: int
    eps_step: float
    epochs: int


VARIANTS = {"l2": Variant(2.0, 1.0, 5, 0.375, 6), "step": Variant(math.inf, 0.2, 1, 0.2, 8)}
"""The networks by name."""
TRAINED = ("fashion-mnist", QUICK)
"""Data sets that have them."""


def attacked(model: nn.Module, x: Tensor, y: Tensor, variant: Variant, steps: int) -> Tensor:
    """Attack images pointwise as in training, or with more steps of 2.5 radii in all."""
    length = variant.eps_step if steps == variant.steps else 2.5 * variant.eps / steps
    setting = {"p": math.inf, "r": variant.r, "eps": variant.eps, "eps_step": length, "steps": steps, "loss": "ce"}
    return w_pgd(model, x, y, batch_size=len(x), **setting)  # type: ignore[arg-type]


def against(model: nn.Module, variant: Variant) -> Loss:
    """Return the cross-entropy of attacked images."""
    return lambda x, y, done: F.cross_entropy(model(attacked(model, x, y, variant, variant.steps)), y)


def variant_network(name: str, kind: str, directory: Path | None) -> nn.Module:
    """Return a network, from disk or trained now and kept."""
    model, file = network_for(name), f"{name}-{kind}.pt"

    def make() -> None:
        if name != QUICK and directory is None:
            raise FileNotFoundError(f"{KEPT / file} does not exist; python -m benchmarks.networks.variants makes it")
        data = Split(*(part[:SAMPLES] for part in load(name, directory, train=True)))
        train(model, data, VARIANTS[kind].epochs, against(model, VARIANTS[kind]))

    return trained(model, name, file, make)


def fashion_mnist_l2() -> nn.Module:
    """Return the network trained under l_2."""
    return variant_network("fashion-mnist", "l2", None)


def fashion_mnist_step() -> nn.Module:
    """Return the network trained against a single step."""
    return variant_network("fashion-mnist", "step", None)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    return with_data(command(__doc__), TRAINED[:1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the networks that are not there, and say what they stand."""
    args = parsed(parser(), arguments)
    x, y = (torch.from_numpy(part[:1000]) for part in load(args.name, args.data_dir, train=False))
    table = Table("network", "eps", "clean in %", "attack of the training", "20 steps", "seconds")
    rows = []
    for kind, variant in VARIANTS.items():
        model, seconds = timed(partial(variant_network, args.name, kind, args.data_dir))
        points = {"clean": x, **{name: attacked(model, x, y, variant, steps) for name, steps in _attacks(variant)}}
        with torch.no_grad():
            found = {name: float((model(z).argmax(1) == y).double().mean()) for name, z in points.items()}
        rows.append({"network": kind, "eps": variant.eps, **found})
        table.row(kind, variant.eps, *(f"{100 * value:.1f}" for value in found.values()), f"{seconds:.0f}")
    keep(args.json, rows)


def _attacks(variant: Variant) -> tuple[tuple[str, int], ...]:
    return ("own", variant.steps), ("pgd", 20)


if __name__ == "__main__":
    main()
