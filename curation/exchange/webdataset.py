"""The shards of a run as WebDataset tars: one tar for one shard, its rows in their order, their bytes as they are.

The members of row 7 of shard 3 of train are `train-00003-000007.png`, the image (or `.mp4`, a video); `.txt`, its first
caption; `.cls`, the number of its class, where the shard has classes; `.COLUMN.png` and the like, further columns of
bytes; and `.json`, everything else, all captions and the name of the class among it.

Beside each tar stands a .json with the number of its samples and the SHA-256 of its shard: by it the same command goes
on where it stopped. The same shard gives the same bytes. Members of one key follow one another, and a key ends at the
first dot (https://github.com/webdataset/webdataset).
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import io
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from PIL import Image

from granary.curation.errors import UserError
from granary.curation.hub.publication import shards_of
from granary.curation.hub.upload import Upload
from granary.curation.images.decode import FORMATS
from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_groups
from granary.curation.store import storage
from granary.curation.store.hashing import digest_of
from granary.curation.store.schema import stated_classes

MAIN = ("image", "video")  # columns whose bytes are the sample: their members have no name but an ending
ARRAYS = {b"PK\x03\x04": "npz", b"\x93NUMPY": "npy"}
ENDING = re.compile(r"\.([A-Za-z0-9]{1,5})$")
BESIDE = ("txt", "cls", "json")  # endings that say what a sample is


class Written(NamedTuple):
    """A tar: its path, the samples in it, and how many of them have neither image nor video."""

    path: str
    samples: int
    empty: int


def write_webdataset(url: str, out: str, workers: int = 4) -> list[Written]:
    """Write the shards of a finished run as tars.

    Args:
        url: of the run directory.
        out: a new folder, or one where the same run was being written.
        workers: tars that are written at a time.

    Returns:
        The tars in their order, those of an earlier attempt among them.

    Raises:
        UserError: there is no finished run, a shard is damaged, or `out` holds something else.
    """
    run, out = Run(url.rstrip("/")), out.rstrip("/")
    shards = [shard for of_config in shards_of(run).values() for shard in of_config]
    paths = [shard.path.removeprefix("data/").removesuffix(".parquet") for shard in shards]
    known = {name for path in paths for name in (f"{path}.tar", f"{path}.json", path.partition("/")[0])}
    strange = [name for name in storage.names(out) if name not in known and not name.endswith(".tmp")]
    if strange:
        raise UserError(f"out: {out} holds {strange[0]}, which is not of this run; give a new folder")
    with concurrent.futures.ThreadPoolExecutor(workers, "granary-webdataset") as pool:
        return list(pool.map(functools.partial(_written, run, out), shards, paths))


def _written(run: Run, out: str, shard: Upload, path: str) -> Written:
    """Return what stands of a shard, which is written unless it does."""
    tar, note = storage.join(out, f"{path}.tar"), storage.join(out, f"{path}.json")
    sha256 = shard.written or _digest(shard.url)
    try:
        noted = json.loads(storage.read_bytes(note))
        if noted["source_sha256"] == sha256 and storage.size(tar) == noted["bytes"]:
            return Written(tar, noted["samples"], noted["empty"])
    except (OSError, ValueError, LookupError, TypeError):
        storage.remove(note)
    samples = empty = 0
    with storage.writing(tar) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for members in samples_of(shard.url, path):
                samples, empty = samples + 1, empty + (not members.has_bytes)
                for name, data in members.files.items():
                    archive.addfile(_header(name, len(data)), io.BytesIO(data))
        size = file.tell()
    told = {"samples": samples, "empty": empty, "bytes": size, "source_sha256": sha256}
    storage.write_bytes(note, json.dumps(told).encode())
    return Written(tar, samples, empty)


def _digest(url: str) -> str:
    with storage.open_read(url) as file:
        return digest_of(file, hashlib.sha256())


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)  # no time, no owner: the same bytes on any machine
    header.size, header.mode = size, 0o444
    return header


class Members(NamedTuple):
    """The files of a sample by name, and whether an image or a video is among them."""

    files: dict[str, bytes]
    has_bytes: bool


def samples_of(url: str, path: str) -> Iterator[Members]:
    """Yield the members of each row of a shard.

    Args:
        url: of the shard.
        path: of its tar without ending; the keys begin with its name up to "-of-".
    """
    stem, row = path.rpartition("/")[2].partition("-of-")[0].replace(".", "_"), 0
    for table in read_groups(url):
        classes = stated_classes(table.schema)
        for values in table.to_pylist():
            yield members_of(f"{stem}-{row:06d}", values, classes)
            row += 1


def members_of(key: str, row: Mapping[str, object], classes: Mapping[str, list[str]]) -> Members:
    """Return the members of a row.

    Args:
        key: of the sample, without a dot.
        row: column -> value; bytes, or {"bytes", "path"}, or lists of these become members of their own.
        classes: of columns of numbers, the names of the classes.
    """
    files: dict[str, bytes] = {}
    rest: dict[str, object] = {}
    for column, value in row.items():
        found = dict(_bytes_in(value))
        if not found:
            rest[column] = _named(value, classes.get(column))
            continue
        for place, (data, path) in found.items():
            name = "" if column in MAIN else "." + re.sub(r"[^\w-]+", "_", column) + place
            files[f"{key}{name}.{ending_of(data, path)}"] = data
    has_bytes = any(name.count(".") == 1 for name in files)
    captions, label = rest.get("captions"), row.get("label")
    if isinstance(captions, list) and captions and isinstance(captions[0], str):
        files[f"{key}.txt"] = captions[0].encode("utf-8", "replace")
    if isinstance(label, int) and label >= 0:
        files[f"{key}.cls"] = str(label).encode()
    files[f"{key}.json"] = json.dumps(_finite(rest), ensure_ascii=False, default=str).encode("utf-8", "replace")
    return Members(files, has_bytes)


def _bytes_in(value: object, place: str = "") -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Yield (place, (bytes, path)) of the files that a value holds: one has the place "", of a list .0, .1, ..."""
    if isinstance(value, bytes):
        yield place, (value, "")
    elif isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        yield place, (value["bytes"], str(value.get("path") or ""))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _bytes_in(one, f"{place}.{number}")


def _named(value: object, names: list[str] | None) -> object:
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _finite(value: object) -> object:
    """Return a value as JSON can hold it: what is no number becomes null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ending_of(data: bytes, path: str) -> str:
    """Return the ending of a member: that of the file it came from, else what its first bytes say, else bin."""
    named = ENDING.search(path)
    if named and named[1].lower() not in BESIDE:
        return named[1].lower()
    array = next((ending for magic, ending in ARRAYS.items() if data.startswith(magic)), None)
    if array is not None:
        return array
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return str(image.format).lower().replace("jpeg", "jpg")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "bin"
