"""What a person decided about pictures of a run: a file that `granary view` writes and the next run obeys.

CSV with a header, or JSON lines with the same names:

    decision          keep, keep although it leaks, drop, or not a duplicate
    id                of the picture: 32 hex digits, as in ledger and dataset
    other             of `not a duplicate` the id of the other picture; else empty

Other columns are passed over; `granary view` writes the uri of each picture there, to be read by people.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, cast, get_args

from granary.curation.errors import UserError
from granary.curation.sources import files

Word = Literal["keep", "keep although it leaks", "drop", "not a duplicate"]
WORDS: tuple[Word, ...] = get_args(Word)
KEEP, KEEP_LEAKED, DROP, APART = WORDS
ID = re.compile(r"[0-9a-f]{32}")
COLUMNS = ("decision", "id", "other")
MOST_BYTES = 64 << 20
STAGE, CUT = "decisions", "apart"  # stages of a run: the decisions by row, the forest without what they cut
Line = tuple[int, Mapping[str, object]]  # number, and what stands there by column


class Decisions(NamedTuple):
    """Decisions by ids, each list ascending and without repetition.

    Args:
        keep: stay whatever deduplication, retrieval or a draw says, but not if they leak.
        keep_leaked: stay even if they resemble a reference.
        drop: go.
        apart: pairs that are no near copies of each other, the smaller id first.
    """

    keep: tuple[str, ...] = ()
    keep_leaked: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    apart: tuple[tuple[str, str], ...] = ()

    def about(self) -> Iterator[tuple[Word, str, str]]:
        """Yield (decision, id, other id or "") of each, as a file has them."""
        for word, ids in ((KEEP, self.keep), (KEEP_LEAKED, self.keep_leaked), (DROP, self.drop)):
            yield from ((word, identity, "") for identity in ids)
        yield from ((APART, *pair) for pair in self.apart)


def load_decisions(path: str) -> Decisions:
    """Return the decisions of a file, a path or URL.

    Raises:
        UserError: it cannot be read, is too large, or a line of it is no decision or contradicts another.
    """
    try:
        data = files.read_file(files.absolute(path), MOST_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(
            f"decisions: {path} cannot be read ({str(error)[:200]}); give a file that `granary view` wrote"
        ) from None
    return parse_decisions(data, path)


def parse_decisions(data: bytes, path: str) -> Decisions:
    """Return the decisions of a file's bytes; raises UserError as `load_decisions` does.

    Args:
        data: CSV or JSON lines, UTF-8.
        path: of the file, for messages.
    """
    try:
        text = data.decode("utf-8-sig")
        lines = list(_json_lines(text) if text.lstrip().startswith("{") else _csv_lines(text))
    except (ValueError, csv.Error, RecursionError) as error:
        raise UserError(
            f"decisions: {path} is neither CSV with the columns {', '.join(COLUMNS)} nor JSON lines with these names "
            f"({str(error)[:200]})"
        ) from None
    return collected((_decision(path, *line) for line in lines), path)


def dump_decisions(decisions: Decisions, uris: Mapping[str, str]) -> bytes:
    """Return decisions as CSV.

    Args:
        uris: of ids, for people to read.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*COLUMNS, "uri"))
    writer.writerows((*line, uris.get(line[1], "")) for line in decisions.about())
    return file.getvalue().encode("utf-8", "replace")


def _csv_lines(text: str) -> Iterator[Line]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    missing = {"decision", "id"} - set(reader.fieldnames or ())
    if missing:
        raise ValueError(f"it has no column {' and no column '.join(sorted(missing))}")
    for row in reader:
        yield reader.line_num, cast(Mapping[str, object], row)


def _json_lines(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            yield number, row


def _decision(path: str, number: int, row: Mapping[str, object]) -> tuple[Word, str, str]:
    """Return decision, id and other id of a line; raises UserError."""
    where = f"decisions: line {number} of {path}"
    word, identity, other = (str(row.get(name) or "").strip() for name in COLUMNS)
    if word not in WORDS:
        raise UserError(f"{where}: decision is {word[:40]!r}; it is one of {', '.join(WORDS)}")
    for name, value in (("id", identity), *([("other", other)] if word == APART else [])):
        if not ID.fullmatch(value):
            raise UserError(f"{where}: {name} is {value[:40]!r}; give the 32 hex digits that the ledger has")
    if word != APART and other:
        raise UserError(f"{where}: other is {other[:40]!r}, but {word} speaks of one picture; leave it empty")
    if word == APART and identity == other:
        raise UserError(f"{where}: a picture is no copy of itself; give two ids")
    return word, *(sorted((identity, other)) if word == APART else (identity, ""))


def collected(decisions: Iterable[tuple[Word, str, str]], path: str) -> Decisions:
    """Return (decision, id, other id or "") together; raises UserError where two contradict each other.

    Args:
        decisions: of a pair the smaller id first.
        path: of their file, for messages.
    """
    words: dict[str, Word] = {}
    apart: set[tuple[str, str]] = set()
    for word, identity, other in decisions:
        if word == APART:
            apart.add((identity, other))
        elif words.setdefault(identity, word) != word:
            raise UserError(
                f"decisions: {path} says both {words[identity]} and {word} of {identity}; leave one of them"
            )
    kept, leaked, dropped = (
        tuple(sorted(identity for identity, word in words.items() if word == wanted)) for wanted in WORDS[:3]
    )
    return Decisions(kept, leaked, dropped, tuple(sorted(apart)))
