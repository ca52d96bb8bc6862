"""The benchmark on what `granary pack` writes: a DCI folder with summaries, negatives and scores in, scores out."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measuring import measure
from PIL import Image
from rich.console import Console
from tiny_clip import tiny_clip

from granary.curation.dense.recipe import PackRecipe
from granary.pipelines.engine.units import Engine
from granary.pipelines.kinds.pack import pack
from granary.training.data.pairs import Entry, read_entries
from granary.training.evaluation.protocols import sdci

IMAGES = 5
BOXES = {  # mask: x0, y0, x1, y1, quality; 5 is too small for the benchmark, 4 is unusable
    "0": (100, 100, 500, 450, 0),
    "3": (520, 300, 780, 590, 1),
    "4": (0, 0, 300, 300, 2),
    "5": (120, 200, 220, 400, 0),
}


def mask(key: str) -> dict[str, Any]:
    x0, y0, x1, y1, quality = BOXES[key]
    pixels = np.zeros((600, 800), bool)
    pixels[y0:y1, x0:x1] = True
    pixels[y0 : y0 + 9, x0 + 9 : x1] = False  # no rectangle
    file = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(file, "PNG")
    return {
        "idx": int(key),
        "outer_mask": base64.b64encode(file.getvalue()).decode(),
        "area": int(pixels.sum()),
        "bounds": {"topLeft": {"x": x0, "y": y0}, "bottomRight": {"x": x1, "y": y1}},
        "requirements": [],
        "parent": -1,
        "mask_quality": quality,
        "label": f"thing {key}",
        "caption": "" if quality else "red and blue",
    }


def texts(number: int, key: str) -> tuple[list[str], dict[str, list[str]], dict[str, float]]:
    """Return summaries, negatives and scores: the basic negative is scored above the swapped one."""
    summaries = [f"{word} block number {number} of {key}" for word in ("red", "blue", "green", "white", "cyan", "one")]
    negatives = {kind: [f"{kind} {number} of {key}"] for kind in ("basic", "layout", "swaps")}
    return (
        summaries[: 6 if number % 2 else 4],
        negatives,
        {"sum": 20.0, "basic_0": 19.0, "layout_0": 3.0, "swaps_0": 4.0},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dci")
    (root / "complete").mkdir()
    (root / "photos").mkdir()
    for number in range(IMAGES):
        noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((800, 600)).save(root / "photos" / f"sa_{number}.jpg")
        made = {key: texts(number, key) for key in ("base", *(f"m-{key}-sc" for key in BOXES))}
        annotation = {
            "image": f"sa_{number}.jpg",
            "height": 600,
            "width": 800,
            "short_caption": "A red barn beside a pond.",
            "extra_caption": "Clouds cover the sky.",
            "mask_data": {key: mask(key) for key in BOXES},
            "mask_keys": list(BOXES),
            "summaries": {key: summaries for key, (summaries, _, _) in made.items()},
            "negatives": {key: negatives for key, (_, negatives, _) in made.items()},
            "clip_scores": {key: scores for key, (_, _, scores) in made.items()},
        }
        (root / "complete" / f"{number:06d}-data.json").write_text(json.dumps(annotation))
    return root


def packed(folder: Path, out: Path, store: str, darken: bool) -> list[Entry]:
    crops = {"store": store, "darken": darken, "format": "png"}
    given = {"annotations": str(folder / "complete"), "images": str(folder / "photos"), "out": str(out)}
    engines = {"summaries": {"engines": ["given"]}, "negatives": {"engines": ["given"]}}
    recipe = PackRecipe.model_validate({**given, **engines, "crops": crops, "unit_rows": 4, "shards": {"row_group": 3}})
    pack(recipe, Engine([], 1), Console(file=io.StringIO()))
    return list(read_entries(str(out)))


@pytest.fixture(scope="module")
def stored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Entry]]:
    out = tmp_path_factory.mktemp("run") / "rows"
    return str(out), packed(folder, out, "rows", True)


def test_every_column_is_scored_on_the_entries_it_is_meant_for(stored: tuple[str, list[Entry]], tmp_path: Path) -> None:
    run, entries = stored
    tiny_clip(width=16, layers=(1, 1)).save(str(tmp_path / "model"))
    keys = [(entry.file, entry.key) for entry in entries]
    assert keys == [(f"{n:06d}-data.json", key) for n in range(IMAGES) for key in ("base", "m-0-sc", "m-3-sc")]
    assert entries[0].hardest_negative() == "basic 0 of base"
    scores = measure(sdci, str(tmp_path), run, device="cpu")
    assert scores["entries"] == scores["All-SCM.entries"] == scores["All-Neg.entries"] == 3 * IMAGES
    assert scores["All-SCM.last_batch"] == 7
    assert scores["Base-Neg.entries"] == IMAGES
    assert scores["All-Hard-Negs.entries"] == 3 * IMAGES
    assert scores["All-Pick5-SCM.entries"] == 3 * (IMAGES // 2)
    assert scores["entries.empty"] == scores["entries.unreadable"] == 0


def test_crops_cut_at_load_time_are_those_that_are_stored(
    folder: Path, stored: tuple[str, list[Entry]], tmp_path: Path
) -> None:
    boxes = packed(folder, tmp_path / "boxes", "boxes", True)
    assert [entry.id for entry in stored[1]] == [entry.id for entry in boxes]
    assert all(entry.picture.box is None for entry in stored[1])
    for a, b in zip(stored[1], boxes, strict=True):
        assert a.image().tobytes() == b.image().tobytes()
