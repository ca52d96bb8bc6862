"""Facts about validation: what is measured, that it changes nothing, and which checkpoint it keeps."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Value
from safetensors.torch import load_file
from tiny_shards import sample, shapes, write_shards
from torch import nn

from granary.curation.errors import UserError
from granary.training import methods
from granary.training.data.loader import batches
from granary.training.method import Moment
from granary.training.models.checkpoint import chosen, step_folder, usable
from granary.training.models.registry import load_model
from granary.training.recipe import TrainRecipe
from granary.training.run import loop
from granary.training.run.devices import make_fabric
from granary.training.run.loop import TrainingSession, train
from granary.training.run.validation import evaluating

SPLIT = {"split": Value("string")}
SIMPLE: dict[str, Any] = {
    "method": "toy",
    "model": {"width": 16, "depth": 1, "heads": 2, "img_size": 16, "patch_size": 4, "drop_path": 0.3},
    "steps": 12,
    "batch": 8,
    "split": "train",
    "workers": 0,
    "optimiser": {"lr": 3e-3},
    "logs": {"every": 1, "tensorboard": False},
    "checkpoints": {"every": 4},
    "device": {"accelerator": "cpu", "threads": 1},
}


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "toy", "toy_method:Toy")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [row | {"split": "valid" if number % 3 == 0 else "train"} for number, row in enumerate(shapes(60, 16))]
    return str(write_shards(tmp_path_factory.mktemp("run"), rows, group=8, extra=SPLIT))


def recipe_of(run: str, out: Path, **changes: Any) -> TrainRecipe:
    return TrainRecipe.model_validate({**SIMPLE, "data": run, "out": str(out), **changes})


def curve(out: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / f"{name}.csv").read_text())))


def final(out: Path) -> dict[str, torch.Tensor]:
    return load_file(next(iter(usable(str(out)))) + "/training.safetensors")


def losses(out: Path) -> dict[int, float]:
    return {int(row["step"]): float(row["loss"]) for row in curve(out, "validation")}


def test_measuring_changes_nothing_of_the_training(run: str, tmp_path: Path) -> None:
    train(recipe_of(run, tmp_path / "plain"))
    train(recipe_of(run, tmp_path / "measured", validation={"split": "valid", "every": 3}))
    one, two = final(tmp_path / "plain"), final(tmp_path / "measured")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert curve(tmp_path / "plain", "metrics") == curve(tmp_path / "measured", "metrics")
    assert list(losses(tmp_path / "measured")) == [3, 6, 9, 12]
    assert not (tmp_path / "plain" / "validation.csv").exists()


def test_the_loss_is_the_mean_over_batches_of_the_split_in_evaluation_mode(run: str, tmp_path: Path) -> None:
    """20 rows in batches of at most 8: three of 6, whose losses the method gives without dropped branches."""
    recipe = recipe_of(run, tmp_path / "out", validation="valid", streams=2)
    assert recipe.validation.keep_best
    session = TrainingSession(make_fabric(recipe.device), recipe, None)
    assert session.validation is not None
    assert session.validation.every == 5  # of 40 rows
    plan = session.validation.plan
    assert (session.validation.count, plan.batch) == (3, 6)
    session.method.eval()
    with torch.no_grad():
        parts = list(batches(plan, range(3), workers=0))
        terms = [session.method(part, Moment(n, 3, 0))["loss"].item() for n, part in enumerate(parts)]
    session.method.train()
    valid = {row["id"] for number, row in enumerate(shapes(60, 16)) if number % 3 == 0}
    assert len({name for part in parts for name in part["id"]} & valid) == 18
    assert session.validation.measure(session.module, lambda dead: None)["loss"] == pytest.approx(sum(terms) / 3)
    assert session.method.training


def test_the_checkpoint_with_the_lowest_loss_stays_and_is_the_model(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve_of = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(loop.Validation, "measure", lambda *_: {"loss": next(curve_of)})
    validation = {"split": "valid", "every": 2, "keep_best": True}
    facts = train(recipe_of(run, tmp_path / "out", validation=validation))
    out = str(tmp_path / "out")
    assert facts["best"] == {"step": 4, "loss": 1.0}
    assert facts["checkpoint"] == chosen(out) == step_folder(out, 4)
    assert [int(folder[-9:]) for folder in usable(out)] == [12, 8, 4]
    model = load_model(out).state_dict()
    best = load_file(step_folder(out, 4) + "/training.safetensors")
    assert all(torch.equal(model[name], best[f"method/encoder.{name}"]) for name in model)


@pytest.mark.parametrize("at", [3, pytest.param(7, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow)])
def test_a_training_that_fails_keeps_the_same_checkpoint_as_one_that_does_not(
    at: int, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = {"split": "valid", "every": 2, "keep_best": True}
    train(recipe_of(run, tmp_path / "whole", validation=validation))
    original = TrainingSession._update

    def failing(self: Any, step: int) -> None:
        if step == at:
            raise MemoryError
        original(self, step)

    monkeypatch.setattr(TrainingSession, "_update", failing)
    with pytest.raises(MemoryError):
        train(recipe_of(run, tmp_path / "broken", validation=validation))
    monkeypatch.setattr(TrainingSession, "_update", original)
    train(recipe_of(run, tmp_path / "broken", validation=validation))
    assert curve(tmp_path / "whole", "validation") == curve(tmp_path / "broken", "validation")
    one, two = (load_file(f"{chosen(str(tmp_path / out))}/training.safetensors") for out in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_batch_norm_learns_nothing_from_what_is_measured() -> None:
    norm = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    norm[1].eval()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with evaluating(norm):
        assert not any(part.training for part in norm.modules())
        norm[0].running_mean += 1
    assert [part.training for part in norm.modules()] == [True, True, False]
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_a_split_that_is_not_there_is_a_sentence(run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no rows in split 'dev'"):
        train(recipe_of(run, tmp_path / "out", validation="dev"))
    with pytest.raises(UserError, match=r"validation.split: 'valid' has 20 rows, fewer than 40 streams"):
        train(recipe_of(run, tmp_path / "out", validation="valid", batch=40, streams=40))


def test_what_cannot_be_decoded_is_a_dead_letter(tmp_path: Path) -> None:
    rows = [row | {"split": "valid" if number % 3 == 0 else "train"} for number, row in enumerate(shapes(60, 16))]
    bad = sample(b"no picture", (16, 16), label="circle", split="valid")
    bad |= {"source": {"name": "tests", "uri": "bad.jpg"}}
    broken = str(write_shards(tmp_path / "broken", [*rows, bad], extra=SPLIT))
    facts = train(recipe_of(broken, tmp_path / "out", validation={"split": "valid"}))
    assert facts["dead"] == 1
    assert "bad.jpg" in (tmp_path / "out" / "dead-letter.csv").read_text()
