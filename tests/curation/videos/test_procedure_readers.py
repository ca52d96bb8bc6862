"""Readers of the published annotations of steps, in the forms that they have, and of the files of ../shared/data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from places import SHARED

from granary.curation.errors import UserError
from granary.curation.videos.procedures import Procedure, Segment, read_procedures


def test_coin_is_read_as_it_is_published(tmp_path: Path) -> None:
    entry = {
        "recipe_type": 13, "class": "MakeSandwich", "subset": "testing", "duration": 58.7, "start": 1.0, "end": 58.0,
        "video_url": "https://example.org/x",
        "annotation": [
            {"id": "192", "segment": [1.0, 9.5], "label": "cut the bread"},
            {"id": "193", "segment": [9.5, 9.5], "label": "put the ham"},
            {"id": "194", "segment": "later", "label": "serve"},
        ],
    }  # fmt: skip
    path = tmp_path / "COIN.json"
    path.write_text(json.dumps({"database": {"abc": entry, "def": {"class": "X"}}}))
    one, other = read_procedures(str(path), "coin")
    assert one.video == "abc"
    assert (one.task, one.subset, one.segments) == (
        "MakeSandwich",
        "testing",
        [Segment(1.0, 9.5, "192", "cut the bread")],
    )
    assert [text.split(":")[0] for text in one.wrong] == ["step 2 has no time", "step 3 has no time"]
    assert other == Procedure("def", "X", "", [], ["no step is written down"])


def test_crosstask_is_read_as_it_is_published(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "23521_DUhl_rNE.csv").write_text("3,44.0,52.5\n1,52.5,58.0\n9,60,61\n2,7,x\n")
    (tmp_path / "annotations" / "999_none.csv").write_text("1,0.5,2\n")
    (tmp_path / "annotations" / "README").write_text("not a table")
    block = "23521\nMake Jello Shots\nhttps://example.org\n3\npour water,stir mixture,add spirits\n\n"
    (tmp_path / "tasks_primary.txt").write_text(f"16815\nGrill Steak\nhttps://example.org\n1\nlight grill\n\n{block}")
    one, other = read_procedures(f"{tmp_path}/annotations/", "crosstask")
    assert (one.video, one.task, one.subset) == ("DUhl_rNE", "Make Jello Shots", "")
    assert one.segments == [
        Segment(44.0, 52.5, "3", "add spirits"), Segment(52.5, 58.0, "1", "pour water"), Segment(60.0, 61.0, "9", ""),
    ]  # fmt: skip
    assert one.wrong == ["step 4 has no time: from 7 to x"]
    assert other == Procedure("none", "999", "", [Segment(0.5, 2.0, "1", "")], [])


def test_lines_may_be_packed_and_leave_fields_out(tmp_path: Path) -> None:
    line = {"video": "a", "steps": [{"start": 1, "end": 2}, {"step_id": 4, "label": "b", "start": 0.5, "end": 1e999}]}
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((json.dumps(line) + "\n\n").encode()))
    (found,) = read_procedures(str(tmp_path / "a.jsonl.gz"), "lines")
    assert found.segments == [Segment(1.0, 2.0, "", "")]
    assert found.wrong == ["step 2 has no time: from 0.5 to inf"]


@pytest.mark.parametrize(
    ("name", "form", "text"),
    [
        ("a.json", "coin", "{"), ("a.json", "coin", "[]"), ("a.json", "coin", '{"database": []}'),
        ("a.json", "coin", "[" * 100_000), ("a.csv", "crosstask", "1,2,3"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_one_sentence(name: str, form: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"^annotations: .* cannot be read as {form}"):
        list(read_procedures(str(tmp_path / name), form))  # type: ignore[arg-type]


def test_a_bad_line_or_table_is_lost_alone(tmp_path: Path) -> None:
    good = {"video": "a", "steps": [{"start": 10**400, "end": 2}, {"start": 0, "end": 2}]}
    bad = ["{", "[1]", '{"steps": []}', '{"video": "b", "steps": 7}', '{"video": "c", "steps": "xy"}']
    (tmp_path / "a.jsonl").write_text("\n".join([*bad, json.dumps(good)]))
    *lost, none, text, kept = read_procedures(str(tmp_path / "a.jsonl"), "lines")
    assert [(one.video, one.error[0]) for one in lost if one.error] == [
        ("a.jsonl:1", "InvalidJson"),
        ("a.jsonl:2", "InvalidJson"),
        ("a.jsonl:3", "NoVideoName"),
    ]
    assert none.wrong == text.wrong == ["no step is written down"]
    assert kept.segments == [Segment(0.0, 2.0, "", "")]
    (tmp_path / "b.jsonl.gz").write_text("plain")
    (broken,) = read_procedures(str(tmp_path / "b.jsonl.gz"), "lines")
    assert broken.error
    (tmp_path / "1_long.csv").write_text(f"1,2,{'9' * 200_000}\n")
    (tmp_path / "1_short.csv").write_text("1,2,3\n")
    long, short = read_procedures(f"{tmp_path}/", "crosstask")
    assert (long.video, long.error and long.error[0]) == ("long", "Error")
    assert short.segments == [Segment(2.0, 3.0, "1", "")]


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
@pytest.mark.parametrize(
    ("name", "videos", "steps"), [("steps_coin_dev", 7064, 27_826), ("steps_crosstask_dev", 1921, None)]
)
def test_real_annotations_are_read_whole(name: str, videos: int, steps: int | None) -> None:
    procedures = list(read_procedures(str(SHARED / f"{name}.jsonl.gz"), "lines"))
    assert len(procedures) == videos
    assert all(segment.end > segment.start for one in procedures for segment in one.segments)
    found = sum(len(one.segments) for one in procedures)
    assert found + sum(len(one.wrong) for one in procedures) == steps if steps else found > 10_000
