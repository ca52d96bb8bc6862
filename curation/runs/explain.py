"""The story of one image: what was decided about it, where, and on what evidence."""

from __future__ import annotations

from granary.curation.errors import UserError
from granary.curation.runs.lookup import Files, find_rows, ledger_tables
from granary.curation.runs.run import Run
from granary.curation.store.schema import LedgerRow

MOST = 10


def explain(run: Run, files: Files, name: str) -> str:
    """Tell the story of an image.

    Args:
        run: a finished run.
        files: its files.
        name: a uri as in the ledger, an id, or the beginning of an id that no other image shares.

    Raises:
        UserError: nothing matches, or several images do.
    """
    rows = find_rows(run, name)
    if not rows:
        raise UserError(f"{name!r} is neither a uri nor the beginning of an id in this run's ledger")
    ids = sorted({row["id"] or row["uri"] for row in rows})
    if len(ids) > 1:
        more = f" and {len(ids) - MOST} more" if len(ids) > MOST else ""
        raise UserError(f"{name!r} begins several ids: {', '.join(ids[:MOST])}{more}; give more characters")
    return "\n\n".join("\n".join(_story(run, files, row)) for row in rows)


def _story(run: Run, files: Files, row: LedgerRow) -> list[str]:
    lines = [
        row["uri"],
        f"  id          {row['id'] or 'unknown: its bytes could not be read'}",
        f"  verdict     {row['status']} at stage {row['stage']}: {row['reason']}",
    ]
    if row["stage"] == "exact":
        lines.append(f"  same bytes  {_first_uri(run, row['id'], row['uri'])}")
    elif row["representative"] and row["representative"] != row["id"]:
        lines.append(f"  kept image  {row['representative']}  {_first_uri(run, row['representative'], '')}")
        lines.append(f"  similarity  {row['similarity']:.4f} to the kept image")
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
    if len(row["seed_ids"]) > MOST:
        lines.append(f"              and {len(row['seed_ids']) - MOST} more seeds")
    return lines


def _first_uri(run: Run, identity: str | None, other_than: str) -> str:
    """Return the uri of the file of an id that went on, that is the one not dropped as an exact copy."""
    for table in ledger_tables(run, ["uri", "id", "stage"]):
        for row in table.filter(table["id"].is_valid()).to_pylist():
            if row["id"] == identity and row["stage"] != "exact" and row["uri"] != other_than:
                return str(row["uri"])
    return ""
