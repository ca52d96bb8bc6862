"""The join inside cells against the exact join and Faiss IVF: python -m tests.benchmarks.cell_join [--n 200000].

Vectors as in `tests.benchmarks.join`. Recall is the share of the pairs above the threshold that the exact join has;
processor seconds are of one thread, training and assignment of cells included.
"""

from __future__ import annotations

import argparse

import faiss
import numpy as np
from rich.console import Console
from rich.table import Table

from granary.curation.dedup.blocks import pruning_dtype
from granary.curation.dedup.cells import cell_join
from granary.curation.dedup.join import threshold_join
from granary.curation.dedup.reach import USUAL, Reach, cell_count
from granary.curation.store.threads import limit_threads
from tests.benchmarks.join import measure, vectors


def faiss_ivf(rows, threshold, cells, probes, k=64):
    """Search the k nearest of each row in an inverted file and keep those above the threshold."""
    quantiser = faiss.IndexFlatIP(rows.shape[1])
    index = faiss.IndexIVFFlat(quantiser, rows.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(rows[np.random.default_rng(0).choice(len(rows), min(len(rows), 16 * cells), replace=False)])
    index.add(rows)
    index.nprobe = probes
    similarity, neighbour = index.search(rows, k)
    i, column = np.nonzero((similarity > np.float32(threshold)) & (neighbour >= 0))
    j = neighbour[i, column]
    pairs = np.stack([np.minimum(i, j), np.maximum(i, j)], axis=1)[i != j]
    return np.unique(pairs, axis=0)


def compare(n, d, threshold, reaches, probes):
    """Print processor time and recall of all methods."""
    rows, cells = vectors(n, d), cell_count(n)
    pruning_dtype("cpu")
    (exact, _), wall, cpu = measure(threshold_join, rows, threshold)
    pairs = set(map(tuple, exact.tolist()))
    table = Table("method", "wall s", "CPU s", "of the exact", "recall", title=f"{n:,} x {d}, t = {threshold}")
    table.add_row("threshold_join", f"{wall:.1f}", f"{cpu:.1f}", "1", "1")
    methods = {
        f"cell_join, {cells:,} cells, {reach.homes} homes, {reach.probes} probes": (
            lambda reach=reach: cell_join(rows, threshold, reach=reach)[0]
        )
        for reach in reaches
    }
    methods |= {
        f"Faiss IVF, {cells:,} lists, {count} probes, k = 64": (
            lambda count=count: faiss_ivf(rows, threshold, cells, count)
        )
        for count in probes
    }
    for name, method in methods.items():
        found, wall, seconds = measure(method)
        recall = len(pairs & set(map(tuple, found.tolist()))) / max(1, len(pairs))
        table.add_row(name, f"{wall:.1f}", f"{seconds:.1f}", f"{seconds / cpu:.3f}", f"{recall:.4f}")
    Console(width=110).print(table)


def main():
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--d", type=int, default=384)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--homes", type=int, default=USUAL.homes)
    parser.add_argument("--probes", type=int, nargs="*", default=[USUAL.probes])
    parser.add_argument("--faiss-probes", type=int, nargs="*", default=[8])
    args = parser.parse_args()
    limit_threads(1)
    reaches = [Reach(args.homes, probes) for probes in args.probes]
    compare(args.n, args.d, args.threshold, reaches, args.faiss_probes)


if __name__ == "__main__":
    main()
