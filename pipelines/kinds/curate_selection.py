"""What stays of the distinct images: SemDeDup, retrieval by seed sets, balanced sampling, and the verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from granary.curation.runs.vectors import Layout
from granary.curation.steps import embed, retrieve, verdicts
from granary.pipelines.engine.combines import MergeLloyd
from granary.pipelines.engine.stages import Combine

if TYPE_CHECKING:
    from granary.pipelines.kinds.curate import Curation

MEMBERS_PER_UNIT = 200_000  # images whose vectors one SemDeDup unit holds


def select(curation: Curation) -> None:
    """Retrieve, cluster, thin and balance in the retrieval space, where the recipe asks for any of it."""
    recipe = curation.recipe
    asked = {
        "semdedup": recipe.semdedup.epsilon is not None,
        "retrieved": bool(recipe.seeds),
        "balanced": recipe.balance.target is not None,
    }
    asked["unreadable"] = any(asked.values())
    # First, because the steps below read what they find, and an earlier recipe may have left it there.
    curation.runner.remove_stages(lambda name: not asked.get(name, True))
    if asked["unreadable"]:
        embed_survivors(curation)
        curation.serial("unreadable", retrieve.collect_unreadable, ["features"])
    if asked["semdedup"]:
        thin_cells(curation)
    if asked["retrieved"]:
        retrieve_by_seeds(curation)
    if asked["balanced"]:
        balance(curation)
    stages = [name for name, wanted in asked.items() if wanted]
    retrieves = bool(recipe.seeds) or recipe.balance.target is not None
    curation.serial(
        "verdicts",
        verdicts.write_verdicts,
        ["survivors", "exact", "duplicates", *stages],
        retrieves=retrieves,
        sets=[seeds.name for seeds in recipe.seeds],
    )


def embed_survivors(curation: Curation) -> None:
    """Embed for retrieval what deduplication and leak removal left."""
    options = curation.reading(curation.recipe.encoder.retrieval)
    rows = curation.run_directory.rows("pool")
    units = [{"part": part, **options} for part in range(len(rows))]
    curation.parallel("features", embed.features, units, ["survivors"], "images", rows)


def feature_blocks(curation: Curation) -> list[tuple[int, int]]:
    """Return the blocks of the retrieval embeddings."""
    return Layout.of(curation.run_directory, "features").blocks(curation.recipe.retrieval.block)


def thin_cells(curation: Curation) -> None:
    """Run SemDeDup inside k-means cells."""
    options = curation.recipe.semdedup
    cluster(curation, "semdedup", options.clusters, ["features"], before_semdedup=True)
    buckets = -(-sum(curation.run_directory.rows("features")) // MEMBERS_PER_UNIT)
    common = {
        "buckets": buckets,
        "epsilon": options.epsilon,
        "keep": options.keep,
        "seed": curation.recipe.seed,
    }
    curation.parallel(
        "semdedup",
        retrieve.drop_semantic_duplicates,
        [{"bucket": b, **common} for b in range(buckets)],
        ["features", "semdedup-kmeans", "semdedup-cells"],
        "buckets of cells",
    )


def cluster(
    curation: Curation, prefix: str, count: int, inputs: Sequence[str], refine: int = 0, before_semdedup: bool = False
) -> str:
    """Train k-means, refine it over the whole pool on request, assign everything; returns the centroids' stage."""
    options, early = curation.recipe.retrieval, {"before_semdedup": before_semdedup}
    centroids, cells = f"{prefix}-kmeans", f"{prefix}-cells"
    curation.serial(
        centroids,
        retrieve.train,
        inputs,
        clusters=count,
        iterations=options.iterations,
        sample=options.sample,
        seed=curation.recipe.seed,
        before_semdedup=before_semdedup,
    )
    blocks = feature_blocks(curation)
    cells_found = curation.run_directory.rows(centroids)[0]
    for passed in range(refine if cells_found else 0):
        common = {"centroids": centroids, **early}
        units = [{"block": block, **common} for block in blocks]
        refined = f"{prefix}-refined-{passed:02d}"
        curation.parallel(
            f"{prefix}-lloyd-{passed:02d}",
            retrieve.lloyd,
            units,
            [centroids, *inputs],
            "blocks",
            combine=Combine(MergeLloyd(), refined, retrieve.finish_lloyd, {"centroids": centroids}),
        )
        centroids = refined
    units = [{"block": block, "centroids": centroids, **early} for block in blocks]
    curation.parallel(cells, retrieve.assign, units, [centroids, *inputs], "blocks", cores="idle")
    return centroids


def retrieve_by_seeds(curation: Curation) -> None:
    """Retrieve for every seed set in its mode, and merge."""
    recipe = curation.recipe
    curation.embed_role("seeds", recipe.encoder.retrieval)
    curation.check_readable("seeds", "leave --seeds out to keep all")
    inputs = ["features", "seeds", *[name for name in ("semdedup",) if name in curation.digests]]
    centroids = ""
    if any(seeds.mode == "cluster" for seeds in recipe.seeds):
        centroids = cluster(curation, "pool", recipe.retrieval.clusters, inputs, recipe.retrieval.refine)
    index: list[str] = []
    approximate = None
    if recipe.retrieval.index == "ivfpq" and any(seeds.mode == "sample" for seeds in recipe.seeds):
        approximate, index = {"probes": recipe.retrieval.probes, "seed": recipe.seed}, ["search-index"]
        curation.serial(
            "search-index",
            retrieve.train_search_index,
            inputs,
            sample=recipe.retrieval.sample,
            seed=recipe.seed,
            cells=recipe.retrieval.index_cells,
            code_bytes=recipe.retrieval.code_bytes,
        )
    for number, seeds in enumerate(recipe.seeds):
        cap = seeds.cap or recipe.retrieval.cap
        if seeds.mode == "cluster":
            curation.serial(
                f"retrieved-{number}",
                retrieve.retrieve_by_cluster,
                ["seeds", centroids, "pool-cells"],
                set=number,
                centroids=centroids,
                seed=recipe.seed,
                cap=cap,
                min_seeds=recipe.retrieval.min_seeds,
                per_cell=recipe.retrieval.per_cell,
            )
            continue
        k = seeds.k or recipe.retrieval.k
        common = {"set": number, "k": k, "approximate": approximate}
        units = [{**common, "block": block} for block in feature_blocks(curation)]
        curation.parallel(f"nearest-{number}", retrieve.nearest, units, [*inputs, *index], "blocks", cores="idle")
        curation.serial(
            f"retrieved-{number}",
            retrieve.retrieve_by_sample,
            [f"nearest-{number}"],
            set=number,
            k=k,
            cap=cap,
            seed=recipe.seed,
        )
    curation.serial(
        "retrieved",
        retrieve.merge_retrieved,
        [f"retrieved-{number}" for number in range(len(recipe.seeds))],
        sets=list(range(len(recipe.seeds))),
    )


def balance(curation: Curation) -> None:
    """Draw a balanced sample from hierarchical k-means."""
    options = curation.recipe.balance
    inputs = ["features", *[name for name in ("semdedup",) if name in curation.digests]]
    cluster(curation, "balance", options.levels[0], inputs)
    curation.serial(
        "balanced",
        retrieve.draw_balanced,
        ["balance-kmeans", "balance-cells"],
        seed=curation.recipe.seed,
        **options.model_dump(include={"target", "levels", "resamples", "leaves"}, mode="json"),
    )
