"""Readers of the published annotations of steps, in the forms that they have, and of the files of ../shared/data."""

from __future__ import annotations

import csv
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


def test_keys_that_coin_and_crosstask_do_not_have_are_named_as_often_as_they_stand(tmp_path: Path) -> None:
    steps = [{"id": "1", "segment": [0.0, 1.0], "label": "a", "actor": 3}, {"segment": [1.0, 2.0], "actor": 4}, 7]
    entry = {"class": "X", "subset": "training", "licence": "mit", "annotation": steps}
    path = tmp_path / "COIN.json"
    path.write_text(json.dumps({"database": {"abc": entry, "def": {"annotation": "none", "rating": 1}}}))
    assert [procedure.unknown for procedure in read_procedures(str(path), "coin")] == [
        ("licence", "annotation.actor", "annotation.actor"),
        ("rating",),
    ]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "1_a.csv").write_text("1,0,1,sure\n\n1,1,2\n1,2,3,sure,twice\n")
    (table,) = read_procedures(f"{tmp_path}/tables/", "crosstask")
    assert (len(table.segments), table.unknown) == (3, ("column 4", "column 4", "column 5"))


def test_epic_is_read_as_it_is_published(tmp_path: Path) -> None:
    columns = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
        "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
    )
    rows = [
        "P01_01_1,P01,P01_01,00:00:02.720,00:00:05.29,00:01:06.03,8,202,turn on,turn-on,6,light,114,['light'],[114]",
        "P01_02_0,P01,P01_02,00:00:01.089,01:00:00.14,01:00:03.37,8,202,open door,open,3,door,3,['door'],[3]",
        "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]",
        "P01_01_2,P01,P01_01,00:00:01.089,soon,00:00:03.37,8,202,close door,close,4,door,3,['door'],[3]",
    ]
    path = tmp_path / "EPIC_100_validation.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    one, other = read_procedures(str(path), "epic")
    assert (one.unknown, other.unknown) == ((), ())
    assert (one.video, one.task, one.subset) == ("P01_01", "", "validation")
    assert one.segments == [
        Segment(0.14, 3.37, "3,3", "open door", "3", "3"),
        Segment(5.29, pytest.approx(66.03), "6,114", "turn on", "6", "114"),
    ]
    assert one.wrong == ["step 1 has no time: from None to 3.37"]
    assert [(segment.start, segment.end) for segment in other.segments] == [
        (pytest.approx(3600.14), pytest.approx(3603.37))
    ]
    path.write_text("\n".join([f"{columns},sure", *(f"{row},1" for row in rows)]) + "\n")
    assert [video.unknown for video in read_procedures(str(path), "epic")] == [("sure",) * 3, ("sure",)]


def test_goal_step_is_read_as_it_is_published(tmp_path: Path) -> None:
    substep = {"start_time": 2.0, "end_time": 3.0, "step_category": "Cut: slice", "step_description": "slice lime"}
    step = {
        "start_time": 0.1, "end_time": 88.3, "step_category": "Peel and cut: Cut", "step_description": "Slice lime",
        "is_continued": False, "is_procedural": True, "is_relevant": "essential", "summary": [], "segments": [substep],
    }  # fmt: skip
    video = {
        "video_uid": "b739-68", "start_time": 0.02, "end_time": 1864.65, "goal_category": "COOKING:MAKE_SALAD",
        "goal_description": "making a salad", "goal_wikihow_url": "x", "summary": [], "is_procedural": True,
        "segments": [step, {**step, "start_time": 99.0}],
    }  # fmt: skip
    path = tmp_path / "goalstep_train.json"
    path.write_text(json.dumps({"videos": [video, {"segments": []}, 7]}))
    one, nameless, no_entry = read_procedures(str(path), "goalstep")
    assert (one.unknown, no_entry.unknown) == ((), ())
    assert (one.video, one.task, one.subset) == ("b739-68", "COOKING:MAKE_SALAD", "training")
    assert one.segments == [Segment(0.1, 88.3, "Peel and cut: Cut", "Slice lime")]
    assert one.wrong == ["step 2 has no time: from 99.0 to 88.3"]
    assert [(some.video, some.error and some.error[0]) for some in (nameless, no_entry)] == [
        ("videos[1]", "NoVideoName"),
        ("videos[2]", "NoVideoName"),
    ]
    path.write_text(json.dumps({"videos": [{**video, "by": 1, "segments": [{**step, "sure": 2}, 7]}]}))
    assert [one.unknown for one in read_procedures(str(path), "goalstep")] == [("by", "segments.sure")]


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
        ("a.json", "coin", "[" * 100_000), ("a.csv", "crosstask", "1,2,3"), ("a.csv", "epic", "video_id,verb\nx,y\n"),
        ("a.csv", "epic", ""), ("a.csv", "epic", "video_id," + "x" * 200_000),
        ("a.json", "goalstep", "[]"), ("a.json", "goalstep", '{"videos": {}}'),
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


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_real_actions_and_goals_are_read_whole(tmp_path: Path) -> None:
    with gzip.open(SHARED / "steps_goalstep_dev.jsonl.gz", "rt") as file:
        videos = [json.loads(line) for line in file]
    (tmp_path / "goalstep.json").write_text(json.dumps({"videos": videos}))
    found = list(read_procedures(str(tmp_path / "goalstep.json"), "goalstep"))
    assert [one.video for one in found] == [video["video_uid"] for video in videos]
    steps = sum(len(one.segments) + len(one.wrong) for one in found)
    assert steps == sum(max(1, len(video["segments"])) for video in videos)
    assert sum(len(one.segments) for one in found) > 0.9 * steps
    with gzip.open(SHARED / "steps_epic100_dev.jsonl.gz", "rt") as file:
        actions = [json.loads(line) for line in file]
    names = {"video_id": "video", "start_timestamp": "start", "stop_timestamp": "stop"}
    with (tmp_path / "EPIC_100_train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        columns = ("video_id", "start_timestamp", "stop_timestamp", "narration", "verb_class", "noun_class")
        table.writerow(columns)
        table.writerows([action[names.get(name, name)] for name in columns] for action in actions)
    found = list(read_procedures(str(tmp_path / "EPIC_100_train.csv"), "epic"))
    assert len(found) == 93
    assert sum(len(one.segments) for one in found) == 6493
    assert all(segment.verb.isdecimal() and segment.noun.isdecimal() for one in found for segment in one.segments)
