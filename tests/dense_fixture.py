"""A DCI annotation drawn by hand, and pictures and masks for more of them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 800, 600
ALSO = "The following can also be seen in the image:"


def box_mask(box: tuple[int, int, int, int], size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Return a 1-bit mask of a box whose second corner is exclusive."""
    mask = Image.new("1", size)
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=1)
    return mask


def png64(mask: Image.Image) -> str:
    file = io.BytesIO()
    mask.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def entry(idx: int, box: tuple[int, int, int, int], parent: int = -1, **fields: Any) -> dict[str, Any]:
    """Return an entry of mask_data as DCI's exporter writes it."""
    return {
        "idx": idx,
        "outer_mask": png64(box_mask(box)),
        "area": (box[2] - box[0]) * (box[3] - box[1]),
        "bounds": {"topLeft": {"x": box[0], "y": box[1]}, "bottomRight": {"x": box[2], "y": box[3]}},
        "requirements": [],
        "parent": parent,
        "mask_quality": 0,
        "label": "",
        "caption": "",
        **fields,
    }


def annotation(image: str = "barn.jpg", **fields: Any) -> dict[str, Any]:
    """Return the fixture of the method sheet: a barn with a door, a bush, and a mask of no use."""
    masks = {
        "1": entry(1, (120, 200, 220, 400), parent=0, label="door", caption="A white door with a latch."),
        "0": entry(0, (100, 100, 500, 450), requirements=[1, 2], label="barn", caption="A red wooden barn."),
        "3": entry(3, (520, 300, 780, 590), mask_quality=1, label="bush"),
        "4": entry(4, (0, 0, 300, 300), mask_quality=2),
    }
    return {
        "image": image,
        "height": HEIGHT,
        "width": WIDTH,
        "short_caption": "A red barn beside a pond.",
        "extra_caption": "Clouds cover the sky.",
        "mask_data": masks,
        "mask_keys": list(masks),
        **fields,
    }


def picture(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """Return a JPEG of smooth colours."""
    tiles = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(tiles).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write(folder: Path, files: dict[str, Any], images: dict[str, bytes]) -> tuple[Path, Path]:
    """Write annotations (JSON, or text as it is) and images; returns their folders."""
    for name, content in files.items():
        path = folder / "annotations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = (
            content
            if isinstance(content, bytes)
            else (content if isinstance(content, str) else json.dumps(content)).encode()
        )
        path.write_bytes(data)
    for name, content in images.items():
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "annotations", folder / "photos"
