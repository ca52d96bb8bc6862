"""Renders with texts from end to end: sides against masks, quads against all pairs of rows, and what reads them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from places import CONFIGS
from pools import Run, run_in_a_loop

from granary.curation.hub.preflight import problems
from granary.curation.hub.publication import gather
from granary.pipelines import command
from granary.pipelines.engine.units import Runner
from granary.training.data.crops import Crop
from granary.training.data.passes import in_order
from granary.training.data.shards import open_dataset

THINGS = ["blank", "Cat", "Elephant"]
RECIPE: dict[str, Any] = {
    "name": "texts",
    "factors": {
        "world_name": ["Meadow"],
        "layout": [
            {"character1_pos": one, "character2_pos": two, "character_texture": first, "character2_texture": second}
            for one, two, first, second in (
                ("left", "right", "Blue", "Red"),
                ("left", "right", "Red", "Blue"),
                ("bottom", "top", "Default", "Default"),
            )
        ],
        "character_name": THINGS,
        "character2_name": THINGS,
    },
    "scene": {"distance": 400, "height": 75},
    "captions": {"style": "sentences", "count": 3},
    "questions": {"kinds": ["where", "what"]},
    "polls": {"kinds": ["popular"]},
    "quads": {"kinds": ["relation", "colour"]},
    "splits": [{"where": {"character_texture": "Default"}}],
    "image": {"width": 48, "height": 48},
    "checks": {"twice": 0.0, "visible": 1},
    "shards": {"rows": 7, "row_group": 3},
}


def rendered(folder: Path, *words: str) -> Run:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_run", run_in_a_loop)
        out = str(folder / "run")
        assert command.main(["render", "--config", str(folder / "recipe.yaml"), "--out", out, *words]) == 0
    return Run(out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return rendered(tmp_path_factory.mktemp("texts"))


def quads_of(run: Run) -> list[dict[str, Any]]:
    files = sorted((run.path / "dataset" / "quads").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_sides_are_where_the_masks_are(run: Run) -> None:
    checked = 0
    for sample in run.samples:
        middles = {thing["name"].lower(): thing["box"] for thing in sample["objects"]}
        for asked in sample["questions"]:
            if asked["kind"] == "where":
                name = next(name for name in middles if f"the {name}?" in asked["question"])
                left, top, right, bottom = middles[name]
                across, down = (left + right) / 2 - 24, (top + bottom) / 2 - 24
                place = ("left" if across < 0 else "right") if abs(across) > 4 else ("top" if down < 0 else "bottom")
                assert asked["answer"] == place
                checked += 1
        names = {poll["object"] for poll in sample["polls"] if poll["answer"] == "yes"}
        assert names == (set(middles) if len(middles) == 1 else set())  # of two things none is absent
    assert checked == 14


def test_quads_are_all_pairs_of_rows_that_exchange_two_things_or_their_colours(run: Run) -> None:
    """Brute force over all pairs of one split: what each picture shows is compared, not how a plan names it."""

    def shown(sample: dict[str, Any]) -> list[tuple[str, str, str]]:
        names = ("character_name", "character1_pos", "character_texture")
        others = ("character2_name", "character2_pos", "character2_texture")
        rows = [tuple(sample[column] for column in columns) for columns in (names, others)]
        return sorted(row for row in rows if row[0] != "blank")  # type: ignore[misc]

    expected = set()
    for one, other in itertools.combinations(run.samples, 2):
        a, b = shown(one), shown(other)
        if one["split"] != other["split"] or len(a) < 2 or len(b) < 2 or a[0][0] == a[1][0]:
            continue
        pictures = frozenset([one["id"], other["id"]])
        if {t[0] for t in a} == {t[0] for t in b}:
            if all(x[1] != y[1] and x[2] == y[2] for x, y in zip(a, b, strict=True)):
                expected.add(("relation", pictures))
            if "Red" in {t[2] for t in a} and all(x[2] != y[2] for x, y in zip(a, b, strict=True)):
                expected.add(("colour", pictures))
    bytes_of = {sample["image"]["bytes"]: sample for sample in run.samples}
    quads = quads_of(run)
    found = set()
    for quad in quads:
        one, other = (bytes_of[quad[f"image_{n}"]["bytes"]] for n in (0, 1))
        found.add((quad["tag"], frozenset([one["id"], other["id"]])))
        assert one["split"] == other["split"] == quad["split"]
        assert sorted(quad["caption_0"].split()) == sorted(quad["caption_1"].split())
        assert quad["caption_0"] != quad["caption_1"]
        for picture, caption in ((one, quad["caption_0"]), (other, quad["caption_1"])):
            there = {name.lower(): (place, look.lower()) for name, place, look in shown(picture)}
            if quad["tag"] == "colour":
                assert all(f"{look} {name}" in caption for name, (_, look) in there.items())
            else:
                first = caption.split()[1]
                assert there[first][0] in ("left", "top")
    assert len(found) == len(quads)
    assert found == expected
    assert {kind for kind, _ in found} == {"relation", "colour"}


def test_a_limit_draws_the_same_quads_whatever_the_shards_are(run: Run, tmp_path: Path) -> None:
    other = rendered(tmp_path, "--quads.count", "2", "--shards.rows", "100")
    few, every = quads_of(other), quads_of(run)
    assert len(few) == 2 < len(every)
    assert [quad for quad in every if quad["id"] in {one["id"] for one in few}] == sorted(few, key=every.index)
    texts = {sample["row_id"]: (sample["captions"], sample["questions"], sample["polls"]) for sample in run.samples}
    assert texts == {
        sample["row_id"]: (sample["captions"], sample["questions"], sample["polls"]) for sample in other.samples
    }
    before = other.times()
    rendered(tmp_path, "--quads.count", "3", "--shards.rows", "100")
    after = other.times()
    again = {path for path in before if before[path] != after.get(path)}
    assert not [path for path in again if "dataset/data" in str(path) or "shards" in str(path)]  # no picture is redone
    assert len(quads_of(other)) == 3


def test_card_and_hub_know_the_texts(run: Run, tmp_path: Path) -> None:
    card = (run.path / "dataset" / "README.md").read_text()
    for said in ("| `questions` | list of struct |", "| `polls` | list of struct |", "config_name: quads"):
        assert said in card
    assert "visual-question-answering" in card
    assert "quads of two pictures" in card
    loaded = load_dataset(str(run.path / "dataset"), "quads", split="train")
    assert loaded[0]["image_0"].size == loaded[0]["image_1"].size == (48, 48)
    publication = gather(str(run.path), "org/texts", "https://hub.example", str(tmp_path), licence="mit")
    assert list(problems(publication.parquet, publication.texts)) == []
    sent = [upload.path for upload in publication.large]
    assert {"quads/train-00000-of-00001.parquet", "quads/test-00000-of-00001.parquet"} < set(sent)
    (default, quads) = (s for s in json.loads(publication.texts["croissant.json"])["recordSet"] if "-" not in s["@id"])
    (questions,) = (field for field in default["field"] if field["@id"] == "default/questions")
    assert questions["repeated"]
    answers = questions["subField"][-1]
    assert (answers["@id"], answers["repeated"], answers["source"]["transform"]) == (
        "default/questions/answers",
        True,
        {"jsonPath": "answers"},
    )
    assert [f["dataType"] for f in quads["field"] if "image" in f["@id"]] == ["sc:ImageObject"] * 2
    assert command.main(["check", str(run.path)]) == 0


def test_a_training_reads_questions_and_polls_with_its_pictures(run: Run) -> None:
    columns = ("image", "captions", "questions", "polls")
    dataset = open_dataset(str(run.path), columns, split="train")
    stored = {sample["row_id"]: sample for sample in run.samples}
    seen = 0
    for part in in_order(dataset, Crop(1, 16, centre=True), columns, batch=4):
        for name, questions, polls in zip(part["id"], part["questions"], part["polls"], strict=True):
            assert questions == stored[name]["questions"]
            assert polls == stored[name]["polls"]
            seen += 1
    assert seen == dataset.count == sum(sample["split"] == "train" for sample in run.samples)


def test_a_dry_run_shows_the_texts_of_the_first_rows(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(CONFIGS / "render" / "language_demo.yaml")
    assert command.main(["render", "--config", recipe, "--out", "nowhere", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "language demo: 2,000 rows" in said
    assert "   How many things" in said
    assert "the embedded world lacks" not in said
