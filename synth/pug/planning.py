"""From a recipe to its rows: everything about a render that can be wrong is found here, before any work."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from granary.curation.errors import UserError
from granary.curation.runs.splits import TRAIN, in_order
from granary.curation.sources.files import absolute
from granary.curation.store import storage
from granary.curation.store.hashing import digest_of
from granary.curation.store.language import PollRow, QuestionRow, poll_feature, question_feature
from granary.curation.store.schema import class_names, sample_features
from granary.synth.pug.plan.factors import Axis, Level, Value, axes_of, inlined
from granary.synth.pug.plan.plans import VARIED, Listed, Plan, Row, plan_of, row_id
from granary.synth.pug.plan.scenes import NAME, SceneSpec, named, problem, scene_of
from granary.synth.pug.plan.spar import row_captions
from granary.synth.pug.plan.splits import Rule, rules_of, split_of
from granary.synth.pug.recipe import RenderRecipe
from granary.synth.pug.texts.facts import FIELDS, PictureFacts, facts_of
from granary.synth.pug.texts.polls import Commonness, polls_of
from granary.synth.pug.texts.sentences import captions_of, questions_of
from granary.synth.pug.texts.templates import SOUGHT, check_question, check_sought, check_template
from granary.synth.pug.world.content.imports import FORMATS, files_of

LABELS = ("character_label", "character_name")
OWN_COLUMNS = ("row_id", "split", "objects", "questions", "polls", "mask", "depth", "depth_view", "normals")
NAMES_OF_BOTH = ("character_name", "character2_name")


@dataclasses.dataclass(frozen=True)
class PlannedRow:
    """A row before there is a picture.

    Args:
        index: in the plan.
        values: of the factor columns.
        id: hash of the values.
        split: train, or where it is held out to.
    """

    index: int
    values: Row
    id: str
    split: str


@dataclasses.dataclass(frozen=True)
class Planned:
    """A checked recipe with its plan.

    Args:
        recipe: with the values of files filled in.
        axes: the factors.
        plan: the rows.
        rules: the splits.
    """

    recipe: RenderRecipe
    axes: tuple[Axis, ...]
    plan: Plan
    rules: tuple[Rule, ...]

    def row(self, index: int) -> PlannedRow:
        """Return a row of the plan."""
        values = self.plan[index]
        return PlannedRow(index, values, row_id(values), split_of(self.rules, index, values))

    def rows_of_splits(self) -> dict[str, NDArray[np.int64]]:
        """Return the indices of the rows of each split that has any, train first, in the order of the plan."""
        if not self.rules:
            return {TRAIN: np.arange(len(self.plan))}
        numbers = {split: number for number, split in enumerate(in_order([TRAIN, *(r.split for r in self.rules)]))}
        of_rows = (numbers[split_of(self.rules, index, self.plan[index])] for index in range(len(self.plan)))
        splits = np.fromiter(of_rows, np.int16, len(self.plan))
        return {split: rows for split, number in numbers.items() if len(rows := np.flatnonzero(splits == number))}

    def scene(self, row: PlannedRow) -> SceneSpec:
        """Return what a row asks of the renderer."""
        image = self.recipe.image
        return scene_of(row.values, self.recipe.scene, (image.width, image.height), self.recipe.assets)

    @property
    def label(self) -> str:
        """The column that is the label; "" for none."""
        if self.recipe.label:
            return self.recipe.label
        return next((column for column in LABELS if column in self.plan.columns), "")

    @functools.cached_property
    def classes(self) -> list[str]:
        """The names of the labels; none where they are measures, or more than a ClassLabel should have."""
        if not self.label or self.column_types[self.label] == "float64":
            return []
        return class_names((str(part[self.label]) for part in self.parts() if self.label in part), absent=())

    def class_of(self, row: PlannedRow) -> str | int | None:
        """Return what a sample of a row has as its label: the number of its class, or text without classes."""
        if not self.label:
            return None
        label = str(row.values[self.label])
        return self._class_numbers[label] if self.classes else label

    @functools.cached_property
    def _class_numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def captions(self, row: PlannedRow) -> list[str]:
        """Return the captions of a row."""
        options = self.recipe.captions
        if options.style == "spar":
            return row_captions(row.values)
        if options.style == "sentences":
            return captions_of(self.facts(row), row.values, options, self._draw(row))
        return [template.format_map(row.values) for template in options.templates]

    def facts(self, row: PlannedRow) -> PictureFacts:
        """Return what language can say of a row."""
        return facts_of(row.values, self.scene(row), self.recipe.scene, self.recipe.words)

    def questions(self, row: PlannedRow) -> list[QuestionRow]:
        """Return the questions about a row, with their answers."""
        return questions_of(self.facts(row), row.values, self.recipe.questions, self._draw(row))

    def polls(self, row: PlannedRow, common: Commonness) -> list[PollRow]:
        """Return the questions whether objects are in the picture of a row.

        Args:
            common: how often each object is in the pictures of the plan.
        """
        return polls_of(self.objects(row), common, self.recipe.polls, self._draw(row))

    def objects(self, row: PlannedRow) -> list[str]:
        """Return the words for what stands in the picture of a row."""
        return [thing.words for thing in self.facts(row).things]

    def _draw(self, row: PlannedRow) -> str:
        return f"{self.recipe.seed}/{row.id}"

    @functools.cached_property
    def column_types(self) -> dict[str, str]:
        """Return for each factor column int64, float64 or string."""
        seen: dict[str, set[type]] = {column: set() for column in self.plan.columns}
        for part in self.parts():
            for column, value in part.items():
                seen[column].add(type(value))
        for axis in self.axes:
            if axis.continuous:
                seen[axis.name].add(float)
        return {column: _column_type(kinds) for column, kinds in seen.items()}

    def parts(self) -> Iterator[Mapping[str, Value]]:
        """Yield rows or parts of rows that hold every value there is."""
        if isinstance(self.plan, Listed):
            yield from self.plan
            return
        for axis in self.axes:
            yield from axis.levels
            if axis.default is not None:
                yield axis.default
        if VARIED in self.plan.columns:
            yield {VARIED: ""}

    def features(self) -> Any:
        """Return the `datasets.Features` of the samples."""
        from datasets import Image, List, Value

        outputs = self.recipe.outputs
        extra: dict[str, Any] = {"row_id": Value("string"), "split": Value("string")}
        extra |= {column: Value(kind) for column, kind in self.column_types.items()}
        extra["objects"] = List({"name": Value("string"), "box": List(Value("int32")), "pixels": Value("int32")})
        if self.recipe.questions.kinds:
            extra["questions"] = question_feature()
        if self.recipe.polls.kinds:
            extra["polls"] = poll_feature()
        if outputs.mask:
            extra["mask"] = Image()
        if outputs.depth:
            extra["depth"] = Value("binary")
            extra["depth_view"] = Image()
        if outputs.normals:
            extra["normals"] = Image()
        return sample_features(extra, self.classes)


def _column_type(kinds: Iterable[type]) -> str:
    kinds = set(kinds)
    if str in kinds or not kinds:
        return "string"
    return "float64" if float in kinds else "int64"


def planned(recipe: RenderRecipe) -> Planned:
    """Check a recipe and return its plan; raises UserError."""
    factors = {name: inlined(name, factor) for name, factor in recipe.factors.items()}
    recipe = recipe.model_copy(update={"factors": factors})
    axes = axes_of(factors)
    plan = plan_of(recipe.plan, axes, recipe.seed)
    rules = rules_of(recipe.splits, axes, plan.columns, len(plan), recipe.seed)
    result = Planned(recipe, axes, plan, tuple(rules))
    _check_columns(result)
    _check_outputs(result)
    _check_renderer(recipe)
    return result


def _check_columns(work: Planned) -> None:
    base = set(sample_features()) | set(OWN_COLUMNS)
    for column in work.plan.columns:
        if column in base:
            raise UserError(f"factors.{column}: every sample has a column of that name; give the factor another")
    for axis in work.axes:
        bounds: list[Level] = [{axis.name: axis.low}, {axis.name: axis.high}] if axis.continuous else []
        for level in (*axis.levels, *([axis.default] if axis.default else []), *bounds):
            _check_values(f"factors.{axis.name}", level, work.recipe)
    for part in work.plan if isinstance(work.plan, Listed) else ():
        _check_values("plan.rows", part, work.recipe)
    if not work.recipe.scene.world and "world_name" not in work.plan.columns:
        raise UserError("scene.world: missing; name the world, or give a factor world_name")
    if not work.recipe.scene.character and "character_name" not in work.plan.columns:
        raise UserError("scene.character: missing; name the character, or give a factor character_name")


def _check_values(key: str, values: Mapping[str, Value], recipe: RenderRecipe) -> None:
    for column, value in values.items():
        if wrong := problem(column, value, recipe.scene):
            raise UserError(f"{key}: {column} cannot be {value!r}: {wrong}")


def _check_outputs(work: Planned) -> None:
    recipe, columns = work.recipe, work.plan.columns
    if recipe.label and recipe.label not in columns:
        raise UserError(f"label: there is no column {recipe.label}; the columns are {', '.join(columns)}")
    _check_texts(recipe, columns)


def _check_texts(recipe: RenderRecipe, columns: Sequence[str]) -> None:
    captions, questions, polls, quads = recipe.captions, recipe.questions, recipe.polls, recipe.quads
    if captions.style == "templates" and not captions.templates:
        raise UserError("captions.templates: missing; captions.style: templates writes each of them")
    if captions.templates and captions.style not in ("templates", "sentences"):
        raise UserError(
            f"captions.style: {captions.style} reads no captions.templates; give templates or sentences, or leave them"
        )
    for template in captions.templates:
        check_template("captions.templates", template, FIELDS if captions.style == "sentences" else (), columns)
    for kind, templates in questions.templates.items():
        for template in templates:
            check_template(f"questions.templates.{kind}", template, FIELDS, columns)
            check_question(kind, template)
    for exchange, template in quads.templates.items():
        check_template(f"quads.templates.{exchange}", template, FIELDS, ())
    for sought, templates in recipe.videos.templates.items():
        for template in templates:
            check_template(f"videos.templates.{sought}", template, SOUGHT, ())
            check_sought(sought, template)
    check_template("polls.template", polls.template, ("object",), ())
    if quads.kinds and not set(NAMES_OF_BOTH) <= set(columns):
        raise UserError(f"quads.kinds: a quad needs two things; give the factors {' and '.join(NAMES_OF_BOTH)}")


def _check_renderer(recipe: RenderRecipe) -> None:
    options = recipe.renderer
    if options.kind == "embedded" and (options.addresses or options.binary):
        raise UserError(
            "renderer.kind: the embedded world has no addresses and no binary; give --renderer.kind unrealcv"
        )
    if options.kind == "unrealcv" and bool(options.addresses) == bool(options.binary):
        raise UserError("renderer.addresses: give the addresses of running servers, or renderer.binary to launch some")
    if options.binary is not None and not os.access(options.binary, os.X_OK):
        raise UserError(f"renderer.binary: {options.binary} is no file that can be run; give the game's executable")
    for name, path in recipe.meshes.items():
        where, right = absolute(path), ", ".join(FORMATS)
        if not path.lower().endswith(FORMATS) or not storage.is_local(path) or not NAME.fullmatch(where):
            raise UserError(
                f"meshes.{name}: {path} is not right; give a local file ({right}) without spaces in its path"
            )
        if not os.path.isfile(where):
            raise UserError(f"meshes.{name}: there is no file {path}; right are files that end in {right}")


def mesh_paths(recipe: RenderRecipe) -> dict[str, str]:
    """Return the absolute paths of the user's meshes."""
    return {name: absolute(path) for name, path in recipe.meshes.items()}


def mesh_hashes(recipe: RenderRecipe) -> dict[str, str]:
    """Return the SHA-256 of the user's meshes, with the materials and pictures that they name, for digests."""
    return {name: _hash_of(files_of(path)) for name, path in mesh_paths(recipe).items()}


def _hash_of(files: Sequence[pathlib.Path]) -> str:
    state = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest_of(opened, state)
    return state.hexdigest()


def missing_assets(work: Planned, assets: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Return by kind the names the recipe shows that the renderer lacks; kinds it does not list are not judged."""
    named_assets = named(work.parts(), work.recipe.scene)
    shown = work.recipe.assets
    missing = {}
    for kind, names in named_assets.items():
        if kind in assets:
            known = {*assets[kind], *(work.recipe.meshes if kind == "objects" else ())}
            lacking = sorted({shown.get(name, name) for name in names} - known)
            if lacking:
                missing[kind] = lacking
    return missing


def check_assets(work: Planned, assets: Mapping[str, Collection[str]]) -> None:
    """Raise UserError with the list of names that the renderer lacks."""
    missing = missing_assets(work, assets)
    if missing:
        lists = "; ".join(f"{kind} {', '.join(names)}" for kind, names in missing.items())
        have = "; ".join(f"{kind} {', '.join(sorted(assets[kind]))}" for kind in missing)
        raise UserError(
            f"factors: the renderer does not have these {lists}. It has {have}. "
            "Say under `assets:` what to show instead of each (NAME: OTHER), add `meshes:`, or use your own Unreal"
        )
