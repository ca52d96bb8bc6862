"""Run a curation from start to end: check, run the stages, write card, run.json and report, print the table."""

from __future__ import annotations

import datetime
import json
import logging
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from curation import schema, storage, summary
from curation.card import contact_sheet_of, earlier_card, write_card
from curation.errors import UserError
from curation.lookup import Files, ledger_tables, open_run
from curation.parts import Run
from curation.recipe import CurateRecipe
from curation.report import RunView, build_report
from curation.sources.files import absolute
from pipelines.curate import Curation, prepared, recipe_digest
from pipelines.progress import Progress
from pipelines.recipe import dump_recipe
from pipelines.units import Engine, Runner

log = logging.getLogger(__name__)


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
    console = console or Console(stderr=True, highlight=False, markup=False)
    started = time.monotonic()
    recipe, fingerprints = prepared(recipe)
    try:
        earlier = check_out(recipe)
    except OSError as error:
        raise UserError(f"out: cannot read {recipe.out}: {error.strerror or error}") from error
    run = Run(recipe.out.rstrip("/"), {role: getattr(recipe, role) for role in ("pool", "seeds", "references")})
    _begin(run, recipe)
    runner = Runner(run, engine, Progress(console))
    curation = Curation(runner, recipe, fingerprints)
    try:
        curation.run()
        facts = _summarise(curation, earlier, time.monotonic() - started)
        write_report(run.url, facts)
    except OSError as error:
        raise UserError(
            f"out: cannot write to {recipe.out}: {error.strerror or error}; "
            "free space or choose another folder, and run the same command again"
        ) from error
    _print_table(console, run, facts)
    return facts


def check_out(recipe: CurateRecipe) -> dict[str, Any]:
    """Return run.json of an earlier run in the same directory, {} when there is none.

    Raises:
        UserError: the directory holds something else, or the run of another pool, or lies inside a source.
    """
    _check_apart(recipe)
    names = [name for name in storage.names(recipe.out) if not name.endswith(".tmp")]
    if not names:
        return {}
    if "recipe.yaml" not in names:
        raise UserError(f"out: {recipe.out} is not empty and no run directory; give a new folder")
    _, before = open_run(recipe.out)
    pools = [[source.path for source in pool] for pool in (before.pool, recipe.pool)]
    if pools[0] != pools[1]:
        raise UserError(
            f"out: {recipe.out} holds the run of another pool ({', '.join(pools[0])}); "
            "give another --out, or delete that folder"
        )
    if "run.json" not in names:
        return {}
    return dict(json.loads(storage.read_bytes(storage.join(recipe.out, "run.json"))))


def _check_apart(recipe: CurateRecipe) -> None:
    """Refuse a run directory inside a folder of images: the next run would read it as images."""
    out = absolute(recipe.out).rstrip("/") + "/"
    for source in (*recipe.pool, *recipe.seeds, *recipe.references):
        if source.path.endswith("/") and out.startswith(source.path):
            raise UserError(f"out: {recipe.out} lies inside {source.name} ({source.path}); give a folder beside it")


def _begin(run: Run, recipe: CurateRecipe) -> None:
    """Write the recipe, and remove what a killed run left half written outside of its stages."""
    try:
        storage.write_bytes(run.path("recipe.yaml"), dump_recipe(recipe).encode())
        for folder in ("", "sources", "dataset", "report"):
            for name in storage.names(run.path(folder)):
                if name.endswith(".tmp"):
                    storage.remove(run.path(folder, name))
    except OSError as error:
        raise UserError(
            f"out: cannot write to {run.url}: {error.strerror or error}; give a folder you can write to"
        ) from error


def _summarise(curation: Curation, earlier: dict[str, Any], seconds: float) -> dict[str, Any]:
    recipe, run, markers = curation.recipe, curation.run_directory, curation.markers
    flow = summary.flow(markers["ledger"], run)
    samples, size = (
        sum(marker.rows for marker in markers["shards"]),
        sum(marker.size for marker in markers["shards"]),
    )
    session = {"started": _now(), "seconds": round(seconds, 1), "stages": curation.runner.timings}
    facts = {
        "kind": "curate",
        "name": recipe.name,
        "created": earlier.get("created") or _now(),
        "updated": _now(),
        "seed": recipe.seed,
        "versions": summary.versions(),
        "recipe_digest": recipe_digest(recipe),
        "input_fingerprint": curation.digests["pool"],
        "order": curation.order,
        "flow": flow,
        "samples": samples,
        "shards": len(markers["shards"]),
        "bytes": size,
        "sources": summary.source_counts(recipe, markers, run),
        "thresholds": {"dedup": recipe.dedup.threshold, "leaks": recipe.leaks.threshold},
        "removed_at": summary.removed_at(run, recipe.dedup.threshold or 0),
        "leak_audit": summary.leak_audit(run, recipe),
        "retrieval": _retrieval(curation),
        "stages": _stages(earlier, curation.runner.timings),
        "notes": _notes(curation),
        "sessions": [*earlier.get("sessions", []), session],
    }
    _write_card(run, recipe, facts)
    storage.write_bytes(run.path("run.json"), json.dumps(facts, indent=2).encode())
    return facts


def _write_card(run: Run, recipe: CurateRecipe, facts: dict[str, Any]) -> None:
    """Write README.md and its contact sheet beside the shards; what the user wrote into the card stays."""
    names = storage.names(run.path("dataset", "data"))
    sheet = contact_sheet_of([run.path("dataset", "data", name) for name in names], recipe.decode)
    if sheet is None:
        storage.remove(run.path("dataset", "contact-sheet.jpg"))
    else:
        storage.write_bytes(run.path("dataset", "contact-sheet.jpg"), sheet)
    features = {"default": schema.curated_features()}
    plain = recipe.model_dump(mode="json", by_alias=True)
    card = write_card(facts, plain, features, earlier_card(run), sheet=sheet is not None)
    storage.write_bytes(run.path("dataset", "README.md"), card.encode())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _stages(earlier: dict[str, Any], timings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the timings of this session to those of the sessions it resumed."""
    merged = {row["stage"]: dict(row) for row in earlier.get("stages", [])}
    merged.update({row["stage"]: row for row in timings})
    return list(merged.values())


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
    if facts is None:
        if not storage.exists(run.path("run.json")):
            raise UserError(f"run: {url} is not finished; run its granary curate command again first")
        facts = json.loads(storage.read_bytes(run.path("run.json")))
    files = Files(run, recipe.decode.max_bytes)
    view = RunView(facts, dump_recipe(recipe), lambda: ledger_tables(run), files.read, files.seed_uri, recipe.decode)
    target = run.path("report", "index.html")
    storage.write_bytes(target, build_report(view).encode())
    return target


def _print_table(console: Console, run: Run, facts: dict[str, Any]) -> None:
    table = Table("stage", "in", "kept", "dropped", "dead", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in facts["flow"]:
        table.add_row(row["stage"], *(f"{row[key]:,}" for key in ("in", "kept", "dropped", "dead")))
    console.print()
    console.print(table)
    seconds = sum(row["seconds"] for row in facts["stages"])
    files = facts["flow"][0]["in"]
    rate = f", {files / seconds:,.0f} files/s" if seconds else ""
    console.print(
        f"\n{facts['samples']:,} samples in {facts['shards']} shards, {facts['bytes'] / 1e6:,.1f} MB; "
        f"{seconds:,.1f} s of work{rate}",
        soft_wrap=True,
    )
    for note in facts["notes"]:
        console.print(f"note: {note}", soft_wrap=True)
    for what, where in (("dataset", "dataset"), ("report", "report/index.html"), ("ledger", "ledger")):
        console.print(f"{what:<8} {run.path(where)}", soft_wrap=True)
