"""The pool of the demo of curation: distinct pictures, and planted among them copies, leaks and broken files.

The pixels come with scikit-learn (tiles of its two photographs, sheets of its handwritten digits), or are rendered.
"""

from __future__ import annotations

import io
import pathlib
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from granary.pipelines.demos.pictures import photo_tiles, save_picture
from granary.pipelines.demos.render import rendered_pool
from granary.pipelines.engine.units import Engine

Named = tuple[str, Image.Image]  # the name of a picture, without an ending, and the picture
TILE, SHEETS, SEED = 106, 120, 0
SEEDS, LEAKS, EXACT, NEAR = 6, 16, 30, 60  # pictures of each kind
CAST = [
    *("Elephant", "Penguin", "Fox", "Teapot", "Cow", "Giraffe", "Crab", "Duck"),
    *("Flamingo", "Car", "Mushroom", "Zebra", "Frog", "Sailboat", "Chair"),
]
WORLDS = ["Meadow", "Beach", "Snow", "Desert", "Forest", "OceanFloor", "Museum", "CitySquare"]
FACTORS: Mapping[str, object] = {  # of the rendered pool: 8 x 15 pictures, each character from a side of its own
    "world_name": WORLDS,
    "character": [{"character_name": name, "camera_yaw": 24 * place} for place, name in enumerate(CAST)],
    "character_scale": [1.6],
}
EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: image,
    "smaller": lambda image: image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.25),
    "colour": lambda image: ImageEnhance.Color(image).enhance(0.7),
}


def photographed() -> Iterator[Named]:
    """Yield distinct pictures: photo tiles, then sheets of nine digits."""
    yield from photo_tiles(TILE)
    digits = load_digits().images
    order = np.random.default_rng(SEED).permutation(len(digits))[: SHEETS * 9].reshape(SHEETS, 3, 3)
    for number, sheet in enumerate(order):
        rows = [np.concatenate(list(digits[row]), axis=1) for row in sheet]
        grey = np.clip(255 - np.concatenate(rows) * 16, 0, 255).astype(np.uint8)
        picture = Image.fromarray(grey).resize((144, 144), Image.Resampling.BICUBIC).convert("RGB")
        yield f"digits/{number:03d}", picture


def rendered(folder: pathlib.Path, engine: Engine) -> Iterator[Named]:
    """Yield pictures that the embedded world renders, every character in every world.

    Args:
        folder: for the run and them.
    """
    for path in rendered_pool(str(folder / "renders"), str(folder / "render"), engine, FACTORS):
        with Image.open(folder / "renders" / path) as image:
            yield path.removesuffix(".png"), image.convert("RGB")


def make_pool(folder: pathlib.Path, distinct: Sequence[Named], seeds_from: str) -> dict[str, int]:
    """Write pool, seeds and references.

    Args:
        folder: to write under.
        distinct: the distinct pictures, at least 120.
        seeds_from: what the names of pictures begin with that may become seeds.

    Returns:
        The number of files of each kind: originals, exact, near, leaks, broken.
    """
    rng = np.random.default_rng(SEED)
    shuffled = [distinct[index] for index in rng.permutation(len(distinct))]
    seeds = [picture for picture in shuffled if picture[0].startswith(seeds_from)][:SEEDS]
    rest = [picture for picture in shuffled if picture not in seeds]
    leaked, originals = rest[:LEAKS], rest[LEAKS:]
    for name, image in seeds:
        save_picture(folder / "seeds" / f"{name}.png", image)
    _plant_leaks(folder, leaked)
    _plant_copies(folder / "pool", originals)
    broken = _broken(originals[0][1])
    for name, data in broken.items():
        _write(folder / "pool" / "broken" / name, data)
    return {"originals": len(originals), "exact": EXACT, "near": NEAR, "leaks": len(leaked), "broken": len(broken)}


def _plant_leaks(folder: pathlib.Path, leaked: Sequence[Named]) -> None:
    """Write pictures to the pool, and smaller ones of the same to the references."""
    for name, image in leaked:
        save_picture(folder / "pool" / "leaks" / f"{name}.png", image)
        save_picture(folder / "references" / f"{name}.jpg", EDITS["smaller"](image), quality=85)


def _plant_copies(pool: pathlib.Path, originals: Sequence[Named]) -> None:
    """Write the originals, exact copies of some of them, and edited copies of some, partly the same."""
    for name, image in originals:
        save_picture(pool / "originals" / f"{name}.png", image)
    for name, _ in originals[:EXACT]:
        target = pool / "exact" / f"{name}-copy.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pool / "originals" / f"{name}.png", target)
    kinds = list(EDITS)
    for number, (name, image) in enumerate(originals[20 : 20 + NEAR]):
        kind = kinds[number % len(kinds)]
        save_picture(pool / "near" / f"{name}-{kind}.jpg", EDITS[kind](image), quality=70)


def _write(path: pathlib.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _broken(image: Image.Image) -> dict[str, bytes]:
    """Return files that cannot be read, by name; one is half of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    whole = buffer.getvalue()
    return {
        "empty.jpg": b"",
        "text.png": b"this is no picture",
        "half.jpg": whole[: len(whole) // 2],
        "header-only.png": b"\x89PNG\r\n\x1a\n",
        "bomb.png": _bomb(30_000),
        "<b>bold.jpg": b"\xff\xd8\xff\xe0",
    }


def _bomb(side: int) -> bytes:
    """Return a PNG file of a few kilobytes that says it has side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(side))) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
