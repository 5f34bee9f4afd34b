# SPDX-License-Identifier: MIT
"""The command line `art-wdro`: evaluate, finetune, reproduce, demo. Thin over the package; needs the extra `cli`."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from art.exceptions import EstimatorError
from click.core import ParameterSource

from art_wdro._cli_options import (
    PATH,
    PLACES,
    SHARED,
    TRAINING,
    Number,
    check_figure,
    read_classifier,
    read_data,
    writable,
)
from art_wdro._data import Split, draw
from art_wdro._evaluation import evaluate as run_evaluation
from art_wdro._experiments import Laboratory
from art_wdro._files import write_atomically, write_text
from art_wdro._fine_tuner import ON_NONFINITE
from art_wdro._margin_trainer import WassersteinMarginTrainer
from art_wdro._protocol import Protocol
from art_wdro._report import Row
from art_wdro._reproduce import TARGETS, Reproduction
from art_wdro._starts import perturb_weights, reinitialise_last_layer
from art_wdro._trainer import UPSILON_ESTIMATES, DistributionalTRADESTrainer
from art_wdro._version import __version__

TRAINERS = {"trades": DistributionalTRADESTrainer, "margin": WassersteinMarginTrainer}
TUNING = ("beta", "gamma", "max_iter", "eta", "upsilon", "consistency")
"""Parameters of trainers beside the threat and the seed."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="art-wdro")
def cli() -> None:
    """Distributional (Wasserstein) robustness: evaluate and fine-tune PyTorch classifiers."""


@cli.command()
@SHARED
@click.option("--knapsack-iter", type=click.IntRange(1), default=300, show_default=True, help="Gradients a sample.")
@click.option("--autoattack/--no-autoattack", default=None, help="By default where it is installed.")
@click.option("--certified/--no-certified", default=None, help="Certified accuracy; by default for small networks.")
@click.option("--markdown", "markdown_file", type=PATH, help="File for the table in Markdown.")
@click.option("--figure", "figure_file", type=PATH, help="File for the curve of accuracy over eps.")
@click.option("--arrays", "arrays_file", type=PATH, help="File .npz for inputs, labels and adversarial arrays.")
def evaluate(
    json_file: Path | None,
    markdown_file: Path | None,
    figure_file: Path | None,
    arrays_file: Path | None,
    knapsack_iter: int,
    autoattack: bool | None,
    certified: bool | None,
    **arguments: Any,
) -> None:
    """Evaluate a network: clean, W_inf, and W_p by W-PGD and the knapsack."""
    files = writable(json=json_file, markdown=markdown_file, figure=figure_file, arrays=arrays_file)
    if figure_file is not None:
        check_figure(figure_file)
    whole = read_data(arguments)
    indices = draw(len(whole.x), arguments["samples"], arguments["seed"])
    data = whole.choose(indices)
    classifier = read_classifier(arguments, data)
    setting = {key: str(arguments[key]) for key in ("model", "data", "p", "norm", "eps", "seed")}
    rows: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {"x": data.x, "y": data.y, "indices": indices}

    def keep(row: Row, adversarial: np.ndarray) -> None:
        rows.append(row.to_dict())
        if json_file is not None:
            write_text(json_file, json.dumps({"setting": setting, "attacks": rows, "complete": False}, indent=1))
        if arrays_file is not None:
            arrays[row.attack] = adversarial
            _save_arrays(arrays, arrays_file)

    with warnings.catch_warnings(), _telling(files):
        warnings.simplefilter("ignore", UserWarning)  # the report prints them
        report = run_evaluation(
            classifier,
            data.x,
            data.y,
            p=arguments["p"],
            norm=arguments["norm"],
            eps=arguments["eps"],
            batch_size=arguments["batch_size"],
            knapsack_iter=knapsack_iter,
            autoattack=autoattack,
            certified=certified,
            on_row=keep,
        )
    click.echo(str(report))
    if json_file is not None:
        found = report.to_dict() | {"setting": setting, "indices": indices.tolist(), "complete": True}
        write_text(json_file, json.dumps(found, indent=1, allow_nan=False))
    if markdown_file is not None:
        write_text(markdown_file, report.to_markdown() + "\n")
    if figure_file is not None:
        write_atomically(figure_file, report.save_figure)


@cli.command()
@SHARED
@TRAINING
@click.option(
    "--trainer",
    type=click.Choice(list(TRAINERS)),
    default="trades",
    show_default=True,
    help="trades: the training paper's; margin: WassersteinMarginTrainer, by default with beta 1.5 and max-iter 10.",
)
@click.option("--out", type=PATH, required=True, help="File for the state dict of the best epoch.")
@click.option("--validation", type=click.IntRange(0), default=1000, show_default=True, help="Samples held out.")
@click.option("--learning-rate", type=Number(), default=0.01, show_default=True)
@click.option("--start", type=click.Choice(["none", "perturb", "last-layer"]), default="none", show_default=True)
@click.option("--eta", type=Number(), default=1, show_default=True, help="Update rate of Upsilon.")
@click.option("--upsilon", type=click.Choice(UPSILON_ESTIMATES), default="streaming", show_default=True)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Save the run after every epoch, and go on from it if it is there.",
)
def finetune(
    json_file: Path | None,
    trainer: str,
    out: Path,
    validation: int,
    epochs: int,
    learning_rate: float,
    start: str,
    checkpoint: Path | None,
    **arguments: Any,
) -> None:
    """Fine-tune a network against a distributional threat; the best epoch so far is always on disk."""
    files = writable(json=json_file, out=out, checkpoint=checkpoint)
    options = _options_of(trainer, arguments)
    data = read_data(arguments, train=True)
    data = data.choose(np.random.default_rng(arguments["seed"]).permutation(len(data.x))[: arguments["samples"]])
    if validation >= len(data.x):
        raise ValueError(f"validation is {validation}; allowed is less than the {len(data.x)} samples")
    held, train = Split(data.x[:validation], data.y[:validation]), Split(data.x[validation:], data.y[validation:])
    classifier = read_classifier(arguments, data, learning_rate=learning_rate)
    torch.manual_seed(arguments["seed"])
    if start == "perturb":
        perturb_weights(classifier, seed=arguments["seed"])
    if start == "last-layer":
        reinitialise_last_layer(classifier, seed=arguments["seed"])
    tuner = TRAINERS[trainer](classifier, **options)
    setting = {"trainer": trainer, **{name: str(value) for name, value in options.items()}}

    def keep(record: dict[str, Any], best: bool) -> None:
        if best or not validation:
            _save(classifier, out)
        if json_file is not None:
            write_text(json_file, json.dumps({**setting, "history": tuner.history, "complete": False}, indent=1))

    with _telling(files):
        tuner.fit(
            *train,
            validation_data=held if validation else None,
            batch_size=arguments["batch_size"],
            nb_epochs=epochs,
            checkpoint=checkpoint,
            on_epoch=keep,
        )
    _save(classifier, out)
    if json_file is not None:
        found = {**setting, "history": tuner.history, "best_epoch": tuner.best_epoch, "complete": True}
        write_text(json_file, json.dumps(found, indent=1))
    for record in tuner.history:
        shown = ("epoch", "loss", "clean_accuracy", "winf_accuracy", "wp_accuracy")
        click.echo("  ".join(f"{k} {record[k]:.4g}" for k in shown if record[k] is not None))
    click.echo(f"Saved {out}, epoch {tuner.best_epoch}")


def _options_of(trainer: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments of a trainer.

    Defaults are those of the paper's trainer, so another one takes only what was given.

    :raises ValueError: If an option was given that the trainer does not have.
    """
    context = click.get_current_context()
    defaults = {name for name in TUNING if context.get_parameter_source(name) is ParameterSource.DEFAULT}
    wanted = [name for name in TUNING if trainer == "trades" or name not in defaults]
    refused = [name for name in wanted if name not in signature(TRAINERS[trainer]).parameters]
    if refused:
        names = ", ".join("--" + name.replace("_", "-") for name in refused)
        raise ValueError(f"trainer is {trainer}, which does not have {names}; give them with --trainer trades only")
    return {name: arguments[name] for name in ("p", "norm", "eps", "seed", *wanted)}


@cli.command()
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
    files = writable(json=json_file, out=out / f"{targets[0]}.json")
    if any(target.startswith("fig") for target in targets):
        check_figure(Path("figure.png"))
    places = {name: arguments.pop(name) for name in ("data_dir", "download", "model_dir", "device", "keep_weights")}
    trainer = {name: arguments.pop(name) for name in ("gamma", "consistency", "on_nonfinite")}
    laboratory = Laboratory(Protocol(**arguments, trainer=trainer), out, **places)
    reproduction = Reproduction(laboratory, targets, out, range(seed, seed + seeds), network)
    with _telling(files):
        shown = reproduction.run()
    if json_file is not None:
        write_text(json_file, json.dumps(shown, indent=1))
    for target in targets:
        table, figure = out / f"{target}.md", out / f"{target}.png"
        click.echo(f"## {target}\n\n{table.read_text(encoding='utf-8') if table.is_file() else figure}")


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Train, fine-tune and evaluate a small network on real digits."""
    try:
        from art_wdro._demo import main as run_demo
    except ImportError as error:
        raise ImportError(f"the demo needs more packages ({error}): pip install 'art-wdro[demo]'") from error
    run_demo(list(arguments), prog="art-wdro demo")


@contextmanager
def _telling(files: list[Path]) -> Iterator[None]:
    """Say after Ctrl-C where the finished parts are."""
    try:
        yield
    except KeyboardInterrupt:
        there = [str(path) for path in files if path.exists()]
        click.echo(f"finished parts are in {', '.join(there)}" if there else "no part was saved", err=True)
        raise


def _save_arrays(arrays: dict[str, Any], file: Path) -> None:
    def write(path: Path) -> None:
        with path.open("wb") as stream:  # NumPy would add an ending to a name
            np.savez(stream, **arrays)

    write_atomically(file, write)


def _save(classifier: Any, out: Path) -> None:
    write_atomically(out, lambda path: torch.save(classifier.model.state_dict(), path))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit code 2 and one line for a usage error, 130 after Ctrl-C."""
    try:
        cli.main(args=arguments, prog_name="art-wdro", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        click.echo("art-wdro: interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        click.echo(f"art-wdro: {error.format_message()}", err=True)
        sys.exit(2)
    except (ValueError, TypeError, OSError, ImportError, EstimatorError, FloatingPointError) as error:
        click.echo(f"art-wdro: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
