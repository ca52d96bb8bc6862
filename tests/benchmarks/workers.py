"""Worker threads against worker processes, one against several, stage by stage: why the defaults are what they are.

python -m tests.benchmarks.workers [--photos 2000] [--vectors 60000] [--rounds 3] [--workers 2]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from granary.curation.encoders import load_encoder
from granary.curation.recipe import CurateRecipe
from granary.curation.runs.run import Output, Run, Stage, Unit
from granary.curation.runs.vectors import to_column
from granary.curation.steps.embed import FACTS
from granary.pipelines.engine.profiles import load_profile
from granary.pipelines.engine.progress import Progress
from granary.pipelines.engine.stages import Stages
from granary.pipelines.engine.units import Engine, Runner
from granary.pipelines.kinds.curate import Curation
from granary.pipelines.kinds.curate_reading import Reading, prepare
from tests.benchmarks.pipeline import write_photos

ROWS = 20_000  # vectors in one part file
MEASURED = ("pool", "join", "shards")


class Measured(Runner):
    """Runs the measured stages with the engine it is given, and all others with the default."""

    def _run(self, stage: Stage, missing: list[Unit], combine: Any) -> None:
        chosen = self.engine
        self.engine = chosen if stage.name in MEASURED else Engine()
        super()._run(stage, missing, combine)
        self.engine = chosen


def engines(workers: int) -> dict[str, Engine]:
    """Return what is compared, by name."""
    processes = load_profile("processes")
    return {
        "1 thread": Engine(workers=1),
        f"{workers} threads": Engine(workers=workers),
        "1 process": Engine([*processes, "--direct_num_workers=1"], 1),
        f"{workers} processes": Engine(processes, workers),
    }


@dataclasses.dataclass(frozen=True)
class WriteVectors:
    """The job of `write_vectors`: number of the part, and length of a vector."""

    part: int
    dimension: int


def write_vectors(run: Run, job: WriteVectors, output: Output) -> None:
    """Write embedded rows as the first stage leaves them: noise with a power-law spectrum, every fifth row twice."""
    rng = np.random.default_rng(job.part)
    rows = rng.standard_normal((ROWS, job.dimension), np.float32)
    rows *= 1 / np.sqrt(1 + np.arange(job.dimension, dtype=np.float32))
    rows[::5] = rows[1::5] + 0.01 * rows[::5]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = [f"{job.part:08x}{row:024x}" for row in range(ROWS)]
    facts = [{"uri": one, "id": one, "sha256": one * 2, "width": 9, "height": 9, "status": "ok"} for one in ids]
    output.write(pa.Table.from_pylist(facts, FACTS).append_column("embedding", to_column(rows)))


def child(root: pathlib.Path, vectors: int, name: str, workers: int) -> None:
    """Run the stages with one engine and print their seconds, and the processor seconds and memory of it all."""
    engine, quiet = engines(workers)[name], Progress(Console(quiet=True))
    asked = {"pool": str(root / "pool"), "out": str(root / "photos"), "shards": {"rows": 250}}
    prepared = prepare(CurateRecipe.model_validate(asked))
    photos = Stages(Measured(Run(prepared.recipe.out, prepared.recipe.sources), engine, quiet))
    Curation(Reading(photos, prepared)).run()
    joined = Stages(Measured(Run(str(root / "vectors")), engine, quiet))
    dimension = load_encoder("builtin:copy").dimension
    joined.parallel("pool", write_vectors, [WriteVectors(part, dimension) for part in range(vectors // ROWS)], [])
    Curation(Reading(joined, prepared)).deduplicate()
    seconds = {row["stage"]: row["seconds"] for row in photos.runner.timings if row["stage"] in ("pool", "shards")}
    seconds["join"] = next(row["seconds"] for row in joined.runner.timings if row["stage"] == "join")
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in spent)
    print(json.dumps({**seconds, "cpu": cpu, "mib": sum(usage.ru_maxrss for usage in spent) / 1024}))


def measure(photos: int, vectors: int, rounds: int, workers: int) -> None:
    """Print the median seconds of each stage with each engine, round by round so that all meet the same neighbours."""
    found: dict[str, list[dict]] = {name: [] for name in engines(workers)}
    with tempfile.TemporaryDirectory() as folder:
        pool = pathlib.Path(folder, "pool")
        write_photos(pool, photos)
        for _ in range(rounds):
            for name in found:
                with tempfile.TemporaryDirectory() as scratch:
                    os.symlink(pool, pathlib.Path(scratch, "pool"))
                    words = ["--child", name, "--root", scratch, "--vectors", str(vectors), "--workers", str(workers)]
                    call = [sys.executable, "-m", "tests.benchmarks.workers", *words]
                    done = subprocess.run(call, capture_output=True, text=True, check=True)
                    found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{photos:,} photographs of 500 x 375, {vectors:,} vectors in blocks of 32,768; medians of {rounds} rounds")
    print(f"{'':14}{'read, decode, embed':>22}{'join':>10}{'shards':>10}{'processor':>12}{'peak memory':>14}")
    for name, runs in found.items():
        pool_s, join, shards, cpu, mib = (
            statistics.median(run[key] for run in runs) for key in ("pool", "join", "shards", "cpu", "mib")
        )
        rate = f"{pool_s:.1f} s {photos / pool_s:,.0f}/s"
        print(f"{name:14}{rate:>22}{join:>8.1f} s{shards:>8.1f} s{cpu:>10.1f} s{mib:>10,.0f} MiB")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--vectors", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(pathlib.Path(options.root), options.vectors, options.child, options.workers)
    else:
        measure(options.photos, options.vectors, options.rounds, options.workers)


if __name__ == "__main__":
    main()
