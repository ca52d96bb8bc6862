"""The comparison on the union of real and synthetic pictures, the demo, and the shipped recipes."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import places
import pools
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from granary.curation.errors import UserError
from granary.pipelines.demos import sample as sample_demo
from granary.pipelines.demos.union import (
    ARMS,
    Experiment,
    Pictures,
    SeedResult,
    compare,
    gains,
    long_tail,
    read_samples,
    standard_error,
    table_of,
    write_folder,
)
from granary.pipelines.engine.recipe import load_recipe
from granary.pipelines.engine.units import Engine, Runner
from granary.pipelines.kinds.sample import sample
from granary.synth.feedback.diffusion.generator import GeneratorFit, train_generator
from granary.synth.feedback.recipe import SampleRecipe
from granary.training.models.classifier import Fit, fit_classifier

CONFIGS = sorted((places.CONFIGS / "sample").glob("*.yaml"))
PATHS = ["--data", "d", "--model", "m", "--classifier", "c", "--out", "o"]


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_alone_and_with_other_paths(path: Path) -> None:
    assert load_recipe(SampleRecipe, str(path), []).name
    assert load_recipe(SampleRecipe, str(path), PATHS).model == "m"


def test_the_recipes_asked_for_are_shipped() -> None:
    assert {path.stem for path in CONFIGS} >= {"demo", "fashion_mnist_lt", "imagenet_lt", "nicopp"}


def test_the_recipe_of_the_paper_says_what_was_confirmed() -> None:
    recipe = load_recipe(SampleRecipe, "configs/sample/imagenet_lt.yaml", [])
    feedback = recipe.guidance
    assert (recipe.plan.fill, recipe.sampling.steps, recipe.sampling.guidance_scale) == (1300, 30, 5)
    assert (feedback.criterion, feedback.omega, feedback.rule, feedback.every) == ("entropy", 0.03, "normalised", 5)


# -- the long tail and the table -------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(20, 100), st.integers(1, 20))
def test_a_long_tail_falls_off_exponentially(seed: int, most: int, factor: int) -> None:
    labels = np.repeat(np.arange(5), 100)
    counts = np.sort(np.bincount(labels[long_tail(labels, 5, most, factor, seed)], minlength=5))[::-1]
    assert counts.tolist() == [max(1, round(most * factor ** (-k / 4))) for k in range(5)]


def test_a_long_tail_is_drawn_by_its_seed() -> None:
    labels = np.repeat(np.arange(5), 100)
    rows = [long_tail(labels, 5, 50, 10, seed).tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    assert len(set(rows[0])) == len(rows[0])


def test_a_folder_holds_the_pictures_of_this_tail_and_no_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = Pictures(rng.integers(0, 256, (6, 8, 8, 3), np.uint8), np.array([0, 0, 0, 1, 1, 1]), ("a", "b"))
    for rows in ([0, 1, 2, 3], [0, 1, 3, 4, 5]):
        write_folder(pictures.take(np.array(rows)), tmp_path)
    found = {path: np.asarray(Image.open(path)).tobytes() for path in tmp_path.rglob("*.png")}
    assert set(found.values()) == {pictures.images[row].tobytes() for row in rows}
    assert sorted(path.parent.name for path in found) == ["a", "a", "b", "b", "b"]
    stamps = {path: path.stat().st_mtime_ns for path in found}
    write_folder(pictures.take(np.array(rows)), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == stamps  # so that a run is resumed


def test_standard_errors_and_paired_gains_by_hand() -> None:
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)
    assert math.isnan(standard_error([1.0]))
    rest = {"all": 1.0, "many": 1.0, "medium": 1.0}
    results = [
        SeedResult({arm: {**rest, "few": few} for arm, few in zip(ARMS, values, strict=True)}, {})
        for values in ((50.0, 60.0, 64.0), (40.0, 58.0, 60.0))
    ]
    assert gains(results) == {"real only": (17.0, pytest.approx(3.0)), "real + plain": (3.0, pytest.approx(1.0))}
    console = Console(file=io.StringIO(), width=100)
    console.print(table_of(results))
    assert "45.0 ± 5.0" in console.file.getvalue()  # type: ignore[attr-defined]


def test_demo_digits_are_split_once_and_for_all() -> None:
    pool, test = sample_demo.digits()
    both = np.concatenate([pool.images, test.images]).reshape(1797, -1)
    assert len(pool.labels) == 1000
    assert pool.images.dtype == np.uint8
    assert pool.images.max() == 255
    known = {row.tobytes() for row in both[:1000]}
    assert not any(row.tobytes() in known for row in both[1000:])


def test_the_demo_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not the demo's"):
        sample_demo.demo(str(tmp_path), Engine(workers=1))
    assert (tmp_path / "mine.txt").exists()


# -- with a real model -----------------------------------------------------------------------------------------------


def three_digits(pictures: Pictures) -> Pictures:
    kept = pictures.labels < 3
    return Pictures(pictures.images[kept], pictures.labels[kept], ("zero", "one", "two"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A barely trained generator and classifier of three digits, and pictures of them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    pool = three_digits(sample_demo.digits()[0])
    quick = GeneratorFit(steps=3, channels=(16, 16))
    train_generator(pool.images[..., 0], pool.labels, pool.classes, str(folder / "model"), quick)
    options = Fit(steps=30, batch=32, width=8)
    fit_classifier(pool.images, pool.labels, pool.classes, options, seed=0).save(str(folder / "classifier"))
    rows = np.concatenate([np.flatnonzero(pool.labels == k)[: 6 - 2 * k] for k in range(3)])
    write_folder(pool.take(rows), folder / "data")
    return folder


def run(models: Path, out: Path, beam: bool = False, **options: object) -> dict[str, Any]:
    chosen = {
        "data": models / "data",
        "model": models / "model",
        "classifier": f"granary:{models / 'classifier'}",
        "out": out,
        "unit_rows": 3,
        "pairs": 2,
        "sampling.steps": 4,
        "guidance.every": 2,
        **{key.replace("guidance_", "guidance."): value for key, value in options.items()},
    }
    words = [word for key, value in chosen.items() for word in (f"--{key}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        if not beam:
            patch.setattr(Runner, "_run", pools.run_in_a_loop)
        return sample(load_recipe(SampleRecipe, None, words), Engine(workers=2), Console(file=io.StringIO()))


@pytest.mark.parametrize("criterion", ["loss", "entropy", "hardness"])
def test_feedback_raises_the_criterion_of_the_same_seeds(models: Path, tmp_path: Path, criterion: str) -> None:
    facts = run(models, tmp_path / "out", guidance_criterion=criterion, guidance_omega=0.2, pairs=6)
    assert facts["pairs"]["count"] == 6
    assert facts["pairs"]["guided"] > facts["pairs"]["unguided"]
    assert len(facts["trace"]["guided"]) == len(facts["trace"]["unguided"]) == 3  # two feedback steps and the end
    made = read_samples(tmp_path / "out", ["zero", "one", "two"])
    assert made.images.shape == (6, 8, 8, 3)
    assert made.counts.tolist() == [0, 2, 4]


def test_no_feedback_gives_the_pictures_of_the_plain_pipeline(models: Path, tmp_path: Path) -> None:
    run(models, tmp_path / "out", guidance_omega=0, pairs=6)
    tables = [pools.Run(str(tmp_path / "out")).table(stage) for stage in ("draw", "unguided")]
    drawn, unguided = ({row["row_id"]: row["image"] for row in table} for table in tables)
    assert len(drawn) == 6
    assert drawn == unguided


def test_threads_give_the_bytes_of_a_loop(models: Path, tmp_path: Path) -> None:
    for name in ("loop", "beam"):
        run(models, tmp_path / name, beam=name == "beam", guidance_criterion="hardness", guidance_omega=0.2)
    shards = [next((tmp_path / name / "dataset" / "data").glob("*.parquet")).read_bytes() for name in ("loop", "beam")]
    assert shards[0] == shards[1]


def test_pictures_of_any_size_are_data(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name, side in (("zero", 3), ("one", 40), ("two", 9)):
        (folder / name).mkdir(parents=True)
        Image.effect_noise((side, side), 60).save(folder / name / "0.png")
    facts = run(models, tmp_path / "out", data=folder, **{"plan.fill": 2, "guidance.criterion": "hardness"})
    assert facts["samples"] == 3


def test_the_comparison_runs_all_arms_on_the_same_tail(models: Path, tmp_path: Path) -> None:
    pool, test = (three_digits(pictures) for pictures in sample_demo.digits())
    experiment = Experiment(
        pool=pool,
        test=test.take(np.arange(60)),
        generator=str(models / "model"),
        out=tmp_path,
        most=6,
        factor=3,
        many=5,
        few=3,
        fit=Fit(steps=8, batch=8, loss="balanced-softmax"),
        width=8,
        config="configs/sample/demo.yaml",
        overrides=["--plan.fill", "7", "--sampling.steps", "6", "--guidance.every", "1", "--pairs", "2"],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_run", pools.run_in_a_loop)
        [result] = compare(experiment, [3], Engine(workers=1), lambda *_: None)
    assert all(result.accuracy[arm].keys() == {"all", "many", "medium", "few"} for arm in ARMS)
    for arm in ("plain", "guided"):
        run = pools.Run(str(tmp_path / "seed-3" / arm))
        assert result.samples[f"real + {arm}"].count == len(run.samples) == 1 + 4 + 5  # the tail has 6, 3 and 2
        assert (max(row["omega"] for row in run.samples) > 0) == (arm == "guided")
    runs = [pools.Run(str(tmp_path / "seed-3" / arm)) for arm in ("plain", "guided")]
    assert [row["seed"] for row in runs[0].samples] == [row["seed"] for row in runs[1].samples]
    values = [result.samples[f"real + {arm}"].value for arm in ("plain", "guided")]
    assert values[1] > values[0]


@pytest.mark.slow
def test_the_demo_ends_well(tmp_path: Path) -> None:
    assert sample_demo.demo(str(tmp_path / "demo"), Engine(), steps=400, seeds=1) == 0
    assert (tmp_path / "demo" / "seed-0" / "guided" / "report" / "index.html").exists()
