"""Read, hash, decode, filter and embed the images of one unit: the first stage of every role."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from granary.curation.encoders import Encoder, load_encoder
from granary.curation.images.decode import DecodeError, DecodeLimits, decode
from granary.curation.images.filters import Filters
from granary.curation.runs.run import Output, Run, read_table
from granary.curation.runs.vectors import Layout, to_column
from granary.curation.sources import Candidate, Reader, failure, read_piece
from granary.curation.steps.listing import read_listing

ROW_GROUP = 1024
PENDING_PIXELS = 1 << 25  # of pictures waiting for the rest of their batch: 100 MB
FEWEST_LOST = 16  # fewer unreadable files are no sign of an outage, however small the unit
DEAD_LINKS = 0.99  # of a unit of a list of URLs: dead links are what such lists are made of, but one in a hundred lives
# What a machine, a network or a service fails with; the same file may be there an hour later. By name: sources tell
# theirs as (class, message). FileNotFoundError is one where the listing saw the file.
OUTAGES = frozenset(
    (
        "OSError",
        "PermissionError",
        "TimeoutError",
        "FSTimeoutError",
        "ConnectionError",
        "ConnectionAbortedError",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "BrokenPipeError",
        "BlockingIOError",
        "InterruptedError",
        "UnreadableFolder",
    )
)
FACTS = pa.schema(
    [
        ("uri", pa.string()),
        ("source", pa.int16()),
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("id", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("label", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("metadata", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)
FEATURES = pa.schema(
    [
        ("index", pa.int64()),
        ("id", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)


@dataclasses.dataclass
class Row:
    """What is known of one image while its unit is read; the picture only until it is embedded.

    lost: it could not be read, which says nothing about what it holds.
    """

    facts: dict[str, Any]
    picture: Image.Image | None = None
    lost: bool = False


class TooManyUnreadable(Exception):
    """So much of a unit could not be read that its dataset would be hollow."""


@functools.lru_cache(maxsize=4)
def encoder_of(spec: str, device: str, fingerprint: str) -> Encoder:
    """Load an encoder once per process; raises ValueError when it is not the one the run was planned with."""
    encoder = load_encoder(spec, device)
    if encoder.fingerprint != fingerprint:
        raise ValueError(
            f"encoder {spec} is not the one this run was planned with: its weights or settings differ here"
        )
    return encoder


def embed(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Embed every candidate of one unit of a role; what is no image becomes a dead row, never an error.

    Raises:
        TooManyUnreadable: see `check_lost`; of a list of URLs only where practically none answers.
    """
    encoder = encoder_of(arguments["encoder"], arguments["device"], arguments["fingerprint"])
    source, pieces = read_listing(run, arguments["role"], arguments["unit"])
    number = list(run.sources[arguments["role"]]).index(source)
    limits, filters = DecodeLimits(**arguments["decode"]), Filters(**arguments["filters"])
    with Reader(source, limits.max_bytes) as reader:
        candidates = (candidate for piece in pieces for candidate in read_piece(source, piece, limits.max_bytes))
        side = encoder.side and max(encoder.side, filters.side or 0)
        rows = (scan(candidate, number, reader, limits, filters, side) for candidate in candidates)
        most = max(arguments["max_unreadable"], DEAD_LINKS if source.kind == "urls" else 0)
        _write_embedded(check_lost(rows, most), FACTS, encoder, arguments["batch"], arguments["mirror"], output)


def scan(
    candidate: Candidate,
    number: int,
    reader: Reader,
    limits: DecodeLimits,
    filters: Filters,
    side: int | None,
) -> Row:
    """Read, hash, decode and filter one candidate."""
    facts: dict[str, Any] = {
        "uri": candidate.uri,
        "source": number,
        "path": candidate.path,
        "offset": candidate.offset,
        "size": candidate.size,
        "label": candidate.label,
        "metadata": candidate.metadata,
        "captions": candidate.captions,
        "status": "dead",
    }
    if candidate.error is not None:
        dead = dict(zip(("reason", "message"), candidate.error, strict=True))
        return Row(facts | dead, lost=candidate.error[0] in OUTAGES)
    try:
        data = candidate.data
        if data is None:
            data = reader.read(candidate.path, candidate.offset, candidate.size)
        sha256 = hashlib.sha256(data).hexdigest()
        facts |= {"size": len(data), "sha256": sha256, "id": sha256[:32]}
        decoded = decode(data, limits, side)
    except DecodeError as error:
        return Row(facts | why_dead(error))
    except OSError as error:
        kind = type(error).__name__
        vanished = kind == "FileNotFoundError" and candidate.size > 0
        return Row(facts | why_dead(error), lost=vanished or kind in OUTAGES)
    facts |= {"width": decoded.width, "height": decoded.height}
    reason = filters.reject(decoded)
    if reason is not None:
        return Row({**facts, "status": "dropped", "reason": reason})
    return Row({**facts, "status": "ok"}, decoded.image)


def check_lost(rows: Iterable[Row], most: float) -> Iterator[Row]:
    """Yield the rows of a unit; raises TooManyUnreadable after the last when too many were lost.

    A network, a mount or a permission that fails takes thousands of good files with it, and the run would end well
    with a hollow dataset. Files that are no images do not count: a pool may hold any number of them.

    Args:
        rows: of one unit.
        most: the share of them that may be lost; 1 lets everything pass. Up to FEWEST_LOST - 1 rows always may.
    """
    reasons: collections.Counter[str] = collections.Counter()
    total = 0
    for row in rows:
        total += 1
        reasons[row.facts["reason"] if row.lost else ""] += 1
        yield row
    del reasons[""]
    if reasons.total() >= FEWEST_LOST and reasons.total() > most * total:
        counted = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise TooManyUnreadable(
            f"{reasons.total()} of {total} files could not be read ({counted}), more than max_unreadable {most}"
        )


def why_dead(error: DecodeError | OSError) -> dict[str, str]:
    """Return reason and message of a file that could not be read or decoded."""
    kind, message = (error.kind, str(error)) if isinstance(error, DecodeError) else failure(error)
    return {"reason": kind, "message": message}


def _write_embedded(
    rows: Iterator[Row], schema: pa.Schema, encoder: Encoder, batch: int, mirror: bool, output: Output
) -> None:
    """Embed pictures `batch` at a time and write groups of ROW_GROUP rows; a picture is dropped once embedded."""
    facts: list[dict[str, Any]] = []
    pending: list[Image.Image] = []
    vectors: list[np.ndarray] = []

    def embed_pending() -> None:
        if pending:
            vectors.append(_embed_batch(encoder, pending, mirror))
            pending.clear()

    def write_group() -> None:
        embed_pending()
        output.write(_table(facts, schema, encoder, vectors, mirror))
        facts.clear()
        vectors.clear()

    for row in rows:
        output.counters[str(row.facts["status"])] += 1
        facts.append(row.facts)
        if row.picture is not None:
            pending.append(row.picture)
        pixels = sum(picture.width * picture.height for picture in pending)
        if len(pending) == batch or pixels > PENDING_PIXELS:
            embed_pending()
        if len(facts) == ROW_GROUP:
            write_group()
    if facts or output.writer is None:
        write_group()


def _embed_batch(encoder: Encoder, pictures: list[Image.Image], mirror: bool) -> np.ndarray:
    """Return (n, 1 or 2, d): the embedding and, on request, that of the mirror image."""
    views = [encoder.embed(pictures)]
    if mirror:
        views.append(encoder.embed([ImageOps.mirror(picture) for picture in pictures]))
    return np.stack(views, axis=1)


def _table(
    facts: list[dict[str, Any]], schema: pa.Schema, encoder: Encoder, vectors: list[np.ndarray], mirror: bool
) -> pa.Table:
    table = pa.Table.from_pylist(facts, schema)
    views = 2 if mirror else 1
    dense = np.zeros((len(facts), views, encoder.dimension), np.float32)
    if vectors:
        dense[[row["status"] == "ok" for row in facts]] = np.concatenate(vectors)
    for view, name in enumerate(("embedding", "mirror")[:views]):
        table = table.append_column(name, to_column(dense[:, view]))
    return table


def features(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Embed for retrieval the images of one pool part that survived deduplication; reads their bytes again.

    Raises:
        TooManyUnreadable: see `check_lost`; a file that changed or went away counts too.
    """
    encoder = encoder_of(arguments["encoder"], arguments["device"], arguments["fingerprint"])
    limits = DecodeLimits(**arguments["decode"])
    rows = read_survivors(run, Layout.of(run, "pool"), arguments["part"])
    number = rows["source"][0].as_py() if rows.num_rows else 0
    with Reader(run.sources["pool"][number], limits.max_bytes) as reader:
        again = (_look_again(row, reader, limits, encoder.side) for row in rows.to_pylist())
        checked = check_lost(again, arguments["max_unreadable"])
        _write_embedded(checked, FEATURES, encoder, arguments["batch"], False, output)


def read_survivors(run: Run, layout: Layout, part: int) -> pa.Table:
    """Return the locators and global indices of the rows of a pool part that are still in."""
    start = int(layout.starts[part])
    alive = read_table(run.parts("survivors")[0], ["alive"], group=part)["alive"].to_numpy()
    table = read_table(layout.parts[part], ["source", "path", "offset", "size", "id", "sha256"])
    kept = np.flatnonzero(alive)
    return table.take(pa.array(kept)).append_column("index", pa.array(kept + start))


def _look_again(row: Mapping[str, Any], reader: Reader, limits: DecodeLimits, side: int | None) -> Row:
    facts: dict[str, Any] = {"index": row["index"], "id": row["id"], "status": "dead"}
    try:
        data = reader.read(row["path"], row["offset"], row["size"])
        check_unchanged(data, row["sha256"])
        return Row({**facts, "status": "ok"}, decode(data, limits, side).image)
    except DecodeError as error:
        return Row(facts | why_dead(error))
    except OSError as error:
        return Row(facts | why_dead(error), lost=True)  # it was read before


class ChangedFile(OSError):
    """The bytes are not those that were hashed and embedded."""


def check_unchanged(data: bytes, sha256: str) -> None:
    """Raise ChangedFile when a file read again is not what it was."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ChangedFile("the file changed while the run was under way")
