"""`granary curate --dry-run` says what the run will do, and writes nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pools
import pytest


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return pools.write_planted(tmp_path_factory.mktemp("planted"))


def dry(roles: dict[str, Path], out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert pools.attempt(roles, out, *words, "--dry-run") == 0
    return " ".join(capsys.readouterr().err.split())


def test_units_and_pairs_are_those_of_the_run(
    roles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*pools.THRESHOLDS, "--encoder.retrieval", "builtin:layout", "--unit_rows", "7", "--dedup.block", "16"]
    told = dry(roles, tmp_path / "run", capsys, *words)
    assert not list(tmp_path.iterdir())
    assert told.endswith("nothing was written.")
    run = pools.curate(roles, tmp_path / "run", *words)
    assert len(list((run.path / "pool").glob("*.done"))) == int(re.search(r"\bpool (\d+) \d+ images", told)[1])
    assert len(list((run.path / "join").glob("*.done"))) == int(re.search(r"\bjoin (\d+) [\d,]+ pairs", told)[1])
    assert len(list((run.path / "leaks-00").glob("*.done"))) == int(re.search(r"first round (\d+) ", told)[1])
    files = run.facts["flow"][0]["in"]
    assert f" {files} images" in told
    assert f" {files * (files - 1) // 2:,} pairs" in told


def test_what_is_finished_is_counted(
    roles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, words = {"pool": roles["pool"]}, ("--unit_rows", "7")
    run = pools.curate(pool, tmp_path / "run", *words)
    units = len(list((run.path / "pool").glob("*.done")))
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert f"has {units} of the {units} units of pool already" in dry(pool, run.path, capsys, *words)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    assert "units of pool already" not in dry(pool, run.path, capsys, *words, "--dedup.mirror", "true")


def test_files_of_a_tar_are_told_by_their_mean_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{n}.png": pools.png(pools.picture(n)) for n in range(60)}
    (tmp_path / "pool.tar").write_bytes(pools.tar_of(files))
    told = dry({"pool": tmp_path / "pool.tar"}, tmp_path / "run", capsys)
    assert "pool, webdataset: 1 tar, " in told
    assert 50 <= int(re.search(r"pool 1 (\d+) images", told)[1]) <= 75


def test_no_image_and_a_folder_that_cannot_be_written_stop_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pools.write(tmp_path / "broken", {"a.png": b"no picture"})
    assert pools.attempt({"pool": tmp_path / "broken"}, tmp_path / "run", "--dry-run") == 2
    assert re.fullmatch(r"granary: pool: .*broken.*holds no readable image.*\n", capsys.readouterr().err)
    pools.write(tmp_path / "pool", {"a.png": pools.picture(0)})
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert pools.attempt({"pool": tmp_path / "pool"}, tmp_path / "run", "--dry-run") == 2
    assert re.fullmatch(r"granary: out: cannot write to .*choose another folder\n", capsys.readouterr().err)


def test_control_characters_of_names_reach_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pools.write(tmp_path / "pool\x1b[31m", {"a.png": pools.picture(0)})
    assert "\x1b" not in dry({"pool": tmp_path / "pool\x1b[31m"}, tmp_path / "run\x1b[31m", capsys)
