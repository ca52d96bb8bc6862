"""Every recipe that granary ships for the methods of this layer: read always, run at a reduced size."""

from __future__ import annotations

import re
from pathlib import Path

import places
import pytest
import yaml
from tiny_trainings import tiny_run, tiny_training

from granary.pipelines.engine.recipe import load_recipe
from granary.training.methods import METHODS
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

FOLDER = places.CONFIGS / "train"


def method_of(config: Path) -> str | None:
    """The method that a file names, None for one that is no recipe of a training."""
    method: str | None = yaml.safe_load(config.read_text()).get("method")
    return method


OF_MODELS = ("dci_lora", "generator_lora")  # fine-tune a model of transformers; their recipes run in their own tests
METHODS_OF_SHARDS = [method for method in METHODS if method not in OF_MODELS]
CONFIGS = [path for path in sorted(FOLDER.rglob("*.yaml")) if method_of(path) in METHODS]
SMALL = "--steps 2 --batch 8 --streams 2 --workers 0 --probe.every 0 --split null --epochs null "
SMALL += "--device.accelerator cpu --device.devices 1 --device.nodes 1 --device.strategy auto --device.threads 1 "
MODELS = {
    "vit": "--model.width 32 --model.depth 1 --model.heads 2 ",
    "resnet": "--model.widths [8,16] --model.depths [1,1] --model.last_width 24 ",
}
TEXT = "--model.img_size {side} --options.text_width 16 --options.text_depth 1 --options.text_heads 2 "
TEXT += "--options.vocabulary 600 --options.context 16"
TWO_VIEWS = "--model.img_size {side} --options.crop_size null --options.projector_hidden [16] "
TWO_VIEWS += "--options.projector_width 8"
OWN = {
    "ijepa": "--options.predictor_depth 1 --options.predictor_width 16",
    "stop": "--options.predictor_depth 1 --options.predictor_width 16 --options.predictor_heads 2",
    "iwm": "--options.predictor_depth 1 --options.predictor_width 16",
    "dinov2": "--model.img_size {side} --options.local_size {patch} --options.global_size null --options.prototypes 16 "
    "--options.patch_prototypes 16 --options.hidden 16",
    "clip": TEXT,
    "clip_kd": TEXT + " --options.teacher_size null",
    "siglip": TEXT,
    "llip": TEXT,
    "llava": "--options.encoder null --options.language tiny?width=16&depth=1&heads=2 --options.tuning whole "
    "--options.vocabulary 600 --options.context 16 --options.layer 1 --options.columns [captions]",
    "longvu": "--options.encoder null --options.comparer null --options.language tiny?width=16&depth=1&heads=2 "
    "--options.source image --options.vocabulary 600 --options.context 16 --options.columns [captions] "
    "--options.width 8 --options.heads 2 --features.model null",
    "vedit": "--options.encoder null --options.latents latents --options.width 16 --options.blocks 1 --options.heads 2 "
    "--options.euler_steps 2",
    "vistallm": "--options.encoder null --options.language tiny?width=16&depth=1&heads=2 --options.vocabulary 600 "
    "--options.layer 1 --options.pictures_by.width 16 --options.pictures_by.depth 1 --options.pictures_by.heads 2",
    "flava": TEXT + " --options.fusion_depth 1 --options.fusion_heads 2 --options.codes 8 --options.codebook_pictures 8"
    " --options.smallest_block 1",
    "coca": TEXT + " --options.decoder_depth 1 --options.queries 4",
    "simclr": "--model.img_size {side}",
    "beit": "--model.img_size {side} --options.codes 8 --options.codebook_pictures 8",
    "simmim": "--model.img_size {side} --options.mask_block 1",
    "mae": "--model.img_size {side} --options.decoder_depth 1",
    "barlow": TWO_VIEWS,
    "vicreg": TWO_VIEWS,
    "nnclr": TWO_VIEWS + " --options.predictor_hidden [8] --options.queue 16",
    "byol": TWO_VIEWS + " --options.predictor_hidden [8]",
    "simsiam": TWO_VIEWS + " --options.predictor_hidden [4]",
    "moco": TWO_VIEWS + " --options.queue 16",
    "moco_v3": TWO_VIEWS + " --options.predictor_hidden [8]",
    "swav": TWO_VIEWS + " --options.local_size {patch} --options.prototypes 8",
    "msn": TWO_VIEWS + " --options.local_size {patch} --options.prototypes 8",
    "rcdm": "--options.size 16 --options.channels 8 --options.multipliers [1,2] --options.attention [8] "
    "--options.projector false",
    "rob": "--model.img_size {side} --options.global_size null --options.local_size {patch} --options.teacher_size 8",
    "simreg": "--model.img_size {side} --options.crop_size null --options.teacher_size 8",
    "wmse": TWO_VIEWS.replace("width 8", "width 3") + " --options.sub_batch 4 --options.shrinkage 0.1",
    "xrm": "--model.img_size {side} --features.model null",
    "predictor_tuning": "--options.heads 2",
    "supervised": "--model.img_size {side} --device.precision 32-true",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run(tmp_path_factory.mktemp("run"), 40, 32)


@pytest.fixture(scope="module")
def large(run: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What teaches a student."""
    return tiny_training("dinov2", run, tmp_path_factory.mktemp("large"))


def given(config: Path, model: str = "MODEL") -> list[str]:
    """What a recipe leaves to the command line: another model."""
    named = {
        "dci_lora": "clip",
        "generator_lora": "generator",
        **dict.fromkeys(("clip_kd", "predictor_tuning", "rcdm", "rob", "simreg"), "teacher"),
    }
    key = named.get(method_of(config))
    return [f"--options.{key}", model] if key else []


def world_model(recipe: TrainRecipe, small: list[str], folder: Path) -> str:
    """A world model of initial weights, whose encoder is that of a recipe at its reduced size."""
    sizes = dict(zip(small[::2], small[1::2], strict=True))
    model = {key: int(sizes[f"--model.{key}"]) for key in ("width", "depth", "heads")}
    model |= {"img_size": recipe.config().img_size, "patch_size": recipe.config().patch_size}
    options = {"predictor_width": 16, "predictor_depth": 1}
    (folder / "iwm.yaml").write_text(yaml.safe_dump({"method": "iwm", "model": model, "options": options}))
    return f"random:{folder}/iwm.yaml"


def small_clip(recipe: TrainRecipe, folder: Path) -> str:
    """A CLIP of initial weights, whose pictures are those of a recipe at its reduced size."""
    patch = recipe.config().patch_size
    model = {"width": 32, "depth": 1, "heads": 2, "img_size": 2 * patch, "patch_size": patch}
    options = {"dimension": 8, "text_width": 16, "text_depth": 1, "text_heads": 2, "context": 16}
    (folder / "clip.yaml").write_text(yaml.safe_dump({"method": "clip", "model": model, "options": options}))
    return f"random:{folder}/clip.yaml"


def test_every_method_has_a_tiny_recipe_and_one_of_published_size() -> None:
    stems = {
        method: [path.stem for path in CONFIGS if path.stem.startswith(f"{method}_")] for method in METHODS_OF_SHARDS
    }
    tiny = {method for method, names in stems.items() if any(name.endswith("_tiny") for name in names)}
    assert tiny == set(METHODS_OF_SHARDS)
    published = {method for method, names in stems.items() if any(not name.endswith("_tiny") for name in names)}
    assert published == set(METHODS_OF_SHARDS)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_read_and_says_how_it_is_run(config: Path) -> None:
    recipe = load_recipe(TrainRecipe, str(config), ["--data", "RUN", "--out", "TRAIN", *given(config)])
    assert recipe.batch % recipe.parts(recipe.device.devices * recipe.device.nodes) == 0
    header = config.read_text().split("\nname:")[0]
    assert f"granary train --config configs/train/{config.relative_to(FOLDER)} --data RUN --out TRAIN" in header
    assert re.search(r"arXiv \d{4}\.\d{5}", header)
    assert "Hardware" in header


@pytest.mark.parametrize(
    "config", [path for path in CONFIGS if method_of(path) not in OF_MODELS], ids=lambda path: path.stem
)
def test_a_shipped_recipe_runs_at_a_reduced_size(config: Path, run: str, large: str, tmp_path: Path) -> None:
    """Two steps of its method, views and schedules with a small model on small pictures."""
    whole = load_recipe(TrainRecipe, str(config), ["--data", "RUN", "--out", "TRAIN", *given(config)])
    patch = whole.config().patch_size
    small = (SMALL + MODELS[whole.model.kind] + OWN[whole.method].format(side=2 * patch, patch=patch)).split()
    model = world_model(whole, small, tmp_path) if whole.method == "predictor_tuning" else large
    model = small_clip(whole, tmp_path) if whole.method == "clip_kd" else model
    small += given(config, model)
    recipe = load_recipe(TrainRecipe, str(config), ["--data", run, "--out", str(tmp_path / "out"), *small])
    assert train(recipe)["finished"]
