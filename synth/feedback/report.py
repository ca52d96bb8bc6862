"""The report of a sampling run: samples by class, guided beside unguided, the criterion along the steps, copies."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import yaml
from PIL import Image

from granary.curation.report.page import render_page, write_page
from granary.curation.report.thumbnails import jpeg, shrink
from granary.curation.runs.facts import Facts
from granary.curation.runs.run import Run, read_table
from granary.synth.feedback.outputs import sample_rows
from granary.synth.feedback.plan import Cell
from granary.synth.feedback.recipe import SampleRecipe
from granary.synth.feedback.steps import read_pictures

CLASSES = 200  # rows of the table
CLOSEST = 12  # samples most like a real picture
SIDE = 128


def report_facts(run: Run, cells: Mapping[Cell, int], recipe: SampleRecipe) -> dict[str, Any]:
    """Return what run.json says of the samples: by class, along the steps, and beside those without feedback.

    Args:
        run: whose samples are drawn and compared.
        cells: real pictures of each class, or class in a group.
        recipe: of the run.
    """
    classes = {cell: _Tally(real=real) for cell, real in cells.items()}
    guided, values, closest = _Means(), dict[str, float](), list[tuple[float, str, int, int]]()
    again = {row["row_id"]: row for row in _unguided(run) if row["status"] == "ok"}
    for unit in range(len(run.rows("draw"))):
        for position, row in enumerate(sample_rows(run, unit, images=False)):
            classes.setdefault(Cell(row["label"], row["group"]), _Tally()).add(row)
            if row["value"] is not None:
                if row["row_id"] in again or not again:
                    guided.add(row["trace"], row["value"])
                    values[row["row_id"]] = row["value"]
                closest.append((-row["similarity"], row["row_id"], unit, position))
        closest = sorted(closest)[:CLOSEST]
    plain, unguided = _Means(), [row for row in again.values() if row["row_id"] in values]
    for row in unguided:
        plain.add(row["trace"], row["value"])
    return {
        "criterion": recipe.guidance.criterion,
        "omega": recipe.guidance.omega,
        "copy_threshold": recipe.copies.threshold,
        "classes": [{"label": cell.label, "group": cell.group, **tally.facts()} for cell, tally in classes.items()],
        "trace": {"guided": guided.trace(), "unguided": plain.trace()},
        "pairs": {
            "count": len(unguided),
            "guided": _mean([values[row["row_id"]] for row in unguided]),
            "unguided": _mean([row["value"] for row in unguided]),
        },
        "closest": [{"unit": unit, "row": position, "similarity": -s} for s, _, unit, position in closest],
    }


def _unguided(run: Run) -> list[dict[str, Any]]:
    columns = ["row_id", "status", "value", "trace"]
    return [row for url in run.parts("unguided") for row in read_table(url, columns).to_pylist()]


class _Tally:
    """What became of the rows of one cell."""

    def __init__(self, real: int = 0) -> None:
        self.real, self.planned, self.kept, self.hits, self.copies = real, 0, 0, 0, 0
        self.values: float = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row."""
        self.planned += 1
        if row["status"] == "ok":
            self.kept += 1
            self.hits += row["hit"]
            self.copies += row["copy"]
            self.values += row["value"]

    def facts(self) -> dict[str, Any]:
        """Return counts, and means over the samples that were kept (None without any)."""
        share = lambda total: round(total / self.kept, 4) if self.kept else None  # noqa: E731
        return {
            "real": self.real,
            "planned": self.planned,
            "kept": self.kept,
            "copies": self.copies,
            "value": share(self.values),
            "agreed": share(self.hits),
        }


class _Means:
    """The mean criterion at each feedback step (NaN where a step was skipped) and of the finished sample."""

    def __init__(self) -> None:
        self.sums: list[float] = []
        self.counts: list[int] = []

    def add(self, trace: Sequence[float], value: float) -> None:
        """Add a sample."""
        for step, found in enumerate([*trace, value]):
            if step == len(self.sums):
                self.sums.append(0.0)
                self.counts.append(0)
            if math.isfinite(found):
                self.sums[step] += found
                self.counts[step] += 1

    def trace(self) -> list[float | None]:
        """Return the means, the finished sample last."""
        return [round(s / n, 4) if n else None for s, n in zip(self.sums, self.counts, strict=True)]


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None


def write_report(url: str, recipe: SampleRecipe, facts: Mapping[str, Any]) -> str:
    """Write report/index.html of a finished run; returns its URL.

    Args:
        url: the run directory.
        recipe: of the run.
        facts: run.json.
    """
    run = Run(url.rstrip("/"), {"data": recipe.data, "holdout": recipe.holdout})
    html = render_page(
        "granary.synth.feedback",
        "sample.html.j2",
        cast(Facts, facts),
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        classes=sorted(facts["classes"], key=lambda row: (-row["real"], row["label"], row["group"]))[:CLASSES],
        most=max((row["real"] + row["kept"] for row in facts["classes"]), default=1) or 1,
        drawing=drawing(facts["trace"]),
        pairs=list(pairs(run)),
        closest=list(closest(run, facts["closest"], recipe)),
    )
    return write_page(run, html)


def pairs(run: Run) -> Iterator[dict[str, Any]]:
    """Yield (guided, unguided) pictures of the same seed with what is known of both."""
    unguided = {row["row_id"]: row for url in run.parts("unguided") for row in read_table(url).to_pylist()}
    if not unguided:
        return
    for unit in range(len(run.rows("draw"))):
        ids = run.read("draw", unit, ["row_id"])["row_id"].to_pylist()
        if unguided.keys() & set(ids):
            for row in sample_rows(run, unit):
                plain = unguided.get(row["row_id"])
                if plain and row["image"] and plain["image"]:
                    yield {"label": row["label"], "group": row["group"], "guided": tile(row), "unguided": tile(plain)}


def closest(run: Run, rows: Sequence[Mapping[str, Any]], recipe: SampleRecipe) -> Iterator[dict[str, Any]]:
    """Yield the samples that resemble a real picture most, beside that picture."""
    for place in rows:
        row = run.read("draw", place["unit"]).slice(place["row"], 1).to_pylist()[0]
        compared = run.read("nearest", place["unit"]).slice(place["row"], 1).to_pylist()[0]
        [real] = read_pictures(run, [compared["nearest_index"]], recipe.decode.model_dump())
        shown = data_uri(real) if isinstance(real, Image.Image) else None
        yield {"sample": tile(row), "real": shown, "similarity": place["similarity"], "copy": compared["copy"]}


def tile(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is shown of a drawn sample."""
    image = Image.open(io.BytesIO(row["image"])).convert("RGB")
    kept = ("row_id", "value", "predicted", "probability", "width")
    return {**{key: row[key] for key in kept}, "source": data_uri(image)}


def data_uri(image: Image.Image) -> str:
    """Return a thumbnail as a data: URI; pictures of fewer than 64 pixels stay as they are."""
    small = shrink(image, SIDE)
    if max(small.size) < 64:
        buffer = io.BytesIO()
        small.save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(small, quality=72)).decode()}"


def drawing(trace: Mapping[str, Sequence[float | None]]) -> dict[str, Any] | None:
    """Return the mean criterion along the steps as outlines in a 560 x 240 box; None when there are no two points."""
    lines = {name: [(i, v) for i, v in enumerate(values) if v is not None] for name, values in trace.items()}
    points = [point for line in lines.values() for point in line]
    last = max((i for i, _ in points), default=0)
    if not last:
        return None
    low, high = min(0.0, *(v for _, v in points)), max(v for _, v in points)
    x = lambda i: round(56 + 480 * i / last, 1)  # noqa: E731
    y = lambda v: round(204 - 188 * (v - low) / ((high - low) or 1), 1)  # noqa: E731
    return {
        "lines": {
            name: {
                "path": "M" + "L".join(f"{x(i)} {y(v)}" for i, v in line),
                "points": [(x(i), y(v), v) for i, v in line],
            }
            for name, line in lines.items()
            if len(line) > 1
        },
        "x_ticks": [(x(i), str(i + 1)) for i in range(0, last, 1 + last // 12)] + [(x(last), "final")],
        "y_ticks": [(y(low + (high - low) * part / 4), f"{low + (high - low) * part / 4:.2f}") for part in range(5)],
    }
