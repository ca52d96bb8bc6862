"""What stands beside a picture and speaks of it: KEY.json, KEY.txt, KEY.caption and KEY.cls, in a shard or a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from granary.curation.sources import columns
from granary.curation.sources.model import Source, Unread, plain

ENDINGS = ("json", "txt", "caption", "cls")
MAX_SIDECAR = 16 << 20  # bytes
MAX_DIGITS = 4300  # of an integer: what Python reads by default


class Description(NamedTuple):
    """What is said of a picture beside it; the fields of a Candidate."""

    label: str | None
    captions: tuple[str, ...]
    metadata: str | None
    keys: tuple[str, ...]


@dataclass
class Sidecars:
    """The sidecars of one key.

    Args:
        data: bytes by ending.
        unread: those that could not be read.
    """

    data: dict[str, bytes] = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)

    def described(self, source: Source, more: Mapping[str, object] | None = None) -> Description:
        """Return what they say; a .cls file goes before the JSON, unless that has a word for its number.

        Args:
            source: whose options name the keys.
            more: further columns, from the names of folders or a table of the folder.
        """
        record, metadata = self.parsed()
        label, captions, _ = columns.described(source, record)
        own_label, own_captions, rest = columns.described(source, more or {})
        cls = columns.label_of(columns.text_of(self.data.get("cls", b"")).strip())
        texts = [columns.text_of(self.data[ending]) for ending in ("txt", "caption") if ending in self.data]
        told = columns.once([*captions, *texts, *own_captions])
        if rest:
            metadata = columns.metadata_of({**rest, columns.METADATA: metadata})
        if cls and cls.isdecimal() and label and not label.isdecimal():
            cls = label
        return Description(cls or label or own_label, told, metadata, (*record, *(more or {})))

    def parsed(self) -> tuple[Mapping[str, object], str | None]:
        """Return the JSON object and its text; neither where there is none that can be read."""
        if "json" not in self.data:
            return {}, None
        try:
            record, text = read_json(self.data["json"])
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else plain(str(error))
            self.unread.append(Unread("json", type(error).__name__, reason[:300]))
            return {}, None
        return (record if isinstance(record, dict) else {}), text


def read_json(data: bytes) -> tuple[object, str]:
    """Parse JSON in UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Returns:
        What it holds, and its text. An integer too long for Python is a text in both.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deeply.
    """
    text = plain(data.decode(json.detect_encoding(data), "replace"))
    long = False

    def integer(digits: str) -> int | str:
        nonlocal long
        long = long or len(digits) > MAX_DIGITS
        return digits if len(digits) > MAX_DIGITS else int(digits)

    record = json.loads(text, parse_int=integer)
    return record, plain(json.dumps(record, ensure_ascii=False)) if long else text
