"""The steps that draw: guided samples, a few without feedback for comparison, and the nearest real picture of each."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from granary.curation.encoders.planned import PlannedEncoder, encoder_of
from granary.curation.images.limits import DecodeLimits
from granary.curation.runs.run import Output, Run
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import Layout, load
from granary.curation.selection.search import top_k
from granary.curation.steps.unreadable import why_dead
from granary.synth.feedback.lending import SamplerSpec, borrowed
from granary.synth.feedback.plan import row_seed
from granary.synth.feedback.real import read_pictures
from granary.synth.feedback.requests import Drawn, Request
from granary.synth.feedback.steps import PlanRow

if TYPE_CHECKING:  # its module loads diffusers, which only a worker needs
    from granary.synth.feedback.sampler import Sampler

COMPARED = 65_536  # real pictures compared at a time
DRAWN = pa.schema(
    [
        ("row_id", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("seed", pa.int64()),
        ("id", pa.string()),
        ("image", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("value", pa.float32()),
        ("trace", pa.list_(pa.float32())),
        ("predicted", pa.string()),
        ("probability", pa.float32()),
        ("hit", pa.bool_()),
        ("skipped", pa.int32()),
    ]
)
NEAREST = pa.schema(
    [
        ("row_id", pa.string()),
        ("status", pa.string()),
        ("nearest_id", pa.string()),
        ("nearest_index", pa.int64()),
        ("similarity", pa.float32()),
        ("copy", pa.bool_()),
    ]
)


class DrawnRow(TypedDict, total=False):
    """A row of the stages `draw` and `unguided`, see `DRAWN`; a dead one lacks what is known of pictures alone."""

    row_id: str
    status: str
    reason: str
    message: str
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


class NearestRow(TypedDict, total=False):
    """A row of the stage `nearest`, see `NEAREST`; a dead one lacks the picture and the similarity."""

    row_id: str
    status: str
    nearest_id: str
    nearest_index: int
    similarity: float
    copy: bool


# -- drawing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawOptions:
    """How rows are drawn.

    Args:
        sampler: draws them.
        seed: of the run.
        decode: limits on what is decoded of the conditioning pictures.
    """

    sampler: SamplerSpec
    seed: int
    decode: DecodeLimits


@dataclass(frozen=True)
class DrawUnit:
    """The job of `draw`.

    Args:
        unit: of the plan.
        options: how it is drawn.
    """

    unit: int
    options: DrawOptions


def draw(run: Run, job: DrawUnit, output: Output) -> None:
    """Draw the rows of one unit of the plan; a picture that is not finite is drawn once more, then dead."""
    plan = read_table(run.parts("plan")[0], group=job.unit).to_pylist()
    _write_drawn(run, job.options, plan, output)


@dataclass(frozen=True)
class UnguidedPairs:
    """The job of `draw_unguided`.

    Args:
        pairs: number of rows.
        options: how they are drawn, without feedback.
    """

    pairs: int
    options: DrawOptions


def draw_unguided(run: Run, job: UnguidedPairs, output: Output) -> None:
    """Draw a few rows of the plan without feedback, from the same seeds: the classes by turns."""
    path, seen, turns = run.parts("plan")[0], Counter[str](), []
    for position, label in enumerate(read_table(path, ["label"])["label"].to_pylist()):
        turns.append((seen[label], label, position))
        seen[label] += 1
    chosen = sorted(position for *_, position in sorted(turns)[: job.pairs])
    _write_drawn(run, job.options, read_table(path).take(pa.array(chosen, pa.int64())).to_pylist(), output)


def _write_drawn(run: Run, options: DrawOptions, plan: Sequence[PlanRow], output: Output) -> None:
    requests, dead = _requests(run, plan, options.decode)
    with borrowed(run, options.sampler) as sampler:
        drawn = draw_twice(sampler, list(requests.values()), options.seed, options.sampler.sampling.batch)
        names = sampler.classifier_classes
    rows = []
    for planned in plan:
        key = planned["row_id"]
        row = dead.get(key) or _drawn_row(*drawn[key], names)
        output.counters[row["status"]] += 1
        output.counters["drawn again"] += row["seed"] != planned["seed"]
        output.counters["skipped steps"] += row.get("skipped", 0)
        rows.append(row)
    output.write(pa.Table.from_pylist(rows, DRAWN))


def _requests(
    run: Run, plan: Sequence[PlanRow], limits: DecodeLimits
) -> tuple[dict[str, Request], dict[str, DrawnRow]]:
    """Return the requests of the plan by row, and the rows that are dead: their conditioning picture is gone."""
    conditioned = [row for row in plan if row["condition"] >= 0]
    pictures = read_pictures(run, [row["condition"] for row in conditioned], limits)
    conditions: dict[str, Image.Image] = {}
    dead: dict[str, DrawnRow] = {}
    for row, picture in zip(conditioned, pictures, strict=True):
        if isinstance(picture, Image.Image):
            conditions[row["row_id"]] = picture
        else:
            dead[row["row_id"]] = _dead_row(row["row_id"], row["seed"], **why_dead(picture))
    requests = {row["row_id"]: _request(row, conditions) for row in plan if row["row_id"] not in dead}
    return requests, dead


def _request(row: PlanRow, conditions: dict[str, Image.Image]) -> Request:
    condition = conditions.get(row["row_id"])
    return Request(row["row_id"], row["seed"], row["model_class"], row["target"], row["prompt"], condition)


def draw_twice(
    sampler: Sampler, requests: Sequence[Request], seed: int, batch: int
) -> dict[str, tuple[Request, Drawn]]:
    """Draw, and once more with another seed what is not finite; returns the last request and result of every row."""
    results: dict[str, tuple[Request, Drawn]] = {}
    for attempt in range(2):
        left = [request for request in requests if not _is_finite(results.get(request.row_id))]
        left = [dataclasses.replace(request, seed=row_seed(seed, request.row_id, attempt)) for request in left]
        if left:
            results |= {r.row_id: (r, drawn) for r, drawn in zip(left, sampler.draw(left, batch), strict=True)}
    return results


def _is_finite(result: tuple[Request, Drawn] | None) -> bool:
    return result is not None and math.isfinite(result[1].value)


def _dead_row(row_id: str, seed: int, reason: str, message: str) -> DrawnRow:
    return DrawnRow(row_id=row_id, seed=seed, status="dead", reason=reason, message=message)


def _drawn_row(request: Request, drawn: Drawn, names: Sequence[str]) -> DrawnRow:
    """Return what is written of a row that was drawn."""
    if not math.isfinite(drawn.value):
        message = "the picture or the criterion is no finite number, twice"
        return _dead_row(request.row_id, request.seed, "NotFinite", message)
    buffer = io.BytesIO()
    Image.fromarray(drawn.image).save(buffer, "PNG")
    return DrawnRow(
        row_id=request.row_id,
        status="ok",
        seed=request.seed,
        id=hashlib.sha256(buffer.getvalue()).hexdigest()[:32],
        image=buffer.getvalue(),
        width=drawn.image.shape[1],
        height=drawn.image.shape[0],
        value=drawn.value,
        trace=list(drawn.trace),
        predicted=names[drawn.predicted],
        probability=drawn.probability,
        hit=drawn.predicted == request.target,
        skipped=drawn.skipped,
    )


# -- comparing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """The job of `nearest_real`.

    Args:
        part: of the drawn samples.
        encoder: the copy descriptor.
        device: auto, cpu, cuda or cuda:N.
        threshold: a cosine above it is a copy.
        drop: leave copies out.
    """

    part: int
    encoder: PlannedEncoder
    device: str
    threshold: float
    drop: bool


def nearest_real(run: Run, job: Comparison, output: Output) -> None:
    """Find for every sample of one unit the real picture it resembles most, and say whether it is a copy of it."""
    drawn = run.read("draw", job.part, ["row_id", "status", "image"]).to_pylist()
    neighbours = _neighbours(run, [row for row in drawn if row["status"] == "ok"], job)
    rows = []
    for row in drawn:
        compared = NearestRow(row_id=row["row_id"], status=row["status"]) | neighbours.get(row["row_id"], {})
        compared["copy"] = compared.get("similarity", 0.0) > job.threshold
        if compared["copy"] and job.drop:
            compared["status"] = "dropped"
        output.counters[compared["status"]] += 1
        output.counters["copies"] += compared["copy"]
        rows.append(compared)
    output.write(pa.Table.from_pylist(rows, NEAREST))


def _neighbours(run: Run, alive: Sequence[DrawnRow], job: Comparison) -> dict[str, NearestRow]:
    """Return the nearest real picture of each sample by its row."""
    encoder = encoder_of(job.encoder, job.device)
    vectors = encoder.embed([Image.open(io.BytesIO(row["image"])).convert("RGB") for row in alive])
    similarities, indices = _nearest(vectors, Layout.of(run, "data"))
    ids = Layout.of(run, "data").take(indices, ["id"])["id"].to_pylist()
    return {
        row["row_id"]: NearestRow(nearest_id=identity, nearest_index=int(index), similarity=float(similarity))
        for row, identity, index, similarity in zip(alive, ids, indices, similarities, strict=True)
    }


def _nearest(vectors: NDArray[np.float32], layout: Layout) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the largest cosine of each row of (n, d) with a real picture, and that picture's global index."""
    best, nearest = np.full(len(vectors), -np.inf, np.float32), np.zeros(len(vectors), np.int64)
    for block in layout.blocks(COMPARED) if len(vectors) else []:
        indices, real = load(layout, block)
        if len(real):
            similarities, neighbours = top_k(vectors, real, indices, 1)
            better = similarities[:, 0] > best
            best[better], nearest[better] = similarities[better, 0], neighbours[better, 0]
    return best, nearest
