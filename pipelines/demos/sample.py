"""The sampling demo: balance a long tail of handwritten digits and see what a classifier learns from it.

It trains a small diffusion model on scikit-learn's digits; then, for a few seeds, a classifier on a long tail of them,
fills the tail up with plain and with guided samples, trains again, and compares the accuracies on other digits.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from granary.curation.errors import needs
from granary.curation.store.threads import limit_threads
from granary.pipelines.demos.pictures import own_folder
from granary.pipelines.demos.union import ARMS, Experiment, Pictures, SeedResult, compare, gains, table_of
from granary.pipelines.engine.recipe import shipped
from granary.pipelines.engine.units import Engine
from granary.training.models.classifier import Fit

POOL = 1000  # digits that the model is trained on and the tails are drawn from; the other 797 test
STEPS = 1200  # of the generator
SEEDS = 3
FIT = Fit(steps=200, batch=32, loss="balanced-softmax", shift=1)


def digits() -> tuple[Pictures, Pictures]:
    """Return scikit-learn's digits, 8 x 8 pixels, as pool and test set: always the same split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.repeat(np.round(data.images * 255 / 16).astype(np.uint8)[..., None], 3, axis=3)
    everything = Pictures(images, data.target, tuple(str(digit) for digit in range(10)))
    order = np.random.default_rng(0).permutation(len(images))
    return everything.take(order[:POOL]), everything.take(order[POOL:])


def train_model(pool: Pictures, out: pathlib.Path, steps: int, console: Console) -> None:
    """Train the small diffusion model on the pool."""
    with needs("sample"):
        from granary.synth.feedback.diffusion.generator import GeneratorFit, train_generator

    def report(step: int, loss: float) -> None:
        if step % max(1, steps // 10) == 0:
            console.print(f"generator    step {step:,} of {steps:,}, loss {loss:.3f}")

    images = pool.images[..., 0]
    options = GeneratorFit(steps=steps, channels=(32, 32), lr=4e-3, ema_decay=0.99)
    train_generator(images, pool.labels.astype(np.int64), pool.classes, str(out), options, report)


def experiment(out: pathlib.Path) -> Experiment:
    """Return the comparison on digits."""
    pool, test = digits()
    return Experiment(
        pool=pool,
        test=test,
        generator=str(out / "generator"),
        out=out,
        most=20,
        factor=20,
        many=10,
        few=5,
        fit=FIT,
        width=16,
        config=shipped("sample/demo.yaml"),
    )


def demo(out: str, engine: Engine, steps: int = STEPS, seeds: int = SEEDS) -> int:
    """Run the whole loop; returns 0 when guided samples raised the criterion and the few classes gained.

    Args:
        out: folder for everything; an earlier demo in it is replaced.
        engine: where the work units run.
        steps: of the generator's training.
        seeds: long tails to balance.
    """
    console, folder = Console(highlight=False), own_folder(out)
    limit_threads(1)  # more make so small a model no faster, and its last bits depend on their number
    started, comparison = time.monotonic(), experiment(folder)
    console.print(f"Training a diffusion model on {POOL:,} handwritten digits, {steps:,} steps ...")
    train_model(comparison.pool, folder / "generator", steps, console)

    def report(seed: int, result: SeedResult) -> None:
        few = ", ".join(f"{arm} {result.accuracy[arm]['few']:.1f}" for arm in ARMS)
        console.print(f"seed {seed}       few-class accuracy: {few}", soft_wrap=True)

    results = compare(comparison, range(seeds), engine, report)
    print_results(console, results, comparison)
    console.print(f"\n{time.monotonic() - started:,.0f} s. The report: {out}/seed-0/guided/report/index.html")
    plain, guided = values(results)
    return 0 if guided > plain and gains(results)[ARMS[0]][0] > 0 else 1


def print_results(console: Console, results: Sequence[SeedResult], comparison: Experiment) -> None:
    """Print the table of accuracies and the paired gains."""
    console.print(
        f"\nAccuracy in percent on {len(comparison.test.labels):,} other pictures, mean over {len(results)} seeds"
    )
    console.print(f"(many: classes of more than {comparison.many} real pictures; few: of fewer than {comparison.few}):")
    console.print(table_of(results))
    for baseline, (mean, error) in gains(results).items():
        console.print(f"few classes: {ARMS[2]} minus {baseline}: {mean:+.1f} ± {error:.1f} points")
    plain, guided = values(results)
    console.print(f"mean criterion of the samples: plain {plain:.3f}, guided {guided:.3f}")


def values(results: Sequence[SeedResult]) -> tuple[float, float]:
    """Return the mean criterion of the plain and of the guided samples."""
    plain, guided = (float(np.mean([result.samples[arm].value for result in results])) for arm in ARMS[1:])
    return plain, guided
