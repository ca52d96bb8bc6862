"""Models of other families of `transformers` as subjects and as students."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_hub import FAMILIES, saved
from tiny_shards import shapes, write_shards
from tiny_trainings import tiny_run, tiny_training

from granary.curation.errors import UserError
from granary.training.evaluation.evaluate import EvaluateRecipe, evaluate
from granary.training.methods.supervised import Supervised
from granary.training.models.export import export
from granary.training.models.hub_backbone import HubBackbone, hub_config
from granary.training.models.image_classifier import to_image_classifier
from granary.training.models.registry import load_model
from granary.training.models.training import load_training
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_vector_and_map_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model, pixels = saved(family, tmp_path), torch.randn(2, 3, 32, 32)
    ours, output = load_model(f"hf:{tmp_path}"), model(pixels)
    assert isinstance(ours, HubBackbone)
    tokens = ours(pixels)
    assert torch.equal(tokens.cls, output.pooler_output.flatten(1))
    hidden = output.last_hidden_state
    assert torch.equal(tokens.patches, hidden if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2))
    assert tokens.patches.shape == (2, ours.config.grid**2, ours.config.width)
    assert (ours.config.img_size, ours.config.mean, ours.config.std) == (32, (0.5,) * 3, (0.25,) * 3)
    assert [part.cls.shape for part in ours.last(pixels, 4)] == [tokens.cls.shape]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_what_is_saved_is_loaded_without_the_hub(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path / "theirs")
    ours, pixels = load_model(f"hf:{tmp_path / 'theirs'}"), torch.randn(2, 3, 32, 32)
    ours.save(str(tmp_path / "ours"))
    again = load_model(str(tmp_path / "ours"))
    assert again.config == ours.config
    assert torch.equal(again(pixels).cls, ours(pixels).cls)
    random = load_model(f"random:hf:{tmp_path / 'theirs'}", seed=1)
    assert random.config == ours.config
    assert not torch.equal(random(pixels).cls, ours(pixels).cls)
    export(str(tmp_path / "ours"), str(tmp_path / "export"))
    read = transformers.AutoModel.from_pretrained(tmp_path / "export").eval()
    assert torch.equal(read(pixels).pooler_output.flatten(1), ours(pixels).cls)
    with pytest.raises(UserError, match="export: timm takes a vit or a resnet"):
        export(str(tmp_path / "ours"), str(tmp_path / "timm"), "timm")


@pytest.mark.parametrize(
    "changes", [{"depths": [1, 10**9]}, {"hidden_sizes": [8, 10**9]}, {"hidden_sizes": [8, 16]}, {"model_type": "bert"}]
)
def test_a_config_that_lies_takes_no_memory(changes: dict[str, Any], tmp_path: Path) -> None:
    saved("convnext", tmp_path / "theirs")
    load_model(f"hf:{tmp_path / 'theirs'}").save(str(tmp_path / "ours"))
    config = tmp_path / "ours" / "config.json"
    tree = json.loads(config.read_text())
    architecture = json.dumps({**json.loads(tree["architecture"]), **changes})
    config.write_text(json.dumps({**tree, "architecture": architecture}))
    with pytest.raises(UserError, match="holds no model that granary can read"):
        load_model(str(tmp_path / "ours"))


def test_a_student_of_another_family_is_trained_resumed_and_measured(tmp_path: Path) -> None:
    saved("regnet", tmp_path / "theirs")
    run = str(write_shards(tmp_path / "run", shapes(40, 32), group=8))
    tree: dict[str, Any] = {
        "method": "supervised", "model": {"kind": "hub", "path": str(tmp_path / "theirs"), "img_size": 32},
        "init": f"hf:{tmp_path / 'theirs'}", "steps": 2, "batch": 8, "workers": 0, "data": run,
        "out": str(tmp_path / "out"), "logs": {"tensorboard": False}, "device": {"accelerator": "cpu", "threads": 1},
    }  # fmt: skip
    train(TrainRecipe.model_validate(tree))
    assert train(TrainRecipe.model_validate({**tree, "steps": 4}))["step"] == 4
    trained, start = (load_model(name).state_dict() for name in (str(tmp_path / "out"), f"hf:{tmp_path / 'theirs'}"))
    moved = [float((trained[name] - start[name]).abs().max()) for name in start if name.endswith("weight")]
    assert min(moved) > 0
    assert max(moved) < 0.05  # of few small steps from the weights of the Hub
    for model in (str(tmp_path / "out"), f"hf:{tmp_path / 'theirs'}"):
        measured = {"protocols": ["knn", "linear"], "model": model, "data": run, "device": "cpu"}
        assert evaluate(EvaluateRecipe.model_validate({**measured, "options": {"holdout": 0.4}}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_supervised_training_is_exported_with_its_classes(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path / "theirs")
    model = {"kind": "hub", "path": str(tmp_path / "theirs"), "img_size": 32}
    tiny_training("supervised", tiny_run(tmp_path / "run"), tmp_path / "out", model=model)
    export(str(tmp_path / "out"), str(tmp_path / "export"))
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "export").eval()
    ours, pixels = load_training(str(tmp_path / "out")), torch.randn(3, 3, 32, 32)
    assert isinstance(ours, Supervised)
    assert [theirs.config.id2label[number] for number in range(4)] == ours.classes
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels).logits, ours.head(ours.encoder(pixels).cls))


def test_a_family_without_a_classifier_on_that_vector_is_one_sentence(tmp_path: Path) -> None:
    saved("convnext", tmp_path / "theirs")
    backbone = HubBackbone(hub_config(str(tmp_path / "theirs"), 32))
    with pytest.raises(UserError, match="no image classifier of a convnext model on the vector"):
        to_image_classifier(backbone, torch.nn.Linear(5, 2), ["a", "b"])


def test_recomputing_is_left_to_transformers_or_refused(tmp_path: Path) -> None:
    for family in ("swin", "regnet"):
        saved(family, tmp_path / family)
    swin = HubBackbone(hub_config(str(tmp_path / "swin"), 32))
    swin.recompute = True
    swin.train()(torch.randn(2, 3, 32, 32)).cls.sum().backward()
    assert swin.model.is_gradient_checkpointing
    regnet = HubBackbone(hub_config(str(tmp_path / "regnet"), 32))
    regnet.recompute = True
    with pytest.raises(UserError, match=r"device\.recompute: a regnet model cannot be recomputed"):
        regnet(torch.randn(2, 3, 32, 32))


def test_what_is_no_backbone_is_one_sentence(tmp_path: Path) -> None:
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "hidden_size": 16}
    bert = transformers.BertModel(transformers.BertConfig(**small, vocab_size=8))
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="a bert model, is no backbone here: it takes input_ids, not pictures"):
        load_model(f"hf:{tmp_path / 'bert'}")
    deit = transformers.DeiTModel(transformers.DeiTConfig(**small, image_size=224, patch_size=56))
    deit.save_pretrained(tmp_path / "deit")
    with pytest.raises(
        UserError, match=r"a deit model, is no backbone here: its last_hidden_state, 18 tokens, is no map"
    ):
        load_model(f"hf:{tmp_path / 'deit'}")
    words = {"method": "supervised", "data": "RUN", "out": "OUT", "steps": 1}
    with pytest.raises(UserError, match=r"model\.path: '.*none' is not right: there is no such model"):
        TrainRecipe.model_validate({**words, "model": {"kind": "hub", "path": str(tmp_path / "none")}})
    with pytest.raises(ValueError, match=r"model\.kind is hub; ijepa trains vit alone"):
        TrainRecipe.model_validate({**words, "method": "ijepa", "model": {"kind": "hub", "path": "none"}})


def test_a_file_that_lacks_weights_is_one_sentence(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved("regnet", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[sorted(state)[0]]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="has no weights for"):
        load_model(f"hf:{tmp_path}")
