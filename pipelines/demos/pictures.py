"""What the demos share: a folder of their own, tiles of photographs, pictures written down."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from granary.curation.errors import UserError

PLAIN = 12  # tiles of plain sky resemble each other: they would be copies that nobody planted
MARK = "granary-demo"  # a file that says the folder is the demo's own, so that it may be made anew


def photo_tiles(side: int) -> Iterator[tuple[str, Image.Image]]:
    """Yield (name, tile) of scikit-learn's two photographs, side x side pixels, those of plain sky left out."""
    for photo, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        image = Image.fromarray(pixels)
        for top in range(0, image.height - side + 1, side):
            for left in range(0, image.width - side + 1, side):
                tile = image.crop((left, top, left + side, top + side))
                if np.asarray(tile.convert("L")).std() > PLAIN:
                    yield f"{photo}/{top:03d}-{left:03d}", tile


def save_picture(path: pathlib.Path, image: Image.Image, quality: int | None = None) -> None:
    """Write a picture in the format that the path's ending names.

    Args:
        quality: of JPEG; None for other formats.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if quality is None:
        image.save(path)
    else:
        image.save(path, quality=quality)


def own_folder(out: str) -> pathlib.Path:
    """Return a demo's folder, empty; raises UserError when it holds something else."""
    folder = pathlib.Path(out).absolute()
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARK).exists():
            raise UserError(f"out: {out} holds something that is not the demo's; give an empty folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder
