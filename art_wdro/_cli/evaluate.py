# SPDX-License-Identifier: MIT
"""`art-wdro evaluate`."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from art_wdro._cli.checks import chance_warning
from art_wdro._cli.options import PATH, SHARED, check_figure, read, read_classifier
from art_wdro._cli.outputs import save, save_text, telling, writable
from art_wdro.evaluation._evaluate import evaluate as run_evaluation
from art_wdro.evaluation._report import Row
from art_wdro.evaluation._subset import stratified


@click.command()
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
    whole, network = read(arguments)
    samples, seed = arguments["samples"], arguments["seed"]
    indices = np.arange(len(whole.x)) if samples is None else stratified(whole.y, samples, seed)
    data = whole.choose(indices)  # the part that the evaluation draws
    classifier = read_classifier(arguments, network, data)
    told = ("model", "data", "p", "norm", "eps", "seed", "mean", "std")
    setting = {key: str(arguments[key]) for key in told if arguments[key] is not None}
    rows: list[dict[str, Any]] = []
    doubts: list[str] = []
    arrays: dict[str, Any] = {"x": data.x, "y": data.y, "indices": indices}

    def keep(row: Row, adversarial: np.ndarray) -> None:
        if row.order is None and (doubt := chance_warning(row.accuracy, data.y, classifier.nb_classes)):
            doubts.append(doubt)
            click.echo(f"Warning: {doubt}", err=True)  # before the long part
        rows.append(row.to_dict())
        save_text(json_file, json.dumps({"setting": setting, "attacks": rows, "complete": False}, indent=1))
        if arrays_file is not None:
            arrays[row.attack] = adversarial
            save(arrays_file, partial(_write_arrays, arrays))

    with warnings.catch_warnings(), telling(files):
        warnings.simplefilter("ignore", UserWarning)  # the report prints them
        report = run_evaluation(
            classifier,
            whole.x,
            whole.y,
            p=arguments["p"],
            norm=arguments["norm"],
            eps=arguments["eps"],
            batch_size=arguments["batch_size"],
            knapsack_iter=knapsack_iter,
            autoattack=autoattack,
            certified=certified,
            on_row=keep,
            samples=samples,
            seed=seed,
        )
    report = replace(report, warnings=(*doubts, *report.warnings))
    click.echo(str(report))
    found = report.to_dict() | {"setting": setting, "indices": indices.tolist(), "complete": True}
    save_text(json_file, json.dumps(found, indent=1, allow_nan=False))
    save_text(markdown_file, report.to_markdown() + "\n")
    save(figure_file, report.save_figure)


def _write_arrays(arrays: dict[str, Any], path: Path) -> None:
    with path.open("wb") as stream:  # NumPy would add an ending to a name
        np.savez(stream, **arrays)
