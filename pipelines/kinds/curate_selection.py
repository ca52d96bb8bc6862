"""What stays of the distinct images: SemDeDup, retrieval by seed sets, balanced sampling, and the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from granary.curation.encoders.planned import PlannedEncoder
from granary.curation.recipe import SeedSet
from granary.curation.runs.run import NoJob
from granary.curation.runs.spans import Span, spans
from granary.curation.runs.vectors import Block, Layout
from granary.curation.selection.search import Approximation
from granary.curation.steps import balance, captions, clusters, embed, retrieve, verdicts
from granary.pipelines.engine.combines import MergeLloyd
from granary.pipelines.engine.stages import Combine
from granary.pipelines.kinds.curate_reading import Reading

MEMBERS_PER_UNIT = 200_000  # images whose vectors one SemDeDup unit holds
WORDS_PER_BUCKET = 5_000_000
WORDS = "words"  # in the place of a file of entries: those of the captions themselves
CAPTION_STAGES = (
    "caption-words",
    "caption-entries",
    "caption-matches",
    "caption-counts",
    "caption-draws",
    "caption-balance",
)


def select(reading: Reading) -> None:
    """Retrieve, cluster, thin and balance in the retrieval space, where the recipe asks for any of it."""
    recipe, encoder = reading.recipe, reading.prepared.retrieval
    asked = {
        "semdedup": recipe.semdedup.epsilon is not None,
        "retrieved": bool(recipe.seeds),
        "balanced": recipe.balance.target is not None,
        "unreadable": encoder is not None,
    }
    # First, because the steps below read what they find, and an earlier recipe may have left it there.
    reading.stages.runner.remove_stages(lambda name: not asked.get(name, True))
    balances = bool(recipe.balance.captions.entries)
    if not balances:
        reading.stages.runner.remove_stages(lambda name: name in (captions.BEFORE, *CAPTION_STAGES))
    if encoder is not None:
        embed_survivors(reading, encoder)
        if recipe.semdedup.epsilon is not None:
            thin_cells(reading, recipe.semdedup.epsilon)
        if recipe.seeds:
            retrieve_by_seeds(reading)
        if recipe.balance.target is not None:
            draw_balanced(reading, recipe.balance.target)
    sets = tuple(seeds.name for seeds in recipe.seeds)
    asks = bool(sets) or recipe.balance.target is not None
    files = spans(len(reading.run.parts("pool")))
    jobs = [verdicts.DecideAll(parts, asks, sets) for parts in files]
    inputs = ["survivors", "exact", "duplicates", *(name for name, is_asked in asked.items() if is_asked)]
    reading.stages.parallel(captions.BEFORE if balances else "verdicts", verdicts.write_verdicts, jobs, inputs)
    if balances:
        balance_captions(reading)


def balance_captions(reading: Reading) -> None:
    """Draw among the images that are left by the entries of their captions, and write the verdicts anew."""
    options, stages, parts = reading.recipe.balance.captions, reading.stages, reading.run.rows("pool")
    list_caption_entries(reading)
    entries = stages.digests["caption-entries"]
    units = range(len(parts))
    matching = [captions.MatchPart(part, options.fold_case, entries) for part in units]
    inputs = ["pool", captions.BEFORE, "caption-entries"]
    stages.parallel("caption-matches", captions.match_part, matching, inputs, "images", parts)
    inputs = ["caption-entries", "caption-matches"]
    stages.serial("caption-counts", captions.count_matches, inputs, captions.CountMatches(entries))
    drawing = [captions.DrawPart(part, options.most, reading.recipe.seed, entries) for part in units]
    stages.parallel("caption-draws", captions.draw_part, drawing, [*inputs, "caption-counts"], "images", parts)
    job = captions.SumUp(options.most, entries)
    stages.serial("caption-balance", captions.sum_up, ["caption-entries", "caption-counts", "caption-draws"], job)
    inputs = ["pool", captions.BEFORE, "caption-draws"]
    written = [Span(files) for files in spans(len(parts))]
    stages.parallel("verdicts", captions.write_balanced_verdicts, written, inputs)


def list_caption_entries(reading: Reading) -> None:
    """Write the entries of a file, or the frequent words of the captions that are left."""
    options, stages, parts = reading.recipe.balance.captions, reading.stages, reading.run.rows("pool")
    if options.entries != WORDS:
        stages.runner.remove_stages(lambda name: name == "caption-words")
        job = captions.ListEntries(tuple(captions.load_entries(options.entries)))
        stages.serial("caption-entries", captions.list_entries, [], job)
        return
    counting = [captions.CountWords(part, options.fold_case) for part in range(len(parts))]
    stages.parallel("caption-words", captions.count_words, counting, ["pool", captions.BEFORE], "images", parts)
    buckets = max(1, sum(reading.run.rows("caption-words")) // WORDS_PER_BUCKET)
    frequent = [captions.FrequentWords(bucket, buckets, options.least) for bucket in range(buckets)]
    stages.parallel("caption-entries", captions.frequent_words, frequent, ["caption-words"], "buckets of words")


def embed_survivors(reading: Reading, encoder: PlannedEncoder) -> None:
    """Embed for retrieval what deduplication and leak removal left."""
    options, rows = reading.options(encoder), reading.run.rows("pool")
    jobs = [embed.EmbedPart(part, options) for part in range(len(rows))]
    reading.stages.parallel("features", embed.features, jobs, ["survivors"], "images", rows)
    reading.stages.serial("unreadable", retrieve.collect_unreadable, ["features"], NoJob())


def feature_blocks(reading: Reading) -> list[Block]:
    """Return the blocks of the retrieval embeddings."""
    return Layout.of(reading.run, "features").blocks(reading.recipe.retrieval.block)


def thin_cells(reading: Reading, epsilon: float) -> None:
    """Run SemDeDup inside k-means cells."""
    options, seed = reading.recipe.semdedup, reading.recipe.seed
    cluster(reading, "semdedup", options.clusters, ["features"], before_semdedup=True)
    buckets = -(-sum(reading.run.rows("features")) // MEMBERS_PER_UNIT)
    jobs = [balance.ThinCells(bucket, buckets, epsilon, options.keep, seed) for bucket in range(buckets)]
    inputs = ["features", "semdedup-kmeans", "semdedup-cells"]
    reading.stages.parallel("semdedup", balance.drop_semantic_duplicates, jobs, inputs, "buckets of cells")


def cluster(
    reading: Reading, prefix: str, count: int, inputs: Sequence[str], refine: int = 0, before_semdedup: bool = False
) -> str:
    """Train k-means, refine it over the whole pool on request, assign everything; returns the centroids' stage."""
    options, centroids = reading.recipe.retrieval, f"{prefix}-kmeans"
    job = clusters.TrainCells(count, options.iterations, options.sample, reading.recipe.seed, before_semdedup)
    reading.stages.serial(centroids, clusters.train, inputs, job)
    if reading.run.rows(centroids)[0]:
        for number in range(refine):
            refined = f"{prefix}-refined-{number:02d}"
            jobs = _assign_jobs(reading, centroids, before_semdedup)
            reading.stages.parallel(
                f"{prefix}-lloyd-{number:02d}",
                clusters.lloyd,
                jobs,
                [centroids, *inputs],
                "blocks",
                combine=Combine(MergeLloyd(), refined, clusters.finish_lloyd, clusters.FinishLloyd(centroids)),
            )
            centroids = refined
    jobs = _assign_jobs(reading, centroids, before_semdedup)
    reading.stages.parallel(f"{prefix}-cells", clusters.assign, jobs, [centroids, *inputs], "blocks", cores="idle")
    return centroids


def _assign_jobs(reading: Reading, centroids: str, before_semdedup: bool) -> list[clusters.AssignBlock]:
    return [clusters.AssignBlock(block, centroids, before_semdedup) for block in feature_blocks(reading)]


def candidate_stages(reading: Reading) -> list[str]:
    """Return the names of the stages that decide which images can be retrieved or drawn."""
    return ["features", *(name for name in ("semdedup",) if name in reading.stages.digests)]


def retrieve_by_seeds(reading: Reading) -> None:
    """Retrieve for every seed set in its mode, and merge."""
    recipe = reading.recipe
    features, *semdedup = candidate_stages(reading)
    inputs = [features, "seeds", *semdedup]
    modes = {seeds.mode for seeds in recipe.seeds}
    centroids, approximate = "", None
    if "cluster" in modes:
        centroids = cluster(reading, "pool", recipe.retrieval.clusters, inputs, recipe.retrieval.refine)
    if "sample" in modes:
        approximate = train_search_index(reading, inputs)
    for number, seeds in enumerate(recipe.seeds):
        if seeds.mode == "cluster":
            retrieve_by_cluster(reading, number, seeds, centroids)
        else:
            retrieve_by_sample(reading, number, seeds, inputs, approximate)
    numbers = tuple(range(len(recipe.seeds)))
    stages = [f"retrieved-{number}" for number in numbers]
    reading.stages.serial("retrieved", retrieve.merge_retrieved, stages, retrieve.MergeSets(numbers))


def train_search_index(reading: Reading, inputs: Sequence[str]) -> Approximation | None:
    """Train the index of an approximate search; None where the search is exact."""
    options, seed = reading.recipe.retrieval, reading.recipe.seed
    if options.index == "exact":
        return None
    job = retrieve.TrainIndex(options.sample, options.index_cells, options.code_bytes, seed)
    reading.stages.serial("search-index", retrieve.train_search_index, inputs, job)
    return Approximation(options.probes, seed=seed)


def retrieve_by_cluster(reading: Reading, number: int, seeds: SeedSet, centroids: str) -> None:
    """Draw from the cells that hold enough seeds of a set."""
    options, cap = reading.recipe.retrieval, seeds.cap or reading.recipe.retrieval.cap
    job = clusters.RetrieveCells(number, centroids, options.min_seeds, options.per_cell, cap, reading.recipe.seed)
    inputs = ["seeds", centroids, "pool-cells"]
    reading.stages.serial(f"retrieved-{number}", clusters.retrieve_by_cluster, inputs, job)


def retrieve_by_sample(
    reading: Reading, number: int, seeds: SeedSet, inputs: Sequence[str], approximate: Approximation | None
) -> None:
    """Take the k images nearest to every seed of a set."""
    options = reading.recipe.retrieval
    k, cap, nearest = seeds.k or options.k, seeds.cap or options.cap, f"nearest-{number}"
    jobs = [retrieve.SearchBlock(number, block, k, approximate) for block in feature_blocks(reading)]
    index = ["search-index"] if approximate else []
    reading.stages.parallel(nearest, retrieve.nearest, jobs, [*inputs, *index], "blocks", cores="idle")
    threshold = -1.0 if options.threshold is None else options.threshold
    job = retrieve.RetrieveNearest(number, k, cap, reading.recipe.seed, threshold)
    reading.stages.serial(f"retrieved-{number}", retrieve.retrieve_by_sample, [nearest], job)


def draw_balanced(reading: Reading, target: int) -> None:
    """Draw a balanced sample from hierarchical k-means."""
    options = reading.recipe.balance
    cluster(reading, "balance", options.levels[0], candidate_stages(reading))
    job = balance.DrawBalanced(target, options.levels, options.resamples, options.leaves, reading.recipe.seed)
    reading.stages.serial("balanced", balance.draw_balanced, ["balance-kmeans", "balance-cells"], job)
