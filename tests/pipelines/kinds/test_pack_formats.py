"""Every format and every shipped recipe through the whole pipeline, with a tokenizer and with a language model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import dense_fixture as drawn
import pools
import pytest
from PIL import Image
from places import SHARED

from granary.curation.dense.recipe import PackRecipe
from granary.pipelines import command
from granary.pipelines.engine.recipe import load_recipe, shipped
from granary.pipelines.engine.units import Runner

ASKING = ("vqa", "gqa", "pope", "llava", "winoground")


def pack(annotations: Path, images: Path, out: Path, *words: str) -> pools.Run:
    paths = ["--annotations", str(annotations), "--images", str(images), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_run", pools.run_in_a_loop)
        assert command.main(["pack", *paths, *words]) == 0
    return pools.Run(str(out))


@pytest.mark.parametrize("name", ["dci", "sdci", "coco", "narratives", "jsonl", *ASKING])
def test_shipped_recipes_are_read(name: str) -> None:
    recipe = load_recipe(
        PackRecipe, shipped(f"pack/{name}.yaml"), ["--annotations", "a", "--images", "b", "--out", "c"]
    )
    assert recipe.format == {"sdci": "dci"}.get(name, name)
    head = Path(shipped(f"pack/{name}.yaml")).read_text().split("\nname:")[0]
    assert f"#   granary pack --config configs/pack/{name}.yaml" in head


def test_the_example_of_the_jsonl_recipe_packs(tmp_path: Path) -> None:
    head = [
        line.removeprefix("# ") for line in Path(shipped("pack/jsonl.yaml")).read_text().splitlines() if line[:1] == "#"
    ]
    start = next(i for i, line in enumerate(head) if line.startswith('{"image"'))
    stop = next(i for i, line in enumerate(head) if line.endswith("}}}"))
    example = json.loads(" ".join(head[start : stop + 1]))
    example["masks"][1]["rle"] = {
        "size": [600, 800],
        "counts": [300 * 600 + 100, 480 * 200 - 100, 800 * 600 - 300 * 600 - 480 * 200],
    }
    (tmp_path / "captions.jsonl").write_text(json.dumps(example) + "\n")
    _, images = drawn.write(tmp_path, {}, {"1.jpg": drawn.picture()})
    run = pack(tmp_path / "captions.jsonl", images, tmp_path / "run", "--config", "configs/pack/jsonl.yaml")
    (row,) = run.samples
    assert (row["file"], row["split"], row["extra_caption"]) == ("captions.jsonl:1", "train", "A long description.")
    assert [(mask["key"], mask["parent"]) for mask in row["masks"]] == [("0", ""), ("1", "0")]
    base, barn = run.table("dataset/pairs")[:2]
    assert (base["captions"], base["negatives"][0]["text"]) == (["A barn by a pond."], "A pond in a barn.")
    assert barn["captions"] == ["A red barn with a door."]
    assert run.table("dead-letter") == []


def test_coco_captions_become_summaries_and_instances_entries(tmp_path: Path) -> None:
    polygon = [100, 100, 500, 100, 500, 450, 100, 450]
    instances = {
        "images": [{"id": 2, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "barn"}],
        "annotations": [{"id": 5, "image_id": 2, "category_id": 1, "segmentation": [polygon], "iscrowd": 0}],
    }
    captions = {
        "images": instances["images"],
        "annotations": [{"image_id": 2, "caption": text} for text in ("A red barn.", "A barn by a pond.")],
    }
    for name, content in (("instances", instances), ("captions", captions)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    _, images = drawn.write(tmp_path, {}, {"a.jpg": drawn.picture()})
    words = ("--config", "configs/pack/coco.yaml", "--captions", str(tmp_path / "captions.json"))
    run = pack(tmp_path / "instances.json", images, tmp_path / "run", *words)
    assert run.samples[0]["captions"] == ["A red barn.", "A barn by a pond."]
    base, barn = run.table("dataset/pairs")
    assert (base["captions"], base["provenance"][0]["engine"]) == (["A red barn.", "A barn by a pond."], "given")
    assert (barn["key"], barn["captions"], barn["box"]) == ("m-5-sc", ["This is an image of barn."], [40, 48, 560, 502])
    assert run.samples[0]["masks"][0]["area"] == 400 * 350


def test_what_coco_says_of_no_image_is_dead_and_pictures_lie_in_folders_of_splits(tmp_path: Path) -> None:
    address = "http://images.cocodataset.org/val2017/000000000139.jpg"
    content = {
        "images": [{"id": 139, "width": 800, "height": 600, "coco_url": address}],
        "annotations": [{"image_id": "139", "caption": "A barn."}, {"image_id": 285, "caption": "A wall."}],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    _, images = drawn.write(tmp_path, {}, {"val2017/000000000139.jpg": drawn.picture()})
    run = pack(tmp_path / "x.json", images, tmp_path / "run", "--config", "configs/pack/coco.yaml")
    (row,) = run.samples
    assert (row["image"]["path"], row["source"]["uri"]) == ("000000000139.jpg", "images/val2017/000000000139.jpg")
    assert run.uris("dead") == {"annotations/x.json:285"}
    assert [letter["error"] for letter in run.table("dead-letter")] == ["NoImage"]


def test_localized_narratives_of_coco(tmp_path: Path) -> None:
    spoken = [{"utterance": word, "start_time": n, "end_time": n + 0.9} for n, word in enumerate(("A", "red barn."))]
    trace = [{"x": 0.1, "y": 0.1, "t": 0.5}, {"x": 0.9, "y": 0.9, "t": 1.5}]
    record = {"dataset_id": "mscoco_val2017", "image_id": "139", "annotator_id": 93, "caption": "A red barn."}
    record |= {"timed_caption": spoken, "traces": [trace], "voice_recording": "coco_val/coco_val_139_93.ogg"}
    (tmp_path / "coco_val.jsonl").write_text(json.dumps(record))
    _, images = drawn.write(tmp_path, {}, {"000000000139.jpg": drawn.picture()})
    run = pack(tmp_path / "coco_val.jsonl", images, tmp_path / "run", "--config", "configs/pack/narratives.yaml")
    (row,) = run.samples
    assert (row["extra_caption"], [mask["caption"] for mask in row["masks"]]) == ("A red barn.", ["A red barn."])
    assert run.table("dead-letter") == []


def test_real_long_descriptions_with_boxes(tmp_path: Path) -> None:
    path = SHARED / "dense_descriptions_dev.jsonl.gz"
    if not path.exists():
        pytest.skip("shared/data is not beside the checkout")
    lines = gzip.decompress(path.read_bytes()).splitlines()
    records = [record for line in lines if (record := json.loads(line))["objects"]][:6]
    (tmp_path / "iiw.jsonl").write_text("\n".join(map(json.dumps, records)))
    _, images = drawn.write(tmp_path, {}, {f"{record['image_key']}.jpg": drawn.picture() for record in records})
    run = pack(
        tmp_path / "iiw.jsonl",
        images,
        tmp_path / "run",
        "--config",
        "configs/pack/narratives.yaml",
        "--crops.darken",
        "true",
    )
    assert [len(row["masks"]) for row in run.samples] == [len(record["objects"]) for record in records]
    for row, record in zip(run.samples, records, strict=True):
        said = " ".join(text["text"] for text in row["texts"] if text["part"] == "base")
        assert said.split() == record["description"].split()
        assert row["image"]["path"] == record["image_key"] + ".jpg"
    kinds = {negative["kind"] for row in run.table("dataset/pairs") for negative in row["negatives"]}
    assert kinds == {"basic", "layout", "swaps"}
    assert run.table("dead-letter") == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random GPT-2 with a word tokenizer that puts two tokens around a text."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = str(tmp_path_factory.mktemp("model"))
    vocabulary = {token: place for place, token in enumerate(["<e>", "?", *(f"w{n}" for n in range(38))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [("<e>", 0)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<e> $A <e>", special_tokens=around)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>", unk_token="?").save_pretrained(folder)
    torch.set_num_threads(1)  # runs of other tests may have left more, which wait for each other on a busy machine
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=512, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    files: dict[str, Any] = {f"{name}.json": drawn.annotation(f"{name}.jpg") for name in "ab"}
    return drawn.write(tmp_path_factory.mktemp("in"), files, {f"{name}.jpg": drawn.picture() for name in "ab"})


def test_a_tokenizer_counts_tokens_and_every_output_says_so(
    model: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    run = pack(*folders, tmp_path / "run", "--budget.tokenizer", model, "--budget.tokens", "12")
    for row in run.samples:
        assert row["unit"] == "tokens"
        assert all(text["tokens"] <= 12 for text in row["texts"])
        assert row["tokens"] > row["words"]
    assert {row["unit"] for row in run.table("dataset/pairs")} == {"tokens"}
    assert run.facts["budget"] == {"unit": "tokens", "most": 12, "tokenizer": Path(model).name}
    for text in ((run.path / "report" / "index.html").read_text(), (run.path / "dataset" / "README.md").read_text()):
        assert "windows of 12 tokens" in text
    assert model not in (run.path / "dataset" / "README.md").read_text()


def test_a_model_writes_what_was_not_given_and_says_so(model: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    words = (
        "--summaries.engines",
        "[given, model, windows]",
        "--negatives.engines",
        "[model]",
        "--writer.model",
        model,
    )
    options = (
        "--writer.attempts",
        "1",
        "--budget.tokens",
        "12",
        "--negatives.per_image",
        "1",
        "--summaries.alternates",
        "false",
        "--writer.dtype",
        "float32",
    )
    run = pack(*folders, tmp_path / "run", *words, *options)
    rows = run.table("dataset/pairs")
    assert len(rows) == 6
    written = [row for row in rows if row["provenance"][0]["engine"] == f"model:{Path(model).name}"]
    assert written
    for row in written:
        assert row["provenance"][0]["prompt"] == "summary/1"
        assert row["provenance"][0]["seed"] >= 0
        assert row["tokens"][0] <= 12
    other = pack(*folders, tmp_path / "other", *words, *options, "--unit_rows", "1")
    assert [row["captions"] for row in other.table("dataset/pairs")] == [row["captions"] for row in rows]


def test_an_image_with_alpha_and_one_of_another_mode_give_rgb_crops(tmp_path: Path) -> None:
    import io

    images = {}
    for name, mode in (("a.png", "RGBA"), ("b.png", "L"), ("c.png", "P")):
        file = io.BytesIO()
        Image.linear_gradient("L").resize((800, 600)).convert(mode).save(file, "PNG")
        images[name] = file.getvalue()
    files = {f"{name}.json": drawn.annotation(name) for name in images}
    run = pack(*drawn.write(tmp_path, files, images), tmp_path / "run")
    rows = run.table("dataset/pairs")
    assert [row["image"]["bytes"] for row in rows if row["base"]] == list(images.values())
    crops = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows if not row["base"]]
    assert {crop.mode for crop in crops} == {"RGB"}
    assert len(crops) == 6
