"""LoRA of a LLaVA and a BLIP: its loss is theirs, what learns, what is written and comes back, mistakes."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import List, Value
from measuring import measure
from peft import PeftModel
from same_training import SETTINGS, check_same, whole_and_cut
from tiny_clip import scene_rows, tiny_clip, write_pairs
from tiny_generators import write_blip, write_llava
from tiny_shards import shapes, write_shards
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from granary.curation.errors import UserError
from granary.curation.images.limits import DecodeLimits
from granary.pipelines.engine.recipe import load_recipe
from granary.training.data.conversations import Exchange
from granary.training.data.crops import Crop
from granary.training.data.processed_views import ProcessedViews
from granary.training.evaluation.generators import load_generator
from granary.training.evaluation.protocols import binary_choice, retrieval
from granary.training.method import Moment
from granary.training.methods.generator_lora import GeneratorLora, GeneratorLoraOptions
from granary.training.models.answers import framed, turns
from granary.training.models.export import export
from granary.training.models.hub_backbone import load_hub
from granary.training.models.hub_generative import load_hub_generative
from granary.training.models.language import PICTURE
from granary.training.models.registry import load_model
from granary.training.models.training import load_training
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

TEXTS = ["a red block", "the blue rectangle is on the left", "a picture of a green block"]
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0}
HOT = {"lr": 0.02, "final_lr": 0.02}
KINDS = ("llava", "blip")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LLaVA, and a BLIP, whose tables of input and output are one."""
    write = write_llava if request.param == "llava" else write_blip
    return write(tmp_path_factory.mktemp("generator") / request.param)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [{**row, "captions": TEXTS[n % 3 : n % 3 + 1]} for n, row in enumerate(shapes(24))]
    return str(write_shards(tmp_path_factory.mktemp("run"), rows))


def recipe_of(folder: str, run: str, out: Path, **changes: Any) -> TrainRecipe:
    options = {"generator": folder, "lora": LORA, **changes.pop("options", {})}
    settings = {**SETTINGS, "method": "generator_lora", "options": options, "data": run, "out": str(out)}
    return TrainRecipe.model_validate({**settings, "steps": 4, "batch": 8, "optimiser": HOT, **changes})


def method_of(folder: str, **options: Any) -> GeneratorLora:
    torch.manual_seed(0)
    given = GeneratorLoraOptions.model_validate({"generator": folder, "lora": LORA, **options})
    generator = load_hub_generative(folder)
    return GeneratorLora(generator.config, given, generator)


def theirs_of(folder: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def batch_of(folder: str, captions: list[list[str]]) -> dict[str, Any]:
    views = ProcessedViews(folder)
    rows = [{"data": row["image"]["bytes"]} for row in shapes(len(captions))]
    pictures = [views(row, torch.Generator(), {"image": Crop(1, 32)}, DecodeLimits())["image"] for row in rows]  # type: ignore[arg-type]
    return {
        "image": torch.stack([torch.from_numpy(picture) for picture in pictures]),
        "captions": captions,
        "id": [str(number) for number in range(len(captions))],
    }


def their_loss(folder: str, pixels: Tensor, texts: list[str]) -> Tensor:
    """The loss of transformers for texts of one length, from ids in which LLaVA's picture is as many as its vectors."""
    model, ours = theirs_of(folder), load_hub_generative(folder)
    tokens, targets = framed(ours, [[Exchange(None, text)] for text in texts], 512)
    if "llava" in folder:
        (place,) = {row.index(PICTURE) for row in tokens.tolist()}
        picture = torch.full((len(texts), 16), model.config.image_token_id)
        tokens = torch.cat([tokens[:, :place], picture, tokens[:, place + 1 :]], dim=1)
        ignored = torch.full_like(picture, -100)
        targets = torch.cat([targets[:, :place], ignored, targets[:, place + 1 :]], dim=1)
    loss: Tensor = model(input_ids=tokens, pixel_values=pixels, labels=targets).loss
    return loss


def test_the_loss_is_that_of_transformers_until_an_adapter_learns(folder: str) -> None:
    """The same text for all pictures: BLIP of transformers masks nothing after the end of a shorter one."""
    method, texts = method_of(folder), TEXTS[:1] * 3
    found = method(batch_of(folder, [[text] for text in texts]), Moment(0, 10, 0))
    processor = load_hub_generative(folder).images
    images = [shape["image"]["bytes"] for shape in shapes(3)]
    pixels = torch.stack([p for p in load_generator(f"hf:{folder}", "cpu").pictures(images) if isinstance(p, Tensor)])
    assert len(pixels) == 3
    assert type(processor).__name__.endswith("Pil")
    with torch.no_grad():
        torch.testing.assert_close(found["loss"], their_loss(folder, pixels, texts), rtol=1e-4, atol=1e-5)


def test_adapters_and_biases_of_what_says_texts_learn_and_nothing_else(folder: str) -> None:
    method = method_of(folder)
    learning = {name for name, p in method.named_parameters() if p.requires_grad}
    part = method.generator.SPEAKS
    assert all(name.startswith(f"network.base_model.model.{part}.") for name in learning)
    adapted = {name.partition(".lora_")[0] for name in learning if ".lora_" in name}
    text = theirs_of(folder).get_submodule(part)
    layers = {name for name, layer in text.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert {name.removeprefix(f"network.base_model.model.{part}.") for name in adapted} == layers
    loss = method(batch_of(folder, [["a red block"], ["a green block"], []]), Moment(0, 10, 0))
    loss["loss"].backward()
    assert loss["skipped"] == 1
    assert all(p.grad is not None for name, p in method.named_parameters() if ".lora_B" in name)
    method.train()
    assert not method.generator.vision.training


def test_nothing_said_at_all_is_a_loss_of_0(folder: str) -> None:
    found = method_of(folder)(batch_of(folder, [[], []]), Moment(0, 10, 0))
    assert found["loss"] == 0


def test_what_is_written_says_the_same_everywhere(folder: str, run: str, tmp_path: Path) -> None:
    """Adapters by peft, the merged model by transformers, the training by granary: without what it started from."""
    from shutil import copytree

    base = copytree(folder, tmp_path / Path(folder).name)
    recipe = recipe_of(str(base), run, tmp_path / "out")
    train(recipe)
    base.rename(tmp_path / "gone")
    files = [row["image"]["bytes"] for row in shapes(3)]
    said = {}
    for name, path in (("trained", recipe.out), ("merged", f"hf:{recipe.out}/model"), ("plain", f"hf:{folder}")):
        generator = load_generator(path, "cpu")
        pictures = torch.stack([p for p in generator.pictures(files) if isinstance(p, Tensor)])
        said[name] = generator.loglikelihood(pictures, TEXTS)
        said[f"{name} words"] = torch.tensor([len(text) for text in generator.describe(pictures, 5)])
    torch.testing.assert_close(said["trained"], said["merged"], rtol=1e-3, atol=1e-3)
    assert torch.equal(said["trained words"], said["merged words"])
    assert (said["trained"] - said["plain"]).abs().max() > 0.5
    adapted = PeftModel.from_pretrained(theirs_of(folder), f"{recipe.out}/adapter").merge_and_unload().state_dict()
    merged = theirs_of(f"{recipe.out}/model").state_dict()
    for name in adapted.keys() & merged.keys():
        torch.testing.assert_close(adapted[name], merged[name], rtol=1e-4, atol=1e-5)
    assert type(AutoProcessor.from_pretrained(f"{recipe.out}/model")).__name__.endswith("Processor")
    export(recipe.out, str(tmp_path / "exported"))
    again = theirs_of(str(tmp_path / "exported")).state_dict()
    assert all(torch.equal(merged[name], again[name]) for name in merged)
    assert measure(retrieval, recipe.out, run, device="cpu")["pictures"] == 24
    assert measure(binary_choice, recipe.out, write_pairs(tmp_path, scene_rows(3)), device="cpu")["questions"] == 6


def test_the_model_to_use_is_its_image_encoder(folder: str, run: str, tmp_path: Path) -> None:
    recipe = recipe_of(folder, run, tmp_path / "out", steps=1)
    train(recipe)
    pixels = torch.randn(2, 3, 32, 32)
    ours, theirs = load_model(recipe.out), load_hub_generative(folder).vision
    with torch.no_grad():
        tokens, expected = ours(pixels), theirs(pixel_values=pixels)
    torch.testing.assert_close(tokens.cls, expected.pooler_output)
    torch.testing.assert_close(tokens.patches, expected.last_hidden_state[:, 1:])


@pytest.mark.parametrize("kind", KINDS)
def test_cut_in_two_it_ends_as_if_never_stopped(kind: str, tmp_path: Path) -> None:
    folder = (write_llava if kind == "llava" else write_blip)(tmp_path / kind)
    options = {"generator": folder, "lora": {**LORA, "dropout": 0.2}}
    check_same(*whole_and_cut({"method": "generator_lora", "options": options, "optimiser": HOT}, tmp_path))


def test_tables_that_were_one_are_two_and_the_merged_model_says_so(run: str, tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "llava", tied=True)
    recipe = recipe_of(folder, run, tmp_path / "out", steps=1)
    train(recipe)
    merged = theirs_of(f"{recipe.out}/model")
    assert not merged.config.tie_word_embeddings
    table = theirs_of(folder).get_input_embeddings().weight
    assert torch.equal(merged.get_input_embeddings().weight, table)
    assert torch.equal(merged.get_output_embeddings().weight, table)


def test_it_learns_what_it_is_shown(folder: str, run: str, tmp_path: Path) -> None:
    recipe = recipe_of(folder, run, tmp_path / "out", steps=30)
    train(recipe)
    losses = [float(row["loss"]) for row in csv.DictReader(io.StringIO((tmp_path / "out/metrics.csv").read_text()))]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_later_turns_of_llava_have_no_picture(tmp_path: Path) -> None:
    model = load_hub_generative(write_llava(tmp_path / "llava"))
    chat = [Exchange("is there a block", "red"), Exchange("a picture", "blue")]
    tokens, answers = turns(model, chat, 512)
    plain = model.tokenizer.plain
    second = [*plain("USER: a picture ASSISTANT:"), *plain("blue"), model.end]
    assert tokens.count(PICTURE) == 1
    assert tokens[-len(second) :] == second
    assert [t for t, answer in zip(tokens, answers, strict=True) if answer] == [
        *plain("red"), model.end, *plain("blue"), model.end,
    ]  # fmt: skip


def test_questions_teach_llava_to_answer(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "llava")
    asked = {"questions": List({"question": Value("string"), "answer": Value("string")})}
    rows = [
        {**row, "questions": [{"question": "a picture of", "answer": "red" if n % 2 else "blue"}]}
        for n, row in enumerate(shapes(16))
    ]
    run = str(write_shards(tmp_path / "run", rows, extra=asked))
    options = {"columns": ["questions"]}
    facts = train(recipe_of(folder, run, tmp_path / "out", options=options, steps=2))
    assert facts["finished"]
    method = load_training(str(tmp_path / "out"))
    assert isinstance(method, GeneratorLora)
    assert method.options.columns == ("questions",)


@pytest.mark.parametrize("name", ["generator_lora_llava15_7b", "generator_lora_blip"])
def test_the_shipped_recipes_run_at_a_reduced_size(name: str, run: str, tmp_path: Path) -> None:
    folder = write_blip(tmp_path / "blip") if name.endswith("blip") else write_llava(tmp_path / "llava")
    small = "--steps 2 --epochs null --batch 8 --accumulate 2 --streams 2 --workers 0 --device.accelerator cpu "
    small += "--device.precision 32-true --options.columns captions"
    places = ["--options.generator", folder, "--data", run, "--out", str(tmp_path / "out")]
    recipe = load_recipe(TrainRecipe, f"configs/train/{name}.yaml", [*places, *small.split()])
    assert train(recipe)["finished"]


def test_mistakes_are_sentences(run: str, tmp_path: Path) -> None:
    blip, clip = write_blip(tmp_path / "blip"), tmp_path / "clip"
    tiny_clip(width=16, layers=(1, 1)).save(str(clip))
    silent = str(write_shards(tmp_path / "silent", [{**row, "captions": []} for row in shapes(8)]))
    for says, given in {
        r"options\.generator: '.*clip' is not right; give a Llava": (str(clip), run, {}),
        r"there is no folder": (str(tmp_path / "nothing/at/all"), run, {}),
        r"options\.columns: questions is not right: .* is a BLIP, which says captions": (
            blip, asked_run(tmp_path), {"options": {"columns": ["captions", "questions"]}},
        ),
        r"nothing is said in the columns captions of .*silent": (blip, silent, {}),
        r"device\.recompute: true is not right: generator_lora has no part that this is for": (
            blip, run, {"device": {"accelerator": "cpu", "threads": 1, "recompute": True}},
        ),
        r"init: 'random:tiny' is not right: this method starts from the model": (blip, run, {"init": "random:tiny"}),
    }.items():  # fmt: skip
        folder, data, changes = given
        with pytest.raises(UserError, match=says):
            train(recipe_of(folder, data, tmp_path / "out", **changes))  # type: ignore[arg-type]


def asked_run(folder: Path) -> str:
    rows = [{**row, "questions": [{"question": "a", "answer": "b"}]} for row in shapes(8)]
    asked = {"questions": List({"question": Value("string"), "answer": Value("string")})}
    return str(write_shards(folder / "asked", rows, extra=asked))


def test_a_backbone_with_a_class_token_before_its_map_is_read(tmp_path: Path) -> None:
    """DeiT's configuration is that of no ViT here; its tokens begin with those of class, BEiT's with one."""
    from transformers import BeitConfig, BeitModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = BeitModel(BeitConfig(**sizes, image_size=32, patch_size=8)).eval()
    theirs.save_pretrained(tmp_path / "beit")
    ours, pixels = load_hub(str(tmp_path / "beit")), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens, expected = ours(pixels), theirs(pixels)
    assert tokens.patches.shape == (2, 16, 16)
    torch.testing.assert_close(tokens.patches, expected.last_hidden_state[:, 1:])
    torch.testing.assert_close(tokens.cls, expected.pooler_output)
