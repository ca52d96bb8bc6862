"""The demo: make a pool of real pixels with planted copies, leaks and broken files, curate it, check the result.

The pixels come with scikit-learn: tiles of its two photographs and sheets of its handwritten digits.
"""

from __future__ import annotations

import io
import pathlib
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from granary.curation.recipe import CurateRecipe
from granary.curation.runs.lookup import ledger_tables, open_run
from granary.pipelines.demos.pictures import own_folder, photo_tiles, save_picture
from granary.pipelines.demos.render import rendered_pool
from granary.pipelines.engine.recipe import load_recipe, shipped
from granary.pipelines.engine.units import Engine
from granary.pipelines.kinds.curate_session import curate

TILE, SHEETS, SEED = 106, 120, 0
CAST = [
    *("Elephant", "Penguin", "Fox", "Teapot", "Cow", "Giraffe", "Crab", "Duck"),
    *("Flamingo", "Car", "Mushroom", "Zebra", "Frog", "Sailboat", "Chair"),
]
WORLD: dict[str, Any] = {  # of the rendered pool: 8 x 15 pictures, each character from a side of its own
    "world_name": ["Meadow", "Beach", "Snow", "Desert", "Forest", "OceanFloor", "Museum", "CitySquare"],
    "character": [{"character_name": name, "camera_yaw": 24 * place} for place, name in enumerate(CAST)],
    "character_scale": [1.6],
}

WORLD_THRESHOLDS = ["--dedup.threshold", "0.93", "--leaks.threshold", "0.9"]  # pictures of one world share its backdrop

EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: image,
    "smaller": lambda image: image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.25),
    "colour": lambda image: ImageEnhance.Color(image).enhance(0.7),
}


def pictures() -> Iterator[tuple[str, Image.Image]]:
    """Yield (name, picture) of all distinct pictures: photo tiles, then sheets of nine digits."""
    yield from photo_tiles(TILE)
    digits = load_digits().images
    order = np.random.default_rng(SEED).permutation(len(digits))[: SHEETS * 9].reshape(SHEETS, 3, 3)
    for number, sheet in enumerate(order):
        rows = [np.concatenate(list(digits[row]), axis=1) for row in sheet]
        grey = np.clip(255 - np.concatenate(rows) * 16, 0, 255).astype(np.uint8)
        yield (
            f"digits/{number:03d}",
            Image.fromarray(grey).resize((144, 144), Image.Resampling.BICUBIC).convert("RGB"),
        )


def renders(folder: pathlib.Path, engine: Engine) -> list[tuple[str, Image.Image]]:
    """Return (name, picture) of pictures that the embedded world renders: every character in every world."""
    paths = rendered_pool(str(folder / "renders"), str(folder / "render"), engine, WORLD)
    found = []
    for path in paths:
        with Image.open(folder / "renders" / path) as image:
            found.append((path.removesuffix(".png"), image.convert("RGB")))
    return found


def make_pool(folder: pathlib.Path, everything: Sequence[tuple[str, Image.Image]], seeds_from: str) -> dict[str, int]:
    """Write pool, seeds and references; returns how many files of each kind were planted.

    Args:
        folder: to write under.
        everything: (name, picture) of the distinct pictures, at least 120.
        seeds_from: what the names of pictures begin with that may become seeds.
    """
    rng = np.random.default_rng(SEED)
    shuffled = [everything[index] for index in rng.permutation(len(everything))]
    seeds = [entry for entry in shuffled if entry[0].startswith(seeds_from)][:6]
    rest = [entry for entry in shuffled if entry not in seeds]
    leaked, bases = rest[:16], rest[16:]
    for name, image in seeds:
        save_picture(folder / "seeds" / f"{name}.png", image)
    for name, image in leaked:
        save_picture(folder / "pool" / "leaks" / f"{name}.png", image)
        save_picture(folder / "references" / f"{name}.jpg", EDITS["smaller"](image), quality=85)
    for name, image in bases:
        save_picture(folder / "pool" / "originals" / f"{name}.png", image)
    for name, _ in bases[:30]:
        target = folder / "pool" / "exact" / f"{name}-copy.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "pool" / "originals" / f"{name}.png", target)
    kinds = list(EDITS)
    for number, (name, image) in enumerate(bases[20:80]):
        kind = kinds[number % len(kinds)]
        save_picture(folder / "pool" / "near" / f"{name}-{kind}.jpg", EDITS[kind](image), quality=70)
    broken = _broken(bases[0][1])
    for name, data in broken.items():
        (folder / "pool" / "broken").mkdir(parents=True, exist_ok=True)
        (folder / "pool" / "broken" / name).write_bytes(data)
    return {"originals": len(bases), "exact": 30, "near": 60, "leaks": len(leaked), "broken": len(broken)}


def _broken(image: Image.Image) -> dict[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    whole = buffer.getvalue()
    return {
        "empty.jpg": b"",
        "text.png": b"this is no picture",
        "half.jpg": whole[: len(whole) // 2],
        "header-only.png": b"\x89PNG\r\n\x1a\n",
        "bomb.png": _bomb(30_000),
        "<b>bold.jpg": b"\xff\xd8\xff\xe0",
    }


def _bomb(side: int) -> bytes:
    """A PNG file of a few kilobytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(side))) + chunk(b"IEND", b"")
    )


def demo(out: str, engine: Engine, world: bool = False) -> int:
    """Make the pool, curate it, and compare what was planted with what was found; returns 0 when all was found.

    Args:
        out: folder for the pool and the run.
        engine: where the work units run.
        world: whether the pictures are rendered; else they are real ones.
    """
    console, folder = Console(highlight=False), own_folder(out)
    if world:
        planted = make_pool(folder, renders(folder, engine), WORLD["world_name"][0])
    else:
        planted = make_pool(folder, list(pictures()), "china")
    overrides = [
        word
        for key in ("pool", "seeds.path", "references", "out")
        for word in (f"--{key}", str(folder / {"out": "run"}.get(key, key.split(".")[0])))
    ]
    curate(
        load_recipe(CurateRecipe, shipped("curate/demo.yaml"), [*overrides, *(WORLD_THRESHOLDS if world else [])]),
        engine,
        Console(stderr=True, highlight=False),
    )
    right = _print_findings(console, str(folder / "run"), planted)
    _print_next(console, out)
    return 0 if right else 1


def _print_findings(console: Console, run_url: str, planted: dict[str, int]) -> bool:
    found = findings(run_url)
    table = Table("what", "planted", "found", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    names = {
        "exact": "exact copies",
        "near": "re-encoded, resized or recoloured copies",
        "leaks": "leaked references",
        "broken": "broken files",
    }
    for kind, name in names.items():
        table.add_row(name, str(planted[kind]), str(found[kind]))
    table.add_row("distinct pictures taken for copies or leaks", "0", str(found["wrong"]))
    console.print()
    console.print(table)
    right = found["wrong"] == 0 and all(found[kind] == planted[kind] for kind in names)
    console.print("\nEverything planted was found." if right else "\nNot everything planted was found: see the report.")
    return right


def findings(run_url: str) -> dict[str, int]:
    """Count from the ledger what the run found of each kind, and the distinct pictures it removed by mistake.

    Of an original and its exact copy or near copy either may stay, so copies are counted as groups shrunk to one.
    """
    found = dict.fromkeys(("exact", "near", "leaks", "broken", "wrong"), 0)
    groups: dict[str, list[tuple[str, str]]] = {}
    for ledger in ledger_tables(open_run(run_url)[0], ["uri", "stage", "status"]):
        for row in ledger.to_pylist():
            kind, name = row["uri"].split("/", 2)[1:]
            found["exact"] += row["stage"] == "exact"
            found["leaks"] += kind == "leaks" and row["stage"] == "leaks"
            found["broken"] += kind == "broken" and row["status"] == "dead"
            if kind in ("originals", "exact", "near"):
                original = pathlib.PurePosixPath(name).with_suffix("").as_posix()
                original = original if kind == "originals" else original.rsplit("-", 1)[0]
                groups.setdefault(original, []).append((kind, row["stage"]))
    for members in groups.values():
        dropped = sum(stage in ("exact", "dedup") for _, stage in members)
        merged = sum(stage == "dedup" for _, stage in members)
        found["near"] += min(merged, sum(kind == "near" for kind, _ in members))
        found["wrong"] += max(0, dropped - (len(members) - 1)) + sum(stage == "leaks" for _, stage in members)
    return found


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
