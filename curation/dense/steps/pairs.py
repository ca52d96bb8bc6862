"""Config `pairs`: each entry with its picture, cut out of the whole image or left to be cut at load time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from PIL import Image

from granary.curation.dense import crops
from granary.curation.dense.masks import pixels_of
from granary.curation.dense.recipe import Crops
from granary.curation.dense.rows import ImageRow, MaskRow, PairRow, StoredImage, box_of
from granary.curation.dense.schema import pair_features
from granary.curation.dense.steps.shards import shard_paths
from granary.curation.images.decode import DecodeLimits, decode
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run, read_groups
from granary.curation.store import schema

ENDING = {"jpeg": "jpg", "png": "png"}


@dataclasses.dataclass(frozen=True)
class CutPairs:
    """Which entries are given their pictures, and how.

    Args:
        unit: number of the shard.
        shard: SHA-256 of the shard with the images.
        texts: SHA-256 of the part with the entries.
        crops: how pictures of masks are made.
        decode: limits on what is decoded.
        row_group: most samples in a row group.
    """

    unit: int
    shard: str
    texts: str
    crops: Crops
    decode: DecodeLimits
    row_group: int


def write_pairs(run: Run, job: CutPairs, output: Output) -> None:
    """Write the entries of one shard with their pictures: the original bytes of whole images, crops of masks."""
    target = schema.arrow_schema(pair_features())
    rows = RowGroups(output, target, job.row_group)
    images = _images(shard_paths(run, "shards", "data")[job.unit], job.crops.darken)
    place, cutter = -1, None
    for table in read_groups(run.parts("texts")[job.unit]):
        for entry in table.to_pylist():
            while place < entry["row"]:
                place, cutter = place + 1, Cutter(next(images), job.crops, job.decode)
            assert cutter is not None
            picture = cutter.picture(entry)
            row = {name: value for name, value in entry.items() if name != "row"}
            rows.add({**row, "image": picture}, len(picture["bytes"]) if picture else 0)
    rows.close()


def _images(shard: str, darken: bool) -> Iterator[ImageRow]:
    for table in read_groups(shard, ["image", "masks"] if darken else ["image"]):
        for batch in table.to_batches(max_chunksize=1):
            yield from batch.to_pylist()


class Cutter:
    """Cuts the pictures of the entries of one image; it is decoded when the first mask asks for it.

    Args:
        row: of config `default`.
        options: how pictures of masks are made.
        limits: on what is decoded.
    """

    def __init__(self, row: ImageRow, options: Crops, limits: DecodeLimits) -> None:
        self.row, self.options, self.limits = row, options, limits
        self.decoded: Image.Image | None = None

    def picture(self, entry: PairRow) -> StoredImage | None:
        """Return bytes and file name of the picture of an entry; None where crops are left to load time."""
        if entry["base"] and self.options.store == "rows":
            return self.row["image"]
        if self.options.store == "boxes":
            return None
        if self.decoded is None:
            self.decoded = decode(self.row["image"]["bytes"], self.limits).image
        part = crops.cut(self.decoded, box_of(entry["box"]), self._mask(entry))
        data = crops.encoded(part, self.options.format, self.options.quality)
        stem = self.row["image"]["path"].rpartition(".")[0] or self.row["image"]["path"]
        return {"bytes": data, "path": f"{stem}-{entry['key']}.{ENDING[self.options.format]}"}

    def _mask(self, entry: PairRow) -> np.ndarray | None:
        if not entry["darkened"]:
            return None
        mask = next(mask for mask in self.row["masks"] if mask["key"] == entry["mask"])
        found = pixels_of(mask["size"], mask["counts"], mask["png"])
        return found if found is not None else _boxed(mask)


def _boxed(mask: MaskRow) -> np.ndarray:
    x0, y0, x1, y1 = mask["box"]
    found = np.zeros(mask["size"], bool)
    found[y0:y1, x0:x1] = True
    return found


def crop_at_load(image: bytes, box: tuple[int, int, int, int], limits: DecodeLimits | None = None) -> Image.Image:
    """Return the picture of an entry whose crop was left to load time, out of the bytes of its whole image."""
    return crops.cut(decode(image, limits or DecodeLimits()).image, box)
