"""Facts about the mean reciprocal rank: its closed forms, predictors that cheat, and a world model that has learned."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_shards import sample, write_shards
from tiny_trainings import tiny_recipe, tiny_run, tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data.augment import NEEDED, factors, jittered, normalised, orders
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.protocols import mrr
from granary.training.evaluation.protocols.mrr import PROTOCOL, MRROptions, chance, distances, ranks_of
from granary.training.methods.iwm import IWM
from granary.training.models.training import load_training
from granary.training.run.directory import write_recipe
from tests.benchmarks.iwm import losses

BANK, PICTURES = 12, 6
HARMONIC = sum(1 / rank for rank in range(1, BANK + 1)) / BANK


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run(tmp_path_factory.mktemp("run"), 24)


def world_model(folder: Path, **options: Any) -> tuple[str, IWM]:
    """A training of initial weights by its name, and the method of it."""
    write_recipe(tiny_recipe("iwm", "none", folder, options))
    name = f"random:{folder}/recipe.yaml"
    model = load_training(name)
    assert isinstance(model, IWM)
    return name, model


def measured(model: str, data: str, **changes: Any) -> Measured:
    return Measured(model, data, **{"device": "cpu", "batch": 5, **changes})


def scores(model: str, data: str, **options: Any) -> Any:
    given = {"bank": BANK, "pictures": PICTURES, **options}
    return PROTOCOL.evaluate(measured(model, data), MRROptions(**given))


# -- ranks ------------------------------------------------------------------------------------------------------------


def test_known_ranks_give_the_mean_of_their_inverses() -> None:
    distance = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 4], [9, 9, 5, 6], [2, 3, 4, 1]])
    assert ranks_of(distance).tolist() == [1, 2, 1, 1]
    distance[2] = torch.tensor([1, 2, 9, 3])
    ranks = ranks_of(distance)[:3]
    assert ranks.tolist() == [1, 2, 4]
    assert float((1 / ranks).mean()) == pytest.approx(0.58333, abs=1e-5)


def test_the_true_version_comes_last_among_equals() -> None:
    """Trap: ties that are counted for the model. A constant embedding scores 1 / n."""
    assert ranks_of(torch.zeros(8, 8)).tolist() == [8] * 8
    assert ranks_of(torch.full((8, 8), torch.nan)).tolist() == [8] * 8
    assert ranks_of(torch.tensor([[1.0, 1.0, 2.0]] * 3)).tolist() == [2, 2, 3]


def test_random_distances_have_the_level_of_chance() -> None:
    assert chance(64) == pytest.approx(0.0741, abs=1e-4)
    assert chance(256) == pytest.approx(0.0239, abs=1e-4)
    torch.manual_seed(0)
    inverse = torch.cat([1 / ranks_of(torch.rand(64, 64)).double() for _ in range(100)])
    assert abs(float(inverse.mean()) - chance(64)) < 3 * float(inverse.std()) / math.sqrt(len(inverse))


# -- banks ------------------------------------------------------------------------------------------------------------


def test_the_bank_is_of_the_picture_itself_and_its_distances_are_those_of_all_patches(tmp_path: Path) -> None:
    """Trap: a bank of other pictures, or with the query twice. Each version is made and embedded alone once more."""
    _, model = world_model(tmp_path)
    torch.manual_seed(1)
    unit, draws = torch.rand(1, 3, 16, 16), torch.rand(BANK, NEEDED)
    changes = MRROptions(brightness=0.5, hue=0.2).changes(model)
    assert (changes.brightness, changes.contrast, changes.hue, changes.jitter, changes.flip) == (0.5, 0.4, 0.2, 1, 0)
    found = distances(model, unit, draws, changes, measured("", ""))
    mean, std = model.config.mean, model.config.std
    every, context = torch.arange(16)[None], model.context(normalised(unit, mean, std)).patches
    amounts, order = factors(draws, changes), orders(draws)
    versions = [jittered(unit, amounts[i : i + 1], order[i : i + 1]) for i in range(BANK)]
    assert len({version.sum().item() for version in versions}) == BANK
    with torch.no_grad():
        truth = [model.latents(normalised(version, mean, std)) for version in versions]
        for i in range(BANK):
            told = [*(amounts[i, :3] - 1), amounts[i, 3] / (2 * math.pi), 0, 0, 0]
            guess = model.predictor(context, every, every[None], torch.tensor([told], dtype=torch.float32))
            for j in range(BANK):
                assert float(found[i, j]) == pytest.approx(float((guess - truth[j]).norm()), rel=1e-4)


class Cheat(torch.nn.Module):
    """A predictor that returns latents it was given, turn by turn."""

    def __init__(self, answers: Any) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, context: Tensor, places: Tensor, targets: Tensor, actions: Tensor) -> Tensor:
        answer: Tensor = self.answers(len(actions))
        return answer


def cheated(model: IWM, monkeypatch: pytest.MonkeyPatch, true: bool) -> None:
    """Make a model whose predictor knows the latents of the bank, or gives those of the picture as it is."""
    seen: list[Tensor] = []
    changed = mrr.changed

    def noted(unit: Tensor, bank: Any, changes: Any) -> Tensor:
        versions = changed(unit, bank, changes)
        pixels = normalised(versions if true else unit, model.config.mean, model.config.std)
        seen[:] = [*model.latents(pixels)]
        return versions

    monkeypatch.setattr(mrr, "changed", noted)
    monkeypatch.setattr(mrr, "load_whole", lambda _: model)
    model.predictor = Cheat(lambda count: torch.stack([seen.pop(0) for _ in range(count)]))  # type: ignore[assignment]


def test_a_predictor_that_knows_the_answers_scores_one(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model = world_model(tmp_path)
    cheated(model, monkeypatch, true=True)
    found = scores(name, run)
    assert found["mrr"] == 1.0
    assert found["first"] == 1.0
    assert (found["mrr.bank"], found["mrr.pictures"]) == (BANK, PICTURES)


def test_a_predictor_that_changes_nothing_has_exactly_the_level_of_chance(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ranks every bank in one order, that of how far versions are from the picture: all ranks occur once."""
    name, model = world_model(tmp_path)
    cheated(model, monkeypatch, true=False)
    assert scores(name, run)["mrr"] == pytest.approx(HARMONIC, abs=1e-12)


def test_a_predictor_that_reads_no_actions_has_exactly_the_level_of_chance(run: str, tmp_path: Path) -> None:
    name, _ = world_model(tmp_path, conditioning="none")
    found = scores(name, run)
    assert found["mrr"] == pytest.approx(HARMONIC, abs=1e-6)
    assert found["mrr.chance"] == pytest.approx(HARMONIC)
    assert found["first"] == pytest.approx(found["first.chance"])


def test_a_constant_embedding_scores_one_over_n(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, model = world_model(tmp_path)
    monkeypatch.setattr(mrr, "load_whole", lambda _: model)
    monkeypatch.setattr(model, "latents", lambda pixels: torch.ones(len(pixels), 16, 16))
    assert scores(name, run)["mrr"] == pytest.approx(1 / BANK)


# -- the protocol -----------------------------------------------------------------------------------------------------


def test_scores_hang_on_the_seed_and_not_on_the_batch(run: str, tmp_path: Path) -> None:
    name, _ = world_model(tmp_path)
    options = MRROptions(bank=BANK, pictures=PICTURES)
    one, two, other = (
        PROTOCOL.evaluate(measured(name, run, **changes), options) for changes in ({}, {"batch": 64}, {"seed": 1})
    )
    half = PROTOCOL.evaluate(measured(name, run, dtype="bfloat16"), options)
    assert half["mrr"] == pytest.approx(one["mrr"], abs=0.1)
    assert one["mrr"] == pytest.approx(two["mrr"], abs=1e-6)
    assert one["mrr"] != pytest.approx(other["mrr"], abs=1e-6)
    assert one.settings["colours"] == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}


def test_damaged_pictures_are_dead_letters(tmp_path: Path) -> None:
    name, _ = world_model(tmp_path / "model")
    damaged = [sample(b"no picture", (16, 16))]
    whole = tiny_run(tmp_path / "run", 4)
    broken = str(write_shards(tmp_path / "broken", damaged, shards=1))
    assert scores(name, whole)["mrr.pictures"] == 4
    with pytest.raises(UserError, match="none of the 1 pictures"):
        scores(name, broken)


def test_what_is_no_world_model_is_a_sentence(run: str, tmp_path: Path) -> None:
    ijepa = tiny_training("ijepa", run, tmp_path / "ijepa")
    for model in (ijepa, "random:tiny?img_size=16&patch_size=4"):
        with pytest.raises(UserError, match="has no predictor that reads actions; give a training of method iwm"):
            scores(model, run)
    with pytest.raises(UserError, match="dtype: 'float8' is not right"):
        PROTOCOL.evaluate(measured(ijepa, run, dtype="float8"), MRROptions())


@pytest.mark.slow
def test_a_world_model_that_was_told_learns_to_apply_actions(tmp_path: Path) -> None:
    """Trap: conditioning that is not used. 300 steps on coloured shapes are enough to see that it is."""
    run = tiny_run(tmp_path / "run", 300)
    options = {"predictor_width": 32, "predictor_depth": 2, "predictor_lr": 3.0, "loss": "l2", "momentum": 0.95}
    options |= {"init_std": 0.1, "embed_std": 0.144, "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}
    model = {"width": 32, "depth": 2, "heads": 2, "img_size": 16, "patch_size": 4}
    schedule = {"lr": 1e-3, "warmup": 20, "weight_decay": 0.04}
    tiny_training("iwm", run, tmp_path / "told", options, model=model, steps=300, batch=32, optimiser=schedule)
    found = scores(str(tmp_path / "told"), run, bank=64, pictures=30)
    assert found["mrr"] > 1.7 * found["mrr.chance"]
    measured = losses(str(tmp_path / "told"), run)
    assert measured["loss.shuffled"] > 1.05 * measured["loss"]
