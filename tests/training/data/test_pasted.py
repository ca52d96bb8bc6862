"""One or several pictures of a row: squares, counts, sizes, what is dead, and both kinds of rows in one mixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Image as ImageFeature
from datasets import List, Value
from made_scenes import png

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.curation.store.schema import arrow_schema, sample_features
from granary.training.data.bins import bins_of, points_of
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan, batches
from granary.training.data.pasted import pasted_views, squared
from granary.training.data.shards import check_kinds, open_dataset

SIDE = 8


def picture(value: int, width: int = SIDE, height: int = SIDE) -> bytes:
    return png(np.full((height, width, 3), value, np.uint8))


def write(folder: Path, rows: list[dict[str, Any]], features: Any) -> str:
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, arrow_schema(features)), folder / "data" / "a.parquet", row_group_size=3)
    return str(folder)


def several(folder: Path, groups: list[list[bytes]]) -> str:
    rows = [
        {"id": f"s{n}", "images": [{"bytes": data, "path": None} for data in files], "said": str(n)}
        for n, files in enumerate(groups)
    ]
    from datasets import Features

    return write(
        folder, rows, Features({"id": Value("string"), "images": List(ImageFeature()), "said": Value("string")})
    )


def single(folder: Path, files: list[bytes]) -> str:
    rows = [{"id": f"o{n}", "image": {"bytes": data, "path": None}, "said": str(n)} for n, data in enumerate(files)]
    return write(folder, rows, sample_features({"said": Value("string")}))


def plan(*paths: str, batch: int, count: int = 3) -> BatchPlan:
    sets = [open_dataset(path, ("images", "said")) for path in paths]
    check_kinds(sets, ["images", "said"])
    crops = {"image": Crop(count, SIDE, draws=0)}
    return BatchPlan(sets, [1.0] * len(sets), crops, ("images", "said"), batch=batch, streams=1, views=pasted_views)


@pytest.mark.parametrize("size", [(6, 6), (9, 4), (4, 9), (5, 2)])
def test_a_picture_lies_in_its_square_where_coordinates_are_placed(size: tuple[int, int]) -> None:
    """A pixel of a picture is where its coordinates say, in a square as large as the longer side."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[1, 2] = 200
    side = max(size)
    pasted = squared(pixels, side)
    assert pasted.shape == (side, side, 3)
    assert (pasted == 255).all(axis=2).sum() == side * side - width * height
    ((y, x),) = np.argwhere((pasted == 200).all(axis=2))
    x_bin, y_bin = bins_of(np.array([[2.0, 1.0]]), width, height, bins=side + 1)
    assert (x_bin, y_bin) == (x, y)
    np.testing.assert_allclose(points_of([x, y], width, height, bins=side + 1), [[2, 1]])


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_one_and_of_several_pictures_are_in_one_batch(tmp_path: Path, workers: int) -> None:
    groups = [[picture(10 * n + k, 4 + k) for k in range(1 + n % 3)] for n in range(6)]
    paths = several(tmp_path / "several", groups), single(tmp_path / "single", [picture(100 + n) for n in range(6)])
    seen = dict[str, Any]()
    for batch in batches(plan(*paths, batch=4), range(4), workers=workers):
        assert batch["image"].shape == (4, 3, SIDE, SIDE, 3)
        for place, name in enumerate(batch["id"]):
            count = int(batch["image_count"][place])
            middle = batch["image"][place, :count, SIDE // 2, SIDE // 2, 0].tolist()
            seen[name] = (middle, batch["image_sizes"][place].tolist(), batch["said"][place])
            assert (batch["image"][place, count:] == 255).all()
    for n, files in enumerate(groups):
        sizes = [[4 + k, SIDE] for k in range(len(files))] + [[0, 0]] * (3 - len(files))
        assert seen.get(f"s{n}", ([10 * n + k for k in range(len(files))], sizes, str(n))) == (
            [10 * n + k for k in range(len(files))], sizes, str(n),
        )  # fmt: skip
    assert {name for name in seen if name[0] == "o"}
    assert {name for name in seen if name[0] == "s"}
    assert all(seen[f"o{n}"][0] == [100 + n] for n in range(6) if f"o{n}" in seen)


def test_a_row_with_a_damaged_picture_too_many_or_none_is_dead(tmp_path: Path) -> None:
    groups = [[picture(1)], [picture(2), b"no picture"], [picture(3)] * 4, [], [picture(5), picture(6)], [picture(7)]]
    read = list(batches(plan(several(tmp_path, groups), batch=3), range(4), workers=0))
    assert {name for batch in read for name in batch["id"]} == {"s0", "s4", "s5"}
    dead = {(uri, kind) for batch in read for uri, kind, _ in batch["dead"]}
    assert dead == {("s1", "UnidentifiedImageError"), ("s2", "NumberOfPictures"), ("s3", "NumberOfPictures")}


def test_views_are_the_same_whatever_is_drawn() -> None:
    row = {"pictures": [picture(3), picture(9, 5, 3)]}
    crops = {"image": Crop(2, SIDE)}
    one, two = (pasted_views(row, np.random.default_rng(n), crops, DecodeLimits()) for n in range(2))
    assert all(
        torch.equal(torch.from_numpy(one[name]), torch.from_numpy(two[name])) for name in ("image", "image_sizes")
    )
    with pytest.raises(DecodeError, match="2 pictures, not 1 to 1"):
        pasted_views(row, np.random.default_rng(0), {"image": Crop(1, SIDE)}, DecodeLimits())


def test_a_table_without_any_picture_is_a_sentence(tmp_path: Path) -> None:
    from datasets import Features

    path = write(tmp_path / "a", [{"id": "1", "said": "x"}], Features({"id": Value("string"), "said": Value("string")}))
    with pytest.raises(UserError, match="has no column 'images'"):
        open_dataset(path, ("images", "said"))
    texts = Features({"id": Value("string"), "images": List(Value("string"))})
    path = write(tmp_path / "b", [{"id": "1", "images": ["x"]}], texts)
    with pytest.raises(UserError, match="it must be a list of pictures"):
        open_dataset(path, ("images",))
