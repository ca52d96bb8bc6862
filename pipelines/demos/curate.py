"""The demo of curation: make a pool with planted copies, leaks and broken files, curate it, check the result."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table

from granary.curation.recipe import CurateRecipe
from granary.curation.runs.lookup import ledger_tables, open_run
from granary.pipelines.demos.pictures import own_folder
from granary.pipelines.demos.planted import WORLDS, make_pool, photographed, rendered
from granary.pipelines.engine.recipe import load_recipe, shipped
from granary.pipelines.engine.units import Engine
from granary.pipelines.kinds.curate_session import curate

WORLD_THRESHOLDS = ["--dedup.threshold", "0.93", "--leaks.threshold", "0.9"]  # pictures of one world share its backdrop
KINDS = {
    "exact": "exact copies",
    "near": "re-encoded, resized or recoloured copies",
    "leaks": "leaked references",
    "broken": "broken files",
}


def demo(out: str, engine: Engine, world: bool = False) -> int:
    """Make the pool, curate it, and compare what was planted with what was found.

    Args:
        out: folder for the pool and the run.
        engine: where the work units run.
        world: whether the pictures are rendered; else they are real ones.

    Returns:
        0 when all was found and nothing else removed, else 1.

    Raises:
        UserError: the folder holds something that is not the demo's.
    """
    console, folder = Console(highlight=False), own_folder(out)
    if world:
        planted = make_pool(folder, list(rendered(folder, engine)), WORLDS[0])
    else:
        planted = make_pool(folder, list(photographed()), "flower")
    paths = {"pool": "pool", "seeds.path": "seeds", "references": "references", "out": "run"}
    words = [word for key, name in paths.items() for word in (f"--{key}", str(folder / name))]
    recipe = load_recipe(CurateRecipe, shipped("curate/demo.yaml"), [*words, *(WORLD_THRESHOLDS if world else [])])
    curate(recipe, engine, Console(stderr=True, highlight=False))
    right = _print_findings(console, findings(str(folder / "run")), planted)
    _print_next(console, out)
    return 0 if right else 1


def _print_findings(console: Console, removed: Mapping[str, int], planted: Mapping[str, int]) -> bool:
    """Print what was planted and what was found; returns whether they agree."""
    table = Table("what", "planted", "found", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, name in KINDS.items():
        table.add_row(name, str(planted[kind]), str(removed[kind]))
    table.add_row("distinct pictures taken for copies or leaks", "0", str(removed["wrong"]))
    console.print()
    console.print(table)
    right = removed["wrong"] == 0 and all(removed[kind] == planted[kind] for kind in KINDS)
    console.print("\nEverything planted was found." if right else "\nNot everything planted was found: see the report.")
    return right


def findings(run_url: str) -> dict[str, int]:
    """Count from the ledger what the run removed of each kind, and under "wrong" the distinct pictures among it.

    Of an original and its exact copy or near copy either may stay, so copies are counted as groups shrunk to one.
    """
    removed = dict.fromkeys((*KINDS, "wrong"), 0)
    groups: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for kind, name, stage, status in _decisions(run_url):
        removed["exact"] += stage == "exact"
        removed["leaks"] += kind == "leaks" and stage == "leaks"
        removed["broken"] += kind == "broken" and status == "dead"
        if kind in ("originals", "exact", "near"):
            original = pathlib.PurePosixPath(name).with_suffix("").as_posix()
            groups[original if kind == "originals" else original.rsplit("-", 1)[0]].append((kind, stage))
    for members in groups.values():
        dropped = sum(stage in ("exact", "dedup") for _, stage in members)
        merged = sum(stage == "dedup" for _, stage in members)
        removed["near"] += min(merged, sum(kind == "near" for kind, _ in members))
        removed["wrong"] += max(0, dropped - (len(members) - 1)) + sum(stage == "leaks" for _, stage in members)
    return removed


def _decisions(run_url: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield kind, name, stage and status of each file of the pool."""
    for table in ledger_tables(open_run(run_url)[0], ["uri", "stage", "status"]):
        for row in table.to_pylist():
            kind, name = row["uri"].split("/", 2)[1:]
            yield kind, name, row["stage"], row["status"]


def _a_near_copy(run_url: str) -> str:
    """Return the uri of a file that was dropped as a near duplicate."""
    tables = ledger_tables(open_run(run_url)[0], ["uri", "stage"])
    return next((row["uri"] for table in tables for row in table.to_pylist() if row["stage"] == "dedup"), "URI")


def _print_next(console: Console, out: str) -> None:
    lines = [
        f"The report: {out}/run/report/index.html",
        "",
        "Three commands to try next:",
        f"  granary explain {out}/run {_a_near_copy(f'{out}/run')}",
        "  granary curate --config configs/curate/folder.yaml --pool YOUR_IMAGES --out runs/mine",
        f"  python -c \"from datasets import load_dataset; print(load_dataset('{out}/run/dataset'))\"",
    ]
    console.print("\n".join(lines), soft_wrap=True, markup=False)
