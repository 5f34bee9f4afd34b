# SPDX-License-Identifier: MIT
"""`art-wdro compare`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from art_wdro._cli.outputs import save_text, writable
from art_wdro.evaluation._compare import compare as run_comparison
from art_wdro.evaluation._loaded import load_report

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the draws.")
@click.option("--json", "json_file", type=FILE, help="File for what changed.")
def compare(first: Path, second: Path, seed: int, json_file: Path | None) -> None:
    """Compare two reports: what changed beyond the sampling error of the images."""
    writable(json=json_file)
    found = run_comparison(load_report(first), load_report(second), seed)
    click.echo(str(found))
    save_text(json_file, json.dumps(found.to_dict(), indent=1))
