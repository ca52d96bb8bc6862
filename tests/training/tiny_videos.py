"""Videos of a few frames of shapes, as a render writes them: one frame differs, and the question is about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tiny_shards import encoded, shape

from granary.curation.store.language import frames_features
from granary.curation.store.schema import arrow_schema


def video(number: int, frames: int = 6, side: int = 16) -> dict[str, Any]:
    """Return a row: one picture that stands still, and for a frame another one, of which the shape is asked."""
    files = [{"bytes": encoded(shape(n, side)[0], "PNG"), "path": f"{n}.png"} for n in (1000 + number, number)]
    place, name = number % frames, shape(number, side)[1]
    asked = {"id": str(number), "kind": "what", "question": "what is it?", "answer": name, "answers": [name]}
    shown = [files[frame == place] for frame in range(frames)]
    row = {"id": f"video-{number}", "images": shown, "questions": [asked], "needle": [place], "split": "train"}
    return row


def write_videos(folder: Path, rows: Sequence[dict[str, Any]], group: int = 8) -> str:
    """Write rows as the config videos of a run; returns the run."""
    target = folder / "dataset" / "videos"
    target.mkdir(parents=True)
    table = pa.Table.from_pylist(list(rows), arrow_schema(frames_features()))
    pq.write_table(table, target / "train-00000-of-00001.parquet", row_group_size=group)
    return str(folder)
