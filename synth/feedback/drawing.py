"""The steps that draw: guided samples, a few without feedback for comparison, and the nearest real picture of each."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from granary.curation.encoders.planned import encoder_of
from granary.curation.runs.run import Output, Run, read_table
from granary.curation.runs.vectors import Layout, load
from granary.curation.selection.search import top_k
from granary.curation.steps.unreadable import why_dead
from granary.synth.feedback.guidance.options import GuidanceOptions
from granary.synth.feedback.plan import row_seed
from granary.synth.feedback.requests import Drawn, Request
from granary.synth.feedback.sampler import Sampler
from granary.synth.feedback.steps import LOADING, read_gaussians, read_pictures

BLOCK = 65_536  # real pictures compared at a time
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

_idle: dict[str, list[Sampler]] = {}
_pool, _accelerator = threading.Lock(), threading.Lock()


def load_sampler(options: Mapping[str, Any], gaussians: Any = None) -> Sampler:
    """Load a sampler from plain data: model, classifier, guidance and the fields of `Sampling` but the batch."""
    from diffusers.utils import logging

    logging.disable_progress_bar()  # of loading
    names = ("steps", "scheduler", "guidance_scale", "image_dropout", "device", "dtype")
    guidance = GuidanceOptions(**options["guidance"])
    chosen = {name: options[name] for name in names}
    with LOADING:
        return Sampler(options["model"], options["classifier"], guidance, **chosen, gaussians=gaussians)


@contextlib.contextmanager
def borrowed(run: Run, options: Mapping[str, Any]) -> Iterator[Sampler]:
    """Lend a sampler to one thread: schedulers remember their step. On an accelerator one thread draws at a time.

    Raises ValueError when the models are not those the run was planned with.
    """
    import torch

    key = json.dumps(options, sort_keys=True)
    shared = torch.cuda.is_available() and options["device"] != "cpu"
    with _accelerator if shared else contextlib.nullcontext():
        with _pool:
            for other in [name for name in _idle if name != key]:
                del _idle[other]  # a stage at a time: models are large
            sampler = _idle[key].pop() if _idle.get(key) else None
        if sampler is None:
            hardness = options["guidance"]["criterion"] == "hardness"
            sampler = load_sampler(options, read_gaussians(run) if hardness else None)
        if sampler.models != options["models"]:
            raise ValueError("model or classifier is not the one this run was planned with: its files differ here")
        try:
            yield sampler
        finally:
            with _pool:
                _idle.setdefault(key, []).append(sampler)


def draw(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Draw the rows of one unit of the plan; a picture that is not finite is drawn once more, then dead."""
    plan = read_table(run.parts("plan")[0], group=arguments["unit"]).to_pylist()
    _write_drawn(run, arguments, plan, output)


def draw_unguided(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Draw a few rows of the plan without feedback, from the same seeds: the classes by turns."""
    path, seen, turns = run.parts("plan")[0], Counter[str](), []
    for position, label in enumerate(read_table(path, ["label"])["label"].to_pylist()):
        turns.append((seen[label], label, position))
        seen[label] += 1
    chosen = sorted(position for *_, position in sorted(turns)[: arguments["pairs"]])
    _write_drawn(run, arguments, read_table(path).take(pa.array(chosen, pa.int64())).to_pylist(), output)


def _write_drawn(run: Run, arguments: Mapping[str, Any], plan: Sequence[dict[str, Any]], output: Output) -> None:
    requests, dead = _requests(run, plan, arguments)
    with borrowed(run, arguments["sampler"]) as sampler:
        drawn = draw_twice(sampler, list(requests.values()), arguments["seed"], arguments["batch"])
        names = sampler.classifier_classes
    rows = []
    for row in plan:
        key = row["row_id"]
        facts = {"row_id": key, "seed": row["seed"], "status": "dead", **dead.get(key, {})}
        if key in drawn:
            facts |= _facts(*drawn[key], names)
        output.counters[facts["status"]] += 1
        output.counters["drawn again"] += facts["seed"] != row["seed"]
        output.counters["skipped steps"] += facts.get("skipped", 0)
        rows.append(facts)
    output.write(pa.Table.from_pylist(rows, DRAWN))


def _requests(
    run: Run, plan: Sequence[dict[str, Any]], arguments: Mapping[str, Any]
) -> tuple[dict[str, Request], dict[str, dict[str, str]]]:
    """Return the requests of the plan by row, and why the other rows are dead: their conditioning picture is gone."""
    conditioned = [row for row in plan if row["condition"] >= 0]
    pictures = read_pictures(run, [row["condition"] for row in conditioned], arguments["decode"])
    found: dict[str, Image.Image] = {}
    dead: dict[str, dict[str, str]] = {}
    for row, picture in zip(conditioned, pictures, strict=True):
        if isinstance(picture, Image.Image):
            found[row["row_id"]] = picture
        else:
            dead[row["row_id"]] = why_dead(picture)
    requests = {
        row["row_id"]: Request(
            row["row_id"], row["seed"], row["model_class"], row["target"], row["prompt"], found.get(row["row_id"])
        )
        for row in plan
        if row["row_id"] not in dead
    }
    return requests, dead


def draw_twice(
    sampler: Sampler, requests: Sequence[Request], seed: int, batch: int
) -> dict[str, tuple[Request, Drawn]]:
    """Draw, and once more with another seed what is not finite; returns the last request and result of every row."""
    found: dict[str, tuple[Request, Drawn]] = {}
    for attempt in range(2):
        left = [request for request in requests if request.row_id not in found or not _finite(found[request.row_id][1])]
        left = [dataclasses.replace(request, seed=row_seed(seed, request.row_id, attempt)) for request in left]
        if left:
            found |= {r.row_id: (r, drawn) for r, drawn in zip(left, sampler.draw(left, batch), strict=True)}
    return found


def _finite(drawn: Drawn) -> bool:
    return math.isfinite(drawn.value)


def _facts(request: Request, drawn: Drawn, names: Sequence[str]) -> dict[str, Any]:
    """Return what is written of a drawn row."""
    if not _finite(drawn):
        message = "the picture or the criterion is no finite number, twice"
        return {"seed": request.seed, "status": "dead", "reason": "NotFinite", "message": message}
    buffer = io.BytesIO()
    Image.fromarray(drawn.image).save(buffer, "PNG")
    return {
        "status": "ok",
        "seed": request.seed,
        "id": hashlib.sha256(buffer.getvalue()).hexdigest()[:32],
        "image": buffer.getvalue(),
        "width": drawn.image.shape[1],
        "height": drawn.image.shape[0],
        "value": drawn.value,
        "trace": list(drawn.trace),
        "predicted": names[drawn.predicted],
        "probability": drawn.probability,
        "hit": drawn.predicted == request.target,
        "skipped": drawn.skipped,
    }


def nearest_real(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Find for every sample of one unit the real picture it resembles most, and say whether it is a copy of it.

    arguments: part; encoder, device, fingerprint; threshold: a cosine above it is a copy; drop: copies are left out.
    """
    drawn = run.read("draw", arguments["part"], ["row_id", "status", "image"]).to_pylist()
    alive = [row for row in drawn if row["status"] == "ok"]
    encoder = encoder_of(arguments["encoder"], arguments["device"])
    vectors = encoder.embed([Image.open(io.BytesIO(row["image"])).convert("RGB") for row in alive])
    best, indices = _nearest(vectors, Layout.of(run, "data"))
    ids = Layout.of(run, "data").take(indices, ["id"])["id"].to_pylist()
    found = {
        row["row_id"]: {"nearest_id": identity, "nearest_index": int(index), "similarity": float(similarity)}
        for row, identity, index, similarity in zip(alive, ids, indices, best, strict=True)
    }
    rows = []
    for row in drawn:
        facts = {"row_id": row["row_id"], "status": row["status"], "copy": False, **found.get(row["row_id"], {})}
        facts["copy"] = facts.get("similarity", 0.0) > arguments["threshold"]
        if facts["copy"] and arguments["drop"]:
            facts["status"] = "dropped"
        output.counters[facts["status"]] += 1
        output.counters["copies"] += facts["copy"]
        rows.append(facts)
    output.write(pa.Table.from_pylist(rows, NEAREST))


def _nearest(vectors: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest cosine of each row of (n, d) with a real picture, and that picture's global index."""
    best, found = np.full(len(vectors), -np.inf, np.float32), np.zeros(len(vectors), np.int64)
    for block in layout.blocks(BLOCK) if len(vectors) else []:
        indices, real = load(layout, block)
        if len(real):
            similarities, neighbours = top_k(vectors, real, indices, 1)
            better = similarities[:, 0] > best
            best[better], found[better] = similarities[better, 0], neighbours[better, 0]
    return best, found
