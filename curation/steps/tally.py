"""What each source of a role gave: counted unit by unit in the markers, and summed here."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from granary.curation.runs.facts import LeftOutRow, SourceCount
from granary.curation.runs.run import Marker
from granary.curation.sources import Source

SHOWN = 64  # metadata keys, reasons and kinds of left-out parts that are told of one source
MOST_NAMES = 4096  # counters of a unit
Counted = collections.Counter[str]
T = TypeVar("T", str, tuple[str, str])


class Tally(NamedTuple):
    """What one source gave.

    Args:
        files: candidates.
        dead: reason -> how many could not be read.
        captions: images with captions.
        labels: images with a label.
        keys: metadata key -> images that have it.
        left_out: (what, why) -> how many files, members or columns were passed over.
    """

    files: int
    dead: Mapping[str, int]
    captions: int
    labels: int
    keys: Mapping[str, int]
    left_out: Mapping[tuple[str, str], int]

    @property
    def lost(self) -> int:
        """The number of candidates that could not be read."""
        return sum(self.dead.values())

    @property
    def images(self) -> int:
        """The number of candidates that are images."""
        return self.files - self.lost

    @property
    def reasons(self) -> str:
        """Why files could not be read, the most frequent first, and what was passed over."""
        dead = [f"{count:,} {reason}" for reason, count in most(self.dead)]
        passed = [f"{count:,} {what} left out" for (what, _), count in most(self.left_out)]
        return ", ".join([*dead, *passed]) or "nothing is there"

    def row(self, role: str, source: Source) -> SourceCount:
        """Return what run.json says of the source."""
        return {
            "role": role,
            "name": source.name,
            "kind": source.kind,
            "files": self.files,
            "dead": self.lost,
            "images": self.images,
            "captions": self.captions,
            "labels": self.labels,
            "metadata": [key for key, _ in most(self.keys)],
            "left_out": self.left_out_rows,
        }

    @property
    def left_out_rows(self) -> list[LeftOutRow]:
        """What was passed over, the most frequent first."""
        return [LeftOutRow(what=what, why=why, count=count) for (what, why), count in most(self.left_out)]


def most(counts: Mapping[T, int]) -> list[tuple[T, int]]:
    """Return the most frequent first, SHOWN at most."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]


def count_file(counters: Counted, number: int, facts: Mapping[str, object]) -> None:
    """Count one candidate of source `number` in the counters of a unit, see FACTS."""
    counters[f"{number} files"] += 1
    if facts["status"] == "dead":
        counters[f"{number} dead {facts.get('reason')}"] += 1
        return
    counters[f"{number} captions"] += bool(facts["captions"])
    counters[f"{number} labels"] += facts["label"] is not None
    count_names(counters, (f"{number} key {key}" for key in metadata_keys(facts["metadata"])))


def count_names(counters: Counted, names: Iterable[str]) -> None:
    """Count names that somebody else's data chose: past MOST_NAMES only those met before."""
    counters.update(name for name in names if name in counters or len(counters) < MOST_NAMES)


def metadata_keys(metadata: object) -> list[str]:
    """Return the first keys of the metadata of an image, shortened; none where they are no JSON object."""
    try:
        record = json.loads(metadata) if isinstance(metadata, str) else None
    except (ValueError, RecursionError):
        return []
    return [key[:80] for key in list(record)[:SHOWN]] if isinstance(record, dict) else []


def tally(markers: Iterable[Marker], number: int, left_out: Mapping[tuple[str, str], int]) -> Tally:
    """Return what source `number` of a role gave.

    Args:
        markers: of the units that read the role.
        number: of the source.
        left_out: what its listing passed over.
    """
    sums: Counted = collections.Counter()
    for marker in markers:
        sums.update({key.partition(" ")[2]: n for key, n in marker.counters.items() if key.startswith(f"{number} ")})
    counted = collections.Counter(left_out)
    for key, n in below(sums, "left ").items():
        what, _, why = key.partition(": ")
        counted[what, why] += n
    dead, keys = below(sums, "dead "), below(sums, "key ")
    return Tally(sums["files"], dead, sums["captions"], sums["labels"], keys, counted)


def below(sums: Counted, prefix: str) -> dict[str, int]:
    """Return the counts whose keys have a prefix, without it."""
    return {key.removeprefix(prefix): n for key, n in sums.items() if key.startswith(prefix)}
