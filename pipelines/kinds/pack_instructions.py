"""The pack pipeline for instructions: rows of other runs in, questions with texts, boxes and masks as answers out.

    names ┐
    rows ─ shards ┬ chosen-groups ─ groups
                  └ ledger, dead letters          VistaLLM (Pramanick et al., arXiv 2312.12423): CoinIt, AttCoSeg.

Each name is a stage: a folder of part files in the run directory, made by work units through Beam.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rich.console import Console

from granary.curation.dense.steps.notes import Note
from granary.curation.dense.summary import totals
from granary.curation.errors import UserError
from granary.curation.instructions import groups, report, steps
from granary.curation.instructions.recipe import PackInstructionsRecipe
from granary.curation.instructions.schema import MEANINGS, group_features, picture_features
from granary.curation.runs.facts import About, Facts, read_facts, read_recipe
from granary.curation.runs.run import NoJob, Run
from granary.curation.sources import Source, check_apart, files, listing
from granary.pipelines.engine.recipe import dump_recipe
from granary.pipelines.engine.session import Session
from granary.pipelines.engine.stages import Stages
from granary.pipelines.engine.units import Engine

ABOUT: About = {
    "made": "made by `granary pack`: instructions about pictures, whose answers are texts, boxes or masks. Pictures "
    "are the original files, never re-encoded. The config `groups` asks which of several pictures show something.",
    "meanings": {**MEANINGS, "source": "number of the data, file and row there"},
    "tags": ["instructions", "referring-segmentation"],
    "task_categories": ["visual-question-answering", "image-segmentation", "object-detection"],
    "method": "Instructions for boxes, masks and texts over one or several pictures (Pramanick et al., "
    "[arXiv 2312.12423](https://arxiv.org/abs/2312.12423)).",
    "limits": [
        "What a picture does not show is what its annotations do not name: where these have gaps, it may be there.",
        "Questions are made by templates.",
    ],
    "local": ["data"],
}


@dataclasses.dataclass
class PackedInstructions(Stages):
    """One run.

    Args:
        runner: runs one stage.
        recipe: with absolute paths.
    """

    recipe: PackInstructionsRecipe

    def run(self) -> None:
        """Run every stage that is not finished."""
        recipe = self.recipe
        job = steps.ListRows(steps.state_of(self.run_directory))
        self.serial("names", steps.count_names, [], job)
        listed = self.serial("rows", steps.list_rows, [], job)
        units = [steps.Group(*note) for note in listed.notes]
        if not units:
            raise UserError(f"data: {', '.join(recipe.data)} has no rows; give finished runs")
        packing = [self._packing(number, unit.digest) for number, unit in enumerate(units)]
        weights, splits = [unit.rows for unit in units], [unit.split for unit in units]
        self.write_shards(
            "shards", steps.write_shard, packing, splits, ["names"], "rows", weights, target="dataset/data",
            processes=True,
        )  # fmt: skip
        self._check_packed()
        self._write_groups()
        ledgers = [steps.WriteLedger(number, marker.sha256) for number, marker in enumerate(self.markers["shards"])]
        self.parallel("ledger", steps.write_ledger, ledgers, ["shards"], "rows", weights)
        self.serial("dead-letter", steps.write_dead_letters, ["shards"], NoJob())

    def _packing(self, unit: int, listed: str) -> steps.PackRows:
        recipe = self.recipe
        return steps.PackRows(
            unit=unit,
            listed=listed,
            tasks=recipe.tasks,
            absent=recipe.absent,
            textures=recipe.textures,
            decode=recipe.decode,
            row_group=recipe.shards.row_group,
            seed=recipe.seed,
        )

    def _write_groups(self) -> None:
        """Choose groups of pictures and write their shards; none where nothing is shared."""
        recipe = self.recipe
        if not recipe.groups.count:
            return
        job = groups.ChooseGroups(recipe.groups, recipe.seed, recipe.shards.groups)
        self.serial(groups.STAGE, groups.choose_groups, ["shards"], job)
        self.write_chosen("groups", groups.STAGE, groups.write_groups, recipe.shards.row_group)

    def _check_packed(self) -> None:
        """Raise UserError when no row came through: wrong data more likely than many bad rows."""
        sums = self.counts()
        if not sums["kept"]:
            notes = (Note(*fields) for marker in self.markers["shards"] for fields in marker.notes)
            example = next((f"; for example {n.name}: {n.message}" for n in notes if n.status != "part"), "")
            raise UserError(
                f"data: nothing could be asked of the {sums['files']:,} rows of {', '.join(self.recipe.data)}{example}"
            )

    def counts(self) -> dict[str, int]:
        """Return the sums of the counters of shards and groups."""
        return totals([*self.markers["shards"], *self.markers.get("groups", [])])


def pack_instructions(recipe: PackInstructionsRecipe, engine: Engine, console: Console | None = None) -> Facts:
    """Pack instructions; finished work of an earlier, interrupted run of the same recipe is kept.

    Args:
        recipe: what to do.
        engine: where the work units run.
        console: for progress and the closing table; stderr by default.

    Returns:
        What run.json holds.

    Raises:
        UserError: the recipe cannot be run, or a work unit failed.
    """
    recipe, sources = prepare(recipe)
    subject = ("list of data", lambda before: before.data)
    session = Session.begin(recipe, "pack", engine, console, sources, subject)
    packed = PackedInstructions(session.runner, recipe)
    return session.completed(packed.run, lambda: _finish(session, packed), [("dead", "dead-letter")])


def prepare(
    recipe: PackInstructionsRecipe,
) -> tuple[PackInstructionsRecipe, Mapping[str, Sequence[Source]]]:
    """Return the recipe with absolute paths, and the folders of the shards; raises UserError where nothing is there."""
    data = [files.placed("data", path) for path in recipe.data]
    for path, given in zip(data, recipe.data, strict=True):
        if not path.endswith("/"):
            raise UserError(f"data: {given!r} is a file; give a run, or a folder of Parquet shards")
        if not any(file.path.endswith(steps.PARQUET) for file in listing.walk(_shards(path))):
            raise UserError(f"data: {given!r} has no Parquet shards; give a finished run")
    sources = {"data": [Source(name=f"data-{n}", path=_shards(path), kind="folder") for n, path in enumerate(data)]}
    check_apart(recipe.out, sources)
    return recipe.model_copy(update={"data": tuple(data)}), sources


def _shards(path: str) -> str:
    """Return the folder of the shards of a run, a dataset or a folder; it ends in a slash."""
    return next((path + below for below in ("dataset/data/", "data/") if files.exists(path + below)), path)


def _finish(session: Session[PackInstructionsRecipe], packed: PackedInstructions) -> Facts:
    counts = packed.counts()
    flow = {"stage": "rows", "in": counts["files"], "kept": counts["kept"]}
    summary = {
        "noun": "rows",
        "flow": [{**flow, "dropped": counts.get("dropped", 0), "dead": counts.get("dead", 0)}],
        "notes": _notes(packed),
        "counts": dict(sorted(counts.items())),
        "dead_letters": dict(packed.markers["dead-letter"][0].counters),
    }
    features = {"default": picture_features(), "groups": group_features()}
    configs = {"default": "shards", "groups": "groups"}
    written = {config: packed.written[stage] for config, stage in configs.items() if packed.written.get(stage)}
    facts = session.finish(
        {config: features[config] for config in written}, summary, written, ABOUT, session.recipe.decode
    )
    report.write_report(session.run, facts, dump_recipe(session.recipe))
    return facts


def _notes(packed: PackedInstructions) -> list[str]:
    counts = packed.counts()
    notes = [f"{counts['instructions']:,} instructions, {counts.get('without a target', 0):,} of what is not there"]
    if counts.get("groups"):
        notes.append(f"{counts['groups']:,} groups of pictures (config groups)")
    chosen = packed.markers.get(groups.STAGE)
    if short := chosen[0].counters.get("groups short", 0) if chosen else 0:
        notes.append(f"{short:,} groups fewer than asked for: too few pictures share something that others lack")
    return notes


def write_report(url: str) -> str:
    """Write report/index.html of a finished run again; returns its URL."""
    recipe, facts = read_recipe(url, PackInstructionsRecipe), read_facts(url)
    return report.write_report(Run(url.rstrip("/")), facts, dump_recipe(recipe))
