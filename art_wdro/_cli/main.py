# SPDX-License-Identifier: MIT
"""The command line `art-wdro`: its commands, and what every error looks like. Needs the extra `cli`."""

from __future__ import annotations

import click

from art_wdro._cli.errors import leaving_with_one_line
from art_wdro._cli.evaluate import evaluate
from art_wdro._cli.finetune import finetune
from art_wdro._cli.reproduce import reproduce
from art_wdro._version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="art-wdro")
def cli() -> None:
    """Distributional (Wasserstein) robustness: evaluate and fine-tune PyTorch classifiers."""


for command in (evaluate, finetune, reproduce):
    cli.add_command(command)


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Train, fine-tune and evaluate a small network on real digits."""
    from art_wdro._cli.demo import main as run_demo

    run_demo(list(arguments), prog="art-wdro demo")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit code 2 and one line for an error, 130 after Ctrl-C."""
    with leaving_with_one_line("art-wdro"):
        try:
            cli.main(args=arguments, prog_name="art-wdro", standalone_mode=False)
        except click.Abort:
            raise KeyboardInterrupt from None
        except click.ClickException as error:
            raise ValueError(error.format_message()) from error
