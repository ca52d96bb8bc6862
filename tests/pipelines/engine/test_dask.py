"""Every pipeline on a Dask scheduler with two worker processes, on loopback: the bytes of a local run."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import every_pipeline
import pools
import pytest
from dask_cluster import LIMIT, OUTPUTS, RECIPE, Cluster, ended, killed_at_last, start, until

from granary.pipelines import command

pytest.importorskip("distributed", reason="Dask is not installed: pip install 'granary-data[dask]'")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    one = Cluster(tmp_path_factory.mktemp("dask"))
    try:
        yield one
    finally:
        one.end()


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    started.complete()
    return started


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """No test hangs: SIGALRM ends it with what it was doing."""

    def fail(*_: object) -> None:
        raise TimeoutError(f"not done after {LIMIT} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def local(roles, tmp_path_factory: pytest.TempPathFactory) -> pools.Run:
    """A run of the planted pool without Dask or Beam."""
    return pools.curate(roles, tmp_path_factory.mktemp("local") / "run", *RECIPE)


def test_curate_with_seeds_and_references_and_a_worker_killed_in_the_middle(roles, local, tmp_path, cluster):
    victim, other = cluster.workers
    held = cluster.hold("pool")
    process = start(roles, tmp_path / "run", cluster)
    with killed_at_last(process):
        until(lambda: cluster.begun("pool", victim), "the victim has a unit")
        os.killpg(victim.pid, signal.SIGKILL)
        held.unlink()
        ended(process)
    there = pools.Run(str(tmp_path / "run"))
    ran = [row["stage"] for row in local.facts["stages"]]
    assert ran == [row["stage"] for row in there.facts["stages"]]
    assert {"references", "audit", "seeds", "features", "shards"} <= set(ran)
    assert there.hashes(*OUTPUTS, *ran) == local.hashes(*OUTPUTS, *ran)
    lost = [unit for unit in cluster.done()[victim.pid] if unit.startswith("pool")]
    assert set(lost) <= set(cluster.done()[other.pid])


def test_a_killed_command_goes_on_with_both_workers(roles, local, tmp_path, cluster):
    out = tmp_path / "run"
    held = cluster.hold("join")
    process = start(roles, out, cluster)
    try:
        until(lambda: cluster.begun("join"), "the join begins")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    before = pools.Run(str(out)).times()
    assert len([name for name in before if name.startswith("pool/")]) == 8
    held.unlink()
    begun = {worker.pid: len(cluster.done().get(worker.pid, [])) for worker in cluster.workers}
    resumed = pools.curate(roles, out, *RECIPE, *cluster.words, beam=True)
    assert before.items() <= resumed.times().items()
    assert resumed.hashes(*OUTPUTS) == local.hashes(*OUTPUTS)
    assert all(len(cluster.done()[worker]) > before for worker, before in begun.items())


def test_interrupted_it_leaves_nothing_queued(roles, local, tmp_path, cluster):
    held, process = cluster.hold("pool"), start(roles, tmp_path / "run", cluster)
    with killed_at_last(process):
        until(lambda: cluster.begun("pool"), "a unit of the pool begins")
        os.kill(process.pid, signal.SIGINT)
        error = process.communicate(timeout=LIMIT)[1].decode()
    assert process.returncode == 130, error
    assert "run the same command again" in error.splitlines()[-1]
    assert "Traceback" not in error
    held.unlink()
    from distributed import Client

    with Client(cluster.address, timeout=LIMIT, set_as_default=False) as client:
        until(lambda: not any(client.processing().values()), "the workers have nothing to do")
    assert len(list((tmp_path / "run" / "pool").glob("*.done"))) <= 2  # those at work; the other two never began


def test_a_failing_unit_is_one_sentence(roles, local, tmp_path, cluster, capfd):
    run = pools.Run(str(shutil.copytree(local.path, tmp_path / "run")))
    shutil.rmtree(run.path / "join")
    (run.path / "join").write_text("a file where a folder of parts should be")
    assert pools.attempt(roles, run.path, *RECIPE, *cluster.words, beam=True) == 2
    said = capfd.readouterr().err
    assert said.strip().splitlines()[-1].startswith("granary: stage join, unit ")
    assert "(--debug shows the traceback" in said
    assert "Traceback (most" not in said


def test_a_damaged_part_that_a_combine_reads_is_made_again(roles, local, tmp_path, cluster):
    run = pools.Run(str(shutil.copytree(local.path, tmp_path / "run")))
    part = sorted((run.path / "join").glob("*.parquet"))[0]
    part.write_bytes(bytes(part.stat().st_size))  # as long as its marker says
    shutil.rmtree(run.path / "forest")
    again = pools.curate(roles, run.path, *RECIPE, *cluster.words, beam=True)
    assert again.hashes(*OUTPUTS, "join", "forest") == local.hashes(*OUTPUTS, "join", "forest")


@pytest.mark.parametrize("name", ["render", "pack", pytest.param("sample", marks=pytest.mark.slow)])
def test_every_other_pipeline(name, tmp_path, cluster):
    every_pipeline.write_inputs(tmp_path / "inputs")
    words = [every_pipeline.words(name, tmp_path / "inputs", tmp_path / "inputs", tmp_path / out) for out in "ab"]
    assert command.main([*words[0], "--workers", "1"]) == 0
    assert command.main([*words[1], *cluster.words[:-1], f"--dask_scheduler_file={cluster.file}"]) == 0
    here, there = pools.Run(str(tmp_path / "a")), pools.Run(str(tmp_path / "b"))
    assert [row["stage"] for row in here.facts["stages"]] == [row["stage"] for row in there.facts["stages"]]
    assert here.hashes(*OUTPUTS) == there.hashes(*OUTPUTS)
    assert there.samples
