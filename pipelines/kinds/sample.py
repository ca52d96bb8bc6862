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
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from granary.curation.encoders.planned import PlannedEncoder, encoder_of
from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError
from granary.curation.runs.facts import About, Facts, read_facts, read_recipe
from granary.curation.sources import check_apart, resolve
from granary.curation.steps import embed
from granary.curation.steps.listing import write_listing
from granary.curation.store import storage
from granary.pipelines.engine.encoders import plan_encoder
from granary.pipelines.engine.session import Session
from granary.pipelines.engine.stages import Combine, Stages
from granary.pipelines.engine.units import Engine
from granary.pipelines.kinds.sample_gaussians import MergeGaussians
from granary.synth.feedback import drawing, outputs, steps
from granary.synth.feedback.plan import match_labels, shortfalls
from granary.synth.feedback.recipe import SampleRecipe
from granary.synth.feedback.report import report_facts
from granary.synth.feedback.report import write_report as render_report

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


@dataclasses.dataclass
class Sampled(Stages):
    """One sampling run: builds each stage from the recipe and what earlier stages found, and runs it.

    Args:
        runner: runs one stage.
        recipe: with the sources resolved and the bound of copies filled in.
        sampler: what units need to load the sampler: plain data with its fingerprint.
        names: the classes of the generator (None when it takes none) and of the classifier, and what requests need.
        copy_encoder: tells what resembles a real picture.
    """

    recipe: SampleRecipe
    sampler: Mapping[str, Any]
    names: Mapping[str, Any]
    copy_encoder: PlannedEncoder

    def run(self) -> None:
        """Run every stage that the recipe asks for and that is not finished."""
        self.runner.remove_stages(lambda name: name == "holdout" and not self.recipe.holdout)
        for role in self.roles:
            self.read(role)
        groups = self.groups
        self.serial("cells", steps.count_cells, self.roles, groups=groups)
        classes = self.check_cells()
        options = self.recipe.plan
        self.serial(
            "plan",
            steps.write_plan,
            [*self.roles, "cells"],
            seed=self.recipe.seed,
            fill=options.fill,
            empty=options.empty_cells,
            groups=groups,
            templates=list(options.templates),
            names=options.names,
            classes=classes,
            needs=list(self.names["needs"]),
            unit_rows=self.recipe.unit_rows,
        )
        self.fit_gaussians({label: target for label, (_, target) in classes.items()})
        self.draw()
        self.write_outputs()

    @property
    def roles(self) -> list[str]:
        """The roles that have sources."""
        return ["data", *(["holdout"] if self.recipe.holdout else [])]

    @property
    def groups(self) -> dict[str, str]:
        """The recipe's groups as plain data."""
        return self.recipe.plan.groups.model_dump(mode="json")

    def read(self, role: str) -> None:
        """Read, hash, decode and describe everything the sources of a role hold."""
        recipe = self.recipe
        options = embed.EmbedOptions(
            self.copy_encoder, recipe.sampling.device, BATCH, recipe.decode, recipe.max_unreadable
        )
        units, weights = write_listing(self.run_directory, role, DATA_UNIT)
        self.parallel(role, embed.embed, [embed.EmbedUnit(unit, options) for unit in units], [], "images", weights)

    def check_cells(self) -> dict[str, list[int | None]]:
        """Return for each class its indices [in the generator or None, in the classifier].

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
        labels, renamed = sorted({cell.label for cell in cells}), recipe.plan.names
        targets = match_labels(labels, self.names["classifier"], renamed, f"classifier: '{recipe.classifier}'")
        taken = self.names["model"]
        own = match_labels(labels, taken, renamed, f"model: '{recipe.model}'") if taken else {}
        return {label: [own.get(label), targets[label]] for label in labels}

    def fit_gaussians(self, targets: Mapping[str, int | None]) -> None:
        """Gather the classifier's features of the real pictures into class Gaussians, where hardness needs them."""
        recipe, wanted = self.recipe, self.recipe.guidance.criterion == "hardness"
        self.runner.remove_stages(lambda name: name in ("features", "gaussians") and not wanted)
        if not wanted:
            return
        common = {
            "classifier": recipe.classifier,
            "models": self.sampler["models"],
            "device": recipe.sampling.device,
            "groups": self.groups,
            "targets": dict(targets),
            "decode": recipe.decode.model_dump(),
        }
        rows = self.run_directory.rows("data")
        fit = {
            **recipe.hardness.model_dump(include={"tying", "shrinkage", "dimensions"}),
            "classes": len(self.names["classifier"]),
            "tied": recipe.hardness.tied,
        }
        self.parallel(
            "features",
            steps.write_features,
            [{"part": part, **common} for part in range(len(rows))],
            ["data", "cells"],
            "images",
            rows,
            combine=Combine(MergeGaussians(recipe.hardness.tied), "gaussians", steps.write_gaussians, fit),
        )

    def draw(self) -> None:
        """Draw the planned rows, a few of them again without feedback, and find the nearest real picture of each."""
        recipe, run = self.recipe, self.run_directory
        rows = _group_rows(run.parts("plan")[0])
        before = ["plan", *[name for name in ("gaussians",) if name in self.digests]]
        common = {
            "sampler": self.sampler,
            "seed": recipe.seed,
            "batch": recipe.sampling.batch,
            "decode": recipe.decode.model_dump(),
        }
        units = [{"unit": unit, **common} for unit in range(len(rows))]
        self.parallel("draw", drawing.draw, units, before, "samples", rows)
        plain = {**self.sampler, "guidance": {**self.sampler["guidance"], "omega": 0.0, "observe": True}}
        unguided = {**common, "sampler": plain, "pairs": recipe.pairs}
        self.parallel("unguided", drawing.draw_unguided, [unguided], before, "samples", [min(recipe.pairs, sum(rows))])
        compare = {
            "encoder": self.copy_encoder,
            "device": recipe.sampling.device,
            "threshold": recipe.copies.threshold,
            "drop": recipe.copies.drop,
        }
        parts = [{"part": part, **compare} for part in range(len(rows))]
        self.parallel("nearest", drawing.nearest_real, parts, ["data", "draw"], "samples", rows)

    def write_outputs(self) -> None:
        """Write shards, ledger and dead letters."""
        recipe, units = self.recipe, len(self.run_directory.rows("draw"))
        step = max(1, recipe.shards.rows // recipe.unit_rows)
        common = {
            "row_group": recipe.shards.row_group,
            "omega": recipe.guidance.omega,
            "criterion": recipe.guidance.criterion,
        }
        shards = [{"units": [first, min(first + step, units)], **common} for first in range(0, units, step)]
        inputs = ["plan", "draw", "nearest"]
        self.parallel("shards", outputs.write_shard, shards, inputs, "shards", target="dataset/data")
        parts = [("sample", part) for part in range(units)]
        parts += [("data", part) for part in range(len(self.run_directory.rows("data")))]
        ledger = [{"role": role, "part": part, "groups": self.groups} for role, part in parts]
        self.parallel("ledger", outputs.write_ledger, ledger, ["cells", *inputs])
        self.serial("dead-letter", outputs.write_dead_letters, [*self.roles, "draw"], roles=self.roles)


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
    recipe, sampler, names, copy_encoder = prepared(recipe)
    sources = {"data": recipe.data, "holdout": recipe.holdout}
    session = Session.begin(recipe, "sample", engine, console, sources, ("data", _paths))
    run = Sampled(session.runner, recipe, sampler, names, copy_encoder)
    run.run()
    found = report_facts(session.run, steps.read_cells(session.run), recipe)
    facts = session.finish(
        {"default": outputs.sampled_features()},
        {"noun": "samples", "flow": _flow(run), "notes": _notes(run), **found},
        {"default": run.markers["shards"]},
        {**CARD, "local": [*CARD["local"], *_local_models(recipe)]},
        recipe.decode,
    )
    write_report(session.run.url)
    session.print_table(facts, [("ledger", "ledger")])
    return facts


def prepared(recipe: SampleRecipe) -> tuple[SampleRecipe, dict[str, Any], dict[str, Any], PlannedEncoder]:
    """Resolve sources and load both models once, before any work.

    Returns:
        The recipe with absolute sources and the bound of copies filled in; what units need to load the sampler; the
        names of classes and what requests need; the copy encoder.

    Raises:
        UserError: a source is not there, or a model cannot be loaded.
    """
    roles = {role: [resolve(source) for source in getattr(recipe, role)] for role in ("data", "holdout")}
    check_apart(recipe.out, roles)
    by_folder = "(?P<class>" not in recipe.plan.groups.pattern
    roles["data"] = [
        source.model_copy(update={"labels": "folder"}) if source.kind == "folder" and by_folder else source
        for source in roles["data"]
    ]
    copy = plan_encoder(recipe.copies.encoder, recipe.sampling.device)
    threshold = recipe.copies.threshold or encoder_of(copy, recipe.sampling.device).copy_threshold
    copies = recipe.copies.model_copy(update={"encoder": copy.spec, "threshold": threshold})
    models = {"model": _anywhere(recipe.model), "classifier": _anywhere(recipe.classifier)}
    options = {
        **models,
        "guidance": recipe.guidance.model_dump(mode="json"),
        **recipe.sampling.model_dump(mode="json", exclude={"batch"}),
        "models": "",
    }
    loaded = drawing.load_sampler({**options, "guidance": {**options["guidance"], "criterion": "entropy"}})
    names = {"model": loaded.classes, "classifier": loaded.classifier_classes, "needs": loaded.needs}
    options["models"] = loaded.models
    return recipe.model_copy(update={**roles, **models, "copies": copies}), options, names, copy


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


def _flow(run: Sampled) -> list[dict[str, Any]]:
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
    return render_report(url, recipe, read_facts(url))
