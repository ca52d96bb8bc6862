"""The training demo: what curation is worth to the model that is trained on the result.

The same small network is trained by SimCLR on a pool of which a seventh is of the wanted kind, on that pool without
copies and leaks, and on what twenty seeds retrieve from that: same initial weights, same number of pictures seen.
Contrast is what an uncurated pool spoils: in a batch of it a digit is told from photographs and from its own copies,
which teaches little of digits; in a curated one it is told from other digits. Seeds must be few for that to matter: so
short a training learns as much from a hundred seeds alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from granary.curation.recipe import CurateRecipe
from granary.curation.runs.lookup import ledger_tables, open_run
from granary.curation.store import storage
from granary.curation.store.threads import limit_threads
from granary.pipelines.demos.comparison import SCORES, Result, conclusion, table_of
from granary.pipelines.demos.digits import FULL_SIZE, Sizes, make_pictures
from granary.pipelines.demos.pictures import MARK, own_folder
from granary.pipelines.engine.recipe import load_recipe, shipped
from granary.pipelines.engine.units import Engine
from granary.pipelines.kinds.curate_session import curate

HOLDOUT = 0.5  # share of the labelled digits that tests, drawn by hash; the others teach
CURATION = [  # small drawings on plain ground resemble each other: what is a copy must be closer than elsewhere
    *("--name", "granary demo train", "--dedup.threshold", "0.92", "--leaks.threshold", "0.95"),
    *("--retrieval.k", "32", "--shards.rows", "500", "--encoder.retrieval", "builtin:layout"),
]
SELECTIONS = {  # name of the run -> what is done to the pool
    "pool": ["--pool", "pool", "--dedup.enabled", "false"],
    "deduplicated": ["--pool", "pool", "--references", "labelled"],
    "curated": ["--pool", "pool", "--references", "labelled", "--seeds", "seeds"],
}
BASELINES = {"raw pixels": "pixels", "random weights": "random:{models}/pool"}  # name -> model that has learned nothing
EVALUATION = ["--pool", "labelled", "--pool.labels", "folder", "--dedup.enabled", "false"]


def demo(
    out: str, engine: Engine, seed: int = 0, seeds: int = 4, sizes: Sizes = FULL_SIZE, overrides: Sequence[str] = ()
) -> int:
    """Curate, train and measure for each seed, print the scores; returns 0, or 130 when a training was asked to stop.

    Args:
        out: folder for everything; the same demo goes on there, with more seeds too, any other is made anew.
        engine: where the work units of curation run.
        seed: the first one; of the pictures, the initial weights and the order.
        seeds: how many, one after the other.
        sizes: of the pool.
        overrides: words for the training recipe.

    Raises:
        UserError: the folder holds something that is not the demo's.
    """
    started, console = time.monotonic(), Console(highlight=False)
    limit_threads(1)
    folder = prepared(out, sizes, overrides)
    results = []
    for number in range(seed, seed + seeds):
        result = compare(folder / f"seed-{number}", engine, number, sizes, overrides, console)
        if result is None:
            return 130
        results.append(result)
    console.print(table_of(results))
    console.print(conclusion(results, ("pool", "deduplicated")), soft_wrap=True)
    reports = f"{out}/seed-*/runs/*/report/index.html"
    console.print(f"\n{time.monotonic() - started:,.0f} s. The reports: {reports}", soft_wrap=True)
    return 0


def prepared(out: str, sizes: Sizes, overrides: Sequence[str]) -> pathlib.Path:
    """Return the demo's folder: as it is where the same demo was made or stopped, else empty."""
    folder = pathlib.Path(out).absolute()
    version = importlib.metadata.version("granary-data")
    asked = json.dumps({"version": version, "sizes": asdict(sizes), "overrides": list(overrides)})
    note = folder / "asked.json"
    if not ((folder / MARK).exists() and note.exists() and note.read_text() == asked):
        own_folder(out)
        storage.write_bytes(str(note), asked.encode())
    return folder


def compare(
    folder: pathlib.Path, engine: Engine, seed: int, sizes: Sizes, overrides: Sequence[str], console: Console
) -> Result | None:
    """Return what one seed came to, or None when a training was asked to stop.

    Args:
        folder: of this seed.
        engine: where the work units of curation run.
        seed: of the pictures, the initial weights and the order.
        sizes: of the pool.
        overrides: words for the training recipe.
        console: for a line before each training.
    """
    path = folder / "results.json"
    if path.exists():
        return Result.read(path)
    if not (folder / "runs").exists():  # runs begin when all pictures are there
        make_pictures(folder, sizes, seed)
    progress = Console(stderr=True, highlight=False, markup=False)
    kept, pictures = select(folder, engine, progress), 0
    for name, kinds in kept.items():
        console.print(f"Seed {seed}: training on {name}, {sum(kinds.values()):,} pictures ...")
        pictures = train_on(folder, name, seed, overrides, progress)
        if not pictures:
            return None
    result = Result(pictures, kept, {name: scores(folder, name, seed) for name in (*BASELINES, *SELECTIONS)})
    result.write(path)
    return result


def select(folder: pathlib.Path, engine: Engine, progress: Console) -> dict[str, dict[str, int]]:
    """Make the runs, that of the labelled digits too; returns how many of each kind a selection holds."""
    for name, words in {**SELECTIONS, "evaluation": EVALUATION}.items():
        places = [str(folder / word) if (folder / word).is_dir() else word for word in words]
        out = str(folder / "runs" / name)
        curate(load_recipe(CurateRecipe, None, [*CURATION, *places, "--out", out]), engine, progress)
    return {name: kinds_of(folder / "runs" / name) for name in SELECTIONS}


def kinds_of(run: pathlib.Path) -> dict[str, int]:
    """Return how many pictures of each kind, a folder of the pool, a run kept."""
    rows = (row for table in ledger_tables(open_run(str(run))[0], ["uri", "status"]) for row in table.to_pylist())
    return dict(Counter(row["uri"].split("/")[1] for row in rows if row["status"] == "kept"))


def train_on(folder: pathlib.Path, name: str, seed: int, overrides: Sequence[str], progress: Console) -> int:
    """Train on one selection, going on where it was stopped.

    Args:
        folder: of this seed.
        name: of the selection.
        seed: of the initial weights and the order.
        overrides: words for the recipe.
        progress: where it is shown.

    Returns:
        The pictures that the training saw, repeats too; 0 when it was asked to stop.
    """
    from granary.training.recipe import TrainRecipe
    from granary.training.run.loop import train

    words = ["--data", str(folder / "runs" / name), "--out", str(folder / "models" / name), "--seed", str(seed)]
    recipe = load_recipe(TrainRecipe, shipped("demo/simclr.yaml"), [*words, *overrides])
    facts = train(recipe, progress)
    return facts["step"] * recipe.batch if facts["finished"] else 0


def scores(folder: pathlib.Path, name: str, seed: int) -> dict[str, float]:
    """Return the accuracies in 0..1 of a baseline or of the model trained on a selection, on the labelled digits."""
    from granary.training.evaluation.evaluate import EvaluateRecipe, evaluate

    model = BASELINES.get(name, "{models}/" + name).format(models=folder / "models")
    options = {"k": [20], "layers": [1], "solver": "ridge", "holdout": HOLDOUT}
    data = str(folder / "runs" / "evaluation")
    recipe = EvaluateRecipe(protocols=list(SCORES), model=model, data=data, device="cpu", seed=seed, options=options)
    measured = evaluate(recipe, say=lambda text: None)
    return {protocol: float(measured[protocol]["accuracy"]) for protocol in SCORES}
