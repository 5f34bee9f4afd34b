# SPDX-License-Identifier: MIT
"""Options that commands share, and the data and networks that they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from art.estimators.classification import PyTorchClassifier

from art_wdro._sources.data import Split, load_data
from art_wdro._sources.networks import load_classifier
from art_wdro._threat.geometry import GROUND_NORMS
from art_wdro.evaluation._report import empty_figure
from art_wdro.trainers._consistency import CONSISTENCIES

Command = Callable[..., None]
NORMS = ", ".join(f"{r:g}" for r in GROUND_NORMS)
PATH = click.Path(path_type=Path, dir_okay=False)


class Number(click.ParamType):  # type: ignore[type-arg]
    """A number, a fraction such as 8/255, or inf."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the number."""
        try:
            above, _, below = str(value).partition("/")
            return float(above) / float(below or 1)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is no number; allowed are numbers, fractions such as 8/255, and inf", param, ctx)


def combined(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return the decorator that adds several options in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


PLACES = combined(
    click.option("--trust", is_flag=True, help="Read model files that can run code: TorchScript, some .pt2, pickles."),
    click.option("--model-dir", default="models", show_default=True, help="Where RobustBench keeps checkpoints."),
    click.option("--data-dir", default="data", show_default=True, help="Where torchvision finds data sets."),
    click.option("--download", is_flag=True, help="Let torchvision fetch the data set."),
    click.option("--eps", type=Number(), default="8/255", show_default=True, help="Budget, for inputs in [0, 1]."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed."),
    click.option("--device", help="A torch device; by default CUDA where it is."),
    click.option("--json", "json_file", type=PATH, help="File for the figures, kept up to date as they come."),
)
SHARED = combined(
    click.option("--model", required=True, help="A .pt2 or TorchScript file, module:function, or robustbench:NAME."),
    click.option("--weights", type=PATH, help="State dict for the network."),
    click.option("--dataset", default="cifar10", show_default=True, help="RobustBench's data set."),
    click.option("--threat-model", default="Linf", show_default=True, help="RobustBench's threat model."),
    click.option("--data", required=True, help="File .npz with x and y, torchvision:NAME, or a folder of images."),
    click.option("--image-size", type=click.IntRange(1), help="Resize and crop the images of a folder."),
    click.option("--samples", type=click.IntRange(1), help="Use a random subset."),
    click.option("--p", type=Number(), default=2, show_default=True, help="Order of the Wasserstein distance."),
    click.option(
        "--norm",
        type=Number(),
        default="inf",
        show_default=True,
        help=f"Ground norm: {NORMS}.",
    ),
    click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True),
    PLACES,
)
TRAINING = combined(
    click.option("--epochs", type=click.IntRange(0), default=20, show_default=True),
    click.option("--beta", type=Number(), default=6, show_default=True, help="Weight of the consistency term."),
    click.option("--gamma", type=Number(), default=0, show_default=True, help="Weight of the pointwise term."),
    click.option("--consistency", type=click.Choice(list(CONSISTENCIES)), default="kl", show_default=True),
    click.option("--max-iter", type=click.IntRange(1), default=20, show_default=True, help="Steps of the attack."),
)


def read_data(arguments: dict[str, Any], train: bool = False) -> Split:
    """Read the data that the options name."""
    keys = ("data_dir", "download", "image_size")
    return load_data(arguments["data"], train, *(arguments[key] for key in keys))


def read_classifier(arguments: dict[str, Any], data: Split, **more: Any) -> PyTorchClassifier:
    """Load the network that the options name, for inputs of the data's shape."""
    keys = ("weights", "device", "model_dir", "dataset", "threat_model", "trust")
    return load_classifier(arguments["model"], data.x.shape[1:], **{key: arguments[key] for key in keys}, **more)


def check_figure(path: Path) -> None:
    """Refuse a figure that cannot be drawn, before any work is done for it.

    :raises ValueError: If its ending is no format of matplotlib.
    :raises ImportError: If matplotlib is not installed.
    """
    endings = empty_figure().canvas.get_supported_filetypes()
    if path.suffix and path.suffix[1:] not in endings:
        raise ValueError(f"figure is '{path}'; allowed endings are {', '.join('.' + ending for ending in endings)}")
