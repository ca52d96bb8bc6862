"""Run a curation from start to end: check, run the stages, write card, run.json and report, print the table."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from granary.curation.errors import UserError
from granary.curation.hub.card import CURATED
from granary.curation.recipe import CurateRecipe
from granary.curation.report import RunView, build_report
from granary.curation.runs import summary
from granary.curation.runs.lookup import ROLES, Files, ledger_tables, open_run
from granary.curation.sources.files import absolute
from granary.curation.store import schema, storage
from granary.pipelines.engine.recipe import dump_recipe
from granary.pipelines.engine.session import Session, read_facts, writable
from granary.pipelines.engine.units import Engine
from granary.pipelines.kinds.curate import Curation, prepared


def curate(recipe: CurateRecipe, engine: Engine, console: Console | None = None) -> dict[str, Any]:
    """Curate; finished work of an earlier, interrupted run of the same recipe is kept.

    Args:
        recipe: what to do.
        engine: where the work units run.
        console: for progress and the closing table; stderr by default.

    Returns:
        What run.json holds.

    Raises:
        UserError: the recipe cannot be run, or a work unit failed.
    """
    recipe, fingerprints = prepared(recipe)
    _check_apart(recipe)
    sources = {role: getattr(recipe, role) for role in ROLES}
    session = Session.begin(recipe, "curate", engine, console, sources, ("pool", _pool_paths))
    curation = Curation(session.runner, recipe, fingerprints)
    with writable(recipe.out):
        curation.run()
        facts = session.finish(
            {"default": schema.curated_features()},
            _summarise(curation),
            {"default": curation.markers["shards"]},
            CURATED,
            recipe.decode,
        )
        write_report(session.run.url, facts)
    session.print_table(facts, [("ledger", "ledger")])
    return facts


def _pool_paths(recipe: CurateRecipe) -> str:
    return ", ".join(source.path for source in recipe.pool)


def _check_apart(recipe: CurateRecipe) -> None:
    """Refuse a run directory inside a folder of images: the next run would read it as images."""
    out = absolute(recipe.out).rstrip("/") + "/"
    for source in (*recipe.pool, *recipe.seeds, *recipe.references):
        if source.path.endswith("/") and out.startswith(source.path):
            raise UserError(f"out: {recipe.out} lies inside {source.name} ({source.path}); give a folder beside it")


def _summarise(curation: Curation) -> dict[str, Any]:
    recipe, run, markers = curation.recipe, curation.run_directory, curation.markers
    return {
        "input_fingerprint": curation.digests["pool"],
        "order": curation.order,
        "flow": summary.flow(markers["ledger"], run),
        "sources": summary.source_counts(recipe, markers, run),
        "thresholds": {"dedup": recipe.dedup.threshold, "leaks": recipe.leaks.threshold},
        "removed_at": summary.removed_at(run, recipe.dedup.threshold or 0),
        "leak_audit": summary.leak_audit(run, recipe),
        "retrieval": _retrieval(curation),
        "notes": _notes(curation),
    }


def _retrieval(curation: Curation) -> list[dict[str, Any]]:
    rows = []
    for number, seeds in enumerate(curation.recipe.seeds):
        counters = curation.markers[f"retrieved-{number}"][0].counters
        blocks = [marker.counters for marker in curation.markers.get(f"nearest-{number}", [])]
        measured = [block["recall_millionths"] / 1e6 for block in blocks if "recall_millionths" in block]
        rows.append(
            {
                "set": seeds.name,
                "mode": seeds.mode,
                **{key: counters.get(key, 0) for key in ("seeds", "retrievals", "distinct")},
                **({"recall": round(sum(measured) / len(measured), 4)} if measured else {}),
            }
        )
    return rows


def _notes(curation: Curation) -> list[str]:
    recipe, notes = curation.recipe, []
    if recipe.references and any(seeds.as_is for seeds in recipe.seeds):
        notes.append("Seeds taken as they are were not compared with the reference sets.")
    if recipe.references and not recipe.leaks.through_pool:
        notes.append("Leaks were removed by direct resemblance only, not by whole components.")
    for seeds, row in zip(recipe.seeds, _retrieval(curation), strict=True):
        if not row["distinct"]:
            why = (
                f"no cell holds more than {recipe.retrieval.min_seeds} of its seeds"
                if seeds.mode == "cluster"
                else "no pool image was left to retrieve"
            )
            notes.append(f"Seed set {seeds.name} retrieved nothing: {why}.")
    return notes


def write_report(url: str, facts: dict[str, Any] | None = None) -> str:
    """Write report/index.html of a run directory; returns its URL."""
    run, recipe = open_run(url)
    facts = facts or read_facts(url)
    files = Files(run, recipe.decode.max_bytes)
    view = RunView(facts, dump_recipe(recipe), lambda: ledger_tables(run), files.read, files.seed_uri, recipe.decode)
    target = run.path("report", "index.html")
    storage.write_bytes(target, build_report(view).encode())
    return target
