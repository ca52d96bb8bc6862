"""Boxes, points and masks as text: coordinates in bins, each a token, and back (VistaLLM, arXiv 2312.12423).

A picture lies in the middle of a square, coordinates are shares of its side, and a share is one of 1,001 bins. Shapes:
K points, n points of a mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from granary.training.data.contours import Mask, Points, filled

BINS = 1001
Kind = Literal["box", "point", "mask"]
LETTERS: dict[Kind, str] = {"box": "b", "point": "p", "mask": "m"}
MARKERS = tuple(f"<{letter}_{end}>" for letter in LETTERS.values() for end in ("st", "ed", "sep"))
BIN = re.compile(r"<bin_(\d{1,9})>")


def vocabulary(bins: int = BINS) -> list[str]:
    """Return the tokens that a tokenizer must know beside words: nine markers, then the bins."""
    return [*MARKERS, *(f"<bin_{number}>" for number in range(bins))]


def picture_token(number: int) -> str:
    """Return the token of a picture among several, by its number from 0 on."""
    return f"<i_{number + 1}>"


class Square(NamedTuple):
    """The white square that a picture is pasted into, in pixels.

    Args:
        side: of the square.
        left, top: where the picture begins in it.
    """

    side: int
    left: int
    top: int

    @classmethod
    def around(cls, width: int, height: int) -> Square:
        """Return the square of a picture, which is as large as its longer side."""
        side = max(width, height)
        return cls(side, (side - width) // 2, (side - height) // 2)

    def shares(self, points: Points) -> Points:
        """Return pixels (K, 2) of the picture as shares of the square, from 0 to 1; what lies outside is moved in."""
        return np.clip((points + np.array([self.left, self.top])) / self.side, 0, 1)

    def pixels(self, shares: Points) -> Points:
        """Return shares (K, 2) of the square as pixels of the picture."""
        return shares * self.side - np.array([self.left, self.top])


def to_bins(shares: NDArray[np.float64], bins: int = BINS) -> NDArray[np.int64]:
    """Return the nearest bin of shares from 0 to 1; halves go to the even one."""
    return np.rint(np.asarray(shares, np.float64) * (bins - 1)).astype(np.int64)


def from_bins(numbers: Sequence[int] | NDArray[np.int64], bins: int = BINS) -> NDArray[np.float64]:
    """Return the shares that bins stand for."""
    return np.asarray(numbers, np.float64) / (bins - 1)


def bins_of(points: Points, width: int, height: int, bins: int = BINS) -> list[int]:
    """Return points (K, 2) in pixels of a picture as 2 K bins x, y, x, y, ..."""
    return [int(number) for number in to_bins(Square.around(width, height).shares(points), bins).ravel()]


def points_of(numbers: Sequence[int], width: int, height: int, bins: int = BINS) -> Points:
    """Return 2 K bins as points (K, 2) in pixels of a picture."""
    return Square.around(width, height).pixels(from_bins(numbers, bins).reshape(-1, 2))


def written(kind: Kind, items: Iterable[Sequence[int]]) -> str:
    """Return items as one text: between two markers, a third one between items; no item at all is an empty text.

    Args:
        kind: what the items are.
        items: the bins of each.
    """
    texts = ["".join(f"<bin_{number}>" for number in item) for item in items]
    letter = LETTERS[kind]
    return f"<{letter}_st>{f'<{letter}_sep>'.join(texts)}<{letter}_ed>" if texts else ""


def parsed(text: str, kind: Kind, n: int | None = None, bins: int = BINS) -> list[list[int]] | None:
    """Return the items of a text, none of a blank one; None where it is anything else than `written` writes.

    White space is overlooked. None is no answer: it must not be counted as "there is no such thing".

    Args:
        text: of a model.
        kind: what is asked for.
        n: points of a mask.
        bins: of a coordinate.

    Raises:
        ValueError: kind is "mask" and n is missing.
    """
    if kind == "mask" and n is None:
        raise ValueError("n: how many points a mask has must be given")
    text, letter = "".join(text.split()), LETTERS[kind]
    if not text:
        return []
    start, end = f"<{letter}_st>", f"<{letter}_ed>"
    if not (text.startswith(start) and text.endswith(end) and len(text) > len(start) + len(end)):
        return None
    count = {"box": 4, "point": 2, "mask": 2 * (n or 0)}[kind]
    items = [_item(part, bins) for part in text[len(start) : -len(end)].split(f"<{letter}_sep>")]
    return [item for item in items if item] if all(item and len(item) == count for item in items) else None


def parsed_group(text: str, n: int, bins: int = BINS) -> dict[int, list[list[int]]] | None:
    """Return the masks of an answer about several pictures by the number of the picture, none of a blank one.

    None where it is anything else than picture tokens, their numbers rising, each followed by what `written` writes.

    Args:
        text: of a model.
        n: points of a mask.
        bins: of a coordinate.
    """
    text = "".join(text.split())
    first, *parts = re.split(r"<i_(\d{1,9})>", text)
    numbers = [int(number) - 1 for number in parts[::2]]
    masks = [parsed(part, "mask", n, bins) for part in parts[1::2]]
    rising = all(one < other for one, other in pairwise([-1, *numbers]))
    return (
        {k: mask for k, mask in zip(numbers, masks, strict=True) if mask}
        if not first and rising and all(masks)
        else None
    )


def _item(text: str, bins: int) -> list[int] | None:
    numbers = [int(number) for number in BIN.findall(text)]
    whole = "".join(f"<bin_{number}>" for number in numbers) == text
    return numbers if whole and all(number < bins for number in numbers) else None


def mask_of(items: Iterable[Sequence[int]], width: int, height: int, bins: int = BINS) -> Mask:
    """Return the mask (height, width) of a picture that the polygons of an answer cover together.

    The points are moved to the nearest pixels: those of an outline are pixels, and bins lie between them.
    """
    union = np.zeros((height, width), bool)
    for item in items:
        union |= filled(np.rint(points_of(item, width, height, bins)), height, width)
    return union
