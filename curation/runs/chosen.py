"""Shards of what is put together from rows of the run's shards: chosen first, each then written with its pictures."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from granary.curation.runs.run import Output, Run
from granary.curation.runs.splits import in_order
from granary.curation.runs.tables import read_groups, read_table

P = TypeVar("P", bound=tuple[int, int])


class ChosenGroup(NamedTuple):
    """What the marker of a stage of `write_chosen` notes of a row group: the split of what it holds, and how many."""

    split: str
    rows: int


def write_chosen(chosen: Iterable[Mapping[str, Any]], layout: pa.Schema, rows: int, output: Output) -> None:
    """Write what was chosen before its pictures are read: that of a shard in a row group, split after split.

    Args:
        chosen: rows of the schema, each with its `split`.
        layout: the schema.
        rows: in a shard at most.
        output: of the unit, which notes a `ChosenGroup` for each.
    """
    of_split = defaultdict[str, list[Mapping[str, Any]]](list)
    for one in chosen:
        of_split[one["split"]].append(one)
    for split in in_order(sorted(of_split)):
        for start in range(0, len(of_split[split]), rows):
            group = of_split[split][start : start + rows]
            output.write(pa.Table.from_pylist(group, layout))
            output.notes.append(ChosenGroup(split, len(group)))
    output.begin(layout)


@dataclasses.dataclass(frozen=True)
class WriteChosen:
    """The job of a step that writes a shard of what was chosen.

    Args:
        unit: row group of what was chosen.
        row_group: rows in a row group of the shard.
    """

    unit: int
    row_group: int


def read_chosen(run: Run, stage: str, job: WriteChosen) -> list[Any]:
    """Return what a unit writes of what the stage chose."""
    return read_table(run.parts(stage)[0], group=job.unit).to_pylist()


def image_shards(run: Run) -> list[str]:
    """Return the URLs of the shards of config `default`, in order; that of a unit has its number."""
    return [run.path("dataset", "data", part.rsplit("/", 1)[-1]) for part in run.parts("shards")]


def rows_at(run: Run, places: Iterable[P], columns: Sequence[str]) -> dict[P, dict[str, Any]]:
    """Return rows of the run's shards, each shard read once and a row group of it held at a time.

    Args:
        run: the run directory.
        places: (number of the shard, row in it) of each.
        columns: that are read.
    """
    wanted = defaultdict[int, dict[int, P]](dict)
    for place in places:
        wanted[place[0]][place[1]] = place
    urls, found = image_shards(run), dict[P, dict[str, Any]]()
    for shard, rows in sorted(wanted.items()):
        start = 0
        for table in read_groups(urls[shard], list(columns)):
            for row in sorted(rows.keys() & set(range(start, start + len(table)))):
                (found[rows[row]],) = table.slice(row - start, 1).to_pylist()
            start += len(table)
    return found
