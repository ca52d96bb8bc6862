"""Retrieval by seed sets, clusters, SemDeDup and balanced sampling, over the images that survived deduplication."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from granary.curation.dedup.semdedup import semdedup
from granary.curation.runs.run import Output, Run, read_table
from granary.curation.runs.vectors import Block, Layout, load
from granary.curation.selection import clusters, hierarchy, retrieval, search
from granary.curation.store.sampling import StratifiedSample, bounded_sample

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
CELLS = pa.schema([("index", pa.int64()), ("id", pa.string()), ("cell", pa.int32()), ("similarity", pa.float32())])


def candidates(run: Run) -> np.ndarray:
    """Return the sorted global indices of the pool images that can be retrieved."""
    layout = Layout.of(run, "features")
    alive = [
        table["index"].to_numpy()[table["status"].to_numpy() == "ok"]
        for _, table in layout.read(0, len(layout.parts), ["index", "status"])
    ]
    dropped = [table["index"].to_numpy() for table in _optional(run, "semdedup", ["index"])]
    return np.setdiff1d(np.concatenate(alive), np.concatenate([np.empty(0, np.int64), *dropped]), assume_unique=True)


def _optional(run: Run, stage: str, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the parts of a stage that the recipe may not have."""
    if run.parts(stage):
        yield run.read_all(stage, columns)


def load_features(run: Run, block: Block, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def seeds_of_set(run: Run, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def nearest(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Find the k nearest images of one pool block for every seed of a set."""
    seeds, _, queries = seeds_of_set(run, arguments["set"])
    index, _, vectors = load_features(run, arguments["block"], candidates(run))
    k, approximate = arguments["k"], arguments["approximate"]
    if approximate is None:
        similarity, found = search.top_k(queries, vectors, index, k, gpu=search.has_gpu())
    else:
        trained = faiss.deserialize_index(np.frombuffer(run.read("search-index", 0)["index"][0].as_py(), np.uint8))
        similarity, found, recall = search.approximate_top_k(
            queries, vectors, index, k, trained, approximate["probes"], seed=approximate["seed"]
        )
        output.counters["recall_millionths"] = round(recall * 1e6)
    output.write(pa.table({"seed": seeds, "similarity": list(similarity), "index": list(found)}, NEAREST))


def train_search_index(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Train the inverted file and the product quantiser of the approximate search on a bounded sample."""
    sample = _training_sample(run, candidates(run), arguments["sample"], arguments["seed"])
    index = search.train_index(sample, arguments["cells"], arguments["code_bytes"], arguments["seed"])
    output.write(pa.table({"index": [faiss.serialize_index(index).tobytes()]}))


def retrieve_by_sample(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Merge the nearest images of a seed set over all pool blocks, and apply its cap."""
    number, k = arguments["set"], arguments["k"]
    seeds, ids, _ = seeds_of_set(run, number)
    tables = (read_table(url) for url in run.parts(f"nearest-{number}"))
    partials = [(_rows(table["similarity"], k), _rows(table["index"], k)) for table in tables]
    similarity, index = search.merge_top_k(partials, k)
    layout = Layout.of(run, "pool")
    found = retrieval.sample_retrieval(similarity, index, np.arange(len(seeds)))
    if found.distinct > arguments["cap"]:
        pool_ids = layout.take(found.images, ["id"])["id"].to_numpy(zero_copy_only=False).astype(str)
        found = retrieval.capped(found, pool_ids, arguments["cap"], arguments["seed"])
    output.counters |= {"retrievals": found.retrievals, "distinct": found.distinct, "seeds": len(seeds)}
    offsets = pa.array(found.starts.astype(np.int32))
    none = pa.nulls(len(found.images))
    output.write(
        pa.table(
            {
                "index": found.images,
                "set": np.full(len(found.images), number, np.int16),
                "seed_ids": pa.ListArray.from_arrays(offsets, pa.array(ids[found.seeds].tolist(), pa.string())),
                "similarities": pa.ListArray.from_arrays(offsets, pa.array(found.similarities, pa.float32())),
                "cluster": none.cast(pa.int32()),
                "seeds_in_cell": none.cast(pa.int64()),
            },
            RETRIEVED,
        )
    )


def _rows(column: pa.ChunkedArray, k: int) -> np.ndarray:
    """Turn a column of lists of k values into (n, k)."""
    return column.combine_chunks().flatten().to_numpy().reshape(-1, k)


def train(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Train k-means on a bounded sample of the candidates, chosen by hash."""
    sample = _training_sample(run, _alive(run, arguments), arguments["sample"], arguments["seed"])
    centroids = sample[:0]
    if len(sample):
        centroids = clusters.train_kmeans(
            sample, arguments["clusters"], arguments["seed"], arguments["iterations"], gpu=search.has_gpu()
        )
    write_centroids(centroids, output)


def _training_sample(run: Run, alive: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return the vectors (at most `size`, d) of the images that come first by hash."""
    layout = Layout.of(run, "features")
    indices, ids = [], []
    for _, table in layout.read(0, len(layout.parts), ["index", "id"]):
        inside = np.isin(table["index"].to_numpy(), alive)
        indices.append(table["index"].to_numpy()[inside])
        ids.append(table["id"].to_numpy(zero_copy_only=False)[inside].astype(str))
    chosen = np.sort(np.concatenate(indices)[bounded_sample(np.concatenate(ids), size, seed, "training sample")])
    return np.concatenate([load_features(run, (part, part + 1), chosen)[2] for part in range(len(layout.parts))])


def _alive(run: Run, arguments: Mapping[str, Any]) -> np.ndarray:
    """Return the candidates, or before SemDeDup everything that was embedded."""
    if not arguments.get("before_semdedup"):
        return candidates(run)
    layout = Layout.of(run, "features")
    return np.concatenate(
        [
            table["index"].to_numpy()[table["status"].to_numpy() == "ok"]
            for _, table in layout.read(0, len(layout.parts), ["index", "status"])
        ]
    )


def write_centroids(centroids: np.ndarray, output: Output) -> None:
    """Write (k, d) centroids, a row each."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(centroids.reshape(-1), pa.float32()), centroids.shape[1])
    output.write(pa.table({"centroid": column}))


def read_centroids(run: Run, stage: str) -> np.ndarray:
    """Return (k, d) float32 centroids."""
    column = run.read(stage, 0)["centroid"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


def assign(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Assign the candidates of one block to their nearest centroid."""
    index, ids, vectors = load_features(run, arguments["block"], _alive(run, arguments))
    cells, similarity = clusters.assign(vectors, read_centroids(run, arguments["centroids"]), gpu=search.has_gpu())
    output.write(pa.table({"index": index, "id": ids.tolist(), "cell": cells, "similarity": similarity}, CELLS))


def lloyd(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Sum the candidates of one block by nearest centroid: a part of one Lloyd iteration."""
    _, _, vectors = load_features(run, arguments["block"], _alive(run, arguments))
    centroids = read_centroids(run, arguments["centroids"])
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


def finish_lloyd(run: Run, arguments: Mapping[str, Any], output: Output, sums: clusters.LloydSums) -> None:
    """Turn the merged sums into the next centroids."""
    write_centroids(sums.finish(read_centroids(run, arguments["centroids"])), output)


def retrieve_by_cluster(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Draw from the cells that hold enough seeds of one set."""
    number, centroids = arguments["set"], read_centroids(run, arguments["centroids"])
    _, _, queries = seeds_of_set(run, number)
    seed_cells = clusters.assign(queries, centroids)[0] if len(centroids) else np.zeros(0, np.int64)
    seed = arguments["seed"] + number
    draw = retrieval.ClusterDraw(seed_cells, len(centroids), arguments["min_seeds"], arguments["per_cell"], seed)
    for part in range(len(run.parts("pool-cells"))):
        rows = run.read("pool-cells", part, ["index", "id", "cell"])
        draw.add(
            rows["cell"].to_numpy(),
            rows["id"].to_numpy(zero_copy_only=False).astype(str),
            rows["index"].to_numpy(),
        )
    found = draw.finish(arguments["cap"])
    empty = pa.array([[]] * len(found.images), pa.list_(pa.string()))
    output.counters |= {"retrievals": found.retrievals, "distinct": len(found.images), "seeds": len(queries)}
    output.write(
        pa.table(
            {
                "index": found.images,
                "set": np.full(len(found.images), number, np.int16),
                "seed_ids": empty,
                "similarities": empty.cast(pa.list_(pa.float32())),
                "cluster": found.cells.astype(np.int32),
                "seeds_in_cell": found.seeds_in_cell,
            },
            RETRIEVED,
        )
    )


def merge_retrieved(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Merge what all seed sets retrieved: an image is one row with its sets and all its seeds, best first."""
    rows = pa.concat_tables([run.read(f"retrieved-{number}", 0) for number in arguments["sets"]])
    merged: dict[int, dict[str, Any]] = {}
    for row in rows.sort_by([("index", "ascending"), ("set", "ascending")]).to_pylist():
        into = merged.setdefault(row["index"], {"index": row["index"], "sets": [], "pairs": [], "cluster": None})
        into["sets"].append(row["set"])
        into["pairs"] += zip(row["similarities"], row["seed_ids"], strict=True)
        into["cluster"] = row["cluster"] if into["cluster"] is None else into["cluster"]
    table = []
    for into in merged.values():
        pairs = sorted(into.pop("pairs"), key=lambda pair: (-pair[0], pair[1]))
        table.append({**into, "seed_ids": [seed for _, seed in pairs], "similarities": [value for value, _ in pairs]})
    output.counters["distinct"] = len(table)
    output.write(pa.Table.from_pylist(table, MERGED))


def collect_unreadable(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
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


def drop_semantic_duplicates(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Run SemDeDup on the cells of one bucket; writes the images it drops and how similar they were."""
    centroids = read_centroids(run, "semdedup-kmeans")
    cells = run.read_all("semdedup-cells")
    mine = cells["cell"].to_numpy() % arguments["buckets"] == arguments["bucket"]
    cells = cells.filter(pa.array(mine)).sort_by([("cell", "ascending"), ("index", "ascending")])
    kept_index, vectors = [], []
    alive = np.sort(cells["index"].to_numpy())
    for part in range(len(run.parts("features"))):
        index, _, rows = load_features(run, (part, part + 1), alive)
        kept_index.append(index)
        vectors.append(rows)
    position = np.searchsorted(np.concatenate(kept_index), cells["index"].to_numpy())
    ordered = np.concatenate(vectors)[position]
    ids, cell = cells["id"].to_numpy(zero_copy_only=False).astype(str), cells["cell"].to_numpy()
    dropped, highest = np.zeros(len(cell), bool), np.zeros(len(cell), np.float32)
    for number in np.unique(cell):
        inside = np.flatnonzero(cell == number)
        keep, score = semdedup(
            ordered[inside],
            ids[inside],
            centroids[number],
            arguments["epsilon"],
            arguments["keep"],
            arguments["seed"],
        )
        dropped[inside], highest[inside] = ~keep, score
    output.counters["dropped"] = int(dropped.sum())
    rows = pa.table({"index": cells["index"].to_numpy(), "similarity": highest, "cluster": cell.astype(np.int32)})
    output.write(rows.filter(pa.array(dropped)).sort_by("index"))


def draw_balanced(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Draw a target number of images, balanced over hierarchical k-means."""
    centroids, seed = read_centroids(run, "balance-kmeans"), arguments["seed"]
    cells = run.read_all("balance-cells")
    leaf_sizes = np.bincount(cells["cell"].to_numpy(), minlength=len(centroids))
    tree = hierarchy.fit_hierarchy(centroids, arguments["levels"][1:], arguments["resamples"], seed)
    budgets = hierarchy.allocate(tree, leaf_sizes, arguments["target"], seed)
    keys = -cells["similarity"].to_numpy() if arguments["leaves"] == "nearest" else None
    drawn = StratifiedSample(budgets, seed, "balanced leaves").add(
        cells["cell"].to_numpy(),
        cells["id"].to_numpy(zero_copy_only=False).astype(str),
        cells["index"].to_numpy(),
        keys,
    )
    order = np.argsort(drawn.indices)
    output.counters["drawn"] = len(order)
    output.write(pa.table({"index": drawn.indices[order], "cluster": drawn.cells[order].astype(np.int32)}))
