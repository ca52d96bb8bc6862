"""The kinds of run: for each the modules that know it, named so that `granary --help` need not import them."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way in: a recipe's model and what is done with it.

    Args:
        recipe: "module:class" of the recipe.
        run: "module:function", called with the recipe and the engine.
        report: "module:function", called with the URL of a finished run; returns the URL of its report.
        usage: the options a user gives most, for `--help`.
        flags: switches of the command itself, handed to `run` as keyword arguments, with their help texts.
    """

    recipe: str
    run: str
    report: str
    usage: str
    flags: tuple[tuple[str, str], ...] = ()


KINDS = {
    "curate": Kind(
        "curation.recipe:CurateRecipe",
        "pipelines.runs:curate",
        "pipelines.runs:write_report",
        "--pool DIR_OR_URL [--seeds DIR_OR_URL] [--references DIR_OR_URL]",
    ),
    "render": Kind(
        "synth.pug.recipe:RenderRecipe",
        "pipelines.render:render",
        "pipelines.render:write_report",
        "",
        (("dry-run", "print the number of rows and the first few, and stop"),),
    ),
    "sample": Kind(
        "synth.feedback.recipe:SampleRecipe",
        "pipelines.sample:sample",
        "pipelines.sample:write_report",
        "--data DIR_OR_URL --model PATH_OR_ID --classifier PATH",
    ),
    "pack": Kind(
        "curation.dense.recipe:PackRecipe",
        "pipelines.pack:pack",
        "pipelines.pack:write_report",
        "--annotations DIR_OR_URL --images DIR_OR_URL",
    ),
}


def load(where: str) -> Any:
    """Import what "module:name" names."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)
