"""The commands that need nothing of the user's: demo, and the embedded world as a server."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click

from granary.curation.errors import needs
from granary.pipelines.cli.plain_command import SETTINGS, PlainCommand, debug_option
from granary.pipelines.kinds.registry import load


class Demo(NamedTuple):
    """What is known of a demo before it is imported.

    Args:
        text: what it shows.
        extra: of granary-data that has its packages.
        first: a module that imports them, so that what is missing is said before any work.
    """

    text: str
    extra: str
    first: str


DEMOS = {
    "curate": Demo(
        "make a small pool with planted copies, leaks and broken files, curate it and check the result",
        "render",  # for --world; the base has the rest
        "granary.pipelines.demos.curate",
    ),
    "render": Demo(
        "render a small world with the embedded renderer",
        "render",
        "granary.pipelines.demos.render",
    ),
    "sample": Demo(
        "balance long-tailed digits with guided samples of a small model",
        "sample",
        "granary.synth.feedback.diffusion.generator",
    ),
    "train": Demo(
        "train a tiny model on a pool as it is, deduplicated and curated, for several seeds",
        "train",
        "lightning_fabric",
    ),
}
OWN = {  # options of one demo alone
    "curate": [click.Option(["--world"], is_flag=True, help="curate a rendered pool")],
    "train": [
        click.Option(
            ["--seed"],
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="the first one, of pictures, weights and order",
        ),
        click.Option(
            ["--seeds"], type=click.IntRange(min=1), default=4, show_default=True, help="how many, one after the other"
        ),
    ],
}


class _Demos(click.Group):
    """The demos; without a name it is that of curate."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name there where it was left out."""
        asked = bool(args) and (args[0] in ("-h", "--help") or args[0] in DEMOS)
        return super().parse_args(ctx, args if asked or ctx.resilient_parsing else ["curate", *args])


def _command_of(name: str) -> PlainCommand:
    text, extra, first = DEMOS[name]
    out = "runs/demo" if name == "curate" else f"runs/demo-{name}"

    def run(out: str, workers: int, **options: int) -> int:
        from granary.pipelines.engine.units import Engine

        with needs(extra):
            importlib.import_module(first)
            status = load(f"granary.pipelines.demos.{name}:demo")(out, Engine(workers=workers), **options)
        return status if isinstance(status, int) else 0

    params = [
        click.Option(["--out"], default=out, show_default=True, help="folder for everything it makes"),
        click.Option(["--workers"], type=int, default=0, metavar="N", help="local workers; default: one per core"),
        *OWN.get(name, []),
    ]
    return PlainCommand(name, run, f"{text[:1].upper()}{text[1:]}.", params, [f"granary demo {name}"])


demo = _Demos(
    "demo",
    {name: _command_of(name) for name in DEMOS},
    context_settings=SETTINGS,
    help="Show what granary does, on data that comes with it. Without a name: the demo of curate.",
    params=[debug_option()],
)


def _serve(port: int, save_to: str | None) -> int:
    with needs("render"):
        from granary.synth.pug.world import serve

        serve(port, save_to=save_to)
    return 0


_serving = PlainCommand(
    "serve",
    _serve,
    "Serve the embedded world to any UnrealCV client until interrupted.",
    [
        click.Option(["--port"], default=9000, show_default=True, help="on 127.0.0.1; 0 takes a free one"),
        click.Option(["--save-to"], metavar="DIR", help="folder below which clients may save pictures as files"),
    ],
    ["granary unreal serve --port 9000"],
)
unreal = click.Group(
    "unreal",
    {"serve": _serving},
    context_settings=SETTINGS,
    help="The embedded world as an UnrealCV server.",
    params=[debug_option()],
)
