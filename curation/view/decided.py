"""The file of decisions that a page writes: what is to be kept, dropped, or is no near duplicate."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TypedDict

import pyarrow.compute as pc

from granary.curation.errors import UserError
from granary.curation.runs.decisions import (
    APART,
    WORDS,
    Decisions,
    Word,
    collected,
    dump_decisions,
    load_decisions,
)
from granary.curation.store import storage
from granary.curation.view.catalogue import Catalogue

UNREAD = ("decode", "filter")  # stages that leave no picture to decide about
MOST = 200_000  # decisions in a file: what a person decides, not a query


class Listed(TypedDict):
    """A decision as the page has it: its rows, -1 for an id that the page does not show."""

    decision: Word
    row: int
    other: int | None


class DecisionFile:
    """The decisions about the pictures of a run; every change is written at once.

    Args:
        catalogue: of the run.
        path: of the file, a path or URL; it need not be there.

    Raises:
        UserError: there is a file and it holds no decisions.
    """

    def __init__(self, catalogue: Catalogue, path: str) -> None:
        self.catalogue, self.path, self._lock = catalogue, path, threading.Lock()
        self.decisions = load_decisions(path) if storage.exists(path) else Decisions()
        ids = catalogue.ledger["id"].to_pylist()
        stands = pc.not_equal(catalogue.ledger["stage"], "exact").to_pylist()
        pairs = sorted(zip(stands, range(len(ids)), strict=True), key=lambda pair: pair[0])
        self._rows = {ids[row]: row for _, row in pairs if ids[row]}  # of exact copies the one that stands for them
        self._ids = ids

    def listed(self) -> list[Listed]:
        """Return all decisions by rows."""
        row = self._rows.get
        return [
            Listed(decision=word, row=row(identity, -1), other=row(other, -1) if other else None)
            for word, identity, other in self.decisions.about()
        ]

    def change(self, word: str, rows: Sequence[int], other: int | None = None) -> None:
        """Decide about rows, or take back what was decided, and write the file.

        Args:
            word: one of WORDS; "" takes back.
            rows: of the page.
            other: of `not a duplicate` the row that each is no copy of; taken back with word "".

        Raises:
            UserError: it is no decision, a row has no id, or the file cannot be written.
        """
        ids = [self._id(row) for row in rows]
        beside = None if other is None else self._id(other)
        if word not in ("", *WORDS) or (word == APART and beside is None) or beside in ids:
            raise UserError(f"decision: {word[:40]!r} of these rows is none; there are {', '.join(WORDS)}")
        with self._lock:
            lines = {(identity, second): one for one, identity, second in self.decisions.about()}
            for identity in ids:
                key = (identity, "") if beside is None else (min(identity, beside), max(identity, beside))
                lines.pop(key, None)
                if word:
                    lines[key] = word  # type: ignore[assignment]
            if len(lines) > MOST:
                raise UserError(f"decisions: a file has at most {MOST:,}; a rule for so many belongs into the recipe")
            self.decisions = collected(((one, *key) for key, one in lines.items()), self.path)
            self._write()

    def _write(self) -> None:
        uris = self.catalogue.ledger["uri"]
        about = (identity for _, identity, _ in self.decisions.about() if identity in self._rows)
        named = {identity: uris[self._rows[identity]].as_py() for identity in about}
        try:
            storage.write_bytes(self.path, dump_decisions(self.decisions, named))
        except OSError as error:
            raise UserError(f"decisions: {self.path} cannot be written ({error}); give another file") from error

    def _id(self, row: int) -> str:
        if not 0 <= row < len(self._ids):
            raise UserError(f"decision: the rows are below {len(self._ids)}")
        if not self._ids[row] or self.catalogue.ledger["stage"][row].as_py() in UNREAD:
            raise UserError(
                "decision: what could not be read, or was filtered out, is in no dataset whatever is decided"
            )
        return str(self._ids[row])
