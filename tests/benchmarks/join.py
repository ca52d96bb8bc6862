"""The threshold join against Faiss and a plain symmetric join: python -m tests.benchmarks.join.

Vectors: centres and deviations are Gaussian with a covariance whose k-th eigenvalue falls as k^-decay (1 is
close to image encoders), half the energy in each, n / 100 clusters, scaled to length one; a tenth of the rows
are near-copies of others at a cosine uniform in 0.8 to 1, on both sides of the threshold. Wall and CPU seconds are
medians over rounds in which all methods take turns; where other work shares the machine compare CPU seconds.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import faiss
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from granary.curation.dedup.blocks import choose_prefix, fit_rotation, pruning_dtype, unit_rows
from granary.curation.dedup.join import threshold_join


def vectors(n, d, decay=1.0, seed=0):
    """Make (n, d) float32 unit rows as the module says."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, d + 1, dtype=np.float32) ** np.float32(-decay / 2)
    centres = rng.standard_normal((max(1, n // 100), d), np.float32) * scale
    rows = rng.standard_normal((n, d), np.float32) * scale
    rows = unit_rows(rows + centres[rng.integers(0, len(centres), n)])
    copies, sources = np.split(rng.permutation(n)[: n // 10 * 2], 2)
    cosine = rng.uniform(0.8, 1, (len(copies), 1)).astype(np.float32)
    noise = unit_rows(rng.standard_normal((len(copies), d), np.float32) * scale)
    rows[copies] = cosine * rows[sources] + np.sqrt(1 - cosine**2) * noise
    return unit_rows(rows)


def faiss_flat(rows, threshold):
    """Search the 64 nearest of each row and keep those above the threshold."""
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    similarity, neighbour = index.search(rows, 64)
    i, column = np.nonzero(similarity > np.float32(threshold))
    j = neighbour[i, column]
    return np.stack([i, j], axis=1)[i < j]


def brute_symmetric(rows, threshold, tile=2048):
    """Multiply tiles of the upper triangle in float32."""
    unit, found = torch.from_numpy(rows), []
    for row in range(0, len(rows), tile):
        for column in range(row, len(rows), tile):
            tile_products = unit[row : row + tile] @ unit[column : column + tile].T
            if float(tile_products.max()) > threshold:
                pairs = (tile_products > threshold).nonzero() + torch.tensor([row, column])
                found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return torch.cat(found).numpy()


def measure(method, *arguments):
    """Return the result, wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = method(*arguments)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def compare(args):
    """Print all methods side by side, and whether their edges agree."""
    rows = vectors(args.n, args.d, args.decay)
    pruning_dtype("cpu")
    methods = {
        "Faiss flat, k = 64": faiss_flat,
        "float32, symmetric": brute_symmetric,
        "threshold_join": lambda rows, t: threshold_join(rows, t)[0],
    }
    methods |= {
        f"threshold_join, prefix {p}": lambda rows, t, p=p: threshold_join(rows, t, prefix=p)[0] for p in args.prefix
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    edges = {}
    for _ in range(args.rounds):
        for name, method in methods.items():
            found, wall, cpu = measure(method, rows, args.threshold)
            times[name].append((wall, cpu))
            edges[name] = set(map(tuple, found.tolist()))
    prefix = choose_prefix(rows, fit_rotation(rows), args.threshold)
    table = Table(
        "method",
        "wall s",
        "CPU s",
        "x wall",
        "x CPU",
        "edges",
        "differ",
        title=f"{args.n:,} x {args.d}, t = {args.threshold}, decay {args.decay}, {torch.get_num_threads()} threads, "
        f"{args.rounds} rounds, chosen prefix {prefix}, {pruning_dtype('cpu')}",
    )
    medians = {
        name: [statistics.median(column) for column in zip(*rounds, strict=True)] for name, rounds in times.items()
    }
    base = medians["Faiss flat, k = 64"]
    for name, (wall, cpu) in medians.items():
        differ = edges[name] ^ edges["float32, symmetric"]
        table.add_row(
            name,
            f"{wall:.2f}",
            f"{cpu:.2f}",
            f"{base[0] / wall:.1f}",
            f"{base[1] / cpu:.1f}",
            f"{len(edges[name]):,}",
            f"{len(differ):,}",
        )
    Console(width=110).print(table)


def grow(args):
    """Print seconds and peak memory for growing sizes, each in a process of its own."""
    table = Table("vectors", "wall s", "CPU s", "edges", "input MB", "peak MB above start")
    for n in args.sizes:
        command = [sys.executable, "-m", "tests.benchmarks.join", "--child", "--n", str(n), "--d", str(args.d)]
        command += ["--threshold", str(args.threshold), "--decay", str(args.decay)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        table.add_row(*answer.split())
    Console(width=110).print(table)


def child(args):
    """Join once and print one row of `grow`; memory of making the vectors is not counted."""
    pruning_dtype("cpu")
    threshold_join(vectors(2000, args.d), args.threshold)  # libraries loaded, threads started
    rows = vectors(args.n, args.d, args.decay)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again from here
    start = peak_megabytes()
    (pairs, _), wall, cpu = measure(threshold_join, rows, args.threshold)
    peak = peak_megabytes() - start
    print(f"{args.n:,} {wall:.2f} {cpu:.2f} {len(pairs):,} {rows.nbytes / 2**20:.0f} {peak:.0f}")


def peak_megabytes():
    """Return the peak resident memory since it was last cleared."""
    with open("/proc/self/status") as file:
        peak = next((line for line in file if line.startswith("VmHWM")), None)
    return int(peak.split()[1]) / 1024 if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--d", type=int, default=384)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--decay", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefix", type=int, nargs="*", default=[], help="prefixes to try beside the chosen one")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 50_000, 200_000], help="for growth")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    compare(args)
    if args.sizes:
        grow(args)


if __name__ == "__main__":
    main()
