"""The curation pipeline: a pool of images in, a curated dataset out.

    pool ─ embed ─ exact ─ join ─ forest ─ duplicates ─ leaks ─ survivors ─ features ─ retrieval ─ verdicts
                                                                                                  ├ plan ─ shards
    DINOv2 (Oquab et al., arXiv 2304.07193), section 3 and appendix A.                             └ ledger

Each name is a stage: a folder of part files in the run directory, made by work units through Beam.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import combinations_with_replacement, product
from typing import Any

from granary.curation.encoders import load_encoder
from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError
from granary.curation.recipe import CurateRecipe, Encoders
from granary.curation.runs.run import NoJob, read_groups
from granary.curation.runs.vectors import Layout
from granary.curation.sources import random_access, resolve
from granary.curation.steps import dataset, dedup, embed, leaks, listing
from granary.pipelines.engine.combines import MergeForests
from granary.pipelines.engine.stages import Combine, Stages
from granary.pipelines.kinds.curate_selection import select

MEMBERS_PER_UNIT = 200_000
IDS_PER_BUCKET = 5_000_000


@dataclasses.dataclass
class Curation(Stages):
    """One curation run: builds each stage from the recipe and what earlier stages found, and runs it.

    Args:
        runner: runs one stage.
        recipe: with the sources resolved and the thresholds filled in.
        fingerprints: of the encoders, by spec.
    """

    recipe: CurateRecipe
    fingerprints: Mapping[str, str]

    def run(self) -> None:
        """Run every stage that the recipe asks for and that is not finished."""
        self.embed_role("pool", self.recipe.encoder.copy_, filters=True)
        self.deduplicate()
        self.remove_leaks()
        self.serial("survivors", leaks.write_survivors, ["pool", "duplicates", *self.leak_stages()])
        select(self)
        self.write_outputs()

    def reading(self, encoder: str) -> dict[str, Any]:
        """Return the arguments of a unit that decodes and embeds."""
        return {
            "encoder": encoder,
            "fingerprint": self.fingerprints[encoder],
            "device": self.recipe.encoder.device,
            "batch": self.recipe.encoder.batch,
            "decode": self.recipe.decode.model_dump(),
            "max_unreadable": self.recipe.max_unreadable,
        }

    def embed_role(self, role: str, encoder: str, filters: bool = False) -> None:
        """Read, hash, decode and embed everything the sources of a role hold."""
        options = {
            **self.reading(encoder),
            "filters": self.recipe.filters.model_dump() if filters else {},
            "mirror": role == "pool" and self.recipe.dedup.mirror,
        }
        units, weights = listing.write_listing(self.run_directory, role, self.recipe.unit_rows)
        if role == "pool" and not units:
            paths = ", ".join(source.path for source in self.recipe.pool)
            raise UserError(f"pool: {paths} holds no files; give a folder, shards or a list with images in it")
        self.parallel(role, embed.embed, [{**unit, **options} for unit in units], [], "images", weights)

    def check_readable(self, role: str, otherwise: str) -> None:
        """Raise UserError when the sources of an embedded role hold no readable image."""
        if not sum(marker.counters.get("ok", 0) for marker in self.markers[role]):
            paths = ", ".join(source.path for source in getattr(self.recipe, role))
            raise UserError(f"{role}: {paths} holds no readable image; give images, or {otherwise}")

    def deduplicate(self) -> None:
        """Collapse exact copies, join what is left with itself, and choose what stays of each component."""
        options, layout = self.recipe.dedup, Layout.of(self.run_directory, "pool")
        buckets = max(1, -(-int(layout.starts[-1]) // IDS_PER_BUCKET))
        self.parallel(
            "exact",
            dedup.exact_copies,
            [{"bucket": b, "buckets": buckets} for b in range(buckets)],
            ["pool"],
        )
        self.fit_basis("basis", options.threshold)
        blocks = layout.blocks(options.block)
        common = {"threshold": options.threshold, "device": self.recipe.encoder.device}
        columns = ["embedding", "mirror"] if options.mirror else ["embedding"]
        arguments: list[dict[str, Any]]
        if not options.enabled:
            step, arguments = dedup.write_no_edges, [{}]
        elif options.neighbours is not None:
            step = dedup.join_nearest
            arguments = [
                {**common, "k": options.neighbours, "column": column, "block": block, "against": blocks}
                for column in columns
                for block in blocks
            ]
        else:
            step = dedup.join_pair
            arguments = [
                {**common, "column": "embedding", "blocks": pair} for pair in combinations_with_replacement(blocks, 2)
            ]
            if options.mirror:
                arguments += [{**common, "column": "mirror", "blocks": pair} for pair in product(blocks, blocks)]
        self.parallel(
            "join",
            step,
            arguments,
            ["pool", "exact", "basis"],
            "block pairs",
            combine=Combine(MergeForests(), "forest", dedup.write_combined_forest, NoJob()),
            cores="idle",
        )
        buckets = max(1, self.run_directory.rows("forest")[0] // MEMBERS_PER_UNIT)
        common = {"buckets": buckets, "mirror": options.mirror, "split_below": options.split_below}
        self.parallel(
            "duplicates",
            dedup.duplicates,
            [{"bucket": b, **common} for b in range(buckets)],
            ["pool", "forest"],
        )

    def fit_basis(self, name: str, threshold: float | None) -> None:
        """Fit the directions that the joins at a threshold prune with."""
        self.serial(
            name, dedup.basis, ["pool"], seed=self.recipe.seed, threshold=threshold, prefix=self.recipe.dedup.prefix
        )

    def remove_leaks(self) -> None:
        """Grow the set of leaked images from the references, round by round, to its fixed point."""
        run, round_ = self.run_directory, 0
        if self.recipe.references:
            self.embed_role("references", self.recipe.encoder.copy_)
            self.fit_basis("leak-basis", self.recipe.leaks.threshold)
            self.check_readable("references", "leave --references out")
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
        else:
            self.runner.remove_stages(lambda name: name in ("references", "leak-basis", "audit"))

    def _leak_round(self, round_: int, frontier: list[tuple[int, int]]) -> None:
        blocks = Layout.of(self.run_directory, "pool").blocks(self.recipe.dedup.block)
        common = {
            "round": round_,
            "threshold": self.recipe.leaks.threshold,
            "device": self.recipe.encoder.device,
            "columns": ["embedding", "mirror"] if self.recipe.dedup.mirror else ["embedding"],
        }
        units = [{**common, "frontier": near, "block": block} for near, block in product(frontier, blocks)]
        name = f"leaks-{round_:02d}"
        before = [f"leaked-{round_ - 1:02d}"] if round_ else ["references"]
        self.parallel(name, leaks.link, units, ["duplicates", "leak-basis", *before], "block pairs", cores="idle")
        self.serial(f"leaked-{round_:02d}", leaks.leaked, [name], round=round_)

    def _audit_leaks(self) -> None:
        run, block = self.run_directory, self.recipe.dedup.block
        pairs = product(Layout.of(run, "references").blocks(block), Layout.of(run, "pool").blocks(block))
        units = [{"references": near, "block": far} for near, far in pairs]
        self.parallel(
            "audit",
            leaks.audit,
            units,
            ["pool", "duplicates", "references", *self.leak_stages()],
            "block pairs",
            cores="idle",
        )

    def leak_stages(self) -> list[str]:
        """Return the names of the stages that name leaks."""
        return [name for name in self.digests if name.startswith("leaked-")]

    def remove_rounds_after(self, rounds: int) -> None:
        """Remove leak rounds of an earlier recipe."""
        for kind in ("leaks", "leaked"):
            self.runner.remove_stages(
                lambda name: (
                    name.startswith(f"{kind}-")  # noqa: B023
                    and int(name.rpartition("-")[2]) >= rounds
                )
            )

    def write_outputs(self) -> None:
        """Write shards, ledger and dead letters."""
        recipe, run = self.recipe, self.run_directory
        as_is = [number for number, seeds in enumerate(recipe.seeds) if seeds.as_is]
        options = recipe.shards
        planned = self.serial(
            "plan",
            dataset.plan,
            ["pool", "verdicts", *(["seeds"] if as_is else [])],
            as_is=as_is,
            order=self.order,
            seed=recipe.seed,
            rows=options.rows,
            max_bytes=options.max_bytes,
        )
        rows = [table.num_rows for table in read_groups(run.parts("plan")[0], ["size"])]
        common = {
            "row_group": options.row_group,
            "max_bytes": recipe.decode.max_bytes,
            "max_unreadable": recipe.max_unreadable,
        }
        units = [{"shard": shard, **common} for shard in range(max(1, planned.counters.get("shards", 0)))]
        self.parallel("shards", dataset.write_shard, units, ["plan"], "samples", rows, target="dataset/data")
        lost = {uri: [error, message] for marker in self.markers["shards"] for uri, error, message in marker.notes}
        parts = [("pool", part) for part in range(len(run.parts("pool")))]
        parts += [("seeds", part) for part in range(len(run.parts("seeds")))] if as_is else []
        self.parallel(
            "ledger",
            dataset.write_ledger,
            [{"role": role, "part": part, "as_is": as_is, "lost": lost} for role, part in parts],
            ["verdicts", "shards"],
        )
        roles = [role for role in ("pool", "seeds", "references") if role in self.digests]
        self.serial(
            "dead-letter",
            dataset.write_dead_letters,
            [*roles, "shards", *(["unreadable"] if "unreadable" in self.digests else [])],
            roles=roles,
            lost=lost,
        )

    @property
    def order(self) -> str:
        """The order of the samples: hash, or pool where a source allows no random access."""
        if self.recipe.shards.order != "auto":
            return self.recipe.shards.order
        return "hash" if all(random_access(source) for source in (*self.recipe.pool, *self.recipe.seeds)) else "pool"


def prepared(recipe: CurateRecipe) -> tuple[CurateRecipe, dict[str, str]]:
    """Resolve the sources and encoders of a recipe before any work.

    Returns:
        The recipe with absolute sources and every threshold filled in, and the encoders' fingerprints by spec.

    Raises:
        UserError: a source is not there, or an encoder cannot be loaded.
    """
    roles = {role: [resolve(source) for source in getattr(recipe, role)] for role in ("pool", "seeds", "references")}
    recipe = recipe.model_copy(update={"encoder": _anywhere(recipe.encoder)})
    copy = load_encoder(recipe.encoder.copy_, recipe.encoder.device)
    fingerprints = {recipe.encoder.copy_: copy.fingerprint}
    retrieves = recipe.seeds or recipe.semdedup.epsilon is not None or recipe.balance.target is not None
    if retrieves:
        retrieval = load_encoder(recipe.encoder.retrieval, recipe.encoder.device)
        fingerprints[recipe.encoder.retrieval] = retrieval.fingerprint
        if recipe.retrieval.index == "ivfpq" and retrieval.dimension % recipe.retrieval.code_bytes:
            raise UserError(
                f"retrieval.code_bytes: {recipe.retrieval.code_bytes} does not divide {retrieval.dimension}, "
                f"the dimension of {recipe.encoder.retrieval}; give a divisor of it"
            )
    filled = {
        **roles,
        "dedup": recipe.dedup.model_copy(update={"threshold": recipe.dedup.threshold or copy.copy_threshold}),
        "leaks": recipe.leaks.model_copy(update={"threshold": recipe.leaks.threshold or copy.leak_threshold}),
    }
    return recipe.model_copy(update=filled), fingerprints


def _anywhere(encoder: Encoders) -> Encoders:
    """Return the encoders with absolute paths: workers may stand in another folder than the command."""
    specs = {key: EncoderSpec.parse(getattr(encoder, key)).anywhere for key in ("copy_", "retrieval")}
    return encoder.model_copy(update=specs)
