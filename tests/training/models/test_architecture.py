"""The group `model` of a recipe is one of several kinds: old recipes are read, wrong keys are named with their kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_shards import shapes, write_shards

from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import load_recipe
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

WORDS = ["--method", "supervised", "--data", "RUN", "--out", "OUT", "--steps", "1"]
SMALL = ["--model.kind", "resnet", "--model.widths", "[8, 16]", "--model.depths", "[1, 1]", "--model.stem", "small"]


def read(*words: str) -> TrainRecipe:
    return load_recipe(TrainRecipe, None, [*WORDS, *words])


def test_a_recipe_without_a_kind_is_a_vit() -> None:
    assert read("--model.size", "small").config() == ViTConfig.named("small", layer_scale=0.0)
    assert read().model.model_dump()["kind"] == "vit"


def test_a_resnet_by_size_and_by_its_parts() -> None:
    assert read("--model.kind", "resnet").config() == ResNetConfig.named("resnet18")
    changes = ["--model.last_width", "64", "--model.img_size", "24"]
    commas = [word.strip("[]").replace(" ", "") for word in SMALL]
    assert read(*commas, *changes) == read(*SMALL, *changes)
    assert read(*SMALL, *changes).config() == ResNetConfig(
        img_size=24, widths=(8, 16), depths=(1, 1), stem="small", last_width=64
    )
    twice = [word for width in ("8", "16") for word in ("--model.widths", width)]
    assert read("--model.kind", "resnet", *twice, "--model.depths", "[1, 1]").config() == ResNetConfig(
        widths=(8, 16), depths=(1, 1)
    )


def test_a_recipe_with_its_defaults_filled_in_is_the_same() -> None:
    recipe = read(*SMALL)
    assert TrainRecipe.model_validate(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model.kind", "forest"], "model.kind: 'forest' is not right: the kinds are 'vit', 'resnet'"),
        (["--model.widths", "[8]"], r"model.widths: there is no such key in kind vit, only in resnet; did you mean"),
        (["--model.kind", "resnet", "--model.depth", "3"], "depth: there is no such key in kind resnet, only in vit"),
        (["--model.kind", "resnet", "--model.widht", "3"], r"no such key in kind resnet; did you mean model.widths\?"),
        (["--method", "ijepa"], r"method: \['supervised', 'ijepa'\] is not right: it takes one value, and 2 are given"),
        (["--options.crop_scale", "0.2"], "options.crop_scale: '0.2' is not right: it takes 2 values, and 1 is given"),
        (["--model.kind", "resnet", "--model.stem", "big"], "model.stem: 'big' is not right: input should be"),
        (["--model.kind", "resnet", "--model.widths", "[8]"], r"widths are \[8\] and depths \[2, 2, 2, 2\]"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_kind_is_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(*words)


@pytest.mark.parametrize("method", ["ijepa", "clip", "siglip"])
def test_a_method_of_vits_names_the_kind(method: str) -> None:
    tree = {"method": method, "data": "RUN", "out": "OUT", "steps": 1, "model": {"kind": "resnet"}}
    with pytest.raises(ValueError, match=f"model.kind is resnet; {method} trains vit alone"):
        TrainRecipe.model_validate(tree)


def test_a_training_from_before_there_were_kinds_goes_on(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "method": "supervised", "steps": 2, "batch": 4, "workers": 0, "logs": {"tensorboard": False},
        "model": {"width": 16, "depth": 1, "heads": 2, "img_size": 16, "patch_size": 4},
        "data": [{"path": str(write_shards(tmp_path / "run", shapes(20, 16), group=10))}],
        "out": str(tmp_path / "out"), "device": {"accelerator": "cpu", "threads": 1},
    }  # fmt: skip
    train(TrainRecipe.model_validate(tree))
    written = tmp_path / "out" / "recipe.yaml"
    earlier = yaml.safe_load(written.read_text())
    del earlier["model"]["kind"]
    written.write_text(yaml.safe_dump(earlier))
    assert train(TrainRecipe.model_validate({**tree, "steps": 4}))["step"] == 4
    with pytest.raises(UserError, match=r"holds a training with model\.kind 'vit', not 'resnet'"):
        train(TrainRecipe.model_validate({**tree, "steps": 6, "model": {"kind": "resnet"}}))
