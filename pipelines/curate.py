"""The curation pipeline: a pool of images in, a curated dataset out.

    pool ─ embed ─ exact ─ join ─ forest ─ duplicates ─ leaks ─ survivors ─ features ─ retrieval ─ verdicts
                                                                                                  ├ plan ─ shards
    DINOv2 (Oquab et al., arXiv 2304.07193), section 3 and appendix A.                             └ ledger

Each name is a stage: a folder of part files in the run directory, made by work units through Beam.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement, product
from typing import Any

import apache_beam as beam

from curation import clusters, components
from curation.encoders import load_encoder
from curation.errors import UserError
from curation.parts import Marker, Run, Stage, Unit, digest, read_table
from curation.recipe import CurateRecipe
from curation.sources import random_access, resolve
from curation.steps import dataset, dedup, embed, leaks, listing, retrieve, verdicts
from curation.vectors import Layout
from pipelines.units import Runner

MEMBERS_PER_UNIT = 200_000
IDS_PER_BUCKET = 5_000_000


class MergeForests(beam.CombineFn):
    """Merge the spanning forests of join units: components need no iteration."""

    def create_accumulator(self) -> components.Forest:
        """Return the empty forest."""
        return components.merge_forests([])

    def add_input(self, forest: components.Forest, url: str) -> components.Forest:
        """Merge the forest of a part file."""
        return components.merge_forests([forest, dedup.read_forest(read_table(url))])

    def merge_accumulators(self, forests: Iterable[components.Forest]) -> components.Forest:
        """Merge forests."""
        return components.merge_forests(list(forests))

    def extract_output(self, forest: components.Forest) -> components.Forest:
        """Return the forest of the whole pool."""
        return forest


class MergeLloyd(beam.CombineFn):
    """Merge the sums of one Lloyd iteration."""

    def create_accumulator(self) -> clusters.LloydSums | None:
        """Return nothing: the number of cells is not known yet."""
        return None

    def add_input(self, sums: clusters.LloydSums | None, url: str) -> clusters.LloydSums:
        """Add the sums of a part file."""
        part = retrieve.read_lloyd(read_table(url))
        return part if sums is None else sums.merge(part)

    def merge_accumulators(self, parts: Iterable[clusters.LloydSums | None]) -> clusters.LloydSums | None:
        """Merge sums."""
        merged = None
        for part in parts:
            merged = part if merged is None else merged if part is None else merged.merge(part)
        return merged

    def extract_output(self, sums: clusters.LloydSums | None) -> clusters.LloydSums | None:
        """Return the sums over the whole pool."""
        return sums


@dataclasses.dataclass
class Curation:
    """One curation run: builds each stage from the recipe and what earlier stages found, and runs it.

    Args:
        recipe: with the sources resolved and the thresholds filled in.
        runner: runs stages.
        fingerprints: of the encoders, by spec.
    """

    recipe: CurateRecipe
    runner: Runner
    fingerprints: Mapping[str, str]
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    markers: dict[str, list[Marker]] = dataclasses.field(default_factory=dict)

    @property
    def run_directory(self) -> Run:
        """The run directory."""
        return self.runner.run

    def run(self) -> None:
        """Run every stage that the recipe asks for and that is not finished."""
        self.embed_role("pool", self.recipe.encoder.copy_, filters=True)
        self.deduplicate()
        self.remove_leaks()
        self.serial("survivors", leaks.write_survivors, ["pool", "duplicates", *self.leak_stages()])
        self.select()
        self.write_outputs()

    # -- running one stage ---------------------------------------------------------------------------------------

    def parallel(self, name: str, step: Any, units: Sequence[Unit], inputs: Iterable[str], noun: str = "units",
                 combine: tuple[beam.CombineFn, str, Any, Mapping[str, Any]] | None = None, **options: Any) -> None:
        """Run a stage of many units; with `combine` (function, name, step, arguments) its outputs are merged too."""
        stage = Stage(name, step, units, [self.digests[i] for i in inputs], noun=noun, **options)
        self.digests[name] = stage.digest
        merged = None
        if combine is not None:
            function, target, writer, arguments = combine
            merged = (function, Stage(target, writer, [Unit(0, arguments)], [stage.digest]))
            self.digests[target] = merged[1].digest
        self.markers[name] = self.runner.stage(stage, merged)

    def serial(self, name: str, step: Any, inputs: Iterable[str], **arguments: Any) -> Marker:
        """Run a stage of one unit, which may use every core."""
        stage = Stage(name, step, [Unit(0, arguments)], [self.digests[i] for i in inputs], serial=True)
        self.digests[name] = stage.digest
        self.markers[name] = self.runner.stage(stage)
        return self.markers[name][0]

    # -- stages --------------------------------------------------------------------------------------------------

    def embed_role(self, role: str, encoder: str, filters: bool = False) -> None:
        """Read, hash, decode and embed everything the sources of a role hold."""
        options = {
            "encoder": encoder, "fingerprint": self.fingerprints[encoder], "device": self.recipe.encoder.device,
            "batch": self.recipe.encoder.batch, "decode": self.recipe.decode.model_dump(),
            "filters": self.recipe.filters.model_dump() if filters else {},
            "mirror": role == "pool" and self.recipe.dedup.mirror,
        }
        units = listing.write_listing(self.run_directory, role, self.recipe.unit_rows)
        if role == "pool" and not units:
            paths = ", ".join(source.path for source in self.recipe.pool)
            raise UserError(f"pool: {paths} holds no files; give a folder, shards or a list with images in it")
        units = [dataclasses.replace(unit, arguments={**unit.arguments, **options}) for unit in units]
        self.parallel(role, embed.embed, units, [], "images")

    def deduplicate(self) -> None:
        """Collapse exact copies, join what is left with itself, and choose what stays of each component."""
        options, layout = self.recipe.dedup, Layout.of(self.run_directory, "pool")
        buckets = -(-int(layout.starts[-1]) // IDS_PER_BUCKET)
        self.parallel("exact", dedup.exact_copies, [Unit(b, {"bucket": b, "buckets": buckets}) for b in range(buckets)],
                      ["pool"])
        self.serial("basis", dedup.basis, ["pool"], seed=self.recipe.seed)
        blocks = layout.blocks(options.block)
        common = {"threshold": options.threshold, "prefix": options.prefix}
        columns = ["embedding", "mirror"] if options.mirror else ["embedding"]
        if not options.enabled:
            step, arguments = dedup.write_no_edges, [{}]
        elif options.neighbours is not None:
            step = dedup.join_nearest
            arguments = [{**common, "k": options.neighbours, "column": column, "block": block, "against": blocks}
                         for column in columns for block in blocks]
        else:
            step = dedup.join_pair
            arguments = [{**common, "column": "embedding", "blocks": pair}
                         for pair in combinations_with_replacement(blocks, 2)]
            if options.mirror:
                arguments += [{**common, "column": "mirror", "blocks": pair} for pair in product(blocks, blocks)]
        self.parallel("join", step, [Unit(i, argument) for i, argument in enumerate(arguments)],
                      ["pool", "exact", "basis"], "block pairs",
                      combine=(MergeForests(), "forest", dedup.write_forest, {}))
        buckets = max(1, self.run_directory.rows("forest")[0] // MEMBERS_PER_UNIT)
        common = {"buckets": buckets, "mirror": options.mirror, "split_below": options.split_below}
        self.parallel("duplicates", dedup.duplicates, [Unit(b, {"bucket": b, **common}) for b in range(buckets)],
                      ["pool", "forest"])

    def remove_leaks(self) -> None:
        """Grow the set of leaked images from the references, round by round, to its fixed point."""
        run, round_ = self.run_directory, 0
        if self.recipe.references:
            self.embed_role("references", self.recipe.encoder.copy_)
            frontier = Layout.of(run, "references").blocks(self.recipe.dedup.block)
            while frontier:
                self._leak_round(round_, frontier)
                found = run.rows(f"leaked-{round_:02d}")[0]
                block, round_ = self.recipe.dedup.block, round_ + 1
                frontier = [(start, min(start + block, found)) for start in range(0, found, block)]
                if not self.recipe.leaks.through_pool:
                    break
        self.remove_rounds_after(round_)
        if self.recipe.references:
            self._audit_leaks()

    def _leak_round(self, round_: int, frontier: list[tuple[int, int]]) -> None:
        blocks = Layout.of(self.run_directory, "pool").blocks(self.recipe.dedup.block)
        common = {"round": round_, "threshold": self.recipe.leaks.threshold, "prefix": self.recipe.dedup.prefix,
                  "columns": ["embedding", "mirror"] if self.recipe.dedup.mirror else ["embedding"]}
        units = [Unit(i, {**common, "frontier": near, "block": block})
                 for i, (near, block) in enumerate(product(frontier, blocks))]
        name = f"leaks-{round_:02d}"
        before = [f"leaked-{round_ - 1:02d}"] if round_ else ["references"]
        self.parallel(name, leaks.link, units, ["duplicates", "basis", *before], "block pairs")
        self.serial(f"leaked-{round_:02d}", leaks.leaked, [name], round=round_)

    def _audit_leaks(self) -> None:
        run, block = self.run_directory, self.recipe.dedup.block
        pairs = product(Layout.of(run, "references").blocks(block), Layout.of(run, "pool").blocks(block))
        units = [Unit(i, {"references": near, "block": far}) for i, (near, far) in enumerate(pairs)]
        self.parallel("audit", leaks.audit, units, ["pool", "duplicates", "references", *self.leak_stages()],
                      "block pairs")

    def leak_stages(self) -> list[str]:
        """Return the names of the stages that name leaks."""
        return [name for name in self.digests if name.startswith("leaked-")]

    def remove_rounds_after(self, rounds: int) -> None:
        """Remove leak rounds of an earlier recipe."""
        for kind in ("leaks", "leaked"):
            self.runner.remove_stages(lambda name: name.startswith(f"{kind}-") and int(name[-2:]) >= rounds)  # noqa: B023

    def select(self) -> None:
        """Retrieve, cluster, thin and balance in the retrieval space, where the recipe asks for any of it."""
        recipe, stages = self.recipe, []
        if recipe.seeds or recipe.semdedup.epsilon is not None or recipe.balance.target is not None:
            self.embed_survivors()
            self.serial("unreadable", retrieve.collect_unreadable, ["features"])
            stages.append("unreadable")
        if recipe.semdedup.epsilon is not None:
            self.thin_cells()
            stages.append("semdedup")
        if recipe.seeds:
            self.retrieve_by_seeds()
            stages.append("retrieved")
        if recipe.balance.target is not None:
            self.balance()
            stages.append("balanced")
        optional = {"unreadable", "semdedup", "retrieved", "balanced"} - set(stages)
        self.runner.remove_stages(lambda name: name in optional)
        retrieves = bool(recipe.seeds) or recipe.balance.target is not None
        self.serial("verdicts", verdicts.write_verdicts, ["survivors", "exact", "duplicates", *stages],
                    retrieves=retrieves, sets=[seeds.name for seeds in recipe.seeds])

    def embed_survivors(self) -> None:
        """Embed for retrieval what deduplication and leak removal left."""
        encoder = self.recipe.encoder.retrieval
        options = {"encoder": encoder, "fingerprint": self.fingerprints[encoder], "device": self.recipe.encoder.device,
                   "batch": self.recipe.encoder.batch, "decode": self.recipe.decode.model_dump()}
        rows = self.run_directory.rows("pool")
        units = [Unit(part, {"part": part, **options}, rows[part]) for part in range(len(rows))]
        self.parallel("features", embed.features, units, ["survivors"], "images")

    def feature_blocks(self) -> list[tuple[int, int]]:
        """Return the blocks of the retrieval embeddings."""
        return Layout.of(self.run_directory, "features").blocks(self.recipe.retrieval.block)

    def thin_cells(self) -> None:
        """Run SemDeDup inside k-means cells."""
        options = self.recipe.semdedup
        self._cluster("semdedup", options.clusters, ["features"], before_semdedup=True)
        buckets = -(-sum(self.run_directory.rows("features")) // MEMBERS_PER_UNIT)
        common = {"buckets": buckets, "epsilon": options.epsilon, "keep": options.keep, "seed": self.recipe.seed}
        self.parallel("semdedup", retrieve.drop_semantic_duplicates,
                      [Unit(b, {"bucket": b, **common}) for b in range(buckets)],
                      ["features", "semdedup-kmeans", "semdedup-cells"], "buckets of cells")

    def _cluster(self, prefix: str, count: int, inputs: Sequence[str], refine: int = 0,
                 before_semdedup: bool = False) -> str:
        """Train k-means, refine it over the whole pool on request, assign everything; returns the centroids' stage."""
        options, early = self.recipe.retrieval, {"before_semdedup": before_semdedup}
        centroids, cells = f"{prefix}-kmeans", f"{prefix}-cells"
        self.serial(centroids, retrieve.train, inputs, clusters=count, iterations=options.iterations,
                    sample=options.sample, seed=self.recipe.seed, **early)
        blocks = self.feature_blocks()
        for passed in range(refine):
            common = {"centroids": centroids, **early}
            units = [Unit(i, {"block": block, **common}) for i, block in enumerate(blocks)]
            refined = f"{prefix}-refined-{passed:02d}"
            self.parallel(f"{prefix}-lloyd-{passed:02d}", retrieve.lloyd, units, [centroids, *inputs], "blocks",
                          combine=(MergeLloyd(), refined, retrieve.finish_lloyd, {"centroids": centroids}))
            centroids = refined
        units = [Unit(i, {"block": block, "centroids": centroids, **early}) for i, block in enumerate(blocks)]
        self.parallel(cells, retrieve.assign, units, [centroids, *inputs], "blocks")
        return centroids

    def retrieve_by_seeds(self) -> None:
        """Retrieve for every seed set in its mode, and merge."""
        recipe = self.recipe
        self.embed_role("seeds", recipe.encoder.retrieval)
        if not sum(marker.counters.get("ok", 0) for marker in self.markers["seeds"]):
            paths = ", ".join(seeds.path for seeds in recipe.seeds)
            raise UserError(f"seeds: {paths} holds no readable image; give images, or leave --seeds out to keep all")
        inputs = ["features", "seeds", *[name for name in ("semdedup",) if name in self.digests]]
        centroids = ""
        if any(seeds.mode == "cluster" for seeds in recipe.seeds):
            centroids = self._cluster("pool", recipe.retrieval.clusters, inputs, recipe.retrieval.refine)
        for number, seeds in enumerate(recipe.seeds):
            cap = seeds.cap or recipe.retrieval.cap
            if seeds.mode == "cluster":
                self.serial(f"retrieved-{number}", retrieve.retrieve_by_cluster, ["seeds", centroids, "pool-cells"],
                            set=number, centroids=centroids, seed=recipe.seed, cap=cap,
                            min_seeds=recipe.retrieval.min_seeds, per_cell=recipe.retrieval.per_cell)
                continue
            k = seeds.k or recipe.retrieval.k
            units = [Unit(i, {"set": number, "k": k, "block": block}) for i, block in enumerate(self.feature_blocks())]
            self.parallel(f"nearest-{number}", retrieve.nearest, units, inputs, "blocks")
            self.serial(f"retrieved-{number}", retrieve.retrieve_by_sample, [f"nearest-{number}"], set=number, k=k,
                        cap=cap, seed=recipe.seed)
        self.serial("retrieved", retrieve.merge_retrieved,
                    [f"retrieved-{number}" for number in range(len(recipe.seeds))], sets=list(range(len(recipe.seeds))))

    def balance(self) -> None:
        """Draw a balanced sample from hierarchical k-means."""
        options = self.recipe.balance
        inputs = ["features", *[name for name in ("semdedup",) if name in self.digests]]
        self._cluster("balance", options.levels[0], inputs)
        self.serial("balanced", retrieve.draw_balanced, ["balance-kmeans", "balance-cells"], seed=self.recipe.seed,
                    **options.model_dump(include={"target", "levels", "resamples", "leaves"}, mode="json"))

    def write_outputs(self) -> None:
        """Write shards, ledger and dead letters."""
        recipe, run = self.recipe, self.run_directory
        as_is = [number for number, seeds in enumerate(recipe.seeds) if seeds.as_is]
        options = recipe.shards
        planned = self.serial("plan", dataset.plan, ["pool", "verdicts", *(["seeds"] if as_is else [])], as_is=as_is,
                              order=self.order, seed=recipe.seed, rows=options.rows, max_bytes=options.max_bytes)
        rows = [table.num_rows for table in _row_groups(run)]
        common = {"row_group": options.row_group, "max_bytes": recipe.decode.max_bytes}
        units = [Unit(shard, {"shard": shard, **common}, rows[shard])
                 for shard in range(max(1, planned.counters.get("shards", 0)))]
        self.parallel("shards", dataset.write_shard, units, ["plan"], "samples", target="dataset/data")
        lost = {uri: [error, message] for marker in self.markers["shards"] for uri, error, message in marker.notes}
        parts = [("pool", part) for part in range(len(run.parts("pool")))]
        parts += [("seeds", part) for part in range(len(run.parts("seeds")))] if as_is else []
        self.parallel("ledger", dataset.write_ledger, [
            Unit(i, {"role": role, "part": part, "as_is": as_is, "lost": lost}) for i, (role, part) in enumerate(parts)],
            ["verdicts", "shards"])
        roles = [role for role in ("pool", "seeds", "references") if role in self.digests]
        self.serial("dead-letter", dataset.write_dead_letters,
                    [*roles, "shards", *(["unreadable"] if "unreadable" in self.digests else [])], roles=roles, lost=lost)

    @property
    def order(self) -> str:
        """The order of the samples: hash, or pool where a source allows no random access."""
        if self.recipe.shards.order != "auto":
            return self.recipe.shards.order
        return "hash" if all(random_access(source) for source in (*self.recipe.pool, *self.recipe.seeds)) else "pool"


def _row_groups(run: Run) -> Iterable[Any]:
    from curation.parts import read_groups

    return read_groups(run.parts("plan")[0], ["size"])


def prepared(recipe: CurateRecipe) -> tuple[CurateRecipe, dict[str, str]]:
    """Resolve the sources and encoders of a recipe before any work.

    Returns:
        The recipe with absolute sources and every threshold filled in, and the encoders' fingerprints by spec.

    Raises:
        UserError: a source is not there, or an encoder cannot be loaded.
    """
    roles = {role: [resolve(source) for source in getattr(recipe, role)] for role in ("pool", "seeds", "references")}
    copy = load_encoder(recipe.encoder.copy_, recipe.encoder.device)
    fingerprints = {recipe.encoder.copy_: copy.fingerprint}
    retrieves = recipe.seeds or recipe.semdedup.epsilon is not None or recipe.balance.target is not None
    if retrieves:
        fingerprints[recipe.encoder.retrieval] = load_encoder(recipe.encoder.retrieval, recipe.encoder.device).fingerprint
    filled = {
        **roles,
        "dedup": recipe.dedup.model_copy(update={"threshold": recipe.dedup.threshold or copy.copy_threshold}),
        "leaks": recipe.leaks.model_copy(update={"threshold": recipe.leaks.threshold or copy.leak_threshold}),
    }
    return recipe.model_copy(update=filled), fingerprints


def recipe_digest(recipe: CurateRecipe) -> str:
    """Return the digest of everything in a recipe that decides its output."""
    return digest(recipe.model_dump(mode="json", by_alias=True, exclude={"out"}))
