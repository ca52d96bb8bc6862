"""Decide every pool row once, from the sparse tables of all stages: row group i is the verdict on pool part i."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from granary.curation.runs.run import Output, Run, read_table
from granary.curation.runs.vectors import Layout
from granary.curation.steps.leaks import all_leaks
from granary.curation.store.schema import LEDGER

IDENTITY = ("uri", "id", "sha256", "role")  # what a ledger row says of the file itself; the rest is the verdict
VERDICT = pa.schema([field for field in LEDGER if field.name not in IDENTITY])


class Sparse:
    """Rows of a stage that speak of some pool rows only, found by global index.

    Args:
        table: with a column `index`, sorted.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table, self.index = table, table["index"].to_numpy()

    def between(self, start: int, stop: int) -> dict[int, dict[str, Any]]:
        """Return the rows of the pool rows [start, stop), by global index."""
        low, high = np.searchsorted(self.index, [start, stop])
        return {row["index"]: row for row in self.table.slice(low, high - low).to_pylist()}

    @staticmethod
    def of(run: Run, stage: str, columns: list[str] | None = None) -> Sparse:
        """Read a stage that may not have run."""
        if not run.parts(stage):
            return Sparse(pa.table({"index": pa.array([], pa.int64())}))
        return Sparse(run.read_all(stage, columns).sort_by("index"))


class Evidence:
    """All that the stages say of the pool."""

    def __init__(self, run: Run, retrieves: bool, sets: tuple[str, ...]) -> None:
        self.retrieves, self.sets = retrieves, sets
        self.layout = Layout.of(run, "pool")
        self.members = Sparse.of(run, "duplicates")
        self.copies = Sparse(_with_component(Sparse.of(run, "exact").table, self.members))
        self.leaks = Sparse(_named_leaks(run, self.layout))
        self.lost = Sparse.of(run, "unreadable")
        self.semantic = Sparse.of(run, "semdedup")
        self.retrieved = Sparse.of(run, "retrieved")
        self.balanced = Sparse.of(run, "balanced")


def _with_component(copies: pa.Table, members: Sparse) -> pa.Table:
    """Add to the exact copies the component of the image they copy, where it has near duplicates."""
    originals = copies["original"].to_numpy()
    place = np.searchsorted(members.index, originals)
    inside = np.isin(originals, members.index)
    taken = members.table.take(pa.array(np.where(inside, place, 0), mask=~inside))
    return copies.append_column("component", taken["representative_id"]).append_column("tightness", taken["tightness"])


def _named_leaks(run: Run, layout: Layout) -> pa.Table:
    """Return the leaks with the uris of the reference and of the pool image between."""
    links = all_leaks(run)
    parents, direct = links["parent"].to_numpy(), links["round"].to_numpy() == 0
    between = np.full(len(parents), None, dtype=object)
    references = between.copy()
    if len(parents):
        between[~direct] = layout.take(parents[~direct], ["uri"])["uri"].to_pylist()
        references[:] = Layout.of(run, "references").take(links["root"].to_numpy(), ["uri"])["uri"].to_pylist()
    names = {"leaked_reference": references, "leak_path": between}
    return (
        links.select(["index", "similarity"])
        .append_column("leaked_reference", pa.array(names["leaked_reference"], pa.string()))
        .append_column("leak_path", pa.array(names["leak_path"], pa.string()))
    )


@dataclasses.dataclass(frozen=True)
class DecideAll:
    """The job of `write_verdicts`.

    Args:
        retrieves: whether what nothing retrieved or drew is dropped.
        sets: names of the seed sets.
    """

    retrieves: bool
    sets: tuple[str, ...]


def write_verdicts(run: Run, job: DecideAll, output: Output) -> None:
    """Write the verdict on every pool row, densely."""
    evidence = Evidence(run, job.retrieves, job.sets)
    for part, url in enumerate(evidence.layout.parts):
        start, stop = (int(bound) for bound in evidence.layout.starts[part : part + 2])
        facts = read_table(url, ["uri", "id", "status", "reason", "message"]).to_pylist()
        rows = _part(evidence, facts, start, stop)
        for row in rows:
            output.counters[f"{row['status']} {row['stage']}"] += 1
        output.write(pa.Table.from_pylist(rows, VERDICT))


def _part(evidence: Evidence, facts: list[dict[str, Any]], start: int, stop: int) -> list[dict[str, Any]]:
    copies, members = evidence.copies.between(start, stop), evidence.members.between(start, stop)
    leaks, lost = evidence.leaks.between(start, stop), evidence.lost.between(start, stop)
    semantic, balanced = evidence.semantic.between(start, stop), evidence.balanced.between(start, stop)
    retrieved = evidence.retrieved.between(start, stop)
    rows = []
    for index, fact in zip(range(start, stop), facts, strict=True):
        row: dict[str, Any] = {"status": "dropped", "seed_ids": [], "similarities": []}
        member = members.get(index)
        if member is not None:
            row |= {
                "representative": member["representative_id"],
                "component": member["representative_id"],
                "similarity": member["similarity"],
                "tightness": member["tightness"],
            }
        if fact["status"] == "dead":
            row |= {"status": "dead", "stage": "decode", "reason": f"{fact['reason']}: {fact['message']}"}
        elif fact["status"] == "dropped":
            row |= {"stage": "filter", "reason": fact["reason"]}
        elif index in copies:
            row |= {
                "stage": "exact",
                "reason": "the same bytes as another file",
                "representative": fact["id"],
                "component": copies[index]["component"] or fact["id"],
                "similarity": 1.0,
                "tightness": copies[index]["tightness"],
            }
        elif member is not None and member["representative"] != index:
            row |= {"stage": "dedup", "reason": "a near duplicate of the image kept"}
        elif index in leaks:
            leak = leaks[index]
            row |= {
                "stage": "leaks",
                "similarity": leak["similarity"],
                "leaked_reference": leak["leaked_reference"],
                "leak_path": leak["leak_path"],
                "reason": "resembles a reference" if leak["leak_path"] is None else "resembles a pool image that leaks",
            }
        elif index in lost:
            row |= {
                "status": "dead",
                "stage": lost[index]["stage"],
                "reason": f"{lost[index]['reason']}: {lost[index]['message']}",
            }
        elif index in semantic:
            row |= {
                "stage": "semdedup",
                "cluster": semantic[index]["cluster"],
                "similarity": semantic[index]["similarity"],
                "reason": "close to an earlier image of its cell",
            }
        else:
            row |= _selection(evidence, retrieved.get(index), balanced.get(index))
        rows.append(row)
    return rows


def _selection(evidence: Evidence, found: dict[str, Any] | None, drawn: dict[str, Any] | None) -> dict[str, Any]:
    if found is not None:
        sets = " and ".join(evidence.sets[number] for number in found["sets"])
        return {
            "status": "kept",
            "stage": "retrieval",
            "reason": f"retrieved for {sets}",
            "cluster": found["cluster"],
            "seed_ids": found["seed_ids"],
            "similarities": found["similarities"],
        }
    if drawn is not None:
        return {
            "status": "kept",
            "stage": "balance",
            "reason": "drawn for balance",
            "cluster": drawn["cluster"],
        }
    if evidence.retrieves:
        return {"stage": "retrieval", "reason": "no seed retrieved it"}
    return {"status": "kept", "stage": "dedup", "reason": "distinct"}
