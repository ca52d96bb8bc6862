"""The pictures of the training demo: handwritten digits with labels, a few as seeds, and a pool with digits in it.

The pool is what the web is: a small part of it is of the wanted kind, most are tiles of two photographs, some pictures
have dozens of edited copies, and some of the very digits that the evaluation uses are in it. Byte-identical files
collapse in every run, so the copies are all edited.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from granary.pipelines.demos.pictures import photo_tiles, save_picture

SIDE = 16  # pixels of a picture
TILES = (16, 20, 24, 28)  # pixels of the photographs' squares, made SIDE pixels large


@dataclass(frozen=True)
class Sizes:
    """How many pictures of each kind: digits with labels, as seeds and in the pool; tiles; copied pictures and copies
    of each; labelled digits that are in the pool too."""

    labelled: int = 1200
    seeds: int = 20
    digits: int = 500
    tiles: int = 2000
    copied: int = 30
    copies: int = 45
    leaks: int = 30


FULL_SIZE = Sizes()


def make_pictures(folder: pathlib.Path, sizes: Sizes, seed: int) -> None:
    """Write pool/{digits,tiles,copies,leaks}, seeds and labelled/DIGIT: no digit is in two of them but the leaks."""
    from sklearn.datasets import load_digits

    generator, known = np.random.default_rng(seed), load_digits()
    order = generator.permutation(len(known.images))[: sizes.labelled + sizes.seeds + sizes.digits]
    images = [drawn(known.images[row], generator) for row in order]
    labelled, rest = images[: sizes.labelled], images[sizes.labelled :]
    for number, (row, image) in enumerate(zip(order, labelled, strict=False)):
        save_picture(folder / "labelled" / str(known.target[row]) / f"{number:04d}.png", image)
    tiles = list(photographed())
    kinds = {
        "seeds": rest[: sizes.seeds],
        "pool/digits": rest[sizes.seeds :],
        "pool/tiles": [tiles[number] for number in generator.permutation(len(tiles))[: sizes.tiles]],
        "pool/leaks": labelled[: sizes.leaks],
    }
    for kind, members in kinds.items():
        for number, image in enumerate(members):
            save_picture(folder / kind / f"{number:04d}.png", image)
    _copy(folder / "pool" / "copies", [*kinds["pool/digits"], *kinds["pool/tiles"]], sizes, generator)


def drawn(digit: NDArray[np.float64], generator: np.random.Generator) -> Image.Image:
    """Draw a digit (8, 8) of values 0..16 in dark ink on light paper, at a random size, place and contrast."""
    side = int(generator.integers(10, 15))
    left, top = (int(place) for place in generator.integers(0, SIDE - side + 1, 2))
    ink = Image.fromarray(np.round(digit * 255 / 16).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(ink, (left, top))
    paper, pen = (Image.new("L", (SIDE, SIDE), int(generator.integers(*span))) for span in ((170, 256), (0, 80)))
    return Image.composite(pen, paper, mask).convert("RGB")


def photographed() -> Iterator[Image.Image]:
    """Yield squares of the photographs at several scales, SIDE x SIDE pixels."""
    for side in TILES:
        for _, tile in photo_tiles(side):
            yield tile.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def edited(image: Image.Image, generator: np.random.Generator) -> tuple[Image.Image, int]:
    """Return a near copy, of other brightness and contrast, and the JPEG quality to write it with."""
    gain, shift, quality = generator.uniform(0.85, 1.15), generator.uniform(-15, 15), int(generator.integers(60, 95))
    pixels = (np.asarray(image, np.float64) - 128) * gain + 128 + shift
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), quality


def _copy(folder: pathlib.Path, originals: Sequence[Image.Image], sizes: Sizes, generator: np.random.Generator) -> None:
    """Write near copies of some of the originals, many of each."""
    for original in generator.permutation(len(originals))[: sizes.copied]:
        for number in range(sizes.copies):
            copy, quality = edited(originals[original], generator)
            save_picture(folder / f"{original:04d}-{number:02d}.jpg", copy, quality=quality)
