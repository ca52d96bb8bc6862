"""How well n points of a mask's outline give the mask back: every sampler on masks of DAVIS and of BSDS500.

    python -m tests.benchmarks.contours [--points 8,16,24,32]

Masks are those of every 15th frame of each sequence of ../shared/data/video_frames_dev.zip, and the regions of 1,000
pixels or more of one person's segmentation of every fifth photo of segments_dev.zip. A mask is compared, whole, with
the polygon of its largest part; IoU is the mean over masks, in percent. `cv2` is OpenCV's approxPolyDP, its tolerance
bisected.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from granary.training.data.contours import SAMPLERS, Indices, Mask, Points, filled, outlines
from granary.training.evaluation.davis import region_similarity
from granary.training.evaluation.videos import Videos
from tests.benchmarks.cells import bar
from tests.places import SHARED

Sampler = Callable[[Points, int], Indices | Points]
Table = dict[tuple[str, str, int], float]  # set, sampler, n -> IoU in percent
STEP, PHOTOS, PIXELS, LEAD = 15, 5, 1000, 1.5
BARS = (16, 24, 32)


def davis() -> Iterator[Mask]:
    """Yield the mask of every 15th frame of each sequence that is not empty."""
    videos = Videos(str(SHARED / "video_frames_dev.zip"))
    for video in videos.sequences:
        for frame in video.frames[::STEP]:
            mask = videos.mask(video.masks[frame]) > 0
            if mask.any():
                yield mask


def bsds() -> Iterator[Mask]:
    """Yield the large regions of the first segmentation of every fifth photo."""
    with zipfile.ZipFile(SHARED / "segments_dev.zip") as archive:
        for line in archive.read("manifest.jsonl").decode().splitlines()[::PHOTOS]:
            with Image.open(io.BytesIO(archive.read(json.loads(line)["segmentations"][0]["file"]))) as image:
                regions = np.array(image)
            for number in np.unique(regions):
                if (regions == number).sum() >= PIXELS:
                    yield regions == number


def opencv(points: Points, n: int) -> Points:
    """Return at most n points by approxPolyDP with the smallest of 30 bisected tolerances that gives so few."""
    import cv2

    ring, best = points.astype(np.int32).reshape(-1, 1, 2), points[:1]
    low, high = 0.0, float(np.ptp(points, axis=0).max()) + 1
    for _ in range(30):
        middle = (low + high) / 2
        polygon = cv2.approxPolyDP(ring, middle, True).reshape(-1, 2)
        low, high, best = (middle, high, best) if len(polygon) > n else (low, middle, polygon.astype(float))
    return best


def measured(masks: list[Mask], largest: list[Points], sampler: Sampler, n: int) -> float:
    """Return the mean IoU, in percent, of masks with the polygons that n points of their largest parts make."""
    ious = []
    for mask, outline in zip(masks, largest, strict=True):
        kept = sampler(outline, n)
        points = outline[kept] if kept.ndim == 1 else kept
        ious.append(region_similarity(filled(points, *mask.shape), mask))
    return 100 * float(np.mean(ious))


def report(table: Table, counts: list[int]) -> None:
    """Print the table, a line for each sampler, and whether adaptive sampling leads as it should."""
    for source in dict.fromkeys(key[0] for key in table):
        print(f"\n{source:>16}" + "".join(f"{f'n {n}':>8}" for n in counts))
        for sampler in dict.fromkeys(key[1] for key in table):
            print(f"{sampler:>16}" + "".join(f"{table[source, sampler, n]:>8.1f}" for n in counts))
        for n in sorted(set(counts) & set(BARS)):
            lead = table[source, "adaptive", n] - table[source, "uniform", n]
            bar(f"{source}, n {n}: adaptive is {LEAD} points of IoU above uniform, {lead:.1f}", lead >= LEAD)


def main() -> None:
    """Measure every sampler."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", default="8,16,24,32")
    counts = [int(word) for word in parser.parse_args().points.split(",")]
    sets = {"DAVIS": list(davis()), "BSDS500": list(bsds())}
    print(", ".join(f"{len(masks)} masks of {name}" for name, masks in sets.items()))
    samplers: dict[str, Sampler] = {**SAMPLERS, "cv2": opencv}
    largest = {name: [outlines(mask)[0] for mask in masks] for name, masks in sets.items()}
    table = {
        (source, name, n): measured(masks, largest[source], sampler, n)
        for source, masks in sets.items()
        for name, sampler in samplers.items()
        for n in counts
    }
    report(table, counts)


if __name__ == "__main__":
    main()
