"""A training comes back whole, from its checkpoint alone; what cannot come back is a sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_trainings import OPTIONS, tiny_recipe, tiny_run, tiny_training

from granary.curation.errors import UserError
from granary.training.methods import load_method
from granary.training.methods.clip import CLIP
from granary.training.methods.dinov2 import DINOv2
from granary.training.methods.supervised import Supervised
from granary.training.models.checkpoint import STATE
from granary.training.models.registry import load_model
from granary.training.models.training import BackboneAlone, load_training
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import FORMER, ViTConfig
from granary.training.models.weights import to_transformers
from granary.training.run.directory import write_recipe

FIRST = ("supervised", "ijepa", "dinov2", "clip", "siglip")  # the methods of version 0.1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def trained(run: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return the checkpoint of a method, trained once."""
    checkpoints: dict[str, str] = {}

    def of(method: str) -> str:
        if method not in checkpoints:
            checkpoints[method] = tiny_training(method, run, tmp_path_factory.mktemp(method))
        return checkpoints[method]

    return of


def alone(checkpoint: str, folder: Path) -> Path:
    """Copy a checkpoint to where nothing of its training is."""
    return Path(shutil.copytree(checkpoint, folder / "alone"))


def of_version_0_1(checkpoint: str, folder: Path) -> Path:
    """Copy a training as version 0.1 wrote it: former names, and nothing of recipe and data in the checkpoint."""
    source = Path(checkpoint)
    old = Path(shutil.copytree(source, folder / "old" / "checkpoints" / source.name))
    recipe = yaml.safe_load((source.parents[1] / "recipe.yaml").read_text())
    recipe["options"] = in_former_names(recipe["options"], getattr(load_method(recipe["method"]).Options, "FORMER", {}))
    (folder / "old" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = {**json.loads((old / "config.json").read_text())}
    config.pop("kind")
    (old / "config.json").write_text(json.dumps(in_former_names(config, FORMER)))
    describe(old)
    rewrite(old, recipe=None, known=None)
    return old


def describe(checkpoint: Path) -> None:
    """Write options and tokenizer of an image-text training among the weights, as it was before `known` had them."""
    facts = json.loads((checkpoint / STATE).read_text())
    if facts["method"] in ("clip", "siglip"):
        text = json.dumps({"options": facts["recipe"]["options"], "tokenizer": facts["known"]}).encode()
        tensors = load_file(checkpoint / "training.safetensors")
        tensors["method/described"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        save_file(tensors, checkpoint / "training.safetensors")
    rewrite(checkpoint, known=None)


def in_former_names(tree: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    former = {now: before for before, now in names.items()}
    return {former.get(name, name): value for name, value in tree.items()}


def rewrite(checkpoint: Path, **changes: Any) -> None:
    """Change keys of state.json, None removes one, and sign the other files anew."""
    facts = {**json.loads((checkpoint / STATE).read_text()), **changes}
    facts["sha256"] = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in facts["sha256"]}
    (checkpoint / STATE).write_text(json.dumps({key: value for key, value in facts.items() if value is not None}))


def weights(checkpoint: Path | str) -> dict[str, torch.Tensor]:
    tensors = load_file(Path(checkpoint) / "training.safetensors")
    return {name.removeprefix("method/"): t for name, t in tensors.items() if name.startswith("method/")}


@pytest.mark.parametrize(
    ("method", "way"), [*((method, alone) for method in OPTIONS), *((method, of_version_0_1) for method in FIRST)]
)
def test_all_modules_come_back_with_their_weights(method: str, way: Any, trained: Any, tmp_path: Path) -> None:
    moved = way(trained(method), tmp_path)
    state = torch.get_rng_state()
    back = load_training(str(moved))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(back) is load_method(method)
    assert not any(module.training for module in back.modules())
    assert all(p.numel() for p in back.parameters() if p.requires_grad)  # FSDP can share out no others
    ours, written = back.state_dict(), weights(moved)
    assert ours.keys() == written.keys() - {"described"}
    assert all(torch.equal(ours[name], written[name]) for name in ours)


def test_a_tokenizer_is_in_a_checkpoint_once(trained: Any) -> None:
    checkpoint = Path(trained("clip"))
    tokenizer = (checkpoint.parents[1] / "tokenizer.json").read_text()
    assert json.loads((checkpoint / STATE).read_text())["known"] == tokenizer
    assert b"ByteLevel" not in (checkpoint / "training.safetensors").read_bytes()


def test_a_training_with_its_tokenizer_among_the_weights_goes_on(trained: Any, run: str, tmp_path: Path) -> None:
    source = Path(trained("clip")).parents[1]
    new, old = (Path(shutil.copytree(source, tmp_path / name)) for name in ("new", "old"))
    describe(next((old / "checkpoints").iterdir()))
    one, two = (tiny_training("clip", run, out, steps=3) for out in (new, old))
    assert (Path(one) / "training.safetensors").read_bytes() == (Path(two) / "training.safetensors").read_bytes()


def test_a_training_directory_is_its_last_checkpoint(trained: Any) -> None:
    checkpoint = trained("supervised")
    back = load_training(str(Path(checkpoint).parents[1])).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in weights(checkpoint).items())


def test_a_training_whose_weights_were_shared_out_comes_back(run: str, tmp_path: Path) -> None:
    device = {"accelerator": "cpu", "threads": 1, "strategy": "fsdp"}
    checkpoint = tiny_training("dinov2", run, tmp_path / "shared", device=device)
    training, whole = load_training(checkpoint), weights(checkpoint)
    back, model = training.state_dict(), load_model(checkpoint).state_dict()
    assert back.keys() == whole.keys()
    assert all(torch.equal(back[name], whole[name]) for name in whole)
    assert all(torch.equal(back[f"teacher.{name}"], model[name]) for name in model)
    assert tiny_training("dinov2", run, tmp_path / "shared", steps=3).endswith("3")  # goes on without FSDP


def test_weights_that_fsdp_of_earlier_versions_gathered_come_back(trained: Any, tmp_path: Path) -> None:
    checkpoint = alone(trained("dinov2"), tmp_path)
    tensors = load_file(checkpoint / "training.safetensors")
    tensors |= {name: t.new_empty(0, 0, 16) for name, t in tensors.items() if name.endswith(".registers")}
    save_file(tensors, checkpoint / "training.safetensors")
    rewrite(checkpoint)
    assert load_training(str(checkpoint)).evaluated_model().get_parameter("registers").shape == (1, 0, 16)


def test_what_was_learnt_of_the_data_comes_back(trained: Any, tmp_path: Path) -> None:
    new, old = load_training(trained("supervised")), load_training(str(of_version_0_1(trained("supervised"), tmp_path)))
    assert isinstance(new, Supervised)
    assert isinstance(old, Supervised)
    assert new.known == pytest.approx({"circle": 0.25, "cross": 0.25, "square": 0.25, "triangle": 0.25})
    assert torch.equal(new.counts, torch.tensor(list(new.known.values())))
    assert old.known == {"0": 0.25, "1": 0.25, "2": 0.25, "3": 0.25}
    clip = load_training(trained("clip"))
    assert isinstance(clip, CLIP)
    assert clip.tokenizer.numbers(["a circle"]).tolist()[0][0] == clip.tokenizer.start


def test_a_checkpoint_of_clip_of_version_0_1_needs_no_recipe(trained: Any, tmp_path: Path) -> None:
    old = of_version_0_1(trained("clip"), tmp_path)
    (tmp_path / "old" / "recipe.yaml").unlink()
    assert isinstance(load_training(str(old)), CLIP)


def test_the_teacher_of_a_distillation_is_not_needed_again(run: str, tmp_path: Path) -> None:
    model = {"width": 24, "depth": 3, "heads": 3, "img_size": 16, "patch_size": 4, "mean": [0.4, 0.5, 0.6]}
    tiny_training("dinov2", run, tmp_path / "teacher", {"prototypes": 14}, model=model)
    student = {**model, "width": 16, "depth": 1, "heads": 2}
    taught = tiny_training("dinov2", run, tmp_path / "taught", {"teacher": str(tmp_path / "teacher")}, model=student)
    shutil.rmtree(tmp_path / "teacher")
    back = load_training(taught)
    assert isinstance(back, DINOv2)
    assert back.frozen.config.depth == 3
    assert not any(parameter.requires_grad for parameter in back.frozen.parameters())
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in weights(taught).items())


@pytest.mark.parametrize("method", OPTIONS)
def test_a_recipe_gives_initial_weights_by_seed(method: str, tmp_path: Path) -> None:
    write_recipe(tiny_recipe(method, "none", tmp_path))
    names = (f"{tmp_path}/recipe.yaml", str(tmp_path), str(tmp_path))
    seeds = (0, 0, 1)
    models = [load_training(f"random:{name}", seed=seed) for name, seed in zip(names, seeds, strict=True)]
    assert type(models[0]) is load_method(method)
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_model_without_a_training_is_its_backbone(tmp_path: Path) -> None:
    vit = VisionTransformer(ViTConfig(img_size=16, patch_size=4, width=16, depth=1, heads=2)).eval()
    to_transformers(vit).save_pretrained(tmp_path / "plain")
    pixels = torch.randn(2, 3, 16, 16)
    for name in (f"hf:{tmp_path}/plain", f"{tmp_path}/plain"):
        back = load_training(name)
        assert isinstance(back, BackboneAlone)
        torch.testing.assert_close(back.evaluated_model()(pixels).cls, vit(pixels).cls)
    with pytest.raises(UserError, match="a backbone without a training"):
        back({}, None)
    assert load_training("random:tiny?img_size=16&patch_size=4").evaluated_model().config.width == 192


def broken_bytes(checkpoint: Path) -> None:
    (checkpoint / "training.safetensors").write_bytes((checkpoint / "training.safetensors").read_bytes()[:-9])


def of_unknown_method(checkpoint: Path) -> None:
    rewrite(checkpoint, method="paint")


def with_another_recipe(checkpoint: Path) -> None:
    recipe = json.loads((checkpoint / STATE).read_text())["recipe"]
    rewrite(checkpoint, recipe={**recipe, "options": {**recipe["options"], "prototypes": 13}})


def with_a_recipe_that_is_none(checkpoint: Path) -> None:
    rewrite(checkpoint, recipe={"options": {"prototypes": "many"}})


def with_sizes_beyond_all_memory(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "width": 2**20, "depth": 64}))
    rewrite(checkpoint)


def without_any_recipe(checkpoint: Path) -> None:
    rewrite(checkpoint, recipe=None)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (broken_bytes, r"alone is damaged \(training.safetensors is not what was written\)"),
        (of_unknown_method, "is a training of method 'paint'; the methods are .*clip"),
        (with_another_recipe, r"another architecture .* is \(12, 6\), not \(13, 6\)|is \(12, 1\), not \(13, 1\)"),
        (with_a_recipe_that_is_none, "the recipe of .*alone is not right: options.prototypes: Input should be"),
        (with_sizes_beyond_all_memory, r"another architecture than its recipe: .* is \(16,\), not \(1048576,\)"),
        (without_any_recipe, "holds no training that granary can read .*recipe.yaml"),
    ],
)
def test_what_cannot_come_back_is_a_sentence(damage: Any, sentence: str, trained: Any, tmp_path: Path) -> None:
    checkpoint = alone(trained("dinov2"), tmp_path)
    damage(checkpoint)
    with pytest.raises(UserError, match=sentence):
        load_training(str(checkpoint))


def test_a_place_without_a_model_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a training directory"):
        load_training(str(tmp_path))
    with pytest.raises(UserError, match="pixels is a baseline"):
        load_training("pixels")
