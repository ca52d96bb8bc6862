"""What a unit of a join opens grows with its own blocks, not with the pool."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pools
import pytest

from granary.curation.runs import tables
from granary.curation.runs.run import Run, run_unit
from granary.curation.steps import dedup, leaks, retrieve
from granary.curation.store import storage

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
