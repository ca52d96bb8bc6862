"""The steps of a render: the plan, the shards, the ledger, the dead letters."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.runs import dead_letters
from granary.curation.runs.dead_letters import DeadLetter
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run, digest, read_table
from granary.curation.store import schema, storage
from granary.synth.pug.plan.plans import uniform
from granary.synth.pug.planning import Planned, PlannedRow, planned
from granary.synth.pug.recipe import RendererOptions, RenderRecipe
from granary.synth.pug.renderer.capture import Renderer
from granary.synth.pug.renderer.connection import RenderError
from granary.synth.pug.renderer.frames import (
    Frame,
    InvalidFrame,
    NotRepeatable,
    NotVisible,
    boxes,
    check_frame,
    difference,
    npz,
    png,
)
from granary.synth.pug.renderer.servers import Pool, pool_of

LOST = b"granary.lost"
SERVICE = {"out", "name", "licence", "renderer", "shards", "meshes"}  # fields that leave a frame as it is
PLAN = pa.schema([("recipe", pa.string())])


class ServersLost(OSError):
    """Row after row was lost to dead connections: there is no server any more."""


def write_plan(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Write what the work units read: the recipe, and what the renderer said of itself."""
    output.write(pa.Table.from_pylist([{"recipe": json.dumps(arguments["recipe"])}], PLAN))


def plan_arguments(recipe: RenderRecipe, fingerprint: str, meshes: Mapping[str, str]) -> dict[str, Any]:
    """Return what decides every frame, as plain data.

    Args:
        recipe: checked, with the values of files filled in.
        fingerprint: of the renderer.
        meshes: hashes of the user's meshes by name.
    """
    plain = recipe.model_dump(mode="json", exclude=SERVICE)
    options = recipe.renderer.model_dump(mode="json", include={"kind", "director", "settle"})
    order = list(recipe.factors)  # decides the order of the rows, and a digest sorts keys
    return {"recipe": {"recipe": plain, "order": order, "renderer": options, "made": [fingerprint, dict(meshes)]}}


@functools.lru_cache(maxsize=4)
def _planned(text: str) -> Planned:
    plan = json.loads(text)
    return planned(RenderRecipe.model_validate({**plan["recipe"], "out": "-"}))


def render_order(work: Planned, row: PlannedRow) -> tuple[Any, ...]:
    """Return the sort key by which a renderer loads each world and each character once."""
    scene = work.scene(row)
    return scene.world, tuple(actor.asset for actor in scene.actors), row.index


def render_shard(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Render a range of rows and write one shard, ordered by world and character.

    Args:
        run: the run directory.
        arguments: shard, start, stop (rows), row_group, and service: how the renderer is reached, outside the digest.
        output: the shard. Lost rows are noted: row id, error, message.
    """
    work = _planned(run.read("plan", 0)["recipe"][0].as_py())
    service = arguments["service"]
    rows = [work.row(index) for index in range(arguments["start"], arguments["stop"])]
    rows.sort(key=functools.partial(render_order, work))
    target = schema.arrow_schema(work.features())
    folder = run.path("frames", f"{arguments['shard']:05d}")
    key = digest(run.read("plan", 0).to_pylist(), {**arguments, "service": service["checkpoint"]})[:16]
    shard = RowGroups(output, target, arguments["row_group"])
    with ExitStack() as stack:
        worker = _Worker(run, work, service, stack)
        for start in range(0, len(rows), service["checkpoint"]):
            piece = storage.join(folder, f"{key}-{start:09d}.parquet")
            table, lost = _load_piece(piece, target) or _make_piece(piece, target, worker, rows, start)
            output.notes.extend(lost)
            output.counters.update(error for _, error, _ in lost)
            for place, sample in enumerate(table.to_pylist()):
                shard.add(sample, table.slice(place, 1).nbytes)
    shard.close()
    storage.remove(folder)


def _load_piece(url: str, target: pa.Schema) -> tuple[pa.Table, list[list[str]]] | None:
    """Return the rows that a killed run had saved; None when there are none, or they are damaged."""
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(url)), use_threads=False)
        lost = json.loads(table.schema.metadata[LOST])
        return table.cast(target.remove_metadata()).replace_schema_metadata(target.metadata), lost
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _make_piece(
    url: str, target: pa.Schema, worker: _Worker, rows: Sequence[PlannedRow], start: int
) -> tuple[pa.Table, list[list[str]]]:
    samples, lost = worker.render(rows[start : start + worker.service["checkpoint"]])
    table = pa.Table.from_pylist(samples, target)
    buffer = io.BytesIO()
    saved = table.replace_schema_metadata({**target.metadata, LOST: json.dumps(lost).encode()})
    pq.write_table(saved, buffer, compression="none")
    storage.write_bytes(url, buffer.getvalue())
    return table, lost


class _Worker:
    """Renders rows with a leased renderer, which it takes when the first one is needed."""

    def __init__(self, run: Run, work: Planned, service: Mapping[str, Any], stack: ExitStack) -> None:
        self.run, self.work, self.service, self.stack = run, work, service, stack
        self.options = RendererOptions.model_validate(service["renderer"])
        self.dead_in_succession = 0
        self._renderer: Renderer | None = None

    @property
    def renderer(self) -> Renderer:
        if self._renderer is None:
            self._renderer = self.stack.enter_context(pool_for(self.work, self.service).lease())
        return self._renderer

    def render(self, rows: Sequence[PlannedRow]) -> tuple[list[dict[str, Any]], list[list[str]]]:
        """Return the samples of rows in order, and what was lost: row id, error, message."""
        frames: dict[str, Frame] = {}
        failures: dict[str, RenderError] = {}
        for row in rows:
            self._attempt(row, frames, failures)
        for row in reversed([row for row in rows if row.id in frames and self._sampled(row)]):
            self._repeat(row, frames, failures)
        samples = [sample_of(self.work, row, frames[row.id]) for row in rows if row.id in frames]
        lost = [_lost(row, failures[row.id]) for row in rows if row.id in failures]
        return samples, lost

    def _attempt(self, row: PlannedRow, frames: dict[str, Frame], failures: dict[str, RenderError]) -> None:
        try:
            frames[row.id] = self._frame(row, "")
            self.dead_in_succession = 0
        except RenderError as error:
            self._lose(row, error, failures)

    def _lose(self, row: PlannedRow, error: RenderError, failures: dict[str, RenderError]) -> None:
        failures[row.id] = error
        if isinstance(error, InvalidFrame) and error.picture:
            storage.write_bytes(self.run.path("quarantine", f"{row.id}.png"), error.picture)
        self.dead_in_succession = self.dead_in_succession + 1 if error.lost else 0
        if self.dead_in_succession >= self.options.give_up:
            raise ServersLost(
                f"{self.dead_in_succession} rows in succession were lost to dead connections, the last one: {error}. "
                "Start the servers again"
            ) from error

    def _sampled(self, row: PlannedRow) -> bool:
        return uniform(self.work.recipe.seed, f"twice/{row.id}", row.index) < self.work.recipe.checks.twice

    def _repeat(self, row: PlannedRow, frames: dict[str, Frame], failures: dict[str, RenderError]) -> None:
        """Render a row again after others; what differs from the first time is quarantined."""
        first = frames[row.id]
        try:
            second = self._frame(row, "again")
            bound = self.options.settle.bound if self.options.kind == "unrealcv" else 0.0
            if (apart := difference(first, second)) > bound:
                raise NotRepeatable(f"rendered again, the picture differs by {apart:.2f} of 255", png(first.lit))
        except RenderError as error:
            del frames[row.id]
            self._lose(row, error, failures)

    def _frame(self, row: PlannedRow, purpose: str) -> Frame:
        """Return a checked frame, after as many attempts as the options allow; raises RenderError."""
        scene = self.work.scene(row)
        for attempt in range(self.options.retries + 1):
            try:
                frame = self.renderer.render(scene, f"{row.id}/{purpose}/{attempt}")
                check(frame, len(scene.actors), self.work.recipe.checks)
                return frame
            except RenderError as error:
                if attempt == self.options.retries:
                    raise
                if error.lost:
                    time.sleep(self.options.backoff * 2**attempt)
        raise AssertionError("unreachable")


def check(frame: Frame, actors: int, checks: Any) -> None:
    """Raise InvalidFrame when a frame cannot be right: blank, depth not finite, a character not to be seen."""
    try:
        check_frame(frame, checks.blank)
        found = boxes(frame.mask)
        visible = [slot for slot, (_, pixels) in found.items() if pixels >= checks.visible]
        if len(visible) < actors:
            counts = ", ".join(f"character {slot + 1} {pixels}" for slot, (_, pixels) in found.items())
            raise NotVisible(f"pixels in the mask: {counts or 'none'}; each needs {checks.visible}")
    except InvalidFrame as error:
        error.picture = error.picture or png(frame.lit)
        raise


def _lost(row: PlannedRow, error: RenderError) -> list[str]:
    """Return row id, error and message of a dead letter; the message has the reason and the row."""
    return [row.id, type(error).__name__, f"{error}; row {row.index}: {json.dumps(row.values, ensure_ascii=False)}"]


def pool_for(work: Planned, service: Mapping[str, Any]) -> Pool:
    """Return this process's servers for a recipe."""
    outputs = work.recipe.outputs
    modes = ["lit", "mask", *(["depth"] if outputs.depth else []), *(["normals"] if outputs.normals else [])]
    options = RendererOptions.model_validate(service["renderer"])
    return pool_of(options, modes, service["meshes"], service["workers"])


def sample_of(work: Planned, row: PlannedRow, frame: Frame) -> dict[str, Any]:
    """Return the sample of a row and its frame."""
    data, stem = png(frame.lit), f"{row.index:09d}"
    kinds = work.column_types
    actors = {actor.slot: actor for actor in work.scene(row).actors}
    found = boxes(frame.mask)
    outputs = work.recipe.outputs
    values = {column: str(value) if kinds[column] == "string" else value for column, value in row.values.items()}
    sample = {
        "id": hashlib.sha256(data).hexdigest()[:32],
        "image": {"bytes": data, "path": f"{stem}.png"},
        "width": frame.lit.shape[1],
        "height": frame.lit.shape[0],
        "label": str(row.values[work.label]) if work.label else None,
        "captions": work.captions(row),
        "source": {"name": "render", "uri": row.id},
        "row_id": row.id,
        "split": row.split,
        **values,
        "objects": [
            {"name": _name(row, slot, actors[slot].asset), "box": list(box), "pixels": pixels}
            for slot, (box, pixels) in found.items()
        ],
    }
    if outputs.mask:
        sample["mask"] = {"bytes": png(frame.mask), "path": f"{stem}-mask.png"}
    if frame.depth is not None:
        sample["depth"] = npz(depth=frame.depth)
    if frame.normals is not None:
        sample["normals"] = {"bytes": png(frame.normals), "path": f"{stem}-normals.png"}
    return sample


def _name(row: PlannedRow, slot: int, asset: str) -> str:
    return str(row.values.get(("character_name", "character2_name")[slot], asset))


def write_ledger(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Write one row for each planned row of a shard: kept or dead, and why."""
    name = run.parts("shards")[arguments["shard"]].rsplit("/", 1)[-1]
    shard = read_table(run.path("dataset", "data", name), ["row_id", "id"])
    rows = [
        {
            "uri": row["row_id"],
            "id": row["id"],
            "role": "row",
            "status": "kept",
            "stage": "render",
            "reason": "rendered",
        }
        for row in shard.to_pylist()
    ]
    rows += [
        {"uri": uri, "role": "row", "status": "dead", "stage": "render", "reason": f"{error}: {message}"}
        for uri, error, message in arguments["lost"]
    ]
    rows.sort(key=lambda row: row["uri"])
    for row in rows:
        output.counters[row["status"]] += 1
    output.write(pa.Table.from_pylist(rows, schema.LEDGER))


def write_dead_letters(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Collect the rows without a picture, of all shards."""
    lost = sorted(arguments["lost"])
    letters = (DeadLetter(uri, "render", error, message) for uri, error, message in lost)
    dead_letters.write_dead_letters(letters, output)
