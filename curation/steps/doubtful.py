"""The pairs near a run's threshold: those it linked just above, and those it left apart just below.

A run keeps the maximum spanning forest of all pairs above its threshold. Those below are looked for here, where the
pool is small enough.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from granary.curation.dedup.components import Forest, merge_forests
from granary.curation.recipe import Dedup
from granary.curation.runs.decisions import CUT
from granary.curation.runs.run import Run
from granary.curation.runs.vectors import Layout, load
from granary.curation.steps.dedup import originals, read_forest

DEPTH = 0.1  # below the run's threshold
MOST_COMPARED = 10_000  # pictures: about a second
SHOWN = 9  # pairs on each side
POINTS = 12  # of the curve below the threshold


class Pair(NamedTuple):
    """Two files, by uri, and their cosine."""

    uri: str
    other: str
    similarity: float


class Doubtful(NamedTuple):
    """The pairs on both sides of a threshold.

    Args:
        above: linked, the least similar first.
        below: not linked, the most similar first.
        removed: (threshold, pictures that it would remove) below the run's own, ascending.
        note: why nothing is known below; "" where it is.
    """

    above: list[Pair]
    below: list[Pair]
    removed: list[tuple[float, int]]
    note: str = ""


def doubtful(run: Run, options: Dedup, threshold: float) -> Doubtful | None:
    """Return the pairs nearest to a run's threshold; None where it removes no near duplicates.

    Args:
        run: whose near duplicates are decided.
        options: of its recipe.
        threshold: cosine above which it linked pictures.
    """
    if not options.enabled:
        return None
    forest, alive = read_forest(run.read(CUT if run.parts(CUT) else "forest", 0)), originals(run)
    above = _pairs(run, forest, np.argsort(forest.similarity, kind="stable")[:SHOWN])
    if len(alive) > MOST_COMPARED:
        return Doubtful(
            above, [], [], f"not looked for, as the pool has more than {MOST_COMPARED:,} pictures to compare"
        )
    lowest = max(0.0, round(threshold - DEPTH, 4))
    apart = forest_below(run, alive, threshold, lowest)
    below = _pairs(run, apart, np.argsort(-apart.similarity, kind="stable")[:SHOWN])
    similarity = np.sort(merge_forests([forest, apart]).similarity)
    points = np.round(np.linspace(lowest, threshold, POINTS, endpoint=False), 4)
    left = [len(similarity) - int(np.searchsorted(similarity, np.float32(point), "right")) for point in points]
    return Doubtful(above, below, list(zip(points.tolist(), left, strict=True)))


def forest_below(run: Run, alive: NDArray[np.int64], threshold: float, lowest: float) -> Forest:
    """Return the spanning forest of the pairs between a lower threshold and the run's own.

    Args:
        run: whose pool is embedded.
        alive: (n,) global indices of the pictures to compare.
        threshold: of the run.
        lowest: the lower one.
    """
    from granary.curation.dedup.join import threshold_join

    layout = Layout.of(run, "pool")
    index, vectors = load(layout, (0, len(layout.parts)), alive)
    pairs, similarity = threshold_join(vectors, lowest)
    below = similarity <= np.float32(threshold)
    i, j = index[pairs[below]].T
    return merge_forests([Forest(i, j, similarity[below])])


def _pairs(run: Run, forest: Forest, places: NDArray[np.int64]) -> list[Pair]:
    ends = np.concatenate([forest.i[places], forest.j[places]])
    uris = Layout.of(run, "pool").take(ends, ["uri"])["uri"].to_pylist() if len(ends) else []
    similarities = [round(float(value), 4) for value in forest.similarity[places]]
    return [Pair(*pair) for pair in zip(uris[: len(places)], uris[len(places) :], similarities, strict=True)]
