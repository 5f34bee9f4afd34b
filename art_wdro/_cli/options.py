# SPDX-License-Identifier: MIT
"""Options that commands share, and the data and networks that they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from art_wdro._cli.checks import check_eps, fraction
from art_wdro._host.precision import PRECISIONS
from art_wdro._sources.data import Split, load_data
from art_wdro._sources.networks import channels_taken, load_network, wrap
from art_wdro._sources.robustbench import SHAPES
from art_wdro._threat.geometry import GROUND_NORMS
from art_wdro.evaluation._report import empty_figure
from art_wdro.trainers._common import UPDATE_PRECISIONS
from art_wdro.trainers._consistency import CONSISTENCIES
from art_wdro.trainers._transforms import Augment, shift_and_flip

Command = Callable[..., None]
NORMS = ", ".join(f"{r:g}" for r in GROUND_NORMS)
PATH = click.Path(path_type=Path, dir_okay=False)


AUGMENTS: dict[str, Callable[[], Augment | None]] = {"none": lambda: None, "shift-and-flip": shift_and_flip}
"""Augmentations of minibatches by name."""
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, int], LRScheduler | None]] = {
    "constant": lambda optimiser, steps: None,
    "cosine": CosineAnnealingLR,
    "one-cycle": lambda optimiser, steps: OneCycleLR(
        optimiser, optimiser.param_groups[0]["lr"], total_steps=steps, cycle_momentum=False
    ),
}
"""Schedulers by name, of an optimiser and the number of minibatches."""


class Number(click.ParamType):  # type: ignore[type-arg]
    """A number, a fraction such as 8/255, or inf."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the number."""
        try:
            return fraction(str(value))
        except ValueError:
            self.fail(f"{value!r} is no number; allowed are numbers, fractions such as 8/255, and inf", param, ctx)


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """Read the numbers."""
        if isinstance(value, list):
            return value
        return [Number().convert(part, param, ctx) for part in str(value).split(",")]


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
    click.option("--allow-large-eps", is_flag=True, help="Take a budget with which any input can become any other."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed."),
    click.option("--device", help="A torch device; by default CUDA where it is."),
    click.option("--json", "json_file", type=PATH, help="File for the figures, kept up to date as they come."),
)
SHARED = combined(
    click.option(
        "--model", required=True, help="module:function, a file .pt2, .onnx or TorchScript, or robustbench:NAME."
    ),
    click.option("--weights", type=PATH, help="State dict for the network."),
    click.option("--dataset", default="cifar10", show_default=True, help="RobustBench's data set."),
    click.option("--threat-model", default="Linf", show_default=True, help="RobustBench's threat model."),
    click.option("--data", required=True, help="File .npz with x and y, torchvision:NAME, or a folder of images."),
    click.option("--image-size", type=click.IntRange(1), help="Resize and crop the images of a folder."),
    click.option(
        "--channels", type=click.Choice(["1", "3"]), help="Of a folder's images; by default what the network takes."
    ),
    click.option("--mean", type=Numbers(), help="Subtracted first, as 0.49,0.48,0.45: for a network that wants it."),
    click.option("--std", type=Numbers(), help="What inputs are divided by then, as 0.25,0.24,0.26."),
    click.option(
        "--samples",
        type=click.IntRange(1),
        help="Use so many, drawn at random; evaluate draws each class in proportion.",
    ),
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

RECIPE = combined(
    click.option(
        "--augment",
        type=click.Choice(list(AUGMENTS)),
        default="none",
        show_default=True,
        help="Shift every image by up to 4 pixels and flip half of them.",
    ),
    click.option(
        "--schedule",
        type=click.Choice(list(SCHEDULES)),
        default="constant",
        show_default=True,
        help="Learning rate by minibatch: as given, falling to 0 by a cosine, or in one cycle up to it and down.",
    ),
    click.option("--ema", type=Number(), help="Weight of the past in averaged weights, such as 0.999."),
    click.option(
        "--weight-perturbation", type=Number(), default=0, show_default=True, help="Of AWP, such as 0.005; 0 for none."
    ),
    click.option("--max-grad-norm", type=Number(), help="Norm to which a longer gradient is cut."),
    click.option("--precision", type=click.Choice(list(PRECISIONS)), default="float32", show_default=True),
    click.option(
        "--update-precision",
        type=click.Choice(list(UPDATE_PRECISIONS)),
        default="float32",
        show_default=True,
        help="Number format of the updates' passes; --precision is that of the attack's.",
    ),
    click.option("--logdir", "summary_writer", help="Folder for TensorBoard."),
    click.option("--checkpoint-minutes", type=Number(), help="Save the run inside of an epoch, too."),
)


def scheduler_of(name: str, optimiser: torch.optim.Optimizer, steps: int) -> LRScheduler | None:
    """Return the scheduler that the option names, for a run of so many minibatches."""
    return SCHEDULES[name](optimiser, steps) if steps > 0 else None


def read(arguments: dict[str, Any], train: bool = False) -> tuple[Split, nn.Module]:
    """Read the data and the network that the options name, a folder's images with the channels that it takes."""
    source = arguments["data"]
    channels = None if arguments["channels"] is None else int(arguments["channels"])
    where = {"directory": arguments["data_dir"], "download": arguments["download"], "size": arguments["image_size"]}
    data = load_data(source, train, channels=channels, **where)
    keys = ("weights", "device", "model_dir", "dataset", "threat_model", "trust")
    network = load_network(arguments["model"], **{key: arguments[key] for key in keys})
    if channels is None and Path(source).is_dir():
        taken = channels_taken(network, data.x.shape[2:])
        if taken not in (None, data.x.shape[1]):
            data = load_data(source, train, channels=taken, **where)
    return data, network


def read_classifier(arguments: dict[str, Any], network: nn.Module, data: Split, **more: Any) -> PyTorchClassifier:
    """Wrap a network for inputs of the data's shape, standardised as the options say.

    :raises ValueError: If mean or std is given alone, or the budget is no budget for such inputs.
    """
    mean, std = arguments["mean"], arguments["std"]
    if (mean is None) != (std is None):
        raise ValueError("mean and std are given one without the other; needed are both or none")
    shape = data.x.shape[1:]
    doubt = check_eps(arguments["eps"], arguments["norm"], shape, arguments["allow_large_eps"])
    if doubt is not None:
        click.echo(f"Warning: {doubt}", err=True)
    if arguments["model"].startswith("robustbench:"):
        shape = SHAPES[arguments["dataset"]][0]
    standardisation = None if mean is None else (mean, std)
    return wrap(network, shape, device=arguments["device"], standardisation=standardisation, **more)


def check_figure(path: Path) -> None:
    """Refuse a figure that cannot be drawn, before any work is done for it.

    :raises ValueError: If its ending is no format of matplotlib.
    :raises ImportError: If matplotlib is not installed.
    """
    endings = empty_figure().canvas.get_supported_filetypes()
    if path.suffix and path.suffix[1:] not in endings:
        raise ValueError(f"figure is '{path}'; allowed endings are {', '.join('.' + ending for ending in endings)}")
