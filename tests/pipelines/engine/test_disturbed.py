"""What a machine and its users do to a run under way: changed files, a clock set back, signals."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time

import pools
import psutil
import pytest
from places import ROOT

from granary.curation.runs.lock import LOCK

OUTPUTS = ("dataset", "ledger", "dead-letter")
MAIN = "import sys; from granary.pipelines.command import main; sys.exit(main())"


def pictures(*seeds: int) -> dict[str, bytes]:
    return {f"{seed}.png": pools.png(pools.picture(seed)) for seed in seeds}


POOLS = {  # how a pool of some files is written
    "folder": lambda path, files: pools.write(path, files),
    "tar": lambda path, files: path.with_suffix(".tar").write_bytes(pools.tar_of(files)),
    "parquet": lambda path, files: path.with_suffix(".parquet").write_bytes(pools.parquet_of(files)),
}
ENDINGS = {"folder": "", "tar": ".tar", "parquet": ".parquet"}


SAME, SHORTER, LONGER = (1, 2, 3), (9, 2), (2, 9, 1, 3, 4)


@pytest.mark.parametrize(
    ("kind", "stage", "after"),
    [
        ("folder", "pool", LONGER),
        ("folder", "shards", SHORTER),
        ("tar", "pool", SHORTER),
        ("tar", "shards", LONGER),
        ("parquet", "exact", SHORTER),
        ("parquet", "shards", SAME),
    ],
)
def test_a_pool_that_changes_under_way_costs_what_changed_alone(tmp_path, monkeypatch, kind, stage, after):
    """Every stored picture is the one that was judged, and the same command then makes what a new run makes."""
    path, inner = tmp_path / "pool", pools.run_in_a_loop
    POOLS[kind](path, pictures(1, 2, 3))

    def change_before(self, plan, missing, combine):
        if plan.name == stage:
            changed = dict(zip(pictures(1, 2, 3, 4, 5), pictures(*after).values(), strict=False))
            POOLS[kind](path, changed)
        inner(self, plan, missing, combine)

    monkeypatch.setattr(pools, "run_in_a_loop", change_before)
    pool = {"pool": f"{path}{ENDINGS[kind]}"}
    run = pools.curate(pool, tmp_path / "run")
    for sample in run.samples:
        assert hashlib.sha256(sample["image"]["bytes"]).hexdigest()[:32] == sample["id"]
    assert run.facts["samples"] == len(run.samples) == len(run.uris("kept"))
    assert len(run.uris("kept")) + len(run.uris("dead")) == len(run.ledger)
    monkeypatch.setattr(pools, "run_in_a_loop", inner)
    again, fresh = pools.curate(pool, run.path), pools.curate(pool, tmp_path / "fresh")
    assert again.hashes(*OUTPUTS) == fresh.hashes(*OUTPUTS)


def test_a_clock_that_goes_back_changes_nothing(tmp_path, monkeypatch):
    pool = {"pool": pools.write(tmp_path / "pool", pictures(1, 2, 3))}
    fresh = pools.curate(pool, tmp_path / "fresh")
    hours = itertools.count(start=int(time.time()), step=-3600)
    monkeypatch.setattr(time, "time", lambda: float(next(hours)))
    run = pools.curate(pool, tmp_path / "run", beam=True)
    for file in run.path.rglob("*"):
        os.utime(file, (4e9, 4e9))  # files of a day to come
    before = run.times()
    again = pools.curate(pool, run.path, beam=True)
    assert again.times() == before
    assert again.hashes(*OUTPUTS) == fresh.hashes(*OUTPUTS)
    assert all(stage["seconds"] >= 0 for stage in again.facts["stages"])


# -- signals ---------------------------------------------------------------------------------------------------------


def start(pool, out) -> subprocess.Popen[bytes]:
    """Start the command as a process group of its own, and wait until it has finished some units."""
    words = ["curate", "--pool", str(pool), "--out", str(out), "--unit_rows", "1", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        start_new_session=True,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(out.glob("pool/*.done")) and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None
    return process


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return pools.write(tmp_path_factory.mktemp("disturbed") / "pool", pictures(*range(40)))


@pytest.fixture(scope="module")
def undisturbed(pool, tmp_path_factory) -> dict[str, str]:
    """The hashes of a run that nothing disturbs."""
    return pools.curate({"pool": pool}, tmp_path_factory.mktemp("disturbed") / "run", "--unit_rows", "1").hashes(
        *OUTPUTS
    )


@pytest.mark.slow
def test_a_stopped_run_keeps_its_folder_and_goes_on(pool, undisturbed, tmp_path, capsys):
    out = tmp_path / "run"
    process = start(pool, out)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(1)
    done = len(list(out.glob("*/*.done")))
    assert pools.attempt({"pool": pool}, out) == 2
    assert f"is being written by process {process.pid} on" in capsys.readouterr().err
    assert len(list(out.glob("*/*.done"))) == done
    os.killpg(process.pid, signal.SIGCONT)
    assert process.wait(300) == 0, process.communicate()[1].decode()
    assert pools.Run(str(out)).hashes(*OUTPUTS) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.05, 0.5])
def test_two_interrupts_end_it_at_once_and_lose_nothing(pool, undisturbed, tmp_path, pause):
    out = tmp_path / "run"
    process = start(pool, out)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(pause)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in said
    assert not [child for child in psutil.process_iter(["cmdline"]) if str(out) in (child.info["cmdline"] or [])]
    assert pools.curate({"pool": pool}, out, "--unit_rows", "1").hashes(*OUTPUTS) == undisturbed
    assert not (out / LOCK).exists()


@pytest.mark.slow
def test_a_killed_command_leaves_a_lock_that_the_next_one_takes_over(pool, undisturbed, tmp_path):
    out = tmp_path / "run"
    process = start(pool, out)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert (out / LOCK).exists()
    assert pools.curate({"pool": pool}, out, "--unit_rows", "1").hashes(*OUTPUTS) == undisturbed
