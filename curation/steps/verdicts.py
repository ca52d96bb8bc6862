"""Decide every pool row once, from the sparse tables of all stages: a row group for each part of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from granary.curation.runs.decisions import APART, DROP, KEEP_LEAKED, STAGE
from granary.curation.runs.run import Output, Run
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import Block, Layout
from granary.curation.steps.leaks import all_leaks
from granary.curation.store.schema import LEDGER

IDENTITY = ("uri", "id", "sha256", "role")  # what a ledger row says of the file itself; the rest is the verdict
VERDICT = pa.schema([field for field in LEDGER if field.name not in IDENTITY])
DECISION = "decision"  # the reason of what a person decided
NONE = np.empty(0, np.int64)
Row = dict[str, Any]  # of the table of a stage


class Verdict(TypedDict, total=False):
    """What a row of VERDICT says; what is left out is null."""

    status: str
    stage: str
    reason: str
    representative: str
    similarity: float
    component: str
    tightness: float
    seed_ids: list[str]
    similarities: list[float]
    cluster: int | None
    leaked_reference: str
    leak_path: str | None


class Sparse:
    """Rows of a stage that speak of some pool rows only, by global index.

    Args:
        table: with a column `index`, sorted.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table, self.index = table, table["index"].to_numpy()

    def between(self, start: int, stop: int) -> dict[int, Row]:
        """Return the rows of the pool rows [start, stop), by global index."""
        low, high = np.searchsorted(self.index, [start, stop])
        return {row["index"]: row for row in self.table.slice(low, high - low).to_pylist()}

    @staticmethod
    def of(run: Run, stage: str, bounds: tuple[int, int], others: NDArray[np.int64] = NONE) -> Sparse:
        """Read what a stage that may not have run says of the pool rows [start, stop) and of others, part by part."""
        tables = [_chosen(read_table(url), bounds, others) for url in run.parts(stage)]
        if not tables:
            return Sparse(pa.table({"index": pa.array([], pa.int64())}))
        return Sparse(pa.concat_tables(tables).sort_by("index"))


def _chosen(table: pa.Table, bounds: tuple[int, int], others: NDArray[np.int64]) -> pa.Table:
    index = table["index"].to_numpy()
    inside = (index >= bounds[0]) & (index < bounds[1])
    return table.filter(pa.array(inside | np.isin(index, others) if len(others) else inside))


class Evidence:
    """All that the stages say of some parts of the pool, by stage.

    Args:
        run: the run directory.
        parts: of the pool, first and the one after the last.
    """

    def __init__(self, run: Run, parts: Block) -> None:
        self.layout = Layout.of(run, "pool")
        bounds = (int(self.layout.starts[parts[0]]), int(self.layout.starts[parts[1]]))
        copies = Sparse.of(run, "exact", bounds).table
        duplicates = Sparse.of(run, "duplicates", bounds, copies["original"].to_numpy())
        rest = ("unreadable", "semdedup", "retrieved", "balanced")
        self.stages = {
            "duplicates": duplicates,
            "exact": Sparse(_with_component(copies, duplicates)),
            "decisions": _about_single(Sparse.of(run, STAGE, bounds)),
            "leaks": Sparse(_named_leaks(run, self.layout, bounds)),
            **{stage: Sparse.of(run, stage, bounds) for stage in rest},
        }

    def of_part(self, part: int) -> dict[str, dict[int, Row]]:
        """Return what each stage says of the rows of a part of the pool, by global index."""
        start, stop = (int(bound) for bound in self.layout.starts[part : part + 2])
        return {stage: rows.between(start, stop) for stage, rows in self.stages.items()}


def _about_single(decisions: Sparse) -> Sparse:
    """Return the decisions that speak of one picture; there is one of each at most."""
    if "decision" not in decisions.table.column_names:
        return decisions
    return Sparse(decisions.table.filter(pc.not_equal(decisions.table["decision"], APART)))


def _with_component(copies: pa.Table, members: Sparse) -> pa.Table:
    """Add to the exact copies the component of the image they copy, where it has near duplicates."""
    originals = copies["original"].to_numpy()
    place = np.searchsorted(members.index, originals)
    inside = np.isin(originals, members.index)
    taken = members.table.take(pa.array(np.where(inside, place, 0), mask=~inside))
    return copies.append_column("component", taken["representative_id"]).append_column("tightness", taken["tightness"])


def _named_leaks(run: Run, layout: Layout, bounds: tuple[int, int]) -> pa.Table:
    """Return the leaks among pool rows [start, stop) with the uris of the reference and of the image between."""
    links = _chosen(all_leaks(run), bounds, NONE)
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
        parts: of the pool, first and the one after the last.
        retrieves: whether what nothing retrieved or drew is dropped.
        sets: names of the seed sets.
    """

    parts: Block
    retrieves: bool
    sets: tuple[str, ...]


def write_verdicts(run: Run, job: DecideAll, output: Output) -> None:
    """Write the verdict on every row of some parts of the pool, densely: a row group for each part."""
    evidence = Evidence(run, job.parts)
    for part in range(*job.parts):
        url = evidence.layout.parts[part]
        start, of_part = int(evidence.layout.starts[part]), evidence.of_part(part)
        facts = read_table(url, ["uri", "id", "status", "reason", "message"]).to_pylist()
        rows = [_verdict(_case(fact, of_part, start + place, job)) for place, fact in enumerate(facts)]
        for row in rows:
            output.counters[f"{row['status']} {row['stage']}"] += 1
        output.write(pa.Table.from_pylist(rows, VERDICT))


@dataclasses.dataclass(frozen=True)
class Case:
    """One pool row and what is known of it.

    Args:
        index: of the row in the pool.
        fact: its row in the pool.
        evidence: what each stage that names it says of it.
        job: what was asked for.
    """

    index: int
    fact: Row
    evidence: Mapping[str, Row]
    job: DecideAll


def _case(fact: Row, of_part: Mapping[str, Mapping[int, Row]], index: int, job: DecideAll) -> Case:
    return Case(index, fact, {stage: rows[index] for stage, rows in of_part.items() if index in rows}, job)


def _verdict(case: Case) -> Verdict:
    """Return the verdict of the first stage that has one, beside what is known of the row's component."""
    decided = next(verdict for verdict in (decide(case) for decide in DECISIONS) if verdict is not None)
    return {"status": "dropped", "seed_ids": [], "similarities": [], **_membership(case), **decided}


def _membership(case: Case) -> Verdict:
    member = case.evidence.get("duplicates")
    if member is None:
        return {}
    return {
        "representative": member["representative_id"],
        "component": member["representative_id"],
        "similarity": member["similarity"],
        "tightness": member["tightness"],
    }


def _decoded(case: Case) -> Verdict | None:
    fact = case.fact
    if fact["status"] == "dead":
        return {"status": "dead", "stage": "decode", "reason": f"{fact['reason']}: {fact['message']}"}
    return {"stage": "filter", "reason": fact["reason"]} if fact["status"] == "dropped" else None


def _exact(case: Case) -> Verdict | None:
    copy = case.evidence.get("exact")
    if copy is None:
        return None
    return {
        "stage": "exact",
        "reason": "the same bytes as another file",
        "representative": case.fact["id"],
        "component": copy["component"] or case.fact["id"],
        "similarity": 1.0,
        "tightness": copy["tightness"],
    }


def _dropped(case: Case) -> Verdict | None:
    decision = case.evidence.get("decisions")
    return {"stage": STAGE, "reason": DECISION} if decision and decision["decision"] == DROP else None


def _duplicate(case: Case) -> Verdict | None:
    member = case.evidence.get("duplicates")
    if member is None or member["representative"] == case.index:
        return None
    return {"stage": "dedup", "reason": "a near duplicate of the image kept"}


def _leaked(case: Case) -> Verdict | None:
    leak, decision = case.evidence.get("leaks"), case.evidence.get("decisions")
    if leak is None or (decision and decision["decision"] == KEEP_LEAKED):
        return None
    return {
        "stage": "leaks",
        "similarity": leak["similarity"],
        "leaked_reference": leak["leaked_reference"],
        "leak_path": leak["leak_path"],
        "reason": "resembles a reference" if leak["leak_path"] is None else "resembles a pool image that leaks",
    }


def _unreadable(case: Case) -> Verdict | None:
    lost = case.evidence.get("unreadable")
    if lost is None:
        return None
    return {"status": "dead", "stage": lost["stage"], "reason": f"{lost['reason']}: {lost['message']}"}


def _kept(case: Case) -> Verdict | None:
    """Keep what a person wants to keep, with the seeds that retrieved it; it was no leak, or may be one."""
    if "decisions" not in case.evidence:
        return None
    return {**(_retrieved(case) or {}), "status": "kept", "stage": STAGE, "reason": DECISION}


def _thinned(case: Case) -> Verdict | None:
    dropped = case.evidence.get("semdedup")
    if dropped is None:
        return None
    return {
        "stage": "semdedup",
        "cluster": dropped["cluster"],
        "similarity": dropped["similarity"],
        "reason": "close to an earlier image of its cell",
    }


def _retrieved(case: Case) -> Verdict | None:
    retrieved = case.evidence.get("retrieved")
    if retrieved is None:
        return None
    return {
        "status": "kept",
        "stage": "retrieval",
        "reason": f"retrieved for {' and '.join(case.job.sets[number] for number in retrieved['sets'])}",
        "cluster": retrieved["cluster"],
        "seed_ids": retrieved["seed_ids"],
        "similarities": retrieved["similarities"],
    }


def _drawn(case: Case) -> Verdict | None:
    drawn = case.evidence.get("balanced")
    if drawn is None:
        return None
    return {"status": "kept", "stage": "balance", "reason": "drawn for balance", "cluster": drawn["cluster"]}


def _left(case: Case) -> Verdict:
    if case.job.retrieves:
        return {"stage": "retrieval", "reason": "no seed retrieved it"}
    return {"status": "kept", "stage": "dedup", "reason": "distinct"}


# In the order of the stages: the first that names a row decides.
DECISIONS: Sequence[Callable[[Case], Verdict | None]] = (
    _decoded,
    _exact,
    _dropped,
    _duplicate,
    _leaked,
    _unreadable,
    _kept,
    _thinned,
    _retrieved,
    _drawn,
    _left,
)
