"""Groups of pictures, some of which show things of one attribute: attribute-level co-segmentation (AttCoSeg).

A picture that may show it, but has a thing whose attribute is not clear, is in no group that asks for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from granary.curation.dense.schema import ImageFile
from granary.curation.instructions.asking import OF_GROUPS, asked, target_of
from granary.curation.instructions.recipe import Attribute, Groups
from granary.curation.instructions.schema import ThingRow, group_features
from granary.curation.runs.chosen import WriteChosen, image_shards, read_chosen, rows_at, write_chosen
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run
from granary.curation.runs.tables import read_table
from granary.curation.store import schema
from granary.curation.store.sampling import hashed

STAGE = "chosen-groups"
ATTEMPTS = 20  # draws for each group that is asked for: one may come twice
CHOSEN = pa.schema(
    [(name, pa.string()) for name in ("split", "attribute", "value")]
    + [("shards", pa.list_(pa.int32())), ("rows", pa.list_(pa.int32()))]
)


class Place(NamedTuple):
    """Where a picture is: number of its shard, and its row there."""

    shard: int
    row: int


class Sharers(NamedTuple):
    """The pictures of a split that show something of a value, and those that surely do not."""

    attribute: Attribute
    value: str
    showing: list[Place]
    lacking: list[Place]


@dataclasses.dataclass(frozen=True)
class ChooseGroups:
    """The job of `choose_groups`.

    Args:
        options: how many groups, of how many pictures, by which attributes.
        seed: of the run.
        rows: most groups in a shard.
    """

    options: Groups
    seed: int
    rows: int


def choose_groups(run: Run, job: ChooseGroups, output: Output) -> None:
    """Draw groups of pictures of one split each; which ones depends on the pictures and the seed alone."""
    pictures = _pictures(run)
    total = sum(map(len, pictures.values()))
    chosen = []
    for split in pictures:
        count = round(job.options.count * len(pictures[split]) / total)
        drawn = draw_groups(split, pictures[split], job.options, count, job.seed)
        output.counters["groups short"] += count - len(drawn)
        chosen += drawn
    write_chosen(chosen, CHOSEN, job.rows, output)


def _pictures(run: Run) -> dict[str, dict[Place, list[ThingRow]]]:
    """Return for each split the pictures whose things all have masks."""
    pictures = defaultdict[str, dict[Place, list[ThingRow]]](dict)
    for shard, url in enumerate(image_shards(run)):
        table = read_table(url, ["split", "things"]).to_pylist()
        for row, picture in enumerate(table):
            if picture["things"] and all(thing["counts"] is not None for thing in picture["things"]):
                pictures[picture["split"]][Place(shard, row)] = picture["things"]
    return pictures


def draw_groups(
    split: str, pictures: Mapping[Place, Sequence[ThingRow]], options: Groups, count: int, seed: int
) -> list[dict[str, object]]:
    """Return at most `count` groups as rows of `CHOSEN`, no two alike: attribute, value and pictures are drawn in turn.

    Args:
        split: of the pictures.
        pictures: the things of each.
        options: what is drawn.
        count: groups that are wanted.
        seed: of the run.
    """
    lacked = options.pictures - options.showing
    every = [s for a in options.attributes for s in sharers(pictures, a)]
    fitting = [s for s in every if len(s.showing) >= options.showing and len(s.lacking) >= lacked]
    by_attribute = {a: [s for s in fitting if s.attribute == a] for a in options.attributes}
    kinds = [of_one for of_one in by_attribute.values() if of_one]
    random = np.random.default_rng([seed, hashed(f"groups/{split}")])
    drawn = dict[tuple[object, ...], dict[str, object]]()
    for _ in range(ATTEMPTS * count if kinds else 0):
        if len(drawn) == count:
            break
        of_one = kinds[random.integers(len(kinds))]
        chosen = of_one[random.integers(len(of_one))]
        members = [
            pool[place]
            for pool, some in ((chosen.showing, options.showing), (chosen.lacking, lacked))
            for place in random.choice(len(pool), some, replace=False)
        ]
        members = [members[place] for place in random.permutation(len(members))]
        key = (chosen.attribute, chosen.value, *sorted(members))
        shards, rows = ([member[part] for member in members] for part in (0, 1))
        told = {"split": split, "attribute": chosen.attribute, "value": chosen.value}
        drawn.setdefault(key, {**told, "shards": shards, "rows": rows})
    return list(drawn.values())


def sharers(pictures: Mapping[Place, Sequence[ThingRow]], attribute: Attribute) -> list[Sharers]:
    """Return for every value of an attribute, in order, the pictures that show it and those that surely do not.

    A thing without a texture has none; one whose position or size is "" may be of either.
    """
    values = {place: {thing[attribute] for thing in things} for place, things in pictures.items()}
    unclear = {""} if attribute in ("position", "size") else set()
    return [
        Sharers(
            attribute,
            value,
            [place for place, own in values.items() if value in own and not own & unclear],
            [place for place, own in values.items() if value not in own and not own & unclear],
        )
        for value in sorted(set().union(*values.values()) - {""})
    ]


def write_groups(run: Run, job: WriteChosen, output: Output) -> None:
    """Write one shard of groups with their pictures, see `group_features`."""
    chosen = read_chosen(run, STAGE, job)
    places = [[Place(*pair) for pair in zip(group["shards"], group["rows"], strict=True)] for group in chosen]
    pictures = rows_at(run, chain.from_iterable(places), ["id", "image", "width", "height", "things"])
    shard = RowGroups(output, schema.arrow_schema(group_features()), job.row_group)
    for group, members in zip(chosen, places, strict=True):
        own = [pictures[place] for place in members]
        attribute: Attribute = group["attribute"]
        targets = [
            target_of(thing, number, (picture["width"], picture["height"]))
            for number, picture in enumerate(own)
            for thing in picture["things"]
            if thing[attribute] == group["value"]
        ]
        files: list[ImageFile] = [picture["image"] for picture in own]
        question = OF_GROUPS[attribute].format(value=group["value"])
        name = "/".join([attribute, group["value"], *(picture["id"] for picture in own)])
        row = {
            "id": hashlib.sha256(name.encode()).hexdigest()[:32],
            "images": files,
            "attribute": attribute,
            "value": group["value"],
            "source": {"name": "groups", "uri": f"groups/{name}"},
            "split": group["split"],
            "instructions": [asked("group", question, targets=targets)],
        }
        shard.add(row, sum(len(file["bytes"]) for file in files))
        output.counters["groups"] += 1
    shard.close()
