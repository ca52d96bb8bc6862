"""The sampling pipeline: a labelled dataset in, samples of what its classes lack out.

    data ─ cells ─ plan ─┬ draw ─ nearest ─┬ shards ─ ledger
     └ features ─ gaussians (hardness)     └ dead-letter
                         └ unguided (a few rows again without feedback, for the report)

Feedback-guided data synthesis (Askari-Hemmat et al., arXiv 2310.00158). Each name is a stage: a folder of part files
in the run directory, made by work units through Beam.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import cast

import pyarrow.parquet as pq
from rich.console import Console

from granary.curation.encoders.planned import PlannedEncoder, encoder_of
from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError
from granary.curation.runs.facts import About, Facts, FlowRow, read_facts, read_recipe
from granary.curation.runs.splits import TRAIN
from granary.curation.sources import Source, check_apart, resolve
from granary.curation.steps import embed
from granary.curation.steps.listing import write_listing
from granary.curation.store import storage
from granary.pipelines.engine.encoders import plan_encoder
from granary.pipelines.engine.session import Session
from granary.pipelines.engine.stages import Combine, Stages
from granary.pipelines.engine.units import Engine
from granary.pipelines.kinds.sample_gaussians import MergeGaussians
from granary.synth.feedback import drawing, hardness, outputs, steps
from granary.synth.feedback.classes import ClassIndices, match_labels
from granary.synth.feedback.lending import SamplerSpec, load_sampler
from granary.synth.feedback.plan import shortfalls
from granary.synth.feedback.recipe import SampleRecipe
from granary.synth.feedback.report import write_report as render_report
from granary.synth.feedback.summary import SampleFacts, summarise

DATA_UNIT = 256  # real pictures in a work unit
BATCH = 64  # real pictures per call of the copy encoder
CARD: About = {
    "made": "drawn by `granary sample` from a diffusion model under the feedback of a classifier. "
    "Every image is synthetic.",
    "meanings": outputs.MEANINGS,
    "tags": ["synthetic"],
    "task_categories": ["image-classification"],
    "method": "Feedback-guided Data Synthesis for Imbalanced Classification (Askari-Hemmat et al., "
    "[arXiv 2310.00158](https://arxiv.org/abs/2310.00158)).",
    "limits": [
        "The samples are synthetic: a label says what was asked for, not what a person sees.",
        "With feedback they are what the classifier found hard or uncertain, not a fair sample of the model.",
        "Resemblance to training images was measured with a copy descriptor; copies that it does not see may remain.",
    ],
    "local": ["data", "holdout", "sampling.device", "sampling.batch"],
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A recipe made ready before any work: sources resolved, both models loaded once.

    Args:
        recipe: with absolute sources and models, and the bound of copies filled in.
        sampler: what units need to load the sampler.
        model_classes: of the diffusion model; None when it takes none.
        classifier_classes: in the order of its logits.
        needs: what the model needs of a request: "label", "prompt", "condition".
        copy_encoder: tells what resembles a real picture.
        copy_threshold: cosine above which a sample is a copy.
    """

    recipe: SampleRecipe
    sampler: SamplerSpec
    model_classes: Sequence[str] | None
    classifier_classes: Sequence[str]
    needs: tuple[str, ...]
    copy_encoder: PlannedEncoder
    copy_threshold: float


@dataclasses.dataclass
class Sampled(Stages):
    """One sampling run: builds each stage from the recipe and what earlier stages wrote, and runs it.

    Args:
        runner: runs one stage.
        prepared: the recipe and what it names.
    """

    prepared: Prepared

    def run(self) -> None:
        """Run every stage that the recipe asks for and that is not finished."""
        recipe = self.recipe
        self.runner.remove_stages(lambda name: name == "holdout" and not recipe.holdout)
        for role in self.roles:
            self.read(role)
        self.serial("cells", steps.count_cells, self.roles, steps.CellCount(recipe.plan.groups))
        classes = self.check_cells()
        plan = steps.SamplePlan(recipe.seed, recipe.plan, classes, self.prepared.needs, recipe.unit_rows)
        self.serial("plan", steps.write_plan, [*self.roles, "cells"], plan)
        self.fit_gaussians({label: indices.target for label, indices in classes.items()})
        self.draw()
        self.compare()
        self.write_outputs()

    @property
    def recipe(self) -> SampleRecipe:
        """The recipe."""
        return self.prepared.recipe

    @property
    def roles(self) -> list[str]:
        """The roles that have sources."""
        return ["data", *(["holdout"] if self.recipe.holdout else [])]

    def read(self, role: str) -> None:
        """Read, hash, decode and describe everything the sources of a role hold."""
        recipe = self.recipe
        options = embed.EmbedOptions(
            self.prepared.copy_encoder, recipe.sampling.device, BATCH, recipe.decode, recipe.max_unreadable
        )
        units, weights, _ = write_listing(self.run_directory, role, DATA_UNIT)
        self.parallel(role, embed.embed, [embed.EmbedUnit(unit, options) for unit in units], [], "images", weights)

    def check_cells(self) -> dict[str, ClassIndices]:
        """Return for each class its indices in both models.

        Raises:
            UserError: no labelled picture, a class that a model does not have, or nothing to draw.
        """
        cells, recipe = steps.read_cells(self.run_directory), self.recipe
        if not cells:
            paths = ", ".join(source.path for source in recipe.data)
            raise UserError(
                f"data: {paths} holds no readable image with a label; give a folder with a sub-folder for each class, "
                "or shards with a label column"
            )
        if not sum(shortfalls(cells, recipe.plan.fill, recipe.plan.empty_cells).values()):
            level = recipe.plan.fill or max(cells.values())
            raise UserError(f"plan.fill: every class has {level} images or more; give a larger number")
        return self.match(sorted({cell.label for cell in cells}))

    def match(self, labels: Sequence[str]) -> dict[str, ClassIndices]:
        """Return the indices of labels in both models; raises UserError for a class that a model does not have."""
        recipe, taken = self.recipe, self.prepared.model_classes
        names, classifier = recipe.plan.names, self.prepared.classifier_classes
        targets = match_labels(labels, classifier, names, f"classifier: '{recipe.classifier}'")
        indices = match_labels(labels, taken, names, f"model: '{recipe.model}'") if taken else {}
        return {label: ClassIndices(indices.get(label), targets[label]) for label in labels}

    def fit_gaussians(self, targets: Mapping[str, int]) -> None:
        """Gather the classifier's features of the real pictures into class Gaussians, where hardness needs them."""
        recipe, needed = self.recipe, self.recipe.guidance.criterion == "hardness"
        self.runner.remove_stages(lambda name: name in ("features", "gaussians") and not needed)
        if not needed:
            return
        rows = self.run_directory.rows("data")
        jobs = [self.feature_unit(part, targets) for part in range(len(rows))]
        fit = hardness.GaussianFit(len(self.prepared.classifier_classes), recipe.hardness)
        merge = MergeGaussians(recipe.hardness.tied)
        combine = Combine(merge, "gaussians", hardness.write_gaussians, fit)
        self.parallel("features", hardness.write_features, jobs, ["data", "cells"], "images", rows, combine=combine)

    def feature_unit(self, part: int, targets: Mapping[str, int]) -> hardness.FeatureUnit:
        """Return the job that reads the features of one part of the data."""
        recipe, models = self.recipe, self.prepared.sampler.models
        device, groups = recipe.sampling.device, recipe.plan.groups
        return hardness.FeatureUnit(part, recipe.classifier, models, device, groups, targets, recipe.decode)

    def draw(self) -> None:
        """Draw the planned rows, and a few of them again without feedback."""
        recipe, sampler = self.recipe, self.prepared.sampler
        rows = _group_rows(self.run_directory.parts("plan")[0])
        before = ["plan", *[name for name in ("gaussians",) if name in self.digests]]
        options = drawing.DrawOptions(sampler, recipe.seed, recipe.decode)
        jobs = [drawing.DrawUnit(unit, options) for unit in range(len(rows))]
        self.parallel("draw", drawing.draw, jobs, before, "samples", rows)
        silent = sampler.guidance.model_copy(update={"omega": 0.0, "observe": True})
        plain = dataclasses.replace(options, sampler=dataclasses.replace(sampler, guidance=silent))
        pairs = drawing.UnguidedPairs(recipe.pairs, plain)
        weights = [min(recipe.pairs, sum(rows))]
        self.parallel("unguided", drawing.draw_unguided, [pairs], before, "samples", weights)

    def compare(self) -> None:
        """Find the nearest real picture of each sample."""
        rows, prepared = self.run_directory.rows("draw"), self.prepared
        device, drop = self.recipe.sampling.device, self.recipe.copies.drop
        jobs = [
            drawing.Comparison(part, prepared.copy_encoder, device, prepared.copy_threshold, drop)
            for part in range(len(rows))
        ]
        self.parallel("nearest", drawing.nearest_real, jobs, ["data", "draw"], "samples", rows)

    def write_outputs(self) -> None:
        """Write shards, ledger and dead letters."""
        recipe, units = self.recipe, len(self.run_directory.rows("draw"))
        step = max(1, recipe.shards.rows // recipe.unit_rows)
        options = (recipe.shards.row_group, recipe.guidance.omega, recipe.guidance.criterion)
        shards = [outputs.ShardUnits(start, min(start + step, units), *options) for start in range(0, units, step)]
        inputs = ["plan", "draw", "nearest"]
        splits = [TRAIN] * len(shards)
        self.write_shards("shards", outputs.write_shard, shards, splits, inputs, "shards", target="dataset/data")
        groups, data = recipe.plan.groups, len(self.run_directory.rows("data"))
        ledger = [outputs.LedgerPart("sample", part, groups) for part in range(units)]
        ledger += [outputs.LedgerPart("data", part, groups) for part in range(data)]
        self.parallel("ledger", outputs.write_ledger, ledger, ["cells", *inputs])
        roles = outputs.ReadRoles(tuple(self.roles))
        self.serial("dead-letter", outputs.write_dead_letters, [*self.roles, "draw"], roles)


def _group_rows(url: str) -> list[int]:
    """Return the rows of each row group; none for an empty table."""
    with storage.open_read(url) as file:
        metadata = pq.ParquetFile(file).metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] if metadata.num_rows else []


def sample(recipe: SampleRecipe, engine: Engine, console: Console | None = None) -> Facts:
    """Draw what the classes lack; finished work of an earlier, interrupted run of the same recipe is kept.

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
    sources = {"data": recipe.data, "holdout": recipe.holdout}
    session = Session.begin(recipe, "sample", engine, console, sources, ("data", _paths))
    run = Sampled(session.runner, prepared)
    return session.completed(run.run, lambda: _finish(session, run), [("ledger", "ledger")])


def _finish(session: Session[SampleRecipe], run: Sampled) -> Facts:
    recipe = session.recipe
    summary = summarise(session.run, steps.read_cells(session.run), recipe)
    facts = session.finish(
        {"default": outputs.sampled_features(outputs.drawn_classes(session.run))},
        {"noun": "samples", "flow": _flow(run), "notes": _notes(run), **summary},
        {"default": run.written["shards"]},
        {**CARD, "local": [*CARD["local"], *_local_models(recipe)]},
        recipe.decode,
    )
    write_report(session.run.url)
    return facts


def prepare(recipe: SampleRecipe) -> Prepared:
    """Resolve sources and load both models once, before any work; raises UserError for what is not there."""
    roles = {role: [resolve(source) for source in getattr(recipe, role)] for role in ("data", "holdout")}
    check_apart(recipe.out, roles)
    if "(?P<class>" not in recipe.plan.groups.pattern:
        roles["data"] = [_labelled_by_folder(source) for source in roles["data"]]
    copy = plan_encoder(recipe.copies.encoder, recipe.sampling.device)
    threshold = recipe.copies.threshold or encoder_of(copy, recipe.sampling.device).copy_threshold
    copies = recipe.copies.model_copy(update={"encoder": copy.spec, "threshold": threshold})
    models = {"model": _anywhere(recipe.model), "classifier": _anywhere(recipe.classifier)}
    recipe = recipe.model_copy(update={**roles, **models, "copies": copies})
    spec = SamplerSpec(recipe.model, recipe.classifier, recipe.guidance, recipe.sampling)
    # no class Gaussians are fitted yet, and another criterion loads the same models
    loaded = load_sampler(
        dataclasses.replace(spec, guidance=recipe.guidance.model_copy(update={"criterion": "entropy"}))
    )
    loaded.check()
    spec = dataclasses.replace(spec, models=loaded.models)
    return Prepared(recipe, spec, loaded.classes, loaded.classifier_classes, loaded.needs, copy, threshold)


def _labelled_by_folder(source: Source) -> Source:
    return source.model_copy(update={"labels": "folder"}) if source.kind == "folder" else source


def _anywhere(model: str) -> str:
    """Return the name of a model with a local path made absolute: workers may stand in another folder."""
    spec = model if model.startswith(("granary:", "hf:")) else f"hf:{model}"
    return EncoderSpec.parse(spec).anywhere.removeprefix("hf:")


def _local_models(recipe: SampleRecipe) -> list[str]:
    """Return the keys of models that are the user's files, not ids of the Hub: a card names no private place."""
    specs = {"model": recipe.model, "classifier": recipe.classifier, "copies.encoder": recipe.copies.encoder}
    kinds = ("granary:", "torchscript:")
    return [
        key
        for key, spec in specs.items()
        if spec.startswith(kinds) or "://" in spec or os.path.isdir(spec.rpartition("hf:")[2])
    ]


def _paths(recipe: SampleRecipe) -> list[str]:
    return [source.path for source in recipe.data]


def _flow(run: Sampled) -> list[FlowRow]:
    """Return how many of the planned samples were drawn, and how many of those the comparison kept."""
    drawn, compared = (
        {name: sum(marker.counters.get(name, 0) for marker in run.markers[stage]) for name in ("ok", "dropped", "dead")}
        for stage in ("draw", "nearest")
    )
    planned = drawn["ok"] + drawn["dead"]
    return [
        {"stage": "draw", "in": planned, "kept": drawn["ok"], "dropped": 0, "dead": drawn["dead"]},
        {"stage": "nearest", "in": drawn["ok"], "kept": compared["ok"], "dropped": compared["dropped"], "dead": 0},
    ]


def _notes(run: Sampled) -> list[str]:
    """Return what a reader of the dataset should know, in sentences."""
    cells, notes = steps.read_cells(run.run_directory), []
    single = sorted({f"{cell.label}/{cell.group}".rstrip("/") for cell, count in cells.items() if count == 1})
    if single:
        shown = ", ".join(single[:5]) + (" and others" if len(single) > 5 else "")
        notes.append(f"One real image only, so nothing tells its variety: {shown}.")
    left_out = run.markers["cells"][0].counters
    for reason in ("no label", "no group", "held out"):
        if left_out.get(reason):
            notes.append(f"Real images that were not used ({reason}): {left_out[reason]:,}.")
    dead = sum(marker.counters.get("dead", 0) for marker in run.markers["data"])
    if dead:
        notes.append(f"Real images that could not be read: {dead:,}; see dead-letter.")
    copies = sum(marker.counters.get("copies", 0) for marker in run.markers["nearest"])
    if copies:
        what = "left out" if run.recipe.copies.drop else "flagged"
        notes.append(f"Samples that resemble a real image above {run.recipe.copies.threshold}: {copies:,}, {what}.")
    return notes


def write_report(url: str) -> str:
    """Write report/index.html of a finished run again; returns its URL."""
    recipe = read_recipe(url, SampleRecipe)
    return render_report(url, recipe, cast(SampleFacts, read_facts(url)))
