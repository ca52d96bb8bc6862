"""Thin the semantic duplicates of cells, and draw a sample that is balanced over a tree of cells."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from granary.curation.dedup.semdedup import Keep, semdedup
from granary.curation.runs.run import Output, Run
from granary.curation.selection import hierarchy
from granary.curation.steps.clusters import read_centroids
from granary.curation.steps.dedup import Bucket
from granary.curation.steps.retrieve import load_features
from granary.curation.store.sampling import StratifiedSample


@dataclasses.dataclass(frozen=True)
class ThinCells(Bucket):
    """The job of `drop_semantic_duplicates`: a bucket of cells.

    Args:
        epsilon: an image goes when it is more similar than 1 - epsilon to an earlier one of its cell.
        keep: which end of a cell comes first and stays.
        seed: of the run, for the random order.
    """

    epsilon: float
    keep: Keep
    seed: int


def drop_semantic_duplicates(run: Run, job: ThinCells, output: Output) -> None:
    """Run SemDeDup on the cells of one bucket; writes the images it drops and how similar they were."""
    centroids = read_centroids(run, "semdedup-kmeans")
    cells = run.read_all("semdedup-cells")
    mine = cells["cell"].to_numpy() % job.buckets == job.bucket
    cells = cells.filter(pa.array(mine)).sort_by([("cell", "ascending"), ("index", "ascending")])
    vectors = _vectors(run, cells["index"].to_numpy())
    ids, cell = cells["id"].to_numpy(zero_copy_only=False).astype(str), cells["cell"].to_numpy()
    dropped, highest = np.zeros(len(cell), bool), np.zeros(len(cell), np.float32)
    for number in np.unique(cell):
        inside = np.flatnonzero(cell == number)
        kept, score = semdedup(vectors[inside], ids[inside], centroids[number], job.epsilon, job.keep, job.seed)
        dropped[inside], highest[inside] = ~kept, score
    output.counters["dropped"] = int(dropped.sum())
    rows = pa.table({"index": cells["index"].to_numpy(), "similarity": highest, "cluster": cell.astype(np.int32)})
    output.write(rows.filter(pa.array(dropped)).sort_by("index"))


def _vectors(run: Run, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return (n, d) unit vectors of images by global index (n,), distinct, in the order given."""
    alive = np.sort(indices)
    parts = [load_features(run, (part, part + 1), alive) for part in range(len(run.parts("features")))]
    place = np.searchsorted(np.concatenate([index for index, _, _ in parts]), indices)
    return np.concatenate([vectors for _, _, vectors in parts])[place]


@dataclasses.dataclass(frozen=True)
class DrawBalanced:
    """The job of `draw_balanced`.

    Args:
        target: images to draw.
        levels: cells of each level, the finest first.
        resamples: resampling rounds of the levels above the first.
        leaves: how a leaf gives its share.
        seed: of the run.
    """

    target: int
    levels: tuple[int, ...]
    resamples: int
    leaves: Literal["random", "nearest"]
    seed: int


def draw_balanced(run: Run, job: DrawBalanced, output: Output) -> None:
    """Draw a target number of images, balanced over hierarchical k-means."""
    centroids = read_centroids(run, "balance-kmeans")
    cells = run.read_all("balance-cells")
    leaf_sizes = np.bincount(cells["cell"].to_numpy(), minlength=len(centroids))
    tree = hierarchy.fit_hierarchy(centroids, job.levels[1:], job.resamples, job.seed)
    budgets = hierarchy.allocate(tree, leaf_sizes, job.target, job.seed)
    keys = -cells["similarity"].to_numpy() if job.leaves == "nearest" else None
    drawn = StratifiedSample(budgets, job.seed, "balanced leaves").add(
        cells["cell"].to_numpy(),
        cells["id"].to_numpy(zero_copy_only=False).astype(str),
        cells["index"].to_numpy(),
        keys,
    )
    order = np.argsort(drawn.indices)
    output.counters["drawn"] = len(order)
    output.write(pa.table({"index": drawn.indices[order], "cluster": drawn.cells[order].astype(np.int32)}))
