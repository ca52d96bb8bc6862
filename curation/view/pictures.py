"""The pictures of a run, small: from a source on this machine, else from a shard, else why there is none to show."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.report.thumbnails import jpeg, shrink
from granary.curation.runs.lookup import LOCATOR
from granary.curation.runs.tables import DamagedPart, read_table
from granary.curation.runs.vectors import Layout
from granary.curation.sources import Reader, Source
from granary.curation.sources.dataset import HUB
from granary.curation.store import storage
from granary.curation.view.catalogue import Catalogue, places, shard_urls, stage_columns

SIDE = 160
LARGE = 640
CACHE_BYTES = 64_000_000
GROUPS_KEPT = 8  # row groups whose bytes stay in memory


class NotShown(Exception):
    """There is no picture to show; the message says why, in words for a reader of the page."""


class Pictures:
    """Small JPEGs of the rows of a catalogue, and of the files of its roles.

    Nothing is fetched from a network: sources of other machines and lists of addresses are passed over.

    Args:
        catalogue: of the run.
        limits: on what is decoded.
    """

    def __init__(self, catalogue: Catalogue, limits: DecodeLimits) -> None:
        self.catalogue, self.limits, self.run = catalogue, limits, catalogue.run
        self._made: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._bytes = 0
        self._lock, self._reading, self._unpacking = threading.Lock(), threading.Lock(), threading.Lock()
        self._part = functools.lru_cache(64)(self._read_part)
        self._group = functools.lru_cache(GROUPS_KEPT)(self._read_group)

    def of_row(self, row: int, side: int = SIDE) -> bytes:
        """Return a row's picture as JPEG, its longer side at most `side` pixels; raises NotShown."""
        return self._kept((row, side), lambda: small(self.original(row), self.limits, side))

    def of_file(self, role: str, uri: str, side: int = SIDE) -> bytes:
        """Return the picture of a file of a role as `of_row` does, for what is in no row: seeds, references."""
        return self._kept(
            (role, uri, side), lambda: small(self._of_source(role, self._place(role, uri)), self.limits, side)
        )

    def original(self, row: int) -> bytes:
        """Return the bytes of a row's picture as they were when the run was made; raises NotShown."""
        reasons = []
        for role, places_ in self.catalogue.placed.items():
            if places_[row] >= 0:
                try:
                    return self._of_source(role, int(places_[row]))
                except NotShown as reason:
                    reasons.append(str(reason))
        if self.catalogue.in_shards[row] >= 0:
            return self._of_shard(int(self.catalogue.in_shards[row]))
        raise NotShown(reasons[0] if reasons else _why_none(self.catalogue.row(row)))

    def _kept(self, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        data = make()
        with self._lock:
            if key not in self._made:
                self._made[key] = data
                self._bytes += len(data)
            while self._bytes > CACHE_BYTES:
                self._bytes -= len(self._made.popitem(last=False)[1])
        return data

    # -- sources -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _layouts(self) -> dict[str, Layout]:
        return {role: Layout.of(self.run, role) for role in self.run.sources}

    def _place(self, role: str, uri: str) -> int:
        if role not in self.run.sources or not self.run.parts(role):
            raise NotShown("the run has no such role")
        place = int(places(pa.chunked_array([[uri]], pa.string()), self._uris(role))[0])
        if place < 0:
            raise NotShown("the run has no file of that name")
        return place

    @functools.lru_cache(4)  # noqa: B019  # a page has one of these for its life
    def _uris(self, role: str) -> pa.ChunkedArray:
        return stage_columns(self.run, role, ["uri"])["uri"]

    def _of_source(self, role: str, place: int) -> bytes:
        layout = self._layouts[role]
        part = bisect.bisect_right(layout.starts.tolist(), place) - 1
        row = self._part(layout.parts[part]).slice(place - int(layout.starts[part]), 1).to_pylist()[0]
        source = self.run.sources[role][row["source"]]
        check_near(source)
        try:
            with self._reading:
                data = self._reader(role, row["source"]).read(row["path"], row["offset"], row["size"])
        except (OSError, UserError) as error:  # a source that is gone as a whole is a UserError
            raise NotShown(f"its file cannot be read any more: {type(error).__name__}") from error
        if row["sha256"] and hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise NotShown("its file has changed since the run read it")
        return data

    @functools.lru_cache(64)  # noqa: B019  # as above; readers are closed with the process
    def _reader(self, role: str, source: int) -> Reader:
        reader = Reader(self.run.sources[role][source], self.limits.max_bytes)
        reader.fetch_nothing()
        return reader

    def _read_part(self, url: str) -> pa.Table:
        return read_table(url, [*LOCATOR, "sha256"])

    # -- shards ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _groups(self) -> tuple[list[int], list[tuple[str, int]]]:
        """First row and (shard, row group) of every row group of the dataset."""
        counts: list[int] = []
        groups: list[tuple[str, int]] = []
        for url in shard_urls(self.run):
            with storage.open_read(url) as file:
                metadata = pq.ParquetFile(file).metadata
                counts += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                groups += [(url, group) for group in range(metadata.num_row_groups)]
        return list(itertools.accumulate(counts, initial=0))[:-1], groups

    def _of_shard(self, row: int) -> bytes:
        with self._unpacking:
            starts, groups = self._groups
            group = bisect.bisect_right(starts, row) - 1
            try:
                data = self._group(*groups[group])[row - starts[group]].as_py()
            except DamagedPart as error:
                raise NotShown("its shard is damaged; `granary check RUN` tells more") from error
        if not data:
            raise NotShown("its shard has no picture of it")
        return bytes(data)

    def _read_group(self, url: str, group: int) -> pa.Array:
        images = read_table(url, ["image"], group)["image"].combine_chunks()
        return images.field("bytes")


def small(data: bytes, limits: DecodeLimits, side: int) -> bytes:
    """Return a picture as JPEG, its longer side at most `side` pixels; raises NotShown."""
    try:
        return jpeg(shrink(decode(data, limits, side).image, side), quality=80)
    except DecodeError as error:
        raise NotShown(f"it cannot be decoded: {error.kind}") from error


def check_near(source: Source) -> None:
    """Raise NotShown for a source whose pictures are not on this machine."""
    if source.kind == "urls":
        raise NotShown("its source is a list of addresses, and the page fetches nothing")
    if source.path.startswith(HUB) or not storage.is_local(source.path):
        raise NotShown("its source is on another machine, and the page fetches nothing")


def _why_none(row: dict[str, object]) -> str:
    if row["status"] == "dead":
        return "no picture of it was made or read"
    return "it is in no shard, and the run keeps no pictures beside them"
