"""Work units and the part files they write: the reason a run can be killed at any moment and resumed.

A stage is a list of units. A unit is plain data, reads its inputs by path and writes exactly one Parquet file:
temporary name, fsync, rename, and then a `.done` marker with the row count, the SHA-256 of the file and a digest
of everything the unit depends on. A unit whose marker carries the right digest is never run again.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Concatenate, Generic, Literal, TypedDict, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from granary.curation.runs.tables import DamagedPart, read_table
from granary.curation.sources import Source
from granary.curation.store import storage
from granary.curation.store.hashing import HashingFile

FORMAT = 2  # of markers and parts; a new number redoes every stage
LOST, DEAD = "lost", "dead"  # counters: rows lost to what can pass, and all that could not be read
INDEX = "index.json"  # names and row counts of the parts of a finished stage, so that units read one file for it


T = TypeVar("T")
J = TypeVar("J")  # the job of a step: a frozen dataclass of plain data and options


class Index(TypedDict):
    """Names and row counts of the parts of a finished stage."""

    parts: list[str]
    rows: list[int]


class UnitError(Exception):
    """A unit could not finish; the message names the stage, the unit and the cause in one line."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory and the sources of its roles: where units find their inputs.

    Args:
        url: fsspec URL of the directory.
        sources: for each role ("pool", "seeds", "references") its resolved sources.
        retry_failed: whether units that hold dead rows are done again, not those alone whose failures can pass.
    """

    url: str
    sources: Mapping[str, Sequence[Source]] = dataclasses.field(default_factory=dict)
    retry_failed: bool = False

    def path(self, *parts: str) -> str:
        """Return the URL of something in the run directory."""
        return storage.join(self.url, *parts)

    @property
    def report_page(self) -> str:
        """The URL of the report; it is written last, so where it is, all the rest is of the same run."""
        return self.path("report", "index.html")

    def parts(self, stage: str) -> list[str]:
        """Return the URLs of the part files of a finished stage, in order; none when it has not run."""
        return [self.path(stage, name) for name in self._index(stage)["parts"]]

    def rows(self, stage: str) -> list[int]:
        """Return the number of rows of every part of a finished stage."""
        return self._index(stage)["rows"]

    def _index(self, stage: str) -> Index:
        path = self.path(stage, INDEX)
        try:
            return parse_index(storage.read_bytes(path))
        except FileNotFoundError:
            return {"parts": [], "rows": []}
        except ValueError as error:
            raise DamagedPart(path, str(error)) from error

    def read(self, stage: str, index: int, columns: list[str] | None = None) -> pa.Table:
        """Read one part file of a stage."""
        return read_table(self.parts(stage)[index], columns)

    def read_all(self, stage: str, columns: list[str] | None = None) -> pa.Table:
        """Read all part files of a stage as one table (for small, sparse stages)."""
        return pa.concat_tables([read_table(part, columns) for part in self.parts(stage)])


def parse_index(data: bytes) -> Index:
    """Read the index of a stage; raises ValueError when it is none."""
    index = json.loads(data)
    if not isinstance(index, dict) or not {"parts", "rows"} <= index.keys():
        raise ValueError("it holds no parts and rows")
    return cast(Index, index)


@dataclasses.dataclass(frozen=True)
class Marker:
    """What a finished unit says of its output.

    Args:
        path: of the output file, in the run directory.
        digest: hex digest of everything the output depends on.
        sha256: of the output file, hex.
        size: of the output file in bytes.
        rows: of the output file.
        counters: what the step counted.
        notes: what the step says of single rows, for example those it lost.
    """

    path: str
    digest: str
    sha256: str
    size: int
    rows: int
    counters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: Sequence[Any] = ()

    def dump(self) -> bytes:
        """Return the marker as it is written: one line, with a checksum of the rest."""
        fields = dataclasses.asdict(self)
        return json.dumps({**fields, "crc32": _crc32(fields)}, sort_keys=True).encode()

    @staticmethod
    def parse(data: bytes) -> Marker:
        """Read a marker; raises ValueError or TypeError when it is not one, or not as it was written."""
        fields = dict(json.loads(data))
        if fields.pop("crc32", None) != _crc32(fields):
            raise ValueError("the checksum of the marker is not that of what it says")
        marker = Marker(**fields)
        if ".." in marker.path.split("/"):
            raise ValueError("a marker names a file of its run")
        return marker


def _crc32(fields: Mapping[str, object]) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def undigested(default: T = dataclasses.MISSING) -> T:  # type: ignore[assignment]
    """Declare a field of a job that never decides the output, for example when to give up: it is in no digest."""
    return dataclasses.field(default=default, metadata={"undigested": True})


@dataclasses.dataclass(frozen=True)
class NoJob:
    """The job of a step that needs to be told nothing."""


@dataclasses.dataclass(frozen=True)
class Unit(Generic[J]):
    """One piece of work of a stage.

    Args:
        index: position in the stage; names the part file.
        job: what the step is told; its fields are part of the digest, but those declared by `undigested`.
        weight: number of items in it, for the progress bar.
        name: of its files without an ending; "" for that of a part.
    """

    index: int
    job: J
    weight: int = 1
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Stage(Generic[J]):
    """A list of units that call one step.

    Args:
        name: of the folder in the run directory.
        step: writes the rows of a unit: `step(run, job, output)`; after a combine `step(run, job, output, combined)`.
        units: the work; all of them, done or not.
        inputs: digests of the stages it reads.
        revision: of the step's code: raise it when the same inputs give other bytes.
        noun: what is counted in the progress bar.
        cores: "one" thread for each unit; "all" cores for the only unit of a stage; "idle" ones too where there are
            fewer units than workers, for steps whose bits do not depend on the number of threads.
        processes: whether its steps spend their time in the interpreter, so that local workers are processes in a run
            that is long enough to be worth starting them.
        target: folder of the outputs when it is not NAME (the dataset's shards).
        count: number of units, where the units are left out to ship the stage to a worker.
    """

    name: str
    step: Callable[Concatenate[Run, J, Output, ...], None]
    units: Sequence[Unit[J]]
    inputs: Sequence[str] = ()
    revision: int = 1
    noun: str = "units"
    cores: Literal["one", "all", "idle"] = "one"
    processes: bool = False
    target: str = ""
    count: int = 0

    @property
    def total(self) -> int:
        """The number of units, also where the units themselves were not shipped."""
        return self.count or len(self.units)

    def stem(self, unit: Unit[J]) -> str:
        """Return the name of a unit's files without an ending, `part-NNNNN-of-NNNNN` unless it has a name."""
        return unit.name or f"part-{unit.index:05d}-of-{self.total:05d}"

    def path(self, unit: Unit[J]) -> str:
        """Return the path of the unit's Parquet file in the run directory."""
        return storage.join(self.target or self.name, self.stem(unit) + ".parquet")

    def output(self, run: Run, unit: Unit[J]) -> str:
        """Return the URL of the unit's Parquet file."""
        return run.path(self.path(unit))

    def marker(self, run: Run, unit: Unit[J]) -> str:
        """Return the URL of the unit's marker."""
        return run.path(self.name, self.stem(unit) + ".done")

    def unit_digest(self, unit: Unit[J]) -> str:
        """Return the digest of what the unit's output depends on."""
        step = f"{self.name}.{self.step.__qualname__}"  # the name of the module may change
        return digest(FORMAT, step, self.revision, self.total, unit.index, _digested(unit.job), list(self.inputs))

    @functools.cached_property
    def digest(self) -> str:
        """The digest of the whole stage: what later stages name as their input."""
        return digest([self.unit_digest(unit) for unit in self.units])


def _digested(job: Any) -> dict[str, Any]:
    return {
        field.name: getattr(job, field.name)
        for field in dataclasses.fields(job)
        if not field.metadata.get("undigested")
    }


def digest(*values: object) -> str:
    """Return the SHA-256, hex, of plain data, dataclasses and options (dicts in any order)."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    return _digested(value) if dataclasses.is_dataclass(value) else str(value)


class Output:
    """The part file a unit writes: tables of one schema, streamed.

    Args:
        file: where the bytes go.
        earlier: URL of what the same unit wrote before, where it is done again for what it lost.
    """

    def __init__(self, file: BinaryIO, earlier: str | None = None) -> None:
        self.sink, self.earlier = HashingFile(file), earlier
        self.writer: pq.ParquetWriter | None = None
        self.rows = 0
        self.counters: collections.Counter[str] = collections.Counter()
        self.notes: list[Any] = []

    def begin(self, schema: pa.Schema, compression: str = "zstd") -> pq.ParquetWriter:
        """Return the writer of the file, which has no row group yet and may end without one."""
        if self.writer is None:
            file = pa.PythonFile(self.sink, mode="w")
            self.writer = pq.ParquetWriter(file, schema, compression=compression, write_page_checksum=True)
        return self.writer

    def write(self, table: pa.Table, compression: str = "zstd") -> None:
        """Append a table as one row group, empty or not."""
        self.begin(table.schema, compression).write_table(table, row_group_size=max(1, table.num_rows))
        self.rows += table.num_rows

    def finish(self, digest: str, path: str = "") -> Marker:
        """Close the file and return its marker.

        Args:
            path: of the file in the run directory.
        """
        if self.writer is None:
            raise UnitError("the step wrote no table")
        self.writer.close()
        counters = dict(sorted(self.counters.items()))
        return Marker(path, digest, self.sink.hash.hexdigest(), self.sink.size, self.rows, counters, self.notes)


def standing(run: Run, stage: Stage[J]) -> dict[int, Marker]:
    """Return by index of the unit the markers of outputs that are there, whole and made from the present inputs.

    The folder is listed once: that tells which markers there are to read, and how long the outputs are.
    """
    markers = storage.sizes(run.path(stage.name))
    outputs = storage.sizes(run.path(stage.target)) if stage.target else markers
    units = [unit for unit in stage.units if f"{stage.stem(unit)}.done" in markers]
    read = storage.side_by_side(run.url, functools.partial(_marker, run, stage), units)
    return {
        unit.index: marker
        for unit, marker in zip(units, read, strict=True)
        if marker is not None
        and marker.digest == stage.unit_digest(unit)
        and marker.size == outputs.get(f"{stage.stem(unit)}.parquet")
    }


def _marker(run: Run, stage: Stage[J], unit: Unit[J]) -> Marker | None:
    try:
        return Marker.parse(storage.read_bytes(stage.marker(run, unit)))
    except (OSError, ValueError, TypeError):
        return None


def finished(run: Run, stage: Stage[J], unit: Unit[J]) -> bool:
    """Say whether the unit's output is there, whole, made from the present inputs, and not to be tried again."""
    marker = written(run, stage, unit)
    return marker is not None and not to_retry(run, marker)


def written(run: Run, stage: Stage[J], unit: Unit[J]) -> Marker | None:
    """Return the marker of a unit whose output is there, whole and made from the present inputs; else None."""
    marker = _marker(run, stage, unit)
    if marker is None or marker.digest != stage.unit_digest(unit):
        return None
    try:
        return marker if storage.size(stage.output(run, unit)) == marker.size else None
    except OSError:
        return None


def to_retry(run: Run, marker: Marker) -> bool:
    """Say whether a unit lost what may be there by now, or all that it lost is asked for again."""
    return bool(marker.counters.get(LOST) or (run.retry_failed and marker.counters.get(DEAD)))


def run_unit(run: Run, stage: Stage[J], unit: Unit[J], *combined: object) -> None:
    """Run a unit unless it is finished; raises UnitError with the cause in one line.

    Args:
        run: the run directory and sources.
        stage: the unit's stage.
        unit: the work.
        combined: what a combine computed from other units; handed to the step after the output.
    """
    before = written(run, stage, unit)
    if before is not None and not to_retry(run, before):
        return
    try:
        with storage.writing(stage.output(run, unit)) as file:
            output = Output(file, stage.output(run, unit) if before else None)
            stage.step(run, unit.job, output, *combined)
            marker = output.finish(stage.unit_digest(unit), stage.path(unit))
        storage.write_bytes(stage.marker(run, unit), marker.dump())
    except Exception as error:
        cause = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
        raise UnitError(f"stage {stage.name}, unit {unit.index} of {stage.total}: {cause} ;;") from error


def close_stage(run: Run, stage: Stage[J], known: Mapping[int, Marker] = {}) -> list[Marker]:
    """Write the index of a stage whose units are all finished, and remove what an earlier recipe left beside them.

    Args:
        known: markers that have been read, by index of the unit.

    Returns:
        The markers, in order of the units.
    """
    units = [unit for unit in stage.units if unit.index not in known]
    read = storage.side_by_side(run.url, lambda unit: storage.read_bytes(stage.marker(run, unit)), units)
    all_of_them = {**known, **{unit.index: Marker.parse(data) for unit, data in zip(units, read, strict=True)}}
    markers = [all_of_them[unit.index] for unit in stage.units]
    stems = {stage.stem(unit) for unit in stage.units}
    for folder in {stage.name, stage.target or stage.name}:
        for name in storage.names(run.path(folder)):
            if name != INDEX and (name.split(".")[0] not in stems or name.endswith(".tmp")):
                storage.remove(run.path(folder, name))
    index = {
        "parts": [f"{stage.stem(unit)}.parquet" for unit in stage.units],
        "rows": [m.rows for m in markers],
    }
    storage.write_bytes(run.path(stage.name, INDEX), json.dumps(index).encode())
    return markers
