"""Find what a name means in a run: a uri, the beginning of an id, a file's name or path, of any role."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from granary.curation.errors import UserError
from granary.curation.runs.lookup import ledger_tables
from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_table
from granary.curation.sources.files import absolute, root
from granary.curation.store.schema import LedgerRow

MOST = 10  # names that a message lists
LOOKED_AT = 200_000  # uris that are compared with a name that is none of them
OTHERS = ("references", "seeds")  # roles beside the pool


class RoleRow(TypedDict):
    """A reference or a seed, as its role was read."""

    uri: str
    id: str | None
    status: str
    reason: str | None
    message: str | None


class Found(NamedTuple):
    """What a name means.

    Args:
        ledger: rows of the ledger.
        others: for each other role its rows.
    """

    ledger: list[LedgerRow]
    others: dict[str, list[RoleRow]]

    @property
    def identities(self) -> dict[str, str]:
        """Id, or uri where there is none, of everything found; to its first uri."""
        rows = itertools.chain(self.ledger, *self.others.values())
        pairs = [(row["id"] or row["uri"], row["uri"]) for row in rows]
        return dict(reversed(pairs))


def find(run: Run, name: str) -> Found:
    """Return what a name means: in the ledger, else in other roles, else as a file of this machine.

    Args:
        run: a finished run of curate.
        name: a uri, the beginning of an id, the last part of a uri, or the path of a file.

    Raises:
        UserError: nothing matches, with what is similar; or several images do.
    """
    name = name.encode("utf-8", "backslashreplace").decode()  # as uris write a name that is not UTF-8
    for matches in _attempts(run, name):
        if matches.identities:
            return _one_image(matches, name)
    raise UserError(f"{name!r} is no uri, id, file name or path of this run{_similar(run, name)}")


def _attempts(run: Run, name: str) -> Iterator[Found]:
    yield Found(_matching(ledger_tables(run), name), {})
    yield Found([], _in_roles(run, name))
    if os.path.isfile(name):
        identity = _identity(name)
        yield Found(_matching(ledger_tables(run), identity), _in_roles(run, identity))
    for uri in _uris_below_sources(run, name):
        yield Found(_matching(ledger_tables(run), uri), _in_roles(run, uri))


def _one_image(matches: Found, name: str) -> Found:
    identities = matches.identities
    if len(identities) > 1:
        more = f" and {len(identities) - MOST} more" if len(identities) > MOST else ""
        if all(identity.startswith(name) for identity in identities):
            listed = ", ".join(sorted(identities)[:MOST])
            raise UserError(f"{name!r} begins several ids: {listed}{more}; give more characters")
        listed = ", ".join(sorted(identities.values())[:MOST])
        raise UserError(f"{name!r} is the name of several images: {listed}{more}; give the whole uri")
    return matches


def _matching(tables: Iterable[pa.Table], name: str) -> list[Any]:
    """Return the rows of that uri, else those whose id begins so, else those whose uri ends in /name or #name."""
    ranks: tuple[list[Any], ...] = ([], [], [])
    for table in tables:
        uris = table["uri"]
        last = pc.or_(pc.ends_with(uris, f"/{name}"), pc.ends_with(uris, f"#{name}"))  # of a file, of a tar's member
        masks = (pc.equal(uris, name), pc.starts_with(table["id"], name), last)
        for rows, mask in zip(ranks, masks, strict=True):
            rows += table.filter(mask).to_pylist()
    return next((rows for rows in ranks if rows), [])


def _in_roles(run: Run, name: str) -> dict[str, list[RoleRow]]:
    columns = list(RoleRow.__annotations__)
    return {role: _matching((read_table(url, columns) for url in run.parts(role)), name) for role in OTHERS}


def _identity(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _uris_below_sources(run: Run, name: str) -> Iterator[str]:
    """Yield the uris that a path would have in the sources it lies below."""
    path = absolute(name)
    for source in itertools.chain(*run.sources.values()):
        if path.startswith(root(source.path)):
            yield f"{source.name}/{path.removeprefix(root(source.path))}"


def _similar(run: Run, name: str) -> str:
    """Return what is similar to a name that is none, as the end of a sentence."""
    uris = list(itertools.islice(_uris(run), LOOKED_AT))
    last = name.rsplit("/", 1)[-1].lower()
    holding = [uri for uri in uris if len(last) > 2 and last in uri.lower()]
    by_name = {uri.rsplit("/", 1)[-1].lower(): uri for uri in reversed(uris)}
    close = [by_name[one] for one in difflib.get_close_matches(last, by_name, 3)]
    chosen = list(dict.fromkeys([*holding, *close]))[:3]
    return f"; did you mean {' or '.join(chosen)}?" if chosen else ""


def _uris(run: Run) -> Iterator[str]:
    tables = itertools.chain(
        ledger_tables(run, ["uri"]), (read_table(url, ["uri"]) for role in OTHERS for url in run.parts(role))
    )
    for table in tables:
        yield from table["uri"].to_pylist()
