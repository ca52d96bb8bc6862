"""Config `pairs`: each entry with its picture, cut out of the whole image or left to be cut at load time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from granary.curation.dense import crops
from granary.curation.dense.masks import region_of
from granary.curation.dense.recipe import Crops
from granary.curation.dense.schema import EntryRow, ImageFile, ImageRow, PairRow, pair_features
from granary.curation.images.decode import decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.runs.chosen import image_shards
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run
from granary.curation.runs.tables import read_groups
from granary.curation.store import schema

ENDING = {"jpeg": "jpg", "png": "png"}


@dataclasses.dataclass(frozen=True)
class CutPairs:
    """The job of `write_pairs`.

    Args:
        unit: number of the shard and of the part of the texts.
        shard: digest of the shard.
        texts: digest of the texts.
        crops: how pictures are cut and written.
        decode: limits on pictures.
        row_group: most entries in a row group.
    """

    unit: int
    shard: str
    texts: str
    crops: Crops
    decode: DecodeLimits
    row_group: int


def write_pairs(run: Run, job: CutPairs, output: Output) -> None:
    """Write the entries of one shard with their pictures: the original bytes of whole images, crops of masks."""
    groups = RowGroups(output, schema.arrow_schema(pair_features()), job.row_group)
    images = _images(image_shards(run)[job.unit], job.crops.darken)
    place, cutter = -1, None
    for entry in _entries(run.parts("texts")[job.unit]):
        while cutter is None or place < entry["row"]:
            place, cutter = place + 1, Cutter(next(images), job.crops, job.decode)
        picture = cutter.picture(entry)
        pair = {name: value for name, value in entry.items() if name != "row"}
        groups.add({**pair, "image": picture}, len(picture["bytes"]) if picture else 0)
    groups.close()


def _entries(part: str) -> Iterator[PairRow]:
    for table in read_groups(part):
        yield from table.to_pylist()


def _images(shard: str, darken: bool) -> Iterator[ImageRow]:
    """Yield the images of a shard, one picture at a time; of their columns only those that cutting needs."""
    for table in read_groups(shard, ["image", "masks"] if darken else ["image"]):
        for batch in table.to_batches(max_chunksize=1):
            yield from batch.to_pylist()


class Cutter:
    """Cuts the pictures of the entries of one image; it is decoded when the first mask asks for it.

    Args:
        image: a row of config `default`.
        options: how pictures are cut and written.
        limits: under which the image is decoded.
    """

    def __init__(self, image: ImageRow, options: Crops, limits: DecodeLimits) -> None:
        self.image, self.options, self.limits = image, options, limits
        self.decoded: Image.Image | None = None

    def picture(self, entry: EntryRow) -> ImageFile | None:
        """Return bytes and file name of the picture of an entry; None where crops are left to load time."""
        if self.options.store == "boxes":
            return None
        whole = self.image["image"]
        if entry["base"]:
            return whole
        if self.decoded is None:
            self.decoded = decode(whole["bytes"], self.limits).image
        x0, y0, x1, y1 = entry["box"]
        part = crops.cut(self.decoded, (x0, y0, x1, y1), self._mask(entry))
        data = crops.encoded(part, self.options.format, self.options.quality)
        stem = whole["path"].rpartition(".")[0] or whole["path"]
        return {"bytes": data, "path": f"{stem}-{entry['key']}.{ENDING[self.options.format]}"}

    def _mask(self, entry: EntryRow) -> NDArray[np.bool_] | None:
        """Return where an entry's picture keeps its brightness; None when that is everywhere."""
        if not entry["darkened"]:
            return None
        return region_of(next(mask for mask in self.image["masks"] if mask["key"] == entry["mask"]))
