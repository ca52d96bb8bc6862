"""The commands that run a pipeline: curate, render, sample, pack."""

from __future__ import annotations

import click

from granary.pipelines.cli.recipe_command import Given, Page, RecipeCommand, steal_lock_option
from granary.pipelines.kinds.registry import KINDS, Kind, kind_of


def command_of(name: str) -> RecipeCommand:
    """Return the command of a kind of run."""
    kind = KINDS[name]

    def run(given: Given, workers: int, runner: str | None, steal_lock: bool, **flags: bool) -> int:
        from granary.pipelines.engine.profiles import load_profile
        from granary.pipelines.engine.recipe import load_recipe
        from granary.pipelines.engine.units import Engine

        chosen = _chosen(name, given)
        recipe = load_recipe(chosen.model(), given.config, given.overrides)
        beam = load_profile(runner, given.beam) if runner else given.beam
        chosen.start(recipe, Engine(beam, workers, steal_lock), None, **flags)
        return 0

    params = [
        *(click.Option([f"--{flag}"], is_flag=True, help=text) for flag, text in kind.flags),
        click.Option(["--workers"], type=int, default=0, metavar="N", help="local workers; default: one per core"),
        steal_lock_option(),
        click.Option(["--runner"], metavar="PROFILE", help="a file of configs/runners/ that names a Beam runner"),
    ]
    page = Page(kind.usage, kind.examples)
    return RecipeCommand(name, run, lambda given: _chosen(name, given).model(), page, params, passes_on=True)


def _chosen(name: str, given: Given) -> Kind:
    """Return the kind of run that a command and a recipe name."""
    return kind_of(name, given.tree()) if name == "pack" else KINDS[name]


curate, render, sample, pack = (command_of(name) for name in ("curate", "render", "sample", "pack"))
