"""What a curation would do, before its first byte is written: sources, encoders at work, stages, disk and time."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from granary.curation.encoders.planned import PlannedEncoder, encoder_of
from granary.curation.errors import UserError
from granary.curation.images.filters import Filters
from granary.curation.recipe import ROLES, CurateRecipe, Role
from granary.curation.report.writing import duration
from granary.curation.runs.run import Run, Stage, Unit, standing
from granary.curation.runs.tables import read_table
from granary.curation.sources.files import absolute
from granary.curation.steps import embed, pace
from granary.curation.steps.listing import read_listing
from granary.curation.store import storage
from granary.curation.store.printable import printable
from granary.curation.store.threads import limit_threads
from granary.pipelines.engine.progress import Progress
from granary.pipelines.engine.stages import Stages
from granary.pipelines.engine.units import Engine, Runner
from granary.pipelines.kinds.curate_reading import Prepared, Reading
from granary.pipelines.kinds.join_prices import price_note, prices

PLACES = 6  # of the pool where a few files are read
HALF = 2  # bytes of a number of a stored vector
FACTS = 600  # bytes that all stages write of an image beside its vectors and its sample


class Listed(NamedTuple):
    """What the sources of a role hold.

    Args:
        stage: that embeds it.
        files: that were counted.
        uncounted: bytes of tars, whose files nobody has counted.
    """

    stage: Stage[embed.EmbedUnit]
    files: int
    uncounted: int

    def expected(self, mean: float) -> int:
        """Return the number of files, those of tars by the mean size of some."""
        return self.files + (round(self.uncounted / mean) if mean else 0)


class Line(NamedTuple):
    """A stage: its units, what it goes through, seconds of one worker, bytes that it writes."""

    stage: str
    units: int
    work: str
    seconds: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class DryRun:
    """A curation that is looked at and not run.

    Args:
        reading: the recipe made ready; none of its stages is run.
        engine: where they would run.
        console: to print to.
        scratch: a run of the same sources in a folder that goes away.
    """

    reading: Reading
    engine: Engine
    console: Console
    scratch: Run

    @property
    def recipe(self) -> CurateRecipe:
        """The recipe, with every default filled in."""
        return self.reading.recipe

    def tell(self, text: str) -> None:
        """Print a line, whose names may hold anything."""
        self.console.print(printable(text, keep=""), soft_wrap=True)

    def show(self) -> None:
        """Print what the sources hold, what was measured, and each stage."""
        free = free_space(self.recipe.out)
        self.reading.check_first_images()
        listed = {role: self.list_role(role) for role in ROLES if self.recipe.sources[role]}
        self.show_table(list(self.lines(listed)), free)
        for role, found in listed.items():
            if done := len(standing(self.reading.run, found.stage)):
                self.tell(f"{self.recipe.out} has {done:,} of the {found.stage.total:,} units of {role} already")
        self.tell("This was a dry run: nothing was written.")

    def encoder(self, role: Role) -> PlannedEncoder:
        """Return the encoder of a role."""
        copy, retrieval = self.reading.prepared.copy, self.reading.prepared.retrieval
        return retrieval if role == "seeds" and retrieval else copy

    def list_role(self, role: Role) -> Listed:
        """List a role and print what its sources hold."""
        found = self.reading.write_listing(self.scratch, role)
        columns = read_table(self.scratch.path("sources", f"{role}.parquet"), ["source", "size", "count"])
        source, size, count = (columns[name].to_numpy() for name in columns.column_names)
        for number, one in enumerate(self.scratch.sources[role]):
            own = source == number
            files, tars, megabytes = count[own].sum(), (count[own] == 0).sum(), size[own].sum() / 1e6
            told = [f"{files:,} files"] * bool(files or not tars) + [f"{tars:,} tar{'s' * int(tars > 1)}"] * bool(tars)
            told += [f"{megabytes:,.1f} MB"] * bool(megabytes)
            left = [f"{n:,} {what} left out ({why})" for (what, why), n in sorted(found.left_out[number].items())]
            self.tell(f"{role} {one.name}, {one.kind}: {', '.join([*told, *left])}")
        jobs = self.reading.embed_units(role, self.encoder(role), found, self.filters(role))
        units = [Unit(i, job, weight) for i, (job, weight) in enumerate(zip(jobs, found.weights, strict=True))]
        stage = Stage(role, embed.embed, units, noun="images")
        return Listed(stage, int(count.sum()), int(size[count == 0].sum()))

    def filters(self, role: Role) -> Filters:
        """Return what drops pictures of a role by how they look."""
        return self.recipe.filters if role == "pool" else embed.NO_FILTERS

    def lines(self, listed: dict[Role, Listed]) -> Iterator[Line]:
        """Measure how fast a few pictures are read, embedded and compared, and yield the stages that take time."""
        limit_threads(1)  # as each of several units has them
        recipe, prepared, threshold = self.recipe, self.reading.prepared, self.reading.prepared.dedup_threshold
        few, embedded = self.measure(listed["pool"])
        pair = pace.compare_few(embedded[prepared.copy].vectors, threshold, recipe.seed)
        self.tell(f"near-duplicate join: {1e-6 / pair:,.1f} million pairs in a second of one core")
        counts = {role: found.expected(few.bytes) for role, found in listed.items()}
        pool, views = counts["pool"], 2 if recipe.dedup.mirror else 1
        for role, found in listed.items():
            planned, times = self.encoder(role), views if role == "pool" else 1
            one = embedded[planned]
            seconds, size = few.seconds + times * one.seconds, times * one.vectors.shape[1] * HALF
            yield Line(role, found.stage.total, f"{counts[role]:,} images", counts[role] * seconds, counts[role] * size)
        blocks = -(-pool // recipe.dedup.block)
        if recipe.dedup.enabled:
            pairs = pool * (pool - 1) // 2 + (views - 1) * pool**2
            units = blocks * (blocks + 1) // 2 + (views - 1) * blocks**2
            join = Line("join", units, f"{pairs:,} pairs", pairs * pair, 0)
            if recipe.dedup.index == "cells":
                inside = prices(pool, recipe.dedup, pair)[1] * views * 3600
                join = Line("join", 0, f"{pool:,} images inside cells", inside, 0)
            if note := price_note(pool, recipe.dedup, pair):
                self.tell(f"note: {note}")
            yield join
        if recipe.references:
            pairs = counts["references"] * pool * views
            units = blocks * -(-counts["references"] // recipe.dedup.block)
            yield Line("leaks, first round", units, f"{pairs:,} pairs", pairs * pair, 0)
        if prepared.retrieval:
            one = embedded[prepared.retrieval]
            seconds, size = few.seconds + one.seconds, one.vectors.shape[1] * HALF
            units = listed["pool"].stage.total
            yield Line("features", units, f"at most {pool:,} images", pool * seconds, pool * size)
        yield Line("shards", -(-pool // recipe.shards.rows), f"at most {pool:,} samples", 0, pool * few.bytes)
        yield Line("all others", 0, "lists of what is kept and why", 0, pool * FACTS)

    def measure(self, pool: Listed) -> tuple[pace.Pace, dict[PlannedEncoder, pace.Embedded]]:
        """Read a few pictures and embed them by each encoder; raises UserError where none is an image."""
        recipe, prepared = self.recipe, self.reading.prepared
        planned = [one for one in (prepared.copy, prepared.retrieval) if one is not None]
        encoders = {one: encoder_of(one, recipe.encoder.device) for one in planned}
        sides = [encoder.side for encoder in encoders.values()]
        side = None if None in sides else max(filter(None, sides))
        units = np.unique(np.linspace(0, pool.stage.total - 1, PLACES).astype(int))
        places = [read_listing(self.scratch, "pool", int(unit)) for unit in units]
        few = pace.read_few(places, recipe.decode, recipe.filters, side)
        if not few.pictures:
            raise UserError(f"pool: none of the {len(few.rows)} files that were tried is an image ({few.reasons})")
        rate = 1 / few.seconds
        self.tell(
            f"{len(few.rows)} files tried, {len(few.pictures)} images, {rate:,.0f} read in a second by one worker"
        )
        embedded = {one: pace.embed_few(encoder, few.pictures) for one, encoder in encoders.items()}
        for one, (vectors, seconds) in embedded.items():
            where = f"{vectors.shape[1]} dimensions, device {recipe.encoder.device}"
            self.tell(f"{one.spec}: {where}, {1 / seconds:,.0f} images in a second by one worker")
        return few, embedded

    def show_table(self, lines: list[Line], free: int | None) -> None:
        """Print a row for each stage, and what all of them need."""
        table = Table("stage", "units", "work", "worker time", "at most", box=None, pad_edge=False)
        for name, units, work, seconds, size in lines:
            table.add_row(name, f"{units:,}" * bool(units), work, duration(seconds) * bool(seconds), megabytes(size))
        self.console.print(table)
        seconds, size = sum(line.seconds for line in lines), sum(line.bytes for line in lines)
        workers = self.engine.threads if self.engine.local else None
        shared = f", {duration(seconds / workers)} on the {workers} workers here" if workers else ""
        self.tell(f"in all {duration(seconds)} of one worker{shared}; at most {megabytes(size)}")
        if free is not None and size > free:
            self.tell(f"note: {self.recipe.out} may not have room: {megabytes(free)} are free there")


def free_space(out: str) -> int | None:
    """Return the bytes that are free where a run would be written; None where that is no disk of this machine.

    Raises:
        UserError: nothing could be written there.
    """
    try:
        if not storage.is_local(out):
            storage.names(out)  # asks the service, with the credentials that the run would have
            return None
        folder = Path(absolute(out))
        while not folder.exists():
            folder = folder.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"out: cannot write to {out}: {folder} may not be written to; choose another folder")
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"out: cannot look at {out}: {error.strerror or error}; choose another folder") from error


def megabytes(size: float) -> str:
    """Write a number of bytes in MB, GB or TB."""
    unit = "TB" if size >= 1e12 else "GB" if size >= 1e9 else "MB"
    return f"{size / {'MB': 1e6, 'GB': 1e9, 'TB': 1e12}[unit]:,.1f} {unit}"


def show_dry_run(prepared: Prepared, engine: Engine, console: Console) -> None:
    """Print what a recipe would do; nothing is written where it would run.

    Args:
        prepared: the recipe, its sources and encoders at hand.
        engine: where the work units would run.
        console: to print to.

    Raises:
        UserError: what would stop the run early: a source that cannot be listed or holds no image, a folder that cannot
            be written.
    """
    recipe = prepared.recipe
    run = Run(recipe.out.rstrip("/"), recipe.sources)
    reading = Reading(Stages(Runner(run, engine, Progress(console))), prepared)
    with tempfile.TemporaryDirectory() as folder:
        DryRun(reading, engine, console, Run(folder, recipe.sources)).show()
