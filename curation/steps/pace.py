"""How fast this machine reads, embeds and compares the pictures of a pool, told by a few of them."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from granary.curation.dedup.blocks import choose_prefix, fit_rotation, prepare, unit_rows
from granary.curation.dedup.join import join_blocks
from granary.curation.encoders import Encoder
from granary.curation.images.filters import Filters
from granary.curation.images.limits import DecodeLimits
from granary.curation.sources import Piece, Reader, Source, read_piece
from granary.curation.steps.embed import NO_FILTERS, Row, look, scan

PICTURES = 48  # that are read
VECTORS = 4096  # that are compared


class Pace(NamedTuple):
    """A few files of a pool, and the seconds that it took to read, hash and decode one of them."""

    rows: list[Row]
    seconds: float

    @property
    def pictures(self) -> list[Image.Image]:
        """Those of the files that are images."""
        return [row.picture for row in self.rows if row.picture]

    @property
    def bytes(self) -> float:
        """The mean size of a file that could be read; 0 where none could."""
        sizes = [size for row in self.rows if isinstance(size := row.facts["size"], int) and "sha256" in row.facts]
        return sum(sizes) / max(1, len(sizes))

    @property
    def reasons(self) -> str:
        """Why the others are none, each with its number."""
        counted = Counter(row.reason for row in self.rows if not row.picture)
        return ", ".join(f"{count} {reason}" for reason, count in sorted(counted.items()))


class Embedded(NamedTuple):
    """Vectors (n, d) of some pictures, and the seconds that one took."""

    vectors: NDArray[np.float32]
    seconds: float


def read_few(
    places: Sequence[tuple[Source, Sequence[Piece]]],
    limits: DecodeLimits,
    filters: Filters = NO_FILTERS,
    side: int | None = None,
) -> Pace:
    """Read the first files at some places of a pool, PICTURES in all.

    Args:
        places: units of its listing.
        limits: on what is decoded.
        filters: that look at what is decoded.
        side: the short side that is wanted, see `granary.curation.images.decode.decode`.
    """
    begin = time.perf_counter()
    rows = [
        row for place in places for row in itertools.islice(_scanned(*place, limits, side), -(-PICTURES // len(places)))
    ]
    look([row for row in rows if row.picture], filters)
    return Pace(rows, (time.perf_counter() - begin) / max(1, len(rows)))


def _scanned(source: Source, pieces: Sequence[Piece], limits: DecodeLimits, side: int | None) -> Iterator[Row]:
    with Reader(source, limits.max_bytes) as reader:
        for piece in pieces:
            for candidate in read_piece(source, piece, limits.max_bytes):
                yield scan(candidate, 0, reader, limits, side)


def embed_few(encoder: Encoder, pictures: list[Image.Image]) -> Embedded:
    """Embed pictures, one or more; the first call, which may compile or load, is not counted."""
    encoder.embed(pictures[:1])
    begin = time.perf_counter()
    vectors = encoder.embed(pictures)
    return Embedded(vectors, (time.perf_counter() - begin) / len(pictures))


def compare_few(vectors: NDArray[np.float32], threshold: float, seed: int = 0) -> float:
    """Return seconds for a pair of vectors in the near-duplicate join, on one core.

    Joined are VECTORS random vectors with the directions of a few real ones: how much the join can leave out depends on
    these.

    Args:
        vectors: (n, d) of some pictures.
        threshold: of the join.
        seed: draws them.
    """
    drawn = np.random.default_rng(seed).standard_normal((VECTORS, len(vectors)), np.float32) @ vectors
    unit = unit_rows(drawn)
    rotation = fit_rotation(unit)
    block = prepare(unit, rotation, choose_prefix(unit, rotation, threshold))
    begin = time.perf_counter()
    for _ in join_blocks(block, None, threshold):
        pass
    return (time.perf_counter() - begin) / (VECTORS * (VECTORS - 1) / 2)
