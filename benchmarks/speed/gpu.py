# SPDX-License-Identifier: MIT
"""One short run on a GPU: tests, then what attacks, searches and training cost beside the bare loop.

    python -m benchmarks.speed.gpu --minutes 8 --out DIR

Each part is a file in DIR, whole or not there, written as soon as it is done; a part that is there already is not run
again, and one that does not fit into the minutes left is not begun. Networks are a pre-activation ResNet-18 and a
WRN-28-10 with random weights, on random images with their own predictions as labels; `--network` takes a network of
yours in the place of the first, as `art-wdro evaluate --model` does, and `--data-dir` its test images. `--quick` runs
everything on a CPU with a tiny network, to see it run.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from art_wdro import DistributionalTRADESTrainer, WassersteinKnapsack, WassersteinPGD
from art_wdro._reproduction.machine import machine
from art_wdro._solvers.passes import Passes
from art_wdro._sources.data import Split
from art_wdro._sources.networks import load_network
from art_wdro._storage.files import write_text
from art_wdro.functional import least_distances
from art_wdro.trainers._consistency import kl_consistency
from art_wdro.trainers._minibatches import Shuffled
from art_wdro.trainers._update import Updates
from benchmarks._command import command, parsed
from benchmarks._files import ROOT, keep
from benchmarks._tables import Table
from benchmarks._timing import interleaved, ratio, timed
from benchmarks.networks._architectures import classifier_of, small_cnn, wide_resnet
from benchmarks.networks._data import load
from benchmarks.speed._floor import bare_attack, bare_loop

EPS, BETA = 8 / 255, 6.0
HALF: dict[str, Any] = {"precision": "bfloat16", "update_precision": "bfloat16"}
OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "channels_last": {"channels_last": True},
    "compile": {"compile": True},
    "bfloat16, channels_last, compile": {"precision": "bfloat16", "channels_last": True, "compile": True},
}
"""Settings of W-PGD by name; channels_last is one of the network."""
TRAINERS: dict[str, dict[str, Any]] = {
    "ours, float32": {"loss": "ce"},
    "ours, all in bfloat16": {"loss": "ce", **HALF},
    "ours, all in bfloat16, channels_last, compile": {"loss": "ce", **HALF, "channels_last": True, "compile": True},
    "ours, ReDLR, all in bfloat16": HALF,
}
"""Settings of the trainer by name."""
SMALL = "attacks", "tuned", "knapsack", "utilisation", "training", "compiled"
LARGE = "attacks", "knapsack", "utilisation", "compiled"
"""What is measured on the smaller and on the larger network."""


class Bench:
    """One network, images, and what is timed on them."""

    def __init__(
        self, model: nn.Module, shape: tuple[int, ...], images: Split | None, args: argparse.Namespace
    ) -> None:
        """Take the images, or draw them.

        :param model: The network.
        :param shape: Shape of an image.
        :param images: Images and labels; None draws random images, whose labels are what the network says.
        :param args: The command line.
        """
        self._args, self._shape = args, shape
        self.classifier = self._wrapped(model)
        self.device = self.classifier.device
        if images is not None:
            self.x, self.y = (part[: args.samples] for part in images)
            return
        self.x = np.random.default_rng(0).random((args.samples, *shape), dtype=np.float32)
        self.y = self.classifier.predict(self.x, batch_size=args.batch_size).argmax(1)

    def _wrapped(self, model: nn.Module) -> Any:
        return classifier_of(model.eval(), self._shape, device_type="gpu", lr=0.0, momentum=0.9)

    def _copied(self, channels_last: bool) -> Any:
        if not channels_last:
            return self.classifier
        return self._wrapped(copy.deepcopy(self.classifier.model).to(memory_format=torch.channels_last))

    def floor(self) -> Callable[[], object]:
        """Return the bare loop of an attack."""
        sizes = self._args.batch_size, self._args.steps
        return lambda: bare_attack(self.classifier.model, self.x, self.y, *sizes, self.device)

    def w_pgd(self, channels_last: bool = False, **setting: Any) -> Callable[[], object]:
        """Return W-PGD with a setting."""
        shared = {"eps": EPS, "max_iter": self._args.steps, "batch_size": self._args.batch_size, "verbose": False}
        attack = WassersteinPGD(self._copied(channels_last), **shared, **setting)
        return lambda: attack.generate(self.x, self.y)

    def rivals(self) -> dict[str, Callable[[], object]]:
        """Return PGD of others, as far as it is installed."""
        steps, size = self._args.steps, self._args.batch_size
        setting = {"norm": np.inf, "eps": EPS, "eps_step": EPS / 8, "max_iter": steps, "batch_size": size}
        one_hot = np.eye(10, dtype=np.float32)[self.y]
        art = ProjectedGradientDescentPyTorch(self.classifier, verbose=False, **setting)
        found: dict[str, Callable[[], object]] = {"ART's PGD": lambda: art.generate(self.x, one_hot)}
        try:
            torchattacks = importlib.import_module("torchattacks")
        except ImportError:
            return found
        pgd = torchattacks.PGD(self.classifier.model, eps=EPS, alpha=EPS / 8, steps=steps, random_start=False)

        def run() -> None:
            for start in range(0, len(self.x), size):
                pgd(torch.from_numpy(self.x[start : start + size]), torch.from_numpy(self.y[start : start + size]))

        return found | {"torchattacks PGD": run}

    def attacks(self) -> dict[str, Any]:
        """Time attacks that run the network as it is."""
        return self._timed(False, self.rivals())

    def compiled(self) -> dict[str, Any]:
        """Time attacks that compile the network, which takes minutes before the first pass."""
        return self._timed(True, {})

    def _timed(self, compiled: bool, others: dict[str, Callable[[], object]]) -> dict[str, Any]:
        """Time W-PGD with the options of a kind, and others, as multiples of the bare loop."""
        contestants = {"bare loop": self.floor()}
        for name, setting in OPTIONS.items():
            if setting.get("compile", False) is compiled:
                contestants[f"W-PGD, cross-entropy, {name}"] = self.w_pgd(loss="ce", **setting)
                contestants[f"W-PGD, ReDLR, {name}"] = self.w_pgd(**setting)
        contestants |= others
        times = interleaved(contestants, self._args.repeats)
        return {name: ratio(times, name, "bare loop") for name in times} | {
            "bare loop, seconds": min(times["bare loop"])
        }

    def knapsack(self) -> dict[str, Any]:
        """Time a search by the gradients that it takes a second, as a part of the bare loop's."""
        attack = self._searching()
        times = interleaved(
            {"bare": self.floor(), "search": lambda: attack.generate(self.x, self.y)}, self._args.repeats
        )
        bare = self._args.steps * len(self.x) / min(times["bare"])
        ours = attack.gradients_ * len(self.x) / min(times["search"])
        function = Passes(self.classifier.model.eval())
        x, y = (torch.from_numpy(part).to(self.device) for part in (self.x, self.y))
        least_distances(function, x, y, max_iter=self._args.search, batch_size=self._args.batch_size)
        fill = sum(rows * times for rows, times in function.counts.items()) / function.counts.total()
        return {
            "gradients a sample": attack.gradients_,
            "gradients a second": ours,
            "of the bare loop's": ours / bare,
            "fill of the passes": fill / self._args.batch_size,
        }

    def tuned(self) -> dict[str, Any]:
        """Time W-PGD and a search with `cudnn.benchmark` as multiples of the times without."""
        runs: dict[str, Callable[[], object]] = {
            "W-PGD, ReDLR": self.w_pgd(),
            "knapsack": partial(self._searching().generate, self.x, self.y),
        }
        found = {}
        before = torch.backends.cudnn.benchmark
        for name, run in runs.items():
            seconds = []
            for benchmark in (False, True):
                torch.backends.cudnn.benchmark = benchmark
                run()
                seconds.append(timed(run)[1])
            found[name] = seconds[1] / seconds[0]
        torch.backends.cudnn.benchmark = before
        return found

    def _searching(self) -> WassersteinKnapsack:
        return WassersteinKnapsack(
            self.classifier, eps=EPS, max_iter=self._args.search, batch_size=self._args.batch_size, verbose=False
        )

    def training(self) -> dict[str, Any]:
        """Count images a second of our trainer and of TRADES written by hand."""
        size, steps = self._args.batch_size, self._args.steps // 2
        x, y = (torch.from_numpy(part[:size]).to(self.device) for part in (self.x, self.y))
        contestants: dict[str, Callable[[], object]] = {
            "TRADES by hand, float32": lambda: self._by_hand(x, y, steps, None),
            "TRADES by hand, all in bfloat16": lambda: self._by_hand(x, y, steps, torch.bfloat16),
        }
        held = []
        for name, setting in TRAINERS.items():
            options = dict(setting)
            classifier = self._copied(options.pop("channels_last", False))
            trainer = DistributionalTRADESTrainer(classifier, eps=EPS, max_iter=steps, verbose=False, **options)
            updates = Updates(classifier, trainer._common)
            method = trainer._method(updates, Shuffled(x.cpu(), y.cpu(), size, drop_last=False, seed=0))
            held.append(updates.prepared())
            held[-1].__enter__()
            contestants[name] = partial(method.step, x, y, "the benchmark")
        times = interleaved(contestants, self._args.repeats)
        for context in held:
            context.__exit__(None, None, None)
        return {name: size / min(seconds) for name, seconds in times.items()}

    def _by_hand(self, x: Tensor, y: Tensor, steps: int, dtype: torch.dtype | None) -> None:
        model, optimiser = self.classifier.model.eval(), self.classifier.optimizer
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            adversarial = x
            for _ in range(steps):
                batch = adversarial.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(cross_entropy(model(batch), y, reduction="sum"), batch)
                moved = torch.clamp(adversarial + EPS / 4 * gradient.sign(), x - EPS, x + EPS)
                adversarial = moved.clamp(0.0, 1.0)
            model.train()
            clean, attacked = model(x).float(), model(adversarial).float()
        optimiser.zero_grad()
        torch.autograd.backward(cross_entropy(clean, y) + BETA * kl_consistency(clean, attacked))
        optimiser.step()
        model.eval()

    def utilisation(self) -> dict[str, Any]:
        """Return the bare loop's operations a second, and those of a product of large matrices."""
        x, y = (torch.from_numpy(part[: self._args.batch_size]).to(self.device) for part in (self.x, self.y))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.classifier.model(x)
        bare_loop(self.classifier.model, x, y, 3)
        seconds = timed(lambda: bare_loop(self.classifier.model, x, y, 10))[1] / 10
        # a gradient by the inputs takes as many again as the forward pass
        found = {"bare loop, TFLOP/s": 2 * counter.get_total_flops() / seconds / 1e12}
        side = 512 if self.device.type == "cpu" else 8192
        for dtype in (torch.float32, torch.bfloat16):
            matrix = torch.rand(side, side, device=self.device).to(dtype)
            torch.mm(matrix, matrix)
            seconds = timed(partial(_products, matrix, 5))[1] / 5
            found[f"matrices, {dtype}, TFLOP/s"] = 2 * side**3 / seconds / 1e12
        return found


def _products(matrix: Tensor, times: int) -> None:
    for _ in range(times):
        torch.mm(matrix, matrix)


def tests(args: argparse.Namespace) -> dict[str, Any]:
    """Run the tests on the device, in a process of their own."""
    workers = ["-n", str(max(1, (os.cpu_count() or 1) - 2)), "--dist", "worksteal"]
    chosen = ["tests/test_speed.py", "-k", "elsewhere"]
    if not args.quick:
        chosen = ["tests", "-m", "not slow", "--device", "cuda", "--tb", "short", *workers]
    line = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", *chosen]
    left = None if args.quick else 60 * args.minutes / 2
    try:
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=left)
        lines = done.stdout.splitlines()
    except subprocess.TimeoutExpired as error:
        lines = (error.stdout or b"").decode().splitlines()
        lines.append(f"stopped after {left} seconds")
    if args.out is not None:
        write_text(args.out / "tests.txt", "\n".join(lines))
    return {"failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))], "end": lines[-1:]}


def parts(args: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the parts by name, in order; networks are made when they are first needed."""
    benches: dict[str, Bench] = {}

    def on(name: str, what: str) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            if name not in benches:
                torch.manual_seed(0)
                model, shape = networks(args)[name]
                images = None if name != small or args.data_dir is None else load("cifar10", args.data_dir, train=False)
                benches[name] = Bench(model, shape, images, args)
            found: dict[str, Any] = getattr(benches[name], what)()
            return found

        return run

    small, large = networks(args)
    return {
        "tests": lambda: tests(args),
        **{f"{what}, {small}": on(small, what) for what in SMALL},
        **{f"{what}, {large}": on(large, what) for what in LARGE},
    }


def networks(args: argparse.Namespace) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Return the two networks and the shapes of their images, by name."""
    if args.quick:
        return {"two convolutions": (small_cnn(1, 10, 8), (1, 8, 8)), "ResNet": (wide_resnet(1, 1), (3, 8, 8))}
    first: nn.Module = wide_resnet(2, 4, stem=64, stages=4)
    if args.network is not None:
        first = load_network(args.network)
    return {"ResNet-18": (first, (3, 32, 32)), "WRN-28-10": (wide_resnet(4, 10), (3, 32, 32))}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = command(__doc__)
    found.add_argument("--minutes", type=float, default=8.0, help="a part is begun only in the first so many")
    found.add_argument("--out", type=Path, help="folder of the parts' files")
    found.add_argument("--network", help="a network for CIFAR-10, module:function or a file")
    found.add_argument("--data-dir", type=Path, help="folder with its test.npz")
    found.add_argument("--parts", nargs="+", help="beginnings of the names of parts; all without")
    found.add_argument("--samples", type=int, default=1024)
    found.add_argument("--batch-size", type=int, default=256)
    found.add_argument("--steps", type=int, default=20)
    found.add_argument("--search", type=int, default=100, help="gradients of a search")
    found.add_argument("--repeats", type=int, default=3)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts one after another."""
    quick = {"samples": 24, "batch_size": 8, "steps": 2, "search": 30, "repeats": 1}
    args = parsed(parser(), arguments, **quick)
    started, found = time.monotonic(), {}
    print(machine())
    shown = Table("part", "what", "figure")
    chosen = tuple(args.parts or [""])
    for name, run in parts(args).items():
        if not name.startswith(chosen):
            continue
        file = None if args.out is None else args.out / f"{name.replace(', ', '-').replace(' ', '-')}.json"
        if file is not None and file.exists():
            found[name] = json.loads(file.read_text(encoding="utf-8"))
        elif time.monotonic() - started > 60 * args.minutes:
            shown.row(name, "not begun")
            continue
        else:
            found[name] = run()
            if file is not None:
                write_text(file, json.dumps(found[name], indent=1))
        for what, figure in found[name].items():
            shown.row(name, what, f"{figure:.3g}" if isinstance(figure, float) else figure)
    keep(args.json, {"machine": str(machine()), "parts": found})


if __name__ == "__main__":
    main()
