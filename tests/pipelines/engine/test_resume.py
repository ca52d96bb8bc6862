"""Runs that stop and go on: what is done again, what is not, and that the bytes never tell."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pools
import pytest
from places import ROOT

RECIPE = (*pools.SMALL_UNITS, *pools.THRESHOLDS)
OUTPUTS = ("dataset", "ledger")


@pytest.fixture
def copied(run, tmp_path) -> pools.Run:
    """A copy of the finished run, elsewhere, with the times of its files."""
    return pools.Run(str(shutil.copytree(run.path, tmp_path / "copied")))


def again(roles, run, *words):
    """Run the command in the same directory; returns the names of the parts and markers that were written."""
    before = run.times()
    after = pools.curate(roles, run.path, *RECIPE, *words).times()
    return {name for name in after if after[name] != before.get(name)}


def test_the_same_command_again_runs_no_unit(roles, run, copied):
    assert again(roles, copied) == set()
    assert copied.hashes(*OUTPUTS) == run.hashes(*OUTPUTS)
    assert copied.facts["created"] == run.facts["created"]
    assert [len(session["stages"]) for session in copied.facts["sessions"]][1:] == [0]


def written_at(run):
    """Return the time of writing of what a finished run is closed with."""
    names = ("dataset/README.md", "run.json", "report/index.html")
    return {name: os.stat(f"{run.path}/{name}").st_mtime_ns for name in names}


def test_a_run_that_stands_is_left_as_it_is(roles, copied):
    """Card, run.json and report are written again only where something of them can differ."""
    pools.curate(roles, copied.path, *RECIPE)  # it stood elsewhere before
    before = written_at(copied)
    pools.curate(roles, copied.path, *RECIPE)
    assert written_at(copied) == before


def test_a_repeat_of_a_finished_run_imports_nothing_heavy(roles, copied):
    pools.curate(roles, copied.path, *RECIPE)
    words = ["curate", *pools.sources(roles), "--out", str(copied.path), *RECIPE]
    heavy = ("apache_beam", "torch", "sklearn", "scipy", "faiss", "datasets", "transformers")
    code = f"""
import sys
from granary.pipelines.command import main
assert main({words}) == 0
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("lost", ["dataset/README.md", "report/index.html", "run.json"])
def test_what_closes_a_run_is_written_again_when_it_is_lost(roles, copied, lost):
    pools.curate(roles, copied.path, *RECIPE)
    os.remove(f"{copied.path}/{lost}")
    before = pools.curate(roles, copied.path, *RECIPE)
    assert os.path.getsize(f"{before.path}/{lost}")


def test_a_template_put_into_a_run_is_used_by_the_next_command(roles, copied):
    pools.curate(roles, copied.path, *RECIPE)
    Path(copied.path, "card.md.j2").write_text("{{ name }}: mine\n")
    pools.curate(roles, copied.path, *RECIPE)
    assert "mine" in Path(copied.path, "dataset/README.md").read_text()


def test_another_limit_of_unreadable_files_is_in_the_next_report(roles, copied):
    """It decides no stage, yet the report shows the recipe."""
    pools.curate(roles, copied.path, *RECIPE)
    before = written_at(copied)
    pools.curate(roles, copied.path, *RECIPE, "--max_unreadable", "0.31")
    assert "max_unreadable: 0.31" in Path(copied.path, "report/index.html").read_text()
    assert all(time > before[name] for name, time in written_at(copied).items())


def test_another_k_redoes_retrieval_and_what_follows_it_alone(roles, copied):
    written = {Path(name).parts[0] for name in again(roles, copied, "--retrieval.k", "3")}
    assert written == {
        "nearest-0",
        "retrieved-0",
        "retrieved",
        "verdicts",
        "plan-rows",
        "plan-order",
        "plan",
        "shards",
        "dataset",
        "ledger",
        "dead-letter",
    }
    assert copied.facts["retrieval"][0]["retrievals"] == 3 * 3


@pytest.mark.parametrize("name", ["pool/part-00001-of-00004", "ledger/part-00002-of-00004", "join/part-00000-of-00003"])
@pytest.mark.parametrize("damage", ["part", "marker", "cut", "nonsense"])
def test_a_lost_or_damaged_part_is_made_again_alone(roles, run, copied, name, damage):
    part, marker = (copied.path / f"{name}{ending}" for ending in (".parquet", ".done"))
    if damage in ("part", "marker"):
        (part if damage == "part" else marker).unlink()
    else:
        target = part if damage == "cut" else marker
        target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    assert again(roles, copied) == {f"{name}.parquet", f"{name}.done"}
    assert copied.hashes(name.split("/")[0], *OUTPUTS) == run.hashes(name.split("/")[0], *OUTPUTS)


def test_shards_of_another_size_replace_the_old_ones(roles, run, copied):
    wider = ["100" if word == "5" else word for word in RECIPE]
    pools.curate(roles, copied.path, *wider)
    assert [path.name for path in (copied.path / "dataset" / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    assert [sample["id"] for sample in copied.samples] == [sample["id"] for sample in run.samples]
    again(roles, copied)
    assert copied.hashes(*OUTPUTS) == run.hashes(*OUTPUTS)


def test_references_taken_back_leave_no_leaks(roles, copied, tmp_path):
    without = {role: roles[role] for role in ("pool", "seeds")}
    fresh = pools.curate(without, tmp_path / "fresh", *RECIPE)
    again(without, copied)
    assert copied.hashes(*OUTPUTS) == fresh.hashes(*OUTPUTS)
    assert copied.facts["leak_audit"] == []


def test_a_file_added_to_the_pool_is_found(roles, tmp_path):
    pool = Path(shutil.copytree(roles["pool"], tmp_path / "pool"))
    first = pools.curate({"pool": pool}, tmp_path / "run", *RECIPE)
    (pool / "zz.png").write_bytes(pools.png(pools.picture(77)))
    written = again({"pool": pool}, first)
    assert "pool/zz.png" in pools.Run(str(first.path)).uris("kept")
    assert sum(name.startswith("pool/") for name in written) == 2  # the last unit alone: its part and its marker


def test_half_written_files_are_no_obstacle_and_go_away(roles, run, copied, tmp_path):
    leftovers = [
        "recipe.yaml.1f.tmp",
        "dataset/README.md.1f.tmp",
        "dataset/data/train-00000-of-00002.parquet.1f.tmp",
        "ledger/index.json.1f.tmp",
        "sources/pool.parquet.1f.tmp",
        "report/index.html.1f.tmp",
    ]
    pools.write(copied.path, dict.fromkeys(leftovers, b"half"))
    assert again(roles, copied) == set()
    assert copied.hashes(*OUTPUTS) == run.hashes(*OUTPUTS)
    assert not list(copied.path.rglob("*.tmp"))
    begun = pools.write(tmp_path / "begun", {"recipe.yaml.1f.tmp": b"half"})
    pools.curate({"pool": roles["pool"]}, begun)


# -- workers and processes -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_four_workers_write_the_bytes_of_two(roles, run, tmp_path):
    four = pools.curate(roles, tmp_path / "four", *RECIPE, "--workers", "4", beam=True)
    folders = sorted(path.name for path in run.path.iterdir() if path.is_dir() and path.name != "report")
    assert four.hashes(*folders) == run.hashes(*folders)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--workers", "1"], ["--runner", "threads"], ["--runner", "processes"]])
def test_every_local_runner_writes_the_same_bytes(roles, run, tmp_path, words):
    other = pools.curate(roles, tmp_path / "run", *RECIPE, "--workers", "2", *words, beam=True)
    assert other.hashes("pool", "features", *OUTPUTS) == run.hashes("pool", "features", *OUTPUTS)


def start(roles, out):
    """Start the command as a process group of its own."""
    sources = [word for role, path in roles.items() for word in (f"--{role}", str(path))]
    main = "import sys; from granary.pipelines.command import main; sys.exit(main())"
    call = [sys.executable, "-c", main, "curate", *sources, "--out", str(out), *RECIPE, "--workers", "2"]
    return subprocess.Popen(
        call,
        start_new_session=True,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_while_it_joins_it_goes_on_to_the_same_bytes(roles, run, tmp_path):
    out = tmp_path / "killed"
    process = start(roles, out)
    deadline = time.monotonic() + 120
    while not list(out.glob("join/*.done")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1].decode()
    kill(process)
    killed = pools.Run(str(out))
    assert not (out / "ledger").exists()
    kept = {name: stamp for name, stamp in killed.times().items() if name.startswith("pool/")}
    assert len(kept) == 8
    resumed = pools.curate(roles, out, *RECIPE)
    assert kept.items() <= resumed.times().items()
    assert resumed.hashes(*OUTPUTS) == run.hashes(*OUTPUTS)


@pytest.mark.slow
def test_interrupted_it_says_how_to_go_on(roles, run, tmp_path):
    out = tmp_path / "interrupted"
    process = start(roles, out)
    while not list(out.glob("pool/*.done")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1].decode()
    assert process.returncode == 130
    assert "run the same command again" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert pools.curate(roles, out, *RECIPE).hashes(*OUTPUTS) == run.hashes(*OUTPUTS)


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_goes_on_to_the_same_bytes(roles, run, tmp_path):
    began = time.monotonic()
    undisturbed = start(roles, tmp_path / "undisturbed")
    assert undisturbed.wait() == 0, undisturbed.communicate()[1].decode()
    lasted = time.monotonic() - began
    undisturbed.communicate()
    chance, reached = random.Random(0), set()
    for number in range(10):
        out = tmp_path / f"killed-{number}"
        process = start(roles, out)
        time.sleep(lasted * (number + chance.random()) / 10)
        kill(process)
        reached.add(len(list(out.glob("*/*.done"))))
        assert pools.curate(roles, out, *RECIPE, beam=True).hashes(*OUTPUTS) == run.hashes(*OUTPUTS)
    assert len(reached) > 3
