"""run.json: what a run is, what it counted and what it cost."""

from __future__ import annotations

import collections
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from granary.curation.recipe import CaptionBalance, CurateRecipe
from granary.curation.runs.decisions import CUT
from granary.curation.runs.facts import Audit, CaptionCounts, EntryCount, FlowRow
from granary.curation.runs.lookup import ledger_tables
from granary.curation.runs.run import Marker, Run
from granary.curation.runs.vectors import Layout


class StageInfo(NamedTuple):
    """How a report calls what a stage of the ledger leaves and what it takes away."""

    left: str
    lost: str


STAGES = {  # where a file can be decided, in the order of the run
    "decode": StageInfo("Readable images", "unreadable"),
    "filter": StageInfo("Past the filters", "filtered out"),
    "exact": StageInfo("Distinct files", "exact copies"),
    "decisions": StageInfo("Not dropped by a decision", "dropped by a decision"),
    "dedup": StageInfo("Distinct pictures", "near duplicates"),
    "leaks": StageInfo("Free of leaks", "leaks"),
    "features": StageInfo("Embedded for retrieval", "not embedded"),
    "semdedup": StageInfo("Semantically distinct", "semantic duplicates"),
    "retrieval": StageInfo("Retrieved by a seed", "retrieved by no seed"),
    "balance": StageInfo("Drawn by balanced sampling", "not drawn"),
    "captions": StageInfo("Drawn by their captions", "not drawn by their captions"),
    "shards": StageInfo("Written to shards", "not written"),
}
PACKAGES = (
    "granary-data",
    "apache-beam",
    "datasets",
    "faiss-cpu",
    "numpy",
    "pillow",
    "pyarrow",
    "torch",
    "transformers",
)
CURVE_POINTS = 24
SHOWN_ENTRIES = 20


def flow(ledger: Sequence[Marker], run: Run) -> list[FlowRow]:
    """Return for each stage how many pool files came in, went on, were dropped and were lost.

    Only stages at which something was decided, and always the first and the last.
    """
    decided: collections.Counter[tuple[str, str]] = collections.Counter()
    for table in ledger_tables(run, ["role", "status", "stage"]):
        grouped = table.group_by(["role", "status", "stage"]).aggregate([([], "count_all")])
        for row in grouped.to_pylist():
            if row["role"] == "pool" and row["status"] != "kept":
                decided[row["stage"], row["status"]] += row["count_all"]
    left = sum(marker.rows for marker in ledger) - _seeds(ledger)
    rows: list[FlowRow] = []
    for stage in STAGES:
        dropped, dead = decided[stage, "dropped"], decided[stage, "dead"]
        if dropped or dead or stage in ("decode", "exact", "dedup"):
            rows.append({"stage": stage, "in": left, "kept": left - dropped - dead, "dropped": dropped, "dead": dead})
        left -= dropped + dead
    return rows


def _seeds(ledger: Sequence[Marker]) -> int:
    return sum(count for marker in ledger for key, count in marker.counters.items() if key.startswith("seed "))


def removed_at(run: Run, threshold: float) -> list[tuple[float, int]]:
    """Return (threshold, images removed) pairs at the run's threshold and above: the forest holds them all.

    A component of n images loses n - 1, so the number removed at a threshold is the number of forest edges above it.
    """
    similarity = np.sort(run.read(CUT if run.parts(CUT) else "forest", 0)["similarity"].to_numpy())
    points = np.unique(np.append(np.round(np.linspace(threshold, 1, CURVE_POINTS)[:-1], 4), threshold))
    return [
        (float(point), int(len(similarity) - np.searchsorted(similarity, np.float32(point), "right")))
        for point in points
        if point >= threshold
    ]


def caption_balance(run: Run, options: CaptionBalance, shown: int = SHOWN_ENTRIES) -> CaptionCounts | None:
    """Return what balancing captions came to; None where it was not asked for.

    Args:
        run: finished.
        options: of the balance.
        shown: entries of the head, and of the tail, that are listed.
    """
    if not run.parts("caption-balance"):
        return None
    table = run.read("caption-balance", 0)
    head = int((table["before"].to_numpy() > options.most).sum())
    rows: list[EntryCount] = _ends(table, head, shown).to_pylist()
    return {
        "most": options.most,
        "entries": sum(run.rows("caption-entries")),
        "head": head,
        "tail": table.num_rows - head,
        "rows": rows,
    }


def _ends(table: pa.Table, head: int, shown: int) -> pa.Table:
    """Return the most frequent entries, and the first of those that keep all their images."""
    return pa.concat_tables([table.slice(0, min(head, shown)), table.slice(head, shown)])


def leak_audit(run: Run, recipe: CurateRecipe) -> list[Audit]:
    """Return for each reference set the highest similarity that is left between it and the surviving pool."""
    if not run.parts("audit"):
        return []
    rows, layout = run.read_all("audit"), Layout.of(run, "references")
    sources = layout.take(rows["reference"].to_numpy(), ["source"])["source"].to_numpy()
    similarity = rows["similarity"].to_numpy()
    return [
        {"reference": source.name, "highest_similarity": round(float(similarity[sources == number].max()), 6)}
        for number, source in enumerate(recipe.references)
        if np.isfinite(similarity[sources == number]).any()
    ]


def versions() -> dict[str, str]:
    """Return the versions that decide a run's output."""
    numbers = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return numbers
