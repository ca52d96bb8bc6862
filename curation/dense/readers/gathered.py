"""What files of questions say of each picture, gathered: many entries about one picture become one record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from granary.curation.dense import fields
from granary.curation.dense.fields import JsonObject
from granary.curation.dense.readers.record import Record
from granary.curation.dense.texts import cleaned
from granary.curation.dense.tree import Problem
from granary.curation.errors import UserError
from granary.curation.sources import Source, files, listing

MAX_BYTES = 4 << 30


class Opened(NamedTuple):
    """A record that is read again.

    Args:
        names: that its picture may have.
        entries: what was said of it, in file order.
        problems: what was lost in reading.
    """

    names: tuple[str, ...]
    entries: list[JsonObject]
    problems: list[Problem]


@dataclass
class Gathering:
    """The entries of each picture, in the order in which the pictures come.

    Args:
        pictures: by the names that a picture may have.
        lost: name, kind and message of what belongs to no picture.
    """

    pictures: dict[tuple[str, ...], list[JsonObject]] = field(default_factory=dict)
    lost: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, names: Sequence[str], entry: JsonObject) -> None:
        """Add an entry about the picture of some names."""
        self.pictures.setdefault(tuple(names), []).append(entry)

    def lose(self, place: str, kind: str, message: str) -> None:
        """Note what belongs to no picture.

        Args:
            place: of it in its file.
            kind: short class name.
            message: what is wrong.
        """
        self.lost.append((place, kind, message))

    def records(self, stem: str) -> Iterator[Record]:
        """Yield a record for each picture, then one with its reason for all that belongs to none.

        Args:
            stem: name of the file or folder, before the name of the picture.
        """
        for names, entries in self.pictures.items():
            yield Record(f"{stem}:{names[0]}", text=json.dumps({"image": names, "entries": entries}))
        for place, kind, message in self.lost:
            yield Record(f"{stem}:{place}", error=(kind, message))


def opened(data: bytes | str) -> Opened:
    """Read a record that `Gathering.records` made; raises InvalidAnnotation where a name cannot be one."""
    problems: list[Problem] = []
    record = fields.load(data, problems)
    names = [fields.image_name({"image": name}) for name in cast(list[str], record["image"])]
    return Opened(tuple(names), cast(list[JsonObject], record["entries"]), problems)


def json_files(source: Source) -> Iterator[tuple[str, object]]:
    """Yield name and content of each JSON file of a source; a file is read whole, so memory grows with it.

    Raises:
        UserError: one cannot be read, or there is none.
    """
    there = False
    for file in listing.shards(source.path, (".json",)):
        there = True
        yield file.path, load(files.join(files.root(source.path), file.path))
    if not there:
        raise UserError(f"annotations: {source.path} holds no .json file; give the file, or a folder of such files")


def holds(source: Source, endings: tuple[str, ...]) -> bool:
    """Say whether a source is a file with one of some endings, or a folder with such a file."""
    return any(file.path.endswith(endings) for file in listing.shards(source.path, endings))


def load(path: str) -> object:
    """Return the content of a JSON file; raises UserError."""
    try:
        return json.loads(files.read_file(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"annotations: {path} cannot be read ({str(error)[:200]}); give a file of JSON") from error


def listed(whole: JsonObject, name: str, otherwise: str) -> list[JsonObject]:
    """Return a list of a file, what is no object in it as an empty one.

    Args:
        whole: content of the file.
        name: of the list.
        otherwise: what is said where it is none.

    Raises:
        UserError: there is no such list.
    """
    entries = whole.get(name)
    if not isinstance(entries, list):
        raise UserError(otherwise)
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def stem_of(source: Source) -> str:
    """Return the last part of the path of a source."""
    return source.path.rstrip("/").rsplit("/", 1)[-1]


def unknown(entries: Iterable[JsonObject], known: frozenset[str], noun: str) -> list[Problem]:
    """Return a problem for each key of entries that is not read, with how many have it.

    Args:
        entries: objects as they came.
        known: keys that the format has.
        noun: what an entry is, in the plural.
    """
    counts = Counter(key for entry in entries for key in entry if key not in known)
    return [
        Problem(cleaned(key), "UnknownKey", f"the key {key!r} of {count} {noun} is not read")
        for key, count in sorted(counts.items())
    ]


def identity(value: object) -> str:
    """Return an id, which may be a number or a text; "" where it is neither."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return ""
    return cleaned(str(value))
