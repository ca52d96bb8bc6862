"""Labelled pictures of ../shared/data as granary shards with a column split, for experiments that learn.

    python -m tests.benchmarks.pictures cifar OUT [--train 18000]
    python -m tests.benchmarks.pictures fashion OUT [--train 5000]

CIFAR-10's split test are the 2,000 pictures of every tenth row, train are the first `--train` of the others.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Value
from numpy.typing import NDArray
from PIL import Image

from granary.curation.store.schema import arrow_schema, sample_features
from tests.places import SHARED

TESTS, SHARD = 2000, 2500
Picture = tuple[bytes, str, str, str]  # file, its ending, label, split


def cifar(train: int) -> Iterator[Picture]:
    """Yield the 2,000 test pictures of CIFAR-10 and so many others, in the order of the file."""
    stored = np.load(SHARED / "cifar10_dev.npz")
    names, data, offset = stored["class_names"], stored["jpeg"], stored["offset"]
    for row, label in enumerate(stored["label"]):
        left = row - row // 10 - 1  # training pictures before it
        if row % 10 == 0 or left < train:
            split = "test" if row % 10 == 0 else "train"
            yield data[offset[row] : offset[row + 1]].tobytes(), "jpg", str(names[label]), split


def fashion(train: int) -> Iterator[Picture]:
    """Yield the first so many training and the first 2,000 test pictures of Fashion-MNIST, enlarged to 32 px."""
    for split, name, count in (("train", "train", train), ("test", "t10k", TESTS)):
        folder = SHARED / "fashion_mnist"
        pixels = np.frombuffer(
            gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes()), np.uint8, -1, 16
        )
        labels = np.frombuffer(gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, -1, 8)
        for picture, label in zip(pixels.reshape(-1, 28, 28)[:count], labels[:count], strict=True):
            file = io.BytesIO()
            Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(file, "PNG")
            yield file.getvalue(), "png", str(label), split


def _idx(name: str, header: int) -> NDArray[np.uint8]:
    """Return the bytes of a file of Fashion-MNIST after its header."""
    return np.frombuffer(gzip.decompress((SHARED / "fashion_mnist" / f"{name}-ubyte.gz").read_bytes()), np.uint8)[
        header:
    ]


SOURCES: dict[str, Callable[[int], Iterator[Picture]]] = {"cifar": cifar, "fashion": fashion}


def write_run(folder: Path, source: str, train: int) -> str:
    """Write a source as shards into a folder, unless they are there; returns the folder."""
    target, part = folder / "dataset" / "data", folder / "part"
    if not target.exists():
        part.mkdir(parents=True, exist_ok=True)
        rows = [_row(*picture) for picture in SOURCES[source](train)]
        schema, count = arrow_schema(sample_features({"split": Value("string")})), -(-len(rows) // SHARD)
        for number in range(count):
            table = pa.Table.from_pylist(rows[number::count], schema)
            pq.write_table(table, part / f"shard-{number:05d}-of-{count:05d}.parquet", row_group_size=100)
        target.parent.mkdir(exist_ok=True)
        part.rename(target)
    return str(folder)


def _row(data: bytes, ending: str, label: str, split: str) -> dict[str, Any]:
    name = hashlib.sha256(data).hexdigest()[:32]
    row = {"id": name, "image": {"bytes": data, "path": f"{name}.{ending}"}, "width": 32, "height": 32}
    return row | {"label": label, "captions": [], "source": None, "split": split}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=18_000)
    given = parser.parse_args()
    print(write_run(given.out, given.source, given.train))
