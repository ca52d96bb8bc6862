"""Run-length code of masks, as in COCO: runs of 0 and 1 in turn, down the columns, first the zeros.

The compressed text writes each run (from the fourth on, its difference to the run two before) as a signed number in
groups of five bits, least first; bit 32 says that more follow and 48 makes a printable character of each group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]
MAX_PIXELS = 1 << 31  # of a mask, so that no length overflows


def run_lengths(mask: NDArray[np.bool_], height: int = 0, width: int = 0, left: int = 0, top: int = 0) -> Lengths:
    """Return the lengths of the runs of a mask.

    Args:
        mask: (h, w) bool, the whole mask, or the part of it that may be set.
        height, width: of the whole mask; by default those of `mask`.
        left, top: where the part lies in the whole.

    Returns:
        (m,) int64, runs of 0 and 1 in turn; they sum to height * width.
    """
    height, width = height or mask.shape[0], width or mask.shape[1]
    padded = np.zeros((mask.shape[1], mask.shape[0] + 2), bool)  # one column of the mask in each row
    padded[:, 1:-1] = mask.T
    column, row = np.divmod(np.flatnonzero(padded[:, 1:] != padded[:, :-1]), mask.shape[0] + 1)
    edges = (column + left) * height + row + top  # every column begins and ends with 0: start, stop, start, stop ...
    starts, stops = edges[0::2], edges[1::2]
    apart = starts[1:] != stops[:-1]  # a run that reaches the foot of a column may go on at the head of the next
    bounds = np.stack([starts[np.append(True, apart)[: len(starts)]], stops[np.append(apart, True)[: len(stops)]]], 1)
    lengths = np.diff(np.concatenate([[0], bounds.ravel(), [height * width]]))
    return lengths if lengths[-1] or len(lengths) == 1 else lengths[:-1]


def mask_of(lengths: Lengths, height: int, width: int) -> NDArray[np.bool_]:
    """Return the (height, width) bool mask of its run lengths."""
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(width, height).T


def compress(lengths: Lengths) -> str:
    """Write run lengths as COCO's text."""
    left = lengths.copy()
    left[3:] -= lengths[1:-2]
    groups, more, written = [], np.ones(len(left), bool), []
    while more.any():
        group = left & 0x1F
        left >>= 5
        ends = np.where(group & 0x10, left == -1, left == 0)
        groups.append(np.where(ends, group, group | 0x20) + 48)
        written.append(more)
        more = more & ~ends
    text = np.stack(groups, 1)[np.stack(written, 1)]
    return text.astype(np.uint8).tobytes().decode("ascii")


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


def read(segmentation: dict[str, Any]) -> tuple[Lengths, int, int]:
    """Read {"size": [height, width], "counts": text or list of numbers}.

    Returns:
        Run lengths, height, width.

    Raises:
        ValueError: it is no run-length code, or its runs do not fill the mask.
    """
    try:
        height, width = (int(side) for side in segmentation["size"])
        counts = segmentation["counts"]
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
