"""Each of the four pipelines as one small command, for tests of the places where they run."""

from __future__ import annotations

import json
from pathlib import Path

import dense_fixture
import pools
import tiny_pipelines
import yaml

RENDER = {
    "name": "small world",
    "factors": {"world_name": ["Meadow"], "character_name": ["Cat", "Elephant"], "camera_yaw": [45, 225]},
    "image": {"width": 32, "height": 32},
    "outputs": {"mask": True, "depth": True},
    "captions": {"style": "templates", "templates": ["a {character_name}"]},
    "shards": {"rows": 2, "row_group": 2},
}
# {inputs} holds what `write_inputs` wrote and may be a URL, {local} is the same folder on this machine, {out} is the
# run directory. What only the command itself reads, its --config, is local.
PIPELINES = {
    "curate": "curate --pool {inputs}/pool --seeds {inputs}/seeds --references {inputs}/references --out {out} "
    "--dedup.threshold 0.92 --leaks.threshold 0.7 --unit_rows 16 --dedup.block 16 --shards.rows 5",
    "render": "render --config {local}/render.yaml --out {out} --renderer.servers 1",
    "sample": "sample --data {inputs}/data --model {inputs}/model --classifier granary:{inputs}/classifier --out {out} "
    "--plan.fill 4 --guidance.criterion hardness --guidance.omega 0.1 --sampling.steps 4 --unit_rows 4 --pairs 2 "
    "--shards.rows 4 --hardness.dimensions 2",
    "pack": "pack --annotations {inputs}/annotations --images {inputs}/photos --out {out} --unit_rows 2",
}


def write_inputs(folder: Path) -> Path:
    """Write what all of PIPELINES read; returns the folder."""
    pools.write_planted(folder)
    (folder / "render.yaml").write_text(yaml.safe_dump(RENDER))
    numbers = {"cat": 3, "dog": 2, "owl": 1}
    pools.write(
        folder / "data",
        {f"{name}/{i}.png": pools.picture(10 * count + i, 24) for name, count in numbers.items() for i in range(count)},
    )
    tiny_pipelines.save("classes", folder / "model")
    tiny_pipelines.save_net(folder / "classifier")
    dense_fixture.write(
        folder,
        {f"{name}-data.json": dense_fixture.annotation(f"{name}.jpg") for name in "abc"},
        {f"{name}.jpg": dense_fixture.picture(ord(name)) for name in "abc"},
    )
    (folder / "annotations" / "broken-data.json").write_text(json.dumps({"image": 3}))
    return folder


def words(name: str, inputs: Path | str, local: Path, out: Path | str) -> list[str]:
    """Return the command line of a pipeline without `granary`."""
    return [word.format(inputs=inputs, local=local, out=out) for word in PIPELINES[name].split()]
