# SPDX-License-Identifier: MIT
"""How far W-PGD is from the knapsack on networks that were trained to be robust, and how strong W-PGD can be made.

    python -m benchmarks.attacks.evaluation digits
    python -m benchmarks.attacks.evaluation cifar10 --data-dir DIR

trains the network if need be, evaluates it, and then tries settings of W-PGD.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

from art_wdro import WassersteinPGD, adversarial_accuracy, evaluate
from benchmarks.networks.robust import SETTINGS, load, robust_network

PAPER = (20, 1.0, "constant", "redlr")
GRID = [
    PAPER,
    (50, 1.875, "constant", "redlr"),
    (50, 4.0, "constant", "redlr"),
    (50, 1.875, "linear", "redlr"),
    (50, 4.0, "linear", "redlr"),
    (50, 8.0, "linear", "redlr"),
    (100, 4.0, "linear", "redlr"),
    (50, 4.0, "linear", "dlr"),
    (50, 4.0, "linear", "ce"),
]
"""Steps, their total length in eps, schedule and loss."""


def main() -> None:
    """Evaluate one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SETTINGS))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--no-autoattack", dest="autoattack", action="store_false", default=None)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # the report prints them
    classifier = robust_network(args.name, args.data_dir)
    data = load(args.name, args.data_dir, train=False)
    x, y, eps = data.x[: args.samples], data.y[: args.samples], SETTINGS[args.name].eps
    report = evaluate(classifier, x, y, eps=eps, batch_size=250, autoattack=args.autoattack)
    print(report.to_markdown())
    curve = {f"{share:g} eps": float(report.accuracy(share * eps)) for share in (0.25, 0.5, 0.75, 1.0)}
    print("Knapsack under W_2:", ", ".join(f"{100 * v:.1f} % at {k}" for k, v in curve.items()))

    print("\n| steps | total length / eps | schedule | loss | accuracy in % | seconds |\n" + "| --- " * 6 + "|")
    settings = []
    for steps, path, schedule, loss in GRID:
        attack = WassersteinPGD(
            classifier,
            eps=eps,
            eps_step=path * eps / steps,
            max_iter=steps,
            schedule=schedule,
            loss=loss,
            batch_size=250,
            verbose=False,
        )
        started = time.perf_counter()
        accuracy = adversarial_accuracy(classifier, x, y, attack)
        seconds = time.perf_counter() - started
        settings.append({"steps": steps, "path": path, "schedule": schedule, "loss": loss, "accuracy": accuracy})
        print(f"| {steps} | {path:g} | {schedule} | {loss} | {100 * accuracy:.1f} | {seconds:.1f} |", flush=True)
    if args.json:
        found = report.to_dict() | {"network": args.name, "curve": curve, "settings": settings}
        del found["distances"]
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
