"""Fine-tuning: it learns, repeats itself, keeps its hands off the test pictures and writes only what is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Value
from measuring import measure
from PIL import Image
from tiny_shards import encoded, sample, write_shards

from granary.curation.errors import UserError
from granary.training.evaluation.protocols import finetune
from granary.training.models.registry import load_model
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "drop_path": 0.2}
SPLIT = {"split": Value("string")}


def colours(count: int) -> list[dict[str, Any]]:
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        name, ground = (("red", (200, 40, 40)), ("blue", (40, 40, 200)))[number % 2]
        noise = rng.integers(-40, 40, (20, 20, 3))
        image = Image.fromarray(np.clip(np.array(ground) + noise, 0, 255).astype(np.uint8))
        split = "test" if number % 4 < 2 else "train"
        rows.append(sample(encoded(image, "PNG"), image.size, label=name, split=split))
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("run"), colours(80), extra=SPLIT))


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(5)
    VisionTransformer(ViTConfig(**TINY)).save(str(tmp_path / "model"))
    return str(tmp_path / "model")


def weights(path: str) -> dict[str, torch.Tensor]:
    return dict(load_model(path).state_dict())


def tuned(model: str, run: str, **options: Any) -> Any:
    return measure(finetune, model, run, device="cpu", **{"steps": 4, "batch_size": 16, **options})


def test_it_learns_the_labels_and_leaves_the_model_as_it_is(run: str, model: str, tmp_path: Path) -> None:
    before = weights(model)
    scores = tuned(model, run, steps=40, lr=5e-3)
    assert scores["accuracy"] == 1
    assert (scores["accuracy.train"], scores["accuracy.test"], scores["accuracy.chance"]) == (40, 40, 0.5)
    assert scores.settings["train"] == {"data": run, "split": "train"}
    assert all(torch.equal(before[name], weight) for name, weight in weights(model).items())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_it_repeats_itself_and_the_model_is_kept_where_that_is_asked_for(run: str, model: str, tmp_path: Path) -> None:
    before = weights(model)
    one, two = (tuned(model, run, out=str(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    first, second = weights(str(tmp_path / "one")), weights(str(tmp_path / "two"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.1.mlp.up.weight"], before["blocks.1.mlp.up.weight"])
    assert tuned(model, run, seed=1) != one
    with pytest.raises(UserError, match="has a model already"):
        tuned(model, run, out=str(tmp_path / "one"))


def test_lower_layers_move_less(run: str, model: str, tmp_path: Path) -> None:
    before = weights(model)
    moved = {}
    for decay in (1.0, 0.01):
        tuned(model, run, layer_decay=decay, weight_decay=0, out=str(tmp_path / str(decay)))
        after = weights(str(tmp_path / str(decay)))
        names = ("embed.weight", "blocks.0.mlp.up.weight", "blocks.1.mlp.up.weight", "norm.bias")
        moved[decay] = [float((after[name] - before[name]).abs().max()) for name in names]
    lowest, *_, highest = moved[0.01]
    assert lowest < 1e-4 * highest
    assert moved[1.0][0] > 0.1 * moved[1.0][-1]


def test_test_pictures_teach_nothing(model: str, tmp_path: Path) -> None:
    """Trap: pictures that are in both splits are left out of training."""
    rows = colours(80)
    shared = [{**row, "split": "train"} for row in rows if row["split"] == "test"][:10]
    scores = tuned(model, str(write_shards(tmp_path / "run", [*rows, *shared], extra=SPLIT)))
    assert (scores["accuracy.train"], scores["accuracy.test"]) == (40, 40)
    assert scores.notes == ("10 training pictures are test pictures too and were left out of training",)
    with pytest.raises(UserError, match="training and test pictures are the same"):
        tuned(model, str(tmp_path / "run"), split="train")


def test_a_resnet_a_small_set_and_what_cannot_be_tuned(run: str) -> None:
    scores = tuned("random:resnet18-thin?img_size=16&stem=half", run, steps=1, limit=10, batch_size=64)
    assert scores["accuracy.train"] == 10
    with pytest.raises(UserError, match="pixels has no weights"):
        tuned("pixels", run)
    with pytest.raises(UserError, match="float16 is not right"):
        tuned("pixels", run, dtype="float16")
