"""Déjà vu of image-text models: what two of them know of the pictures of captions that one of them was trained on.

Jayaraman et al. 2024 (arXiv 2402.02103). The data are a run of `granary partition` with captions. Each model is asked
by a caption of every picture of parts A and B for the public pictures (part X, those with captions) that score highest
with it, and is taken to say what most of these show. The gap is how much better the model does that was trained on the
part.

The population gaps of precision and recall are those of the released code (facebookresearch/VLMDejaVu), and its gap of
areas under the curve of recall is, but for the bins of a histogram, `recall.gap_100`. Otherwise it differs: it takes
all that the neighbours show to be said, as does `most` where it is large enough; it ranks captions once for both
models, by what the target gets right or is surest of, and has F1 of the means, where here each model ranks by its own
scores, so that none is chosen by its result, and F1 is a mean; it attacks one part, here two; k is 100 by default and
10 in its commands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import Field

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.boxes import USUAL
from granary.training.data.collate import Part
from granary.training.data.loader import read_row
from granary.training.data.tokenizer import filled
from granary.training.evaluation.features import distinct
from granary.training.evaluation.pairs import COLUMNS, encode_rows, load_image_text_model
from granary.training.evaluation.parts import Parts, check_apart, check_roles, opened_parts
from granary.training.evaluation.protocol import Measured, Protocol, ScorerOptions
from granary.training.evaluation.recovery import (
    MEASURES,
    Asked,
    Recovered,
    better,
    gap,
    most_memorised,
    names_of,
    nearest_pictures,
    recovered,
)
from granary.training.evaluation.scores import DeadLetter, Scores, Whole, Words
from granary.training.evaluation.trained import check_twins

LABEL = "label"
NOTES = (
    "MEASURE.gap_P: precision, recall or F1 of the objects that the target names, less that of the reference, each "
    "over the P % of the captions that it is surest of, mean over parts A and B; .error: its standard error.",
)


class CaptionDejaVuOptions(ScorerOptions, frozen=True):
    """Options of the déjà vu test of image-text models."""

    reference: str | None = Field(
        None, description="the model trained on part B where --model was on part A, by the same recipe"
    )
    k: int = Field(10, ge=1, description="public pictures that vote")
    most: int = Field(10, ge=1, description="objects that are named at most, those of most votes")
    percent: Whole = Field(
        (100, 20), min_length=1, description="of the captions, those that a model is surest of by its scores"
    )
    objects: Words = Field(
        (),
        description="columns of what pictures show: names, or records with a `name`, several together; default: "
        f"{USUAL[1]}, else {LABEL}",
    )
    examples: int = Field(20, ge=0, description="pictures of each part that the JSON lists as known by heart")


class Pictures(NamedTuple):
    """The captioned pictures of a part.

    Args:
        ids, captions: m, the first caption of each.
        objects: m sets of names, none of them empty.
        without_captions, without_objects: pictures that were left out.
    """

    ids: list[str]
    captions: list[str]
    objects: list[frozenset[str]]
    without_captions: int
    without_objects: int


class Said(NamedTuple):
    """What a model says: of each part; how many public pictures there were, and which cannot be decoded."""

    answers: Mapping[str, Recovered]
    public: int
    dead: list[DeadLetter]


def evaluate(measured: Measured, options: CaptionDejaVuOptions) -> Scores:
    """Ask two models by the captions of parts A and B, and compare; `split` narrows the attacked pictures alone.

    Returns:
        MEASURE.gap_P for precision, recall and f1 with `.error`, the means `.target` and `.reference`, and the gaps
        `.A` and `.B`; MEASURE.population, the share of the captions with which the target does better less that with
        which the reference does, with both; pictures with counts.

    Raises:
        UserError: the run has no parts, no captions or no objects, the models are no twins, or know what they should
            not.
    """
    _check(options)
    models = measured.model, str(options.reference)
    check_twins(*models)
    parts = opened_parts(measured, "caption-dejavu", ("image", "captions"))
    columns = objects_columns(parts, options.objects)
    check_apart(parts)
    notes = check_roles(parts, *models)
    attacked = {part: pictures_of(dataset, columns, measured.limit) for part, dataset in parts.attacked.items()}
    target, reference = (_asked(measured, options, parts.public, columns, attacked, name) for name in models)
    if options.k > target.public:
        notes.append(f"k = {options.k}: there are only {target.public:,} public pictures; all vote")
    one, other = target.answers, reference.answers
    directions = [Asked(one["A"], other["A"]), Asked(other["B"], one["B"])]
    scores = {**dict(_scores(directions, options, measured.seed)), **_counts(attacked, target)}
    memorised = {
        part: most_memorised(direction, dict(zip(some.ids, some.objects, strict=True)), options.examples)
        for (part, some), direction in zip(attacked.items(), directions, strict=True)
    }
    settings = {"objects": list(columns), "memorised": memorised, "dead": target.dead}
    return Scores(scores, notes, settings)


PROTOCOL = Protocol(evaluate, CaptionDejaVuOptions, ("split", "batch", "limit", "seed"), notes=NOTES)


def _check(options: CaptionDejaVuOptions) -> None:
    """Raise UserError for options that leave nothing to do."""
    if options.reference is None:
        raise UserError("options.reference: missing; give the model that was trained on part B by the same recipe")
    if not all(0 < number <= 100 for number in options.percent):
        raise UserError(f"options.percent: {options.percent} is not right; give numbers above 0, at most 100")


def objects_columns(parts: Parts, given: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of what pictures show. Raises UserError where there are none."""
    known = parts.public.columns
    missing = [name for name in given if name not in known]
    if missing:
        raise UserError(f"options.objects: {parts.public.path} has no column {missing[0]!r}; it has {', '.join(known)}")
    usual = [name for name in (USUAL[1], LABEL) if name in known][:1]
    if not given and not usual:
        raise UserError(
            f"data: {parts.public.path} has no column {USUAL[1]} or {LABEL} of what pictures show; name one by "
            "--options.objects"
        )
    return tuple(given or usual)


def pictures_of(dataset: shards.Dataset, columns: Sequence[str], limit: int | None = None) -> Pictures:
    """Return what is known of the pictures of a part, without those that have no caption or show nothing.

    Args:
        dataset: opened.
        columns: of objects.
        limit: rows at most.

    Raises:
        UserError: none is left.
    """
    ids, captions, objects = list[str](), list[str](), list[frozenset[str]]()
    blank = bare = 0
    for row in _rows(dataset, ("captions", *columns), limit):
        texts, names = filled(row["captions"]), _objects(row, columns, dataset.path)
        if texts and names:
            ids.append(row["key"])
            captions.append(texts[0])
            objects.append(names)
        blank += not texts
        bare += bool(texts) and not names
    if not ids:
        raise UserError(
            f"data: no picture of {dataset.path} has a caption and objects in {', '.join(columns)}: "
            f"{blank:,} have no caption, {bare:,} no objects"
        )
    return Pictures(distinct(ids), captions, objects, blank, bare)


def _rows(dataset: shards.Dataset, columns: Sequence[str], limit: int | None) -> Iterator[Part]:
    """Yield the rows of a dataset without their pictures."""
    left = dataset.count if limit is None else limit
    there = [name for name in dict.fromkeys((*COLUMNS, *columns)) if name in dataset.columns]
    for group in dataset.groups:
        rows = shards.GroupRows(shards.read_group(group, there))
        yield from (read_row(rows, number, columns) for number in range(min(rows.count, left)))
        left -= min(rows.count, left)


def _objects(row: Part, columns: Sequence[str], where: str) -> frozenset[str]:
    """Return what a picture shows, by all columns together."""
    return frozenset[str]().union(*(names_of(row[name], f"{name} of {where}") for name in columns))


def _asked(
    measured: Measured,
    options: CaptionDejaVuOptions,
    public: shards.Dataset,
    columns: Sequence[str],
    attacked: Mapping[str, Pictures],
    name: str,
) -> Said:
    """Return what a model says of the pictures of every part.

    Args:
        measured, options: how.
        public: the public pictures.
        columns: of objects.
        attacked: the parts.
        name: of the model.
    """
    model = load_image_text_model(name, measured.device, measured.dtype, options.scorer)
    encoded = encode_rows(model, public, "captions", (), measured.batch, measured.limit, columns)
    ids = distinct([row["key"] for row in encoded.rows])
    shown = [_objects(row, columns, public.path) for row in encoded.rows]
    answers = {}
    for part, pictures in attacked.items():
        scores = model.scores(encoded.vectors, model.texts(pictures.captions))
        neighbours, best = nearest_pictures(scores, ids, min(options.k, len(ids)), measured.seed)
        given = pictures.objects, pictures.ids, options.most, measured.seed
        answers[part] = recovered(neighbours, best.mean(dim=1), shown, *given)
    return Said(answers, len(ids), encoded.dead)


def _scores(
    directions: Sequence[Asked], options: CaptionDejaVuOptions, seed: int
) -> Iterator[tuple[str, float | None]]:
    """Yield the gaps."""
    for measure in MEASURES:
        for percent in options.percent:
            yield from gap(directions, measure, percent / 100, seed).told(f"{measure}.gap_{percent}")
        if measure != "f1":
            shares = better(directions, measure)
            yield f"{measure}.population", shares["target_better"] - shares["reference_better"]
            yield from ((f"{measure}.population.{name}", share) for name, share in shares.items())


def _counts(attacked: Mapping[str, Pictures], said: Said) -> dict[str, float | None]:
    """Return how many pictures were asked for, and what was left out."""
    return {
        "pictures": sum(len(some.ids) for some in attacked.values()),
        **{f"pictures.{part}": len(some.ids) for part, some in attacked.items()},
        "pictures.without_captions": sum(some.without_captions for some in attacked.values()),
        "pictures.without_objects": sum(some.without_objects for some in attacked.values()),
        "pictures.public": said.public,
        "pictures.unreadable": len(said.dead),
    }
