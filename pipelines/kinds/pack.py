"""The pack pipeline: images with masks and long texts in, samples for vision-language training out.

    records ─ shards ┬ texts ─ pairs
                     ├ chosen-quads ─ quads
                     └ ledger, dead letters                    DCI and sDCI (Urbanek et al., arXiv 2312.08578).

Formats that ask or say things of pictures (VQAv2, GQA, POPE, LLaVA) have no texts and pairs; Winoground has quads too.
Each name is a stage: a folder of part files in the run directory, made by work units through Beam. Nothing is
shuffled: a unit reads the annotations and images it is named, and writes one shard; its entries follow it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from rich.console import Console

from granary.curation.dense import summary
from granary.curation.dense.packing import Counter
from granary.curation.dense.readers.lines import ENDINGS
from granary.curation.dense.recipe import Format, PackRecipe
from granary.curation.dense.report import build_report
from granary.curation.dense.schema import ASKED, image_features, pair_features
from granary.curation.dense.steps import outputs, pairs, records, shards, texts
from granary.curation.dense.steps.notes import Note
from granary.curation.dense.steps.pairs import CutPairs
from granary.curation.dense.steps.quads import ChooseExamples, choose_examples
from granary.curation.dense.steps.records import Group, ListRecords
from granary.curation.dense.steps.shards import PackImages
from granary.curation.dense.steps.texts import WriteTexts
from granary.curation.errors import UserError
from granary.curation.report.page import write_page
from granary.curation.runs.facts import Facts, read_facts, read_recipe
from granary.curation.runs.quads import STAGE, write_quads
from granary.curation.runs.run import Marker, NoJob, Run, digest
from granary.curation.sources import Source, check_apart, files, listing
from granary.curation.store import storage
from granary.curation.store.language import quad_features
from granary.pipelines.engine.recipe import dump_recipe
from granary.pipelines.engine.session import Session
from granary.pipelines.engine.stages import Stages
from granary.pipelines.engine.units import Engine

ONE_FILE: Mapping[Format, str] = {"coco": "an instance or a caption file", "vqa": "a file of questions"}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A recipe that can be run, and what its check has read.

    Args:
        recipe: with absolute paths.
        sources: of the roles annotations and images.
        counter: of the budget.
        model: digest of the language model; "" where none is named.
    """

    recipe: PackRecipe
    sources: Mapping[str, Sequence[Source]]
    counter: Counter
    model: str

    @property
    def tokenizer_name(self) -> str:
        """Last part of the tokenizer's path; "" where words are counted."""
        return self.recipe.budget.tokenizer.rstrip("/").rsplit("/", 1)[-1]


@dataclasses.dataclass
class Pack(Stages):
    """One pack run.

    Args:
        runner: runs one stage.
        prepared: what to do.
    """

    prepared: Prepared

    @property
    def recipe(self) -> PackRecipe:
        """What to do, with absolute paths."""
        return self.prepared.recipe

    def run(self) -> None:
        """Run every stage that is not finished."""
        groups = self.list_records()
        weights = [group.rows for group in groups]
        splits = [group.split for group in groups]
        packing = [self.packing(unit, group.digest) for unit, group in enumerate(groups)]
        self.write_shards(
            "shards", shards.write_shard, packing, splits, [], "images", weights, target="dataset/data", processes=True
        )
        self.check_packed()
        if self.recipe.format not in ASKED:
            self.cut_pairs(groups)
        if self.recipe.format == "winoground":
            self.serial(STAGE, choose_examples, ["records", "shards"], ChooseExamples(len(groups)))
            self.write_chosen("quads", STAGE, write_quads, self.recipe.shards.row_group)
        packed = self.markers["shards"]
        deciding = [outputs.WriteLedger(unit, group.digest, packed[unit].sha256) for unit, group in enumerate(groups)]
        self.parallel("ledger", outputs.write_ledger, deciding, [], "images", weights)
        inputs = ["shards", *(["texts"] if "texts" in self.digests else [])]
        self.serial("dead-letter", outputs.write_dead_letters, inputs, NoJob())

    def cut_pairs(self, groups: Sequence[Group]) -> None:
        """Write the texts of all entries, and their shards."""
        weights, splits = [group.rows for group in groups], [group.split for group in groups]
        packed = self.markers["shards"]
        writing = [self.writing(unit, group.digest, packed[unit]) for unit, group in enumerate(groups)]
        self.parallel("texts", texts.write_texts, writing, [], "images", weights, cores=self.cores, processes=True)
        written = self.markers["texts"]
        cutting = [self.cutting(unit, packed[unit].sha256, written[unit].sha256) for unit in range(len(groups))]
        self.write_shards(
            "pairs", pairs.write_pairs, cutting, splits, [], "images", weights, target="dataset/pairs", processes=True
        )

    def list_records(self) -> list[Group]:
        """List the annotations; returns the row group of each unit."""
        recipe = self.recipe
        job = ListRecords(
            format=recipe.format,
            unit_rows=recipe.unit_rows,
            max_bytes=recipe.decode.max_bytes,
            second=recipe.captions or recipe.answers,
            splits=recipe.splits,
            state=state_of(self.run_directory.sources["annotations"][0], recipe),
        )
        listed = self.serial("records", records.list_records, [], job)
        if not listed.notes:
            raise UserError(
                f"annotations: {recipe.annotations} holds no annotation of the format {recipe.format}; "
                "give another folder or --format"
            )
        return [Group(*note) for note in listed.notes]

    def check_packed(self) -> None:
        """Raise UserError when no image came through: a wrong folder more likely than thousands of bad files."""
        markers = self.markers["shards"]
        sums = summary.totals(markers)
        if not sums["kept"]:
            notes = (Note(*fields) for marker in markers for fields in marker.notes)
            example = next((f"; for example {n.name}: {n.message}" for n in notes if n.status != "part"), "")
            raise UserError(
                f"images: none of the {sums['files']:,} annotations could be packed with the images of "
                f"{self.recipe.images}{example}"
            )

    @property
    def cores(self) -> Literal["one", "all"]:
        """Native threads of a unit that writes texts: more than one only for a language model."""
        return "all" if "model" in self.recipe.engines else "one"

    def packing(self, unit: int, listed: str) -> PackImages:
        """Return the job of a unit that packs images.

        Args:
            listed: digest of its records.
        """
        recipe = self.recipe
        return PackImages(
            unit=unit,
            records=listed,
            format=recipe.format,
            budget=recipe.budget,
            tokenizer=self.prepared.counter.fingerprint,
            decode=recipe.decode,
            grow=recipe.crops.grow,
            masks=recipe.shards.masks,
            row_group=recipe.shards.row_group,
            max_unreadable=recipe.max_unreadable,
        )

    def writing(self, unit: int, listed: str, packed: Marker) -> WriteTexts:
        """Return the job of a unit that writes summaries and negatives.

        Args:
            listed: digest of its records.
        """
        recipe, uses_model = self.recipe, "model" in self.recipe.engines
        return WriteTexts(
            unit=unit,
            records=listed,
            shard=packed.sha256,
            format=recipe.format,
            max_bytes=recipe.decode.max_bytes,
            given="given" in recipe.engines and packed.counters.get("given", 0) > 0,
            budget=recipe.budget,
            tokenizer=self.prepared.counter.fingerprint,
            seed=recipe.seed,
            crops=recipe.crops,
            summaries=recipe.summaries,
            negatives=recipe.negatives,
            writer=recipe.writer if uses_model else None,
            model=self.prepared.model if uses_model else "",
        )

    def cutting(self, unit: int, shard: str, written: str) -> CutPairs:
        """Return the job of a unit that cuts crops.

        Args:
            shard: digest of the shard.
            written: digest of its texts.
        """
        recipe = self.recipe
        return CutPairs(unit, shard, written, recipe.crops, recipe.decode, recipe.shards.row_group)


def pack(recipe: PackRecipe, engine: Engine, console: Console | None = None) -> Facts:
    """Pack annotated images; finished work of an earlier, interrupted run of the same recipe is kept.

    Args:
        recipe: what to do.
        engine: where the work units run.
        console: for progress and the closing table; stderr by default.

    Returns:
        What run.json holds.

    Raises:
        UserError: the recipe cannot be run, or a work unit failed.
    """
    prepared = prepare(recipe)
    recipe = prepared.recipe
    subject = ("set of annotations", lambda before: before.annotations)
    session = Session.begin(recipe, "pack", engine, console, prepared.sources, subject)
    packing = Pack(session.runner, prepared)
    return session.completed(packing.run, lambda: _finish(session, packing), [("dead", "dead-letter")])


def _finish(session: Session[PackRecipe], packing: Pack) -> Facts:
    recipe = session.recipe
    configs = {"default": "shards", "pairs": "pairs", "quads": "quads"}
    written = {config: packing.written[stage] for config, stage in configs.items() if packing.written.get(stage)}
    features = {"default": image_features(recipe.format), "pairs": pair_features(), "quads": quad_features()}
    facts = session.finish(
        {config: features[config] for config in written},
        _summarise(packing),
        written,
        summary.card(recipe, packing.prepared.counter.unit),
        recipe.decode,
    )
    _write_report(session.run, recipe, facts)
    return facts


def _summarise(packing: Pack) -> dict[str, object]:
    """Return what only run.json of a pack run has."""
    prepared, markers = packing.prepared, packing.markers
    counter, images, texts = (
        prepared.counter,
        summary.totals(markers["shards"]),
        summary.totals(markers.get("texts", [])),
    )
    return {
        "noun": "annotations",
        "flow": summary.flow(images, texts)[: 1 if prepared.recipe.format in ASKED else None],
        "notes": [*summary.notes(prepared.recipe, images, texts, counter), *_quads(packing)],
        "budget": {"unit": counter.unit, "most": counter.budget, "tokenizer": prepared.tokenizer_name},
        "statistics": summary.statistics(packing.run_directory),
        "counts": {"images": dict(sorted(images.items())), "entries": dict(sorted(texts.items()))},
        "dead_letters": dict(markers["dead-letter"][0].counters),
    }


def _quads(packing: Pack) -> list[str]:
    """Return how many quads there are, and how many lack a picture; nothing where the format has none."""
    if STAGE not in packing.markers:
        return []
    (marker,) = packing.markers[STAGE]
    lost = marker.counters.get("quads lost", 0)
    return [f"{marker.rows:,} quads (config quads)" + (f"; {lost:,} more lack a picture." if lost else ".")]


def write_report(url: str) -> str:
    """Write report/index.html of a finished run again; returns its URL."""
    recipe, facts = read_recipe(url, PackRecipe), read_facts(url)
    return _write_report(Run(url.rstrip("/")), recipe, facts)


def _write_report(run: Run, recipe: PackRecipe, facts: Facts) -> str:
    return write_page(run, build_report(run, facts, dump_recipe(recipe), recipe.decode))


def prepare(recipe: PackRecipe) -> Prepared:
    """Check a recipe before any work; raises UserError when something is not there, or does not fit."""
    sources = {role: [Source(name=role, path=path, kind="folder")] for role, path in _folders(recipe).items()}
    check_apart(recipe.out, sources)
    tokenizer = files.absolute(recipe.budget.tokenizer) if recipe.budget.tokenizer else ""
    counter = Counter(tokenizer, recipe.budget.tokens)
    if counter.budget <= counter.overhead:
        raise UserError(
            f"budget.tokens: {counter.budget} is not right: the tokenizer adds {counter.overhead} tokens to every "
            "text; give more"
        )
    model = files.absolute(recipe.writer.model) if recipe.writer.model else ""
    if "model" in recipe.engines and not model:
        raise UserError("writer.model: missing; the engine 'model' needs the folder of a causal language model")
    annotations = sources["annotations"][0].path
    absolute = {
        "annotations": annotations,
        "images": sources["images"][0].path,
        "captions": files.placed("captions", recipe.captions) if recipe.captions else "",
        "answers": files.placed("answers", recipe.answers) if recipe.answers else "",
        "splits": _splits(recipe, annotations),
        "budget": recipe.budget.model_copy(update={"tokenizer": tokenizer}),
        "writer": recipe.writer.model_copy(update={"model": model}),
    }
    fingerprint = _model_fingerprint(model) if model else ""
    return Prepared(recipe.model_copy(update=absolute), sources, counter, fingerprint)


def _folders(recipe: PackRecipe) -> dict[str, str]:
    """Return the absolute paths of annotations and images; where no images are named, the folder of the annotations."""
    annotations = files.placed("annotations", recipe.annotations)
    if not recipe.images and recipe.format != "winoground":
        raise UserError("images: missing; give the folder that image names are relative to")
    images = files.placed("images", recipe.images or files.root(annotations))
    if not images.endswith("/"):
        raise UserError(f"images: {recipe.images!r} is a file; give the folder that image names are relative to")
    if recipe.format in ONE_FILE and annotations.endswith("/"):
        raise UserError(
            f"annotations: {recipe.annotations!r} is a folder; {recipe.format} takes {ONE_FILE[recipe.format]}"
        )
    for name, given, format in (("captions", recipe.captions, "coco"), ("answers", recipe.answers, "vqa")):
        if given and recipe.format != format:
            raise UserError(f"{name}: the format {recipe.format} has none; leave it out, or give --format {format}")
    return {"annotations": annotations, "images": images}


def _model_fingerprint(folder: str) -> str:
    """Return the digest of a language model; only a run that uses one imports what loads it."""
    from granary.curation.dense.language_model import model_files
    from granary.curation.encoders.inference import fingerprint

    return fingerprint(model_files(folder))


def _splits(recipe: PackRecipe, annotations: str) -> str:
    """Return the path of splits.json: the one named, or of DCI the one in or beside the folder; "" for none."""
    if recipe.splits:
        return files.placed("splits", recipe.splits)
    folder = annotations.rstrip("/") if annotations.endswith("/") else files.root(annotations).rstrip("/")
    near = [storage.join(folder, "splits.json"), storage.join(folder.rpartition("/")[0], "splits.json")]
    return next((path for path in near if files.exists(path)), "") if recipe.format == "dci" else ""


def state_of(source: Source, recipe: PackRecipe) -> str:
    """Return a digest that changes when a file of the annotations does."""
    listed = [
        (file.path, file.size, file.stamp) for file in listing.shards(source.path, (".json", ".parquet", *ENDINGS))
    ]
    further = [files.info(path)["stamp"] for path in (recipe.captions, recipe.answers, recipe.splits) if path]
    return digest(listed, further)
