"""`granary partition`: write a dataset again with the part of every picture, so that models trained on two of the parts
can be told apart by what they know by heart.

The parts are disjoint by content: near copies, byte-identical ones and mirror images among them, are found by the join
of `granary.curation.dedup` over all pictures, and a component of them is in one part alone. `granary train --split
part=A,S` and `--split part=B,S` then train the two models (Meehan et al. 2023, arXiv 2304.13850).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from joblib import cpu_count
from numpy.typing import NDArray
from PIL import ImageOps

from granary.curation.dedup.components import preference
from granary.curation.dedup.near_copies import stand_ins
from granary.curation.encoders import Encoder, load_encoder
from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.curation.images.decode import Decoded, DecodeError, decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.selection.partition import PARTS, partition
from granary.curation.store import storage
from granary.curation.store.schema import NO_CLASS
from granary.training.data import shards
from granary.training.data.boxes import boxes_column, boxes_of
from granary.training.data.rewritten import check_new, write_again
from granary.training.evaluation.partition_recipe import PartitionRecipe

COLUMN = "part"
LOADER = "granary.training.models.encoder:TrainedEncoder"  # of encoders granary:PATH
EVERYTHING = "all"  # the class of pictures of a dataset without labels


class Picture(NamedTuple):
    """What is known of a picture.

    Args:
        row: its number among all rows of the dataset.
        uri: where it is from.
        label: its class, None for none.
        boxed: whether it has boxes.
        content: SHA-256 of its bytes.
        pixels: of the original.
    """

    row: int
    uri: str
    label: str | None
    boxed: bool
    content: str = ""
    pixels: int = 0


class Described(NamedTuple):
    """The pictures that could be decoded, their vectors (n, views, d), and how many could not."""

    pictures: list[Picture]
    vectors: NDArray[np.float32]
    unreadable: int


class Parted(NamedTuple):
    """What was decided.

    Args:
        parts: of each row of the dataset, None for none.
        counts: part -> class -> pictures that stand for their component.
        copies: near copies of such pictures.
        unlabelled, unreadable: pictures without a part for want of a class, or of pixels.
    """

    parts: list[str | None]
    counts: dict[str, Counter[str]]
    copies: int
    unlabelled: int
    unreadable: int


def write_partition(recipe: PartitionRecipe, say: Callable[[str], object] = print) -> Parted:
    """Write a dataset again with a column `part`, null for pictures that are in none, and partition.json.

    Args:
        recipe: what is parted, and how.
        say: prints a line.

    Returns:
        What was decided.

    Raises:
        UserError: the data cannot be read, something is in `out`, or A, B or X would be empty.
    """
    whole = shards.open_dataset(recipe.data.path, why="partition", columns=recipe.data.columns)
    check_new(recipe.out, whole, COLUMN)
    parted = parted_by(recipe, whole)
    write_again(whole, recipe.out, COLUMN, lambda group: _column(parted.parts[group.start :][: group.rows]))
    facts = {"kind": "partition", **recipe.model_dump(mode="json"), **parted._asdict()}
    del facts["parts"]
    storage.write_bytes(storage.join(recipe.out, "partition.json"), json.dumps(facts, indent=2).encode())
    for line in _told(recipe, parted):
        say(line)
    return parted


def parted_by(recipe: PartitionRecipe, whole: shards.Dataset) -> Parted:
    """Return the part of every row of a dataset.

    Args:
        recipe: how.
        whole: the dataset, opened without a split.

    Raises:
        UserError: no picture can be decoded, or A, B or X would be empty.
    """
    encoder = load_encoder(recipe.encoder, recipe.device, LOADER)
    found = described(recipe, whole, encoder)
    if not found.pictures:
        raise UserError(f"data: none of the {found.unreadable:,} pictures of {whole.path} can be decoded")
    pictures = found.pictures
    threshold = encoder.leak_threshold if recipe.threshold is None else recipe.threshold
    contents = [picture.content for picture in pictures]
    said = [f"{p.uri}#{p.label}#{p.boxed}#{p.row}" for p in pictures]  # the row last: the order should decide nothing
    rank = preference([p.pixels for p in pictures], contents, said)
    mirrored = found.vectors[:, 1] if recipe.mirror else None
    device = str(torch_device(recipe.device))
    stand_in = stand_ins(found.vectors[:, 0], contents, rank, threshold, mirrored, device)
    heads = [place for place, other in enumerate(stand_in.tolist()) if place == other]
    labelled = [place for place in heads if pictures[place].label is not None]
    chosen = dict(zip(labelled, _drawn([pictures[place] for place in labelled], recipe), strict=True))
    parts: list[str | None] = [None] * whole.count
    for place, other in enumerate(stand_in.tolist()):
        if place == other or recipe.copies == "keep":
            parts[pictures[place].row] = chosen.get(other)
    counts = {part: Counter(str(pictures[p].label) for p, q in chosen.items() if q == part) for part in PARTS}
    _check(recipe, whole, counts)
    return Parted(parts, counts, len(pictures) - len(heads), len(heads) - len(labelled), found.unreadable)


def _drawn(pictures: Sequence[Picture], recipe: PartitionRecipe) -> list[str | None]:
    """Return the parts of pictures, None for those that a partition of the largest size trains on and this does not."""
    boxed = np.array([picture.boxed for picture in pictures], bool)
    given = [picture.content for picture in pictures], [str(picture.label) for picture in pictures], boxed
    parts = partition(*given, recipe.per_class, recipe.seed)
    public = partition(*given, recipe.largest or recipe.per_class, recipe.seed) == "X"
    return [str(part) if part != "X" or free else None for part, free in zip(parts, public, strict=True)]


def described(recipe: PartitionRecipe, whole: shards.Dataset, encoder: Encoder) -> Described:
    """Return what is known of the pictures of a dataset, decoded by threads and embedded a batch at a time.

    Args:
        recipe: how.
        whole: the dataset, opened without a split.
        encoder: describes them.
    """
    pictures, vectors, unreadable = list[Picture](), list[NDArray[np.float32]](), 0
    with ThreadPoolExecutor(max(1, int(cpu_count()))) as pool:
        for files, facts in _batches(recipe, whole):
            decoded = list(pool.map(partial(_decoded, side=encoder.side), files))
            images = [one.image for one in decoded if one is not None]
            unreadable += len(files) - len(images)
            if images:
                views = [images, [ImageOps.mirror(image) for image in images]] if recipe.mirror else [images]
                vectors.append(np.stack([encoder.embed(view) for view in views], axis=1))
            for file, one, picture in zip(files, decoded, facts, strict=True):
                if one is not None:
                    content = hashlib.sha256(file).hexdigest()
                    pictures.append(picture._replace(content=content, pixels=one.width * one.height))
    return Described(pictures, np.concatenate(vectors) if vectors else np.empty((0, 1, 1), np.float32), unreadable)


def _batches(recipe: PartitionRecipe, whole: shards.Dataset) -> Iterator[tuple[list[bytes], list[Picture]]]:
    """Yield the files of pictures and what the shards say of them, a batch at a time."""
    path, usual = recipe.data.path, recipe.data.columns
    dataset = shards.open_dataset(path, split=recipe.split, why="partition", columns=usual) if recipe.split else whole
    boxes = boxes_column(whole, recipe.boxes)
    there = [name for name in ("id", "image", "label", "source", boxes) if name and name in whole.columns]
    starts = {(group.url, group.number): group.start for group in whole.groups}
    for group in dataset.groups:
        rows = shards.GroupRows(shards.read_group(group, there, ("label",)))
        numbers = range(rows.count) if group.chosen is None else group.chosen.tolist()
        facts = []
        for place, number in enumerate(numbers):
            label = rows.cell("label", place) if "label" in there else EVERYTHING
            boxed = boxes is None or bool(boxes_of(rows.cell(boxes, place), f"{boxes} of {whole.path}"))
            uri = str(rows.cell("source", place) or rows.cell("id", place))
            row = starts[group.url, group.number] + number
            facts.append(Picture(row, uri, None if label in NO_CLASS else label, boxed))
        for start in range(0, rows.count, recipe.batch):
            some = range(start, min(start + recipe.batch, rows.count))
            yield [rows.image(place) for place in some], facts[some.start : some.stop]


def _decoded(file: bytes, side: int | None) -> Decoded | None:
    try:
        return decode(file, DecodeLimits(), side)
    except DecodeError:
        return None


def _column(parts: Sequence[str | None]) -> pa.Array:
    return pa.array(parts, pa.string())


def _check(recipe: PartitionRecipe, whole: shards.Dataset, counts: dict[str, Counter[str]]) -> None:
    """Raise UserError where A, B or X have no picture."""
    if not counts["A"].total():
        column = boxes_column(whole, recipe.boxes)
        need = f" and boxes in column {column}" if column else ""
        raise UserError(f"data: A would be empty: {whole.path} has no class of two pictures with a label{need}")
    if not counts["X"].total():
        key = "per_class" if recipe.largest is None else "largest"
        raise UserError(
            f"{key}: {recipe.largest or recipe.per_class} is not right: it leaves no picture for X, the public ones; "
            "give less"
        )


def _told(recipe: PartitionRecipe, parted: Parted) -> Iterator[str]:
    """Yield what was decided, in lines."""
    for part, classes in parted.counts.items():
        sizes = sorted(classes.values())
        each = f"{sizes[0]:,}" if sizes and sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}" if sizes else ""
        yield f"{part}: {classes.total():,} pictures" + (f", {each} of each of {len(sizes):,} classes" if each else "")
    trained = {label: parted.counts["A"][label] + parted.counts["S"][label] for label in parted.counts["A"]}
    short = [label for label, count in trained.items() if count < recipe.per_class]
    if short:
        label = min(short, key=lambda name: (trained[name], name))
        yield f"{len(short):,} classes have fewer than {recipe.per_class:,} in A and S, {label} {trained[label]:,}"
    fate = "in the part of what they resemble" if recipe.copies == "keep" else "in no part"
    yield f"{parted.copies:,} near copies are {fate}; {parted.unlabelled:,} have no label"
    if parted.unreadable:
        yield f"{parted.unreadable:,} pictures cannot be decoded"
    shared = ",S" if parted.counts["S"] else ""
    yield f"train one model with --split {COLUMN}=A{shared}, the other with --split {COLUMN}=B{shared}"
