# SPDX-License-Identifier: MIT
"""`art-wdro reproduce`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from art_wdro._cli.checks import check_eps
from art_wdro._cli.options import PLACES, TRAINING, check_figure
from art_wdro._cli.outputs import save_text, telling, writable
from art_wdro._reproduction.laboratory import Laboratory
from art_wdro._reproduction.protocol import Protocol
from art_wdro._reproduction.reproduction import TARGETS, Reproduction
from art_wdro.trainers._common import ON_NONFINITE
from art_wdro.trainers._trades import UPSILON_ESTIMATES


@click.command()
@click.argument("targets", nargs=-1, type=click.Choice(TARGETS), metavar="[TARGET]...")
@click.option("--all", "everything", is_flag=True, help="All tables and figures.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="runs/reproduce", show_default=True)
@click.option("--network", help="Network in place of the paper's: what --model of evaluate takes.")
@click.option("--data", default="torchvision:CIFAR10", show_default=True, help="Training images, as for finetune.")
@click.option("--test-data", help="Test images; without them a sixth of a file or folder is held out.")
@click.option("--train-samples", type=click.IntRange(1), default=40000, show_default=True)
@click.option("--validation-samples", type=click.IntRange(1), default=10000, show_default=True)
@click.option("--test-samples", type=click.IntRange(1), help="A random part; by default all.")
@click.option(
    "--strong-samples", type=click.IntRange(0), default=0, show_default=True, help="Test images for knapsack."
)
@click.option("--autoattack/--no-autoattack", default=None, help="On these too; by default where it is installed.")
@TRAINING
@click.option("--batch-size", type=click.IntRange(1), default=512, show_default=True)
@click.option("--upsilon", type=click.Choice(UPSILON_ESTIMATES), default="resample", show_default=True)
@click.option("--on-nonfinite", type=click.Choice(ON_NONFINITE), default="raise", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Fine-tunings of a configuration.")
@click.option("--keep-weights", is_flag=True, help="Keep the fine-tuned networks.")
@PLACES
def reproduce(
    targets: tuple[str, ...],
    everything: bool,
    out: Path,
    network: str | None,
    seed: int,
    seeds: int,
    json_file: Path | None,
    **arguments: Any,
) -> None:
    """Reproduce tables and figures of arXiv:2502.09352, the published figures beside ours.

    TARGET is table1 to table11 or fig7.1 to fig7.4. Every cell is kept in the folder --out as soon as it is done, and a
    fine-tuning after every epoch: started again, the command goes on where it stopped.
    """
    targets = TARGETS if everything else targets
    if not targets:
        raise click.UsageError(f"no target; allowed are {', '.join(TARGETS)} and --all")
    check_eps(arguments["eps"], math.inf, (), arguments.pop("allow_large_eps"))
    files = writable(json=json_file, out=out / f"{targets[0]}.json")
    if any(target.startswith("fig") for target in targets):
        check_figure(Path("figure.png"))
    names = ("data_dir", "download", "model_dir", "device", "trust", "keep_weights")
    places = {name: arguments.pop(name) for name in names}
    trainer = {name: arguments.pop(name) for name in ("gamma", "consistency", "on_nonfinite")}
    laboratory = Laboratory(Protocol(**arguments, trainer=trainer), out, **places)
    reproduction = Reproduction(laboratory, targets, out, range(seed, seed + seeds), network)
    with telling(files):
        shown = reproduction.run()
    save_text(json_file, json.dumps(shown, indent=1))
    for target in targets:
        table, figure = out / f"{target}.md", out / f"{target}.png"
        click.echo(f"## {target}\n\n{table.read_text(encoding='utf-8') if table.is_file() else figure}")
