"""The training demo: a run in miniature that is stopped and goes on, and the real one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pools
import pytest

from granary.curation.errors import UserError
from granary.pipelines import command
from granary.pipelines.demos import train as train_demo
from granary.pipelines.demos.comparison import Result
from granary.pipelines.demos.digits import SIDE, Sizes
from granary.pipelines.engine.recipe import load_recipe, shipped
from granary.pipelines.engine.units import Engine, Runner
from granary.training.data.shards import open_dataset
from granary.training.recipe import TrainRecipe
from granary.training.run import loop

SMALL = Sizes(labelled=60, seeds=4, digits=40, tiles=45, copied=4, copies=5, leaks=3)
WORDS = ("--steps", "6", "--batch", "16", "--workers", "0")


def test_the_recipe_is_valid_and_trains_alone() -> None:
    recipe = load_recipe(TrainRecipe, shipped("demo/simclr.yaml"), ["--data", "RUN", "--out", "TRAIN"])
    assert recipe.model.img_size == SIDE


def test_a_folder_that_is_not_the_demos_is_refused_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").touch()
    assert command.main(["demo", "train", "--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match="not the demo's"):
        train_demo.prepared(str(tmp_path), SMALL, ())


def test_no_seeds_are_refused_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["demo", "train", "--seeds", "0", "--out", str(tmp_path / "demo")]) == 2
    assert "--seeds" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_the_demo_stops_when_asked_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, steps = loop.TrainingSession._update, []

    def asking(self: Any, step: int) -> None:
        original(self, step)
        steps.append((Path(self.recipe.out).name, step))
        if len(steps) == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.TrainingSession, "_update", asking)
    monkeypatch.setattr(Runner, "_run", pools.run_in_a_loop)
    out = tmp_path / "demo"

    def run(seeds: int) -> int:
        return train_demo.demo(str(out), Engine(workers=1), 3, seeds, SMALL, WORDS)

    assert run(1) == 130
    assert not (out / "seed-3" / "results.json").exists()
    assert steps[-1][0] == "deduplicated"
    assert run(1) == 0
    once = [(name, step) for name in train_demo.SELECTIONS for step in range(6)]
    assert steps == once  # none twice
    result = Result.read(out / "seed-3" / "results.json")
    assert list(result.scores) == ["raw pixels", "random weights", *train_demo.SELECTIONS]
    assert result.pictures == 6 * 16
    for name, kinds in result.kept.items():
        assert sum(kinds.values()) == open_dataset(str(out / "seed-3" / "runs" / name)).count
    assert result.kept["pool"] == {"digits": 40, "tiles": 45, "copies": 20, "leaks": 3}
    assert "leaks" not in result.kept["deduplicated"]
    assert result.kept["curated"].get("tiles", 0) < result.kept["deduplicated"]["tiles"]

    assert run(2) == 0  # one seed more; the first is there
    assert steps == 2 * once
    printed = capsys.readouterr().out.splitlines()
    for row in (*train_demo.BASELINES, *train_demo.SELECTIONS):
        assert [line.count("±") for line in printed if line.startswith(f"{row} ")] == [0, 2]
    assert [line[:7] for line in printed if line.startswith("2 seeds")] == ["2 seeds"]


def test_a_demo_of_other_arguments_is_made_anew(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    for words, kept in (((), False), ((), True), (("--steps", "7"), False)):
        train_demo.prepared(str(out), SMALL, words)
        assert (out / "kept").exists() == kept
        (out / "kept").touch()


@pytest.mark.slow
def test_curated_wins_with_every_seed(tmp_path: Path) -> None:
    assert train_demo.demo(str(tmp_path / "demo"), Engine(), seeds=2) == 0
    for seed in (0, 1):
        scores = Result.read(tmp_path / "demo" / f"seed-{seed}" / "results.json").scores
        curated = scores.pop("curated")
        for score in ("knn", "linear"):
            assert curated[score] > max(other[score] for other in scores.values()) + 0.05
