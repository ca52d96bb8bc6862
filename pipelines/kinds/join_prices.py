"""What the join of a pool costs, every pair of it or inside cells alone, said before the pool is read."""

from __future__ import annotations

from granary.curation.dedup.reach import USUAL, Reach, cell_count, share_compared
from granary.curation.recipe import Dedup

# Of a core, measured at 2 10^5 rows of 384 numbers; a pair of cells as if these were even, which they are not.
PAIR_SECONDS, CELL_PAIR_SECONDS, PROBE_SECONDS = 3e-9, 25e-9, 7e-9
HOURS_TO_SAY = 10  # core-hours of the exact join from which both prices are named


def prices(rows: int, options: Dedup, pair_seconds: float = PAIR_SECONDS) -> tuple[float, float]:
    """Return the core-hours that joining every pair of a pool takes, and those of joining inside cells.

    Args:
        rows: of the pool.
        options: of the join.
        pair_seconds: of a core for a pair of the exact join, as measured; all other rates are scaled with it.
    """
    count, scale = options.cells or cell_count(rows), pair_seconds / PAIR_SECONDS / 3600
    reach = USUAL if options.probes is None else Reach(min(USUAL.homes, options.probes), options.probes)
    pairs, measured = rows * rows / 2, rows * min(rows, options.measured)
    inside = pairs * share_compared(count, reach) * CELL_PAIR_SECONDS + rows * count * PROBE_SECONDS
    return pairs * PAIR_SECONDS * scale, (inside + measured * PAIR_SECONDS) * scale


def price_note(rows: int, options: Dedup, pair_seconds: float = PAIR_SECONDS) -> str:
    """Say what both joins of a pool cost, before it is read; "" where the exact one is cheap, or there is none."""
    exact, inside = prices(rows, options, pair_seconds)
    if not options.enabled or exact < HOURS_TO_SAY:
        return ""
    other = "" if options.index == "cells" else " (--dedup.index cells, its recall measured)"
    return (
        f"near duplicates of {rows:,} files: about {exact:,.0f} core-hours by the join of every pair, {inside:,.0f} "
        f"inside cells{other}; dedup.index is {options.index}"
    )
