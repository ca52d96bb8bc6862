"""`granary pack` of instructions, from other runs to rows of one and of several pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pools
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from made_scenes import scene, write_scenes

import granary
from granary.curation.hub.preflight import problems
from granary.curation.hub.publication import gather
from granary.pipelines import command
from granary.pipelines.engine.units import Runner
from granary.pipelines.kinds.registry import INSTRUCTIONS, kind_of

GROUPS = ("--groups.count", "12", "--shards.groups", "5")


def attempt(data: str, out: Path, *words: str, beam: bool = False) -> int:
    """Run `granary pack` in this process; returns its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        if not beam:
            patch.setattr(Runner, "_run", pools.run_in_a_loop)
        config = ["--config", "pack/instructions.yaml"]
        return command.main(["pack", *config, "--data", data, "--out", str(out), *words])


def bad_scenes() -> list[dict[str, Any]]:
    """A picture that cannot be decoded, one whose mask is lost, one of which nothing is known."""
    dark = scene(100) | {"image": {"bytes": b"\x89PNG no picture", "path": "dark.png"}}
    maskless = scene(101) | {"mask": {"bytes": b"x", "path": "x.png"}}
    nothing = scene(102) | {"objects": [], "mask": None, "questions": [], "polls": [], "captions": []}
    return [row | {"split": "train"} for row in (dark, maskless, nothing)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_scenes(tmp_path_factory.mktemp("scenes"), [*map(scene, range(24)), *bad_scenes()])


@pytest.fixture(scope="module")
def packed(scenes: str, tmp_path_factory: pytest.TempPathFactory) -> pools.Run:
    """A run through Beam with two workers."""
    out = tmp_path_factory.mktemp("packed") / "run"
    assert attempt(scenes, out, *GROUPS, "--workers", "2", beam=True) == 0
    return pools.Run(str(out))


def groups_of(run: pools.Run) -> list[dict[str, Any]]:
    files = sorted((run.path / "dataset" / "groups").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_a_picture_keeps_its_bytes_and_has_what_is_asked_of_it(packed: pools.Run) -> None:
    pictures = {row["image"]["bytes"]: row for row in packed.samples}
    assert len(pictures) == 25
    for number in range(24):
        drawn = scene(number)
        row = pictures[drawn["image"]["bytes"]]
        assert (row["id"], row["label"], row["split"]) == (drawn["id"], drawn["label"], drawn["split"])
        assert [thing["box"] for thing in row["things"]] == [one["box"] for one in drawn["objects"]]
        boxes = [one for one in row["instructions"] if one["task"] == "box"]
        assert sorted(target["box"] for one in boxes for target in one["targets"]) == sorted(
            one["box"] for one in drawn["objects"]
        )
        assert sum(not one["targets"] for one in boxes) == 1


def test_groups_of_pictures_have_the_bytes_of_their_split_and_masks_where_it_is_shown(packed: pools.Run) -> None:
    pictures, rows = {row["image"]["bytes"]: row for row in packed.samples}, groups_of(packed)
    assert len(rows) == 12
    for row in rows:
        own = [pictures[file["bytes"]] for file in row["images"]]
        assert {one["split"] for one in own} == {row["split"]}
        (asked,) = row["instructions"]
        assert (asked["task"], asked["form"]) == ("group", "group")
        expected = [
            (number, thing["box"], thing["counts"])
            for number, one in enumerate(own)
            for thing in one["things"]
            if thing[row["attribute"]] == row["value"]
        ]
        assert [(t["picture"], t["box"], t["counts"]) for t in asked["targets"]] == expected
        assert len({number for number, *_ in expected}) == 2
        assert row["value"] in asked["question"]


def test_what_is_lost_is_told_with_its_reason(packed: pools.Run) -> None:
    letters = {(row["part"], row["error"]) for row in packed.table("dead-letter")}
    assert letters == {("", "UnidentifiedImageError"), ("mask", "InvalidMask")}
    assert len(packed.ledger) == 27
    statuses = sorted(row["status"] for row in packed.ledger.values())
    assert statuses == ["dead", "dropped", *["kept"] * 25]
    assert [tuple(row.values()) for row in packed.facts["flow"]] == [("rows", 27, 25, 1, 1)]


def test_the_same_command_does_nothing_and_one_worker_gives_the_same_bytes(
    packed: pools.Run, scenes: str, tmp_path: Path
) -> None:
    assert attempt(scenes, tmp_path / "run", *GROUPS) == 0
    again = pools.Run(str(tmp_path / "run"))
    names = ("dataset", "ledger", "dead-letter")
    assert again.hashes(*names) == packed.hashes(*names)
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert attempt(scenes, tmp_path / "run", *GROUPS) == 0
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert attempt(scenes, tmp_path / "run", *GROUPS, "--seed", "1") == 0
    assert pools.Run(str(tmp_path / "run")).hashes("dataset") != packed.hashes("dataset")


def test_datasets_loads_both_configs_and_the_hub_takes_them(packed: pools.Run, tmp_path: Path) -> None:
    folder = str(packed.path / "dataset")
    row = load_dataset(folder, "groups", split="train")[0]
    assert [picture.size for picture in row["images"]] == [(32, 32)] * 4
    assert load_dataset(folder, split="test").num_rows == 6
    publication = gather(str(packed.path), "org/asked", "https://hub.example", str(tmp_path), licence="mit")
    assert list(problems(publication.parquet, publication.texts)) == []
    assert {"groups/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"} <= {
        upload.path for upload in publication.large
    }
    page = (packed.path / "report" / "index.html").read_text()
    assert command.main(["report", str(packed.path)]) == 0
    assert (packed.path / "report" / "index.html").read_text() == page
    assert "Which pictures show" in page


def test_masks_of_a_packed_run_are_asked_for_too(tmp_path: Path) -> None:
    """COCO's instances, through a run of granary pack, beside a render."""
    (tmp_path / "photos").mkdir()
    drawn = scene(5)
    (tmp_path / "photos" / "1.png").write_bytes(drawn["image"]["bytes"])
    instances = [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 2,
            "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]],
            "bbox": [2, 2, 10, 10],
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 2,
            "segmentation": [[20, 20, 30, 20, 30, 30, 20, 30]],
            "bbox": [20, 20, 10, 10],
        },
    ]
    whole = {
        "images": [{"id": 1, "file_name": "1.png"}], "annotations": instances,
        "categories": [{"id": 2, "name": "fire hydrant"}],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(whole))
    captions = [{"id": 3, "image_id": 1, "caption": "Two hydrants."}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": whole["images"], "annotations": captions}))
    granary.pack(
        annotations=tmp_path / "instances.json", images=tmp_path / "photos", captions=str(tmp_path / "captions.json"),
        format="coco", out=tmp_path / "coco", quiet=True,
    )  # fmt: skip
    other = write_scenes(tmp_path / "scenes", [scene(n) for n in range(4)])
    run = granary.pack(
        data=[str(tmp_path / "coco"), other],
        out=tmp_path / "run",
        format="instructions",
        groups={"count": 0},
        quiet=True,
    )
    assert run.counts["samples"] == 5
    (first,) = (row for row in pools.Run(str(tmp_path / "run")).samples if row["captions"] == ["Two hydrants."])
    asked = {one["task"]: one for one in first["instructions"] if "hydrant" in one["question"]}
    assert [target["box"] for target in asked["box"]["targets"]] == [[2, 2, 12, 12], [20, 20, 30, 30]]
    assert asked["count"]["answer"] == "2"
    assert all(target["counts"] for target in asked["mask"]["targets"])
    absent = {one["question"] for one in first["instructions"] if one["form"] == "box" and not one["targets"]}
    assert any(name in question for question in absent for name in ("ball", "cone", "slab"))
    assert [one["answer"] for one in first["instructions"] if one["task"] == "caption"] == ["Two hydrants."]
    assert not (tmp_path / "run" / "dataset" / "groups").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--data", "nowhere"), "data: there is nothing at 'nowhere'"),
        (("--data", "file.txt"), "data: 'file.txt' is a file; give a run"),
        (("--data", "empty"), "data: 'empty' has no Parquet shards; give a finished run"),
        (("--groups.showing", "4"), "showing is 4; it must be below pictures, 4"),
        (("--tasks", "poem"), "poem"),
        (("--annotations", "x"), "annotations"),
    ],
)
def test_a_wrong_recipe_of_instructions_is_one_sentence(
    words: tuple[str, ...], sentence: str, scenes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    assert attempt(scenes, tmp_path / "run", *words) != 0
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_rows_of_which_nothing_is_known_end_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_scenes(tmp_path / "scenes", bad_scenes()[2:])
    assert attempt(data, tmp_path / "run") != 0
    assert "nothing could be asked of the 1 rows" in capsys.readouterr().err


def test_more_rows_are_packed_when_the_data_change(scenes: str, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "scenes")
    assert attempt(str(tmp_path / "scenes"), tmp_path / "run", *GROUPS) == 0
    write_scenes(tmp_path / "more", [scene(n) | {"split": "test"} for n in range(200, 203)])
    shutil.copy(
        tmp_path / "more" / "dataset" / "data" / "test-00000-of-00001.parquet",
        tmp_path / "scenes" / "dataset" / "data" / "test-00001-of-00002.parquet",
    )
    assert attempt(str(tmp_path / "scenes"), tmp_path / "run", *GROUPS) == 0
    assert pools.Run(str(tmp_path / "run")).facts["samples"] == 28


def test_the_format_says_which_recipe_is_meant() -> None:
    assert kind_of("pack", {"format": INSTRUCTIONS}).recipe.endswith("PackInstructionsRecipe")
    assert kind_of("curate", {"format": INSTRUCTIONS}).recipe.endswith("CurateRecipe")
