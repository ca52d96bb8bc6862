"""The render pipeline: a plan of factor values in, a dataset of pictures whose every factor is known out.

    plan ┬ rows ──── shards ┬ ledger
         └ objects ─┘       ├ chosen-quads ─ quads
                            ├ chosen-videos ─ videos
                            └ dead-letter     PUG (Bordes et al., arXiv 2308.03977), by UnrealCV or the embedded world.

Each name is a stage: a folder of part files in the run directory, made by work units through Beam.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from granary.curation.errors import UserError
from granary.curation.runs.facts import Facts, read_facts, read_recipe
from granary.curation.runs.quads import STAGE, write_quads
from granary.curation.runs.run import NoJob, Run, digest
from granary.curation.store import language
from granary.pipelines.engine.session import Session
from granary.pipelines.engine.stages import Stages
from granary.pipelines.engine.units import Engine
from granary.synth.pug import quads, steps, videos
from granary.synth.pug.planning import (
    Planned,
    PlannedRow,
    check_assets,
    mesh_hashes,
    mesh_paths,
    missing_assets,
    planned,
)
from granary.synth.pug.recipe import RenderRecipe
from granary.synth.pug.renderer.capture import Description
from granary.synth.pug.renderer.connection import RenderError
from granary.synth.pug.renderer.pools import close_pools
from granary.synth.pug.renderer.worker import Lost, Service
from granary.synth.pug.report import write_report as write_report_of

SHOWN = 5  # rows of a dry run
VIDEOS_LARGER = 10  # so many fewer videos than pictures are in a row group
METHOD = (
    "PUG (Bordes et al., [arXiv 2308.03977](https://arxiv.org/abs/2308.03977)): "
    "a table of factor values, one rendered picture for each row."
)
MAKERS = {"embedded": "the embedded world of granary", "unrealcv": "Unreal through UnrealCV"}
MEANINGS = {
    "id": "first 32 hex characters of the SHA-256 of the PNG file",
    "image": "the rendered picture, a PNG file named after its place in the plan",
    "label": "the class of the picture",
    "captions": "texts that are true of the picture, made from the factors",
    "source": "`render`, and the row",
    **language.MEANINGS,
    "row_id": "hash of the factor values: the identity of the row before there was a picture",
    "split": "train, or where the row is held out to",
    "objects": "the characters: name, box (left, top, right, bottom in pixels), number of pixels in the mask",
    "mask": "PNG: 0 background, 1 the first character, 2 the second",
    "depth": 'NumPy file: `np.load(io.BytesIO(depth))["depth"]` is (height, width) float32, planar, in centimetres',
    "depth_view": "PNG to look at: the inverse of the depth, from black (its farthest pixel) to white (its nearest)",
    "normals": "PNG: world normal * 0.5 + 0.5",
}


@dataclasses.dataclass
class Rendering(Stages):
    """One render: a plan, the shards that hold its pictures, and what became of every row.

    Args:
        runner: runs one stage.
        work: the checked recipe and its plan.
        fingerprint: of the renderer, so that another one renders anew.
    """

    work: Planned
    fingerprint: str

    def run(self) -> None:
        """Render every row that has no picture yet."""
        recipe = self.work.recipe
        self.serial("plan", steps.write_plan, [], steps.FramePlan.of(recipe, self.fingerprint, mesh_hashes(recipe)))
        listed = self.serial("rows", steps.list_rows, ["plan"], steps.CutShards(recipe.shards.rows))
        if recipe.polls.kinds:
            self.serial("objects", steps.count_objects, ["plan"], NoJob())
        try:
            self.render_shards([steps.ShardSize(*note) for note in listed.notes])
        finally:
            close_pools()
        self.runner.remove_stages(lambda name: name == "frames")
        lost = [tuple(Lost(*note) for note in marker.notes) for marker in self.markers["shards"]]
        ledgers = [steps.ShardLedger(shard, rows) for shard, rows in enumerate(lost)]
        self.parallel("ledger", steps.write_ledger, ledgers, ["shards"])
        everything = tuple(itertools.chain.from_iterable(lost))
        self.serial("dead-letter", steps.write_dead_letters, ["shards"], steps.LostRows(everything))
        if recipe.quads.kinds:
            self.write_quads()
        if recipe.videos.kinds:
            self.write_videos()

    def write_quads(self) -> None:
        """Choose the quads among the rows that have a picture, and write their shards."""
        choosing = quads.ChooseQuads(self.work.recipe.quads)
        self.serial(STAGE, quads.choose_quads, ["plan", "shards"], choosing)
        self.write_chosen("quads", STAGE, write_quads, self.work.recipe.shards.row_group)

    def write_videos(self) -> None:
        """Choose the frames of the videos among the rows that have a picture, and write their shards."""
        choosing = videos.ChooseVideos(self.work.recipe.videos)
        self.serial(videos.STAGE, videos.choose_videos, ["plan", "shards"], choosing)
        rows = max(1, self.work.recipe.shards.row_group // VIDEOS_LARGER)
        self.write_chosen("videos", videos.STAGE, videos.write_videos, rows)

    def render_shards(self, sizes: Sequence[steps.ShardSize]) -> None:
        """Render the rows of every shard."""
        service = service_of(self.work.recipe, self.runner.engine)
        group = self.work.recipe.shards.row_group
        jobs = [steps.ShardRows(shard, group, service) for shard in range(len(sizes))]
        splits, weights = [size.split for size in sizes], [size.rows for size in sizes]
        step, inputs = steps.render_shard, ["plan", "rows", *(["objects"] if "objects" in self.digests else [])]
        self.write_shards("shards", step, jobs, splits, inputs, "frames", weights, target="dataset/data")


def service_of(recipe: RenderRecipe, engine: Engine) -> Service:
    """Return how work units reach a renderer: nothing that decides a picture."""
    workers = engine.threads if engine.local else 0
    return Service(recipe.renderer, mesh_paths(recipe), workers, recipe.shards.checkpoint)


def render(
    recipe: RenderRecipe, engine: Engine, console: Console | None = None, dry_run: bool = False
) -> Mapping[str, Any]:
    """Render; finished work of an earlier, interrupted run of the same recipe is kept.

    Args:
        recipe: what to do.
        engine: where the work units run.
        console: for progress and the closing table; stderr by default.
        dry_run: print the number of rows and the first few, and stop.

    Returns:
        What run.json holds; of a dry run {"rows": their number}.

    Raises:
        UserError: the recipe cannot be run, or a work unit failed.
    """
    work = planned(recipe)
    if dry_run:
        return _print_plan(work, engine)
    description = described(work, engine)
    check_assets(work, description.assets)
    session = Session.begin(work.recipe, kind="render", engine=engine, console=console)
    fingerprint = digest(description.version, work.recipe.renderer.kind)
    rendering = Rendering(session.runner, work, fingerprint)
    finish = partial(_finish, session, rendering, description.version)
    return session.completed(rendering.run, finish, [("ledger", "ledger")])


def described(work: Planned, engine: Engine) -> Description:
    """Return what the renderer says of itself, its version and its assets; raises UserError when there is none."""
    service = service_of(work.recipe, engine)
    try:
        with service.pool(work).lease() as renderer:
            return renderer.describe()
    except RenderError as error:
        close_pools()
        if "AddMesh" in str(error):
            raise UserError(f"meshes: {error}; give whole files that trimesh can load") from None
        options = work.recipe.renderer
        where = ", ".join(options.addresses) or options.binary or "the embedded world"
        raise UserError(f"renderer: no UnrealCV server answers at {where}: {error}") from None


def _texts_of(work: Planned, row: PlannedRow) -> Iterator[str]:
    """Yield the captions and questions of a row."""
    yield from work.captions(row)
    for asked in work.questions(row):
        yield f"{asked['question']} {asked['answer']}"


def _print_plan(work: Planned, engine: Engine) -> dict[str, int]:
    """Print the number of rows, the first few with their texts, and what the embedded world could not show."""
    rows = len(work.plan)
    print(f"{work.recipe.name}: {rows:,} rows")
    for index in range(min(SHOWN, rows)):
        row = work.row(index)
        print(f"{index}  {row.id}  {row.split}  {json.dumps(row.values, ensure_ascii=False)}")
        for text in _texts_of(work, row):
            print(f"   {text}")
    if work.recipe.renderer.kind == "embedded":
        missing = missing_assets(work, described(work, engine).assets)
        close_pools()
        for kind, names in missing.items():
            print(f"the embedded world lacks the {kind} {', '.join(names)}")
        if missing:
            print("say under `assets:` what to show instead, or render in your own Unreal: --renderer.kind unrealcv")
    return {"rows": rows}


def _finish(session: Session[RenderRecipe], rendering: Rendering, version: str) -> Facts:
    work, markers = rendering.work, rendering.markers
    kept, dead = (sum(marker.counters.get(status, 0) for marker in markers["ledger"]) for status in ("kept", "dead"))
    rows = len(work.plan)
    recipe = work.recipe
    renderer = {"kind": recipe.renderer.kind, "version": version}
    features = {"default": work.features(), "quads": language.quad_features(), "videos": language.frames_features()}
    shards = {"default": rendering.written["shards"]}
    shards |= {name: rendering.written[name] for name in ("quads", "videos") if rendering.written.get(name)}
    counts = {name: sum(shard.marker.rows for shard in some) for name, some in shards.items()}
    facts = session.finish(
        features={name: features[name] for name in shards},
        facts={
            "noun": "frames",
            "flow": [{"stage": "render", "in": rows, "kept": kept, "dropped": 0, "dead": dead}],
            "renderer": renderer,
            "factors": {axis.name: len(axis.levels) for axis in work.axes},
            "columns": list(work.plan.columns),
            "notes": _notes(work, dead, counts),
        },
        shards=shards,
        card={
            "made": f"rendered from {rows:,} rows of factor values by {MAKERS[recipe.renderer.kind]}.",
            "meanings": {**MEANINGS, **{column: "factor" for column in work.plan.columns}},
            "tags": ["synthetic", "rendered", "PUG"],
            "task_categories": _tasks(recipe),
            "method": METHOD,
            "limits": _limits(work),
            "local": ["renderer", "meshes"],
        },
    )
    write_report_of(session.run, facts, columns_of(work))
    return facts


def _tasks(recipe: RenderRecipe) -> list[str]:
    """Return the tasks that the Hub lists the dataset under."""
    asked = bool(recipe.questions.kinds or recipe.polls.kinds or recipe.videos.kinds)
    tasks = ["image-classification", "zero-shot-image-classification"]
    return tasks + ["visual-question-answering"] * asked


def _notes(work: Planned, dead: int, counts: Mapping[str, int]) -> list[str]:
    notes, quads, videos = [], counts.get("quads", 0), counts.get("videos", 0)
    if work.recipe.quads.kinds:
        notes.append(
            f"{quads:,} quads of two pictures and two captions of the same words (config quads)."
            if quads
            else "There are no quads: no two rows of a split with a picture exchange what quads.kinds asks for."
        )
    if work.recipe.videos.kinds:
        notes.append(
            f"{videos:,} videos of {work.recipe.videos.frames} frames, asked about a few of them (config videos)."
            if videos
            else "There are no videos: no row with a picture has an answer to videos.kinds that no other one has."
        )
    if dead:
        notes.append(f"{dead:,} rows have no picture; dead-letter/ and the report say why.")
    if work.recipe.assets:
        shown = ", ".join(f"{name} as {other}" for name, other in sorted(work.recipe.assets.items()))
        notes.append(f"Shown by something else: {shown}.")
    return notes


def _limits(work: Planned) -> list[str]:
    if work.recipe.renderer.kind == "embedded":
        return ["The embedded world is stylised: its pictures are not photographs, and its assets are simple."]
    return [
        "The pictures are as good as the assets of the Unreal project that rendered them, and under their licences."
    ]


def write_report(url: str) -> str:
    """Write report/index.html of a finished run again; returns its URL."""
    facts = read_facts(url)
    return write_report_of(Run(url.rstrip("/")), facts, columns_of(planned(read_recipe(url, RenderRecipe))))


def columns_of(work: Planned) -> dict[str, tuple[str, ...]]:
    """Return for each factor the columns that it sets."""
    factors = {axis.name: axis.columns for axis in work.axes}
    listed = [column for column in work.plan.columns if not any(column in columns for columns in factors.values())]
    return {**factors, **{column: (column,) for column in listed}}
