"""Run a curation from start to end: check, run the stages, write card, run.json and report, print the table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from granary.curation.encoders.choice import BY_LAYOUT, LAYOUT, choose_encoder
from granary.curation.hub.card import CURATED
from granary.curation.recipe import CurateRecipe, Retrieval, SeedSet
from granary.curation.report import RunView, build_report
from granary.curation.report.drops import write_dropped
from granary.curation.report.page import write_page
from granary.curation.runs import summary
from granary.curation.runs.decisions import STAGE
from granary.curation.runs.facts import Facts, SetCount, read_facts
from granary.curation.runs.lookup import Files, ledger_tables, open_run
from granary.curation.runs.run import LOST, Run
from granary.curation.steps import decisions
from granary.curation.steps.doubtful import doubtful
from granary.curation.steps.plan import planned_classes
from granary.curation.store import schema
from granary.pipelines.engine.recipe import dump_recipe
from granary.pipelines.engine.session import Session, console_or_stderr
from granary.pipelines.engine.stages import Stages
from granary.pipelines.engine.units import Engine
from granary.pipelines.kinds.curate import Curation
from granary.pipelines.kinds.curate_cells import cell_counts, recall_note
from granary.pipelines.kinds.curate_reading import Reading, prepare

SPREAD = ("lowest", "median", "highest")  # similarities of retrieved images


def curate(
    recipe: CurateRecipe,
    engine: Engine,
    console: Console | None = None,
    *,
    retry_failed: bool = False,
    offline: bool = False,
    dry_run: bool = False,
) -> Mapping[str, Any]:
    """Curate; finished work of an earlier, interrupted run of the same recipe is kept.

    What an earlier run lost to something that can pass, a busy server for example, is tried again.

    Args:
        recipe: what to do.
        engine: where the work units run.
        console: for progress and the closing table; stderr by default.
        retry_failed: try everything again that could not be read.
        offline: whether no model may be downloaded.
        dry_run: print what would be done, as far as listing and a few pictures tell, and stop.

    Returns:
        What run.json holds; nothing of a dry run.

    Raises:
        UserError: the recipe cannot be run, or a work unit failed.
    """
    console = console_or_stderr(console)
    tell = functools.partial(console.print, soft_wrap=True)
    prepared = prepare(recipe, lambda: choose_encoder(offline, tell))
    if dry_run:
        from granary.pipelines.kinds.curate_dry_run import show_dry_run  # embeds and joins, which a repeat does not

        show_dry_run(prepared, engine, console)
        return {}
    recipe = prepared.recipe
    session = Session.begin(recipe, "curate", engine, console, recipe.sources, ("pool", _pool_paths))
    session.runner.run = dataclasses.replace(session.runner.run, retry_failed=retry_failed)
    curation = Curation(Reading(Stages(session.runner), prepared))
    return session.completed(curation.run, lambda: _finish(session, curation), [("ledger", "ledger")])


def _finish(session: Session[CurateRecipe], curation: Curation) -> Facts:
    recipe = session.recipe
    features = {"default": schema.curated_features(planned_classes(session.run))}
    shards = {"default": curation.stages.written["shards"]}
    facts = session.finish(features, _summarise(curation), shards, CURATED, recipe.decode)
    _write_report(session.run, recipe, facts)
    return facts


def _pool_paths(recipe: CurateRecipe) -> str:
    return ", ".join(source.path for source in recipe.pool)


def _summarise(curation: Curation) -> dict[str, object]:
    prepared, run, markers = curation.prepared, curation.run_directory, curation.stages.markers
    return {
        "input_fingerprint": curation.stages.digests["pool"],
        "order": curation.order,
        "flow": summary.flow(markers["ledger"], run),
        "sources": [counted.row(role, source) for role, source, counted in curation.reading.counted()],
        "thresholds": {"dedup": prepared.dedup_threshold, "leaks": prepared.leak_threshold},
        "removed_at": summary.removed_at(run, prepared.dedup_threshold),
        "cells": cell_counts(curation.stages),
        "leak_audit": summary.leak_audit(run, prepared.recipe),
        "retrieval": _retrieval(curation),
        "caption_balance": summary.caption_balance(run, prepared.recipe.balance.captions),
        "notes": _notes(curation),
    }


def _retrieval(curation: Curation) -> list[SetCount]:
    """Return what each seed set retrieved, and of an approximate search the mean recall of its blocks."""
    rows, markers = [], curation.stages.markers
    for number, seeds in enumerate(curation.recipe.seeds):
        counted = markers[f"retrieved-{number}"][0].counters
        seed_count, retrievals, distinct = (counted.get(key, 0) for key in ("seeds", "retrievals", "distinct"))
        row = SetCount(set=seeds.name, mode=seeds.mode, seeds=seed_count, retrievals=retrievals, distinct=distinct)
        if spread := [counted[f"{name}_millionths"] / 1e6 for name in SPREAD if f"{name}_millionths" in counted]:
            row["similarities"] = [round(value, 4) for value in spread]
        blocks = [marker.counters for marker in markers.get(f"nearest-{number}", [])]
        measured = [block["recall_millionths"] / 1e6 for block in blocks if "recall_millionths" in block]
        if measured:
            row["recall"] = round(sum(measured) / len(measured), 4)
        rows.append(row)
    return rows


def _notes(curation: Curation) -> list[str]:
    recipe, notes = curation.recipe, [*curation.reading.unreadable_notes(), *_lost_notes(curation)]
    if counted := cell_counts(curation.stages):
        notes.append(recall_note(counted))
    if curation.prepared.retrieval and curation.prepared.retrieval.spec.startswith(LAYOUT):
        notes.append(BY_LAYOUT)
    for marker in curation.stages.markers.get(STAGE, []):
        notes += decisions.notes_of(marker.counters, marker.notes)
    if recipe.references and any(seeds.as_is for seeds in recipe.seeds):
        notes.append("Seeds taken as they are were not compared with the reference sets.")
    if recipe.references and not recipe.leaks.through_pool:
        notes.append("Leaks were removed by direct resemblance only, not by whole components.")
    for seeds, row in zip(recipe.seeds, _retrieval(curation), strict=True):
        if not row["distinct"]:
            notes.append(f"Seed set {seeds.name} retrieved nothing: {_why_nothing(seeds, recipe.retrieval)}.")
    return notes


def _lost_notes(curation: Curation) -> list[str]:
    """Say of every stage how many files it lost to what can pass."""
    counted = {
        stage: sum(marker.counters.get(LOST, 0) for marker in markers)
        for stage, markers in curation.stages.markers.items()
    }
    return [
        f"{stage}: {count:,} files could not be read for reasons that may pass; the same command tries them again."
        for stage, count in counted.items()
        if count
    ]


def _why_nothing(seeds: SeedSet, options: Retrieval) -> str:
    if seeds.mode == "cluster":
        return f"no cell holds more than {options.min_seeds} of its seeds"
    if options.threshold is not None:
        return f"no pool image that was left has a similarity of {options.threshold} or more with a seed"
    return "no pool image was left to retrieve"


def write_report(url: str) -> str:
    """Write report/index.html of a finished run again; returns its URL."""
    run, recipe = open_run(url)
    return _write_report(run, recipe, read_facts(url))


def _write_report(run: Run, recipe: CurateRecipe, facts: Facts) -> str:
    files = Files(run, recipe.decode.max_bytes)
    near = doubtful(run, recipe.dedup, facts["thresholds"]["dedup"])
    written, limits, filters = dump_recipe(recipe), recipe.decode, recipe.filters
    view = RunView(facts, written, lambda: ledger_tables(run), files.read, files.seed_uri, limits, filters, near)
    write_dropped(run)
    return write_page(run, build_report(view))
