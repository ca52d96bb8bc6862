"""A command whose options are the fields of a recipe.

Click gives the names, `--help` and completion. The values go as words to `granary.pipelines.engine.recipe`, where the
recipe's pydantic model decides what is right and says what is not in one sentence: a recipe may hold lists of groups
and mappings with keys of the user's own, which no parser of options knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem
from pydantic import BaseModel

from granary.pipelines.cli.plain_command import check_once, debug_option, write_examples
from granary.pipelines.engine.fields import RecipeField, fields
from granary.pipelines.engine.recipe import read_tree

TERM_WIDTH = 34  # columns of the names of options, before their texts
GLUE = "\xa0"  # keeps an option and its value on one line of the usage
HYPHEN = "\u2011"  # at which no line is broken: cc-by-4.0 is one word


@dataclasses.dataclass(frozen=True)
class Given:
    """What the user wrote.

    Args:
        config: path or URL of a recipe.
        overrides: `--any.field value` and `--any.field=value` words.
        beam: what followed `--`, where the command passes that on.
    """

    config: str | None = None
    overrides: Sequence[str] = ()
    beam: Sequence[str] = ()

    def tree(self) -> Mapping[str, object]:
        """Return the recipe as it was written, unchecked; raises UserError when it cannot be read."""
        return read_tree(self.config, self.overrides)


@dataclasses.dataclass(frozen=True)
class Further:
    """Options that only stand in `--help` when the user names what they belong to.

    Args:
        title: for example "options of dinov2".
        model: whose fields they are.
        prefix: of their names, with its dot.
    """

    title: str
    model: type[BaseModel]
    prefix: str = "options."


@dataclasses.dataclass(frozen=True)
class Page:
    """What `--help` shows beside the fields of a recipe.

    Args:
        usage: the options a user gives most, each with its value.
        examples: whole commands.
        further: returns options to show when the user names what they belong to.
        naming: how that is named, for the help of `--help`.
    """

    usage: Sequence[str]
    examples: Sequence[str]
    further: Callable[[Given], Iterable[Further]] = lambda given: ()
    naming: str = ""


class Word(click.ParamType[str]):
    """A value that pydantic will check; completed by its choices, or as the name of a file."""

    def __init__(self, field: RecipeField) -> None:
        self.name, self.choices = field.type_name, field.choices

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
        """Return the choices that begin so."""
        if not self.choices:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(choice) for choice in self.choices if choice.startswith(incomplete)]


class FieldOption(click.Option):
    """An option that is listed and completed, and left to the recipe's model to read.

    Args:
        field: of the recipe.
    """

    def __init__(self, field: RecipeField) -> None:
        self.field = field
        name = field.key.replace(".", "__").replace("-", "_")
        super().__init__([f"--{field.key}", name], type=Word(field), help=field.text, expose_value=False)

    def add_to_parser(self, parser: object, ctx: click.Context) -> None:
        """Leave the words to the recipe."""

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[None, list[str]]:
        """Take nothing."""
        return None, args

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return the option with what can be written, and its meaning with default and bounds."""
        default = {"required": "required", "null": ""}.get(self.field.default, f"default: {self.field.default}")
        kinds = f"of kind {' and '.join(self.field.kinds)}" if self.field.kinds else ""
        notes = "; ".join(filter(None, (default, self.field.bounds, kinds)))
        text = self.field.text + (f" [{notes}]" if notes else "")
        return f"--{self.field.key} {self.field.type_name}", text.replace("-", HYPHEN)


class RecipeCommand(click.Command):
    """A command that takes `--config` and the fields of a recipe.

    Args:
        name: of the command.
        callback: is called with what the user gave, and with its own options by name; returns the exit status.
        recipe: returns the recipe's model; what the user gave may decide which.
        page: what `--help` shows.
        params: options of the command itself.
        passes_on: whether words after `--` go to Beam.
    """

    def __init__(
        self,
        name: str,
        callback: Callable[..., int],
        recipe: Callable[[Given], type[BaseModel]],
        page: Page,
        params: Sequence[click.Parameter] = (),
        passes_on: bool = False,
    ) -> None:
        config = click.Option(
            ["--config"],
            multiple=True,
            callback=_one,
            metavar="FILE",
            help="a recipe; the options below override its fields",
        )
        asked = click.Option(["-h", "--help"], is_flag=True, help=f"show this message{page.naming}")
        super().__init__(name, params=[config, *params, debug_option(), asked], add_help_option=False)
        self.context_settings = {"ignore_unknown_options": True, "allow_extra_args": True, "max_content_width": 120}
        self.run, self.recipe, self.page, self.passes_on = callback, recipe, page, passes_on

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options of the command itself, then the fields of the recipe."""
        given = ctx.obj if isinstance(ctx.obj, Given) else Given()
        return [*self.params, *(FieldOption(field) for field in fields(self.recipe(given)))]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take what belongs to the command itself, and keep the other words for the recipe."""
        end = args.index("--") if "--" in args else len(args)
        overrides, beyond = super().parse_args(ctx, args[:end]), args[end:]
        overrides, beam = (overrides, beyond[1:]) if self.passes_on else (overrides + beyond, [])
        ctx.obj, ctx.args = Given(ctx.params.pop("config"), self.spelt_out(overrides), beam), []
        if ctx.params.pop("help") and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit()
        return []

    def spelt_out(self, overrides: list[str]) -> list[str]:
        """Return the words for the recipe where a command has a shorter way to write some."""
        return overrides

    def invoke(self, ctx: click.Context) -> int:
        """Run the command."""
        return self.run(ctx.obj, **ctx.params)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options a user gives most."""
        beam = ["[--workers N]", "[--runner PROFILE]", "[-- BEAM OPTIONS]"] if self.passes_on else []
        pieces = ["[--config RECIPE.yaml]", *self.page.usage, "[--any.field VALUE ...]", *beam]
        formatter.write_usage(ctx.command_path, " ".join(piece.replace(" ", GLUE) for piece in pieces))

    def get_help(self, ctx: click.Context) -> str:
        """Return the whole help."""
        return super().get_help(ctx).replace(GLUE, " ").replace(HYPHEN, "-")

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the recipe's docstring says."""
        formatter.write_paragraph()
        formatter.write_text((self.recipe(ctx.obj).__doc__ or "").strip())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the fields group by group, then those of what was named."""
        records = [param.get_help_record(ctx) or ("", "") for param in self.params if isinstance(param, click.Option)]
        with formatter.section("Options"):
            formatter.write_dl(records, TERM_WIDTH)
        for title, group in grouped(fields(self.recipe(ctx.obj))):
            with formatter.section(title):
                formatter.write_dl([FieldOption(field).get_help_record(ctx) for field in group], TERM_WIDTH)
        for more in self.page.further(ctx.obj):
            rows = [FieldOption(field).get_help_record(ctx) for field in fields(more.model, more.prefix)]
            with formatter.section(more.title):
                formatter.write_dl(rows or [("none", "")], TERM_WIDTH)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on a line of its own so that it can be copied."""
        write_examples(formatter, self.page.examples)


def _one(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> str | None:
    """Return what an option was given; raises UserError where it was given twice."""
    if not ctx.resilient_parsing:
        check_once(param, len(given))
    return given[-1] if given else None


def steal_lock_option() -> click.Option:
    """Return the switch of commands that write a run directory."""
    return click.Option(
        ["--steal-lock"], is_flag=True, help="work in --out although a command that must have ended holds it"
    )


def grouped(found: Iterable[RecipeField]) -> Iterator[tuple[str, list[RecipeField]]]:
    """Yield (title, fields): the recipe's own first, then each group in its order, itself before its fields."""
    groups: dict[str, list[RecipeField]] = {"": []}
    titles = {"": "Fields of the recipe"}
    for field in found:
        titles.setdefault(field.group, f"{field.group} - {field.section}" if field.section else field.group)
        groups.setdefault(field.group, []).append(field)
    for group, members in groups.items():
        if members:
            yield titles[group], sorted(members, key=lambda field: field.key != group)
