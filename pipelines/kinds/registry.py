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
        "granary.curation.recipe:CurateRecipe",
        "granary.pipelines.kinds.curate_session:curate",
        "granary.pipelines.kinds.curate_session:write_report",
        "--pool DIR_OR_URL [--seeds DIR_OR_URL] [--references DIR_OR_URL]",
    ),
    "render": Kind(
        "granary.synth.pug.recipe:RenderRecipe",
        "granary.pipelines.kinds.render:render",
        "granary.pipelines.kinds.render:write_report",
        "",
        (("dry-run", "print the number of rows and the first few, and stop"),),
    ),
    "sample": Kind(
        "granary.synth.feedback.recipe:SampleRecipe",
        "granary.pipelines.kinds.sample:sample",
        "granary.pipelines.kinds.sample:write_report",
        "--data DIR_OR_URL --model PATH_OR_ID --classifier PATH",
    ),
    "pack": Kind(
        "granary.curation.dense.recipe:PackRecipe",
        "granary.pipelines.kinds.pack:pack",
        "granary.pipelines.kinds.pack:write_report",
        "--annotations DIR_OR_URL --images DIR_OR_URL",
    ),
}


def load(where: str) -> Any:
    """Import what "module:name" names."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)
