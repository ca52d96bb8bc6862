"""One run of a pipeline, from the check of `out` to the closing table: what every pipeline of granary does alike."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from granary.curation.errors import UserError, lacks_space
from granary.curation.hub.card import contact_sheet_of, earlier_card, own_template, write_card
from granary.curation.hub.licences import check_licence
from granary.curation.images.limits import DecodeLimits
from granary.curation.options import RunRecipe
from granary.curation.report.cost import ASSUMPTIONS, SIZES, projection
from granary.curation.report.writing import duration
from granary.curation.runs import summary
from granary.curation.runs.facts import About, Facts, Sitting, Timing, read_facts, read_recipe
from granary.curation.runs.lock import LOCK, Lock
from granary.curation.runs.run import Run, digest
from granary.curation.runs.splits import TRAIN, Shard, count_shards
from granary.curation.sources import Source
from granary.curation.store import storage
from granary.curation.store.printable import printable
from granary.pipelines.engine.progress import Progress
from granary.pipelines.engine.recipe import dump_recipe
from granary.pipelines.engine.source_table import print_sources
from granary.pipelines.engine.units import Engine, Runner

if TYPE_CHECKING:
    from datasets import Features

R = TypeVar("R", bound=RunRecipe)
Subject = tuple[str, Callable[[R], object]]  # noun and function of a recipe: what a directory holds one run of
OUTSIDE_DIGEST = {"out", "max_unreadable"}  # fields of a recipe that never decide what it makes


@dataclasses.dataclass
class Session(Generic[R]):
    """A run that has begun.

    Args:
        recipe: what to do.
        kind: the name of the command: curate, render, sample, pack.
        run: its directory.
        runner: runs its stages.
        console: for progress and the closing table.
        earlier: run.json of an earlier run of the same kind in the same directory; None when there is none.
        started: time.monotonic() at the beginning.
        repeated: whether the directory holds this very recipe already.
        lock: of the directory, held until the work ends.
    """

    recipe: R
    kind: str
    run: Run
    runner: Runner
    console: Console
    earlier: Facts | None
    started: float
    repeated: bool
    lock: Lock

    @classmethod
    def begin(
        cls,
        recipe: R,
        kind: str,
        engine: Engine,
        console: Console | None = None,
        sources: Mapping[str, Sequence[Source]] | None = None,
        subject: Subject[R] | None = None,
    ) -> Session[R]:
        """Check `out` and write the recipe there; finished work of an earlier run of the same kind is kept.

        Args:
            recipe: resolved, every path in it absolute.
            kind: the name of the command.
            engine: where the work units run.
            console: stderr by default.
            sources: of each role, for the work units.
            subject: (noun, function of a recipe) of what a directory holds one run of, for example the pool.

        Raises:
            UserError: the directory holds something else, is held by another command or cannot be written, or the Hub
                knows no such licence.
        """
        started = time.monotonic()
        console = console_or_stderr(console)
        check_licence(recipe.licence)
        run = Run(recipe.out.rstrip("/"), dict(sources or {}))
        runner, lock = Runner(run, engine, Progress(console)), Lock(run.url)
        with writable(recipe.out):
            _check_out(recipe, kind, subject)  # nothing is written into a folder that is no run, not even the lock
            lock.acquire(engine.steal_lock)
            try:
                earlier = _check_out(recipe, kind, subject)
                repeated = _write_recipe(run, recipe) and earlier is not None
                _remove_half_written(run)
            except BaseException:
                lock.release()
                raise
        return cls(recipe, kind, run, runner, console, earlier, started, repeated, lock)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Give the directory back at the end of the block, whose errors of the file system become one sentence."""
        try:
            with writable(self.recipe.out):
                yield
        finally:
            self.lock.release()

    def completed(
        self, work: Callable[[], object], finish: Callable[[], Facts], places: Sequence[tuple[str, str]] = ()
    ) -> Facts:
        """Run every stage, close the run unless it stands, print its table; returns what run.json holds.

        Args:
            work: runs the stages.
            finish: writes what follows from them, see `finish`.
            places: further files to name below the table.
        """
        with self.working():
            work()
            facts = self.standing() or finish()
        self.print_table(facts, places)
        return facts

    def standing(self) -> Facts | None:
        """Return run.json when no stage had work to do and all that follows from it is there; None otherwise.

        A template of the user's own is a reason to write the card again: nobody knows when it changed.
        """
        earlier, run = self.earlier, self.run
        if earlier is None or not self.repeated or self.runner.timings:
            return None
        same = earlier["recipe_digest"] == recipe_digest(self.recipe) and earlier["versions"] == summary.versions()
        pages = (run.path("dataset", "README.md"), run.report_page)
        return earlier if same and all(map(storage.exists, pages)) and own_template(run) is None else None

    def finish(
        self,
        features: Mapping[str, Features],
        facts: Mapping[str, object],
        shards: Mapping[str, Sequence[Shard]],
        card: About,
        limits: DecodeLimits | None = None,
    ) -> Facts:
        """Write card, contact sheet and run.json; returns what run.json holds.

        Args:
            features: for each config the `datasets.Features` of its shards, "default" first.
            facts: what only this kind of run has to say; `flow` must be there.
            shards: for each config its shards, as the stage that wrote them has them.
            card: what the card says of this kind of run, see `granary.curation.hub.card.write_card`.
            limits: under which the pictures of the contact sheet are decoded.
        """
        configs = {config: count_shards(written) for config, written in shards.items()}
        timings = cast(list[Timing], self.runner.timings)
        sitting = Sitting(started=_now(), seconds=round(time.monotonic() - self.started, 1), stages=timings)
        earlier = self.earlier or cast(Facts, {})
        common = {
            "kind": self.kind,
            "name": self.recipe.name,
            "created": earlier.get("created") or _now(),
            "updated": _now(),
            "seed": self.recipe.seed,
            "versions": summary.versions(),
            "recipe_digest": recipe_digest(self.recipe),
            **configs["default"],
            "configs": configs,
            "card": card,
            "notes": [],
        }
        work = {
            "stages": _merged(earlier.get("stages", []), timings),
            "sessions": [*earlier.get("sessions", []), sitting],
        }
        whole = cast(Facts, {**common, **facts, **work})
        with writable(self.recipe.out):
            storage.remove(self.run.report_page)
            self._write_card(whole, features, limits or DecodeLimits())
            storage.write_bytes(self.run.path("run.json"), json.dumps(whole, indent=2).encode())
        return whole

    def _write_card(self, facts: Facts, features: Mapping[str, Features], limits: DecodeLimits) -> None:
        """Write README.md and its contact sheet beside the shards; what the user wrote into the card stays."""
        run = self.run
        shards = [name for name in storage.names(run.path("dataset", "data")) if name.endswith(".parquet")]
        sheet = contact_sheet_of([run.path("dataset", "data", name) for name in shards], limits)
        if sheet is None:
            storage.remove(run.path("dataset", "contact-sheet.jpg"))
        else:
            storage.write_bytes(run.path("dataset", "contact-sheet.jpg"), sheet)
        plain = self.recipe.model_dump(mode="json", by_alias=True)
        card = write_card(
            facts, plain, features, earlier_card(run), sheet=sheet is not None, template=own_template(run)
        )
        storage.write_bytes(run.path("dataset", "README.md"), card.encode())

    def print_table(self, facts: Facts, places: Sequence[tuple[str, str]] = ()) -> None:
        """Print what came in and went out at each stage, the size of the dataset and where to look."""
        table = Table("stage", "in", "kept", "dropped", "dead", box=None, pad_edge=False, header_style="bold")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in facts["flow"]:
            table.add_row(row["stage"], *(f"{row[key]:,}" for key in ("in", "kept", "dropped", "dead")))
        self.console.print()
        self.console.print(table)
        if facts.get("sources"):
            print_sources(self.console, facts["sources"])
        seconds = sum(row["seconds"] for row in facts["stages"])
        items = facts["flow"][0]["in"]
        rate = f", {items / seconds:,.1f} {facts.get('noun', 'files')}/s" if seconds else ""
        self.console.print(
            f"\n{facts['samples']:,} samples in {facts['shards']} shards, {facts['bytes'] / 1e6:,.1f} MB"
            f"{_splits(facts)}; "
            f"{seconds:,.1f} s of work{rate}",
            soft_wrap=True,
        )
        for note in facts["notes"]:
            self.console.print(f"note: {printable(note)}", soft_wrap=True)
        for what, where in (("dataset", "dataset"), ("report", "report/index.html"), *places):
            self.console.print(f"{what:<8} {self.run.path(where)}", soft_wrap=True)


def console_or_stderr(console: Console | None) -> Console:
    """Return the console that was given, or one that writes plain text to stderr."""
    return console or Console(stderr=True, highlight=False, markup=False)


def print_cost(console: Console, facts: Facts) -> None:
    """Print what each stage cost, and what the recipe would take for larger pools by the measured rates."""
    projected = {row["stage"]: row["seconds"] for row in projection(facts)}
    table = Table("stage", "seconds", "rows/s", "peak MB", *(f"{size:.0e} files" for size in SIZES), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    seconds = sum(row["seconds"] for row in facts["stages"])
    total = Timing(stage="all", units=0, rows=0, noun="", seconds=seconds, workers=None)
    for row in [*facts["stages"], total]:
        rate = f"{row['rows'] / row['seconds']:,.1f}" if row["seconds"] and row["rows"] else ""
        ahead = ["?" if s is None else duration(s) for s in projected.get(row["stage"], [])]
        peak = f"{row['peak_mb']:,.0f}" if row.get("peak_mb") else ""
        table.add_row(row["stage"], f"{row['seconds']:,.1f}", rate, peak, *ahead)
    console.print(table)
    for text in ASSUMPTIONS if projected else ():
        console.print(f"- {text}", soft_wrap=True)


@contextlib.contextmanager
def writable(out: str) -> Iterator[None]:
    """Turn an error of the file system below `out` into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"out: cannot write to {out}: {error.strerror or error}; {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if lacks_space(error):
        return "free space there or choose another folder, and run the same command again"
    return "choose a folder that can be written to, and run the same command again"


def _check_out(recipe: R, kind: str, subject: Subject[R] | None) -> Facts | None:
    """Return run.json of an earlier run in the directory, if any; raises UserError when it holds something else."""
    names = [name for name in storage.names(recipe.out) if not name.endswith(".tmp") and name != LOCK]
    if not names:
        return None
    if not {"recipe.yaml", "run.json"} & set(names):
        raise UserError(f"out: {recipe.out} is not empty and is not a run directory; give a new folder")
    before = read_recipe(recipe.out, type(recipe)) if "recipe.yaml" in names else recipe
    if subject is not None and subject[1](before) != subject[1](recipe):
        raise UserError(
            f"out: {recipe.out} holds the run of another {subject[0]} ({subject[1](before)}); "
            "give another --out, or delete that folder"
        )
    if "run.json" not in names:
        return None
    earlier = read_facts(recipe.out)
    if earlier.get("kind") != kind:
        raise UserError(f"out: {recipe.out} holds a run of granary {earlier.get('kind')}; give another --out")
    return earlier


def _write_recipe(run: Run, recipe: RunRecipe) -> bool:
    """Write recipe.yaml; returns whether the same stood there."""
    path, text = run.path("recipe.yaml"), dump_recipe(recipe).encode()
    same = storage.exists(path) and storage.read_bytes(path) == text
    storage.write_bytes(path, text)
    return same


def _remove_half_written(run: Run) -> None:
    """Remove what a killed run left half written outside of its stages."""
    for folder in ("", "sources", "dataset", "report"):
        for name in storage.names(run.path(folder)):
            if name.endswith(".tmp"):
                storage.remove(run.path(folder, name))


def recipe_digest(recipe: BaseModel) -> str:
    """Return the digest of everything in a recipe that decides its output."""
    return digest(recipe.model_dump(mode="json", by_alias=True, exclude=OUTSIDE_DIGEST))


def _splits(facts: Facts) -> str:
    """Return how many samples the splits have; nothing where train is the only one."""
    splits = {name: counts["samples"] for name, counts in facts.get("splits", {}).items()}
    return "" if list(splits) in ([], [TRAIN]) else f" ({', '.join(f'{n} {count:,}' for n, count in splits.items())})"


def _merged(earlier: Sequence[Timing], timings: Sequence[Timing]) -> list[Timing]:
    """Add the timings of this session to those of the sessions it resumed."""
    merged = {row["stage"]: row for row in (*earlier, *timings)}
    return list(merged.values())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
