"""Two commands in one run directory: the second is told of the first, and nothing of the first is touched."""

from __future__ import annotations

import dataclasses
import os

import pools
import pytest

from granary.curation.runs.lock import LOCK, Lock
from granary.pipelines import command
from granary.pipelines.engine import session


@pytest.fixture
def pool(tmp_path):
    return pools.write(tmp_path / "pool", {f"{i}.png": pools.picture(i) for i in range(3)})


def refused(capsys, *words):
    """Run a command that must be refused; returns its sentence."""
    assert pools.attempt({}, *words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


def test_a_held_directory_is_left_as_it_is(pool, tmp_path, capsys):
    out = tmp_path / "run"
    lock = Lock(str(out))
    lock.acquire()
    for recipe in ((), ("--dedup.threshold", "0.5"), ("--shards.rows", "7")):
        said = refused(capsys, out, "--pool", str(pool), *recipe)
        assert f"out: {out} is being written by process {os.getpid()} on " in said
        assert "--steal-lock" in said
        assert os.listdir(out) == [LOCK]
    assert pools.attempt({"pool": pool}, out, "--steal-lock") == 0
    assert not (out / LOCK).exists()


def test_a_lock_of_another_machine_is_stolen_on_request_alone(pool, tmp_path, capsys):
    out = tmp_path / "run"
    pools.curate({"pool": pool}, out)
    lock = Lock(str(out))
    lock.holder = dataclasses.replace(lock.holder, host="elsewhere")
    lock.acquire()
    assert "process" in refused(capsys, out, "--pool", str(pool))
    pools.curate({"pool": pool}, out, "--steal-lock")


def test_what_a_killed_command_left_is_taken_over(pool, tmp_path):
    out = tmp_path / "run"
    lock = Lock(str(out))
    lock.holder = dataclasses.replace(lock.holder, begun="before this process")
    lock.acquire()
    pools.curate({"pool": pool}, out)
    assert not (out / LOCK).exists()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, OSError])
def test_a_run_that_fails_gives_the_directory_back(pool, tmp_path, monkeypatch, error):
    def fail(*_):
        assert (tmp_path / "run" / LOCK).exists()
        raise error

    monkeypatch.setattr("granary.pipelines.kinds.curate.Curation.run", fail)
    assert pools.attempt({"pool": pool}, tmp_path / "run") != 0
    assert not (tmp_path / "run" / LOCK).exists()
    monkeypatch.setattr(session, "_remove_half_written", fail)
    assert pools.attempt({"pool": pool}, tmp_path / "run") != 0
    assert not (tmp_path / "run" / LOCK).exists()


def test_nothing_is_written_into_a_folder_that_is_no_run(pool, tmp_path, capsys):
    mine = pools.write(tmp_path / "mine", {"diary.txt": b"dear"})
    assert "is not empty and is not a run directory" in refused(capsys, mine, "--pool", str(pool))
    assert os.listdir(mine) == ["diary.txt"]
    assert command.main(["check", str(mine)]) == 2
