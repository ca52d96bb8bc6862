"""The curation pipeline: a pool of images in, a curated dataset out.

    references, seeds ─ embed
    pool ─ embed ─ exact ─ join ─ forest ─ duplicates ─ leaks ─ survivors ─ features ─ retrieval ─ verdicts
                                                                                                  ├ plan ─ shards
    DINOv2 (Oquab et al., arXiv 2304.07193), section 3 and appendix A.                             └ ledger

Each name is a stage: a folder of part files in the run directory, made by work units through Beam.
"""

from __future__ import annotations

import dataclasses
from itertools import combinations_with_replacement, product
from typing import Literal

from granary.curation.recipe import ROLES, CurateRecipe
from granary.curation.runs.buckets import bucket_count, ranges
from granary.curation.runs.decisions import CUT, STAGE
from granary.curation.runs.run import NoJob, Run
from granary.curation.runs.spans import Span, spans
from granary.curation.runs.splits import TRAIN
from granary.curation.runs.vectors import Block, Layout
from granary.curation.sources import random_access
from granary.curation.steps import dataset, decisions, dedup, leaks, plan
from granary.curation.store.printable import printable
from granary.pipelines.engine.combines import MergeForests
from granary.pipelines.engine.stages import Combine, Stages
from granary.pipelines.kinds.curate_cells import join_in_cells
from granary.pipelines.kinds.curate_reading import Prepared, Reading
from granary.pipelines.kinds.curate_selection import select

MEMBERS_PER_UNIT = 200_000
IDS_PER_BUCKET = 5_000_000
PLANNED_PER_UNIT = 65_536  # kept images, about 1 kB each, that one unit orders


@dataclasses.dataclass(frozen=True)
class Curation:
    """One curation run: builds each stage from the recipe and what earlier stages wrote, and runs it.

    Args:
        reading: the stages, the recipe as it runs, and how it reads images.
    """

    reading: Reading

    @property
    def stages(self) -> Stages:
        """The stages run so far."""
        return self.reading.stages

    @property
    def prepared(self) -> Prepared:
        """The recipe made ready."""
        return self.reading.prepared

    @property
    def recipe(self) -> CurateRecipe:
        """The recipe, with every default filled in."""
        return self.reading.recipe

    @property
    def run_directory(self) -> Run:
        """The run directory."""
        return self.reading.run

    def run(self) -> None:
        """Run every stage that the recipe asks for and that is not finished."""
        self.read_images()
        self.deduplicate()
        self.remove_leaks()
        inputs = ["pool", "duplicates", *self.leak_stages()]
        written = [Span(parts) for parts in spans(len(self.run_directory.parts("pool")))]
        self.stages.parallel("survivors", leaks.write_survivors, written, inputs)
        select(self.reading)
        self.write_outputs()

    def read_images(self) -> None:
        """Read every role, the pool last: a reference or seed set that cannot be read is known before hours of work."""
        self.reading.check_first_images()
        if self.recipe.references:
            self.reading.embed_role("references", self.prepared.copy)
        if self.recipe.seeds and self.prepared.retrieval:
            self.reading.embed_role("seeds", self.prepared.retrieval)
        for note in self.reading.unreadable_notes():
            self.stages.runner.progress.console.print(f"note: {printable(note)}", soft_wrap=True)
        self.reading.embed_role("pool", self.prepared.copy, self.recipe.filters)

    def deduplicate(self) -> None:
        """Collapse exact copies, join what is left with itself, and choose what stays of each component."""
        files = int(Layout.of(self.run_directory, "pool").starts[-1])
        buckets = max(1, -(-files // IDS_PER_BUCKET))
        copies = [dedup.Bucket(bucket, buckets) for bucket in range(buckets)]
        self.stages.parallel("exact", dedup.exact_copies, copies, ["pool"])
        self.fit_basis("basis", self.prepared.dedup_threshold)
        self.join()
        forest, *inputs = self.decide()
        options = self.recipe.dedup
        buckets = max(1, self.run_directory.rows(forest)[0] // MEMBERS_PER_UNIT)
        components = [dedup.ChooseKept(b, buckets, options.mirror, options.split_below, forest) for b in range(buckets)]
        self.stages.parallel("duplicates", dedup.duplicates, components, ["pool", forest, *inputs])

    def decide(self) -> list[str]:
        """Bring a person's decisions to the pool; returns the stage of the forest, and that of decisions if any."""
        if self.prepared.decisions is None:
            self.stages.runner.remove_stages(lambda name: name in (STAGE, CUT))
            return ["forest"]
        self.stages.serial(STAGE, decisions.decide, ["pool", "exact"], decisions.Decide(self.prepared.decisions))
        self.stages.serial(CUT, dedup.cut_links, ["forest", STAGE], NoJob())
        return [CUT, STAGE]

    def fit_basis(self, name: str, threshold: float) -> None:
        """Fit the directions that the joins at a threshold prune with."""
        job = dedup.FitBasis(self.recipe.seed, threshold, self.recipe.dedup.prefix)
        self.stages.serial(name, dedup.basis, ["pool"], job)

    def join(self) -> None:
        """Link near duplicates: none, the nearest of each picture, or every pair above the threshold."""
        options, inputs, noun = self.recipe.dedup, ["pool", "exact", "basis"], "block pairs"
        forest = Combine(MergeForests(), "forest", dedup.write_combined_forest, NoJob())
        run = self.stages.parallel
        if not self.in_cells:
            self.stages.runner.remove_stages(lambda name: name.startswith("dedup-"))
        if not options.enabled:
            run("join", dedup.write_no_edges, [NoJob()], inputs, noun, combine=forest, cores="idle")
        elif options.index == "cells":
            join_in_cells(self.reading, self._views, forest)
        elif options.neighbours is not None:
            jobs = self._nearest_jobs(options.neighbours)
            run("join", dedup.join_nearest, jobs, inputs, noun, combine=forest, cores="idle")
        else:
            run("join", dedup.join_pair, self._pair_jobs(), inputs, noun, combine=forest, cores="idle")

    @property
    def in_cells(self) -> bool:
        """Whether near duplicates are looked for inside cells alone."""
        return self.recipe.dedup.enabled and self.recipe.dedup.index == "cells"

    def _nearest_jobs(self, k: int) -> list[dedup.JoinNearest]:
        blocks, threshold, device = self._blocks("pool"), self.prepared.dedup_threshold, self.recipe.encoder.device
        return [
            dedup.JoinNearest(block, tuple(blocks), k, threshold, device, view)
            for view in self._views
            for block in blocks
        ]

    def _pair_jobs(self) -> list[dedup.JoinPair]:
        blocks, threshold, device = self._blocks("pool"), self.prepared.dedup_threshold, self.recipe.encoder.device
        pairs = combinations_with_replacement(blocks, 2)
        jobs = [dedup.JoinPair(pair, threshold, device) for pair in pairs]
        if self.recipe.dedup.mirror:
            jobs += [dedup.JoinPair(pair, threshold, device, "mirror") for pair in product(blocks, blocks)]
        return jobs

    @property
    def _views(self) -> tuple[dedup.View, ...]:
        return ("embedding", "mirror") if self.recipe.dedup.mirror else ("embedding",)

    def _blocks(self, role: str) -> list[Block]:
        return Layout.of(self.run_directory, role).blocks(self.recipe.dedup.block)

    def remove_leaks(self) -> None:
        """Grow the set of leaked images from the references, round by round, to its fixed point."""
        if not self.recipe.references:
            self.remove_rounds_after(0)
            self.stages.runner.remove_stages(lambda name: name in ("references", "leak-basis", "audit"))
            return
        self.fit_basis("leak-basis", self.prepared.leak_threshold)
        self.remove_rounds_after(self._grow_leaks())
        self._audit_leaks()

    def _grow_leaks(self) -> int:
        """Run the rounds; returns how many there were."""
        block, round_ = self.recipe.dedup.block, 0
        frontier = self._blocks("references")
        while frontier:
            self._leak_round(round_, frontier)
            leaked = self.run_directory.rows(f"leaked-{round_:02d}")[0]
            round_ += 1
            frontier = [(start, min(start + block, leaked)) for start in range(0, leaked, block)]
            if not self.recipe.leaks.through_pool:
                break
        return round_

    def _leak_round(self, round_: int, frontier: list[Block]) -> None:
        threshold, device = self.prepared.leak_threshold, self.recipe.encoder.device
        jobs = [
            leaks.LinkBlock(round_, near, block, threshold, device, self._views)
            for near, block in product(frontier, self._blocks("pool"))
        ]
        links, leaked = f"leaks-{round_:02d}", f"leaked-{round_:02d}"
        before = f"leaked-{round_ - 1:02d}" if round_ else "references"
        self.stages.parallel(links, leaks.link, jobs, ["duplicates", "leak-basis", before], "block pairs", cores="idle")
        self.stages.serial(leaked, leaks.leaked, [links], leaks.MergeRound(round_))

    def _audit_leaks(self) -> None:
        pairs = product(self._blocks("references"), self._blocks("pool"))
        jobs = [leaks.AuditPair(near, far) for near, far in pairs]
        inputs = ["pool", "duplicates", "references", *self.leak_stages()]
        self.stages.parallel("audit", leaks.audit, jobs, inputs, "block pairs", cores="idle")

    def leak_stages(self) -> list[str]:
        """Return the names of the stages that name leaks."""
        return [name for name in self.stages.digests if name.startswith("leaked-")]

    def remove_rounds_after(self, rounds: int) -> None:
        """Remove leak rounds of an earlier recipe."""

        def later(name: str) -> bool:
            kind, _, number = name.rpartition("-")
            return kind in ("leaks", "leaked") and int(number) >= rounds

        self.stages.runner.remove_stages(later)

    def write_outputs(self) -> None:
        """Write shards, ledger and dead letters."""
        as_is = tuple(number for number, seeds in enumerate(self.recipe.seeds) if seeds.as_is)
        self.write_shards(as_is)
        notes = (note for marker in self.stages.markers["shards"] for note in marker.notes)
        lost = tuple(dataset.LostFile(*note) for note in notes)
        roles: tuple[Literal["pool", "seeds"], ...] = ("pool", "seeds") if as_is else ("pool",)
        parts = [(role, part) for role in roles for part in range(len(self.run_directory.parts(role)))]
        ledger = [dataset.WriteLedger(role, part, as_is, lost) for role, part in parts]
        self.stages.parallel("ledger", dataset.write_ledger, ledger, ["verdicts", "shards"])
        read = tuple(role for role in ROLES if role in self.stages.digests)
        inputs = [*read, "shards", *(name for name in ("unreadable",) if name in self.stages.digests)]
        self.stages.serial("dead-letter", dataset.write_dead_letters, inputs, dataset.WriteDeadLetters(read, lost))

    def write_shards(self, as_is: tuple[int, ...]) -> None:
        """Decide which sample goes into which shard, and write them.

        Args:
            as_is: seed sets that go into the dataset.
        """
        recipe, options = self.recipe, self.recipe.shards
        self.order_kept(as_is)
        self.stages.serial(plan.CUT, plan.cut_shards, [plan.ORDERED], plan.CutShards(options.rows, options.max_bytes))
        cuts = self.run_directory.read(plan.CUT, 0)
        places = list(zip(cuts["start"].to_pylist(), cuts["stop"].to_pylist(), strict=True)) or [(0, 0)]
        jobs = [
            dataset.WriteShard(*place, options.row_group, recipe.decode.max_bytes, recipe.max_unreadable)
            for place in places
        ]
        rows, splits = [stop - start for start, stop in places], [TRAIN] * len(jobs)
        inputs = [plan.ORDERED, plan.CUT]
        self.stages.write_shards(
            "shards", dataset.write_shard, jobs, splits, inputs, "samples", rows, target="dataset/data"
        )

    def order_kept(self, as_is: tuple[int, ...]) -> None:
        """Order the samples of the dataset.

        Args:
            as_is: seed sets that go into the dataset.
        """
        roles: tuple[plan.Role, ...] = ("pool", "seeds") if as_is else ("pool",)
        layouts = {role: Layout.of(self.run_directory, role) for role in roles}
        parts = [(role, block, as_is) for role in roles for block in ranges(layouts[role], PLANNED_PER_UNIT)]
        inputs = ["verdicts", *roles]
        if self.order == "pool":
            self.stages.runner.remove_stages(lambda name: name == plan.CARRIED)
            self.stages.parallel(plan.ORDERED, plan.list_kept, [plan.GatherRange(*range_) for range_ in parts], inputs)
            return
        counters = [marker.counters for marker in self.stages.markers["verdicts"]]
        kept = sum(count for counts in counters for name, count in counts.items() if name.startswith("kept "))
        seeds = int(layouts["seeds"].starts[-1]) if as_is else 0
        buckets = bucket_count(kept + seeds, PLANNED_PER_UNIT)
        carried = [plan.CarryKept(*range_, self.recipe.seed, buckets) for range_ in parts]
        self.stages.parallel(plan.CARRIED, plan.carry_kept, carried, inputs)
        ordered = [plan.OrderBucket(bucket) for bucket in range(buckets)]
        self.stages.parallel(plan.ORDERED, plan.order_bucket, ordered, [plan.CARRIED])

    @property
    def order(self) -> Literal["hash", "pool"]:
        """The order of the samples: hash, or pool where a source allows no random access."""
        if self.recipe.shards.order != "auto":
            return self.recipe.shards.order
        return "hash" if all(random_access(source) for source in (*self.recipe.pool, *self.recipe.seeds)) else "pool"
