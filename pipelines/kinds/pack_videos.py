"""The pack pipeline for videos: files and annotations of their steps in, original bytes with clips and times out.

    videos ─ shards ─ ledger, dead letters

Each name is a stage: a folder of part files in the run directory, made by work units through Beam.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from rich.console import Console

from granary.curation.dense.summary import totals
from granary.curation.errors import UserError, needs
from granary.curation.runs.facts import About, Facts, read_facts, read_recipe
from granary.curation.runs.run import NoJob, Run
from granary.curation.sources import Source, check_apart, files
from granary.curation.videos import report, steps
from granary.curation.videos.recipe import PackVideosRecipe
from granary.pipelines.engine.recipe import dump_recipe
from granary.pipelines.engine.session import Session
from granary.pipelines.engine.stages import Stages
from granary.pipelines.engine.units import Engine

ABOUT: About = {
    "made": "made by `granary pack`: videos with the clips of their steps, or of their shots. Videos are the original "
    "files, never re-encoded.",
    "meanings": {
        "image": "a small picture of the first frame, made here",
        "label": "the task that the video shows",
        "captions": "what the steps are called, each once",
        "video": "the original file: its bytes and its name",
        "name": "of the video in the annotations",
        "codec": "of the pictures",
        "frames": "how many there are, counted by decoding all of them",
        "seconds": "to the end of the last frame",
        "times": "when each frame is shown, in seconds since the beginning",
        "clips": "start and end in seconds, the first frame, the number of frames, and number and name of the step",
        "split": "as the annotations have it",
    },
    "tags": ["video", "procedures"],
    "task_categories": ["video-classification"],
    "method": "Clips of annotated steps, as COIN and CrossTask have them; otherwise shots, by changes of colours.",
    "limits": [
        "Steps are as the annotations had them and were not checked against the videos.",
        "A slow fade is no cut, and a flash may be one.",
    ],
    "local": ["annotations", "videos"],
}


@dataclasses.dataclass
class PackedVideos(Stages):
    """One run.

    Args:
        runner: runs one stage.
        recipe: with absolute paths.
    """

    recipe: PackVideosRecipe

    def run(self) -> None:
        """Run every stage that is not finished."""
        recipe, run = self.recipe, self.run_directory
        job = steps.ListVideos(recipe.format, recipe.unit_rows, steps.state_of(run))
        listed = self.serial("videos", steps.list_videos, [], job)
        groups = [steps.Group(*note) for note in listed.notes]
        if not groups:
            raise UserError(f"videos: there is no video in {recipe.annotations or recipe.videos}; give another folder")
        packing = [self._packing(unit, group.digest) for unit, group in enumerate(groups)]
        weights, splits = [group.rows for group in groups], [group.split for group in groups]
        self.write_shards(
            "shards", steps.write_shard, packing, splits, [], "videos", weights, target="dataset/data", processes=True
        )
        self._check_packed()
        ledgers = [steps.WriteLedger(unit, marker.sha256) for unit, marker in enumerate(self.markers["shards"])]
        self.parallel("ledger", steps.write_ledger, ledgers, ["shards"], "videos", weights)
        self.serial("dead-letter", steps.write_dead_letters, ["shards"], NoJob())

    def _packing(self, unit: int, listed: str) -> steps.PackVideos:
        recipe = self.recipe
        return steps.PackVideos(
            unit=unit,
            listed=listed,
            format=recipe.format,
            decode=recipe.decode,
            shots=recipe.shots,
            poster=recipe.shards.poster,
            row_group=recipe.shards.row_group,
            max_unreadable=recipe.max_unreadable,
        )

    def _check_packed(self) -> None:
        """Raise UserError when no video came through: a wrong folder more likely than many bad files."""
        sums = self.counts()
        if not sums["kept"]:
            notes = (note for marker in self.markers["shards"] for note in marker.notes)
            example = next((f"; for example {uri}: {text}" for uri, part, _, text in notes if not part), "")
            raise UserError(
                f"videos: none of the {sums['files']:,} videos of {self.recipe.videos} could be packed{example}"
            )

    def counts(self) -> collections.Counter[str]:
        """Return the sum of the counters of the shards."""
        return totals(self.markers["shards"])


def pack_videos(recipe: PackVideosRecipe, engine: Engine, console: Console | None = None) -> Facts:
    """Pack videos; finished work of an earlier, interrupted run of the same recipe is kept.

    Args:
        recipe: what to do.
        engine: where the work units run.
        console: for progress and the closing table; stderr by default.

    Returns:
        What run.json holds.

    Raises:
        UserError: the recipe cannot be run, PyAV is not installed, or a work unit failed.
    """
    with needs("video"):
        import av  # noqa: F401 - before any work, rather than in every unit
    recipe, sources = prepare(recipe)
    subject = ("folder of videos", lambda before: before.videos)
    session = Session.begin(recipe, "pack", engine, console, sources, subject)
    packed = PackedVideos(session.runner, recipe)
    return session.completed(packed.run, lambda: _finish(session, packed), [("dead", "dead-letter")])


def prepare(recipe: PackVideosRecipe) -> tuple[PackVideosRecipe, Mapping[str, Sequence[Source]]]:
    """Return the recipe with absolute paths, and the source of each role; raises UserError where nothing is there."""
    videos = files.placed("videos", recipe.videos)
    if not videos.endswith("/"):
        raise UserError(f"videos: {recipe.videos!r} is a file; give the folder of the videos")
    sources = {"videos": [Source(name="videos", path=videos, kind="folder")]}
    annotations = files.placed("annotations", recipe.annotations) if recipe.annotations else ""
    if annotations:
        sources["annotations"] = [Source(name="annotations", path=annotations, kind="folder")]
    check_apart(recipe.out, sources)
    return recipe.model_copy(update={"videos": videos, "annotations": annotations}), sources


def _finish(session: Session[PackVideosRecipe], packed: PackedVideos) -> Facts:
    sums, shards = packed.counts(), packed.written["shards"]
    clips, lost = sums["clips"], sums["clips lost"]
    flow = [
        {"stage": "videos", "in": sums["files"], "kept": sums["kept"], "dropped": 0, "dead": sums["dead"]},
        {"stage": "clips", "in": clips + lost, "kept": clips, "dropped": 0, "dead": lost},
    ]
    summary = {
        "noun": "videos",
        "flow": flow,
        "notes": _notes(packed),
        "counts": dict(sorted(sums.items())),
        "dead_letters": dict(packed.markers["dead-letter"][0].counters),
    }
    facts = session.finish({"default": steps.video_features()}, summary, {"default": shards}, ABOUT)
    report.write_report(session.run, facts, dump_recipe(session.recipe))
    return facts


def _notes(packed: PackedVideos) -> list[str]:
    """Return what is said of files that no row comes from, and of keys of the annotations that are not read."""
    left_out = {
        "unnamed": "files of the folder are named in no annotation; they were left out.",
        "namesakes": "files of the folder have the name of another video; they were left out.",
    }
    counts = packed.markers["videos"][0].counters
    notes = [f"{counts[key]:,} {words}" for key, words in left_out.items() if counts.get(key)]
    unknown = {key.removeprefix(steps.UNKNOWN): n for key, n in sorted(counts.items()) if key.startswith(steps.UNKNOWN)}
    if unknown:
        keys = ", ".join(f"{key} ({count:,})" for key, count in unknown.items())
        notes.append(f"Keys of the annotations that no reader knows were left out, with how often each stands: {keys}.")
    return notes


def write_report(url: str) -> str:
    """Write report/index.html of a finished run again; returns its URL."""
    recipe, facts = read_recipe(url, PackVideosRecipe), read_facts(url)
    return report.write_report(Run(url.rstrip("/")), facts, dump_recipe(recipe))
