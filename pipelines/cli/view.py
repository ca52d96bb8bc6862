"""`granary view`: a page to look at a run with, for the browser of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from granary.curation.errors import UserError
from granary.pipelines.cli.plain_command import PlainCommand

if TYPE_CHECKING:
    from granary.curation.view.server import Server


def open_page(url: str, port: int = 0, decisions: str = "") -> Server:
    """Return the server of the page of a finished run; it serves from `serve_forever` on.

    Args:
        url: of the run directory.
        port: to listen on; 0 for one that is free.
        decisions: file that decisions go to; "" for decisions.csv in the run directory.

    Raises:
        UserError: there is no finished run, the port is taken, or the file holds no decisions.
    """
    from granary.curation.images.limits import DecodeLimits
    from granary.curation.recipe import CurateRecipe
    from granary.curation.runs.facts import read_facts, read_recipe, recipe_tree
    from granary.curation.runs.lookup import Files
    from granary.curation.runs.run import Run
    from granary.curation.view.api import Api
    from granary.curation.view.catalogue import Catalogue
    from granary.curation.view.curated import Curated
    from granary.curation.view.decided import DecisionFile
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
    if not isinstance(recipe, CurateRecipe):
        if decisions:
            raise UserError(f"decisions: {url} is a run of granary {facts['kind']}; only those of curate obey them")
        return Server(Api(catalogue, limits, story_of(catalogue, None)), port)
    file = DecisionFile(catalogue, decisions or run.path("decisions.csv"))
    story = story_of(catalogue, Files(run, limits.max_bytes))
    return Server(Api(catalogue, limits, story, Curated(catalogue, recipe, file)), port)


def _view(run: str, port: int, decisions: str, no_browser: bool) -> int:
    with open_page(run, port, decisions) as server:
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
    "words of their names and captions, and of each picture what became of it; of curate also near duplicates by "
    "threshold, what resembles a picture, a map, and decisions that the next run obeys. The page is for this machine "
    "alone and fetches nothing from a network.",
    [
        click.Argument(["run"]),
        click.Option(["--port"], type=int, default=0, metavar="N", help="to listen on; default: one that is free"),
        click.Option(
            ["--decisions"],
            default="",
            metavar="FILE",
            help="what is decided on the page is written there, for `granary curate --decisions`; default: "
            "RUN/decisions.csv",
        ),
        click.Option(["--no-browser"], is_flag=True, help="print the address, and open no browser"),
    ],
    ["granary view runs/mine", "granary view runs/mine --port 8080 --no-browser"],
)
