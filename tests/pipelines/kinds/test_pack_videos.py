"""`granary pack` of videos, from files and annotations to rows: clips, frames, times, and what is lost and why."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pools
import pytest
from datasets import load_dataset
from made_videos import made, number_of, sounds
from PIL import Image

import granary
from granary.curation.videos.decode import read_clip
from granary.curation.videos.recipe import VideoFormat
from granary.pipelines import command
from granary.pipelines.engine.units import Runner
from granary.pipelines.kinds.registry import VIDEO_FORMATS


def attempt(videos: Path, out: Path, *words: str, beam: bool = False) -> int:
    """Run `granary pack` in this process; returns its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        if not beam:
            patch.setattr(Runner, "_run", pools.run_in_a_loop)
        config = ["--config", "pack/video.yaml"]
        return command.main(["pack", *config, "--videos", str(videos), "--out", str(out), *words])


def coin() -> dict[str, Any]:
    """Annotations as COIN publishes them."""

    def entry(subset: str, *segments: tuple[float, float]) -> dict[str, Any]:
        steps = [{"id": str(n + 5), "segment": [*pair], "label": f"step {n}"} for n, pair in enumerate(segments)]
        return {"class": "MakeTea", "subset": subset, "annotation": steps, "duration": 2.0, "video_url": "x"}

    return {
        "database": {
            "one": entry("training", (0.0, 0.5), (0.5, 1.0), (1.2, 9.0)),
            "two": entry("testing", (0.3, 0.8), (7.0, 8.0), (1.0, 1.0)),
            "gone": entry("training", (0.0, 1.0)),
            "sound": entry("training", (0.0, 1.0)),
            "late": entry("training", (50.0, 60.0)),
            "cut": entry("training", (0.0, 1.0)),
        }
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    (root / "clips" / "day").mkdir(parents=True)
    whole = made(40, options={"movflags": "faststart"})
    files = {
        "one.mp4": made(20), "day/two.mkv": made(20, "matroska"), "sound.mp4": sounds(), "late.mp4": made(20),
        "cut.mp4": whole[: len(whole) // 2], "other.webm": made(5, "webm", "libvpx-vp9"), "notes.txt": b"no video",
    }  # fmt: skip
    for name, data in files.items():
        (root / "clips" / name).write_bytes(data)
    (root / "COIN.json").write_text(json.dumps(coin()))
    return root


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> pools.Run:
    """A run through Beam with two workers and units of two."""
    out = tmp_path_factory.mktemp("packed") / "run"
    words = ("--format", "coin", "--annotations", str(folder / "COIN.json"), "--unit_rows", "2", "--workers", "2")
    assert attempt(folder / "clips", out, *words, beam=True) == 0
    return pools.Run(str(out))


def test_a_row_has_the_original_bytes_and_the_clips_of_the_steps(packed: pools.Run, folder: Path) -> None:
    rows = {row["name"]: row for row in packed.samples}
    assert set(rows) == {"one", "two"}
    one = rows["one"]
    assert one["video"] == {"bytes": (folder / "clips" / "one.mp4").read_bytes(), "path": "one.mp4"}
    assert (one["frames"], one["width"], one["height"], one["codec"]) == (20, 64, 48, "h264")
    assert one["times"] == pytest.approx(np.arange(20) / 10)
    clips = [(clip["first"], clip["frames"], clip["step"], clip["label"]) for clip in one["clips"]]
    assert clips == [(0, 5, "5", "step 0"), (5, 5, "6", "step 1"), (12, 8, "7", "step 2")]
    assert one["clips"][2]["end"] == pytest.approx(2.0)  # cut short where the video ends
    assert (one["label"], one["captions"], one["split"]) == ("MakeTea", ["step 0", "step 1", "step 2"], "train")
    assert Image.open(io.BytesIO(one["image"]["bytes"])).size == (64, 48)
    assert one["source"]["uri"] == "videos/one.mp4"
    assert rows["two"]["split"] == "test"


def test_clips_of_the_rows_are_read_by_their_times(packed: pools.Run) -> None:
    (row,) = (row for row in packed.samples if row["split"] == "test")
    (clip,) = row["clips"]
    times = row["times"][clip["first"] : clip["first"] + clip["frames"]]
    assert [number_of(frame) for frame in read_clip(row["video"]["bytes"], times, 24)] == [3, 4, 5, 6, 7]


def test_what_is_lost_is_told_with_its_reason(packed: pools.Run) -> None:
    letters = {(row["uri"], row["part"], row["error"]) for row in packed.table("dead-letter")}
    assert letters == {
        ("videos/day/two.mkv", "clip 2", "OutsideOfVideo"),
        ("videos/day/two.mkv", "step 1", "NoTime"),
        ("videos/gone", "", "FileNotFoundError"),
        ("videos/sound.mp4", "", "NoVideo"),
        ("videos/late.mp4", "", "NoClips"),
        ("videos/cut.mp4", "", "Truncated"),
    }
    ledger = {row["uri"]: row["status"] for row in packed.table("ledger")}
    assert len(ledger) == 6
    assert {uri for uri, status in ledger.items() if status == "kept"} == {"videos/one.mp4", "videos/day/two.mkv"}
    assert "1 files of the folder are named in no annotation" in packed.facts["notes"][0]
    flow = packed.facts["flow"]
    assert [tuple(row.values()) for row in flow] == [("videos", 6, 2, 0, 4), ("clips", 6, 4, 0, 2)]


def test_the_same_command_does_nothing_and_one_worker_gives_the_same_bytes(
    packed: pools.Run, folder: Path, tmp_path: Path
) -> None:
    words = ("--format", "coin", "--annotations", str(folder / "COIN.json"), "--unit_rows", "2")
    assert attempt(folder / "clips", tmp_path / "run", *words) == 0
    again = pools.Run(str(tmp_path / "run"))
    names = ("dataset", "ledger", "dead-letter")
    assert again.hashes(*names) == packed.hashes(*names)
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert attempt(folder / "clips", tmp_path / "run", *words) == 0
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    shutil.copy(folder / "clips" / "one.mp4", folder / "clips" / "gone.mp4")
    try:
        assert attempt(folder / "clips", tmp_path / "run", *words) == 0
        assert pools.Run(str(tmp_path / "run")).facts["samples"] == 3
    finally:
        (folder / "clips" / "gone.mp4").unlink()


def test_without_annotations_videos_are_cut_where_the_picture_changes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scenes = [random.integers(0, 255, (1, 1, 3)).astype(np.uint8) for _ in range(3)]
    pictures = [np.broadcast_to(scenes[number // 20], (48, 64, 3)).copy() for number in range(60)]
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "scenes.mp4").write_bytes(made(60, pictures=pictures, gop=60))
    assert attempt(tmp_path / "clips", tmp_path / "run") == 0
    (row,) = pools.Run(str(tmp_path / "run")).samples
    assert [(clip["first"], clip["frames"]) for clip in row["clips"]] == [(0, 20), (20, 20), (40, 20)]
    assert row["label"] is None
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    (tmp_path / "run" / "report" / "index.html").unlink()
    assert command.main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report" / "index.html").read_text() == page
    assert "scenes" in page


def test_a_second_file_or_annotation_of_a_video_is_told(tmp_path: Path) -> None:
    (tmp_path / "clips" / "later").mkdir(parents=True)
    for number, name in ((20, "a.mp4"), (10, "later/a.mp4")):
        (tmp_path / "clips" / name).write_bytes(made(number))
    lines = [{"video": "a", "task": task, "steps": [{"start": 0, "end": 0.5}]} for task in ("tea", "soup")]
    (tmp_path / "steps.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("--format", "lines", "--annotations", str(tmp_path / "steps.jsonl"), "--unit_rows", "1")
    assert attempt(tmp_path / "clips", tmp_path / "run", *words) == 0
    run = pools.Run(str(tmp_path / "run"))
    assert [(row["label"], row["frames"]) for row in run.samples] == [("tea", 20)]
    assert [(letter["uri"], letter["error"]) for letter in run.table("dead-letter")] == [("videos/a", "DuplicateKey")]
    assert run.facts["notes"] == ["1 files of the folder have the name of another video; they were left out."]


def test_keys_that_are_not_read_are_counted_and_named_in_the_summary(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one.mp4").write_bytes(made(20))
    database = {"one": coin()["database"]["one"]}
    database["one"]["licence"] = "mit"
    for step in database["one"]["annotation"]:
        step["by\n" + "x" * 200] = 1
    (tmp_path / "COIN.json").write_text(json.dumps({"database": database}))
    words = ("--format", "coin", "--annotations", str(tmp_path / "COIN.json"))
    assert attempt(tmp_path / "clips", tmp_path / "run", *words) == 0
    (note,) = pools.Run(str(tmp_path / "run")).facts["notes"]
    assert note.endswith(f"how often each stands: annotation.by {'x' * 66} (3), licence (1).")


def test_files_without_end_of_unknown_keys_have_the_first_hundred_named(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one.mp4").write_bytes(made(20))
    database = {"one": coin()["database"]["one"] | {f"key {number}": 0 for number in range(150)}}
    (tmp_path / "COIN.json").write_text(json.dumps({"database": database}))
    words = ("--format", "coin", "--annotations", str(tmp_path / "COIN.json"))
    assert attempt(tmp_path / "clips", tmp_path / "run", *words) == 0
    (note,) = pools.Run(str(tmp_path / "run")).facts["notes"]
    assert note.count("key ") == 100
    assert "(others) (50)" in note


def test_the_public_function_packs_videos_and_datasets_loads_them(folder: Path, tmp_path: Path) -> None:
    step = {"step_id": 3, "label": "a", "start": 0, "end": 0.3, "verb": 7, "noun": "12"}
    lines = [{"video": "other", "task": "t", "steps": [step]}]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    run = granary.pack(
        videos=str(folder / "clips"), annotations=str(tmp_path / "steps.jsonl"), out=tmp_path / "run", format="lines",
        quiet=True,
    )  # fmt: skip
    assert run.counts["samples"] == 1
    (row,) = load_dataset(str(tmp_path / "run" / "dataset"), split="train")
    clips = [(clip["frames"], clip["step"], clip["verb"], clip["noun"]) for clip in row["clips"]]
    assert clips == [(3, "3", "7", "12")]
    (letter,) = pools.Run(str(tmp_path / "run")).table("dead-letter")
    assert (letter["uri"], letter["error"]) == ("videos/steps.jsonl:2", "InvalidJson")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--format", "coin"), "format: coin needs --annotations"),
        (("--annotations", "COIN.json"), "format: shots takes no annotations"),
        (("--format", "coin", "--annotations", "nowhere.json"), "annotations: there is nothing at 'nowhere.json'"),
        (("--format", "coin", "--annotations", "clips/notes.txt"), "cannot be read as coin"),
        (("--format", "film"), "film"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(
    words: tuple[str, ...], sentence: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    assert attempt(folder / "clips", tmp_path / "run", *words) != 0
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_a_folder_without_a_good_video_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clips").mkdir()
    assert attempt(tmp_path / "clips", tmp_path / "run") != 0
    assert "there is no video" in capsys.readouterr().err
    (tmp_path / "clips" / "a.mp4").write_bytes(sounds())
    assert attempt(tmp_path / "clips", tmp_path / "run2") != 0
    assert "none of the 1 videos" in capsys.readouterr().err


def test_the_formats_of_the_command_are_those_of_the_recipe() -> None:
    assert VideoFormat.__args__ == VIDEO_FORMATS  # type: ignore[attr-defined]
