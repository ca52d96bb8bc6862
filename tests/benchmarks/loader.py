"""Pictures a second of the loader against webdataset and `datasets` streaming: same pictures, crops, workers, batch.

    python -m tests.benchmarks.loader [workers]

All three shuffle with a buffer of 1,000 samples, draw the same kind of random crop, resize with a bicubic filter and
give uint8 batches. The references decode in full with Pillow, as their documentation shows; the loader may decode large
JPEG files at a DCT scale that the crop allows, and repeats the colours that a JPEG stores at half size instead of
smoothing them. Rates are per second of wall time and of processor time (this process and its workers). Real pictures of
../shared/data, written to a temporary folder as Parquet shards and as tars.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader

from granary.curation.store.schema import arrow_schema, sample_features
from granary.training.data.crops import Crop, random_box
from granary.training.data.loader import BatchPlan, batches
from granary.training.data.shards import open_dataset
from tests.places import SHARED

BATCH, BUFFER, SHARDS = 64, 1000, 4


def photos(name: str, copies: int = 1) -> list[bytes]:
    """Return the pictures of an archive, `copies` times."""
    with zipfile.ZipFile(SHARED / name) as archive:
        records = [json.loads(line) for line in archive.read("manifest.jsonl").splitlines()]
        return [archive.read(record["file"]) for record in records] * copies


def cifar(count: int) -> list[bytes]:
    """Return pictures of CIFAR-10 as JPEG."""
    found = np.load(SHARED / "cifar10_dev.npz")
    data, offset = found["jpeg"], found["offset"]
    return [data[offset[i] : offset[i + 1]].tobytes() for i in range(count)]


def write_parquet(folder: Path, pictures: list[bytes]) -> None:
    """Write granary shards."""
    schema = arrow_schema(sample_features())
    for shard in range(SHARDS):
        rows = []
        for number in range(shard, len(pictures), SHARDS):
            width, height = Image.open(io.BytesIO(pictures[number])).size
            row = {"id": f"{number:032d}", "image": {"bytes": pictures[number], "path": f"{number}.jpg"}}
            rows.append({**row, "width": width, "height": height, "label": "0", "captions": [], "source": None})
        table = pa.Table.from_pylist(rows, schema)
        pq.write_table(table, folder / f"train-{shard:05d}-of-{SHARDS:05d}.parquet", row_group_size=100)


def write_tars(folder: Path, pictures: list[bytes]) -> None:
    """Write webdataset shards."""
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard, len(pictures), SHARDS):
                info = tarfile.TarInfo(f"{number:08d}.jpg")
                info.size = len(pictures[number])
                tar.addfile(info, io.BytesIO(pictures[number]))


class Cut:
    """Full decode with Pillow, then the crop: a picklable function of the bytes."""

    def __init__(self, crop: Crop) -> None:
        self.crop, self.generator = crop, np.random.default_rng(0)

    def __call__(self, data: bytes) -> torch.Tensor:
        """Return (count, side, side, 3) uint8."""
        image, side = Image.open(io.BytesIO(data)).convert("RGB"), self.crop.side
        boxes = [random_box(*image.size, self.crop, self.generator) for _ in range(self.crop.count)]
        views = [image.resize((side, side), Image.Resampling.BICUBIC, box=box) for box in boxes]
        return torch.from_numpy(np.stack([np.asarray(view) for view in views]))


def of_granary(folder: Path, crop: Crop, workers: int, count: int) -> Iterator[int]:
    """Yield the sizes of the batches of our loader."""
    plan = BatchPlan([open_dataset(str(folder))], [1.0], {"image": crop}, batch=BATCH, window=BUFFER)
    for batch in batches(plan, range(count // BATCH), workers=workers):
        yield len(batch["image"])


def of_webdataset(folder: Path, crop: Crop, workers: int, count: int) -> Iterator[int]:
    """Yield the sizes of the batches of webdataset."""
    import webdataset

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    samples = webdataset.WebDataset(urls, shardshuffle=SHARDS, empty_check=False)
    ready = samples.shuffle(BUFFER).to_tuple("jpg").map_tuple(Cut(crop)).batched(BATCH)
    for (batch,) in webdataset.WebLoader(ready, batch_size=None, num_workers=workers):
        yield len(batch)


class Row:
    """The step of `datasets`: a picklable function of a row."""

    def __init__(self, crop: Crop) -> None:
        self.cut = Cut(crop)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the views alone."""
        return {"views": self.cut(row["image"]["bytes"])}


def of_datasets(folder: Path, crop: Crop, workers: int, count: int) -> Iterator[int]:
    """Yield the sizes of the batches of `datasets` streaming."""
    import datasets

    files = sorted(str(path) for path in folder.glob("*.parquet"))
    rows: Any = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    rows = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    ready = rows.shuffle(seed=0, buffer_size=BUFFER).map(Row(crop), remove_columns=["image"])
    for batch in DataLoader(ready, batch_size=BATCH, num_workers=workers, collate_fn=_stack):
        yield len(batch)


def _stack(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(row["views"]) for row in rows])


def processor_seconds() -> float:
    """Return the processor time of this process and of its finished children."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def rate(batches_of: Callable[..., Iterator[int]], folder: Path, crop: Crop, workers: int, count: int) -> list[float]:
    """Return pictures per second of wall time and of processor time, one pass."""
    wall, used, seen = time.perf_counter(), processor_seconds(), 0
    for size in batches_of(folder, crop, workers, count):
        seen += size
    return [seen / (time.perf_counter() - wall), seen / (processor_seconds() - used)]


def compare(kind: str, pictures: list[bytes], crop: Crop, workers: int) -> None:
    """Print the rates of the three, and ours relative to each; the best of three interleaved passes."""
    loaders = {"granary": of_granary, "webdataset": of_webdataset, "datasets": of_datasets}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        write_parquet(folder, pictures)
        write_tars(folder, pictures)
        best = {name: [0.0, 0.0] for name in loaders}
        for _ in range(3):
            for loader, function in loaders.items():
                found = rate(function, folder, crop, workers, len(pictures))
                best[loader] = [max(pair) for pair in zip(best[loader], found, strict=True)]
    print(f"{kind}, {len(pictures):,} pictures, {crop.count} crops of {crop.side} px, {workers} workers")
    for loader, (wall, cpu) in best.items():
        ours = best["granary"]
        ratios = f"granary is {ours[0] / wall:.2f} x (wall), {ours[1] / cpu:.2f} x (processor)"
        print(f"  {loader:<11}{wall:>8,.0f} pictures/s {cpu:>8,.0f} per processor second   {ratios}", flush=True)


def main() -> None:
    """Print one table for each kind of picture."""
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    compare("photos of the camera's size", photos("photos_original_size_dev.zip", 72), Crop(1, 224), workers)
    compare("photos, 256 px", photos("photos_dev.zip", 2), Crop(1, 224), workers)
    compare("photos, 256 px, multi-crop", photos("photos_dev.zip", 2), Crop(8, 96, (0.05, 0.32)), workers)
    compare("CIFAR-10", cifar(10_000), Crop(1, 32), workers)


if __name__ == "__main__":
    main()
