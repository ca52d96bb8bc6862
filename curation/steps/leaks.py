"""Leak removal: everything in the component of a reference goes (DINOv2, section 3, "relative deduplication").

Instead of joining the whole pool with itself at the leak threshold, the set grows from the references: round 0
finds pool images above the threshold with a reference, round r those above it with an image found in round r - 1.
The fixed point is the same set, and it costs leaks x pool instead of pool x pool.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from granary.curation.runs.run import Output, Run
from granary.curation.runs.spans import Span
from granary.curation.runs.vectors import Block, Layout, from_column, load
from granary.curation.selection import search
from granary.curation.steps.decisions import decided
from granary.curation.steps.dedup import View, originals, prepare, read_basis

# parent: global index of the reference (round 0) or of the pool image the link comes from;
# root: global index of the reference at the end of the chain.
LINKS = pa.schema([("index", pa.int64()), ("parent", pa.int64()), ("root", pa.int64()), ("similarity", pa.float32())])


def distinct(run: Run, *among: Block) -> NDArray[np.int64]:
    """Return the sorted global indices of the pool images that deduplication left, among blocks or in all of it."""
    rows = run.read_all("duplicates", ["index", "representative"])
    index, representative = rows["index"].to_numpy(), rows["representative"].to_numpy()
    return np.setdiff1d(originals(run, *among), index[index != representative], assume_unique=True)


def surviving(run: Run, *among: Block) -> NDArray[np.int64]:
    """Return the sorted global indices of what deduplication, leak removal and decisions left; `among` as above."""
    chosen = decided(run)
    leaks = np.setdiff1d(all_leaks(run)["index"].to_numpy(), chosen.keep_leaked)
    return np.setdiff1d(distinct(run, *among), np.concatenate([leaks, chosen.drop]), assume_unique=True)


def leaked_before(run: Run, round_: int) -> NDArray[np.int64]:
    """Return the sorted global indices of the pool images that leaked in rounds before `round_`."""
    earlier = [run.read(f"leaked-{r:02d}", 0, ["index"])["index"].to_numpy() for r in range(round_)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *earlier]))


@dataclasses.dataclass(frozen=True)
class LinkBlock:
    """The job of `link`.

    Args:
        round: of the growth; 0 starts from the references.
        frontier: range of the frontier: parts of the references in round 0, then rows of the round before.
        block: of the pool.
        threshold: cosine above which an image leaks.
        device: "auto" or a torch device.
        views: of the pool images that are compared.
    """

    round: int
    frontier: Block
    block: Block
    threshold: float
    device: str
    views: tuple[View, ...]


def link(run: Run, job: LinkBlock, output: Output) -> None:
    """Find the images of one pool block that are above the threshold with one block of the frontier."""
    from granary.curation.dedup.join import join_blocks

    layout, directions = Layout.of(run, "pool"), read_basis(run, "leak-basis")
    alive = np.setdiff1d(distinct(run, job.block), leaked_before(run, job.round), assume_unique=True)
    names, roots, vectors = _frontier(run, job.round, job.frontier)
    frontier = prepare(vectors, directions, job.device)
    best = LINKS.empty_table()
    for view in job.views:
        index, pool = load(layout, job.block, alive, view)
        block = prepare(pool, directions, job.device)
        for i, j, similarity in join_blocks(frontier, block, job.threshold):
            tile = pa.table({"index": index[j], "parent": names[i], "root": roots[i], "similarity": similarity}, LINKS)
            best = best_links(pa.concat_tables([best, tile]))
    output.write(best)


def _frontier(run: Run, round_: int, block: Block) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return names, roots and vectors of a range of the frontier: reference parts, or rows found a round ago."""
    if round_ == 0:
        index, vectors = load(Layout.of(run, "references"), block)
        return index, index, vectors
    rows = run.read(f"leaked-{round_ - 1:02d}", 0).slice(block[0], block[1] - block[0])
    index = rows["index"].to_numpy()
    return (
        index,
        rows["root"].to_numpy(),
        from_column(Layout.of(run, "pool").take(index, ["embedding"])["embedding"]),
    )


def best_links(links: pa.Table) -> pa.Table:
    """Keep for every image its most similar link; ties go to the smaller parent."""
    index, parent = links["index"].to_numpy(), links["parent"].to_numpy()
    order = np.lexsort((parent, -links["similarity"].to_numpy(), index))
    first = np.concatenate([[True], np.diff(index[order]) > 0]) if len(order) else np.zeros(0, bool)
    return links.take(pa.array(order[first]))


@dataclasses.dataclass(frozen=True)
class MergeRound:
    """The job of `leaked`.

    Args:
        round: whose links are merged.
    """

    round: int


def leaked(run: Run, job: MergeRound, output: Output) -> None:
    """Merge the links of one round: the images that leak, sorted, each with its best link."""
    output.write(best_links(run.read_all(f"leaks-{job.round:02d}")))


def all_leaks(run: Run) -> pa.Table:
    """Return every leaked pool image: the links of all rounds and the round, sorted by index."""
    tables = [LINKS.empty_table().append_column("round", pa.array([], pa.int32()))]
    round_ = 0
    while parts := run.parts(f"leaked-{round_:02d}"):
        del parts
        table = run.read(f"leaked-{round_:02d}", 0)
        tables.append(table.append_column("round", pa.array(np.full(table.num_rows, round_, np.int32))))
        round_ += 1
    return pa.concat_tables(tables).sort_by("index")


@dataclasses.dataclass(frozen=True)
class AuditPair:
    """The job of `audit`.

    Args:
        references: block of the references.
        block: block of the pool.
    """

    references: Block
    block: Block


def audit(run: Run, job: AuditPair, output: Output) -> None:
    """Find the highest similarity left between one block of references and one block of surviving pool images."""
    alive = surviving(run, job.block)
    references, queries = load(Layout.of(run, "references"), job.references)
    index, vectors = load(Layout.of(run, "pool"), job.block, alive)
    similarity, nearest = search.top_k(queries, vectors, index, 1)
    output.write(pa.table({"reference": references, "similarity": similarity[:, 0], "index": nearest[:, 0]}))


def write_survivors(run: Run, job: Span, output: Output) -> None:
    """Write what deduplication, leak removal and decisions left of some parts, densely: a row group for each part."""
    layout, (first, last) = Layout.of(run, "pool"), job.parts
    alive = surviving(run, job.parts)
    output.counters["alive"] = len(alive)
    for start, stop in itertools.pairwise(layout.starts[first : last + 1]):
        low, high = np.searchsorted(alive, [start, stop])
        mask = np.zeros(stop - start, bool)
        mask[alive[low:high] - start] = True
        output.write(pa.table({"alive": mask}))
