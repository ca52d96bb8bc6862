"""The step that brings a person's decisions to the pool, and what later steps ask of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from granary.curation.runs.decisions import APART, DROP, KEEP, KEEP_LEAKED, STAGE, Decisions, Word
from granary.curation.runs.run import Output, Run
from granary.curation.runs.vectors import Layout

DECIDED = pa.schema([("index", pa.int64()), ("decision", pa.string()), ("other", pa.int64())])
NAMED = 10  # ids that a note lists

Indices = NDArray[np.int64]


class Decided(NamedTuple):
    """Decisions by global indices of the pool, each list ascending.

    Args:
        keep: what stays, the second list of `Decisions` among it.
        keep_leaked: what stays even if it leaks.
        drop: what goes.
        apart: (m, 2), pairs that are no near copies.
    """

    keep: Indices
    keep_leaked: Indices
    drop: Indices
    apart: Indices


@dataclasses.dataclass(frozen=True)
class Decide:
    """The job of `decide`.

    Args:
        decisions: of the file.
    """

    decisions: Decisions


def decide(run: Run, job: Decide, output: Output) -> None:
    """Write the row of the pool that each decision speaks of; ids of no picture that can stay are noted.

    Exact copies share an id: a decision is about the one that stands for them.
    """
    known, unknown = _places(run, {identity for _, *ids in job.decisions.about() for identity in ids if identity})
    rows: list[dict[str, object]] = []
    for word, identity, other in job.decisions.about():
        if identity in known and (not other or other in known):
            rows.append({"index": known[identity], "decision": word, "other": known.get(other)})
            output.counters[word] += 1
    output.counters["unknown"] = len(unknown)
    output.notes += unknown[:NAMED]
    output.write(pa.Table.from_pylist(rows, DECIDED).sort_by([("index", "ascending"), ("other", "ascending")]))


def _places(run: Run, ids: set[str]) -> tuple[dict[str, int], list[str]]:
    """Return the global index of each id among the readable rows that are no exact copy, and the ids without one."""
    layout, wanted = Layout.of(run, "pool"), pa.array(sorted(ids), pa.string())
    copies = set(run.read_all("exact", ["index"])["index"].to_pylist())
    known: dict[str, int] = {}
    for start, table in layout.read(0, len(layout.parts), ["id", "status"]):
        hits = np.flatnonzero(pc.is_in(table["id"], wanted).to_numpy(zero_copy_only=False))
        for row in hits.tolist():
            if table["status"][row].as_py() == "ok" and start + row not in copies:
                known[table["id"][row].as_py()] = start + row
    return known, sorted(ids - known.keys())


def decided(run: Run) -> Decided:
    """Return the decisions of a run; none where it has no file of them."""
    table = run.read(STAGE, 0) if run.parts(STAGE) else DECIDED.empty_table()
    words, index = table["decision"].to_pylist(), table["index"].to_numpy()

    def of(*wanted: Word) -> NDArray[np.bool_]:
        return np.array([word in wanted for word in words], bool)

    pairs = table.filter(pa.array(of(APART)))
    apart = np.stack([pairs["index"].to_numpy(), pairs["other"].to_numpy().astype(np.int64)], axis=1)
    return Decided(index[of(KEEP, KEEP_LEAKED)], index[of(KEEP_LEAKED)], index[of(DROP)], apart)


def preferred(rank: Indices, vertices: Indices, chosen: Decided) -> Indices:
    """Return a rank that has what is to be kept first, and what is to be dropped last.

    Args:
        rank: (n,) int64, distinct.
        vertices: (n,) int64, global indices.
        chosen: the decisions.
    """
    tier = np.isin(vertices, chosen.drop).astype(np.int64) - np.isin(vertices, chosen.keep)
    order = np.lexsort((rank, tier))
    again = np.empty_like(order)
    again[order] = np.arange(len(order))
    return again


def notes_of(counters: Mapping[str, int], unknown: Sequence[str]) -> list[str]:
    """Return what a run says of decisions: how many there are, and those without effect.

    Args:
        counters: of the marker of `decide`.
        unknown: its notes.
    """
    counted = [f"{counters[word]:,} {word}" for word in (KEEP, KEEP_LEAKED, DROP, APART) if counters.get(word)]
    notes = [f"Decisions of a person that were obeyed: {', '.join(counted)}."] if counted else []
    if counters.get("unknown"):
        more = f" and {counters['unknown'] - len(unknown):,} more" if counters["unknown"] > len(unknown) else ""
        notes.append(
            f"Decisions without effect, as no readable picture of the pool that passes the filters has the id: "
            f"{', '.join(unknown)}{more}."
        )
    return notes
