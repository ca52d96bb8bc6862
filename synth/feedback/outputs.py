"""The steps that write the dataset, the ledger and the dead letters of a sampling run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict, cast

import pyarrow as pa

from granary.curation.runs import dead_letters
from granary.curation.runs.dead_letters import dead_rows
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run
from granary.curation.runs.tables import read_table
from granary.curation.store import schema
from granary.synth.feedback.drawing import DRAWN
from granary.synth.feedback.plan import Cell
from granary.synth.feedback.real import real_pictures
from granary.synth.feedback.recipe import Groups
from granary.synth.feedback.steps import read_cells

if TYPE_CHECKING:
    from datasets import Features

MEANINGS = {
    "id": "first 32 hex characters of the SHA-256 of the PNG file",
    "image": "the sample as a PNG file",
    "label": "the class it was drawn for, as the training data names it",
    "captions": "the prompt, where the model takes one",
    "source": "`sample`, and the row in the ledger",
    "row_id": "identity of the planned row: a hash of run seed, class, group and number",
    "class": "the same as label",
    "group": "the group it was drawn for; empty where the training data has none",
    "prompt": "what a text-to-image model was told; else empty",
    "seed": "of the noise the sample came from",
    "omega": "feedback scale; 0 is the plain model",
    "criterion": "what the feedback raised: loss, entropy or hardness of the classifier",
    "criterion_value": "the criterion of the finished sample, nats",
    "criterion_trace": "the criterion at each feedback step, of the sample as it was foreseen then",
    "predicted_label": "the classifier's first choice for the finished sample",
    "predicted_probability": "and its probability",
    "conditioning_id": "id of the training image that the model was conditioned on, if any",
    "nearest_real_id": "id of the training image it resembles most",
    "nearest_real_similarity": "cosine of their copy descriptors",
    "copy": "whether that similarity is above the bound of the recipe",
}


def sampled_features(classes: Sequence[str] = ()) -> Features:
    """Return the `datasets.Features` of a drawn sample.

    Args:
        classes: see `schema.class_names`.
    """
    from datasets import List, Value

    text, number = Value("string"), Value("float32")
    return schema.sample_features(
        {
            "row_id": text,
            "class": text,
            "group": text,
            "prompt": text,
            "seed": Value("int64"),
            "omega": number,
            "criterion": text,
            "criterion_value": number,
            "criterion_trace": List(number),
            "predicted_label": text,
            "predicted_probability": number,
            "conditioning_id": text,
            "nearest_real_id": text,
            "nearest_real_similarity": number,
            "copy": Value("bool"),
        },
        classes,
    )


def drawn_classes(run: Run) -> list[str]:
    """Return the names of the classes that samples are drawn for; none where labels stay text."""
    return schema.class_names(cell.label for cell in read_cells(run))


class SampleRow(TypedDict):
    """What the plan, the drawing and the comparison say of a row; of a dead one they know neither picture nor copy.

    In a dead row all that is told of a picture is None; in one that was drawn, reason and message are.
    """

    row_id: str
    label: str
    group: str
    prompt: str
    target: int
    condition_id: str | None
    status: Literal["ok", "dropped", "dead"]
    reason: str | None
    message: str | None
    seed: int
    id: str
    image: bytes
    width: int
    height: int
    value: float
    trace: list[float]
    predicted: str
    probability: float
    hit: bool
    skipped: int
    nearest_id: str
    nearest_index: int
    similarity: float
    copy: bool


def sample_rows(run: Run, unit: int, images: bool = True) -> Iterator[SampleRow]:
    """Yield what is known of each row of a unit; without `image` unless `images`."""
    columns = None if images else [name for name in DRAWN.names if name != "image"]
    plan = read_table(run.parts("plan")[0], group=unit).drop_columns(["seed"])
    nearest = run.read("nearest", unit).drop_columns(["row_id"])
    tables = (plan, run.read("draw", unit, columns), nearest)
    for planned, drawn, compared in zip(*(table.to_pylist() for table in tables), strict=True):
        yield cast(SampleRow, {**planned, **drawn, **compared})


# -- the dataset -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardUnits:
    """The units of one shard: the job of `write_shard`.

    Args:
        start, stop: range of units.
        row_group: samples in a row group.
        omega, criterion: of the guidance, noted in every sample.
    """

    start: int
    stop: int
    row_group: int
    omega: float
    criterion: str


def write_shard(run: Run, job: ShardUnits, output: Output) -> None:
    """Write the samples of a few consecutive units."""
    classes = drawn_classes(run)
    numbers = {name: number for number, name in enumerate(classes)}
    groups = RowGroups(output, schema.arrow_schema(sampled_features(classes)), job.row_group)
    for unit in range(job.start, job.stop):
        for row in sample_rows(run, unit):
            if row["status"] == "ok":
                label = numbers[row["label"]] if classes else row["label"]
                groups.add({**_sample(row, job), "label": label}, len(row["image"]))
    groups.close()


def _sample(row: SampleRow, job: ShardUnits) -> dict[str, object]:
    kept = ("id", "width", "height", "row_id", "group", "prompt", "seed", "copy")
    return {
        **{column: value for column, value in row.items() if column in kept},
        "image": {"bytes": row["image"], "path": f"{row['row_id']}.png"},
        "captions": [row["prompt"]] if row["prompt"] else [],
        "source": {"name": "sample", "uri": uri_of(row["row_id"])},
        "class": row["label"],
        "omega": job.omega,
        "criterion": job.criterion,
        "criterion_value": row["value"],
        "criterion_trace": row["trace"],
        "predicted_label": row["predicted"],
        "predicted_probability": row["probability"],
        "conditioning_id": row["condition_id"],
        "nearest_real_id": row["nearest_id"],
        "nearest_real_similarity": row["similarity"],
    }


def uri_of(row_id: str) -> str:
    """Return what the ledger calls a planned row."""
    return f"sample/{row_id}"


# -- the ledger ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LedgerPart:
    """The job of `write_ledger`.

    Args:
        role: whose rows: of a unit of samples, or of a part of the data.
        part: its number.
        groups: what divides a class.
    """

    role: Literal["sample", "data"]
    part: int
    groups: Groups


def write_ledger(run: Run, job: LedgerPart, output: Output) -> None:
    """Write the ledger rows of one unit of samples or of one part of the data."""
    if job.role == "sample":
        rows = [_sample_verdict(row) for row in sample_rows(run, job.part, images=False)]
    else:
        rows = list(_data_verdicts(run, job.groups, job.part))
    output.counters.update(f"{job.role} {row['status']}" for row in rows)
    output.write(pa.Table.from_pylist(rows, schema.LEDGER))


def _sample_verdict(row: SampleRow) -> dict[str, object]:
    stage, reason = _why(row)
    return {
        "uri": uri_of(row["row_id"]),
        "id": row["id"],
        "role": "sample",
        "status": "kept" if row["status"] == "ok" else row["status"],
        "stage": stage,
        "reason": reason,
        "representative": row["nearest_id"],
        "similarity": row["similarity"],
        "seed_ids": [row["condition_id"]] if row["condition_id"] else [],
        "similarities": [],
    }


def _why(row: SampleRow) -> tuple[str, str]:
    """Return the stage that decided about a row, and the reason."""
    if row["status"] == "dead":
        return "draw", f"{row['reason']}: {row['message']}"
    if row["status"] == "dropped":
        return "nearest", "a copy of a real picture"
    reason = f"drawn as {row['label']}"
    return "shards", f"{reason}, flagged as a copy of a real picture" if row["copy"] else reason


def _data_verdicts(run: Run, groups: Groups, part: int) -> Iterator[dict[str, object]]:
    cells = {picture.row["uri"]: picture.cell for picture in real_pictures(run, groups, part)}
    for row in run.read("data", part, ["uri", "id", "sha256", "status", "reason", "message"]).to_pylist():
        cell = cells.get(row["uri"])
        verdict = {"status": "kept", "stage": "cells", "reason": "counted"}
        if cell is None:
            verdict = {"status": "dead", "stage": "decode", "reason": f"{row['reason']}: {row['message']}"}
        elif not isinstance(cell, Cell):
            verdict = {"status": "dropped", "stage": "cells", "reason": cell}
        facts = {column: row[column] for column in ("uri", "id", "sha256")}
        yield {"role": "data", **facts, **verdict, "seed_ids": [], "similarities": []}


# -- the dead letters ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadRoles:
    """The job of `write_dead_letters`.

    Args:
        roles: those that have sources.
    """

    roles: tuple[str, ...]


def write_dead_letters(run: Run, job: ReadRoles, output: Output) -> None:
    """Collect the real pictures that could not be read, and the rows that could not be drawn."""
    unread = [letter for role in job.roles for letter in dead_rows(run, role, "decode")]
    undrawn = [letter._replace(uri=uri_of(letter.uri)) for letter in dead_rows(run, "draw", "draw", "row_id")]
    dead_letters.write_dead_letters([*unread, *undrawn], output)
