"""Run-length code of masks, as in COCO: runs of 0 and 1 in turn, down the columns, first the zeros.

The compressed text writes each run (from the fourth on, its difference to the run two before) as a signed number in
groups of five bits, least first; bit 32 says that more follow and 48 makes a printable character of each group.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]
MAX_PIXELS = 1 << 31  # of a mask, so that no length overflows


def run_lengths(mask: NDArray[np.bool_]) -> Lengths:
    """Return the run lengths of a (height, width) bool mask: (m,) int64, they sum to height * width."""
    return packed_runs(np.packbits(mask, axis=1), *mask.shape)


def packed_runs(rows: NDArray[np.uint8], height: int, width: int) -> Lengths:
    """Return the run lengths of a mask of eight pixels a byte, which is never unpacked: only where it changes is.

    Args:
        rows: (height, ceil(width / 8)) uint8, the left pixel in the highest bit, zeros behind the last one.
        height, width: of the mask.
    """
    changed = np.empty((height + 1, rows.shape[1]), np.uint8)  # from the pixel above: 0 beyond head and foot
    changed[0], changed[-1] = rows[0], rows[-1]
    np.bitwise_xor(rows[1:], rows[:-1], out=changed[1:-1])
    filled = np.flatnonzero(changed != 0)
    bits = np.flatnonzero(np.unpackbits(changed.ravel()[filled]).view(np.bool_))
    row, byte = np.divmod(filled[bits >> 3], rows.shape[1])
    return between((8 * byte + (bits & 7)) * height + row, height * width)


def between(changes: NDArray[np.int64], size: int) -> Lengths:
    """Return the lengths of the runs between changes of a mask, in any order; two in one place undo each other.

    Args:
        changes: (m,) int64 in [0, size]; at each, counted down the columns, 0 becomes 1 or 1 becomes 0.
        size: pixels of the mask.
    """
    places, counts = np.unique(changes, return_counts=True)
    lengths = np.diff(places[counts % 2 == 1], prepend=0, append=size)
    return lengths if lengths[-1] or len(lengths) == 1 else lengths[:-1]


def mask_of(lengths: Lengths, height: int, width: int) -> NDArray[np.bool_]:
    """Return the (height, width) bool mask of its run lengths."""
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(width, height).T


def compress(lengths: Lengths) -> str:
    """Write run lengths as COCO's text.

        >>> mask = np.array([[False, True], [True, True]])
        >>> compress(run_lengths(mask)), decompress("13").tolist()
        ('13', [1, 3])

    Args:
        lengths: (m,) int64, pixels of runs in columns, the first one of zeros.
    """
    left = lengths.copy()
    left[3:] -= lengths[1:-2]
    bits = int(np.abs(left).max()).bit_length() + 1
    shift = np.arange(0, bits, 5)
    places = left[:, None] >> shift  # (m, groups): what is left of each number, group by group
    rest = places >> 4  # 0 or -1 where one group holds it, sign and all
    more = (rest != 0) & (rest != -1)
    groups = (places & 0x1F) + np.where(more, 0x20 + 48, 48)
    kept = np.ones_like(more)
    kept[:, 1:] = more[:, :-1]
    return groups[kept].astype(np.uint8).tobytes().decode("ascii")


def decompress(text: str) -> Lengths:
    """Read COCO's text; raises ValueError when it is not one."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        raise ValueError("the run-length code is broken")
    last = np.flatnonzero(codes & 0x20 == 0)
    first = np.append(0, last[:-1] + 1)
    sizes = last - first + 1
    if sizes.max() > 8:
        raise ValueError("the run-length code has a number that is too large")
    shift = 5 * (np.arange(len(codes)) - np.repeat(first, sizes))
    numbers = np.add.reduceat((codes & 0x1F) << shift, first)
    numbers -= np.where(codes[last] & 0x10, 1 << (5 * sizes), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def read(segmentation: Mapping[str, object]) -> tuple[Lengths, int, int]:
    """Read {"size": [height, width], "counts": text or list of numbers}.

    Returns:
        Run lengths, height, width.

    Raises:
        ValueError: it is no run-length code, or its runs do not fill the mask.
    """
    try:
        size, counts = segmentation["size"], segmentation["counts"]
        if not isinstance(size, list | tuple):
            raise TypeError(f"size is a {type(size).__name__}")
        height, width = (int(side) for side in size)
        lengths = decompress(counts) if isinstance(counts, str) else np.asarray(counts, np.int64).reshape(-1)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the run-length code has no right size or counts: {error}") from error
    if not (height > 0 < width and height * width < MAX_PIXELS and lengths.size):
        raise ValueError(f"the run-length code is of a mask of {width} x {height}")
    if lengths.min() < 0 or lengths.max() > height * width:
        raise ValueError("the run-length code has a number that is no length")
    if int(lengths.sum()) != height * width:
        raise ValueError(f"the runs fill {int(lengths.sum())} pixels of a mask of {width} x {height}")
    return lengths, height, width


def area(lengths: Lengths) -> int:
    """Return the number of pixels set."""
    return int(lengths[1::2].sum())


def bounds(lengths: Lengths, height: int) -> tuple[int, int, int, int] | None:
    """Return x0, y0, x1, y1 of the pixels set, x1 and y1 exclusive; None when there is none."""
    ends = np.cumsum(lengths)
    starts, stops = (ends - lengths)[1::2], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not len(starts):
        return None
    lasts = stops - 1
    across = starts // height != lasts // height  # a run that crosses into the next column touches foot and head
    y0 = 0 if across.any() else int((starts % height).min())
    y1 = height if across.any() else int((lasts % height).max()) + 1
    return int(starts.min()) // height, y0, int(lasts.max()) // height + 1, y1
