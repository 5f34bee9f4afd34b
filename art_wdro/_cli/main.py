# SPDX-License-Identifier: MIT
"""The command line `art-wdro`: its commands, each imported when it is run. Needs the extra `cli`."""

from __future__ import annotations

from importlib import import_module

import click

from art_wdro._cli.errors import leaving_with_one_line
from art_wdro._version import __version__

COMMANDS = {
    "compare": "Compare two reports: what changed beyond the sampling error of the images.",
    "demo": "Train, fine-tune and evaluate a small network on real digits.",
    "evaluate": "Evaluate a network: clean, W_inf, and W_p by W-PGD and the knapsack.",
    "finetune": "Fine-tune a network against a distributional threat; the best epoch so far is always on disk.",
    "reproduce": "Reproduce tables and figures of arXiv:2502.09352, the published figures beside ours.",
}
"""What `--help` says of the commands, which would take seconds to import."""


class Commands(click.Group):
    """A group whose commands are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS or cmd_name in self.commands:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(f"art_wdro._cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="With ART_WDRO_TRACEBACK=1 in the environment an error shows where it came from.",
)
@click.version_option(__version__, prog_name="art-wdro")
def cli() -> None:
    """Distributional (Wasserstein) robustness: evaluate and fine-tune PyTorch classifiers."""


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
