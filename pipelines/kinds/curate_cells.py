"""The join of the pool inside cells of k-means, and what share of the links that finds."""

from __future__ import annotations

from itertools import product
from typing import Any

from granary.curation.dedup.reach import ROWS_PER_CELL, Reach, cell_count
from granary.curation.intervals import wilson
from granary.curation.runs.facts import CellCounts
from granary.curation.runs.run import NoJob
from granary.curation.runs.vectors import Block, Layout
from granary.curation.steps import cells, dedup
from granary.pipelines.engine.stages import Combine, Stages
from granary.pipelines.kinds.curate_reading import Reading

MOST_CARRIERS, MOST_BUCKETS = 512, 4096  # a unit of a bucket opens a file of every carrier


def join_in_cells(reading: Reading, views: tuple[dedup.View, ...], combine: Combine[Any, Any, Any]) -> None:
    """Choose by a sample how far rows are joined, carry them to their cells, join each cell, and say what that found.

    Args:
        reading: with exact copies found and a basis fitted.
        views: of the pictures that are compared with the pool.
        combine: merges the forests of the units.
    """
    stages, rows = reading.stages, sum(reading.run.rows("pool")) - sum(reading.run.rows("exact"))
    _measure_sample(reading, rows)
    options, seed = reading.recipe.dedup, reading.recipe.seed
    choice = cells.ChooseReach(options.probes, options.recall, seed)
    marker = stages.serial("dedup-reach", cells.choose_reach, ["dedup-cells", "dedup-measured", "dedup-links"], choice)
    reach = Reach(marker.counters["homes"], marker.counters["probes"])
    blocks = _blocks(reading, max(options.block, -(-rows // MOST_CARRIERS)))
    entries = rows * len(views) * reach.probes
    buckets = min(stages.markers["dedup-cells"][0].counters["cells"], MOST_BUCKETS, -(-entries // (2 * options.block)))
    jobs = [cells.CarryRows(block, *reach, max(1, buckets), view) for view, block in product(views, blocks)]
    stages.parallel("dedup-rows", cells.carry_rows, jobs, ["pool", "exact", "dedup-cells", "dedup-reach"], "blocks")
    threshold, device = reading.prepared.dedup_threshold, reading.recipe.encoder.device
    joins = [cells.JoinBucket(bucket, *reach, threshold, device) for bucket in range(max(1, buckets))]
    inputs, noun = ["dedup-rows", "basis"], "buckets of cells"
    stages.parallel("join", cells.join_bucket, joins, inputs, noun, combine=combine, cores="idle")
    stages.serial("dedup-recall", cells.measure, ["dedup-reach", "forest"], NoJob())


def _measure_sample(reading: Reading, rows: int) -> None:
    """Draw rows, train cells on some, and join the others with the whole pool."""
    options, seed, stages = reading.recipe.dedup, reading.recipe.seed, reading.stages
    count, blocks = options.cells or cell_count(rows), _blocks(reading, options.block)
    training, measuring = (min(1.0, wanted / max(1, rows)) for wanted in (ROWS_PER_CELL * count, options.measured))
    draws = [cells.DrawRows(block, training, measuring, seed) for block in blocks]
    stages.parallel("dedup-drawn", cells.draw_rows, draws, ["pool", "exact"], "blocks")
    stages.serial("dedup-cells", cells.train, ["dedup-drawn"], cells.TrainCells(count, seed))
    stages.serial("dedup-measured", cells.write_measured, ["dedup-drawn"], NoJob())
    threshold, device = reading.prepared.dedup_threshold, reading.recipe.encoder.device
    links = [cells.LinkSample(block, threshold, device, seed) for block in blocks]
    inputs = ["pool", "exact", "basis", "dedup-measured"]
    stages.parallel("dedup-links", cells.link_sample, links, inputs, "blocks", cores="idle")


def _blocks(reading: Reading, rows: int) -> list[Block]:
    return Layout.of(reading.run, "pool").blocks(rows)


def cell_counts(stages: Stages) -> CellCounts | None:
    """Return what the join inside cells came to; None where every pair was joined."""
    if "dedup-recall" not in stages.markers:
        return None
    reach, measured = stages.markers["dedup-reach"][0].counters, stages.markers["dedup-recall"][0].counters
    rows, links = measured.get("rows", 0), measured.get("links", 0)  # a counter of zero is not written
    counted = CellCounts(
        cells=stages.markers["dedup-cells"][0].counters["cells"],
        homes=reach["homes"],
        probes=reach["probes"],
        rows=rows,
        links=links,
        link_recall=None,
        link_interval=None,
        component_recall=None,
        component_interval=None,
    )
    if links:
        seen, joined = (measured.get(what, 0) / links for what in ("seen", "joined"))
        counted["link_recall"], counted["component_recall"] = seen, joined
        counted["link_interval"], counted["component_interval"] = (wilson(share, rows) for share in (seen, joined))
    return counted


def recall_note(counted: CellCounts) -> str:
    """Say in a sentence what share of the links the join inside cells found."""
    how = (
        f"Near duplicates were joined inside {counted['cells']:,} cells, each image in its {counted['probes']} nearest"
    )
    if not counted["links"]:
        return f"{how}; the images drawn to measure what that misses have no near duplicates."
    seen = _share(counted["link_recall"], counted["link_interval"])
    joined = _share(counted["component_recall"], counted["component_interval"])
    return (
        f"{how}: of {counted['links']:,} links of {counted['rows']:,} images drawn by hash and joined with the whole "
        f"pool, {seen} were found, and {joined} are in one component (95 % intervals by Wilson, images as trials)."
    )


def _share(share: float | None, interval: tuple[float, float] | None) -> str:
    if share is None or interval is None:
        return ""
    return f"{share:.2%} ({interval[0]:.2%} to {interval[1]:.2%})"
