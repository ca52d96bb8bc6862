"""What became of a row of a page: the story of `granary explain`, and the pictures that it speaks of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict

import pyarrow.compute as pc

from granary.curation.errors import UserError
from granary.curation.runs.explain import MOST, explain
from granary.curation.runs.lookup import Files
from granary.curation.view.catalogue import Catalogue


class Beside(TypedDict):
    """A picture that decided about another.

    Args:
        what: it is to the other.
        uri: of the picture.
        row: of the page, where it has one.
        role: whose file it is, where it has no row.
        similarity: of the two; None where it was not measured.
    """

    what: str
    uri: str
    row: int | None
    role: str
    similarity: float | None


class Told(TypedDict):
    """The story of a row, and the pictures beside it."""

    story: str
    beside: list[Beside]


Story = Callable[[int], Told]


def story_of(catalogue: Catalogue, files: Files | None) -> Story:
    """Return what tells the story of a row.

    Args:
        catalogue: of the run.
        files: of a run of curate; None of other runs.
    """

    def tell(number: int) -> Told:
        row = catalogue.row(number)
        text = _plain(row) if files is None else _explained(catalogue, files, row)
        return {"story": text, "beside": list(_beside(catalogue, files, row))}

    return tell


def _explained(catalogue: Catalogue, files: Files, row: Mapping[str, Any]) -> str:
    try:
        return explain(catalogue.run, files, row["uri"])
    except UserError as error:
        return str(error)


def _plain(row: Mapping[str, Any]) -> str:
    """Return what the ledger says of a row, a line for each column that says something."""
    said = {name: value for name, value in row.items() if name not in ("uri", "captions") and value not in (None, [])}
    return "\n".join([row["uri"], *(f"  {name:<15} {value}" for name, value in said.items())])


def _beside(catalogue: Catalogue, files: Files | None, row: Mapping[str, Any]) -> Iterator[Beside]:
    identity, similarity = row["representative"], row["similarity"]
    if identity and (identity != row["id"] or row["stage"] == "exact"):
        what = "stands for it" if files else "the real picture it resembles most"
        yield from _of_id(catalogue, identity, what, similarity, row["uri"])
    if row["leaked_reference"]:
        through = row["leak_path"]
        reference_similarity = None if through else similarity
        yield Beside(
            what="the reference it resembles", uri=row["leaked_reference"], row=None, role="references",
            similarity=reference_similarity,
        )  # fmt: skip
        if through:
            yield from _of_uri(catalogue, through, "leads to the reference", similarity)
    similarities = row["similarities"] or [None] * len(row["seed_ids"] or [])
    for seed, close in list(zip(row["seed_ids"] or [], similarities, strict=False))[:MOST]:
        uri = files.seed_uri(seed) if files else None
        if uri:
            yield Beside(what="a seed that retrieved it", uri=uri, row=None, role="seeds", similarity=close)
        else:
            yield from _of_id(catalogue, seed, "it was made from", close, row["uri"])


def _of_id(
    catalogue: Catalogue, identity: str, what: str, similarity: float | None, other_than: str
) -> Iterator[Beside]:
    """Yield the first file of an id that is not itself, one that was not dropped as an exact copy before others."""
    rows = pc.indices_nonzero(pc.equal(catalogue.ledger["id"], identity)).to_pylist()
    found = [row for row in rows if catalogue.ledger["uri"][row].as_py() != other_than]
    found.sort(key=lambda row: catalogue.ledger["stage"][row].as_py() == "exact")
    for row in found[:1]:
        yield Beside(what=what, uri=catalogue.ledger["uri"][row].as_py(), row=row, role="", similarity=similarity)


def _of_uri(catalogue: Catalogue, uri: str, what: str, similarity: float | None) -> Iterator[Beside]:
    row = pc.index(catalogue.ledger["uri"], uri).as_py()
    if row >= 0:
        yield Beside(what=what, uri=uri, row=row, role="", similarity=similarity)
