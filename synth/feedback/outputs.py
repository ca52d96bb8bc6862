"""The steps that write the dataset, the ledger and the dead letters of a sampling run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from granary.curation.runs import dead_letters
from granary.curation.runs.dead_letters import dead_rows
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run, read_table
from granary.curation.store import schema
from granary.synth.feedback.plan import Cell
from granary.synth.feedback.steps import real_pictures

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


def sampled_features() -> Any:
    """Return the `datasets.Features` of a drawn sample."""
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
        }
    )


def sample_rows(run: Run, unit: int, images: bool = True) -> Iterator[dict[str, Any]]:
    """Yield what the plan, the drawing and the comparison say of each row of a unit."""
    drawn = run.read("draw", unit) if images else run.read("draw", unit, _without_image(run, unit))
    nearest = run.read("nearest", unit).drop_columns(["row_id"])
    plan = read_table(run.parts("plan")[0], group=unit).drop_columns(["seed"])
    tables = (plan.to_pylist(), drawn.to_pylist(), nearest.to_pylist())
    for planned, made, compared in zip(*tables, strict=True):
        yield {**planned, **made, **compared}


def _without_image(run: Run, unit: int) -> list[str]:
    from granary.synth.feedback.drawing import DRAWN

    return [name for name in DRAWN.names if name != "image"]


def write_shard(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Write the samples of a few consecutive units. arguments: units [first, last); row_group; omega; criterion."""
    groups = RowGroups(output, schema.arrow_schema(sampled_features()), arguments["row_group"])
    for unit in range(*arguments["units"]):
        for row in sample_rows(run, unit):
            if row["status"] == "ok":
                groups.add(_sample(row, arguments), len(row["image"]))
    groups.close()


def _sample(row: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("id", "width", "height", "label", "row_id", "group", "prompt", "seed", "copy")
    return {
        **{column: row[column] for column in kept},
        "image": {"bytes": row["image"], "path": f"{row['row_id']}.png"},
        "captions": [row["prompt"]] if row["prompt"] else [],
        "source": {"name": "sample", "uri": uri_of(row["row_id"])},
        "class": row["label"],
        "omega": arguments["omega"],
        "criterion": arguments["criterion"],
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


def write_ledger(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Write the ledger rows of one unit of samples (role "sample") or of one part of the data (role "data")."""
    if arguments["role"] == "sample":
        rows = [_sample_verdict(row) for row in sample_rows(run, arguments["part"], images=False)]
    else:
        rows = list(_data_verdicts(run, arguments["groups"], arguments["part"]))
    for row in rows:
        output.counters[f"{row['role']} {row['status']}"] += 1
    output.write(pa.Table.from_pylist(rows, schema.LEDGER))


def _sample_verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    stage, reason = "shards", f"drawn as {row['label']}"
    if row["status"] == "dead":
        stage, reason = "draw", f"{row['reason']}: {row['message']}"
    elif row["status"] == "dropped":
        stage, reason = "nearest", "a copy of a real picture"
    elif row["copy"]:
        reason = f"{reason}, flagged as a copy of a real picture"
    return {
        "uri": uri_of(row["row_id"]),
        "id": row["id"],
        "role": "sample",
        "status": {"ok": "kept"}.get(row["status"], row["status"]),
        "stage": stage,
        "reason": reason,
        "representative": row["nearest_id"],
        "similarity": row["similarity"],
        "seed_ids": [row["condition_id"]] if row["condition_id"] else [],
        "similarities": [],
    }


def _data_verdicts(run: Run, groups: Mapping[str, str], part: int) -> Iterator[dict[str, Any]]:
    cells = {row["uri"]: cell for _, row, cell in real_pictures(run, groups, part)}
    for row in run.read("data", part, ["uri", "id", "sha256", "status", "reason", "message"]).to_pylist():
        cell = cells.get(row["uri"])
        verdict = {"status": "kept", "stage": "cells", "reason": "counted"}
        if cell is None:
            verdict = {"status": "dead", "stage": "decode", "reason": f"{row['reason']}: {row['message']}"}
        elif not isinstance(cell, Cell):
            verdict = {"status": "dropped", "stage": "cells", "reason": cell}
        evidence: dict[str, Any] = {"seed_ids": [], "similarities": []}
        yield {"role": "data", "uri": row["uri"], "id": row["id"], "sha256": row["sha256"], **verdict, **evidence}


def write_dead_letters(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Collect the real pictures that could not be read, and the rows that could not be drawn."""
    unread = [letter for role in arguments["roles"] for letter in dead_rows(run, role, "decode")]
    undrawn = [letter._replace(uri=uri_of(letter.uri)) for letter in dead_rows(run, "draw", "draw", "row_id")]
    dead_letters.write_dead_letters([*unread, *undrawn], output)
