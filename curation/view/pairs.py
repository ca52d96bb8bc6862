"""The near duplicates of a run by their similarity: what any threshold would remove, and the pairs on both sides of it.

A run keeps the maximum spanning forest of all pairs above its own threshold. At any higher one a picture is removed for
each edge above it; below, the run knows nothing, and the pairs are looked for here, where the pool is small enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from granary.curation.dedup.components import merge_forests
from granary.curation.recipe import CurateRecipe
from granary.curation.runs.decisions import CUT
from granary.curation.steps.dedup import originals, read_forest
from granary.curation.steps.doubtful import DEPTH, forest_below
from granary.curation.view.catalogue import Catalogue

MOST_COMPARED = 20_000  # pictures: some seconds on two cores


@dataclass(frozen=True)
class Pairs:
    """Edges of a forest between rows of a page, the most similar first.

    Args:
        i, j: (m,) uint32, rows.
        similarity: (m,) float32.
        threshold: of the run: a picture was removed for each edge above it.
        lowest: the threshold above which all pairs are known.
        note: what a reader should know; "" where there is nothing.
    """

    i: NDArray[np.uint32]
    j: NDArray[np.uint32]
    similarity: NDArray[np.float32]
    threshold: float
    lowest: float
    note: str


def pairs_of(catalogue: Catalogue, recipe: CurateRecipe) -> Pairs:
    """Return the near duplicates of a run, those below its threshold too where they can be found in seconds."""
    run, threshold = catalogue.run, float(catalogue.facts["thresholds"]["dedup"])
    forest, lowest, note = read_forest(run.read(CUT if run.parts(CUT) else "forest", 0)), threshold, ""
    alive = originals(run)
    if not recipe.dedup.enabled:
        note = "The run removed no near duplicates (dedup.enabled is false), so it knows no pairs."
    elif len(alive) > MOST_COMPARED:
        note = f"Pairs below {threshold} are not known: the pool has more than {MOST_COMPARED:,} pictures to compare."
    else:
        lowest = max(0.0, round(threshold - DEPTH, 4))
        forest = merge_forests([forest, forest_below(run, alive, threshold, lowest)])
    if recipe.dedup.split_below is not None:
        note = f"{note} The counts are upper bounds: components are split (dedup.split_below).".strip()
    rows = _rows(catalogue)
    shown = (rows[forest.i] >= 0) & (rows[forest.j] >= 0) if len(forest) else np.zeros(0, bool)
    i, j = (rows[side][shown].astype(np.uint32) for side in (forest.i, forest.j))
    return Pairs(i, j, forest.similarity[shown], threshold, lowest, note)


def _rows(catalogue: Catalogue) -> NDArray[np.int64]:
    """Return the row of the page of each row of the pool; -1 for what the page does not show."""
    placed = catalogue.placed["pool"]
    rows = np.full(sum(catalogue.run.rows("pool")), -1, np.int64)
    shown = np.flatnonzero(placed >= 0)
    rows[placed[shown]] = shown
    return rows
