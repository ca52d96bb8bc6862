"""What is computed once of a dataset, part by part, and read again.

A part holds the tensors of some row groups; a marker beside it, written after it, has its hash and what could not be
decoded. So an interrupted computation goes on where it stopped, and a damaged part is computed again. One process
computes at a time; any number may read, from memory-mapped files where they are local.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from safetensors.torch import load, load_file, save
from torch import Tensor

from granary.curation.runs.lock import Lock
from granary.curation.store import storage
from granary.curation.store.trees import json_tree
from granary.training.data.collate import Dead
from granary.training.data.shards import Dataset, RowGroup


class Computed(NamedTuple):
    """What was computed of some rows.

    Args:
        tensors: by name.
        dead: number of a row -> (uri, error, message) where nothing could be.
    """

    tensors: Mapping[str, Tensor]
    dead: Mapping[int, Dead]


def stretches(groups: Sequence[RowGroup], rows: int) -> list[list[RowGroup]]:
    """Return the row groups of each part.

    Args:
        groups: of the dataset.
        rows: of a part, at least, but for the last.
    """
    parts: list[list[RowGroup]] = [[]]
    for group in groups:
        if sum(member.rows for member in parts[-1]) >= rows:
            parts.append([])
        parts[-1].append(group)
    return parts


def compute_parts(
    folder: str,
    parts: Sequence[Sequence[RowGroup]],
    dataset: Dataset,
    compute: Callable[[Dataset], Computed],
    say: Callable[[str], object] = lambda sentence: None,
) -> None:
    """Compute the parts that are not there.

    Args:
        folder: of these alone.
        parts: of `stretches`.
        dataset: of all rows.
        compute: is given the rows of a part.
        say: is told of damaged files.

    Raises:
        UserError: another process computes the same just now.
    """
    if all([_marker(folder, number, say) for number in range(len(parts))]):
        return
    lock = Lock(folder)
    lock.acquire()
    try:
        for number, groups in enumerate(parts):
            if _marker(folder, number) is None:
                write_part(folder, number, compute, replace(dataset, groups=list(groups)))
    finally:
        lock.release()


def write_part(folder: str, number: int, compute: Callable[[Dataset], Computed], dataset: Dataset) -> None:
    """Compute a part; write it and its marker.

    Args:
        folder, number: which part.
        compute: see `compute_parts`.
        dataset: its rows alone.
    """
    tensors, dead = compute(dataset)
    data = save(dict(tensors))
    storage.write_bytes(_part(folder, number), data)
    storage.write_bytes(f"{_part(folder, number)}.json", json.dumps({"hash": _hash(data), "dead": dead}).encode())


def read_part(folder: str, number: int) -> dict[str, Tensor]:
    """Return the tensors of a part, by name."""
    url = _part(folder, number)
    if storage.is_local(url):
        return load_file(storage.filesystem(url)[1])  # maps the file
    return load(storage.read_bytes(url))


def read_dead(folder: str, count: int) -> dict[int, Dead]:
    """Return what the markers of so many parts say of rows that could not be computed: (uri, error, message)."""
    dead: dict[int, Dead] = {}
    for number in range(count):
        dead |= {int(row): tuple(cells) for row, cells in (_marker(folder, number) or {})["dead"].items()}
    return dead


def _part(folder: str, number: int) -> str:
    return storage.join(folder, f"{number:05d}.safetensors")


def _marker(folder: str, number: int, say: Callable[[str], object] = lambda sentence: None) -> dict[str, Any] | None:
    """Return what the marker of a part says; None where part or marker are not there or not as they were written."""
    part = _part(folder, number)
    try:
        marker = json_tree(storage.read_bytes(f"{part}.json"))
        if isinstance(marker, dict) and marker["hash"] == _hash(storage.read_bytes(part)):
            return marker
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError):
        pass
    say(f"features: {part} is damaged; it is computed again")
    return None


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
