"""`granary view`: a page to look at a run with, for the browser of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from granary.curation.errors import UserError
from granary.pipelines.cli.plain_command import PlainCommand

if TYPE_CHECKING:
    from granary.curation.view.server import Server


def open_page(url: str, port: int = 0) -> Server:
    """Return the server of the page of a finished run; it serves from `serve_forever` on.

    Args:
        url: of the run directory.
        port: to listen on; 0 for one that is free.

    Raises:
        UserError: there is no finished run, or the port is taken.
    """
    from granary.curation.images.limits import DecodeLimits
    from granary.curation.recipe import CurateRecipe
    from granary.curation.runs.facts import read_facts, read_recipe, recipe_tree
    from granary.curation.runs.lookup import Files
    from granary.curation.runs.run import Run
    from granary.curation.view.api import Api
    from granary.curation.view.catalogue import Catalogue
    from granary.curation.view.server import Server
    from granary.curation.view.stories import story_of
    from granary.pipelines.kinds.registry import KINDS, kind_of
    from granary.training.report import training_facts

    url = url.rstrip("/")
    if training_facts(url) is not None:
        raise UserError(f"run: {url} holds a training; `granary report` writes its page")
    facts = read_facts(url)
    if facts["kind"] not in KINDS:
        raise UserError(f"run: {url} holds a run of granary {facts['kind']}; there are {', '.join(KINDS)}")
    recipe = read_recipe(url, kind_of(facts["kind"], recipe_tree(url)).model())
    sources = recipe.sources if isinstance(recipe, CurateRecipe) else {"data": getattr(recipe, "data", [])}
    limits = getattr(recipe, "decode", None)
    limits = limits if isinstance(limits, DecodeLimits) else DecodeLimits()
    run = Run(url, sources)
    catalogue = Catalogue.of(run, facts)
    files = Files(run, limits.max_bytes) if facts["kind"] == "curate" else None
    return Server(Api(catalogue, limits, story_of(catalogue, files)), port)


def _view(run: str, port: int, no_browser: bool) -> int:
    with open_page(run, port) as server:
        print(f"{server.address}  (Ctrl-C ends it)", flush=True)
        if not no_browser:
            import webbrowser

            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


view = PlainCommand(
    "view",
    _view,
    "Look at a run in the browser of this machine: its pictures by status, stage, reason, label, seed and cluster, "
    "words of their names and captions, and of each picture what became of it. The page is for this machine alone and "
    "fetches nothing from a network.",
    [
        click.Argument(["run"]),
        click.Option(["--port"], type=int, default=0, metavar="N", help="to listen on; default: one that is free"),
        click.Option(["--no-browser"], is_flag=True, help="print the address, and open no browser"),
    ],
    ["granary view runs/mine", "granary view runs/mine --port 8080 --no-browser"],
)
