"""Config `pairs`: each entry with its picture, cut out of the whole image or left to be cut at load time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from granary.curation.dense import crops
from granary.curation.dense.masks import pixels_of
from granary.curation.dense.schema import pair_features
from granary.curation.dense.steps.shards import shard_paths
from granary.curation.images.decode import DecodeLimits, decode
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run, read_groups
from granary.curation.store import schema

ENDING = {"jpeg": "jpg", "png": "png"}


def write_pairs(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Write the entries of one shard with their pictures: the original bytes of whole images, crops of masks."""
    target = schema.arrow_schema(pair_features())
    rows = RowGroups(output, target, arguments["row_group"])
    images = _images(shard_paths(run, "shards", "data")[arguments["unit"]], arguments["crops"]["darken"])
    place, cutter = -1, None
    for table in read_groups(run.parts("texts")[arguments["unit"]]):
        for entry in table.to_pylist():
            while place < entry["row"]:
                place, cutter = place + 1, Cutter(next(images), arguments)
            row = {name: value for name, value in entry.items() if name != "row"}
            assert cutter is not None
            row["image"] = cutter.picture(entry)
            rows.add(row, len(row["image"]["bytes"]) if row["image"] else 0)
    rows.close()


def _images(shard: str, darken: bool) -> Iterator[dict[str, Any]]:
    for table in read_groups(shard, ["image", "masks"] if darken else ["image"]):
        for batch in table.to_batches(max_chunksize=1):
            yield from batch.to_pylist()


class Cutter:
    """Cuts the pictures of the entries of one image; it is decoded when the first mask asks for it.

    Args:
        row: of config `default`.
        arguments: crops and decode of the recipe.
    """

    def __init__(self, row: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        self.row, self.crops, self.limits = row, arguments["crops"], DecodeLimits(**arguments["decode"])
        self.decoded: Image.Image | None = None

    def picture(self, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return bytes and file name of the picture of an entry; None where crops are left to load time."""
        if entry["base"] and self.crops["store"] == "rows":
            return dict(self.row["image"])
        if self.crops["store"] == "boxes":
            return None
        if self.decoded is None:
            self.decoded = decode(self.row["image"]["bytes"], self.limits).image
        part = crops.cut(self.decoded, tuple(entry["box"]), self._mask(entry))
        data = crops.encoded(part, self.crops["format"], self.crops["quality"])
        stem = self.row["image"]["path"].rpartition(".")[0] or self.row["image"]["path"]
        return {"bytes": data, "path": f"{stem}-{entry['key']}.{ENDING[self.crops['format']]}"}

    def _mask(self, entry: Mapping[str, Any]) -> np.ndarray | None:
        if not entry["darkened"]:
            return None
        mask = next(mask for mask in self.row["masks"] if mask["key"] == entry["mask"])
        found = pixels_of(mask["size"], mask["counts"], mask["png"])
        return found if found is not None else _boxed(mask)


def _boxed(mask: Mapping[str, Any]) -> np.ndarray:
    x0, y0, x1, y1 = mask["box"]
    found = np.zeros(mask["size"], bool)
    found[y0:y1, x0:x1] = True
    return found


def crop_at_load(image: bytes, box: tuple[int, int, int, int], limits: DecodeLimits | None = None) -> Image.Image:
    """Return the picture of an entry whose crop was left to load time, out of the bytes of its whole image."""
    return crops.cut(decode(image, limits or DecodeLimits()).image, box)
