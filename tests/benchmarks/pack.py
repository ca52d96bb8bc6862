"""Packing many annotation files: images a second, memory as their number grows, and every mask against what it states.

python -m tests.benchmarks.pack [--count 10000] [--small 1000] [--workers 2] [--check 200]
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from granary.curation.dense.masks import pixels_of

WIDTH, HEIGHT, MASKS = 800, 600, 10
SHAPES, PHOTOS = 400, 100
LIST = "a red white old wooden barn door with small window stands left of the large green tree under cloudy sky"
WORDS = LIST.split()
CHILD = """
import json, psutil, resource, sys
from granary.pipelines.command import main
from granary.pipelines.engine.units import Runner

def spent():
    living = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))
    return living + sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

def measured(self, stage, *rest):
    before = spent()
    run(self, stage, *rest)
    stages[stage.name] = spent() - before

run, stages, Runner._run = Runner._run, {}, measured
status = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"status": status, "peak": peak, "cpu": spent(), "stages": stages}))
"""


def sentence(rng: random.Random, words: int) -> str:
    """Return a sentence of about `words` words."""
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def outline(rng: random.Random, points: int = 40) -> Image.Image:
    """Return a 1-bit mask of a wavy blob, as segmentation models draw them."""
    x, y, wide, high = rng.uniform(150, 650), rng.uniform(120, 480), rng.uniform(40, 320), rng.uniform(40, 260)
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = 1 + 0.25 * np.sin(angles * rng.randint(2, 7) + rng.uniform(0, 6)) + 0.1 * np.sin(angles * 13)
    corners = np.stack([x + wide * radius * np.cos(angles), y + high * radius * np.sin(angles)], 1)
    mask = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(mask).polygon([(float(a), float(b)) for a, b in corners], fill=1)
    return mask


def shape(seed: int) -> dict:
    """Return pixels, area and bounds of one blob, as DCI writes them."""
    mask = outline(random.Random(seed))
    x0, y0, x1, y1 = mask.getbbox()
    file = io.BytesIO()
    mask.save(file, "PNG")
    return {
        "outer_mask": base64.b64encode(file.getvalue()).decode(),
        "area": int(np.asarray(mask).sum()),
        "bounds": {"topLeft": {"x": x0, "y": y0}, "bottomRight": {"x": x1, "y": y1}},
    }


def photo(seed: int) -> bytes:
    """Return a JPEG of about 90 kB."""
    tiles = np.random.default_rng(seed).integers(0, 256, (40, 54, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(tiles).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, "JPEG", quality=88)
    return file.getvalue()


def entry(number: int, pixels: dict, rng: random.Random) -> dict:
    """Return one mask as DCI writes it, its parent one of those before it."""
    return {
        "idx": number,
        **pixels,
        "requirements": [],
        "parent": rng.choice([-1, *range(number)]),
        "mask_quality": rng.choices((0, 1, 2), (8, 1, 1))[0],
        "label": rng.choice(WORDS),
        "caption": " ".join(sentence(rng, 14) for _ in range(6)),
    }


def generate(folder: pathlib.Path, count: int) -> None:
    """Write `count` annotations and images; shapes and photographs are drawn from a few hundred."""
    for name in ("annotations", "photos"):
        (folder / name).mkdir(parents=True)
    shapes, photos = [shape(seed) for seed in range(SHAPES)], [photo(seed) for seed in range(PHOTOS)]
    for number in range(count):
        rng = random.Random(number)
        entries = [entry(place, pixels, rng) for place, pixels in enumerate(rng.sample(shapes, MASKS))]
        for mask in entries:
            mask["requirements"] = [other["idx"] for other in entries if other["parent"] == mask["idx"]]
        annotation = {
            "image": f"{number:06d}.jpg",
            "short_caption": sentence(rng, 18),
            "extra_caption": " ".join(sentence(rng, 15) for _ in range(10)),
            "mask_data": {str(mask["idx"]): mask for mask in reversed(entries)},
            "mask_keys": [str(mask) for mask in reversed(range(MASKS))],
            "height": HEIGHT,
            "width": WIDTH,
        }
        (folder / "annotations" / f"{number:06d}-data.json").write_text(json.dumps(annotation))
        named = photos[number % PHOTOS] + number.to_bytes(4, "big")  # behind the end of the picture: a file of its own
        (folder / "photos" / f"{number:06d}.jpg").write_bytes(named)


def pack(folder: pathlib.Path, workers: int, *options: str) -> dict:
    """Run `granary pack` in a process of its own; returns its peak memory, processor time and wall time."""
    paths = ["--annotations", str(folder / "annotations"), "--images", str(folder / "photos")]
    words = ["pack", *paths, "--out", str(folder / "run"), "--workers", str(workers), *options]
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["status"] == 0, done.stderr
    stages = json.loads((folder / "run" / "run.json").read_text())["stages"]
    result["peak"] = max([result["peak"], *(stage["peak_mb"] / 1.048576 for stage in stages)])  # with its children
    return {**result, "wall": time.monotonic() - started}


def check(folder: pathlib.Path, files: int) -> int:
    """Compare masks of the shards with the annotations, pixel by pixel; returns how many were compared."""
    compared = 0
    for shard in sorted((folder / "run" / "dataset" / "data").glob("*.parquet")):
        for row in pq.read_table(shard, columns=["file", "masks"]).to_pylist():
            if compared >= files * MASKS:
                return compared
            stated = json.loads((folder / "annotations" / row["file"]).read_text())["mask_data"]
            assert len(row["masks"]) == len(stated)
            for mask in row["masks"]:
                compare(mask, stated[mask["key"]])
                compared += 1
    return compared


def compare(mask: dict, stated: dict) -> None:
    """Check one mask: pixels, area and bounds, exactly."""
    pixels = pixels_of(mask["size"], mask["counts"], mask["png"])
    with Image.open(io.BytesIO(base64.b64decode(stated["outer_mask"]))) as original:
        assert np.array_equal(pixels, np.asarray(original))
    corners = [stated["bounds"][name][axis] for name in ("topLeft", "bottomRight") for axis in "xy"]
    assert mask["area"] == stated["area"] == int(pixels.sum())
    assert mask["box"] == corners


def measure(count: int, workers: int, checked: int, *options: str) -> float:
    """Generate, pack and check `count` annotations; returns the peak memory in MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        generate(folder, count)
        used = pack(folder, workers, *options)
        facts = json.loads((folder / "run" / "run.json").read_text())
        seconds = sum(stage["seconds"] for stage in facts["stages"])
        print(
            f"{count:>7,} annotations: {seconds:6.1f} s of stages, {count / seconds:6.1f} images/s, "
            f"{1000 * used['cpu'] / count:5.1f} ms of processor an image, peak {used['peak']:5.0f} MiB",
            flush=True,
        )
        for stage in facts["stages"]:
            processor = 1000 * used["stages"][stage["stage"]] / count
            print(f"{'':9}{stage['stage']:<12} {stage['seconds']:7.1f} s {processor:7.2f} ms of processor an image")
        lost = facts["dead_letters"]
        assert facts["samples"] == count, facts["samples"]
        assert not lost, f"stated and decoded masks differ: {lost}"  # every mask is compared while it is packed
        print(
            f"{'':9}area and bounds of all {count * MASKS:,} masks are as stated; "
            f"{check(folder, checked):,} masks compared by pixel"
        )
        return float(used["peak"])


def main() -> None:
    """Measure a small and a large number of annotations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--small", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--check", type=int, default=200, help="files whose masks are compared pixel by pixel")
    known, options = parser.parse_known_args()
    peaks = [measure(count, known.workers, known.check, *options) for count in (known.small, known.count) if count]
    print(f"peak memory, large over small: {peaks[-1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
