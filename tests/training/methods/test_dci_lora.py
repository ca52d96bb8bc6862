"""Facts about the LoRA fine-tuning: its losses, what learns, what is saved, going on, and old recipes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from tiny_clip import png, row, scene_rows, tiny_clip, write_pairs
from torch.nn.functional import binary_cross_entropy_with_logits

from granary.curation.errors import UserError
from granary.curation.images.limits import DecodeLimits
from granary.pipelines.engine.recipe import load_recipe
from granary.training.data.clip_views import ClipViews
from granary.training.data.crops import Crop
from granary.training.data.loader import batches
from granary.training.data.pairs import Entry, read_entries
from granary.training.evaluation.evaluate import EvaluateRecipe
from granary.training.method import Moment
from granary.training.methods.dci_lora import DciLora, DciLoraOptions
from granary.training.models.checkpoint import chosen, usable
from granary.training.models.clip_transformers import ClipModel
from granary.training.models.registry import load_model
from granary.training.models.training import load_training
from granary.training.recipe import TrainRecipe
from granary.training.run.devices import make_fabric
from granary.training.run.directory import RunFacts
from granary.training.run.loop import TrainingSession, train

Setup = Callable[..., TrainRecipe]
Built = Callable[..., DciLora]
LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "visual_projection", "text_projection")
VALID = {"split": "valid", "keep_best": True}


@pytest.fixture(scope="module")
def base() -> ClipModel:
    return tiny_clip(width=16, layers=(1, 1))


@pytest.fixture(scope="module")
def folder(base: ClipModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and 23 entries to train on and 6 to validate."""
    folder = tmp_path_factory.mktemp("clip")
    base.save(str(folder / "model"))
    write_pairs(folder, [*scene_rows(23), *scene_rows(6, 1, "valid")], 3)
    return folder


@pytest.fixture
def setup(folder: Path, tmp_path: Path) -> Setup:
    """Return recipes; `out` as named, options beside the other keys."""

    def recipe(out: str = "out", **changes: Any) -> TrainRecipe:
        options = {name: changes.pop(name) for name in list(changes) if name in DciLoraOptions.model_fields}
        settings: dict[str, Any] = {
            "method": "dci_lora",
            "options": {"clip": str(folder / "model"), **options},
            "data": str(folder),
            "out": str(tmp_path / out),
            "split": "train",
            "epochs": None if "steps" in changes else 2,
            "batch": 8,
            "workers": 0,
            "optimiser": {"lr": 1e-3, "final_lr": 1e-3},
            "alarm": {"every": 0},
            "logs": {"every": 1, "tensorboard": False},
            "device": {"accelerator": "cpu", "threads": 1},
        }
        return TrainRecipe.model_validate({**settings, **changes})

    return recipe


@pytest.fixture
def built(folder: Path) -> Built:
    """Return methods in evaluation mode with the adapters of seed 0."""

    def method(**options: Any) -> DciLora:
        torch.manual_seed(0)
        settings = DciLoraOptions.model_validate({"clip": str(folder / "model"), **options})
        made = DciLora(load_model("random:tiny").config, settings, ClipModel.load(settings.clip, "cpu"))
        return made.eval()  # type: ignore[return-value]

    return method


def batch_of(method: DciLora, entries: list[Entry], clip: str | None = None) -> dict[str, Any]:
    """Return entries as the loader hands them over."""
    views, crops = ClipViews(clip or method.options.clip), method.views()
    rows = [{"data": e.picture.data, "path": "", "key": e.id} for e in entries]
    pictures = [views(row, np.random.default_rng(0), crops, DecodeLimits())["image"] for row in rows]
    return {
        "image": torch.from_numpy(np.stack(pictures)),
        "captions": [list(entry.captions) for entry in entries],
        "negatives": [[{"kind": n.kind, "text": n.text, "score": n.score} for n in e.negatives] for e in entries],
        "id": [entry.id for entry in entries],
    }


@pytest.fixture(scope="module")
def entries(folder: Path) -> list[Entry]:
    return list(read_entries(str(folder), "train"))


def weights(recipe: TrainRecipe) -> bytes:
    return (Path(recipe.out) / "model" / "model.safetensors").read_bytes()


def curve(recipe: TrainRecipe, name: str = "metrics") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((Path(recipe.out) / f"{name}.csv").read_text())))


# -- the pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (200, 61), (31, 500), (5, 9)])
def test_pictures_are_those_of_the_processor(
    size: tuple[int, int], folder: Path, base: ClipModel, built: Built
) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    made = ClipViews(str(folder / "model"))(
        {"data": png(picture), "path": "", "key": "a"}, np.random.default_rng(0), {"image": Crop(1, 32)}, DecodeLimits()
    )["image"]
    assert (made.shape, made.dtype) == ((1, 32, 32, 3), np.uint8)
    method = built()
    torch.testing.assert_close(method.pixels(torch.from_numpy(made)), base.pixels([picture]), atol=1e-5, rtol=1e-5)


def test_crops_are_cut_out_of_whole_images(folder: Path, tmp_path: Path) -> None:
    """A row without a picture gives what one with the crop stored does."""
    whole = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8))
    boxed = row("a", b"", ["a block"], box=[10, 20, 60, 70], mask="", file="a.json") | {"image": None}
    data = write_pairs(tmp_path, [boxed])
    (tmp_path / "dataset" / "data").mkdir()
    import pyarrow as pa

    table = pa.table({"file": ["a.json"], "image": [{"bytes": png(whole), "path": "a.png"}]})
    pq.write_table(table, tmp_path / "dataset" / "data" / "train-00000-of-00001.parquet")
    views, limits = ClipViews(str(folder / "model")), DecodeLimits()
    generator, crops = np.random.default_rng(0), {"image": Crop(1, 32)}
    place = {
        "data": b"",
        "path": data,
        "key": "a",
        **{name: boxed[name] for name in ("file", "box", "mask", "darkened")},
    }
    stored = {"data": png(whole.crop((10, 20, 60, 70))), "path": data, "key": "a"}
    one, two = (views(given, generator, crops, limits)["image"] for given in (place, stored))
    assert np.array_equal(one, two)


# -- the step --------------------------------------------------------------------------------------------------------


def test_the_losses_are_those_of_transformers_and_torch(built: Built, base: ClipModel, entries: list[Entry]) -> None:
    """One step's losses against the model's own contrastive loss and binary cross-entropy, entry by entry."""
    method, few = built(captions="first", beta=9, alpha=0.5), entries[:5]
    with torch.no_grad():
        losses = method(batch_of(method, few), Moment(0, 1, 0))
        pixels = base.pixels([entry.image() for entry in few])
        firsts = base.tokens([entry.captions[0] for entry in few])
        theirs = base.model(pixel_values=pixels, return_loss=True, **firsts)
        terms = []
        for at, entry in enumerate(few):
            inputs = base.tokens([entry.captions[0], entry.negatives[0].text])
            logits = base.model(pixel_values=pixels[at : at + 1], **inputs).logits_per_image[0]
            terms.append(binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 0.0])))
    torch.testing.assert_close(losses["clip_loss"], theirs.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["negative_loss"], torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["loss"], 0.5 * losses["clip_loss"] + 9 * losses["negative_loss"])


@pytest.mark.parametrize("pooling", ["mean", "hardest", "hardest_as_published"])
def test_pick5_trains_on_five_captions_of_each_entry(pooling: str, built: Built, entries: list[Entry]) -> None:
    method = built(captions="pick5", pooling=pooling)
    batch = batch_of(method, entries[:4])
    texts = method.choose(batch, Moment(0, 1, 0))
    assert texts.captions == [text for entry in entries[:4] for text in entry.captions[:5]]
    assert len(texts.negatives) == 4
    assert torch.isfinite(method(batch, Moment(0, 1, 0))["loss"])


def test_the_negative_term_as_published_is_that_of_hardest(built: Built, entries: list[Entry]) -> None:
    terms = {}
    for pooling in ("hardest", "hardest_as_published"):
        method = built(captions="pick5", pooling=pooling)
        terms[pooling] = method(batch_of(method, entries[:4]), Moment(0, 1, 0))
    hardest, published = terms["hardest"], terms["hardest_as_published"]
    torch.testing.assert_close(hardest["negative_loss"], published["negative_loss"])
    assert not torch.equal(hardest["clip_loss"], published["clip_loss"])


def test_entries_without_a_negative_still_have_a_contrastive_loss(built: Built, entries: list[Entry]) -> None:
    method = built(captions="first")
    batch = batch_of(method, entries[:8])
    whole = method(batch, Moment(0, 1, 0))
    batch["negatives"][:4] = [[]] * 4
    assert list(method.choose(batch, Moment(0, 1, 0)).negatives) == [4, 5, 6, 7]
    half = method(batch, Moment(0, 1, 0))
    torch.testing.assert_close(half["clip_loss"], whole["clip_loss"])
    assert not torch.equal(half["negative_loss"], whole["negative_loss"])


def test_entries_without_a_caption_are_left_out_and_counted(built: Built, entries: list[Entry]) -> None:
    method = built(captions="first")
    six = method(batch_of(method, entries[:6]), Moment(0, 1, 0))
    batch = batch_of(method, entries[:8])
    batch["captions"][6:] = [["", "  "], []]
    eight = method(batch, Moment(0, 1, 0))
    torch.testing.assert_close(six["loss"], eight["loss"])
    assert eight["skipped"] == 2
    batch["captions"] = [[]] * 8
    nothing = method(batch, Moment(0, 1, 0))
    nothing["loss"].backward()
    assert nothing["loss"] == 0
    assert all(p.grad is None or not p.grad.any() for p in method.parameters())


def test_texts_that_are_cut_are_counted(built: Built, entries: list[Entry]) -> None:
    method = built(captions="first", beta=0)
    batch = batch_of(method, entries[:3])
    batch["captions"][1] = ["red " * 500]
    assert method(batch, Moment(0, 1, 0))["truncated"] == 1


# -- what learns and what is saved -----------------------------------------------------------------------------------


def test_the_number_of_parameters_that_learn(built: Built) -> None:
    """Rank 2: for each layer 2 (in + out), and its bias; the projections have none. Width 16, MLP 64, a block each."""
    block = 4 * (2 * (16 + 16) + 16) + (2 * (16 + 64) + 64) + (2 * (64 + 16) + 16)
    learning = sum(p.numel() for group in built(lora={"rank": 2}).parameter_groups() for p in group.params)
    assert learning == 2 * block + 2 * 2 * (16 + 16)


def test_only_the_adapted_layers_change(setup: Setup, base: ClipModel) -> None:
    recipe = setup(optimiser={"lr": 0.01, "final_lr": 0.01})
    train(recipe)
    before, after = base.model.state_dict(), ClipModel.load(recipe.out, "cpu").model.state_dict()
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.split(".")[-2:][0] in LAYERS}


def test_adapters_on_the_base_are_the_merged_model_and_the_checkpoint(
    setup: Setup, folder: Path, base: ClipModel
) -> None:
    from peft import PeftModel

    recipe = setup(optimiser={"lr": 0.01, "final_lr": 0.01})
    train(recipe)
    files = {path.name for path in (Path(recipe.out) / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    adapted = ClipModel.load(str(folder / "model"), "cpu")
    adapted.model = PeftModel.from_pretrained(adapted.model, f"{recipe.out}/adapter").get_base_model().eval()
    merged = ClipModel.load(recipe.out, "cpu")
    valid = list(read_entries(str(folder), "valid"))
    pixels = base.pixels([entry.image() for entry in valid])
    texts = [entry.captions[0] for entry in valid]
    a, b, plain = (clip.logits(clip.images(pixels), clip.texts(texts)) for clip in (adapted, merged, base))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert (a - plain).abs().max() > 0.05
    ours = load_model(recipe.out)
    theirs = merged.model.vision_model(pixel_values=pixels).pooler_output
    torch.testing.assert_close(ours(pixels).cls, theirs, atol=1e-4, rtol=1e-4)


def test_a_training_comes_back_whole_without_the_model_it_started_from(
    setup: Setup, base: ClipModel, folder: Path, entries: list[Entry], tmp_path: Path
) -> None:
    base.save(str(tmp_path / "gone"))
    recipe = setup(clip=str(tmp_path / "gone"), captions="first")
    train(recipe)
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    method = load_training(recipe.out)
    assert isinstance(method, DciLora)
    merged = ClipModel.load(recipe.out, "cpu")
    few = entries[:5]
    with torch.no_grad():
        batch = batch_of(method, few, str(folder / "model"))
        loss = method(batch, Moment(0, 1, 0))["clip_loss"]
        pixels = merged.pixels([entry.image() for entry in few])
        theirs = merged.model(pixel_values=pixels, return_loss=True, **merged.tokens([e.captions[0] for e in few]))
    torch.testing.assert_close(loss, theirs.loss, atol=1e-5, rtol=1e-5)


def test_nothing_written_is_pickled(setup: Setup) -> None:
    recipe = setup(epochs=1)
    train(recipe)
    endings = {path.suffix for path in Path(recipe.out).rglob("*") if path.is_file()}
    assert endings == {".safetensors", ".json", ".csv", ".yaml", ".html", ".jpg"}


# -- going on --------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(setup: Setup) -> None:
    for out, seed, workers in (("a", 0, 0), ("b", 0, 2), ("c", 1, 0)):
        train(setup(out, seed=seed, workers=workers))
    assert weights(setup("a")) == weights(setup("b"))
    assert weights(setup("a")) != weights(setup("c"))
    assert curve(setup("a")) == curve(setup("b"))


@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_stopped_at_any_step_and_continued_is_as_if_never_stopped(
    at: int, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(setup("whole", steps=6, checkpoints={"every": 2}, validation=VALID))
    step = TrainingSession._update

    def killed(self: Any, number: int) -> None:
        if number == at:
            raise KeyboardInterrupt
        step(self, number)

    recipe = setup("stopped", steps=6, checkpoints={"every": 2}, validation=VALID)
    monkeypatch.setattr(TrainingSession, "_update", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.setattr(TrainingSession, "_update", step)
    train(recipe)
    assert weights(setup("whole")) == weights(recipe)
    assert curve(setup("whole")) == curve(recipe)
    one, two = (load_file(next(usable(setup(out).out)) + "/training.safetensors") for out in ("whole", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_weights_with_the_lowest_validation_loss_are_written(setup: Setup, built: Built, folder: Path) -> None:
    """At this rate the loss of later epochs is higher; the loss of what was written is the lowest one."""
    hot = {"lr": 0.3, "final_lr": 0.3}
    recipe = setup(optimiser=hot, epochs=4, captions="first", validation=VALID)
    facts = train(recipe)
    losses = [float(row["loss"]) for row in curve(recipe, "validation")]
    assert min(losses) < losses[-1]
    assert facts["best"] is not None
    assert facts["best"]["loss"] == min(losses)
    method = built(captions="first", clip=recipe.out)
    batch = batch_of(method, list(read_entries(str(folder), "valid")))
    with torch.no_grad():
        assert float(method(batch, Moment(0, 1, 0))["loss"]) == pytest.approx(min(losses), rel=1e-3)


def test_parts_of_a_batch_are_compared_within_themselves(setup: Setup) -> None:
    """As the shares of two devices are: batch 16 in two parts has the mean of the losses of its halves."""
    recipe = setup(steps=1, batch=16, accumulate=2, streams=2, captions="first", lora={"dropout": 0.0})
    session = TrainingSession(make_fabric(recipe.device), recipe, None)
    batch = next(batches(session.plan, range(1), workers=0))
    halves = [{name: value[at : at + 8] for name, value in batch.items()} for at in (0, 8)]
    with torch.no_grad():
        mean = sum(float(session.method(half, Moment(0, 1, 0))["loss"]) for half in halves) / 2
    train(recipe)
    assert float(curve(recipe)[0]["loss"]) == pytest.approx(mean, rel=1e-5)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_a_picture_that_cannot_be_decoded_is_a_dead_letter(setup: Setup, tmp_path: Path) -> None:
    rows = scene_rows(18)
    rows[2]["image"] = {"bytes": b"GIF89a", "path": None}
    recipe = setup(data=write_pairs(tmp_path / "bad", rows), epochs=1)
    assert train(recipe)["dead"] == 1
    assert "train-0002" in (Path(recipe.out) / "dead-letter.csv").read_text()


def test_mistakes_are_sentences(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch: 64 is not right: the data have 23 samples"):
        train(setup("a", batch=64))
    with pytest.raises(UserError, match="batch: 1 is not right: a picture is compared with the captions of others"):
        train(setup("a", batch=1))
    with pytest.raises(ValueError, match=r"device\.strategy: fsdp cannot share out the weights of dci_lora; give ddp"):
        setup("a", device={"accelerator": "cpu", "strategy": "fsdp"})
    with pytest.raises(UserError, match="has no rows in split 'dev'"):
        train(setup("b", split="dev"))
    with pytest.raises(UserError, match="init: 'random:tiny' is not right: this method starts"):
        train(setup("b", init="random:tiny"))
    with pytest.raises(UserError, match="the loss was not finite"):
        train(setup("c", optimiser={"lr": 1e30}, epochs=9))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "training.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="holds a fine-tuning of an earlier version"):
        train(setup("d"))


def test_a_model_that_is_no_clip_is_refused(setup: Setup, base: ClipModel, tmp_path: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**shared, "vocab_size": 64, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    config = SiglipConfig(text_config=text, vision_config={**shared, "image_size": 32, "patch_size": 8})
    ClipModel(SiglipModel(config), base.tokenizer, base.processor, "siglip").save(str(tmp_path / "siglip"))
    with pytest.raises(UserError, match="is a siglip without a layer visual_projection; fine-tuning needs a CLIP"):
        train(setup(clip=str(tmp_path / "siglip")))


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_the_shipped_recipe_runs_at_a_reduced_size(setup: Setup, folder: Path) -> None:
    plain = setup()
    places = ["--options.clip", str(folder / "model"), "--data", str(folder), "--out", plain.out]
    small = ["--device.accelerator", "cpu", "--batch", "8", "--epochs", "1", "--workers", "0"]
    recipe = load_recipe(TrainRecipe, "configs/train/sdci_lora.yaml", [*places, *small])
    options = DciLoraOptions.model_validate(recipe.options)
    assert (options.lora.rank, options.lora.dropout, options.lora.alpha, options.captions) == (4, 0.2, 2, "pick1")
    assert (recipe.validation.split, recipe.validation.keep_best) == ("valid", True)
    console = Console(file=io.StringIO(), width=200)
    facts: RunFacts = train(recipe, console)
    assert facts["step"] == 2
    assert [row["lr"] for row in curve(recipe)] == ["0.001", "0.001"]
    assert chosen(recipe.out) == facts["checkpoint"]


def test_the_shipped_evaluation_parses(tmp_path: Path) -> None:
    places = ["--model", "m", "--data", "d", "--out", str(tmp_path / "scores.json")]
    recipe = load_recipe(EvaluateRecipe, "configs/evaluate/sdci.yaml", places)
    assert (recipe.protocols, recipe.split) == (["sdci"], "test")


EARLIER = """
method: dci_lora
model: openai/clip-vit-base-patch32
data: runs/dci
out: runs/lora
seed: 3
split: train
validation: valid
lora: {rank: 2, alpha: 2, dropout: 0.1}
captions: pick5
pooling: hardest
negatives: any
negative_choice: random
alpha: 0.5
beta: 9
epochs: 10
steps: null
batch: 32
drop_last: true
rate: 0.0001
weight_decay: 0.02
accelerator: cpu
devices: 2
precision: bfloat16
"""


def test_a_recipe_of_version_0_1_is_read() -> None:
    recipe = TrainRecipe.model_validate(yaml.safe_load(EARLIER))
    assert DciLoraOptions.model_validate(recipe.options) == DciLoraOptions.model_validate(
        {
            **{"clip": "openai/clip-vit-base-patch32", "lora": {"rank": 2, "alpha": 2, "dropout": 0.1}},
            **{"captions": "pick5", "pooling": "hardest", "negatives": "any", "negative_choice": "random"},
            **{"alpha": 0.5, "beta": 9},
        }
    )
    assert (recipe.batch, recipe.epochs, recipe.drop_last, recipe.device.devices) == (64, 10, True, 2)
    assert (recipe.device.precision, recipe.device.accelerator) == ("bf16-mixed", "cpu")
    assert (recipe.optimiser.lr, recipe.optimiser.final_lr, recipe.optimiser.weight_decay) == (1e-4, 1e-4, 0.02)
    assert (recipe.split, recipe.validation.split, recipe.validation.keep_best) == ("train", "valid", True)


def test_a_value_under_both_its_names_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"lr is another name of optimiser\.lr; give one of them"):
        load_recipe(TrainRecipe, "configs/train/sdci_lora.yaml", ["--model", "m", "--data", "d", "--lr", "1"])
