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
from typing import TypedDict, cast

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from granary.curation.runs.facts import Facts
from granary.curation.store.schema import named
from granary.pipelines.demos.pictures import save_picture
from granary.pipelines.engine.recipe import load_recipe
from granary.pipelines.engine.units import Engine
from granary.pipelines.kinds.sample import sample
from granary.synth.feedback.recipe import SampleRecipe
from granary.training.evaluation.longtail import longtail_accuracy
from granary.training.models.classifier import Classifier, Fit, fit_classifier, predict

ARMS = ("real only", "real + plain", "real + guided")
SPLITS = ("all", "many", "medium", "few")


class DrawnClass(TypedDict):
    """What run.json says of a class: samples kept, mean criterion, and share that the classifier agrees with."""

    kept: int
    value: float
    agreed: float


class SampleFacts(Facts):
    """run.json of a sampling run, as far as it is read here."""

    classes: list[DrawnClass]


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of one arm: how many, and the means of the criterion and of the classifier's agreement."""

    count: int
    value: float
    agreed: float


@dataclasses.dataclass(frozen=True)
class SeedResult:
    """What one seed gave.

    Args:
        accuracy: for each arm the accuracy of each split, in percent.
        samples: of each arm that has some.
    """

    accuracy: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, Samples]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Labelled pictures.

    Args:
        images: (n, side, side, 3) uint8.
        labels: (n,) int, index in classes.
        classes: their names.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.integer]
    classes: tuple[str, ...]

    def take(self, rows: NDArray[np.integer]) -> Pictures:
        """Return some of them."""
        return Pictures(self.images[rows], self.labels[rows], self.classes)

    def and_(self, other: Pictures) -> Pictures:
        """Return the union of two sets of the same classes."""
        return Pictures(
            np.concatenate([self.images, other.images]), np.concatenate([self.labels, other.labels]), self.classes
        )

    @property
    def counts(self) -> NDArray[np.integer]:
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


def long_tail(labels: NDArray[np.integer], classes: int, most: int, factor: float, seed: int) -> NDArray[np.integer]:
    """Return rows whose class counts fall off exponentially: most factor^(-k / (K - 1)) for the k-th class.

    Which class is the k-th, and which of its pictures stay, is drawn by the seed (Cui et al. 2019, arXiv 1901.05555).

    Args:
        labels: (n,) int in [0, classes).
        classes: K, at least 2.
        most: pictures of the largest class.
        factor: how many times fewer the smallest class has.
        seed: decides which pictures stay.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for rank, label in enumerate(rng.permutation(classes)):
        count = max(1, round(most * factor ** (-rank / (classes - 1))))
        rows.append(rng.permutation(np.flatnonzero(labels == label))[:count])
    return np.sort(np.concatenate(rows))


def run_seed(experiment: Experiment, seed: int, engine: Engine) -> SeedResult:
    """Compare the arms for one seed."""
    folder, pool = experiment.out / f"seed-{seed}", experiment.pool
    real = pool.take(long_tail(pool.labels, len(pool.classes), experiment.most, experiment.factor, seed))
    write_folder(real, folder / "real")
    model = _fit(experiment, real, seed)
    model.save(str(folder / "classifier"))
    accuracy, samples = {ARMS[0]: _accuracy(experiment, model, real)}, {}
    for arm, words in zip(ARMS[1:], (["--guidance.omega", "0"], []), strict=True):
        facts = draw(experiment, folder, arm, words, seed, engine)
        drawn = read_samples(folder / arm.rpartition(" ")[2], real.classes)
        accuracy[arm] = _accuracy(experiment, _fit(experiment, real.and_(drawn), seed), real)
        samples[arm] = _described(facts["classes"], len(drawn.labels))
    return SeedResult(accuracy, samples)


def draw(
    experiment: Experiment, folder: Path, arm: str, words: Sequence[str], seed: int, engine: Engine
) -> SampleFacts:
    """Draw the samples of one arm; returns the facts of its run.

    Args:
        experiment: what is compared.
        folder: of the seed: real pictures and classifier are there.
        arm: its last word names the folder of the run.
        words: further options of the recipe.
        seed: of the run.
        engine: where the work units run.
    """
    paths = {
        "data": folder / "real",
        "model": experiment.generator,
        "classifier": f"granary:{folder / 'classifier'}",
        "out": folder / arm.rpartition(" ")[2],
        "seed": seed,
    }
    named = [word for key, value in paths.items() for word in (f"--{key}", str(value))]
    recipe = load_recipe(SampleRecipe, experiment.config, [*named, *experiment.overrides, *words])
    return cast(SampleFacts, sample(recipe, engine, Console(file=io.StringIO())))


def _described(classes: Sequence[DrawnClass], count: int) -> Samples:
    """Return the means over the samples of all classes."""
    drawn = [row for row in classes if row["kept"]]
    total = sum(row["kept"] for row in drawn) or 1
    value, agreed = (sum(row[key] * row["kept"] for row in drawn) / total for key in ("value", "agreed"))
    return Samples(count, value, agreed)


def _fit(experiment: Experiment, pictures: Pictures, seed: int) -> Classifier:
    options = dataclasses.replace(experiment.fit, width=experiment.width)
    return fit_classifier(pictures.images, pictures.labels, pictures.classes, options, seed=seed)


def _accuracy(experiment: Experiment, model: Classifier, real: Pictures) -> dict[str, float]:
    test = experiment.test
    predicted = predict(model, test.images)
    return longtail_accuracy(predicted, test.labels, real.counts, experiment.many, experiment.few)


def write_folder(pictures: Pictures, folder: Path) -> None:
    """Make a folder hold the pictures as PNG files, a sub-folder for each class; those that are there already stay."""
    images = {
        folder / pictures.classes[label] / f"{number:06d}-{hashlib.sha256(image.tobytes()).hexdigest()[:8]}.png": image
        for number, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True))
    }
    for path in {*folder.rglob("*.png")} - images.keys():  # of another long tail
        path.unlink()
    for path in images.keys() - {*folder.rglob("*.png")}:
        save_picture(path, Image.fromarray(images[path]))


def read_samples(run: Path, classes: Sequence[str]) -> Pictures:
    """Return the samples of a finished run."""
    shards = sorted((run / "dataset" / "data").glob("*.parquet"))
    tables = (named(pq.read_table(path, columns=["image", "label"])) for path in shards)
    rows = [row for table in tables for row in table.to_pylist()]
    images = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows]
    index = {name: i for i, name in enumerate(classes)}
    return Pictures(np.stack(images), np.array([index[row["label"]] for row in rows]), tuple(classes))


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; NaN for one value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def gains(results: Sequence[SeedResult], split: str = "few") -> dict[str, tuple[float, float]]:
    """Return mean and standard error of guided minus each baseline, paired by seed, in points."""
    differences = {
        baseline: [result.accuracy[ARMS[2]][split] - result.accuracy[baseline][split] for result in results]
        for baseline in ARMS[:2]
    }
    return {name: (float(np.mean(values)), standard_error(values)) for name, values in differences.items()}


def table_of(results: Sequence[SeedResult]) -> Table:
    """Return the accuracies of the arms, mean and standard error over the seeds."""
    table = Table("training data", *SPLITS, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for arm in ARMS:
        cells = []
        for split in SPLITS:
            values = [result.accuracy[arm][split] for result in results]
            error = f" ± {standard_error(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{error}")
        table.add_row(arm, *cells)
    return table


def compare(
    experiment: Experiment, seeds: Sequence[int], engine: Engine, report: Callable[[int, SeedResult], None]
) -> list[SeedResult]:
    """Run the seeds one after the other.

    Args:
        experiment: what is compared.
        seeds: of the long tails and of all that is drawn.
        engine: where the work units run.
        report: called with each seed and its result.
    """
    results = []
    for seed in seeds:
        results.append(run_seed(experiment, seed, engine))
        report(seed, results[-1])
    return results
