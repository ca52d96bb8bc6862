"""What granary tells people to type exists: every command and every option that any message names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import click
import pytest
from places import ROOT

from granary.curation.errors import UserError
from granary.pipelines import command
from granary.pipelines.cli.models import evaluate
from granary.pipelines.cli.plain_command import SETTINGS, PlainCommand
from granary.pipelines.cli.recipe_command import FieldOption, Given
from granary.pipelines.engine.fields import fields
from granary.pipelines.engine.protocols import PROTOCOLS
from granary.pipelines.kinds.registry import PACK_INSTRUCTIONS, PACK_VIDEOS
from granary.training.evaluation.protocols.registry import load_protocol
from granary.training.methods import METHODS, load_method

OPTION = re.compile(r"(?<![\w-])--([a-z][\w.-]*\w)")
COMMAND = re.compile(r"(?:`|run: |run )granary ([a-z]+)")
OF_BEAM = {"runner", "direct_num_workers", "direct_running_mode"}  # what follows `--`
OF_BEAM |= {"dask_client_address", "dask_scheduler_file", "dask_connection_timeout"}
OF_DASK = {"memory-limit"}  # of `dask worker`
PLACEHOLDERS = {"any.field"}


def messages() -> Iterator[tuple[str, str]]:
    """Yield (place, text) of every text in the code that is no docstring."""
    for floor in ("curation", "training", "synth", "pipelines"):
        for path in sorted((ROOT / floor).rglob("*.py")):
            tree = ast.parse(path.read_text())
            docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def commands(group: click.Group) -> Iterator[click.Command]:
    """Yield every command below a group."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        yield from commands(found) if isinstance(found, click.Group) else [found]


def options() -> set[str]:
    """Return the options of all commands, without their dashes."""
    names = {"help", "version", "debug"}
    for one in commands(command.granary):
        for parameter in one.get_params(click.Context(one, obj=Given(), **SETTINGS)):
            names |= {parameter.field.key} if isinstance(parameter, FieldOption) else set(parameter.opts)
    names |= {field.key for method in METHODS for field in fields(load_method(method).Options, "options.")}
    names |= {field.key for name in PROTOCOLS for field in fields(load_protocol(name, PROTOCOLS).options, "options.")}
    names |= {
        field.key
        for recipe in (evaluate.recipe(Given()), PACK_VIDEOS.model(), PACK_INSTRUCTIONS.model())
        for field in fields(recipe)
    }
    server = (ROOT / "synth/pug/world/__main__.py").read_text()  # what a render starts, with a command line of its own
    return {name.removeprefix("--") for name in names} | set(re.findall(r'add_argument\("--([a-z-]+)"', server))


def known(name: str, names: set[str]) -> bool:
    """Say whether an option exists; a field that is a mapping takes any key below it."""
    written = name.replace("-", "_")
    spelt = {one.replace("-", "_") for one in names}
    return written in spelt or written.startswith("factors.")


def test_every_option_that_a_message_names_exists():
    names = options() | OF_BEAM | OF_DASK | PLACEHOLDERS
    wrong = {
        f"{place}: --{name}" for place, text in messages() for name in OPTION.findall(text) if not known(name, names)
    }
    assert wrong == set()


def test_every_command_that_a_message_names_exists():
    wrong = {
        (place, name) for place, text in messages() for name in COMMAND.findall(text) if name not in command.COMMANDS
    }
    assert wrong == set()


def test_no_option_of_a_plain_command_takes_the_last_of_two_values_silently() -> None:
    seen = 0
    for one in commands(command.granary):
        for option in (entry for entry in one.params if isinstance(entry, click.Option)):
            if isinstance(one, PlainCommand) and not (option.is_flag or option.multiple):
                with pytest.raises(UserError, match=f"^{option.name}: it takes one value, and 2 are given$"):
                    one.make_context(one.name, [option.opts[0], "1", option.opts[0], "2"])
                seen += 1
    assert seen > 10


@pytest.mark.parametrize("name", ["frobnicate", "dedup.treshold", "sav-to"])
def test_the_check_sees_an_option_that_does_not_exist(name):
    assert OPTION.findall(f"give --{name} or --pool") == [name, "pool"]
    assert not known(name, options())
