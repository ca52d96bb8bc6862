"""The splits of a dataset: how its shards are named, so that `datasets` and the Hub load one split at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from granary.curation.runs.facts import Counts, SplitCounts

if TYPE_CHECKING:
    from granary.curation.runs.run import Marker

TRAIN = "train"
NAME = re.compile(r"\w+", re.ASCII)  # of a split, for `datasets` and for file names


class Shard(NamedTuple):
    """A written shard: the split all of its samples belong to, and what its marker says."""

    split: str
    marker: Marker


def in_order(splits: Iterable[str]) -> list[str]:
    """Return the names of splits once: train first, the others as they come."""
    return sorted(dict.fromkeys(splits), key=lambda split: split != TRAIN)


def shard_names(splits: Sequence[str]) -> list[str]:
    """Return SPLIT-NNNNN-of-NNNNN for each shard, numbered within its split.

    Args:
        splits: that of each shard.
    """
    totals, places = Counter(splits), Counter[str]()
    names = []
    for split in splits:
        names.append(f"{split}-{places[split]:05d}-of-{totals[split]:05d}")
        places[split] += 1
    return names


def count_shards(shards: Sequence[Shard]) -> Counts:
    """Return samples, shards and bytes of a config, and of each of its splits."""
    names = in_order(shard.split for shard in shards)
    splits = {name: _sums([shard.marker for shard in shards if shard.split == name]) for name in names}
    whole = _sums([shard.marker for shard in shards])
    return Counts(samples=whole["samples"], shards=whole["shards"], bytes=whole["bytes"], splits=splits)


def _sums(markers: Sequence[Marker]) -> SplitCounts:
    samples, size = (sum(counts) for counts in zip(*((one.rows, one.size) for one in markers), strict=True))
    return SplitCounts(samples=samples, shards=len(markers), bytes=size)


def loadable(counts: Counts) -> Mapping[str, SplitCounts]:
    """Return the splits that a reader can load: those with samples; train where there is no sample at all."""
    splits = counts.get("splits") or {TRAIN: counts}
    return {name: one for name, one in splits.items() if one["samples"]} or {next(iter(splits)): counts}
