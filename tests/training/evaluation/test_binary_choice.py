"""Facts about the binary choice between a caption and its negative, and about the command's registry of protocols."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from measuring import measure
from places import SHARED
from tiny_clip import caption, png, row, scene, scene_rows, tiny_clip, write_pairs

from granary.curation.errors import UserError
from granary.training.data.pairs import read_entries
from granary.training.evaluation import evaluate as command
from granary.training.evaluation.evaluate import EvaluateRecipe, evaluate
from granary.training.evaluation.protocols import binary_choice
from granary.training.models.clip_transformers import ClipModel


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return tiny_clip(width=16, layers=(1, 1))


@pytest.fixture
def model(clip: ClipModel, tmp_path: Path) -> str:
    clip.save(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def questions(count: int) -> list[dict[str, str]]:
    found = []
    for number in range(count):
        colours, _ = scene(number)
        swapped = (colours[1], colours[0], *colours[2:])
        kind = "swap_att" if number % 3 else "replace_att"
        found.append({"coco_key": f"{number:012d}", "kind": kind, "caption": caption(colours)})
        found[-1]["negative_caption"] = caption(swapped)
    return found


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:012d}.png").write_bytes(png(scene(number)[1]))
    return folder


def expected(clip: ClipModel, asked: list[dict[str, str]], seen: int) -> dict[str, list[bool]]:
    """Ask question by question through the forward pass of transformers."""
    results: dict[str, list[bool]] = {}
    for number, question in enumerate(asked[:seen]):
        inputs = {**clip.tokens([question["caption"], question["negative_caption"]])}
        with torch.inference_mode():
            logits = clip.model(pixel_values=clip.pixels([scene(number)[1]]), **inputs).logits_per_image[0]
        results.setdefault(question["kind"], []).append(bool(logits[0] > logits[1]))
    return results


def test_lines_of_questions_with_a_folder(clip: ClipModel, model: str, tmp_path: Path) -> None:
    asked = questions(14)
    file = tmp_path / "asked.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, asked)).encode()))
    folder = pictures(tmp_path / "pictures", 11)
    (folder / f"{4:012d}.png").write_bytes(b"broken")
    scores = measure(binary_choice, model, str(file), images=str(folder), device="cpu", batch=4)
    right = expected(clip, [q for n, q in enumerate(asked)], 11)
    del right["swap_att"][2]  # of picture 4
    for kind, wins in right.items():
        assert scores[kind] == pytest.approx(sum(wins) / len(wins))
        assert scores[f"{kind}.questions"] == len(wins)
    every = [win for wins in right.values() for win in wins]
    assert scores["accuracy"] == pytest.approx(sum(every) / 10)
    assert scores["mean"] == pytest.approx(sum(sum(wins) / len(wins) for wins in right.values()) / 2)
    assert (scores["questions"], scores["questions.without_picture"], scores["questions.unreadable"]) == (14, 3, 1)
    assert scores["chance"] == 0.5


def test_the_published_form_with_a_tar(model: str, tmp_path: Path) -> None:
    """SugarCrepe: a file for each kind, number -> filename, caption, negative_caption."""
    asked, folder = questions(6), tmp_path / "sugar"
    folder.mkdir()
    for kind in ("swap_att", "replace_att"):
        own = [q for q in asked if q["kind"] == kind]
        tree = {
            str(n): {"filename": f"{q['coco_key']}.jpg", **{k: q[k] for k in ("caption", "negative_caption")}}
            for n, q in enumerate(own)
        }
        (folder / f"{kind}.json").write_text(json.dumps(tree))
    lines = tmp_path / "asked.jsonl"
    lines.write_text("\n".join(map(json.dumps, asked)))
    plain = pictures(tmp_path / "pictures", 6)
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        for file in sorted(plain.iterdir()):
            tar.add(file, file.name)
    from_tar = measure(binary_choice, model, str(folder), images=str(tmp_path / "pictures.tar"), device="cpu")
    assert from_tar == measure(binary_choice, model, str(lines), images=str(plain), device="cpu")
    assert from_tar["questions.without_picture"] == 0


def test_a_run_compares_the_first_summary_with_every_negative(clip: ClipModel, tmp_path: Path) -> None:
    rows = [
        {
            **given,
            "negatives": [
                {**n, "kind": "basic" if at else "swaps", "score": None} for at, n in enumerate(given["negatives"])
            ],
        }
        for given in scene_rows(9)
    ]
    rows.append(row("no-negative", png(scene(0)[1]), ["a red block"]))
    clip.save(str(tmp_path / "model"))
    run = write_pairs(tmp_path, rows)
    scores = measure(binary_choice, str(tmp_path), run, device="cpu")
    assert (scores["questions"], scores["swaps.questions"], scores["basic.questions"]) == (18, 9, 9)
    wins = 0
    for entry in read_entries(run):
        texts = clip.texts([entry.captions[0], *(n.text for n in entry.negatives)][:2])
        logits = clip.logits(clip.images(clip.pixels([entry.image()])), texts)[0] if entry.negatives else [0, 0]
        wins += bool(logits[0] > logits[1])
    assert scores["swaps"] == pytest.approx(wins / 9)


def test_equal_texts_are_wrong_answers(clip: ClipModel, model: str, tmp_path: Path) -> None:
    asked = [{**question, "negative_caption": question["caption"]} for question in questions(9)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    scores = measure(
        binary_choice, model, str(tmp_path / "asked.jsonl"), images=str(pictures(tmp_path / "p", 9)), device="cpu"
    )
    assert scores["accuracy"] == 0


def test_a_random_scorer_is_right_half_of_the_time() -> None:
    class Random:
        truncated = 0

        def prepared(self, images: list[object]) -> list[torch.Tensor]:
            return [torch.zeros(1) for _ in images]

        def images(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels

        def texts(self, texts: list[str]) -> torch.Tensor:
            return torch.zeros(len(texts), 1)

        def own_logits(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
            return torch.rand(texts.shape[:2], generator=generator)

    generator = torch.Generator().manual_seed(0)
    asked = [binary_choice.Question("k", f"a{n}", f"b{n}") for n in range(4000)]
    stream = [binary_choice.AskedPicture(lambda: scene(0)[1], asked[at : at + 4]) for at in range(0, 4000, 4)]
    scores = binary_choice.choices(Random(), stream)  # type: ignore[arg-type]
    assert abs((scores["accuracy"] or 0) - 0.5) < 4.5 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON .it is nested too deeply"),
        (json.dumps({"caption": "a", "coco_key": "1"}), "line 1: a field is missing"),
        (json.dumps({"caption": "a", "negative_caption": "b"}), "line 1: a field is missing"),
        ("[1]", "line 1: a field is missing"),
    ],
)
def test_questions_in_another_form_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(UserError, match=sentence):
        binary_choice.read_questions(str(tmp_path / "q.jsonl"))


def test_files_that_cannot_be_read_and_missing_pictures(model: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        binary_choice.read_questions(str(tmp_path / "q.jsonl.gz"))
    (tmp_path / "q.jsonl").write_text(json.dumps(questions(1)[0]))
    with pytest.raises(UserError, match="images: missing"):
        measure(binary_choice, model, str(tmp_path / "q.jsonl"))


# -- real questions --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.exists(), reason="the folder `shared` with real data is not beside the checkout")
def test_sugarcrepe_with_the_pictures_that_are_there(model: str, tmp_path: Path) -> None:
    """Every question is read; the pictures of the tar are found by their COCO key, and no other."""
    file, tar = SHARED / "sugarcrepe_dev.jsonl.gz", SHARED / "captions_coco_dev.tar"
    asked = binary_choice.read_questions(str(file))
    assert asked is not None
    assert sum(map(len, asked.values())) == 5279
    with tarfile.open(tar) as members:
        keys = {name.split(".")[0] for name in members.getnames() if name.endswith(".jpg")}
    there = sum(len(own) for key, own in asked.items() if key in keys)
    assert there > 0
    scores = measure(binary_choice, model, str(file), images=str(tar), device="cpu")
    assert scores["questions"] == 5279
    assert scores["questions.without_picture"] == 5279 - there
    assert sum(value or 0 for name, value in scores.items() if name.endswith(".questions")) == there


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_scores_of_several_protocols(model: str, tmp_path: Path) -> None:
    run, lines = write_pairs(tmp_path, scene_rows(10)), list[str]()
    recipe = EvaluateRecipe(
        protocols=["sdci", "binary-choice"],
        model=model,
        data=run,
        device="cpu",
        batch=4,
        out=str(tmp_path / "scores.json"),
    )
    results = evaluate(recipe, lines.append)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written == results
    assert written["sdci"]["All-SCM.entries"] == 10
    assert written["binary-choice"]["questions"] == 20
    assert written["settings"]["model"] == model
    scm = next(line for line in lines[0].splitlines() if "All-SCM" in line)
    assert "chance 0.125" not in scm  # the last batch has 2 entries
    assert "chance 0.2" in scm
    assert "last batch 2" in scm
    assert "adversarial" in lines[0]


def test_options_reach_the_protocol_as_what_they_are(model: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions(3))))
    settings = {"protocols": "binary-choice", "model": model, "data": str(tmp_path / "q.jsonl"), "device": "cpu"}
    folder = pictures(tmp_path / "p", 3)
    recipe = EvaluateRecipe.model_validate({**settings, "limit": "2", "options": {"images": str(folder)}})
    assert evaluate(recipe, lambda line: None)["binary-choice"]["questions"] == 2
    with pytest.raises(UserError, match=r"options.image: no such option; the options are images"):
        evaluate(EvaluateRecipe.model_validate({**settings, "options": {"image": "x"}}))
    with pytest.raises(UserError, match="test_data: binary-choice takes no such option"):
        evaluate(EvaluateRecipe.model_validate({**settings, "test_data": "x"}))


def test_an_unknown_protocol_is_refused_with_the_one_meant() -> None:
    with pytest.raises(ValueError, match="did you mean sdci"):
        EvaluateRecipe(protocols=["sdic"], model="m", data="d")


def test_every_protocol_can_be_imported_and_describes_its_options() -> None:
    for name in command.PROTOCOLS:
        protocol = command.load_protocol(name)
        assert protocol.evaluate.__doc__
        assert all(field.description for field in protocol.options.model_fields.values()), name


def test_a_table_shows_what_has_no_value() -> None:
    text = command.table("p", {"a": None, "a.chance": 0.5, "count": 3, "b.c": 1.0})
    assert text.splitlines() == [
        "p",
        f"  {'a':<24} {'-':>10}   chance 0.5",
        f"  {'count':<24} {'3':>10}",
        f"  {'b.c':<24} {'1':>10}",
    ]


def test_bytes_of_a_question_file_are_enough(tmp_path: Path) -> None:
    """A list in one JSON file, with the kind from the file's name."""
    question = {key: value for key, value in questions(1)[0].items() if key != "kind"}
    buffer = io.BytesIO(json.dumps([question]).encode())
    (tmp_path / "add_obj.json").write_bytes(buffer.getvalue())
    read = binary_choice.read_questions(str(tmp_path / "add_obj.json"))
    assert read is not None
    assert [one.kind for own in read.values() for one in own] == ["add_obj"]
