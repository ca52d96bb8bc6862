"""The pages of the commands have what `--help` has."""

from __future__ import annotations

import re

import click
import pytest

from granary.pipelines.cli.manual import command_page
from granary.pipelines.cli.recipe_command import Given, RecipeCommand
from granary.pipelines.command import COMMANDS, granary
from granary.pipelines.engine.fields import fields


def command_of(name: str) -> click.Command:
    command = granary.get_command(click.Context(granary), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_every_option_once_and_rows_of_four_cells(name: str) -> None:
    command = command_of(name)
    page = command_page(command)
    assert page.startswith(f"# granary {name}\n")
    named = re.findall(r"^\| (?:`-\w`, )?`(--[\w.-]+)`", page, re.M)
    if isinstance(command, RecipeCommand):
        assert {f"--{field.key}" for field in fields(command.recipe(Given()))} <= set(named)
        assert len(named) == len(set(named))
    for row in re.findall(r"^\|.*", page, re.M):
        assert len(re.findall(r"(?<!\\)\|", row)) == 5, row


def test_methods_and_protocols_have_their_options() -> None:
    assert (
        "| `--options.temperature` |"
        in command_page(command_of("train"), ["simclr"]).partition("## Options of simclr")[2]
    )
    assert "| `--options.k` |" in command_page(command_of("evaluate"), ["knn"]).partition("## Options of knn")[2]


def test_what_an_option_means_is_text_alone() -> None:
    class Shouting(click.Option):
        """Its help has all that Markdown and HTML would take for more."""

    command = click.Command("x", params=[Shouting(["--out"], help="a|b <script> *c* `d` [e](f)")], help="#1 of _two_")
    page = command_page(command)
    assert r"a\|b \<script\> \*c\* \`d\` \[e\](f)" in page
    assert r"\#1 of \_two\_" in page
