"""Read, hash, decode, filter and embed the images of one unit: the first stage of every role."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from granary.curation.encoders import Encoder
from granary.curation.encoders.planned import PlannedEncoder, encoder_of
from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.filters import SIDE, Filters, measure, small_copy
from granary.curation.images.limits import DecodeLimits
from granary.curation.runs.run import Output, Run, undigested
from granary.curation.runs.spans import read_part
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import Layout, to_column
from granary.curation.sources import Candidate, Reader, read_piece
from granary.curation.sources.contents import base_name
from granary.curation.steps.listing import ListedUnit, read_listing
from granary.curation.steps.tally import count_file, count_names
from granary.curation.steps.unreadable import DEAD_LINKS, OUTAGES, check_lost, check_unchanged, why_dead
from granary.curation.store.addresses import json_without_secrets, without_secrets
from granary.curation.store.schema import QUALITY

ROW_GROUP = 1024
NO_FILTERS = Filters()
UNREAD_WHY = "cannot be read, see dead-letter/"
PENDING_PIXELS = 1 << 25  # of pictures waiting for the rest of their batch: 100 MB
UNREAD = pa.struct([("part", pa.string()), ("error", pa.string()), ("message", pa.string())])
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
        ("name", pa.string()),
        ("unread", pa.list_(UNREAD)),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        *QUALITY,
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
    """What is known of one image while its unit is read.

    Args:
        facts: value of each column known so far.
        picture: only until it is embedded.
        lost: it could not be read, which says nothing about what it holds.
        vectors: (1 or 2, d) float32 where it was embedded in an earlier run.
        size: width and height of the original in pixels, where there is a picture.
    """

    facts: dict[str, object]
    picture: Image.Image | None = None
    lost: bool = False
    vectors: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)

    @property
    def reason(self) -> str:
        """Class of the error, or why it was dropped; "" where there is none."""
        return str(self.facts.get("reason") or "")


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """How pictures are decoded and embedded.

    Args:
        encoder: turns them into vectors.
        device: "auto" or a torch device.
        batch: pictures per call of the encoder.
        decode: limits on what is decoded.
        max_unreadable: share of a unit that may be lost, see `check_lost`.
    """

    encoder: PlannedEncoder
    device: str
    batch: int
    decode: DecodeLimits
    max_unreadable: float = undigested(1.0)


@dataclasses.dataclass(frozen=True)
class EmbedUnit:
    """The job of `embed`.

    Args:
        listed: what is read.
        options: how it is decoded and embedded.
        filters: drop pictures by how they look.
        mirror: embed the mirror images too.
    """

    listed: ListedUnit
    options: EmbedOptions
    filters: Filters = NO_FILTERS
    mirror: bool = False


def embed(run: Run, job: EmbedUnit, output: Output) -> None:
    """Embed every candidate of one unit of a role; what is no image becomes a dead row, never an error.

    Raises:
        TooManyUnreadable: see `check_lost`; of a list of URLs only where practically none answers.
    """
    options, filters, limits = job.options, job.filters, job.options.decode
    encoder = encoder_of(options.encoder, options.device)
    source, pieces = read_listing(run, job.listed.role, job.listed.unit)
    number = list(run.sources[job.listed.role]).index(source)
    with Reader(source, limits.max_bytes) as reader:
        known = _known(output.earlier, run.retry_failed)
        kept = {row.facts["offset"] for row in known.values()}
        reader.expect(row for piece in pieces for row in range(piece.start, piece.stop) if row not in kept)
        read = (candidate for piece in pieces for candidate in read_piece(source, piece, limits.max_bytes))
        candidates = _counting_left_out(read, number, output)
        side = encoder.side and max(encoder.side, SIDE)
        rows = (known.get(candidate.uri) or scan(candidate, number, reader, limits, side) for candidate in candidates)
        most = max(options.max_unreadable, DEAD_LINKS if source.kind == "urls" else 0)
        counted = _counted(check_lost(rows, most, output.counters), number, output)
        _write_embedded(counted, FACTS, encoder, options.batch, job.mirror, output, filters)


def _counted(rows: Iterator[Row], number: int, output: Output) -> Iterator[Row]:
    """Count what source `number` gave on the way."""
    for row in rows:
        count_file(output.counters, number, row.facts)
        yield row


def _counting_left_out(candidates: Iterator[Candidate], number: int, output: Output) -> Iterator[Candidate]:
    """Count what stands beside the candidates of source `number` and has no place in a sample."""
    for candidate in candidates:
        unread = [(f".{part.part} beside images", UNREAD_WHY) for part in candidate.unread]
        count_names(output.counters, (f"{number} left {what}: {why}" for what, why in (*candidate.left_out, *unread)))
        yield candidate


def _known(earlier: str | None, retry_failed: bool) -> dict[str, Row]:
    """Return by uri the rows of an earlier run of a unit that stay: all but those that are tried again."""
    if earlier is None:
        return {}
    table = read_table(earlier)
    vectors = [_halves(table[name]) for name in ("embedding", "mirror") if name in table.column_names]
    rows = table.select(FACTS.names).to_pylist()
    again = [row["status"] == "dead" and (retry_failed or row["reason"] in OUTAGES) for row in rows]
    return {
        row["uri"]: Row(row, vectors=np.stack([view[place] for view in vectors]) if row["status"] == "ok" else None)
        for place, row in enumerate(rows)
        if not again[place]
    }


def _halves(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of vectors as (n, d), the bits as they are stored."""
    array = column.combine_chunks()
    flat = array.flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32).reshape(len(array), array.type.list_size)


def scan(
    candidate: Candidate,
    number: int,
    reader: Reader,
    limits: DecodeLimits,
    side: int | None,
) -> Row:
    """Read, hash and decode one candidate."""
    facts: dict[str, object] = {
        "uri": without_secrets(candidate.uri),
        "source": number,
        "path": candidate.path,
        "offset": candidate.offset,
        "size": candidate.size,
        "label": candidate.label,
        "metadata": candidate.metadata and json_without_secrets(candidate.metadata),
        "captions": candidate.captions,
        "name": candidate.name or base_name(without_secrets(candidate.uri)),
        "unread": [unread._asdict() for unread in candidate.unread],
        "status": "dead",
    }
    if candidate.error is not None:
        dead = {"reason": candidate.error[0], "message": without_secrets(candidate.error[1])}
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
        dead = why_dead(error)
        vanished = dead["reason"] == "FileNotFoundError" and candidate.size > 0
        return Row(facts | dead, lost=vanished or dead["reason"] in OUTAGES)
    facts |= {"status": "ok", "width": decoded.width, "height": decoded.height}
    return Row(facts, decoded.image, size=(decoded.width, decoded.height))


def look(rows: Sequence[Row], filters: Filters, squeeze: bool = False) -> None:
    """Measure the pictures of rows, and drop those that do not pass the filters.

    Args:
        rows: each with a picture, which is taken from those that are dropped.
        filters: what pictures must be like.
        squeeze: keep of each picture what an encoder that squeezes looks at, alone.
    """
    copies = [small_copy(row.picture) for row in rows if row.picture]
    for row, copy, quality in zip(rows, copies, measure(copies, [row.size for row in rows]), strict=True):
        row.facts |= {name: getattr(quality, name) for name in QUALITY.names}
        if reason := filters.reject(quality):
            row.facts |= {"status": "dropped", "reason": reason}
            row.picture = None
        elif squeeze and copy.size == (SIDE, SIDE):
            row.picture = copy


def _write_embedded(
    rows: Iterator[Row],
    schema: pa.Schema,
    encoder: Encoder,
    batch: int,
    mirror: bool,
    output: Output,
    filters: Filters | None = None,
) -> None:
    """Embed pictures `batch` at a time and write groups of ROW_GROUP rows; a picture is dropped once embedded.

    Args:
        filters: what pictures must be like; they are measured where there are filters, on or off.
    """
    facts: list[dict[str, object]] = []
    pending: list[Row] = []
    pixels = 0  # of those that are pending
    vectors: list[np.ndarray] = []
    squeeze = encoder.squeezes and encoder.side == SIDE and not mirror  # a mirrored copy may differ in its last bits

    def embed_pending() -> None:
        nonlocal pixels
        if filters is not None:
            look(pending, filters, squeeze)
        if pictures := [row.picture for row in pending if row.picture]:
            vectors.append(_embed_batch(encoder, pictures, mirror))
        for row in pending:
            row.picture = None
        pending.clear()
        pixels = 0

    def write_group() -> None:
        embed_pending()
        output.counters.update(str(row["status"]) for row in facts)
        output.write(_table(facts, schema, encoder, vectors, mirror))
        facts.clear()
        vectors.clear()

    for row in rows:
        facts.append(row.facts)
        if row.vectors is not None:
            embed_pending()
            vectors.append(row.vectors[None])
        if row.picture is not None:
            pending.append(row)
            pixels += row.picture.width * row.picture.height
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
    facts: list[dict[str, object]], schema: pa.Schema, encoder: Encoder, vectors: list[np.ndarray], mirror: bool
) -> pa.Table:
    table = pa.Table.from_pylist(facts, schema)
    views = 2 if mirror else 1
    dense = np.zeros((len(facts), views, encoder.dimension), np.float32)
    if vectors:
        dense[[row["status"] == "ok" for row in facts]] = np.concatenate(vectors)
    for view, name in enumerate(("embedding", "mirror")[:views]):
        table = table.append_column(name, to_column(dense[:, view]))
    return table


@dataclasses.dataclass(frozen=True)
class EmbedPart:
    """The job of `features`.

    Args:
        part: of the pool.
        options: how its images are decoded and embedded.
    """

    part: int
    options: EmbedOptions


def features(run: Run, job: EmbedPart, output: Output) -> None:
    """Embed for retrieval the images of one pool part that survived deduplication; reads their bytes again.

    Raises:
        TooManyUnreadable: see `check_lost`; a file that changed or went away counts too.
    """
    options, limits = job.options, job.options.decode
    encoder = encoder_of(options.encoder, options.device)
    rows = read_survivors(run, Layout.of(run, "pool"), job.part)
    number = rows["source"][0].as_py() if rows.num_rows else 0
    with Reader(run.sources["pool"][number], limits.max_bytes) as reader:
        reader.expect(rows["offset"].to_pylist())
        again = (_look_again(row, reader, limits, encoder.side) for row in rows.to_pylist())
        checked = check_lost(again, options.max_unreadable, output.counters)
        _write_embedded(checked, FEATURES, encoder, options.batch, False, output)


class Survivor(TypedDict):
    """A row of `read_survivors`."""

    source: int
    path: str
    offset: int
    size: int
    id: str
    sha256: str
    index: int


def read_survivors(run: Run, layout: Layout, part: int) -> pa.Table:
    """Return the locators and global indices of the rows of a pool part that are still in."""
    start = int(layout.starts[part])
    alive = read_part(run, "survivors", part, ["alive"])["alive"].to_numpy()
    table = read_table(layout.parts[part], ["source", "path", "offset", "size", "id", "sha256"])
    kept = np.flatnonzero(alive)
    return table.take(pa.array(kept)).append_column("index", pa.array(kept + start))


def _look_again(row: Survivor, reader: Reader, limits: DecodeLimits, side: int | None) -> Row:
    facts: dict[str, object] = {"index": row["index"], "id": row["id"], "status": "dead"}
    try:
        data = reader.read(row["path"], row["offset"], row["size"])
        check_unchanged(data, row["sha256"])
        return Row({**facts, "status": "ok"}, decode(data, limits, side).image)
    except DecodeError as error:
        return Row(facts | why_dead(error))
    except OSError as error:
        return Row(facts | why_dead(error), lost=True)  # it was read before
