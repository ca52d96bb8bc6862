"""A page of Markdown for each command, made of what the command knows of itself: for the documentation site."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import click

from granary.pipelines.cli.plain_command import PlainCommand
from granary.pipelines.cli.recipe_command import Given, RecipeCommand, grouped
from granary.pipelines.engine.fields import RecipeField, fields

HEAD = ("| option | takes | default | meaning |", "| --- | --- | --- | --- |")


def command_page(command: click.Command, names: Iterable[str] = ()) -> str:
    """Return the page of a command.

    Args:
        command: of `granary`; a group has a section for each command in it.
        names: methods of `train`, protocols of `evaluate`: the options of each are a section.
    """
    lines = [f"# granary {command.name}", "", *_described(command)]
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            lines += ["", f"## granary {command.name} {name}", "", *_described(inner)]
    if isinstance(command, RecipeCommand):
        for title, group in grouped(fields(command.recipe(Given()))):
            lines += ["", f"## {title}", "", *_table(group)]
        for name in names:
            words = {"train": ["--method", name], "evaluate": ["--protocols", name]}[str(command.name)]
            for more in command.page.further(Given(overrides=words)):
                found = list(fields(more.model, more.prefix))
                lines += ["", f"## {more.title}", "", *(_table(found) if found else ["None."])]
    return "\n".join(lines) + "\n"


def _described(command: click.Command) -> Iterator[str]:
    """Yield what a command does, its examples and its own options."""
    if isinstance(command, RecipeCommand):
        text, examples = command.recipe(Given()).__doc__ or "", command.page.examples
    else:
        text, examples = command.help or "", command.examples if isinstance(command, PlainCommand) else ()
    yield _escaped(text)
    if examples:
        yield from ("", "```sh", *examples, "```")
    rows = list(_own(command.params))
    if rows:
        yield from ("", *HEAD, *rows)


def _own(params: Sequence[click.Parameter]) -> Iterator[str]:
    for param in params:
        names = ", ".join(f"`{name}`" for name in param.opts) if isinstance(param, click.Option) else f"`{param.name}`"
        flag = isinstance(param, click.Option) and param.is_flag
        kind = "" if flag else f"`{param.make_metavar(click.Context(click.Command('granary')))}`"
        yield _row(names, kind, "", getattr(param, "help", None) or "")


def _table(group: Iterable[RecipeField]) -> list[str]:
    return [*HEAD, *(_row(f"`--{f.key}`", f"`{f.type_name}`", _default(f), _meaning(f)) for f in group)]


def _default(field: RecipeField) -> str:
    return {"required": "required", "null": ""}.get(field.default, f"`{field.default}`")


def _meaning(field: RecipeField) -> str:
    kinds = f"of kind {' and '.join(field.kinds)}" if field.kinds else ""
    return "; ".join(filter(None, (field.text, field.bounds, kinds)))


def _row(*cells: str) -> str:
    shown = (cell.replace("|", "\\|") if cell.startswith("`") else _escaped(cell) for cell in cells)
    return f"| {' | '.join(shown)} |"


def _escaped(text: str) -> str:
    """Return text in one line in which no letter has a meaning for Markdown or HTML."""
    return re.sub(r"([\\`*_<>#|\[\]])", r"\\\1", " ".join(text.split()))
