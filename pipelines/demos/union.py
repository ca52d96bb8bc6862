"""Training on the union: does a classifier learn more from real and guided samples than from either baseline?

For every seed: make a long tail of labelled pictures, train a classifier on it, fill its classes up with samples of a
generator (once plain, once under the classifier's feedback), train again on the union, and compare on the same test
pictures. All arms share the architecture, the loss, the number of steps and the seed, so differences are paired.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from granary.pipelines.engine.recipe import load_recipe
from granary.pipelines.engine.units import Engine
from granary.pipelines.kinds.sample import sample
from granary.synth.feedback.recipe import SampleRecipe
from granary.training.evaluation.longtail import longtail_accuracy
from granary.training.models.classifier import Classifier, Fit, fit_classifier, predict

ARMS = ("real only", "real + plain", "real + guided")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Labelled pictures. images: (n, side, side, 3) uint8; labels: (n,) int, index in classes."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def take(self, rows: np.ndarray) -> Pictures:
        """Return some of them."""
        return Pictures(self.images[rows], self.labels[rows], self.classes)

    def and_(self, other: Pictures) -> Pictures:
        """Return the union of two sets of the same classes."""
        return Pictures(
            np.concatenate([self.images, other.images]), np.concatenate([self.labels, other.labels]), self.classes
        )

    @property
    def counts(self) -> np.ndarray:
        """The number of pictures of each class: (K,) int."""
        return np.bincount(self.labels, minlength=len(self.classes))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is compared.

    Args:
        pool: labelled pictures that the long tails are drawn from.
        test: balanced test pictures, in no pool.
        generator: folder of the diffusion model.
        out: folder for everything that is made.
        most, factor: pictures of the largest class, and how many times fewer the smallest has.
        many, few: more than `many` pictures make a class of the many, fewer than `few` one of the few.
        fit: how classifiers are trained, in all arms alike.
        width: of the classifiers.
        config: recipe of the guided arm; the plain one is the same with omega 0.
        overrides: words for both arms, for example the number of steps.
    """

    pool: Pictures
    test: Pictures
    generator: str
    out: Path
    most: int
    factor: float
    many: int
    few: int
    fit: Fit
    width: int
    config: str
    overrides: Sequence[str] = ()


def long_tail(labels: np.ndarray, classes: int, most: int, factor: float, seed: int) -> np.ndarray:
    """Return rows whose class counts fall off exponentially: most factor^(-k / (K - 1)) for the k-th class.

    Which class is the k-th, and which of its pictures stay, is drawn by the seed (Cui et al. 2019, arXiv 1901.05555).
    """
    rng = np.random.default_rng(seed)
    rows = []
    for rank, label in enumerate(rng.permutation(classes)):
        count = max(1, round(most * factor ** (-rank / (classes - 1))))
        rows.append(rng.permutation(np.flatnonzero(labels == label))[:count])
    return np.sort(np.concatenate(rows))


def run_seed(experiment: Experiment, seed: int, engine: Engine) -> dict[str, Any]:
    """Return the accuracies of each arm, in percent, and what the samples were like, for one seed."""
    folder = experiment.out / f"seed-{seed}"
    real = experiment.pool.take(
        long_tail(experiment.pool.labels, len(experiment.pool.classes), experiment.most, experiment.factor, seed)
    )
    write_folder(real, folder / "real")
    model = _fit(experiment, real, seed)
    model.save(str(folder / "classifier"))
    found: dict[str, Any] = {ARMS[0]: _accuracy(experiment, model, real)}
    for arm, words in zip(ARMS[1:], (["--guidance.omega", "0"], []), strict=True):
        facts = draw(experiment, folder, arm, words, seed, engine)
        made = read_samples(folder / arm.rpartition(" ")[2], real.classes)
        found[arm] = _accuracy(experiment, _fit(experiment, real.and_(made), seed), real)
        found[f"{arm}: samples"] = {"count": len(made.labels), **_of_samples(facts)}
    return found


def draw(
    experiment: Experiment, folder: Path, arm: str, words: Sequence[str], seed: int, engine: Engine
) -> Mapping[str, Any]:
    """Draw the samples of one arm; returns the facts of its run."""
    paths = {
        "data": folder / "real",
        "model": experiment.generator,
        "classifier": f"granary:{folder / 'classifier'}",
        "out": folder / arm.rpartition(" ")[2],
        "seed": seed,
    }
    named = [word for key, value in paths.items() for word in (f"--{key}", str(value))]
    recipe = load_recipe(SampleRecipe, experiment.config, [*named, *experiment.overrides, *words])
    return sample(recipe, engine, Console(file=io.StringIO()))


def _of_samples(facts: Mapping[str, Any]) -> dict[str, float]:
    drawn = [row for row in facts["classes"] if row["kept"]]
    total = sum(row["kept"] for row in drawn) or 1
    return {key: sum(row[key] * row["kept"] for row in drawn) / total for key in ("value", "agreed")}


def _fit(experiment: Experiment, pictures: Pictures, seed: int) -> Classifier:
    options = dataclasses.replace(experiment.fit, width=experiment.width)
    return fit_classifier(pictures.images, pictures.labels, pictures.classes, options, seed=seed)


def _accuracy(experiment: Experiment, model: Classifier, real: Pictures) -> dict[str, float]:
    test = experiment.test
    predicted = predict(model, test.images)
    return longtail_accuracy(predicted, test.labels, real.counts, experiment.many, experiment.few)


def write_folder(pictures: Pictures, folder: Path) -> None:
    """Make a folder hold the pictures as PNG files, a sub-folder for each class; those that are there already stay."""
    wanted = {
        folder / pictures.classes[label] / f"{number:06d}-{hashlib.sha256(image.tobytes()).hexdigest()[:8]}.png": image
        for number, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True))
    }
    for path in {*folder.rglob("*.png")} - wanted.keys():  # of another long tail
        path.unlink()
    for path in wanted.keys() - {*folder.rglob("*.png")}:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(wanted[path]).save(path)


def read_samples(run: Path, classes: Sequence[str]) -> Pictures:
    """Return the samples of a finished run."""
    shards = sorted((run / "dataset" / "data").glob("*.parquet"))
    rows = [row for path in shards for row in pq.read_table(path, columns=["image", "label"]).to_pylist()]
    images = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows]
    index = {name: i for i, name in enumerate(classes)}
    return Pictures(np.stack(images), np.array([index[row["label"]] for row in rows]), tuple(classes))


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; NaN for one value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def gains(results: Sequence[Mapping[str, Any]], split: str = "few") -> dict[str, tuple[float, float]]:
    """Return mean and standard error of guided minus each baseline, paired by seed, in points."""
    differences = {
        baseline: [found[ARMS[2]][split] - found[baseline][split] for found in results] for baseline in ARMS[:2]
    }
    return {name: (float(np.mean(values)), standard_error(values)) for name, values in differences.items()}


def table_of(results: Sequence[Mapping[str, Any]]) -> Table:
    """Return the accuracies of the arms, mean and standard error over the seeds."""
    table = Table("training data", "all", "many", "medium", "few", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for arm in ARMS:
        cells = []
        for split in ("all", "many", "medium", "few"):
            values = [found[arm][split] for found in results]
            error = f" ± {standard_error(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{error}")
        table.add_row(arm, *cells)
    return table


def compare(
    experiment: Experiment, seeds: Sequence[int], engine: Engine, report: Callable[[int, dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Run the seeds one after the other; calls `report` with each seed and its result."""
    results = []
    for seed in seeds:
        results.append(run_seed(experiment, seed, engine))
        report(seed, results[-1])
    return results
