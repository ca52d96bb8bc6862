"""The kinds of run: for each the modules that know it, named so that `granary --help` need not import them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from granary.curation.errors import needs
from granary.curation.options import RunRecipe

if TYPE_CHECKING:
    from rich.console import Console

    from granary.pipelines.engine.units import Engine


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way in: a recipe's model and what is done with it.

    Args:
        recipe: "module:class" of the recipe, a `RunRecipe`.
        run: "module:function", called as `run(recipe, engine, console, **flags)`.
        report: "module:function", called with the URL of a finished run; returns the URL of its report.
        usage: the options a user gives most, each with its value, for `--help`.
        examples: whole commands, for `--help`.
        flags: switches of the command itself, handed to `run` as keyword arguments, with their help texts.
        extra: of granary-data that has its packages; None where the base has them all.
    """

    recipe: str
    run: str
    report: str
    usage: tuple[str, ...]
    examples: tuple[str, ...]
    flags: tuple[tuple[str, str], ...] = ()
    extra: str | None = None

    def model(self) -> type[RunRecipe]:
        """Import the recipe's model."""
        return cast(type[RunRecipe], load(self.recipe))

    def start(self, recipe: RunRecipe, engine: Engine, console: Console | None = None, **flags: bool) -> None:
        """Run the pipeline of this kind.

        Args:
            recipe: an instance of the model.
            engine: where the work units run.
            console: for progress and the closing table; stderr by default.
            flags: those of the command.

        Raises:
            UserError: the recipe cannot be run, a work unit failed, or a package of the extra is not installed.
        """
        from granary.pipelines.engine.dask_cluster import check_cluster_options
        from granary.pipelines.engine.profiles import check_beam_options
        from granary.pipelines.engine.repair import repairing
        from granary.pipelines.engine.session import console_or_stderr

        check_cluster_options(engine.options)
        check_beam_options(engine.options)
        with needs(self.extra) if self.extra else contextlib.nullcontext():
            run = functools.partial(load(self.run), recipe, engine, console, **flags)
            repairing(recipe.out, run, console_or_stderr(console))

    def write_report(self, url: str) -> str:
        """Write the report of a finished run again; returns its URL."""
        return str(load(self.report)(url))


KINDS = {
    "curate": Kind(
        "granary.curation.recipe:CurateRecipe",
        "granary.pipelines.kinds.curate_session:curate",
        "granary.pipelines.kinds.curate_session:write_report",
        ("--pool DIR_OR_URL", "[--seeds DIR_OR_URL]", "[--references DIR_OR_URL]", "--out RUN"),
        (
            "granary curate --pool photos --out runs/distinct",
            "granary curate --config curate/folder.yaml --pool photos --seeds favourites --references benchmark"
            " --out runs/mine --dedup.threshold 0.9",
        ),
        (
            ("retry-failed", "try everything again that could not be read, not what may pass alone"),
            ("dry-run", "print sources, stages, time and disk, told by a few pictures, and stop"),
            ("offline", "download no model: without one at hand, retrieve by layout and colour"),
        ),
    ),
    "render": Kind(
        "granary.synth.pug.recipe:RenderRecipe",
        "granary.pipelines.kinds.render:render",
        "granary.pipelines.kinds.render:write_report",
        ("--out RUN",),
        (
            "granary render --config render/animals_demo.yaml --out runs/animals",
            "granary render --config render/pug_animals.yaml --out runs/pug --dry-run",
        ),
        (("dry-run", "print the number of rows and the first few, and stop"),),
        "render",
    ),
    "sample": Kind(
        "granary.synth.feedback.recipe:SampleRecipe",
        "granary.pipelines.kinds.sample:sample",
        "granary.pipelines.kinds.sample:write_report",
        ("--data DIR_OR_URL", "--model PATH_OR_ID", "--classifier PATH", "--out RUN"),
        (
            "granary sample --config sample/imagenet_lt.yaml --data photos --model PATH_OR_ID --classifier PATH"
            " --out runs/filled",
        ),
        extra="sample",
    ),
    "pack": Kind(
        "granary.curation.dense.recipe:PackRecipe",
        "granary.pipelines.kinds.pack:pack",
        "granary.pipelines.kinds.pack:write_report",
        ("--annotations DIR_OR_URL", "--images DIR_OR_URL", "--out RUN"),
        ("granary pack --config pack/dci.yaml --annotations dci/annotations --images dci/photos --out runs/dci",),
    ),
}

PACK_VIDEOS = Kind(
    "granary.curation.videos.recipe:PackVideosRecipe",
    "granary.pipelines.kinds.pack_videos:pack_videos",
    "granary.pipelines.kinds.pack_videos:write_report",
    ("--videos DIR_OR_URL", "[--annotations FILE_OR_DIR]", "--out RUN"),
    (
        "granary pack --config pack/video.yaml --videos clips --out runs/shots",
        "granary pack --config pack/video.yaml --format coin --annotations COIN.json --videos coin --out runs/coin",
    ),
    extra="video",
)
# Formats of `granary pack` whose recipe is that of videos.
VIDEO_FORMATS = ("coin", "crosstask", "epic", "goalstep", "lines", "shots")


PACK_INSTRUCTIONS = Kind(
    "granary.curation.instructions.recipe:PackInstructionsRecipe",
    "granary.pipelines.kinds.pack_instructions:pack_instructions",
    "granary.pipelines.kinds.pack_instructions:write_report",
    ("--data RUN[,RUN...]", "--out RUN"),
    ("granary pack --config pack/instructions.yaml --data runs/rendered,runs/coco --out runs/asked",),
)
INSTRUCTIONS = "instructions"  # the format of `granary pack` that makes them of other runs


def kind_of(name: str, recipe: Mapping[str, object]) -> Kind:
    """Return a kind of run.

    Args:
        name: of the command.
        recipe: as it was written; of `pack` its format says whether videos are packed, or instructions.
    """
    form = recipe.get("format") if name == "pack" else None
    return PACK_INSTRUCTIONS if form == INSTRUCTIONS else PACK_VIDEOS if form in VIDEO_FORMATS else KINDS[name]


def load(where: str) -> Callable[..., object]:
    """Import the function or class that "module:name" names."""
    module, _, name = where.partition(":")
    loaded: Callable[..., object] = getattr(importlib.import_module(module), name)
    return loaded
