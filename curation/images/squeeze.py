"""The small copy of a picture that measures and built-in descriptors look at."""

from __future__ import annotations

from PIL import Image


def squeezed(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return a picture squeezed to width x height pixels, smoothed as it shrinks."""
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
