"""Entries of the config `pairs` of a packed run: a crop, its summaries, its negatives.

`read_entries` streams them in order, which is part of the benchmark: the rivals of a crop are its neighbours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from granary.curation.dense.crops import cut
from granary.curation.dense.masks import pixels_of
from granary.curation.dense.schema import ImageFile, MaskRow, NegativeRow, PairRow, StoredPixels
from granary.curation.errors import UserError
from granary.curation.images.decode import decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.store import storage

TEXTS = ("id", "file", "key", "base", "split", "captions", "negatives")
PICTURES = ("image", "box", "mask", "darkened")
LIMITS = DecodeLimits()
ROWS = 16  # read at a time


class StoredPair(PairRow):
    """A row of the config `pairs`; without a picture, box and mask say what to cut out of the original."""

    image: ImageFile | None


class Place(TypedDict):
    """Where a crop is in a whole image, in a row of `pairs`."""

    file: str
    box: list[int]
    mask: str
    darkened: bool


class Original(TypedDict):
    """A row of the config `data`: a whole image, and its masks where they were asked for."""

    image: ImageFile
    masks: NotRequired[list[MaskRow]]


@dataclass(frozen=True)
class Negative:
    """A text that does not describe the crop: its kind, and the logit it was given, if any."""

    kind: str
    text: str
    score: float | None = None


@dataclass(frozen=True)
class Picture:
    """The picture of a crop, not decoded yet.

    Args:
        data: bytes of the picture.
        box: where the bytes are those of the whole image, what to cut out: x0, y0, x1, y1, x1 and y1 exclusive.
        mask: outside of it the crop is darkened.
    """

    data: bytes = field(default=b"", repr=False)
    box: tuple[int, int, int, int] | None = None
    mask: StoredPixels | None = field(default=None, repr=False)

    def image(self, limits: DecodeLimits = LIMITS) -> Image.Image:
        """Decode the picture to RGB, and cut it where it must be; raises DecodeError."""
        whole = decode(self.data, limits).image
        if self.box is None:
            return whole
        shape = None if self.mask is None else pixels_of(self.mask["size"], self.mask["counts"], self.mask["png"])
        return cut(whole, self.box, shape)


@dataclass(frozen=True)
class Entry:
    """One crop with its texts.

    Args:
        id, file, key, base, split: as in the shard.
        captions: the first summary first, blank ones left out.
        negatives: in the order of the shard.
        picture: of the crop.
    """

    id: str
    file: str
    key: str
    base: bool
    split: str
    captions: tuple[str, ...]
    negatives: tuple[Negative, ...]
    picture: Picture = field(default=Picture(), repr=False)

    def image(self) -> Image.Image:
        """Decode the picture to RGB, and cut it where it must be; raises DecodeError."""
        return self.picture.image()

    def first_negative(self, kind: str) -> str | None:
        """Return the first negative of a kind."""
        return next((negative.text for negative in self.negatives if negative.kind == kind), None)

    def hardest_negative(self) -> str | None:
        """Return the negative with the highest score, of any kind, the first of equals; None without scores."""
        scored = [(negative.score, negative.text) for negative in self.negatives if negative.score is not None]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None


def pair_shards(data: str) -> list[str]:
    """Return the Parquet files of the config `pairs` in order.

    Args:
        data: a run directory, its dataset/ folder, a downloaded dataset, or the folder pairs/ itself; a path or URL.

    Raises:
        UserError: where there are none.
    """
    for folder in (storage.join(data, "dataset", "pairs"), storage.join(data, "pairs"), data):
        names = [name for name in storage.names(folder) if name.endswith(".parquet")]
        if names:
            return [storage.join(folder, name) for name in names]
    raise UserError(f"data: {data!r} holds no config `pairs`; give a run of `granary pack`")


def read_entries(data: str, split: str | None = None) -> Iterator[Entry]:
    """Yield the entries of a packed run in order, holding a few rows at a time.

    Args:
        data: as `pair_shards` takes it.
        split: only entries of this split; None takes all.

    Raises:
        UserError: where a shard is broken or lacks columns, or no entry is of the split.
    """
    originals, seen, taken = Originals(data), set(), False
    for shard in pair_shards(data):
        with opened(shard, *TEXTS, *PICTURES) as parquet:
            for batch in parquet.iter_batches(ROWS, columns=[*TEXTS, *PICTURES]):
                for row in batch.to_pylist():
                    seen.add(row["split"])
                    if split in (None, row["split"]):
                        taken = True
                        yield entry_of(row, originals)
    if not taken:
        there = ", ".join(sorted(repr(name) for name in seen)) or "none: it is empty"
        raise UserError(f"split: {split!r} is not right; the splits of {data!r} are {there}")


@contextlib.contextmanager
def opened(shard: str, *columns: str) -> Iterator[pq.ParquetFile]:
    """Open a shard; raises UserError where it is broken or lacks a column."""
    try:
        with storage.open_read(shard) as file, pq.ParquetFile(file, pre_buffer=False) as parquet:
            missing = sorted(set(columns) - set(parquet.schema_arrow.names))
            if missing:
                raise UserError(f"data: {shard!r} has no column {missing[0]!r}; give a run of `granary pack`")
            yield parquet
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"data: {shard!r} cannot be read ({reason}); run the same `granary pack` again") from error


def entry_of(row: StoredPair, originals: Originals) -> Entry:
    """Return the entry of a row of `pairs`.

    Args:
        originals: where whole images are, for rows without a picture.
    """
    data = row["image"]["bytes"] or b"" if row["image"] else b""
    return Entry(
        id=row["id"],
        file=row["file"],
        key=row["key"],
        base=row["base"],
        split=row["split"],
        captions=captions_of(row["captions"]),
        negatives=negatives_of(row["negatives"]),
        picture=picture_of(data, row, originals),
    )


def captions_of(texts: Sequence[str] | None) -> tuple[str, ...]:
    """Return the captions of a row that are not blank."""
    return tuple(text for text in texts or [] if text and text.strip())


def negatives_of(rows: Sequence[NegativeRow] | None) -> tuple[Negative, ...]:
    """Return the negatives of a row that are not blank."""
    filled = (row for row in rows or [] if row["text"] and row["text"].strip())
    return tuple(Negative(row["kind"], row["text"], row["score"]) for row in filled)


def picture_of(data: bytes, place: Place, originals: Originals) -> Picture:
    """Return the picture of a row.

    Args:
        data: what the row has of it; nothing where it must be cut out of a whole image.
        place: the row.
        originals: where whole images are.

    Raises:
        UserError: the whole image is not there.
    """
    if data:
        return Picture(data)
    whole = originals.read(place)
    left, top, right, bottom = place["box"]
    mask = next((mask for mask in whole.get("masks", []) if mask["key"] == place["mask"]), None)
    return Picture(whole["image"]["bytes"], (left, top, right, bottom), mask)


class Originals:
    """Whole images of the config `data`, for runs whose crops are cut at load time; keeps one row group.

    Args:
        data: as `pair_shards` takes it.
    """

    def __init__(self, data: str) -> None:
        self.data = data
        self.places: dict[str, tuple[str, int, int]] | None = None
        self.group: tuple[str, int, tuple[str, ...]] | None = None
        self.rows: list[Original] = []

    def read(self, row: Place) -> Original:
        """Return image, and where needed masks, of a row of `pairs`. Raises UserError where they are not there."""
        if self.places is None:
            self.places = dict(self._index())
        if row["file"] not in self.places:
            raise UserError(f"data: the image of {row['file']!r} is in no shard of {self.data!r}; pack it again")
        shard, group, at = self.places[row["file"]]
        columns = ("image", "masks") if row["darkened"] else ("image",)
        if self.group != (shard, group, columns):
            with opened(shard, *columns) as parquet:
                self.rows = parquet.read_row_group(group, columns=list(columns)).to_pylist()
            self.group = (shard, group, columns)
        return self.rows[at]

    def _index(self) -> Iterator[tuple[str, tuple[str, int, int]]]:
        """Yield annotation file and its shard, row group and row."""
        for folder in (storage.join(self.data, "dataset", "data"), storage.join(self.data, "data")):
            for name in storage.names(folder):
                shard = storage.join(folder, name)
                with opened(shard, "file") as parquet:
                    for group in range(parquet.num_row_groups):
                        files = parquet.read_row_group(group, columns=["file"])["file"].to_pylist()
                        yield from ((file, (shard, group, at)) for at, file in enumerate(files))
