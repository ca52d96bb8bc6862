"""Outlines of masks, and which n points of an outline to keep (VistaLLM, arXiv 2312.12423).

Shapes: h, w pixels, K points of an outline, n points to keep. Points are (x, y) of pixel centres, float64.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import label

Points = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

DENSE = 1.5  # points that adaptive sampling scores, for each one it keeps
RELEASED_DENSE = 40  # of the authors' program, whatever n is
LEAST_DENSE = 120  # points from which the least is removed one at a time
# Neighbours clockwise from the left, and where the last empty neighbour lies after a step in each direction.
STEPS = ((-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1))
CAME_FROM = tuple((step + (5 if step % 2 else 6)) % 8 for step in range(8))


def outlines(mask: Mask) -> list[Points]:
    """Return the outer outline of every part of a mask, the part with the most pixels first.

    Parts are connected by sides or corners; holes are left out. An outline starts at its topmost, then leftmost pixel
    and goes clockwise; on a part one pixel wide it comes back over the same pixels.

    Args:
        mask: (h, w) bool.

    Returns:
        One array (K, 2) for each part; none of an empty mask.
    """
    parts, count = label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    return [_traced(parts == number + 1) for number in np.argsort(-sizes, kind="stable")]


def _traced(part: Mask) -> Points:
    """Return the border of one part by Moore's tracing; it ends where the first step would be taken again."""
    inside, (row, column) = np.pad(part, 1), np.argwhere(part)[0]
    filled, width = inside.tobytes(), inside.shape[1]
    steps = [dy * width + dx for dx, dy in STEPS]
    start = place = (int(row) + 1) * width + int(column) + 1
    border, back, first = [start], 0, -1
    while True:
        turn = next((way % 8 for way in range(back + 1, back + 9) if filled[place + steps[way % 8]]), -1)
        if turn < 0 or (place == start and turn == first):
            break
        first = turn if first < 0 else first
        place, back = place + steps[turn], CAME_FROM[turn]
        border.append(place)
    rows, columns = np.divmod(np.array(border[:-1] if len(border) > 1 else border), width)
    return np.stack([columns - 1, rows - 1], axis=1).astype(np.float64)


def filled(points: Points, height: int, width: int) -> Mask:
    """Return the pixels (height, width) inside a polygon (K, 2) or on its border, as Pillow draws it."""
    canvas = Image.new("1", (width, height))
    drawn = [(float(x), float(y)) for x, y in points]
    if len(drawn) > 1:
        ImageDraw.Draw(canvas).polygon(drawn, fill=1, outline=1)
    elif drawn:
        ImageDraw.Draw(canvas).point(drawn, fill=1)
    return np.array(canvas, bool)


def area(points: Points) -> float:
    """Return the area of a polygon (K, 2), in squares of the unit of its points (shoelace formula)."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def chord_heights(points: Points, closed: bool = False) -> NDArray[np.float64]:
    """Return how far every point (K, 2) is from the line through its two neighbours, (K,) in the unit of the points.

    Where the neighbours are one point it is the distance to that. The two ends of an open line are infinitely far, so
    that they always stay; a closed one has no ends.
    """
    before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    chord, arm = after - before, before - points
    length = np.sqrt((chord**2).sum(axis=1))
    across = np.abs(chord[:, 0] * arm[:, 1] - chord[:, 1] * arm[:, 0])
    heights = np.where(length > 0, across / np.where(length > 0, length, 1), np.sqrt((arm**2).sum(axis=1)))
    if not closed:
        heights[[0, -1]] = np.inf
    return heights


def uniform(points: Points, n: int) -> Indices:
    """Return min(K, n) indices in equal steps along an outline (K, 2), from its first point on."""
    count = min(len(points), _positive(n))
    return np.arange(count, dtype=np.int64) * len(points) // max(count, 1)


def adaptive(points: Points, n: int, dense: int | None = None, closed: bool = False) -> Indices:
    """Return min(K, n) indices of an outline, rising: of `dense` points in equal steps those of the highest chords.

    Of equal heights the later ones stay. The paper's effect depends on dense: far above n, the scores see noise of
    single pixels alone.

    Args:
        points: (K, 2).
        n: points to keep.
        dense: n or more; by default 1.5 n, rounded up.
        closed: whether the ends of the outline are scored as all others.

    Raises:
        ValueError: n is not positive, or dense smaller.
    """
    dense = math.ceil(DENSE * _positive(n)) if dense is None else dense
    if dense < n:
        raise ValueError(f"dense: {dense} points are fewer than the {n} to keep")
    return _highest(points, uniform(points, dense), n, closed)


def released(points: Points, n: int, dense: int = RELEASED_DENSE) -> Indices:
    """Return at most n indices as the authors' program draws them: steps of ceil(K / dense), then the highest chords.

    A step is whole, so that fewer than n points may be left of an outline that has more. Two things differ from the
    program: fewer than n points all stay, and equal heights are decided by their order.
    """
    stride = math.ceil(len(points) / dense)
    return _highest(points, np.arange(0, len(points), max(stride, 1), dtype=np.int64), _positive(n), closed=False)


def _highest(points: Points, sample: Indices, n: int, closed: bool) -> Indices:
    surplus = max(0, len(sample) - n)
    order = np.argsort(chord_heights(points[sample], closed), kind="stable") if len(sample) else sample
    return np.sort(sample[order[surplus:]])


def least_point(points: Points, n: int, dense: int = LEAST_DENSE, closed: bool = False) -> Indices:
    """Return min(K, n, dense) indices of an outline, rising: the point with the lowest chord goes, one at a time.

    After each one the heights of its neighbours are those of what is left (Visvalingam and Whyatt 1993: areas).

    Args:
        points: (K, 2).
        n: points to keep.
        dense: points in equal steps to begin with.
        closed: as in `adaptive`.
    """
    kept = uniform(points, dense)
    for _ in range(len(kept) - _positive(n)):
        kept = np.delete(kept, np.argmin(chord_heights(points[kept], closed)))
    return kept


def douglas_peucker(points: Points, n: int, closed: bool = True) -> Indices:
    """Return min(K, n) indices of an outline, rising, by Douglas and Peucker 1973, the worst place first.

    It starts with two points far from each other (of an open line its ends) and takes, again and again, the point that
    is farthest from the chord of the piece it lies in, until there are n: no tolerance has to be searched for.

    Args:
        points: (K, 2).
        n: points to keep, at least two.
        closed: whether the last point is followed by the first.

    Raises:
        ValueError: n is below two.
    """
    if n < 2:
        raise ValueError(f"n: {n} points make no chord; give 2 or more")
    size = len(points)
    if size <= 2:
        return np.arange(size, dtype=np.int64)
    one, other = _far_apart(points) if closed else (0, size - 1)
    pieces: list[tuple[float, int, int, int]] = []
    kept = {one, other}
    _push(pieces, points, one, other)
    _push(pieces, points, other, one + size if closed else other)
    while pieces and len(kept) < n:
        _, start, stop, worst = heapq.heappop(pieces)
        kept.add(worst % size)
        _push(pieces, points, start, worst)
        _push(pieces, points, worst, stop)
    return np.array(sorted(kept), np.int64)


def _far_apart(points: Points) -> tuple[int, int]:
    """Return two points that are farthest from each other, seen from the second; the smaller index first."""
    first = int(((points - points[0]) ** 2).sum(axis=1).argmax())
    second = int(((points - points[first]) ** 2).sum(axis=1).argmax())
    return (min(first, second), max(first, second)) if first != second else (0, len(points) - 1)


def _push(pieces: list[tuple[float, int, int, int]], points: Points, start: int, stop: int) -> None:
    """Add the piece between two points, which may go round the end, with its farthest point; nothing where none is."""
    between = np.arange(start + 1, stop)
    if not len(between):
        return
    origin, chord = points[start % len(points)], points[stop % len(points)] - points[start % len(points)]
    arms, length = points[between % len(points)] - origin, float(np.hypot(*chord))
    far = np.abs(chord[0] * arms[:, 1] - chord[1] * arms[:, 0]) / length if length else np.hypot(*arms.T)
    worst = int(far.argmax())
    heapq.heappush(pieces, (-float(far[worst]), start, stop, int(between[worst])))


def padded(points: Points, n: int) -> tuple[Points, int]:
    """Return n points (n, 2), and how many of them are true: the last one is repeated, which adds no area.

    Raises:
        ValueError: there are none, or more than n.
    """
    if not 0 < len(points) <= n:
        raise ValueError(f"points: {len(points)} cannot be padded to {n}")
    return np.concatenate([points, np.repeat(points[-1:], n - len(points), axis=0)]), len(points)


def _positive(n: int) -> int:
    if n < 1:
        raise ValueError(f"n: {n} points cannot be kept; give 1 or more")
    return n


SAMPLERS: dict[str, Callable[[Points, int], Indices]] = {
    "uniform": uniform,
    "adaptive": adaptive,
    "least_point": least_point,
    "douglas_peucker": douglas_peucker,
    "released": released,
}
