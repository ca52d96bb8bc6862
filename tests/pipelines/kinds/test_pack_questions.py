"""VQAv2, GQA, POPE, LLaVA and Winoground through the whole pipeline: what is stored, what is lost, who can read it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pools
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from granary.curation.hub.preflight import problems
from granary.curation.hub.publication import gather
from granary.pipelines import command
from granary.pipelines.engine.units import Runner
from granary.training.data.crops import Crop
from granary.training.data.pairs import read_entries
from granary.training.data.passes import in_order
from granary.training.data.shards import open_dataset

EXAMPLE = {
    "caption_0": "an old person kisses a young person",
    "caption_1": "a young person kisses an old person",
    "tag": "Adjective-Age",
    "secondary_tag": "",
    "num_main_preds": 1,
    "collapsed_tag": "Object",
}


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((24, 16 + number), 80).convert("RGB").save(file, "PNG")
    return file.getvalue()


def folder_of(path: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(picture(number))
    return path


def packed(format: str, annotations: Path, out: Path, *words: str, status: int = 0) -> pools.Run:
    config = ["--config", f"configs/pack/{format}.yaml", "--annotations", str(annotations), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_run", pools.run_in_a_loop)
        assert command.main(["pack", *config, *words]) == status
    return pools.Run(str(out))


def vqa(folder: Path) -> tuple[Path, Path]:
    """Write questions and annotations of three pictures, one of which is not there."""
    asked = [
        {"image_id": image, "question": f"What is {place}?", "question_id": image * 1000 + place}
        for image in (1, 2, 3)
        for place in range(2)
    ]
    whole = {"data_subtype": "val2014", "questions": [*asked, {"question": "Of what?", "question_id": 5}]}
    annotations = [
        {
            "question_id": entry["question_id"],
            "image_id": entry["image_id"],
            "question_type": "what is",
            "answer_type": "other",
            "multiple_choice_answer": "net",
            "answers": [{"answer": "net", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)],
        }
        for entry in asked
    ]
    (folder / "questions.json").write_text(json.dumps(whole))
    (folder / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    return folder / "questions.json", folder / "annotations.json"


def test_vqa_is_a_row_for_each_picture_that_trainings_and_the_hub_read(tmp_path: Path) -> None:
    questions, annotations = vqa(tmp_path)
    images = folder_of(tmp_path / "val2014", *(f"COCO_val2014_{n:012d}.jpg" for n in (1, 2)))
    words = ("--answers", str(annotations), "--images", str(images), "--unit_rows", "1", "--licence", "cc-by-4.0")
    run = packed("vqa", questions, tmp_path / "run", *words)
    first, second = run.samples
    assert [question["id"] for question in first["questions"]] == ["1000", "1001"]
    assert first["questions"][0]["answers"] == ["net"] * 10
    assert second["source"]["uri"] == "images/COCO_val2014_000000000002.jpg"
    assert sorted(letter["error"] for letter in run.table("dead-letter")) == ["FileNotFoundError", "NoImageName"]
    assert run.facts["flow"] == [{"stage": "annotations", "in": 4, "kept": 2, "dropped": 0, "dead": 2}]
    assert "4 questions of 2 images." in run.facts["notes"]
    assert not (run.path / "dataset" / "pairs").exists()
    card = (run.path / "dataset" / "README.md").read_text()
    assert "| `questions` | list of struct |" in card
    assert "visual-question-answering" in card
    assert "arXiv 1612.00837" in card
    html = (run.path / "report" / "index.html").read_text()
    assert "What is 1? net" in html
    loaded = load_dataset(str(run.path / "dataset"), split="train")
    assert loaded[0]["questions"] == first["questions"]
    publication = gather(str(run.path), "org/vqa", "https://hub.example", str(tmp_path))
    assert list(problems(publication.parquet, publication.texts)) == []
    dataset = open_dataset(str(run.path), ("image", "questions"))
    parts = in_order(dataset, Crop(1, 8, centre=True), ("image", "questions"), batch=4)
    assert [asked for part in parts for asked in part["questions"]] == [first["questions"], second["questions"]]
    before = run.times()
    packed("vqa", questions, tmp_path / "run", *words)
    assert run.times() == before
    whole = json.loads(annotations.read_text())
    whole["annotations"][0]["multiple_choice_answer"] = "racket"
    annotations.write_text(json.dumps(whole))
    again = packed("vqa", questions, tmp_path / "run", *words)  # a change of the answers alone is seen
    assert again.samples[0]["questions"][0]["answer"] == "racket"


def test_the_same_bytes_whatever_the_units_and_workers(tmp_path: Path) -> None:
    questions, annotations = vqa(tmp_path)
    images = folder_of(tmp_path / "val2014", *(f"COCO_val2014_{n:012d}.jpg" for n in (1, 2, 3)))
    words = ("--answers", str(annotations), "--images", str(images))
    one = packed("vqa", questions, tmp_path / "one", *words)
    other = packed("vqa", questions, tmp_path / "other", *words, "--workers", "2")
    assert one.hashes("dataset", "ledger", "dead-letter") == other.hashes("dataset", "ledger", "dead-letter")


def test_paths_do_not_leave_the_folder_of_images(tmp_path: Path) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes(picture(9))
    images = folder_of(tmp_path / "images", "a.png")
    (images / "link.png").symlink_to(outside)
    names = ["../secret.png", str(outside), "link.png", "http://hub.example/a.png", "a.png"]
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    records = [{"id": str(n), "image": name, "conversations": talk} for n, name in enumerate(names)]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    run = packed("llava", tmp_path / "mix.json", tmp_path / "run", "--images", str(images))
    (row,) = run.samples
    assert row["image"]["path"] == "a.png"
    assert [message["content"] for message in row["messages"]] == ["<image>\nWhat?", "This."]
    errors = [letter["error"] for letter in run.table("dead-letter")]
    assert len(errors) == 4
    assert set(errors) == {"UnsafePath"}


def test_pope_and_gqa(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", "a.jpg", "2354786.jpg")
    lines = [{"question_id": n, "image": "a.jpg", "text": f"Is there a {x} in the image?", "label": y}
             for n, (x, y) in enumerate((("cat", "yes"), ("dog", "no")))]  # fmt: skip
    (tmp_path / "coco_pope_popular.json").write_text("\n".join(map(json.dumps, lines)))
    run = packed("pope", tmp_path / "coco_pope_popular.json", tmp_path / "pope", "--images", str(images))
    assert [(p["kind"], p["object"], p["answer"]) for p in run.samples[0]["polls"]] == [
        ("popular", "cat", "yes"),
        ("popular", "dog", "no"),
    ]
    question = {"question": "Is it dark?", "answer": "yes", "imageId": "2354786", "types": {"structural": "verify"}}
    (tmp_path / "gqa.json").write_text(json.dumps({"02930152": question}))
    run = packed("gqa", tmp_path / "gqa.json", tmp_path / "gqa", "--images", str(images))
    assert [question["kind"] for question in run.samples[0]["questions"]] == ["verify"]


def check_winoground(run: pools.Run) -> None:
    (quad,) = (row for path in (run.path / "dataset" / "quads").iterdir() for row in pq.read_table(path).to_pylist())
    assert {key: quad[key] for key in EXAMPLE} == EXAMPLE
    assert (quad["id"], quad["split"]) == ("0", "train")
    assert [quad[f"image_{n}"]["bytes"] for n in (0, 1)] == [sample["image"]["bytes"] for sample in run.samples[:2]]
    entries = list(read_entries(str(run.path)))[:2]
    assert [entry.captions[0] for entry in entries] == [EXAMPLE["caption_0"], EXAMPLE["caption_1"]]
    assert [entry.first_negative("swaps") for entry in entries] == [EXAMPLE["caption_1"], EXAMPLE["caption_0"]]
    assert "config_name: quads" in (run.path / "dataset" / "README.md").read_text()
    loaded = load_dataset(str(run.path / "dataset"), "quads", split="train")
    assert (loaded[0]["image_0"].size, loaded[0]["image_1"].size) == ((24, 16), (24, 17))


def test_winoground_of_lines_beside_pictures(tmp_path: Path) -> None:
    """The second example lacks a picture: the other one is kept, and is no quad."""
    images = folder_of(tmp_path / "images", "ex_0_img_0.png", "ex_0_img_1.png", "ex_1_img_0.png")
    lines = [{"id": n, "image_0": f"ex_{n}_img_0", "image_1": f"ex_{n}_img_1", **EXAMPLE} for n in (0, 1)]
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("--images", str(images), "--unit_rows", "1")  # the two pictures of an example lie in two shards
    run = packed("winoground", tmp_path / "examples.jsonl", tmp_path / "run", *words)
    assert len(run.samples) == 3
    check_winoground(run)
    assert run.uris("dead") == {"annotations/examples.jsonl:2/1"}


def test_winoground_of_parquet_holds_its_pictures(tmp_path: Path) -> None:
    def row(number: int, **changes: Any) -> dict[str, Any]:
        files = [{"bytes": picture(n), "path": f"ex_{number}_img_{n}.png"} for n in (0, 1)]
        return {"id": number, "image_0": files[0], "image_1": files[1], **EXAMPLE, **changes}

    folder = tmp_path / "data"
    folder.mkdir()
    rows = [row(0), row(1, image_1={"bytes": None, "path": "gone.png"})]
    pq.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet", row_group_size=1)
    run = packed("winoground", folder, tmp_path / "run")
    check_winoground(run)
    (letter,) = run.table("dead-letter")
    assert letter["error"] == "NoImage"
    assert "image_1 of row 1 holds no bytes" in letter["message"]


@pytest.mark.parametrize(
    ("format", "words", "said"),
    [
        ("vqa", (".", "--images", "."), "vqa takes a file of questions"),
        ("gqa", (".",), "images: missing"),
        ("gqa", (".", "--images", ".", "--answers", "here.json"), "answers: the format gqa has none"),
        (
            "vqa",
            ("here.json", "--images", ".", "--answers", "nowhere.json"),
            "answers: there is nothing at 'nowhere.json'",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    words: tuple[str, ...],
    said: str,
) -> None:
    config = str(Path(f"configs/pack/{format}.yaml").absolute())
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    Path("here.json").write_text("{}")
    assert command.main(["pack", "--config", config, "--out", str(tmp_path / "run"), "--annotations", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
