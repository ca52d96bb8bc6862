"""The curation pipeline through a real portable job service with external workers: the bytes of a local run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import every_pipeline
import pools
import pytest
import torch
from places import CONFIGS

from granary.pipelines import command
from granary.pipelines.engine.here import UnitRunner
from granary.pipelines.engine.transforms import RunUnits

PROFILE = str(CONFIGS / "runners" / "portable.yaml")
OUTPUTS = ("dataset", "ledger", "dead-letter")


def portable(job_service, workers):
    """Return the words that send every stage through the job service to a worker pool."""
    return ["--runner", PROFILE, "--", f"--job_endpoint={job_service}", f"--environment_config={workers}"]


@pytest.fixture
def stages(monkeypatch):
    """Names of the stages that were handed to Beam."""
    names = []
    inner = RunUnits.__init__

    def remember(self, runner: UnitRunner):
        names.append(runner.stage.name)
        inner(self, runner)

    monkeypatch.setattr(RunUnits, "__init__", remember)
    return names


def small_pool(folder):
    """Write three copies of one picture, two others and a broken file."""
    names = {"a.png": pools.picture(0), "b.png": pools.picture(0), "sub/c.png": pools.picture(0)}
    return pools.write(
        folder, {**names, "d.png": pools.picture(1), "e.png": pools.picture(2), "f.png": b"no image at all"}
    )


def test_a_small_pool_through_the_job_service(tmp_path, monkeypatch, job_service, worker_threads, stages):
    pool, words = small_pool(tmp_path / "pool"), [*pools.THRESHOLDS, "--unit_rows", "4"]
    local = pools.curate({"pool": pool}, tmp_path / "local", *words)
    monkeypatch.chdir(tmp_path)  # the workers stand in another folder
    there = pools.curate({"pool": "pool"}, "portable", *words, *portable(job_service, worker_threads), beam=True)
    ran = [row["stage"] for row in local.facts["stages"]]
    assert stages == ran == [row["stage"] for row in there.facts["stages"]]
    assert there.hashes(*OUTPUTS, *ran) == local.hashes(*OUTPUTS, *ran)
    assert len(there.samples) == 3


def test_what_fails_on_a_worker_is_one_sentence_here(tmp_path, job_service, worker_threads, capfd):
    pool = small_pool(tmp_path / "pool")
    run = pools.curate({"pool": pool}, tmp_path / "run", *pools.THRESHOLDS)
    shutil.rmtree(run.path / "join")
    (run.path / "join").write_text("a file where a folder of parts should be")
    words = [*pools.THRESHOLDS, *portable(job_service, worker_threads)]
    assert pools.attempt({"pool": pool}, run.path, *words, beam=True) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("granary: stage join, unit 0 of 1: ")
    assert "(--debug shows the traceback" in last


def test_a_damaged_part_that_a_worker_meets_is_made_again(tmp_path, job_service, worker_threads):
    pool = small_pool(tmp_path / "pool")
    run = pools.curate({"pool": pool}, tmp_path / "run", *pools.THRESHOLDS)
    (part,) = (run.path / "exact").glob("*.parquet")
    before = part.read_bytes()
    part.write_bytes(bytes(len(before)))  # of the size its marker says, so it counts as finished
    for stage in ("duplicates", "join"):
        for marker in (run.path / stage).glob("*.done"):
            os.unlink(marker)
    words = [*pools.THRESHOLDS, *portable(job_service, worker_threads)]
    pools.curate({"pool": pool}, run.path, *words, beam=True)
    assert part.read_bytes() == before


class Thumbnail(torch.nn.Module):
    """Mean colours of 4 x 4 fields."""

    def forward(self, pictures):
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 4).flatten(1)


@pytest.mark.slow
def test_workers_find_an_encoder_named_by_a_relative_path(tmp_path, monkeypatch, job_service, worker_threads):
    torch.jit.script(Thumbnail()).save(tmp_path / "encoder.pt")
    pool = small_pool(tmp_path / "pool")
    monkeypatch.chdir(tmp_path)
    words = [*pools.THRESHOLDS, "--encoder.copy", "torchscript:encoder.pt?batch=2"]
    local = pools.curate({"pool": pool}, tmp_path / "local", *words)
    there = pools.curate({"pool": pool}, "portable", *words, *portable(job_service, worker_threads), beam=True)
    assert there.hashes(*OUTPUTS) == local.hashes(*OUTPUTS)
    assert local.uris("kept")
    assert str(tmp_path).encode() not in (local.path / "dataset" / "README.md").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sample", "cluster"])
def test_every_stage_through_worker_processes(roles, tmp_path, job_service, worker_processes, stages, mode):
    words = [*pools.SMALL_UNITS, *pools.THRESHOLDS, "--seeds.mode", mode, "--retrieval.clusters", "3"]
    words += ["--retrieval.min_seeds", "0", "--retrieval.refine", "1", "--dedup.mirror", "true"]
    local = pools.curate(roles, tmp_path / "local", *words)
    there = pools.curate(roles, tmp_path / "portable", *words, *portable(job_service, worker_processes), beam=True)
    ran = [row["stage"] for row in local.facts["stages"]]
    assert stages == ran == [row["stage"] for row in there.facts["stages"]]
    assert {"references", "audit", "seeds", "features", "shards"} <= set(ran)
    assert there.hashes(*OUTPUTS, *ran) == local.hashes(*OUTPUTS, *ran)
    assert there.uris("kept")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(every_pipeline.PIPELINES) - {"curate"}))
def test_every_other_pipeline_through_worker_processes(
    name, tmp_path, monkeypatch, job_service, worker_processes, stages
):
    every_pipeline.write_inputs(tmp_path / "inputs")
    monkeypatch.chdir(tmp_path)  # the workers stand in another folder
    there = every_pipeline.words(name, "inputs", Path("inputs"), "portable")
    assert command.main([*there, *portable(job_service, worker_processes)]) == 0
    handed = list(stages)
    assert command.main(every_pipeline.words(name, "inputs", Path("inputs"), "local")) == 0
    local, portable_run = pools.Run("local"), pools.Run("portable")
    ran = [row["stage"] for row in local.facts["stages"]]
    assert handed == ran == [row["stage"] for row in portable_run.facts["stages"]]
    assert portable_run.hashes(*OUTPUTS) == local.hashes(*OUTPUTS)
    assert portable_run.samples
