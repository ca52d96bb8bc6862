"""Pictures side by side on one sheet, with a heading above each column."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Row = list[tuple[str, NDArray[np.uint8]]]  # heading and picture (H, W, 3), the same headings in every row
SIDE, GAP, HEAD = 96, 6, 16  # pixels of a cell at least, between cells, of the headings


def page(rows: Sequence[Row], side: int) -> bytes:
    """Return a sheet as PNG: a heading is written above the first of the columns that share it.

    Args:
        rows: one or more, all of as many pictures.
        side: pixels of a cell, at least; pictures fill their cell.
    """
    side = max(side, SIDE)
    columns = [name for name, _ in rows[0]]
    sheet = Image.new("RGB", (len(columns) * (side + GAP) + GAP, len(rows) * (side + GAP) + GAP + HEAD), "white")
    pen = ImageDraw.Draw(sheet)
    for place, name in enumerate(columns):
        if place == 0 or columns[place - 1] != name:
            pen.text((GAP + place * (side + GAP), 2), name, fill="black")
    for number, row in enumerate(rows):
        for place, (_, pixels) in enumerate(row):
            cell = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(cell, (GAP + place * (side + GAP), HEAD + GAP + number * (side + GAP)))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
