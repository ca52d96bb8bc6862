"""How many cells a pool is cut into, how far its rows are joined in them, and what share of all pairs that compares.

Apart from the join itself, so that what it costs is said without loading what it needs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

ROWS_PER_CELL = 16  # of the training sample, at least
MOST_CELLS = 16_384  # so that the sample that trains them stays below 262,144 rows


class Reach(NamedTuple):
    """How far rows are joined: members of their `homes` nearest cells, visitors up to the `probes` nearest."""

    homes: int
    probes: int

    @property
    def products(self) -> float:
        """Inner products of a row, in cells of average size."""
        return self.homes * self.probes - self.homes**2 / 2


USUAL = Reach(3, 10)


def cell_count(rows: int) -> int:
    """Return how many cells balance finding the nearest of them with joining inside them, for a pool of `rows`.

    Finding costs rows x k, joining rows^2 / k; the factor was measured at 2 10^5 rows of 384 dimensions.
    """
    return max(1, min(MOST_CELLS, rows // ROWS_PER_CELL, 1 << round(math.log2(max(1.0, 4 * math.sqrt(rows))))))


def share_compared(cells: int, reach: Reach) -> float:
    """Return the share of all pairs that are compared, in cells of average size."""
    return min(1.0, 2 * reach.products / cells)
