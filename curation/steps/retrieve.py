"""Retrieval by seed sets: for each the nearest images, over those that survived deduplication, and their merger."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from granary.curation.runs.run import NoJob, Output, Run
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import Block, Layout, load
from granary.curation.selection import retrieval, search
from granary.curation.store.sampling import bounded_sample

# What the seed sets retrieved, a row per image and set.
RETRIEVED = pa.schema(
    [
        ("index", pa.int64()),
        ("set", pa.int16()),
        ("seed_ids", pa.list_(pa.string())),
        ("similarities", pa.list_(pa.float32())),
        ("cluster", pa.int32()),
        ("seeds_in_cell", pa.int64()),
    ]
)
MERGED = pa.schema(
    [
        ("index", pa.int64()),
        ("sets", pa.list_(pa.int16())),
        ("seed_ids", pa.list_(pa.string())),
        ("similarities", pa.list_(pa.float32())),
        ("cluster", pa.int32()),
    ]
)
NEAREST = pa.schema([("seed", pa.int64()), ("similarity", pa.list_(pa.float32())), ("index", pa.list_(pa.int64()))])

Vectors = tuple[NDArray[np.int64], NDArray[np.str_], NDArray[np.float32]]  # global index, id and unit vector of each


def embedded(run: Run, *among: Block) -> NDArray[np.int64]:
    """Return the ascending global indices of the pool images that were embedded for retrieval.

    Args:
        among: blocks of the features, no other part of which is opened; none for all of them.
    """
    layout = Layout.of(run, "features")
    alive = [
        table["index"].to_numpy()[table["status"].to_numpy() == "ok"]
        for _, table in layout.read_among(among, ["index", "status"])
    ]
    return np.concatenate(alive)


def candidates(run: Run, *among: Block) -> NDArray[np.int64]:
    """Return the sorted global indices of the pool images that can be retrieved, among blocks or in all of it."""
    dropped = [table["index"].to_numpy() for table in _optional(run, "semdedup", ["index"])]
    return np.setdiff1d(embedded(run, *among), np.concatenate([np.empty(0, np.int64), *dropped]), assume_unique=True)


def _optional(run: Run, stage: str, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the parts of a stage that the recipe may not have."""
    if run.parts(stage):
        yield run.read_all(stage, columns)


def load_features(run: Run, block: Block, alive: NDArray[np.int64]) -> Vectors:
    """Return global pool indices (n,), ids (n,) and unit vectors (n, d) of the retrieval embeddings of a block."""
    layout = Layout.of(run, "features")
    place, vectors = load(layout, block)
    names = pa.concat_tables([table for _, table in layout.read(*block, ["index", "id"])])
    names = names.take(pa.array(place - int(layout.starts[block[0]])))
    index = names["index"].to_numpy()
    chosen = np.isin(index, alive, assume_unique=True)
    if not chosen.all():
        index, names, vectors = index[chosen], names.filter(pa.array(chosen)), vectors[chosen]
    return index, names["id"].to_numpy(zero_copy_only=False).astype(str), vectors


def seeds_of_set(run: Run, number: int) -> Vectors:
    """Return global indices, ids and unit vectors of the readable seeds of a set; equal seeds count once."""
    layout, indices, ids, vectors = Layout.of(run, "seeds"), [], [], []
    for part in range(len(layout.parts)):
        table = next(iter(layout.read(part, part + 1, ["source", "id"])))[1]
        index, rows = load(layout, (part, part + 1))
        local = index - layout.starts[part]
        mine = table["source"].to_numpy()[local] == number
        indices.append(index[mine])
        ids.append(table["id"].to_numpy(zero_copy_only=False)[local][mine].astype(str))
        vectors.append(rows[mine])
    distinct, first = np.unique(np.concatenate(ids), return_index=True)
    return np.concatenate(indices)[first], distinct, np.concatenate(vectors)[first]


def training_sample(run: Run, alive: NDArray[np.int64], size: int, seed: int) -> NDArray[np.float32]:
    """Return the vectors (at most `size`, d) of the images that come first by hash."""
    layout = Layout.of(run, "features")
    indices, ids = [], []
    for _, table in layout.read(0, len(layout.parts), ["index", "id"]):
        inside = np.isin(table["index"].to_numpy(), alive)
        indices.append(table["index"].to_numpy()[inside])
        ids.append(table["id"].to_numpy(zero_copy_only=False)[inside].astype(str))
    chosen = np.sort(np.concatenate(indices)[bounded_sample(np.concatenate(ids), size, seed, "training sample")])
    return np.concatenate([load_features(run, (part, part + 1), chosen)[2] for part in range(len(layout.parts))])


@dataclasses.dataclass(frozen=True)
class TrainIndex:
    """The job of `train_search_index`.

    Args:
        sample: most images it trains on, chosen by hash.
        cells: lists of the inverted file.
        code_bytes: bytes of the code of an image.
        seed: of the run.
    """

    sample: int
    cells: int
    code_bytes: int
    seed: int


def train_search_index(run: Run, job: TrainIndex, output: Output) -> None:
    """Train the inverted file and the product quantiser of the approximate search on a bounded sample."""
    import faiss

    sample = training_sample(run, candidates(run), job.sample, job.seed)
    index = search.train_index(sample, job.cells, job.code_bytes, job.seed)
    output.write(pa.table({"index": [faiss.serialize_index(index).tobytes()]}))


@dataclasses.dataclass(frozen=True)
class SearchBlock:
    """The job of `nearest`.

    Args:
        set: number of the seed set.
        block: of the retrieval embeddings.
        k: images per seed.
        approximate: None for an exact search.
    """

    set: int
    block: Block
    k: int
    approximate: search.Approximation | None = None


def nearest(run: Run, job: SearchBlock, output: Output) -> None:
    """Find the k nearest images of one pool block for every seed of a set."""
    seeds, _, queries = seeds_of_set(run, job.set)
    index, _, vectors = load_features(run, job.block, candidates(run, job.block))
    if job.approximate is None:
        similarity, images = search.top_k(queries, vectors, index, job.k, gpu=search.has_gpu())
    else:
        import faiss

        trained = faiss.deserialize_index(np.frombuffer(run.read("search-index", 0)["index"][0].as_py(), np.uint8))
        similarity, images, recall = search.approximate_top_k(queries, vectors, index, job.k, trained, job.approximate)
        output.counters["recall_millionths"] = round(recall * 1e6)
    output.write(pa.table({"seed": seeds, "similarity": list(similarity), "index": list(images)}, NEAREST))


@dataclasses.dataclass(frozen=True)
class RetrieveNearest:
    """The job of `retrieve_by_sample`.

    Args:
        set: number of the seed set.
        k: images per seed.
        cap: most images the set may retrieve.
        seed: of the run, which chooses those that stay under the cap.
        threshold: smallest cosine of an image with its seed.
    """

    set: int
    k: int
    cap: int
    seed: int
    threshold: float = -1.0


def retrieve_by_sample(run: Run, job: RetrieveNearest, output: Output) -> None:
    """Merge the nearest images of a seed set over all pool blocks, and apply its cap."""
    seeds, ids, _ = seeds_of_set(run, job.set)
    tables = (read_table(url) for url in run.parts(f"nearest-{job.set}"))
    partials = [(_rows(table["similarity"], job.k), _rows(table["index"], job.k)) for table in tables]
    similarity, index = search.merge_top_k(partials, job.k)
    index = np.where(similarity >= np.float32(job.threshold), index, -1)
    retrieved = retrieval.sample_retrieval(similarity, index, np.arange(len(seeds)))
    output.counters |= _spread(retrieved.similarities)
    if retrieved.distinct > job.cap:
        names = Layout.of(run, "pool").take(retrieved.images, ["id"])["id"]
        pool_ids = names.to_numpy(zero_copy_only=False).astype(str)
        retrieved = retrieval.capped(retrieved, pool_ids, job.cap, job.seed)
    output.counters |= {"retrievals": retrieved.retrievals, "distinct": retrieved.distinct, "seeds": len(seeds)}
    output.write(_retrieved(job.set, retrieved, ids))


def _spread(similarities: NDArray[np.float32]) -> dict[str, int]:
    """Return the lowest, the median and the highest of similarities, in millionths; {} where there are none."""
    if not len(similarities):
        return {}
    values = np.quantile(similarities, (0, 0.5, 1))
    names = ("lowest_millionths", "median_millionths", "highest_millionths")
    return {name: round(float(value) * 1e6) for name, value in zip(names, values, strict=True)}


def _retrieved(number: int, retrieved: retrieval.Retrieved, ids: NDArray[np.str_]) -> pa.Table:
    """Return what a seed set retrieved as RETRIEVED.

    Args:
        ids: (s,) of its seeds.
    """
    offsets = pa.array(retrieved.starts.astype(np.int32))
    none = pa.nulls(len(retrieved.images))
    columns = {
        "index": retrieved.images,
        "set": np.full(len(retrieved.images), number, np.int16),
        "seed_ids": pa.ListArray.from_arrays(offsets, pa.array(ids[retrieved.seeds].tolist(), pa.string())),
        "similarities": pa.ListArray.from_arrays(offsets, pa.array(retrieved.similarities, pa.float32())),
        "cluster": none.cast(pa.int32()),
        "seeds_in_cell": none.cast(pa.int64()),
    }
    return pa.table(columns, RETRIEVED)


def _rows(column: pa.ChunkedArray, k: int) -> NDArray[Any]:
    """Turn a column of lists of k values into (n, k)."""
    return column.combine_chunks().flatten().to_numpy().reshape(-1, k)


@dataclasses.dataclass(frozen=True)
class MergeSets:
    """The job of `merge_retrieved`.

    Args:
        sets: numbers of the seed sets.
    """

    sets: tuple[int, ...]


def merge_retrieved(run: Run, job: MergeSets, output: Output) -> None:
    """Merge what all seed sets retrieved: an image is one row with its sets and all its seeds, best first."""
    rows = pa.concat_tables([run.read(f"retrieved-{number}", 0) for number in job.sets])
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in rows.sort_by([("index", "ascending"), ("set", "ascending")]).to_pylist():
        by_image.setdefault(row["index"], []).append(row)
    output.counters["distinct"] = len(by_image)
    output.write(pa.Table.from_pylist([_merged(index, group) for index, group in by_image.items()], MERGED))


def _merged(index: int, rows: list[dict[str, Any]]) -> dict[str, object]:
    """Return one row of MERGED for an image that seed sets retrieved."""
    pairs = [pair for row in rows for pair in zip(row["similarities"], row["seed_ids"], strict=True)]
    pairs.sort(key=lambda pair: (-pair[0], pair[1]))
    return {
        "index": index,
        "sets": [row["set"] for row in rows],
        "seed_ids": [seed for _, seed in pairs],
        "similarities": [similarity for similarity, _ in pairs],
        "cluster": next((row["cluster"] for row in rows if row["cluster"] is not None), None),
    }


def collect_unreadable(run: Run, job: NoJob, output: Output) -> None:
    """Collect the survivors whose bytes could not be read again for the retrieval encoder."""
    layout = Layout.of(run, "features")
    schema = pa.schema(
        [("index", pa.int64()), ("stage", pa.string()), ("reason", pa.string()), ("message", pa.string())]
    )
    rows = [
        {**row, "stage": "features"}
        for _, table in layout.read(0, len(layout.parts), ["index", "status", "reason", "message"])
        for row in table.to_pylist()
        if row.pop("status") == "dead"
    ]
    output.write(pa.Table.from_pylist(rows, schema))
