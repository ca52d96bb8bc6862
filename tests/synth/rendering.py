"""Run the steps of a render without Beam, and say what came of every row."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from unreal_stand_in import StandIn, painted

from granary.curation.runs.run import Run, Stage, Unit, close_stage, run_unit
from granary.curation.runs.splits import shard_names
from granary.synth.pug import steps
from granary.synth.pug.planning import Planned, mesh_paths, planned
from granary.synth.pug.recipe import RenderRecipe
from granary.synth.pug.renderer.pools import close_pools
from granary.synth.pug.renderer.worker import Service

FACTORS: dict[str, Any] = {
    "world_name": ["Meadow", "Snow"],
    "character_name": ["Cat", "Dog"],
    "character_scale": [0.5, 2.0],
    "character_texture": ["Default", "Sky"],
    "camera_yaw": [0, 90],
}


def recipe_of(*servers: StandIn | str, **changes: Any) -> RenderRecipe:
    """Return a recipe of 32 rows at stand-ins, or one of the embedded world; options of the renderer as `renderer`."""
    addresses = [server if isinstance(server, str) else server.address for server in servers]
    quick = {"timeout": 0.5, "backoff": 0.05, "retries": 6, "settle": {"enabled": False}}
    kind = {"kind": "unrealcv", "addresses": addresses} if addresses else {"kind": "embedded", "timeout": 60}
    plain: dict[str, Any] = {
        "out": "-",
        "factors": FACTORS,
        "image": {"width": 48, "height": 48},
        "checks": {"twice": 0.0},
        **changes,
        "renderer": {**quick, **kind, **changes.get("renderer", {})},
    }
    return RenderRecipe.model_validate(plain)


@dataclasses.dataclass
class Result:
    """What came of a render: samples and lost rows."""

    work: Planned
    run: Run
    samples: list[dict[str, Any]]
    lost: list[list[str]]
    counters: dict[str, int]
    files: list[bytes]

    def check(self) -> None:
        """Every row is there once, as a sample or as a dead letter, and every picture is of its row."""
        ids = [sample["row_id"] for sample in self.samples] + [uri for uri, _, _ in self.lost]
        assert sorted(ids) == sorted(self.work.row(i).id for i in range(len(self.work.plan)))
        rows = {self.work.row(i).id: self.work.row(i) for i in range(len(self.work.plan))}
        for sample in self.samples:
            row = rows[sample["row_id"]]
            assert {column: sample[column] for column in row.values} == row.values
            assert_shows(sample["image"]["bytes"], row.values)


def assert_shows(data: bytes, row: dict[str, Any]) -> None:
    """Read from the pixels what they are of, and compare it with a row, by arithmetic of the test's own."""
    state = painted(data)
    assert state["level"] == row["world_name"]
    shown = [thing for name, thing in state["things"].items() if name != "Floor"]
    assert [thing["kind"] for thing in shown] == [row["character_name"]]
    assert shown[0]["scale"] == [row["character_scale"]] * 3
    assert shown[0]["texture"] == row["character_texture"]
    x, y, _ = state["camera"]["location"]
    side = {0: x > 200 and abs(y) < 1, 90: y > 200 and abs(x) < 1}
    assert side[row["camera_yaw"]]
    assert state["camera"]["size"] == [48, 48]


def render(recipe: RenderRecipe, out: Path, rows: int = 1000, checkpoint: int = 4, row_group: int = 10) -> Result:
    """Render a recipe; the servers it started are stopped at the end."""
    run, work = Run(str(out)), planned(recipe)
    plan = Stage("plan", steps.write_plan, [Unit(0, steps.FramePlan.of(work.recipe, "test", {}))])
    run_unit(run, plan, plan.units[0])
    close_stage(run, plan)
    service = Service(recipe.renderer, mesh_paths(recipe), 1, checkpoint)
    cut = Stage("rows", steps.list_rows, [Unit(0, steps.CutShards(rows))], [plan.digest])
    run_unit(run, cut, cut.units[0])
    names = shard_names([split for split, _ in close_stage(run, cut)[0].notes])
    units = [Unit(i, steps.ShardRows(i, row_group, service), name=name) for i, name in enumerate(names)]
    stage = Stage("shards", steps.render_shard, units, [plan.digest, cut.digest], target="dataset/data")
    try:
        for unit in units:
            run_unit(run, stage, unit)
    finally:
        close_pools()
    markers = close_stage(run, stage)
    files = [Path(stage.output(run, unit)).read_bytes() for unit in units]
    samples = [row for unit in units for row in pq.read_table(stage.output(run, unit)).to_pylist()]
    counters: dict[str, int] = {}
    for marker in markers:
        for key, count in marker.counters.items():
            counters[key] = counters.get(key, 0) + count
    return Result(work, run, samples, [list(note) for marker in markers for note in marker.notes], counters, files)
