# SPDX-License-Identifier: MIT
"""`art-wdro finetune`."""

from __future__ import annotations

import io
import json
import math
from inspect import signature
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from click.core import ParameterSource

from art_wdro._cli.checks import chance_warning
from art_wdro._cli.options import (
    AUGMENTS,
    PATH,
    RECIPE,
    SHARED,
    TRAINING,
    Number,
    read,
    read_classifier,
    scheduler_of,
)
from art_wdro._cli.outputs import save, save_text, telling, writable
from art_wdro._sources.data import Split
from art_wdro.attacks._pgd import WassersteinPGD
from art_wdro.evaluation._accuracy import adversarial_accuracy
from art_wdro.trainers._margin import WassersteinMarginTrainer
from art_wdro.trainers._starts import perturb_weights, reinitialise_last_layer
from art_wdro.trainers._trades import UPSILON_ESTIMATES, DistributionalTRADESTrainer

TRAINERS = {"trades": DistributionalTRADESTrainer, "margin": WassersteinMarginTrainer}
TUNING = ("beta", "gamma", "max_iter", "eta", "upsilon", "consistency")
"""Parameters of trainers beside the threat and the seed, whose defaults here are those of the paper's."""
OF_MARGIN = ("anchor",)
"""Those of the margin trainer alone."""
COMMON = ("precision", "update_precision", "ema", "weight_perturbation", "max_grad_norm", "summary_writer")
"""Those whose defaults are the same for all of them."""


@click.command()
@SHARED
@TRAINING
@click.option(
    "--trainer",
    type=click.Choice(list(TRAINERS)),
    default="trades",
    show_default=True,
    help="trades: the training paper's; margin: WassersteinMarginTrainer, by default with beta 0.5 and max-iter 10.",
)
@click.option("--out", type=PATH, required=True, help="File for the state dict of the best epoch.")
@click.option("--validation", type=click.IntRange(0), default=1000, show_default=True, help="Samples held out.")
@click.option("--learning-rate", type=Number(), default=0.01, show_default=True)
@click.option("--start", type=click.Choice(["none", "perturb", "last-layer"]), default="none", show_default=True)
@click.option("--eta", type=Number(), default=1, show_default=True, help="Update rate of Upsilon.")
@click.option("--anchor", type=Number(), default=1, show_default=True, help="For margin; 0 trains from scratch.")
@click.option("--upsilon", type=click.Choice(UPSILON_ESTIMATES), default="streaming", show_default=True)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Save the run after every epoch, and on SIGTERM, and go on from it if it is there.",
)
@RECIPE
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
    data, network = read(arguments, train=True)
    data = data.choose(np.random.default_rng(arguments["seed"]).permutation(len(data.x))[: arguments["samples"]])
    if validation >= len(data.x):
        raise ValueError(f"validation is {validation}; allowed is less than the {len(data.x)} samples")
    held, train = Split(data.x[:validation], data.y[:validation]), Split(data.x[validation:], data.y[validation:])
    classifier = read_classifier(arguments, network, data, learning_rate=learning_rate)
    torch.manual_seed(arguments["seed"])
    if start == "perturb":
        perturb_weights(classifier, seed=arguments["seed"])
    if start == "last-layer":
        reinitialise_last_layer(classifier, seed=arguments["seed"])
    tuner = TRAINERS[trainer](classifier, **options)
    before = _report_start(classifier, held, trainer, options)
    told = options | {name: arguments[name] for name in ("augment", "schedule")}
    setting = {"trainer": trainer, **{name: str(value) for name, value in told.items()}, "start": before}
    if before is not None and start == "none":  # a layer drawn anew may well guess
        doubt = chance_warning(before["clean_accuracy"], held.y, classifier.nb_classes)
        if doubt is not None:
            click.echo(f"Warning: {doubt}", err=True)

    def keep(record: dict[str, Any], best: bool) -> None:
        if best or not validation:
            _save_weights(classifier, out)
        save_text(json_file, json.dumps({**setting, "history": tuner.history, "complete": False}, indent=1))

    steps = epochs * math.ceil(len(train.x) / arguments["batch_size"])
    with telling(files):
        tuner.fit(
            *train,
            validation_data=held if validation else None,
            batch_size=arguments["batch_size"],
            nb_epochs=epochs,
            checkpoint=checkpoint,
            on_epoch=keep,
            augment=AUGMENTS[arguments["augment"]](),
            scheduler=scheduler_of(arguments["schedule"], classifier.optimizer, steps),
            scheduler_step="batch",
            checkpoint_minutes=arguments["checkpoint_minutes"],
        )
    _save_weights(classifier, out)
    found = {**setting, "history": tuner.history, "best_epoch": tuner.best_epoch, "complete": True}
    save_text(json_file, json.dumps(found, indent=1))
    for record in tuner.history:
        shown = ("epoch", "loss", "clean_accuracy", "winf_accuracy", "wp_accuracy")
        click.echo("  ".join(f"{k} {record[k]:.4g}" for k in shown if record[k] is not None))
    click.echo(f"Saved {out}, epoch {tuner.best_epoch}")


def _report_start(
    classifier: PyTorchClassifier, held: Split, trainer: str, options: dict[str, Any]
) -> dict[str, float] | None:
    """Print the accuracy before training, by the attack that validates each epoch; None without validation data."""
    if len(held.x) == 0:
        return None
    threat = {"max_iter": signature(TRAINERS[trainer]).parameters["max_iter"].default} | options
    attack = WassersteinPGD(
        classifier, **{name: threat[name] for name in ("p", "norm", "eps", "max_iter")}, verbose=False
    )
    figures = {
        "clean_accuracy": adversarial_accuracy(classifier, *held, eps=0.0),
        "wp_accuracy": adversarial_accuracy(classifier, *held, attack),
    }
    click.echo("start  " + "  ".join(f"{name} {figure:.4g}" for name, figure in figures.items()))
    return figures


def _options_of(trainer: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments of a trainer.

    Defaults are those of the paper's trainer, so another one takes only what was given.

    :raises ValueError: If an option was given that the trainer does not have.
    """
    context = click.get_current_context()
    known = TUNING + OF_MARGIN
    given = {name for name in known if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    wanted = [name for name in known if name in given or (trainer == "trades" and name in TUNING)]
    refused = [name for name in wanted if name not in signature(TRAINERS[trainer]).parameters]
    if refused:
        names = ", ".join("--" + name.replace("_", "-") for name in refused)
        raise ValueError(f"trainer is {trainer}, which does not have {names}; give it to the other one")
    writer = arguments["summary_writer"] or False
    return {name: arguments[name] for name in ("p", "norm", "eps", "seed", *COMMON, *wanted)} | {
        "summary_writer": writer
    }


def _save_weights(classifier: Any, out: Path) -> None:
    buffer = io.BytesIO()  # torch says of a full disk only that something failed
    # on the CPU, so that they load where there is no GPU
    torch.save({name: value.cpu() for name, value in classifier.model.state_dict().items()}, buffer)
    save(out, lambda path: path.write_bytes(buffer.getvalue()))
