"""The report of a pack run: images, the masks drawn over them, and their texts. One HTML file, bounded in size.

Texts are of unknown origin: they are escaped, and isolated so that right-to-left marks in one do not turn another.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import cast

from PIL import Image

from granary.curation.dense.report.overlay import colour, drawn, hexadecimal
from granary.curation.dense.schema import ASKED, ImageRow, PairRow, WindowRow
from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.report.page import render_page
from granary.curation.report.thumbnails import jpeg, shrink
from granary.curation.runs.chosen import image_shards
from granary.curation.runs.dead_letters import DeadLetter
from granary.curation.runs.facts import Facts
from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_groups
from granary.curation.store.sampling import priority

IMAGES, MASKS, ENTRIES, LETTERS, SAID = 12, 16, 6, 40, 8
SIDE, CROP_SIDE = 640, 160


class ShownEntry(PairRow):
    """An entry, its picture as a data URL."""

    picture: str


class ShownImage(ImageRow):
    """An image as the page shows it.

    picture, plain: with its masks drawn over it, and without, as data URLs. problem: why it cannot be decoded, or "".
    colours: of each mask. windows: of the whole image. entries: the first ones. further: how many more there are.
    said: the first questions with answers, polls or turns.
    """

    picture: str
    plain: str
    problem: str
    colours: dict[str, str]
    windows: list[WindowRow]
    entries: list[ShownEntry]
    further: int
    said: list[str]


def build_report(run: Run, facts: Facts, recipe: str, limits: DecodeLimits) -> str:
    """Return the report of a finished run as HTML; the same run gives the same text.

    Args:
        run: its directory.
        facts: run.json.
        recipe: as YAML.
        limits: under which pictures are decoded.
    """
    return render_page(
        "granary.curation.dense.report",
        "pack.html.j2",
        facts,
        recipe,
        images=[_shown(run, place, limits) for place in chosen(run, int(facts["seed"]))],
        letters=_letters(run),
        limits={"masks": MASKS, "entries": ENTRIES, "letters": LETTERS},
    )


def chosen(run: Run, seed: int, most: int = IMAGES) -> list[tuple[int, int]]:
    """Return (shard, row) of a fair sample of the images, drawn by hash; memory does not grow with the run."""
    best: list[tuple[int, int, int]] = []
    for shard, path in enumerate(image_shards(run)):
        row = 0
        for table in read_groups(path, ["file"]):
            names = table["file"].to_pylist()
            hashes = priority(seed, names, "report").tolist()
            best = sorted([*best, *((value, shard, row + i) for i, value in enumerate(hashes))])[:most]
            row += len(names)
    return sorted((shard, row) for _, shard, row in best)


def _shown(run: Run, place: tuple[int, int], limits: DecodeLimits) -> ShownImage:
    """Return what the page shows of one image.

    Args:
        place: its shard, and its row there.
    """
    shard, number = place
    row = _row(image_shards(run)[shard], number)
    image, problem = _decoded(row, limits)
    masks, entries = row["masks"], _entries(run, shard, number)
    return {
        **row,
        "picture": _data(drawn(image, masks, SIDE), 80),
        "plain": _data(shrink(image, SIDE), 80),
        "problem": problem,
        "colours": {mask["key"]: hexadecimal(colour(place)) for place, mask in enumerate(masks)},
        "windows": [text for text in row["texts"] if text["part"] == "base"],
        "entries": [{**entry, "picture": _crop(image, entry["box"])} for entry in entries[:ENTRIES]],
        "further": max(0, len(entries) - ENTRIES),
        "said": _said(row),
    }


def _decoded(row: ImageRow, limits: DecodeLimits) -> tuple[Image.Image, str]:
    """Return the picture of a row, or a black one and why."""
    try:
        return decode(row["image"]["bytes"], limits).image, ""
    except DecodeError as error:
        return Image.new("RGB", (row["width"], row["height"])), str(error)


def _row(path: str, number: int) -> ImageRow:
    for table in read_groups(path):
        if number < table.num_rows:
            row: ImageRow = table.slice(number, 1).to_pylist()[0]
            return row
        number -= table.num_rows
    raise IndexError(f"{path} has no row {number}")


def _entries(run: Run, shard: int, row: int) -> list[PairRow]:
    """Return the entries of an image; their pictures are cut again, so that no crop is read.

    None where the annotations ask things of pictures instead of describing them.
    """
    parts = run.parts("texts")[shard : shard + 1]
    return [
        entry for part in parts for table in read_groups(part) for entry in table.to_pylist() if entry["row"] == row
    ]


def _said(row: Mapping[str, object]) -> list[str]:
    """Return the first questions with their answers, polls or turns of an image."""
    asked = next((column for column in ASKED.values() if row.get(column)), "")
    said = cast(list[dict[str, str]], row.get(asked) or [])[:SAID]
    return [f"{one.get('question') or one.get('role')} {one.get('answer') or one.get('content', '')}" for one in said]


def _crop(image: Image.Image, box: Sequence[int]) -> str:
    x0, y0, x1, y1 = box
    return _data(shrink(image.crop((x0, y0, x1, y1)), CROP_SIDE), 75)


def _data(image: Image.Image, quality: int) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image, quality)).decode()


def _letters(run: Run) -> list[DeadLetter]:
    """Return the first dead letters."""
    letters: list[DeadLetter] = []
    for part in run.parts("dead-letter"):
        for table in read_groups(part):
            letters += [DeadLetter(**row) for row in table.slice(0, LETTERS - len(letters)).to_pylist()]
            if len(letters) >= LETTERS:
                return letters
    return letters
