"""The command line: `granary demo | curate | render | sample | pack | ...`, each with `--help`.

A recipe's fields are options: `--dedup.threshold 0.9`. What follows `--` goes to Beam. A command's module is imported
when it is used.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from granary.curation.errors import UserError
from granary.pipelines.cli.failures import end_at_once, status_of
from granary.pipelines.cli.plain_command import SETTINGS, VARIABLE, debug_option


class Command(NamedTuple):
    """What is known of a command before it is imported.

    Args:
        module: of granary.pipelines.cli, which has the command under its own name.
        text: what it does.
    """

    module: str
    text: str


COMMANDS = {
    "demo": Command("demos", "show what granary does, on data that comes with it"),
    "curate": Command("kinds", "curate a pool of images: deduplicate, remove leaks, retrieve what resembles seeds"),
    "render": Command("kinds", "render a grid of factors through UnrealCV, or the embedded world"),
    "sample": Command("kinds", "sample a diffusion model under the feedback of a classifier"),
    "pack": Command("kinds", "pack images with mask-aligned descriptions into dense captions"),
    "train": Command("models", "train a model on the dataset of a run"),
    "evaluate": Command("models", "measure a model by protocols"),
    "results": Command("models", "show the scores of several models side by side"),
    "compare": Command("models", "compare models on the same pictures: CKA, probes of all layers, attention"),
    "partition": Command("models", "write a dataset with disjoint parts, to find out what models know by heart"),
    "environments": Command("models", "write a dataset with the groups that trainings of xrm discovered"),
    "export": Command("models", "write a trained model in the format of transformers"),
    "encoders": Command("encoders", "list what turns pictures into vectors, with its speed on this machine"),
    "unreal": Command("demos", "serve the embedded world to any UnrealCV client"),
    "view": Command("view", "look at the pictures of a run in a browser"),
    "explain": Command("runs", "tell the story of one image of a run"),
    "report": Command("runs", "write the report of a run again, and print what the run cost"),
    "check": Command("runs", "compare the files of a run with what was written, and remove what is damaged"),
    "convert": Command("runs", "write the shards of a run as WebDataset tars"),
    "publish": Command("runs", "publish a dataset or a model on the Hugging Face Hub"),
    "schema": Command("shell", "print the JSON schema of a recipe, for editors"),
    "completion": Command("shell", "print the script that completes commands and options in a shell"),
}


class Commands(click.Group):
    """All commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of an overview."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"granary.pipelines.cli.{COMMANDS[cmd_name].module}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first word names; raises UserError when there is none."""
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            close = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
            raise UserError(f"there is no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each command does, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.text) for name, command in COMMANDS.items()])


def _print_version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        click.echo(f"granary {importlib.metadata.version('granary-data')}")
        ctx.exit()


granary = Commands(
    "granary",
    context_settings=SETTINGS,
    help="Curate, render, sample and caption image datasets, and train on them.",
    epilog="granary COMMAND --help tells more.",
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="show the version",
        ),
        debug_option(),
    ],
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 the run failed, 2 a mistake in the call, 130 interrupted."""
    if VARIABLE in os.environ and arguments is None:
        from click.shell_completion import shell_complete

        return shell_complete(granary, {}, "granary", VARIABLE, os.environ[VARIABLE])
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, format="%(levelname)s %(message)s")
    quiet_libraries()
    try:
        status = run([word for word in words if word != "--debug"] or ["--help"])
        sys.stdout.flush()  # a full disk behind stdout is told of here, and not when the interpreter ends
        return status
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # the last handler: no command ends in a traceback
        if isinstance(error, KeyboardInterrupt) and arguments is None:
            end_at_once(error)
        return status_of(error)


def run(words: Sequence[str]) -> int:
    """Run the command that words name; returns its exit status.

    Raises:
        UserError: the words are no call of it, or what the command raised.
    """
    try:
        with granary.make_context("granary", list(words)) as context:
            return int(granary.invoke(context) or 0)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as error:
        text = error.format_message().rstrip(".")
        path = error.ctx.command_path if error.ctx else "granary"
        raise UserError(f"command line: {text[:1].lower()}{text[1:]}; see {path} --help") from None


def quiet_libraries() -> None:
    """Keep progress bars and advice of libraries out of the terminal; must be called before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
