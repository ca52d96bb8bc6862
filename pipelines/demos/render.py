"""Small renders of the embedded world: `granary demo render`, and a rendered pool for `granary demo curate`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from rich.console import Console

from granary.curation.runs.tables import read_groups
from granary.curation.store import storage
from granary.pipelines.demos.pictures import own_folder
from granary.pipelines.engine.recipe import load_recipe, shipped
from granary.pipelines.engine.units import Engine
from granary.pipelines.kinds.render import render
from granary.synth.pug.recipe import RenderRecipe

POOL: Mapping[str, object] = {
    "world_name": ["Meadow", "Beach", "Snow"],
    "character_name": ["Elephant", "Penguin", "Fox", "Teapot"],
    "camera_yaw": [45, 315],
}


def demo(out: str, engine: Engine) -> int:
    """Render the small animals recipe into `out`/run and say where to look; returns 0 when every row has its picture.

    Raises:
        UserError: the folder holds something that is not the demo's.
    """
    folder = own_folder(out)
    recipe = load_recipe(RenderRecipe, shipped("render/animals_demo.yaml"), ["--out", str(folder / "run")])
    facts = render(recipe, engine, Console(stderr=True, highlight=False, markup=False))
    lines = [
        f"The report: {out}/run/report/index.html",
        "",
        "Three commands to try next:",
        "  granary render --config configs/render/pug_spar_demo.yaml --out runs/spar",
        f"  granary render --config {out}/run/recipe.yaml --out runs/mine --factors.world_name '[Desert, Night]' "
        "--splits '[]'",
        f"  python -c \"from datasets import load_dataset; print(load_dataset('{out}/run/dataset'))\"",
    ]
    Console(highlight=False).print("\n".join(lines), soft_wrap=True, markup=False)
    return 0 if facts["flow"][0]["dead"] == 0 else 1


def rendered_pool(
    out: str, run: str, engine: Engine, factors: Mapping[str, object] = POOL, side: int = 144
) -> list[str]:
    """Render pictures of the embedded world as PNG files, for a pool to curate.

    Args:
        out: folder to write them to, one file for each row, in a folder of its world.
        run: where the run goes that makes them.
        engine: where the work units run.
        factors: of the recipe; three worlds, four characters and two sides by default: 24 pictures.
        side: of the pictures, pixels.

    Returns:
        The paths of the files, relative to `out`, in order.
    """
    plain = json.dumps(factors)
    words = ["--out", run, "--factors", plain, "--image.width", str(side), "--image.height", str(side)]
    render(load_recipe(RenderRecipe, None, words), engine, Console(stderr=True, highlight=False, markup=False))
    paths = []
    for name in storage.names(storage.join(run, "dataset", "data")):
        for table in read_groups(storage.join(run, "dataset", "data", name), ["image", "row_id", "world_name"]):
            for row in table.to_pylist():
                path = f"{row['world_name']}/{row['image']['path']}"
                storage.write_bytes(storage.join(out, path), row["image"]["bytes"])
                paths.append(path)
    return sorted(paths)
