"""A command with a few options of its own, and the group of such commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import click

from granary.curation.errors import UserError

VARIABLE = "_GRANARY_COMPLETE"  # of the environment, by which the script in a shell asks for completions
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class PlainCommand(click.Command):
    """A command whose options are given once each, and that ends its help with examples.

    Args:
        name: of the command.
        callback: is called with the parameters by name; returns the exit status.
        text: what it does, in sentences.
        params: its options and arguments.
        examples: whole commands.
    """

    def __init__(
        self,
        name: str,
        callback: Callable[..., int],
        text: str,
        params: Iterable[click.Parameter] = (),
        examples: Sequence[str] = (),
    ) -> None:
        super().__init__(name, SETTINGS, callback, [*params, debug_option()], text, short_help=text.rstrip("."))
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; raises UserError where an option that takes one value is given several."""
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
            for param in order:
                if isinstance(param, click.Option) and not (param.multiple or param.is_flag):
                    check_once(param, order.count(param))
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on a line of its own so that it can be copied."""
        write_examples(formatter, self.examples)


def check_once(param: click.Parameter, count: int) -> None:
    """Raise UserError where an option that takes one value was given several."""
    if count > 1:
        raise UserError(f"{param.name}: it takes one value, and {count} are given")


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write whole commands under a heading, unwrapped."""
    if examples:
        with formatter.section("Examples"):
            formatter.write("".join(f"  {example}\n" for example in examples))


def debug_option() -> click.Option:
    """Return `--debug`, which stands in every help; it is taken from the words before any command sees them."""
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="show tracebacks")
