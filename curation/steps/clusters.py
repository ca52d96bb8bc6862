"""k-means over the images that survived deduplication, and retrieval by the cells that hold enough seeds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from granary.curation.runs.run import Output, Run
from granary.curation.runs.vectors import Block
from granary.curation.selection import clusters, retrieval, search
from granary.curation.steps.retrieve import (
    RETRIEVED,
    candidates,
    embedded,
    load_features,
    seeds_of_set,
    training_sample,
)

CELLS = pa.schema([("index", pa.int64()), ("id", pa.string()), ("cell", pa.int32()), ("similarity", pa.float32())])


@dataclasses.dataclass(frozen=True)
class TrainCells:
    """The job of `train`.

    Args:
        clusters: cells of k-means.
        iterations: on the training sample.
        sample: most images k-means trains on, chosen by hash.
        seed: of the run.
        before_semdedup: cluster everything that was embedded, not what SemDeDup left.
    """

    clusters: int
    iterations: int
    sample: int
    seed: int
    before_semdedup: bool = False


def train(run: Run, job: TrainCells, output: Output) -> None:
    """Train k-means on a bounded sample of the candidates, chosen by hash."""
    sample = training_sample(run, _alive(run, job.before_semdedup), job.sample, job.seed)
    centroids = sample[:0]
    if len(sample):
        centroids = clusters.train_kmeans(sample, job.clusters, job.seed, job.iterations, gpu=search.has_gpu())
    write_centroids(centroids, output)


def _alive(run: Run, before_semdedup: bool, *among: Block) -> NDArray[np.int64]:
    """Return the candidates, or before SemDeDup everything that was embedded, among blocks or in all of it."""
    return embedded(run, *among) if before_semdedup else candidates(run, *among)


def write_centroids(centroids: NDArray[np.float32], output: Output) -> None:
    """Write (k, d) centroids, a row each."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(centroids.reshape(-1), pa.float32()), centroids.shape[1])
    output.write(pa.table({"centroid": column}))


def read_centroids(run: Run, stage: str) -> NDArray[np.float32]:
    """Return (k, d) float32 centroids."""
    column = run.read(stage, 0)["centroid"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


@dataclasses.dataclass(frozen=True)
class AssignBlock:
    """The job of `assign` and `lloyd`.

    Args:
        block: of the retrieval embeddings.
        centroids: stage that wrote them.
        before_semdedup: as in `TrainCells`.
    """

    block: Block
    centroids: str
    before_semdedup: bool = False


def assign(run: Run, job: AssignBlock, output: Output) -> None:
    """Assign the candidates of one block to their nearest centroid."""
    index, ids, vectors = load_features(run, job.block, _alive(run, job.before_semdedup, job.block))
    cells, similarity = clusters.assign(vectors, read_centroids(run, job.centroids), gpu=search.has_gpu())
    output.write(pa.table({"index": index, "id": ids.tolist(), "cell": cells, "similarity": similarity}, CELLS))


def lloyd(run: Run, job: AssignBlock, output: Output) -> None:
    """Sum the candidates of one block by nearest centroid: a part of one Lloyd iteration."""
    _, _, vectors = load_features(run, job.block, _alive(run, job.before_semdedup, job.block))
    centroids = read_centroids(run, job.centroids)
    sums = clusters.LloydSums(*centroids.shape).add(vectors, *clusters.assign(vectors, centroids))
    output.write(
        pa.table(
            {
                "sums": list(sums.sums),
                "count": sums.counts,
                "farthest": list(sums.farthest),
                "lowest": sums.lowest,
            }
        )
    )


def read_lloyd(table: pa.Table) -> clusters.LloydSums:
    """Return the sums a part file holds."""
    sums = clusters.LloydSums(table.num_rows, len(table["sums"][0]))
    sums.sums, sums.farthest = np.stack(table["sums"].to_numpy()), np.stack(table["farthest"].to_numpy())
    sums.counts, sums.lowest = table["count"].to_numpy().copy(), table["lowest"].to_numpy().copy()
    return sums


@dataclasses.dataclass(frozen=True)
class FinishLloyd:
    """The job of `finish_lloyd`.

    Args:
        centroids: stage that wrote those the vectors were assigned to.
    """

    centroids: str


def finish_lloyd(run: Run, job: FinishLloyd, output: Output, sums: clusters.LloydSums) -> None:
    """Turn the merged sums into the next centroids."""
    write_centroids(sums.finish(read_centroids(run, job.centroids)), output)


@dataclasses.dataclass(frozen=True)
class RetrieveCells:
    """The job of `retrieve_by_cluster`.

    Args:
        set: number of the seed set.
        centroids: stage that wrote them.
        min_seeds: a cell needs more seeds than this.
        per_cell: most images drawn from a cell.
        cap: most images the set may retrieve.
        seed: of the run.
    """

    set: int
    centroids: str
    min_seeds: int
    per_cell: int
    cap: int
    seed: int


def retrieve_by_cluster(run: Run, job: RetrieveCells, output: Output) -> None:
    """Draw from the cells that hold enough seeds of one set."""
    centroids = read_centroids(run, job.centroids)
    _, _, queries = seeds_of_set(run, job.set)
    seed_cells = clusters.assign(queries, centroids)[0] if len(centroids) else np.zeros(0, np.int64)
    draw = retrieval.ClusterDraw(seed_cells, len(centroids), job.min_seeds, job.per_cell, job.seed + job.set)
    for part in range(len(run.parts("pool-cells"))):
        rows = run.read("pool-cells", part, ["index", "id", "cell"])
        ids = rows["id"].to_numpy(zero_copy_only=False).astype(str)
        draw.add(rows["cell"].to_numpy(), ids, rows["index"].to_numpy())
    drawn = draw.finish(job.cap)
    output.counters |= {"retrievals": drawn.retrievals, "distinct": len(drawn.images), "seeds": len(queries)}
    output.write(_retrieved(job.set, drawn))


def _retrieved(number: int, drawn: retrieval.ClusterRetrieved) -> pa.Table:
    """Return what a seed set drew as RETRIEVED: no seed has it alone."""
    empty = pa.array([[]] * len(drawn.images), pa.list_(pa.string()))
    columns = {
        "index": drawn.images,
        "set": np.full(len(drawn.images), number, np.int16),
        "seed_ids": empty,
        "similarities": empty.cast(pa.list_(pa.float32())),
        "cluster": drawn.cells.astype(np.int32),
        "seeds_in_cell": drawn.seeds_in_cell,
    }
    return pa.table(columns, RETRIEVED)
