"""The steps of a render: the plan, the rows of each shard, the shards, the ledger, the dead letters."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.runs import dead_letters
from granary.curation.runs.dead_letters import DeadLetter
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import NoJob, Output, Run, digest, undigested
from granary.curation.runs.tables import read_table
from granary.curation.store import schema, storage
from granary.synth.pug.planning import Planned, PlannedRow, planned
from granary.synth.pug.recipe import RenderRecipe
from granary.synth.pug.renderer.frames import Frame, boxes, nearness, npz, png
from granary.synth.pug.renderer.worker import Lost, Service, Worker
from granary.synth.pug.texts.polls import Commonness

LOST = b"granary.lost"
SERVICE = {
    "out",
    "name",
    "licence",
    "renderer",
    "shards",
    "meshes",
    "quads",
    "videos",
}  # fields that leave a sample as it is
PLAN = pa.schema([("recipe", pa.string())])
ROWS = pa.schema([("row", pa.int64())])
OBJECTS = pa.schema([("object", pa.string()), ("beside", pa.string()), ("rows", pa.int64())])


# -- the plan --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FramePlan:
    """What decides every frame, as plain data: the job of `write_plan`.

    Args:
        recipe: checked, with the values of files filled in, without the fields of `SERVICE`.
        order: names of the factors; it decides the order of the rows, and a digest sorts keys.
        renderer: kind, director and settle of its options.
        fingerprint: of the renderer.
        meshes: hashes of the user's meshes by name.
    """

    recipe: Mapping[str, object]
    order: tuple[str, ...]
    renderer: Mapping[str, object]
    fingerprint: str
    meshes: Mapping[str, str]

    @staticmethod
    def of(recipe: RenderRecipe, fingerprint: str, meshes: Mapping[str, str]) -> FramePlan:
        """Return the plan of a checked recipe."""
        plain = recipe.model_dump(mode="json", exclude=SERVICE)
        options = recipe.renderer.model_dump(mode="json", include={"kind", "director", "settle"})
        return FramePlan(plain, tuple(recipe.factors), options, fingerprint, dict(meshes))


def write_plan(run: Run, job: FramePlan, output: Output) -> None:
    """Write what the work units read: the recipe, and what the renderer says of itself."""
    made = [job.fingerprint, job.meshes]
    plan = {"recipe": job.recipe, "order": list(job.order), "renderer": job.renderer, "made": made}
    output.write(pa.Table.from_pylist([{"recipe": json.dumps(plan)}], PLAN))


def planned_of(run: Run) -> Planned:
    """Return what the first stage of a run wrote down: its recipe and plan, but for the fields of `SERVICE`."""
    return _planned(run.read("plan", 0)["recipe"][0].as_py())


@functools.lru_cache(maxsize=4)
def _planned(text: str) -> Planned:
    plan = json.loads(text)
    return planned(RenderRecipe.model_validate({**plan["recipe"], "out": "-"}))


# -- the rows of each shard ------------------------------------------------------------------------------------------


class ShardSize(NamedTuple):
    """What the marker of `list_rows` notes of a shard: the split of its rows, and how many there are."""

    split: str
    rows: int


@dataclasses.dataclass(frozen=True)
class CutShards:
    """The job of `list_rows`.

    Args:
        rows: most samples in a shard.
    """

    rows: int


def list_rows(run: Run, job: CutShards, output: Output) -> None:
    """Write which rows of the plan each shard holds, all of one split: row group i is shard i, see `ShardSize`."""
    for split, rows in planned_of(run).rows_of_splits().items():
        for start in range(0, len(rows), job.rows):
            some = rows[start : start + job.rows]
            output.write(pa.table({"row": some}, ROWS))
            output.notes.append(ShardSize(split, len(some)))


# -- the objects of the plan -----------------------------------------------------------------------------------------


def count_objects(run: Run, job: NoJob, output: Output) -> None:
    """Write in how many rows of the plan each object is, and each two objects are, for polls."""
    work = planned_of(run)
    common = Commonness.of(work.objects(work.row(index)) for index in range(len(work.plan)))
    counts = [{"object": name, "beside": "", "rows": count} for name, count in sorted(common.pictures.items())]
    counts += [{"object": a, "beside": b, "rows": count} for (a, b), count in sorted(common.together.items())]
    output.write(pa.Table.from_pylist(counts, OBJECTS))


def commonness_of(run: Run) -> Commonness:
    """Return what `count_objects` wrote; nothing where no polls are asked for."""
    rows = run.read("objects", 0).to_pylist() if run.parts("objects") else []
    pictures = {row["object"]: row["rows"] for row in rows if not row["beside"]}
    return Commonness(pictures, {(row["object"], row["beside"]): row["rows"] for row in rows if row["beside"]})


# -- the shards ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ShardRows:
    """The rows of one shard: the job of `render_shard`.

    Args:
        shard: its number, and row group of its rows.
        row_group: samples in a row group.
        service: how the renderer is reached.
    """

    shard: int
    row_group: int
    service: Service = undigested()  # noqa: RUF009


def render_shard(run: Run, job: ShardRows, output: Output) -> None:
    """Render the rows of one shard and write it, ordered by world and character; lost rows are noted as `Lost`."""
    plan = run.read("plan", 0).to_pylist()
    work = _planned(plan[0]["recipe"])
    indices = read_table(run.parts("rows")[0], group=job.shard)["row"].to_pylist()
    rows = sorted(map(work.row, indices), key=functools.partial(render_order, work))
    target = schema.arrow_schema(work.features())
    folder = run.path("frames", f"{job.shard:05d}")
    key = digest(plan, job, job.service.checkpoint)[:16]
    common = commonness_of(run)
    shard = RowGroups(output, target, job.row_group)
    with ExitStack() as stack:
        worker = Worker(run, work, job.service, stack)
        for start in range(0, len(rows), job.service.checkpoint):
            piece = storage.join(folder, f"{key}-{start:09d}.parquet")
            some = rows[start : start + job.service.checkpoint]
            table, lost = _load_piece(piece, target) or _make_piece(piece, target, worker, some, common)
            output.notes.extend(lost)
            output.counters.update(row.error for row in lost)
            for place, sample in enumerate(table.to_pylist()):
                shard.add(sample, table.slice(place, 1).nbytes)
    shard.close()
    storage.remove(folder)


def render_order(work: Planned, row: PlannedRow) -> tuple[str, tuple[str, ...], int]:
    """Return the sort key by which a renderer loads each world and each character once."""
    scene = work.scene(row)
    return scene.world, tuple(actor.asset for actor in scene.actors), row.index


def _load_piece(url: str, target: pa.Schema) -> tuple[pa.Table, list[Lost]] | None:
    """Return the rows that a killed run had saved; None when there are none, or they are damaged."""
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(url)), use_threads=False, page_checksum_verification=True)
        lost = [Lost(*row) for row in json.loads(table.schema.metadata[LOST])]
        return table.cast(target.remove_metadata()).replace_schema_metadata(target.metadata), lost
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _make_piece(
    url: str, target: pa.Schema, worker: Worker, rows: Sequence[PlannedRow], common: Commonness
) -> tuple[pa.Table, list[Lost]]:
    frames, lost = worker.render(rows)
    samples = [sample_of(worker.work, row, frames[row.id], common) for row in rows if row.id in frames]
    table = pa.Table.from_pylist(samples, target)
    buffer = io.BytesIO()
    saved = table.replace_schema_metadata({**target.metadata, LOST: json.dumps(lost).encode()})
    pq.write_table(saved, buffer, compression="none", write_page_checksum=True)
    storage.write_bytes(url, buffer.getvalue())
    return table, lost


def sample_of(work: Planned, row: PlannedRow, frame: Frame, common: Commonness) -> dict[str, object]:
    """Return the sample of a row and its frame: a value for each column of `work.features()`.

    Args:
        work, row: the plan, and a row of it.
        frame: what was captured of it.
        common: of the objects of the plan, for polls.
    """
    data, stem = png(frame.lit), f"{row.index:09d}"
    sample: dict[str, object] = {
        "id": hashlib.sha256(data).hexdigest()[:32],
        "image": {"bytes": data, "path": f"{stem}.png"},
        "width": frame.lit.shape[1],
        "height": frame.lit.shape[0],
        "label": work.class_of(row),
        "captions": work.captions(row),
        "source": {"name": "render", "uri": row.id},
        "row_id": row.id,
        "split": row.split,
        **_factor_values(work, row),
        "objects": _objects(work, row, frame),
    }
    if work.recipe.questions.kinds:
        sample["questions"] = work.questions(row)
    if work.recipe.polls.kinds:
        sample["polls"] = work.polls(row, common)
    if work.recipe.outputs.mask:
        sample["mask"] = {"bytes": png(frame.mask), "path": f"{stem}-mask.png"}
    if frame.depth is not None:
        sample["depth"] = npz(depth=frame.depth)
        sample["depth_view"] = {"bytes": png(nearness(frame.depth)), "path": f"{stem}-depth.png"}
    if frame.normals is not None:
        sample["normals"] = {"bytes": png(frame.normals), "path": f"{stem}-normals.png"}
    return sample


def _factor_values(work: Planned, row: PlannedRow) -> dict[str, object]:
    kinds = work.column_types
    return {column: str(value) if kinds[column] == "string" else value for column, value in row.values.items()}


def _objects(work: Planned, row: PlannedRow, frame: Frame) -> list[dict[str, object]]:
    """Return name, box and number of pixels of each character in the mask."""
    names = {actor.slot: actor.asset for actor in work.scene(row).actors}
    names |= {
        slot: str(row.values[column])
        for slot, column in enumerate(("character_name", "character2_name"))
        if column in row.values
    }
    return [
        {"name": names[slot], "box": list(box), "pixels": pixels} for slot, (box, pixels) in boxes(frame.mask).items()
    ]


# -- what became of the rows -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ShardLedger:
    """The ledger rows of one shard: the job of `write_ledger`.

    Args:
        shard: its number.
        lost: its rows without a picture.
    """

    shard: int
    lost: tuple[Lost, ...]


def write_ledger(run: Run, job: ShardLedger, output: Output) -> None:
    """Write one row for each planned row of a shard: kept or dead, and why."""
    name = run.parts("shards")[job.shard].rsplit("/", 1)[-1]
    shard = read_table(run.path("dataset", "data", name), ["row_id", "id"])
    verdicts = [_verdict(row["row_id"], "kept", "rendered") | {"id": row["id"]} for row in shard.to_pylist()] + [
        _verdict(row.row_id, "dead", f"{row.error}: {row.message}") for row in job.lost
    ]
    verdicts.sort(key=lambda verdict: verdict["uri"])
    output.counters.update(verdict["status"] for verdict in verdicts)
    output.write(pa.Table.from_pylist(verdicts, schema.LEDGER))


def _verdict(uri: str, status: str, reason: str) -> dict[str, str]:
    return {"uri": uri, "role": "row", "status": status, "stage": "render", "reason": reason}


@dataclasses.dataclass(frozen=True)
class LostRows:
    """The rows without a picture of all shards: the job of `write_dead_letters`.

    Args:
        lost: the rows, in any order.
    """

    lost: tuple[Lost, ...]


def write_dead_letters(run: Run, job: LostRows, output: Output) -> None:
    """Collect the rows without a picture, of all shards."""
    letters = (DeadLetter(row.row_id, "render", row.error, row.message) for row in sorted(job.lost))
    dead_letters.write_dead_letters(letters, output)
