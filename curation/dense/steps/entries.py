"""The entries of an image: all of it, and each mask that is large enough and of which something is said."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from granary.curation.dense import crops
from granary.curation.dense.assemble import masks_of
from granary.curation.dense.engines import Entry
from granary.curation.dense.recipe import Crops
from granary.curation.dense.schema import EntryRow, ImageRow
from granary.curation.dense.steps.notes import note
from granary.curation.dense.texts import mask_description
from granary.curation.dense.tree import UNUSABLE, Annotation, Mask, Problem, entry_key
from granary.curation.runs.run import Output

COLUMNS = ["id", "width", "height", "file", "split", "description", "masks", "source"]  # that entries are made from


def entry_id(image_id: str, file: str, key: str) -> str:
    """Return the id of an entry: 32 hex characters of a hash of its image, its annotation and its key."""
    return hashlib.sha256("\0".join([image_id, file, key]).encode()).hexdigest()[:32]


def entries_of(
    image: ImageRow, place: int, given: Annotation | None, options: Crops, output: Output
) -> Iterator[tuple[EntryRow, Entry]]:
    """Yield the whole image and each mask with an entry, in file order.

    Args:
        image: a row of config `default`; of its columns only COLUMNS are read.
        place: of the image in its shard.
        given: the annotation, for the texts that came with it; None when they are not asked for.
        options: which masks have an entry, and how their boxes grow.
        output: whose counters tell what became of the masks.
    """
    masks = masks_of(image["masks"])
    _note_unknown(image["file"], masks, given, output)
    base = _row(image, place, "base", [0, 0, image["width"], image["height"]])
    yield base, _entry(base, image["description"], given)
    chosen = {key: text for key, mask in masks.items() if (text := _chosen(mask, masks, options.min_side, output))}
    ids = {"": base["id"]} | {key: entry_id(image["id"], image["file"], entry_key(key)) for key in chosen}
    for key, text in chosen.items():
        box = crops.grown(masks[key].box or (0, 0, 0, 0), image["width"], image["height"], options.grow)
        row = _row(image, place, entry_key(key), list(box))
        row |= {"mask": key, "parent_id": ids[_nearest(masks, key, ids)], "darkened": options.darken}
        yield row, _entry(row, text, given)


def _chosen(mask: Mask, masks: Mapping[str, Mask], min_side: int, output: Output) -> str:
    """Return the description of a mask that has an entry; "" for others, which are counted by their reason."""
    reason, text = "", ""
    if not crops.large_enough(mask.box or (0, 0, 0, 0), min_side):
        reason = "small"
    elif mask.quality >= UNUSABLE:
        reason = "unusable"
    elif not (text := mask_description(masks, mask.key)):
        reason = "without text"
    output.counters[f"masks {reason}" if reason else "masks chosen"] += 1
    return text


def _nearest(masks: Mapping[str, Mask], key: str, ids: Mapping[str, str]) -> str:
    """Return the key of the nearest mask around one that has an id; "" for the whole image."""
    parent = masks[key].parent
    while parent not in ids:
        parent = masks[parent].parent
    return parent


def _row(image: ImageRow, place: int, key: str, box: list[int]) -> EntryRow:
    """Return the row of an entry of an image, as it is for the whole image."""
    return {
        "row": place,
        "id": entry_id(image["id"], image["file"], key),
        "width": box[2] - box[0],
        "height": box[3] - box[1],
        "image_id": image["id"],
        "parent_id": "",
        "file": image["file"],
        "split": image["split"],
        "key": key,
        "base": key == "base",
        "mask": "",
        "box": box,
        "darkened": False,
        "source": image["source"],
    }


def _entry(row: EntryRow, description: str, given: Annotation | None) -> Entry:
    key = row["key"]
    if given is None:
        return Entry(row["id"], key, description)
    texts, hard, scores = given.summaries.get(key, []), given.negatives.get(key, {}), given.scores.get(key, {})
    return Entry(row["id"], key, description, texts, hard, scores)


def _note_unknown(file: str, masks: Mapping[str, Mask], given: Annotation | None, output: Output) -> None:
    """Note texts that came for masks that are not there."""
    known = {"base", *map(entry_key, masks)}
    texts = {} if given is None else {"summaries": given.summaries.keys(), "negatives": given.negatives.keys()}
    for field, keys in texts.items():
        for key in sorted(keys - known):
            problem = Problem(f"{field}/{key}", "NoMask", "the texts are of a mask that is not there")
            note(output, file, "part", problem)
