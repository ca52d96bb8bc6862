"""Exact copies, then near duplicates: join, forest, components, representatives."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from granary.curation.dedup import components
from granary.curation.runs.run import NoJob, Output, Run, undigested
from granary.curation.runs.vectors import Block, Layout, from_column, load
from granary.curation.steps.decisions import decided, preferred
from granary.curation.store.sampling import priority
from granary.curation.store.threads import limit_blas

if TYPE_CHECKING:  # a step that has nothing left to do needs no torch
    from granary.curation.dedup import blocks

EDGES = pa.schema([("i", pa.int64()), ("j", pa.int64()), ("similarity", pa.float32())])
BASIS_ROWS = 16_384
BASIS_PARTS = 64

View = Literal["embedding", "mirror"]  # of a picture: as it is, or its mirror image


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One of the equal shares that a stage cuts its work into.

    Args:
        bucket: number of the share.
        buckets: how many there are.
    """

    bucket: int
    buckets: int


def exact_copies(run: Run, job: Bucket, output: Output) -> None:
    """Find rows with equal content in one bucket of ids: all but the one with the smallest uri are copies."""
    layout, tables = Layout.of(run, "pool"), []
    for start, table in layout.read(0, len(layout.parts), ["id", "uri", "status"]):
        table = table.append_column("index", pa.array(np.arange(start, start + table.num_rows)))
        mine = pc.equal(table["status"], "ok")
        if job.buckets > 1:
            digits = np.array([int(identity[:8], 16) if identity else 0 for identity in table["id"].to_pylist()])
            mine = pc.and_(mine, pa.array(digits % job.buckets == job.bucket))
        tables.append(table.filter(mine).drop_columns(["status"]))
    rows = pa.concat_tables(tables).sort_by([("id", "ascending"), ("uri", "ascending")])
    ids, index = rows["id"].to_numpy(), rows["index"].to_numpy()
    copy = np.concatenate([[False], ids[1:] == ids[:-1]]) if len(ids) else np.zeros(0, bool)
    original = index[np.maximum.accumulate(np.where(copy, 0, np.arange(len(ids))))] if len(ids) else index
    order = np.argsort(index[copy])
    output.counters["copies"] = int(copy.sum())
    output.write(pa.table({"index": index[copy][order], "original": original[copy][order]}))


def originals(run: Run, *among: Block) -> NDArray[np.int64]:
    """Return the sorted global indices of the readable pool rows that are no exact copy.

    Args:
        among: blocks of the pool, no other part of which is opened; none for all of it.
    """
    layout = Layout.of(run, "pool")
    readable = [
        start + np.flatnonzero(table["status"].to_numpy() == "ok")
        for start, table in layout.read_among(among, ["status"])
    ]
    copies = run.read_all("exact", ["index"])["index"].to_numpy()
    return np.setdiff1d(np.concatenate(readable), copies, assume_unique=True)


@dataclasses.dataclass(frozen=True)
class FitBasis:
    """The job of `basis`.

    Args:
        seed: of the run.
        threshold: of the joins it is for.
        prefix: how many directions; chosen from the data when None.
    """

    seed: int
    threshold: float
    prefix: int | None = None


def basis(run: Run, job: FitBasis, output: Output) -> None:
    """Fit the leading directions of the joins on a bounded sample of the pool, chosen by hash.

    How many of them prune best depends on the threshold: duplicates and leaks have each their own.
    """
    from granary.curation.dedup import blocks

    layout, seed = Layout.of(run, "pool"), job.seed
    parts = np.argsort(priority(seed, [f"part-{part}" for part in range(len(layout.parts))]))[:BASIS_PARTS]
    rows = []
    for part in np.sort(parts):
        indices, vectors = load(layout, (part, part + 1))
        chosen = np.argsort(priority(seed, [str(index) for index in indices]))[: BASIS_ROWS // len(parts)]
        rows.append(vectors[np.sort(chosen)])
    sample = np.concatenate(rows)
    with limit_blas(1):  # the last bits of a rotation depend on the threads; the edges never do
        rotation = blocks.fit_rotation(sample, rows=BASIS_ROWS)
    prefix = job.prefix or 1
    if len(sample) and job.prefix is None:
        prefix = blocks.choose_prefix(sample, rotation, job.threshold)
    output.counters["prefix"] = min(prefix, len(rotation))
    output.write(pa.table({"direction": list(rotation.T[:prefix])}))


def read_basis(run: Run, stage: str) -> NDArray[np.float32]:
    """Return the leading directions (d, p) float32, as columns."""
    return np.stack(run.read(stage, 0)["direction"].to_numpy()).T.astype(np.float32)


def prepare(vectors: NDArray[np.float32], directions: NDArray[np.float32], device: str) -> blocks.Block:
    """Prepare vectors to be joined, on a device; the edges do not depend on it."""
    from granary.curation.dedup import blocks
    from granary.curation.encoders.inference import torch_device

    return blocks.prepare(vectors, directions, directions.shape[1], device=str(torch_device(device)))


@dataclasses.dataclass(frozen=True)
class JoinPair:
    """The job of `join_pair`.

    Args:
        blocks: of the pool, joined with each other; twice the same for a block with itself.
        threshold: cosine above which two pictures are linked.
        device: "auto" or a torch device.
        view: of the pictures of the first block.
    """

    blocks: tuple[Block, Block]
    threshold: float
    device: str
    view: View = "embedding"


def join_pair(run: Run, job: JoinPair, output: Output) -> None:
    """Join two blocks of the pool and contract the edges above the threshold to their spanning forest."""
    from granary.curation.dedup import join

    layout, directions = Layout.of(run, "pool"), read_basis(run, "basis")
    alive, (first, second) = originals(run, *job.blocks), job.blocks
    left_index, left = load(layout, first, alive, job.view)
    left_block = prepare(left, directions, job.device)
    right_index, right_block = left_index, None
    if job.view != "embedding" or first != second:
        right_index, right = load(layout, second, alive)
        right_block = prepare(right, directions, job.device)
    forest = components.ForestBuilder()
    for i, j, similarity in join.join_blocks(left_block, right_block, job.threshold):
        apart = left_index[i] != right_index[j]  # a picture may resemble its own mirror image
        forest.add(left_index[i][apart], right_index[j][apart], similarity[apart])
    write_forest(forest.forest(), output)


@dataclasses.dataclass(frozen=True)
class JoinNearest:
    """The job of `join_nearest`.

    Args:
        block: of the pool.
        against: blocks that hold the whole pool.
        k: nearest neighbours of each picture.
        threshold: cosine above which they are linked.
        device: "auto" or a torch device.
        view: of the pictures of the block.
    """

    block: Block
    against: tuple[Block, ...]
    k: int
    threshold: float
    device: str
    view: View = "embedding"


def join_nearest(run: Run, job: JoinNearest, output: Output) -> None:
    """Link the images of one block with their k nearest in the whole pool, where above the threshold."""
    from granary.curation.dedup import join

    layout, directions, alive = Layout.of(run, "pool"), read_basis(run, "basis"), originals(run)
    index, vectors = load(layout, job.block, alive, job.view)
    queries = prepare(vectors, directions, job.device)
    best = join.concatenate([])
    for block in job.against:
        names, vectors = load(layout, block, alive)
        itself = block == job.block and job.view == "embedding"
        other = None if itself else prepare(vectors, directions, job.device)
        i, j, similarity = join.top_k_neighbours(queries, other, job.k, job.threshold)
        apart = index[i] != names[j]
        best = join.merge_top_k([best, join.Edges(index[i][apart], names[j][apart], similarity[apart])], job.k)
    write_forest(components.spanning_forest(*best), output)


def write_no_edges(run: Run, job: NoJob, output: Output) -> None:
    """Write the forest without edges: near-duplicate removal is off."""
    write_forest(components.merge_forests([]), output)


def write_combined_forest(run: Run, job: NoJob, output: Output, forest: components.Forest) -> None:
    """Write the forest of the whole pool."""
    write_forest(forest, output)


def cut_links(run: Run, job: NoJob, output: Output) -> None:
    """Write the forest of the whole pool without what joins pictures that are no near copies of each other."""
    forest = read_forest(run.read("forest", 0))
    cut = components.separated(forest, decided(run).apart)
    output.counters["cut"] = len(forest) - len(cut)
    write_forest(cut, output)


def write_forest(forest: components.Forest, output: Output) -> None:
    """Write a forest as edges."""
    output.counters["edges"] = len(forest.i)
    output.write(pa.table({"i": forest.i, "j": forest.j, "similarity": forest.similarity}, EDGES))


def read_forest(edges: pa.Table) -> components.Forest:
    """Return the forest of a part file's table."""
    return components.Forest(*(edges[name].to_numpy() for name in EDGES.names))


@dataclasses.dataclass(frozen=True)
class ChooseKept(Bucket):
    """The job of `duplicates`: a bucket of components.

    Args:
        mirror: whether mirror images count too.
        split_below: least similarity of a member to the one kept; None leaves components whole.
        forest: the stage that wrote the forest; the digest of the stage names it as its input.
    """

    mirror: bool = False
    split_below: float | None = None
    forest: str = undigested("forest")


def duplicates(run: Run, job: ChooseKept, output: Output) -> None:
    """Choose what stays of the components in one bucket, and say how close each member is to it.

    What a person wants to keep stands for its component, and stays beside another one like it.

    Writes a row for every member of a component of two or more: index, representative (global index and id),
    similarity to it, the component's tightness (lowest similarity of a member) and size.
    """
    vertices, labels = components.connected_components(read_forest(run.read(job.forest, 0)))
    mine = labels % job.buckets == job.bucket
    vertices, labels = vertices[mine], labels[mine]
    layout = Layout.of(run, "pool")
    names = ["id", "uri", "width", "height", "embedding", *(["mirror"] if job.mirror else [])]
    rows = layout.take(vertices, names)
    similarity = _Similarity(rows, job.mirror)
    pixels = rows["width"].to_numpy().astype(np.int64) * rows["height"].to_numpy()
    ids, uris = rows["id"].to_numpy(zero_copy_only=False), rows["uri"].to_numpy(zero_copy_only=False)
    chosen = decided(run)
    order = preferred(components.preference(pixels, ids, uris), vertices, chosen)
    if job.split_below is None:
        representative = components.representatives(labels, order)
    else:
        representative = components.split_by_similarity(labels, order, similarity, job.split_below)
    stays = np.flatnonzero(np.isin(vertices, chosen.keep))
    representative[stays] = stays
    closeness = similarity(np.arange(len(vertices)), representative)
    heads, lowest = components.tightness(representative, similarity)
    size = np.bincount(representative, minlength=len(vertices))[representative]
    output.counters["dropped"] = int((representative != np.arange(len(vertices))).sum())
    table = pa.table(
        {
            "index": vertices,
            "representative": vertices[representative],
            "representative_id": pa.array(ids[representative], pa.string()),
            "similarity": closeness,
            "tightness": lowest[np.searchsorted(heads, representative)],
            "members": size,
        }
    )
    output.write(table.filter(pa.array(size > 1)).sort_by("index"))


class _Similarity:
    """Cosine between rows of a table, or the larger of it and the cosine with the mirror image."""

    def __init__(self, rows: pa.Table, mirror: bool) -> None:
        self.vectors = from_column(rows["embedding"])
        self.mirrored = from_column(rows["mirror"]) if mirror else None

    def __call__(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (m,) float32 for index arrays (m,)."""
        from granary.curation.dedup import join

        plain = join.pair_similarities(self.vectors, self.vectors, i, j)
        if self.mirrored is None:
            return plain
        ways = (
            join.pair_similarities(self.mirrored, self.vectors, i, j),
            join.pair_similarities(self.vectors, self.mirrored, i, j),
        )
        return np.maximum(plain, np.maximum(*ways))
