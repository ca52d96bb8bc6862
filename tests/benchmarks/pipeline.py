"""Memory of a curation as the pool grows, and what the pipeline costs over a bare decode-and-embed loop.

python -m tests.benchmarks.pipeline [memory | overhead] [--small 10000] [--large 100000] [--photos 10000]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from granary.curation.encoders import load_encoder
from granary.curation.images.decode import decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.store.threads import limit_threads

# What the first stage would import is imported before: the start of a command is measured by `startup`.
CHILD = """
import json, resource, sys
import apache_beam, torch
import apache_beam.runners.portability.fn_api_runner, apache_beam.runners.worker.sdk_worker
from granary.pipelines.command import main
status = main(sys.argv[1:])
print(json.dumps({"status": status, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def write_noise(folder: pathlib.Path, count: int, side: int = 64) -> None:
    """Write `count` distinct JPEG files of coloured 1/f noise, about 3 kB each."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    amplitude = 1 / np.maximum(frequency, 1 / side)
    for number in range(count):
        rng = np.random.default_rng(number)
        phases = np.exp(2j * np.pi * rng.random((3, side, side // 2 + 1)))
        pixels = np.fft.irfft2(phases * amplitude, (side, side))
        pixels = 128 + 40 * (pixels - pixels.mean()) / pixels.std() + rng.normal(0, 20, (3, 1, 1))
        target = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0)).save(target, quality=85)


def write_photos(folder: pathlib.Path, count: int) -> None:
    """Write `count` JPEG files of 500 x 375 pixels cut from scikit-learn's photographs, about 50 kB each."""
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        photo = photos[number % 2].rotate(float(rng.uniform(-10, 10)), Image.Resampling.BILINEAR)
        left, top = int(rng.integers(0, photo.width - 500)), int(rng.integers(0, photo.height - 375))
        photo.crop((left, top, left + 500, top + 375)).save(folder / f"{number:05d}.jpg", quality=90)


def curate(pool: pathlib.Path, out: pathlib.Path, workers: int, *options: str) -> tuple[dict, float]:
    """Run `granary curate` in a process of its own; returns run.json and the peak memory in MiB."""
    words = ["curate", "--pool", str(pool), "--out", str(out), "--workers", str(workers), *options]
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["status"] == 0, done.stderr
    return json.loads((out / "run.json").read_text()), result["peak"]


def memory(small: int, large: int, workers: int) -> None:
    """Print the peak memory of two pools and their ratio."""
    peaks = []
    for count in (small, large):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            write_noise(root / "pool", count)
            write_noise(root / "seeds", 20)
            started = time.monotonic()
            facts, peak = curate(
                root / "pool",
                root / "run",
                workers,
                "--seeds",
                str(root / "seeds"),
                "--retrieval.k",
                str(max(1, count // 40)),
            )
            seconds = time.monotonic() - started
            peaks.append(peak)
            print(
                f"{count:>8,} images: {seconds:7.1f} s, {count / seconds:7.0f} images/s, peak {peak:7.0f} MiB, "
                f"{facts['samples']:,} samples",
                flush=True,
            )
            for row in facts["stages"]:
                rate = row["rows"] / row["seconds"]
                print(f"{'':11}{row['stage']:<12} {row['seconds']:8.1f} s  {rate:10.1f} {row['noun']}/s")
    print(f"peak memory, {large:,} over {small:,} images: {peaks[1] / peaks[0]:.2f} (must stay at or below 1.5)")


def bare_loop(paths: list[str], threads: int, batch: int = 64) -> float:
    """Return the images/s of reading, hashing, decoding and embedding without a pipeline."""
    encoder, limits = load_encoder("builtin:copy"), DecodeLimits()

    def work(chunk: list[str]) -> int:
        limit_threads(1)
        for start in range(0, len(chunk), batch):
            pictures = []
            for path in chunk[start : start + batch]:
                data = pathlib.Path(path).read_bytes()
                hashlib.sha256(data).hexdigest()
                pictures.append(decode(data, limits, encoder.side).image)
            encoder.embed(pictures)
        return len(chunk)

    chunks = [paths[start : start + 512] for start in range(0, len(paths), 512)]
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(work, chunks)) == len(paths)
    return len(paths) / (time.monotonic() - started)


def overhead(photos: int, workers: int, repeats: int = 3) -> None:
    """Print the rate of the first stage over that of the bare loop, pair by pair."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_photos(root / "pool", photos)
        paths = sorted(str(path) for path in (root / "pool").iterdir())
        bare_loop(paths[:512], workers)
        ratios = []
        for repeat in range(repeats):
            bare = bare_loop(paths, workers)
            facts, _ = curate(root / "pool", root / f"run{repeat}", workers)
            stage = next(row for row in facts["stages"] if row["stage"] == "pool")
            rate = stage["rows"] / stage["seconds"]
            ratios.append(rate / bare)
            print(
                f"bare loop {bare:7.0f} images/s, embed stage {rate:7.0f} images/s, ratio {ratios[-1]:.2f}",
                flush=True,
            )
        print(
            f"embed stage over bare loop, median of {repeats}: {statistics.median(ratios):.2f} (must be at least 0.90)"
        )


def main() -> None:
    """Run the benchmarks named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("memory", "overhead"))
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.what in (None, "overhead"):
        overhead(options.photos, options.workers)
    if options.what in (None, "memory"):
        memory(options.small, options.large, options.workers)


if __name__ == "__main__":
    main()
