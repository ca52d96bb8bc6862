"""What of a training would be sent: the exported model, the whole training, and nothing of this machine."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_trainings import SETTINGS, tiny_run, tiny_training

from granary.curation.errors import UserError
from granary.curation.hub.card import parse_card
from granary.curation.hub.publication import Publication
from granary.training.data.tokenizer import train_tokenizer
from granary.training.methods.clip import CLIP
from granary.training.models.training import load_training
from granary.training.run.publication import gather_training, shared

REPO = "org/shapes"
PROBE = {"every": 2, "train": 8, "test": 4, "k": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run(tmp_path_factory.mktemp("secret-place") / "shapes")


@pytest.fixture(scope="module")
def trained(run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("secret-place") / "out"
    tiny_training("supervised", run, out, name="shapes", probe=PROBE)
    scores = {"knn": {"accuracy": 0.5, "accuracy.chance": 0.25, "odd": math.nan}, "linear": {"accuracy": 0.75}}
    settings = {"model": str(out), "data": run, "out": f"{out}/scores.json"}
    (out / "scores.json").write_text(json.dumps({**scores, "settings": settings}))
    return out


def written(publication: Publication, folder: Path) -> Path:
    """Write a publication into a folder, as a download of the repository would."""
    for upload in [*publication.large, *publication.beside]:
        path = folder / upload.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with upload.open() as file:
            path.write_bytes(file.read())
    return folder


def test_the_repository_is_the_training(trained: Path, tmp_path: Path) -> None:
    publication = gather_training(str(trained), REPO, str(tmp_path / "scratch"), "mit")
    copy = written(publication, tmp_path / "copy")
    assert publication.name == "shapes"
    step = "checkpoints/step-000000002"
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} == {
        "README.md", "recipe.yaml", "run.json", "metrics.csv", "probe.csv", "scores.json",
        "config.json", "model.safetensors", "preprocessor_config.json",
        *(f"{step}/{name}" for name in ("config.json", "model.safetensors", "training.safetensors", "state.json")),
    }  # fmt: skip
    back, source = load_training(str(copy)), load_training(str(trained))
    assert back.known == source.known
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in source.state_dict().items())
    assert json.loads((copy / "config.json").read_text())["architectures"] == ["ViTForImageClassification"]
    assert json.loads((copy / "run.json").read_text())["checkpoint"] == step


def test_nothing_of_this_machine_is_sent(trained: Path, tmp_path: Path) -> None:
    publication = gather_training(str(trained), REPO, str(tmp_path), "mit")
    for upload in [*publication.large, *publication.beside]:
        with upload.open() as file:
            data = file.read()
        assert b"secret-place" not in data, upload.path
        assert str(tmp_path).encode() not in data, upload.path
    recipe = yaml.safe_load(publication.texts["recipe.yaml"])
    assert recipe["data"][0]["path"] == "shapes"
    assert recipe["out"] == "out"


def test_the_card_says_what_the_model_is_worth(trained: Path, tmp_path: Path) -> None:
    card = gather_training(str(trained), REPO, str(tmp_path), "mit").texts["README.md"]
    header, _ = parse_card(card)
    assert (header["license"], header["library_name"]) == ("mit", "transformers")
    assert header["pipeline_tag"] == "image-classification"
    assert header["tags"] == ["granary", "supervised"]
    (model,) = header["model-index"]
    found = {result["metrics"][0]["name"]: result["metrics"][0]["value"] for result in model["results"]}
    probe = json.loads((trained / "run.json").read_text())["probe"]
    assert found == {
        "accuracy (knn)": 0.5,
        "accuracy (linear)": 0.75,
        **{f"{name} (online probe)": value for name, value in probe.items()},
    }
    assert 'granary.load_training("hf:org/shapes")' in card
    assert "transformers.ViTForImageClassification.from_pretrained('org/shapes')" in card
    assert "2 of 2 steps, 8 pictures each" in card


def test_a_card_that_stands_on_the_hub_keeps_what_somebody_wrote(trained: Path, tmp_path: Path) -> None:
    publication = gather_training(str(trained), REPO, str(tmp_path), None)
    theirs = publication.texts["README.md"].replace("license: unknown", "license: apache-2.0\nlanguage: en")
    theirs = theirs.replace("begin about -->\n", "begin about -->\nWords of somebody.\n")
    card = publication.over(theirs).texts["README.md"]
    assert parse_card(card)[0] | {"license": "apache-2.0", "language": "en"} == parse_card(card)[0]
    assert "Words of somebody." in card


def test_a_tokenizer_of_this_machine_is_not_named(run: str, tmp_path: Path) -> None:
    place = tmp_path / "secret-place"
    place.mkdir()
    (place / "tokenizer.json").write_text(train_tokenizer(["a circle", "a square"], 512))
    tiny_training("clip", run, tmp_path / "out", {"tokenizer": f"{place}/tokenizer.json"})
    copy = written(gather_training(str(tmp_path / "out"), REPO, str(tmp_path / "scratch")), tmp_path / "copy")
    assert not any(b"secret-place" in path.read_bytes() for path in copy.rglob("*") if path.is_file())
    back = load_training(str(copy))
    assert isinstance(back, CLIP)
    (file,) = (tmp_path / "out").rglob("training.safetensors")
    trained = load_file(file)
    assert all(torch.equal(tensor, trained[f"method/{name}"]) for name, tensor in back.state_dict().items())
    text = bytearray(
        json.dumps({"options": {"tokenizer": f"{place}/words.json"}, "tokenizer": back.tokenizer.json}).encode()
    )
    save_file({**trained, "method/described": torch.frombuffer(text, dtype=torch.uint8)}, file)  # of before
    state = json.loads((file.parent / "state.json").read_text()) | {"known": None}
    state["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (file.parent / "state.json").write_text(json.dumps(state))
    old = written(gather_training(str(tmp_path / "out"), REPO, str(tmp_path / "second")), tmp_path / "old")
    assert not any(b"secret-place" in path.read_bytes() for path in old.rglob("*") if path.is_file())
    again = load_training(str(old))
    assert isinstance(again, CLIP)
    assert again.tokenizer.json == back.tokenizer.json


def test_a_model_that_transformers_does_not_have_goes_as_a_training(run: str, tmp_path: Path) -> None:
    model = {**SETTINGS["model"], "pos_embed": "rotary", "heads": 1}
    tiny_training("supervised", run, tmp_path / "out", model=model)
    publication = gather_training(str(tmp_path / "out"), REPO, str(tmp_path))
    assert parse_card(publication.texts["README.md"])[0]["library_name"] == "granary"
    assert {upload.path.split("/")[0] for upload in publication.large} == {"checkpoints"}


def test_a_model_that_the_training_wrote_itself_is_taken_as_it_is(trained: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    (out / "model").mkdir()
    (out / "model" / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    (out / "model" / "model.safetensors").write_bytes(b"merged")
    publication = gather_training(str(out), REPO, str(tmp_path / "scratch"))
    copy = written(publication, tmp_path / "copy")
    assert (copy / "model.safetensors").read_bytes() == b"merged"
    assert "transformers.CLIPModel.from_pretrained('org/shapes')" in publication.texts["README.md"]


def test_a_training_without_a_checkpoint_is_a_sentence(trained: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(trained, tmp_path / "bare"))
    shutil.rmtree(bare / "checkpoints")
    with pytest.raises(UserError, match="is a training without a checkpoint"):
        gather_training(str(bare), REPO, str(tmp_path))


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/home/me/runs/cats", "cats"),
        ("runs/cats/", "cats"),
        ("file:///home/me/cats", "cats"),
        ("s3://bucket/cats?X-Amz-Signature=c0ffee", "s3://bucket/cats"),
        ("https://me:pw@host/cats", "https://host/cats"),
        ("hf:facebook/dinov2-small", "hf:facebook/dinov2-small"),
        ("hf:/home/me/model", "hf:model"),
        ("hf://datasets/org/cats", "hf://datasets/org/cats"),
        ("cross-entropy", "cross-entropy"),
    ],
)
def test_an_address_is_sent_without_what_is_local_or_secret(written: str, sent: str) -> None:
    tree: Any = {"data": [{"path": written, "weight": 1.0}], "deep": {"none": None}}
    assert shared(tree) == {"data": [{"path": sent, "weight": 1.0}], "deep": {"none": None}}
