"""The story of one image: what was decided about it, where, and on what evidence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

import pyarrow.compute as pc

from granary.curation.runs.finding import RoleRow, find
from granary.curation.runs.lookup import Files, ledger_tables
from granary.curation.runs.run import Run
from granary.curation.store.schema import LedgerRow

MOST = 10


class Verdict(TypedDict):
    """What is said of an image in the story of another one."""

    uri: str
    status: str
    stage: str
    reason: str


def explain(run: Run, files: Files, name: str) -> str:
    """Tell the story of an image of the pool, of a reference or of a seed.

    Args:
        run: a finished run.
        files: its files.
        name: a uri as in the ledger, the beginning of an id, a file name, or the path of a file of this machine.

    Raises:
        UserError: nothing matches, or several images do.
    """
    matches = find(run, name)
    stories = [_story(run, files, row) for row in matches.ledger]
    tellers = {"references": _of_reference, "seeds": _of_seed}
    stories += [tellers[role](run, row) for role, rows in matches.others.items() for row in rows]
    return "\n\n".join("\n".join(story) for story in stories)


def _story(run: Run, files: Files, row: LedgerRow) -> list[str]:
    lines = [
        row["uri"],
        f"  id          {row['id'] or 'unknown: its bytes could not be read'}",
        f"  verdict     {row['status']} at stage {row['stage']}: {row['reason']}",
    ]
    lines += _of_representative(run, row)
    if row["component"] and row["tightness"] is not None:
        lines.append(f"  component   {row['component']}, lowest similarity of a member {row['tightness']:.4f}")
    if row["leaked_reference"]:
        lines.append(f"  reference   {row['leaked_reference']}, similarity {row['similarity']:.4f}")
        if row["leak_path"]:
            lines[-1] = f"  reference   {row['leaked_reference']}, at the end of a chain"
            lines.append(f"  through     {row['leak_path']}, similarity {row['similarity']:.4f}")
    if row["cluster"] is not None:
        lines.append(f"  cell        {row['cluster']}")
    for seed, similarity in list(zip(row["seed_ids"], row["similarities"], strict=True))[:MOST]:
        lines.append(f"  seed        {seed}  similarity {similarity:.4f}  {files.seed_uri(seed) or ''}")
    return lines + _more(len(row["seed_ids"]), "seeds")


def _of_representative(run: Run, row: LedgerRow) -> Iterator[str]:
    """Yield what became of the image that stands for this one, which a later stage may have dropped."""
    identity = row["representative"]
    if not identity or (row["stage"] != "exact" and identity == row["id"]):
        return
    other = _verdict_of(run, identity, row["uri"])
    kept = other is None or other["status"] == "kept"
    after = "" if kept or other is None else f" (later {other['status']} at {other['stage']}: {other['reason']})"
    uri = other["uri"] if other else ""
    if row["stage"] == "exact":
        yield f"  same bytes  {uri}{after}"
        return
    yield f"  {'kept image' if kept else 'representative'}  {identity}  {uri}{after}"
    yield f"  similarity  {row['similarity']:.4f} to {'the kept image' if kept else 'the representative'}"


def _verdict_of(run: Run, identity: str, other_than: str) -> Verdict | None:
    """Return the verdict on the file of an id that went on, that is the one not dropped as an exact copy."""
    for table in ledger_tables(run, ["uri", "id", "status", "stage", "reason"]):
        for row in table.filter(pc.equal(table["id"], identity)).to_pylist():
            if row["stage"] != "exact" and row["uri"] != other_than:
                return Verdict(uri=row["uri"], status=row["status"], stage=row["stage"], reason=row["reason"])
    return None


def _of_reference(run: Run, row: RoleRow) -> list[str]:
    """Tell which images of the pool leaked through a reference."""
    leaks = []
    for table in ledger_tables(run, ["uri", "similarity", "leaked_reference", "leak_path"]):
        leaks += table.filter(pc.equal(table["leaked_reference"], row["uri"])).to_pylist()
    lines = [*_head(row, "reference"), f"  leaked      {len(leaks)} images of the pool were dropped for it"]
    for leak in sorted(leaks, key=lambda leak: -leak["similarity"])[:MOST]:
        through = f" through {leak['leak_path']}" if leak["leak_path"] else ""
        lines.append(f"  image       {leak['uri']}  similarity {leak['similarity']:.4f}{through}")
    return lines + _more(len(leaks), "images")


def _of_seed(run: Run, row: RoleRow) -> list[str]:
    """Tell which images of the pool a seed retrieved."""
    retrieved = []
    for table in ledger_tables(run, ["uri", "seed_ids", "similarities"]):
        some = table.filter(pc.greater(pc.list_value_length(table["seed_ids"]), 0)).to_pylist()
        for one in some:
            pairs = zip(one["seed_ids"], one["similarities"], strict=True)
            retrieved += [(-similarity, one["uri"]) for seed, similarity in pairs if seed == row["id"]]
    lines = [*_head(row, "seed"), f"  retrieved   {len(retrieved)} images of the pool"]
    lines += [f"  image       {uri}  similarity {-distance:.4f}" for distance, uri in sorted(retrieved)[:MOST]]
    return lines + _more(len(retrieved), "images")


def _head(row: RoleRow, role: str) -> list[str]:
    lines = [
        row["uri"],
        f"  id          {row['id'] or 'unknown: its bytes could not be read'}",
        f"  role        {role}",
    ]
    return lines if row["status"] == "ok" else [*lines, f"  unreadable  {row['reason']}: {row['message']}"]


def _more(count: int, noun: str) -> list[str]:
    return [f"              and {count - MOST} more {noun}"] if count > MOST else []
