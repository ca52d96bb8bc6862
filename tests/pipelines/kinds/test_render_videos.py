"""Videos with a needle, rendered from end to end: their frames and answers against the rows that they are made of."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
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
from granary.synth.pug.texts.options import Videos
from granary.synth.pug.videos import frames_of

RECIPE: dict[str, Any] = {
    "name": "needles",
    "factors": {
        "world_name": ["Meadow", "Snow", "Desert"],
        "look": [
            {
                "character1_pos": "left",
                "character2_pos": "right",
                "character_texture": "Blue",
                "character2_texture": "Grass",
            }
        ],
        "character_name": ["Cat", "Elephant"],
        "character2_name": ["blank", "Cat", "Car"],
    },
    "scene": {"distance": 400, "height": 75},
    "splits": [{"where": {"character2_name": "Cat"}}],
    "videos": {"kinds": ["what", "world", "colour", "texture"], "count": 150, "frames": 9, "needle": 2, "shots": 3},
    "image": {"width": 48, "height": 48},
    "checks": {"twice": 0.0, "visible": 1},
    "shards": {"rows": 7, "row_group": 20},
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
    return rendered(tmp_path_factory.mktemp("needles"))


def videos_of(run: Run) -> list[dict[str, Any]]:
    files = sorted((run.path / "dataset" / "videos").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def things(sample: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and texture of what a picture shows, from its columns alone."""
    both = [("character_name", "character_texture"), ("character2_name", "character2_texture")]
    return [(sample[n].lower(), sample[t].lower()) for n, t in both if sample[n] != "blank"]


def right(sample: dict[str, Any], question: str) -> set[str]:
    """Return all answers that a picture gives to a question, by brute force; none where it cannot be asked of it."""
    there, world = things(sample), sample["world_name"].lower()
    if question.startswith(("What is in the", "What can be seen")):
        return {name for name, _ in there} if f"the {world}?" in question else set()
    asked = next(name for name in ("cat", "elephant", "car") if f"the {name}" in question)
    own = [texture for name, texture in there if name == asked]
    if question.startswith(("Where", "In which")):
        return {world} if own else set()
    return {texture if (texture == "blue") == question.startswith("What colour") else "" for texture in own}


def test_the_needle_alone_answers_its_question(run: Run) -> None:
    of_bytes = {sample["image"]["bytes"]: sample for sample in run.samples}
    videos, kinds = videos_of(run), set()
    for video in videos:
        shown = [of_bytes[frame["bytes"]] for frame in video["images"]]
        (asked,) = video["questions"]
        assert len(shown) == 9
        assert video["needle"] == list(range(video["needle"][0], video["needle"][0] + 2))
        assert {sample["split"] for sample in shown} == {video["split"]}
        for frame, sample in enumerate(shown):
            answers = right(sample, asked["question"])
            assert answers == ({asked["answer"]} if frame in video["needle"] else set())
        others = [sample["id"] for frame, sample in enumerate(shown) if frame not in video["needle"]]
        runs = [name for name, _ in itertools.groupby(others)]
        assert len(runs) == len(set(runs)) <= 3
        assert asked["answers"] == [asked["answer"]]
        kinds.add(asked["kind"])
    assert kinds == {"what", "world", "colour", "texture"}
    assert len({video["id"] for video in videos}) == len(videos)


def test_every_row_with_an_answer_is_a_needle_before_one_is_again(run: Run) -> None:
    of_bytes = {sample["image"]["bytes"]: sample for sample in run.samples}
    counts: dict[tuple[str, str], int] = {}
    for video in videos_of(run):
        needle = of_bytes[video["images"][video["needle"][0]]["bytes"]]
        key = video["questions"][0]["kind"], needle["row_id"]
        counts[key] = counts.get(key, 0) + 1
    of_places = [count for (kind, _), count in counts.items() if kind == "what"]  # every picture has others beside it
    assert 0 <= max(of_places) - min(of_places) <= 1
    alone = {sample["row_id"] for sample in run.samples if len(things(sample)) == 1 and sample["split"] == "train"}
    assert alone <= {row for kind, row in counts if kind == "what"}


def test_fewer_are_the_first_of_more_whatever_the_shards_are(run: Run, tmp_path: Path) -> None:
    few = videos_of(rendered(tmp_path, "--videos.count", "5", "--shards.rows", "100"))
    every = {video["id"]: video for video in videos_of(run)}
    assert len(few) == 5 < len(every)
    assert all(every[video["id"]] == video for video in few)


def test_card_and_hub_know_the_videos(run: Run, tmp_path: Path) -> None:
    card = (run.path / "dataset" / "README.md").read_text()
    assert "config_name: videos" in card
    assert f"{len(videos_of(run)):,} videos of 9 frames" in card
    loaded = load_dataset(str(run.path / "dataset"), "videos", split="train")
    assert [image.size for image in loaded[0]["images"]] == [(48, 48)] * 9
    publication = gather(str(run.path), "org/needles", "https://hub.example", str(tmp_path), licence="mit")
    assert list(problems(publication.parquet, publication.texts)) == []
    assert "videos/train-00000-of-00002.parquet" in {upload.path for upload in publication.large}
    sets = json.loads(publication.texts["croissant.json"])["recordSet"]
    (fields,) = (one["field"] for one in sets if one["@id"] == "videos")
    (images,) = (field for field in fields if field["@id"] == "videos/images")
    assert (images["dataType"], images["repeated"]) == ("sc:ImageObject", True)
    assert command.main(["check", str(run.path)]) == 0


def test_shots_fill_the_frames_and_a_needle_may_be_anywhere() -> None:
    options, starts = Videos(frames=6, needle=2, shots=3), set()
    for seed in range(200):
        shown, needle = frames_of(3, options, np.random.default_rng(seed))
        assert len(shown) == 6
        assert shown[needle].tolist() == [0, 0]
        others = np.delete(shown, needle)
        assert others.tolist() == sorted(others)
        assert set(others.tolist()) == {1, 2, 3}
        starts.add(int(needle[0]))
    assert starts == set(range(5))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--videos.shots", "8"], "frames is 9; a needle of 2 frames and 8 shots need at least 10"),
        (["--videos.templates", "{what: ['What is the {thing}?']}"], "gives its answer away by {thing}"),
        (["--videos.templates", "{what: ['What is there?']}"], "does not say what to look for"),
        (["--videos.templates", "{what: ['Who is in {place}?']}"], "{place} is no column"),
    ],
)
def test_options_that_do_not_fit_are_sentences(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    given = ["render", "--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), *words]
    assert command.main(given) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")


def test_the_shipped_recipe_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(CONFIGS / "render" / "needles_demo.yaml")
    assert command.main(["render", "--config", recipe, "--out", "nowhere", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "needles demo: 1,200 rows" in said
    assert "the embedded world lacks" not in said
