"""What a unit of a join opens grows with its own blocks, not with the pool."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pools
import pyarrow.parquet as pq
import pytest

from granary.curation.runs import spans, tables
from granary.curation.runs.run import Run, run_unit
from granary.curation.steps import dedup, leaks, retrieve
from granary.curation.store import storage

DENSE = ("survivors", "verdicts")
UNITS = ("join", "leaks-00", "audit", "nearest-0", "pool-cells")


@pytest.fixture
def opens(monkeypatch):
    """For each stage and unit the files of the run that it opened, by stage."""
    counts, now = collections.defaultdict(collections.Counter), []
    open_read = storage.open_read

    def counting(url):
        if now:
            counts[now[0]][url.rsplit("/", 2)[-2]] += 1
        return open_read(url)

    def noting(run, stage, unit, *combined):
        now[:] = [(stage.name, unit.index)]
        run_unit(run, stage, unit, *combined)
        now.clear()

    monkeypatch.setattr(tables.storage, "open_read", counting)
    monkeypatch.setattr(pools, "run_unit", noting)
    return counts


def most(opens, stage):
    """Return of each folder the most files that one unit of a stage opened."""
    units = [counts for (name, _), counts in opens.items() if name == stage]
    assert units, stage
    return {folder: max(unit[folder] for unit in units) for folder in set().union(*units)}


def test_a_unit_opens_its_own_blocks_and_a_constant_number_of_others(roles, tmp_path, opens):
    words = ["--unit_rows", "4", "--dedup.block", "4", "--retrieval.block", "4", "--seeds.mode", "{mode}"]
    words += ["--retrieval.clusters", "2", "--retrieval.min_seeds", "0", *pools.THRESHOLDS]
    opened = []
    for distinct in (6, 30):
        given = {**roles, "pool": pools.write(tmp_path / str(distinct), pools.planted(distinct)["pool"])}
        opens.clear()
        for mode in ("sample", "cluster"):
            named = [word.format(mode=mode) for word in words]
            run = pools.curate(given, tmp_path / f"{distinct}-{mode}", *named)
        parts = len(list((run.path / "pool").glob("*.parquet")))
        opened.append((parts, {stage: most(opens, stage) for stage in UNITS}))
    (few, small), (many, large) = opened
    assert many > 1.7 * few
    assert small == large


def test_a_file_of_a_dense_table_reads_and_holds_its_own_parts_alone(roles, tmp_path, opens, monkeypatch):
    monkeypatch.setattr(spans, "PARTS_PER_FILE", 4)
    opened, ledgers = [], []
    for distinct in (6, 30):
        given = {**roles, "pool": pools.write(tmp_path / str(distinct), pools.planted(distinct)["pool"])}
        opens.clear()
        run = pools.curate(given, tmp_path / f"run-{distinct}", "--unit_rows", "4", *pools.THRESHOLDS)
        parts = len(list((run.path / "pool").glob("*.parquet")))
        for stage in DENSE:
            groups = [pq.ParquetFile(file).num_row_groups for file in sorted((run.path / stage).glob("*.parquet"))]
            assert groups == [4] * (parts // 4) + [parts % 4] * bool(parts % 4)
        opened.append({stage: most(opens, stage) for stage in (*DENSE, "features", "ledger")})
        ledgers.append(run.table("ledger"))
    small, large = opened
    assert small == large
    assert large["verdicts"]["pool"] < parts
    monkeypatch.undo()
    whole = pools.curate(given, tmp_path / "whole", "--unit_rows", "4", *pools.THRESHOLDS)
    assert len(list((whole.path / "verdicts").glob("*.parquet"))) == 1
    assert whole.table("ledger") == ledgers[1]


def test_rows_among_blocks_are_the_rows_there_of_all(run):
    directory = Run(str(Path(run.path)))
    for rows, stage in ((dedup.originals, "pool"), (leaks.distinct, "pool"), (retrieve.candidates, "features")):
        whole = rows(directory)
        bounds = np.concatenate([[0], np.cumsum(directory.rows("pool"))])
        parts = range(len(directory.parts(stage)))
        assert np.array_equal(np.concatenate([rows(directory, (part, part + 1)) for part in parts]), whole)
        inside = (whole >= bounds[1]) & (whole < bounds[3])
        assert np.array_equal(rows(directory, (1, 3)), whole[inside])
    assert np.array_equal(dedup.originals(directory, (1, 2), (1, 2)), dedup.originals(directory, (1, 2)))
