"""Pictures whose ground says nothing of their object: a garment of Fashion-MNIST, in a box, on a tile of a photograph.

Grounds are drawn without regard to the class, and no two pictures share a garment or a tile. What a model tells of an
object from the ground alone it must have kept from having seen the two together.
"""

from __future__ import annotations

import gzip
import io
import itertools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import List, Value
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from granary.curation.store.schema import arrow_schema, sample_features
from granary.training.data.crops import sample_generator
from tests.places import SHARED

SIDE, GLYPH, TILE = 32, 16, 48  # pixels: of a picture, of a garment in it, of a tile before it is shrunk
PLAIN = 12  # standard deviation of a tile's greys: those below resemble each other
INK = 25  # greys above are of the garment
CLASSES = ("shirt", "trouser", "pullover", "dress", "coat", "sandal", "blouse", "sneaker", "bag", "boot")
COLUMNS = {"boxes": List(List(Value("float32"))), "copied": Value("string")}
Row = dict[str, object]
Pixels = NDArray[np.uint8]


def planted(per_class: int, seed: int) -> Iterator[Row]:
    """Yield so many pictures of each class, in an order that mixes classes.

    Args:
        per_class: at most 1,600.
        seed: of tiles, garments and places.
    """
    rng = np.random.default_rng(seed)
    garments, labels = _garments()
    order = rng.permutation(len(labels))
    chosen = np.concatenate([order[labels[order] == label][:per_class] for label in range(len(CLASSES))])
    grounds = _tiles(rng, len(chosen))
    for number, (ground, place) in enumerate(zip(grounds, rng.permutation(chosen).tolist(), strict=True)):
        x, y = (int(v) for v in rng.integers(0, SIDE - GLYPH + 1, 2))
        box = [x, y, x + GLYPH, y + GLYPH]
        pixels = composed(ground, garments[place], x, y)
        yield row(f"p{number:05d}", encoded(pixels, "PNG"), CLASSES[int(labels[place])], box)


def composed(ground: Pixels, garment: Pixels, x: int, y: int) -> Pixels:
    """Return a ground (SIDE, SIDE, 3) at half its brightness with a bright garment, (28, 28) shrunk to GLYPH, on it."""
    page = Image.fromarray((128 + garment // 2).astype(np.uint8))
    ink = Image.fromarray(np.where(garment > INK, 255, 0).astype(np.uint8))
    size, picture = (GLYPH, GLYPH), Image.fromarray(ground // 2)
    picture.paste(
        page.resize(size, Image.Resampling.BOX).convert("RGB"), (x, y), ink.resize(size, Image.Resampling.BOX)
    )
    return np.asarray(picture)


def _garments() -> tuple[Pixels, NDArray[np.uint8]]:
    """Return the 20,000 garments (n, 28, 28) and their classes."""
    stored = (
        gzip.decompress((SHARED / "fashion_mnist" / f"train-{name}-ubyte.gz").read_bytes())
        for name in ("images-idx3", "labels-idx1")
    )
    pixels, labels = stored
    return np.frombuffer(pixels, np.uint8, -1, 16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, -1, 8)


def _tiles(rng: np.random.Generator, count: int) -> list[Pixels]:
    """Return so many tiles of photographs, none of plain sky, as evenly over the photographs as they go."""
    tiles = [rng.permutation(some) for some in _by_photograph()]
    rounds = (tile for number in range(max(map(len, tiles))) for some in tiles for tile in some[number : number + 1])
    found = list(itertools.islice(rounds, count))
    return [found[place] for place in rng.permutation(len(found))]


def _by_photograph() -> Iterator[Pixels]:
    """Yield the tiles (n, SIDE, SIDE, 3) of each photograph."""
    with zipfile.ZipFile(SHARED / "photos_dev.zip") as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".jpg"):
                photo, found = Image.open(io.BytesIO(archive.read(name))).convert("RGB"), []
                for top in range(0, photo.height - TILE + 1, TILE):
                    for left in range(0, photo.width - TILE + 1, TILE):
                        tile = photo.crop((left, top, left + TILE, top + TILE))
                        if np.asarray(tile.convert("L")).std() > PLAIN:
                            found.append(np.asarray(tile.resize((SIDE, SIDE), Image.Resampling.BOX)))
                if found:
                    yield np.stack(found)


def copy_of(original: Row, number: int, seed: int) -> Row:
    """Return a near copy: some rows and columns cut off, lighter or darker, and stored as JPEG.

    Args:
        original: a row of `planted`.
        number: of the copy.
        seed: of what is changed, with the id and the number.
    """
    rng = sample_generator(seed, number, f"copy/{original['id']}")
    picture = Image.open(io.BytesIO(original["image"]["bytes"]))  # type: ignore[index]
    left, top, right, bottom = (int(v) for v in rng.integers(0, 2, 4))
    right += left + top + right + bottom == 0  # a copy has fewer pixels than its original, which stands for it
    picture = picture.crop((left, top, SIDE - right, SIDE - bottom))
    picture = ImageEnhance.Brightness(picture).enhance(float(rng.uniform(0.85, 1.15)))
    (a, b, c, d), (width, height) = original["boxes"][0], picture.size  # type: ignore[index]
    box = [max(0, a - left), max(0, b - top), min(width, c - left), min(height, d - top)]
    data = encoded(np.asarray(picture), "JPEG", quality=int(rng.integers(75, 96)))
    return row(f"{original['id']}-{number}", data, str(original["label"]), box, (width, height))


def encoded(pixels: Pixels, kind: str, **options: int) -> bytes:
    """Return a picture as a file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def row(name: str, data: bytes, label: str, box: Sequence[float], size: tuple[int, int] = (SIDE, SIDE)) -> Row:
    """Return a row of the shards."""
    return {
        "id": name, "image": {"bytes": data, "path": None}, "width": size[0], "height": size[1], "label": label,
        "captions": [], "source": {"name": "planted", "uri": name}, "boxes": [list(box)], "copied": "no",
    }  # fmt: skip


def write_rows(folder: Path, rows: Sequence[Row]) -> str:
    """Write rows as shards into a folder; returns it."""
    target = folder / "dataset" / "data" / "shard-00000-of-00001.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(list(rows), arrow_schema(sample_features(COLUMNS))), part, row_group_size=100)
    part.rename(target)
    return str(folder)


def read_rows(folder: Path | str) -> list[Row]:
    """Return the rows of a run."""
    tables = [pq.read_table(path) for path in sorted((Path(folder) / "dataset" / "data").glob("*.parquet"))]
    rows: list[Row] = pa.concat_tables(tables).to_pylist()
    return rows
