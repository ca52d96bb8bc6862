"""Masks drawn over their picture: a tint inside, a line around, the key beside it."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from granary.curation.dense.masks import region_of
from granary.curation.dense.schema import MaskRow
from granary.curation.report.thumbnails import shrink

Colour = tuple[int, int, int]
GOLDEN = 0.61803398875  # of the hue circle: neighbours in the list differ, however long it is
TINT = 80  # of 255
STEPS = ((2, 0), (0, 2))  # pixels: the width of the line


def colour(place: int) -> Colour:
    """Return the colour of the mask at a place in the list."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + GOLDEN * place) % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def hexadecimal(colour: Colour) -> str:
    """Return a colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def drawn(image: Image.Image, masks: Sequence[MaskRow], side: int) -> Image.Image:
    """Return a small copy of an RGB picture with the masks of its row drawn over it, the largest first.

    Args:
        image: the whole picture.
        masks: as a row of config `default` has them.
        side: the longer side of the copy, at most.
    """
    small = shrink(image, side)
    for place in sorted(range(len(masks)), key=lambda place: -masks[place]["area"]):
        region = Image.fromarray(region_of(masks[place]).astype(np.uint8) * 255)
        inside = region.resize(small.size, Image.Resampling.NEAREST)
        line = ImageChops.lighter(*(ImageChops.difference(inside, ImageChops.offset(inside, *step)) for step in STEPS))
        small.paste(colour(place), mask=inside.point(lambda value: value * TINT // 255))
        small.paste(colour(place), mask=line)
    pen = ImageDraw.Draw(small)
    for place, mask in enumerate(masks):
        corner = (mask["box"][0] * small.width // image.width + 4, mask["box"][1] * small.height // image.height + 3)
        key = mask["key"][:12].encode("ascii", "replace").decode()
        pen.text(corner, key, font_size=16, fill=colour(place), stroke_width=2, stroke_fill="black")
    return small
