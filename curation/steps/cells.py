"""The join inside cells: a sample that trains them and measures them, rows carried to their cells, the cells joined.

The sample is drawn by hash and joined exactly with the whole pool. Half of its links choose how far rows are joined,
the other half says what share of the links that finds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from granary.curation.dedup import components
from granary.curation.dedup.reach import USUAL, Reach
from granary.curation.runs.run import NoJob, Output, Run
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import Block, Layout, from_column
from granary.curation.steps.dedup import View, originals, prepare, read_basis, read_forest, write_forest
from granary.curation.store.sampling import priority, rank_in_group
from granary.curation.store.threads import limit_blas

if TYPE_CHECKING:  # what joins is loaded where there is something to join
    from granary.curation.dedup.cells import Cells

LINKS_PER_ROW = 16  # of a row of the sample, chosen by hash: a clique of copies must not be all that is measured
TRAINING, MEASURING = "training of cells", "measuring of cells"


@dataclasses.dataclass(frozen=True)
class DrawRows:
    """The job of `draw_rows`.

    Args:
        block: of the pool.
        training: share of the rows that cells are trained on.
        measuring: share of the rows that are joined with the whole pool.
        seed: of the run.
    """

    block: Block
    training: float
    measuring: float
    seed: int


def draw_rows(run: Run, job: DrawRows, output: Output) -> None:
    """Draw rows of a block by hash: those that cells are trained on, and those that are joined with the whole pool."""
    layout, alive = Layout.of(run, "pool"), originals(run, job.block)
    names = pa.concat_tables([table for _, table in layout.read(*job.block, ["id"])])["id"]
    ids = names.take(pa.array(alive - int(layout.starts[job.block[0]]))).to_numpy(zero_copy_only=False)
    training, measuring = (
        priority(job.seed, ids, purpose) / 2.0**64 < share
        for purpose, share in ((TRAINING, job.training), (MEASURING, job.measuring))
    )
    drawn = training | measuring
    table = pa.table({"index": alive[drawn], "training": training[drawn], "measuring": measuring[drawn]})
    output.write(table.append_column("embedding", _as_stored(layout, job.block, alive[drawn], "embedding")))


def _as_stored(layout: Layout, block: Block, index: NDArray[np.int64], view: View) -> pa.Array:
    """Return the embeddings of images of a block, ascending, bit for bit: scaled anew they would round otherwise."""
    chunks = []
    for start, table in layout.read(*block, [view]):
        low, high = np.searchsorted(index, [start, start + table.num_rows])
        chunks.append(table[view].combine_chunks().take(pa.array(index[low:high] - start)))
    return pa.concat_arrays(chunks)


@dataclasses.dataclass(frozen=True)
class TrainCells:
    """The job of `train`.

    Args:
        cells: of k-means.
        seed: of the run.
    """

    cells: int
    seed: int


def train(run: Run, job: TrainCells, output: Output) -> None:
    """Train the cells on the rows drawn for it; writes their centroids and the directions they are told apart by."""
    from granary.curation.dedup import cells

    rows = run.read_all("dedup-drawn", ["training", "embedding"])
    sample = from_column(rows.filter(rows["training"])["embedding"])
    with limit_blas(1):  # as for the basis of the join
        trained = cells.train_cells(sample, job.cells, job.seed)
    output.counters["cells"] = len(trained)
    both = [*trained.centroids, *trained.directions.T]
    kinds = ["centroid"] * len(trained) + ["direction"] * trained.directions.shape[1]
    output.write(pa.table({"kind": kinds, "values": pa.array([list(row) for row in both], pa.list_(pa.float32()))}))


def read_cells(run: Run) -> Cells:
    """Return the trained cells."""
    from granary.curation.dedup.cells import Cells

    table = run.read("dedup-cells", 0)
    kinds, values = table["kind"].to_numpy(zero_copy_only=False), table["values"].to_numpy()
    centroids, directions = (np.stack(values[kinds == kind]) for kind in ("centroid", "direction"))
    return Cells(np.ascontiguousarray(directions.T), centroids)


def write_measured(run: Run, job: NoJob, output: Output) -> None:
    """Gather the rows that are joined with the whole pool."""
    rows = run.read_all("dedup-drawn")
    output.write(rows.filter(rows["measuring"]).select(["index", "embedding"]))


@dataclasses.dataclass(frozen=True)
class LinkSample:
    """The job of `link_sample`.

    Args:
        block: of the pool.
        threshold: cosine above which two pictures are linked.
        device: "auto" or a torch device.
        seed: of the run.
    """

    block: Block
    threshold: float
    device: str
    seed: int


def link_sample(run: Run, job: LinkSample, output: Output) -> None:
    """Join the rows that are measured exactly with one block of the pool, and keep some links of each."""
    from granary.curation.dedup.join import join_blocks

    layout, directions = Layout.of(run, "pool"), read_basis(run, "basis")
    sample = run.read("dedup-measured", 0)
    names, left = sample["index"].to_numpy(), prepare(from_column(sample["embedding"]), directions, job.device)
    index = originals(run, job.block)
    stored = _as_stored(layout, job.block, index, "embedding")
    right = prepare(from_column(stored), directions, job.device)
    links = pa.table({"row": names[:0], "index": index[:0]})
    for i, j, _ in join_blocks(left, right, job.threshold):
        apart = names[i] != index[j]
        found = pa.table({"row": names[i][apart], "index": index[j][apart]})
        links = few_of_each(pa.concat_tables([links, found]), job.seed)
    place = np.searchsorted(index, links["index"].to_numpy())
    output.write(links.append_column("embedding", stored.take(pa.array(place))))


def few_of_each(links: pa.Table, seed: int) -> pa.Table:
    """Keep of the links of every `row` those of LINKS_PER_ROW images `index` that come first by hash."""
    row, index = links["row"].to_numpy(), links["index"].to_numpy()
    order = np.lexsort((index, priority(seed, index, MEASURING), row))
    return links.take(pa.array(order[rank_in_group(row[order]) < LINKS_PER_ROW]))


@dataclasses.dataclass(frozen=True)
class ChooseReach:
    """The job of `choose_reach`.

    Args:
        probes: cells that each row is joined in; None: the fewest that see enough links.
        recall: share of the links that are to be seen.
        seed: of the run.
    """

    probes: int | None
    recall: float
    seed: int


def choose_reach(run: Run, job: ChooseReach, output: Output) -> None:
    """Choose by half of the links how far rows are joined; writes the other half, and which of them that sees."""
    from granary.curation.dedup import cells

    trained, links = read_cells(run), few_of_each(run.read_all("dedup-links"), job.seed)
    sample = run.read("dedup-measured", 0)
    row = links["row"].to_numpy()
    vectors = from_column(sample["embedding"])[np.searchsorted(sample["index"].to_numpy(), row)]
    most = job.probes or cells.MOST_PROBES
    left = cells.nearest_cells(vectors, trained, most)
    right = cells.nearest_cells(from_column(links["embedding"]), trained, most)
    choosing = priority(job.seed, row, "half of the links") % 2 == 0
    reach = Reach(min(USUAL.homes, left.shape[1]), left.shape[1])
    if job.probes is None:
        reach = cells.choose_reach(left[choosing], right[choosing], job.recall)
    seen = cells.are_seen(left[~choosing], right[~choosing], reach)
    output.counters |= {"homes": reach.homes, "probes": reach.probes}
    table = links.select(["row", "index"]).filter(pa.array(~choosing))
    output.write(table.append_column("seen", pa.array(seen)))


@dataclasses.dataclass(frozen=True)
class CarryRows:
    """The job of `carry_rows`.

    Args:
        block: of the pool.
        homes: of the reach of the join.
        probes: of the reach of the join.
        buckets: of cells.
        view: of the pictures; mirror images are visitors alone.
    """

    block: Block
    homes: int
    probes: int
    buckets: int
    view: View = "embedding"


def carry_rows(run: Run, job: CarryRows, output: Output) -> None:
    """Write the rows of a block by bucket of cells, a row group each; of each row the cells in that bucket, else -1."""
    from granary.curation.dedup import cells

    trained = read_cells(run)
    index = originals(run, job.block)
    stored = _as_stored(Layout.of(run, "pool"), job.block, index, job.view)
    near = cells.nearest_cells(from_column(stored), trained, job.probes)
    blank = np.full((len(near), job.homes), -1, np.int32)
    near = np.hstack([near, blank] if job.view == "embedding" else [blank, near])
    bucket = np.where(near < 0, -1, near.astype(np.int64) * job.buckets // len(trained))
    for number in range(job.buckets):
        inside = bucket == number
        rows = np.flatnonzero(inside.any(axis=1))
        there = np.where(inside[rows], near[rows], -1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(there.reshape(-1), pa.int32()), near.shape[1])
        table = pa.table({"index": index[rows], "cells": column, "embedding": stored.take(pa.array(rows))})
        output.write(table, compression="none")


@dataclasses.dataclass(frozen=True)
class JoinBucket:
    """The job of `join_bucket`.

    Args:
        bucket: of cells.
        homes: of the reach of the join.
        probes: of the reach of the join.
        threshold: cosine above which two pictures are linked.
        device: "auto" or a torch device.
    """

    bucket: int
    homes: int
    probes: int
    threshold: float
    device: str


def join_bucket(run: Run, job: JoinBucket, output: Output) -> None:
    """Join the rows inside the cells of a bucket and contract the edges to their spanning forest."""
    from granary.curation.dedup import cells

    rows = pa.concat_tables(_groups(run, job.bucket))
    index = rows["index"].to_numpy()
    near = rows["cells"].combine_chunks().flatten().to_numpy().reshape(len(index), job.homes + job.probes)
    vectors = from_column(rows["embedding"])
    del rows
    block = prepare(vectors, read_basis(run, "basis"), job.device)
    forest = components.ForestBuilder()
    reach = Reach(job.homes, near.shape[1])
    for i, j, similarity in cells.join_cells(block, near, reach, job.threshold):
        apart = index[i] != index[j]  # a picture may resemble its own mirror image
        forest.add(index[i][apart], index[j][apart], similarity[apart])
    write_forest(forest.forest(), output)


def _groups(run: Run, bucket: int) -> Iterator[pa.Table]:
    for url in run.parts("dedup-rows"):
        yield read_table(url, group=bucket)


def measure(run: Run, job: NoJob, output: Output) -> None:
    """Say of the links that were kept for it which the join saw, and which ends came into one component."""
    links = run.read("dedup-reach", 0)
    vertices, labels = components.connected_components(read_forest(run.read("forest", 0)))
    ends = [_labels(vertices, labels, links[name].to_numpy()) for name in ("row", "index")]
    joined = (ends[0] == ends[1]) & (ends[0] >= 0)
    output.counters |= {
        "rows": len(np.unique(links["row"].to_numpy())),
        "links": links.num_rows,
        "seen": int(np.count_nonzero(links["seen"].to_numpy(zero_copy_only=False))),
        "joined": int(joined.sum()),
    }
    output.write(links.append_column("joined", pa.array(joined)))


def _labels(vertices: NDArray[np.int64], labels: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the component of each image, -1 where it has no edge."""
    if not len(vertices):
        return np.full(len(index), -1)
    place = np.minimum(np.searchsorted(vertices, index), len(vertices) - 1)
    return np.where(vertices[place] == index, labels[place], -1)
