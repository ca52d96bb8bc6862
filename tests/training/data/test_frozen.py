"""Frozen features are what the encoder says of each picture, computed once, whatever breaks in between."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_shards import sample, shapes, write_shards
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.runs.lock import Lock
from granary.training.data import computed, frozen
from granary.training.data.augment import normalised, to_unit
from granary.training.data.crops import Crop
from granary.training.data.frozen import frozen_features, key_of
from granary.training.data.loader import batches
from granary.training.data.passes import in_order
from granary.training.data.reads import Reads
from granary.training.data.shards import Dataset, open_dataset
from granary.training.models.backbone import Backbone
from granary.training.models.build import build
from granary.training.models.checkpoint import step_folder
from granary.training.models.registry import load_model
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train
from granary.training.run.setup import build_method, open_plan

CROP = Crop(1, 16, centre=True)
BROKEN = (3, 20)


@pytest.fixture(scope="module")
def encoder() -> Backbone:
    return load_model("random:tiny?img_size=16&patch_size=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 shapes in 2 shards of 3 row groups; two cannot be decoded."""
    rows = shapes(48)
    for place in BROKEN:
        rows[place] = sample(b"no picture %d" % place, (32, 32), label="circle")
    return write_shards(tmp_path_factory.mktemp("run"), rows, group=8)


@pytest.fixture
def dataset(run: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """In parts of two row groups."""
    monkeypatch.setattr(frozen, "PART", 16)
    return open_dataset(str(run))


def direct(encoder: Backbone, dataset: Dataset) -> dict[int, Tensor]:
    """Return the vector of each picture that can be decoded, picture by picture."""
    config, vectors = encoder.config, {}
    for part in in_order(dataset, CROP, batch=1):
        if part["id"]:
            with torch.no_grad():
                pixels = normalised(to_unit(part["image"][:, 0]), config.mean, config.std)
                vectors[int(part["row"])] = encoder(pixels).cls[0]
    return vectors


def counted(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Count the parts that are computed; the one numbered `fail_at` is broken off."""
    numbers: list[int] = []
    write = computed.write_part

    def counting(folder: str, number: int, *rest: Any) -> None:
        if number == fail_at:
            raise KeyboardInterrupt
        numbers.append(number)
        write(folder, number, *rest)

    monkeypatch.setattr(computed, "write_part", counting)
    return numbers


def test_they_are_what_the_encoder_says_of_each_picture(encoder: Backbone, dataset: Dataset, tmp_path: Path) -> None:
    features, expected = frozen_features(encoder, dataset, CROP, str(tmp_path)), direct(encoder, dataset)
    assert len(features) == 48
    assert sorted(features.dead) == list(BROKEN)
    assert [features.dead[row][1] for row in BROKEN] == ["UnidentifiedImageError"] * 2
    assert expected.keys() | features.dead.keys() == set(range(48))
    for row, vector in expected.items():
        torch.testing.assert_close(features.row(row), vector, atol=1e-5, rtol=1e-4)
    order = [40, 0, 15, 16, 40]
    torch.testing.assert_close(features.rows(order), torch.stack([features.row(row) for row in order]))
    again = pickle.loads(pickle.dumps(features))
    assert torch.equal(again.rows(order), features.rows(order))
    assert len(pickle.dumps(features)) < 2000


def test_patches_and_several_crops_keep_their_shapes(encoder: Backbone, dataset: Dataset, tmp_path: Path) -> None:
    patches = frozen_features(encoder, dataset, CROP, str(tmp_path), "patches")
    mean = frozen_features(encoder, dataset, CROP, str(tmp_path), "mean")
    assert patches.rows([0, 5]).shape == (2, 16, 192)
    torch.testing.assert_close(patches.row(5).mean(dim=0), mean.row(5), atol=1e-5, rtol=1e-4)
    crops = frozen_features(encoder, dataset, Crop(3, 16, (0.2, 0.5)), str(tmp_path), seed=4)
    assert crops.row(7).shape == (3, 192)
    assert not torch.allclose(crops.row(7)[0], crops.row(7)[1])


def test_they_are_computed_once(
    encoder: Backbone, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = counted(monkeypatch)
    for _ in range(2):
        frozen_features(encoder, dataset, CROP, str(tmp_path))
    assert written == [0, 1, 2]


def test_a_computation_that_was_broken_off_goes_on(
    encoder: Backbone, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = frozen_features(encoder, dataset, CROP, str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        counted(patch, fail_at=1)
        with pytest.raises(KeyboardInterrupt):
            frozen_features(encoder, dataset, CROP, str(tmp_path / "part"))
    written = counted(monkeypatch)
    features = frozen_features(encoder, dataset, CROP, str(tmp_path / "part"))
    assert written == [1, 2]
    assert torch.equal(features.rows(range(48)), whole.rows(range(48)))
    assert features.dead == whole.dead


@pytest.mark.parametrize("damage", ["flipped", "cut short", "marker"])
def test_what_is_damaged_is_said_and_computed_again(
    encoder: Backbone, dataset: Dataset, tmp_path: Path, damage: str
) -> None:
    before = frozen_features(encoder, dataset, CROP, str(tmp_path)).rows(range(48))
    file = next(tmp_path.glob("*/00001.safetensors"))
    data = bytearray(file.read_bytes())
    if damage == "marker":
        file.with_name(f"{file.name}.json").write_text("{")
    else:
        data[-5] ^= 1
        file.write_bytes(data if damage == "flipped" else data[:-100])
    said: list[str] = []
    after = frozen_features(encoder, dataset, CROP, str(tmp_path), say=said.append).rows(range(48))
    assert torch.equal(after, before)
    assert said == [f"features: {file} is damaged; it is computed again"]


def test_one_process_computes_and_others_may_read(encoder: Backbone, dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / key_of(encoder, dataset, CROP, "cls", 0)
    other = Lock(str(folder))
    other.acquire()
    with pytest.raises(UserError, match="is being written by process"):
        frozen_features(encoder, dataset, CROP, str(tmp_path))
    other.release()
    frozen_features(encoder, dataset, CROP, str(tmp_path))
    other.acquire()
    assert len(frozen_features(encoder, dataset, CROP, str(tmp_path))) == 48


def test_all_that_decides_them_decides_their_place(encoder: Backbone, dataset: Dataset, run: Path) -> None:
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        next(iter(other.parameters())).view(-1)[0] += 1e-3
    keys = {
        key_of(encoder, dataset, CROP, "cls", 0),
        key_of(other, dataset, CROP, "cls", 0),
        key_of(encoder, open_dataset(str(run), split="train", holdout=0.3), CROP, "cls", 0),
        key_of(encoder, dataset, Crop(1, 12, centre=True), "cls", 0),
        key_of(encoder, dataset, CROP, "mean", 0),
        key_of(encoder, dataset, CROP, "cls", 1),
    }
    assert len(keys) == 6
    assert key_of(copy.deepcopy(encoder), open_dataset(str(run)), CROP, "cls", 0) in keys


def test_they_may_lie_elsewhere(encoder: Backbone, dataset: Dataset, tmp_path: Path) -> None:
    features = frozen_features(encoder, dataset, CROP, "memory://features")
    local = frozen_features(encoder, dataset, CROP, str(tmp_path))
    assert torch.equal(features.rows(range(48)), local.rows(range(48)))
    fsspec.filesystem("memory").rm("/features", recursive=True)


# -- trainings on features -------------------------------------------------------------------------------------------

STEPS, LR = 9, 0.01


def recipe_of(run: Path, folder: Path, **changes: Any) -> TrainRecipe:
    tree = {
        "method": "supervised",
        "model": {"width": 16, "depth": 1, "heads": 2, "img_size": 16, "patch_size": 4},
        "data": str(run),
        "out": str(folder / "out"),
        "features": {"model": str(folder / "encoder")},
        "steps": STEPS,
        "batch": 8,
        "streams": 2,
        "workers": 2,
        "optimiser": {"lr": LR, "start_lr": LR, "final_lr": LR, "weight_decay": 0.0},
        "logs": {"every": 1, "tensorboard": False},
        "checkpoints": {"every": 5},
        "device": {"accelerator": "cpu", "threads": 1},
    }
    return TrainRecipe.model_validate({**tree, **changes})


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A folder with a small encoder, saved where `recipe_of` looks for it."""
    torch.manual_seed(3)
    build(recipe_of(run, tmp_path).config()).save(str(tmp_path / "encoder"))
    return tmp_path


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights and state of the last checkpoint."""
    return load_file(Path(step_folder(str(folder), STEPS)) / "training.safetensors")


def test_a_linear_probe_by_gradient_descent_is_that_of_a_direct_computation(run: Path, folder: Path) -> None:
    """Initial head and order of the rows are those of the loop; features, losses and steps are made here."""
    recipe = recipe_of(run, folder)
    train(recipe)
    encoder, kept = load_model(str(folder / "encoder")), weights(folder / "out")
    vectors = direct(encoder, open_dataset(str(run)))
    plan = open_plan(recipe, Reads(("image", "label")), 1)
    torch.manual_seed(recipe.seed)
    head = build_method(recipe, plan).get_submodule("head")
    optimiser = torch.optim.AdamW(head.parameters(), LR, weight_decay=0.0)
    for batch in batches(plan._replace(crops={"image": CROP}), range(STEPS), workers=0):
        loss = F.cross_entropy(head(torch.stack([vectors[row] for row in batch["row"].tolist()])), batch["label"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(kept["method/head.weight"], head.weight.detach(), atol=1e-5, rtol=1e-4)
    for name, weight in encoder.state_dict().items():
        assert torch.equal(kept[f"method/encoder.{name}"], weight)
    assert {name.split("/")[1].split(".")[0] for name in kept if name.startswith("optimiser/")} == {"head"}


def test_going_on_computes_no_features_again_and_gives_the_same_weights(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = {"features": {"model": str(folder / "encoder"), "cache": str(folder / "cache")}, "validation": "test"}
    train(recipe_of(run, folder, **cache, split="train"))
    written = counted(monkeypatch)
    half = recipe_of(run, folder, **cache, split="train", out=str(folder / "half"), steps=5)
    train(half)
    train(half.model_copy(update={"steps": STEPS}))
    assert written == []
    one, two = weights(folder / "out"), weights(folder / "half")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one if name.startswith("method/"))
    assert (folder / "out" / "validation.csv").read_text() == (folder / "half" / "validation.csv").read_text()


def test_pictures_that_made_no_features_are_dead_letters(run: Path, folder: Path) -> None:
    assert train(recipe_of(run, folder))["dead"] == len(BROKEN)


def test_mistakes_are_sentences(run: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="features: method ijepa needs pictures"):
        recipe_of(run, folder, method="ijepa", options={})
    with pytest.raises(ValueError, match="init: leave it out; with features the weights are those of"):
        recipe_of(run, folder, init="hf:some/model")
    with pytest.raises(UserError, match=r"features\.model: .* is a model of another architecture"):
        train(recipe_of(run, folder, model={"width": 32, "depth": 1, "heads": 2, "img_size": 16, "patch_size": 4}))
