"""A curation whose join runs inside cells: the components of the exact one where cells are few, and its recall said."""

from __future__ import annotations

import numpy as np
import pools
import pytest
from scipy.stats import binomtest

from granary.curation.dedup import cells
from granary.curation.runs.run import Run
from granary.curation.steps.cells import read_cells
from granary.pipelines.kinds import join_prices

CELLS = ("--dedup.index", "cells", "--unit_rows", "4", "--dedup.block", "4", *pools.THRESHOLDS)
STAGES = ("dedup-drawn", "dedup-cells", "dedup-measured", "dedup-links", "dedup-reach", "dedup-rows", "dedup-recall")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Twelve families of four near copies each, and twenty pictures alone."""
    files = {}
    for family in range(12):
        first = pools.picture(family)
        files[f"{family:02d}-0.png"] = first
        for copy in range(1, 4):
            files[f"{family:02d}-{copy}.png"] = pools.resembling(first, 0.97, 1000 + 10 * family + copy)
    files |= {f"z{alone}.png": pools.picture(100 + alone) for alone in range(20)}
    return pools.write(tmp_path_factory.mktemp("cells") / "pool", files)


@pytest.fixture(scope="module")
def exact(pool, tmp_path_factory):
    return pools.curate({"pool": pool}, tmp_path_factory.mktemp("exact") / "run", *CELLS[2:])


def test_where_every_cell_is_probed_the_run_is_the_exact_one(pool, exact, tmp_path):
    run = pools.curate({"pool": pool}, tmp_path / "run", *CELLS, "--dedup.cells", "3", "--dedup.probes", "3")
    assert run.hashes("dataset/data") == exact.hashes("dataset/data")
    assert run.table("ledger") == exact.table("ledger")
    forests = [Run(str(one.path)).read("forest", 0) for one in (run, exact)]
    assert forests[0] == forests[1]
    counted = run.facts["cells"]
    assert (counted["cells"], counted["probes"], counted["link_recall"]) == (3, 3, 1.0)
    assert exact.facts["cells"] is None


def test_what_is_measured_is_what_the_forest_has(pool, exact, tmp_path):
    words = (*CELLS, "--dedup.cells", "16", "--dedup.probes", "1")
    run = pools.curate({"pool": pool}, tmp_path / "run", *words)
    directory, counted = Run(str(run.path)), run.facts["cells"]
    links = directory.read("dedup-reach", 0).to_pylist()
    vectors = np.concatenate([rows for rows in _embeddings(directory)])
    near = cells.nearest_cells(vectors, read_cells(directory), 1)[:, 0]
    assert [row["seen"] for row in links] == [bool(near[row["row"]] == near[row["index"]]) for row in links]
    seen = sum(row["seen"] for row in links)
    assert counted["links"] == len(links) > 20
    assert counted["link_recall"] == seen / len(links) < 1
    assert counted["rows"] == len({row["row"] for row in links})
    edges = {(row["i"], row["j"]) for row in directory.read("forest", 0).to_pylist()}
    assert all(near[i] == near[j] for i, j in edges)
    assert edges <= _exact_links(vectors)
    share, trials = counted["component_recall"], counted["rows"]
    if share * trials == round(share * trials):
        interval = binomtest(round(share * trials), trials).proportion_ci(method="wilson")
        assert counted["component_interval"] == pytest.approx([interval.low, interval.high], abs=1e-6)
    note = next(note for note in run.facts["notes"] if "inside" in note)
    assert f"{counted['link_recall']:.2%}" in note
    assert "95 %" in note
    assert note in (run.path / "dataset" / "README.md").read_text()
    assert f"{counted['link_recall']:.2%}" in (run.path / "report" / "index.html").read_text()


def _embeddings(directory):
    from granary.curation.runs.vectors import Layout, load

    layout = Layout.of(directory, "pool")
    return [load(layout, (part, part + 1))[1] for part in range(len(layout.parts))]


def _exact_links(vectors):
    similarity = vectors @ vectors.T
    return set(zip(*map(np.ndarray.tolist, np.nonzero(similarity > pools.DEDUP - 1e-4)), strict=True))


def test_workers_blocks_of_measuring_and_beam_change_no_byte(pool, tmp_path):
    words = (*CELLS, "--dedup.cells", "8", "--dedup.probes", "2")
    runs = [
        pools.curate({"pool": pool}, tmp_path / "one", *words, "--workers", "1"),
        pools.curate({"pool": pool}, tmp_path / "two", *words, "--workers", "2", beam=True),
    ]
    one, two = (run.hashes(*STAGES, "join", "forest", "ledger", "dataset") for run in runs)
    assert one == two
    again = pools.curate({"pool": pool}, tmp_path / "one", *CELLS[2:])  # the same folder, now exactly
    assert not [path.name for path in again.path.iterdir() if path.name.startswith("dedup-")]


def test_mirror_images_are_visitors(tmp_path):
    from PIL import ImageOps

    files = {f"{n}.png": pools.picture(n) for n in range(6)}
    files |= {f"mirror-{n}.png": ImageOps.mirror(pools.picture(n)) for n in range(6)}
    pool = pools.write(tmp_path / "pool", files)
    run = pools.curate({"pool": pool}, tmp_path / "run", *CELLS, "--dedup.mirror", "true", "--dedup.cells", "2")
    assert sum(row["status"] == "kept" for row in run.ledger.values()) == 6


def test_neighbours_and_cells_exclude_each_other(pool, tmp_path, capsys):
    assert pools.attempt({"pool": pool}, tmp_path / "run", *CELLS, "--dedup.neighbours", "4") == 2
    assert "dedup.neighbours is for dedup.index exact" in capsys.readouterr().err


def test_both_prices_are_named_where_the_exact_one_is_high(pool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(join_prices, "HOURS_TO_SAY", 0)
    pools.curate({"pool": pool}, tmp_path / "run", *CELLS)
    assert "core-hours by the join of every pair" in capsys.readouterr().err
    assert pools.attempt({"pool": pool}, tmp_path / "other", *CELLS, "--dry-run") == 0
    told = capsys.readouterr()
    assert "core-hours by the join of every pair" in told.out + told.err
    assert "68 images inside cells" in told.out + told.err
    exact, inside = join_prices.prices(10**8, pools_dedup())
    assert exact == pytest.approx(10**16 / 2 * 3e-9 / 3600)
    assert inside < exact / 20


def pools_dedup():
    from granary.curation.recipe import Dedup

    return Dedup()
