"""Real + guided samples against real + plain samples and real alone: few-class accuracy over several seeds.

    python -m tests.benchmarks.union digits [--seeds 5] [--out FOLDER]     minutes: the demo with more seeds
    python -m tests.benchmarks.union fashion [--seeds 5] [--out FOLDER]    100 minutes of CPU

Options of the recipe may follow, for all arms: `--sampling.guidance_scale 1` is the model's own distribution.
The reference is the same classifier, trained as long, on real + plain samples: the same generator and seeds without
feedback. Every seed draws another long tail. Accuracies are of test pictures that neither generator nor classifier saw.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from granary.pipelines.demos import sample as sample_demo
from granary.pipelines.demos.union import ARMS, Experiment, Pictures, SeedResult, compare
from granary.pipelines.engine.recipe import shipped
from granary.pipelines.engine.units import Engine
from granary.training.models.classifier import Fit
from tests.places import SHARED

FASHION = SHARED / "fashion_mnist"
CLASSES = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of bytes: magic (0, 0, 8, dimensions), sizes as big-endian uint32, data."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def fashion(kind: str) -> Pictures:
    """Return Fashion-MNIST, training or test part, scaled down to 16 x 16 pixels."""
    files = {what: next(FASHION.glob(f"{kind}*{what}*.gz")) for what in ("images", "labels")}
    small = [Image.fromarray(image).resize((16, 16), Image.Resampling.LANCZOS) for image in idx(files["images"])]
    images = np.repeat(np.stack(small)[..., None], 3, axis=3)
    return Pictures(images, idx(files["labels"]).astype(np.int64), CLASSES)


def fashion_experiment(out: Path, steps: int) -> Experiment:
    """Return the comparison on Fashion-MNIST; trains the generator on the 20,000 pictures unless it is there."""
    from granary.synth.feedback.diffusion.generator import GeneratorFit, train_generator

    pool = fashion("train")
    generator = out / "generator"
    if not (generator / "model_index.json").exists():
        images = pool.images[..., 0]
        train_generator(images, pool.labels, CLASSES, str(generator), GeneratorFit(steps=steps))
    return Experiment(
        pool=pool,
        test=fashion("t10k"),
        generator=str(generator),
        out=out,
        most=500,
        factor=100,
        many=100,
        few=20,
        fit=Fit(steps=800, batch=64, loss="balanced-softmax", shift=1, flip=True),
        width=16,
        config=shipped("sample/fashion_mnist_lt.yaml"),
    )


def digits_experiment(out: Path, steps: int) -> Experiment:
    """Return the comparison on digits; trains the generator unless it is there."""
    experiment = sample_demo.experiment(out)
    if not (out / "generator" / "model_index.json").exists():
        sample_demo.train_model(experiment.pool, out / "generator", steps, Console(stderr=True))
    return experiment


def main(words: Sequence[str] | None = None) -> list[SeedResult]:
    """Run the comparison and print the table; finished sampling of an earlier call is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=["digits", "fashion"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of the generator's training")
    parser.add_argument("--out", default="runs/union")
    known, overrides = parser.parse_known_args(words)
    out = Path(known.out).absolute() / known.data
    out.mkdir(parents=True, exist_ok=True)
    make, steps = {
        "digits": (digits_experiment, sample_demo.STEPS),
        "fashion": (fashion_experiment, 6000),
    }[known.data]
    started, used = time.monotonic(), time.process_time()
    experiment = dataclasses.replace(make(out, known.steps or steps), overrides=overrides)
    console = Console(width=110, highlight=False)

    def report(seed: int, result: SeedResult) -> None:
        line = {arm: {split: round(value, 1) for split, value in result.accuracy[arm].items()} for arm in ARMS}
        console.print(f"seed {seed} {json.dumps(line)}", soft_wrap=True)

    results = compare(experiment, range(known.seeds), Engine(), report)
    sample_demo.print_results(console, results, experiment)
    console.print(f"{time.monotonic() - started:,.0f} s, {time.process_time() - used:,.0f} s of CPU in this process")
    return results


if __name__ == "__main__":
    main()
