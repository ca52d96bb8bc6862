"""The report of a sampling run: samples by class, guided beside unguided, the criterion along the steps, copies."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import TypedDict

import yaml
from PIL import Image

from granary.curation.report.page import render_page, write_page
from granary.curation.report.thumbnails import jpeg, shrink
from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_table
from granary.synth.feedback.drawing import DrawnRow, NearestRow
from granary.synth.feedback.outputs import SampleRow, sample_rows
from granary.synth.feedback.real import read_pictures
from granary.synth.feedback.recipe import SampleRecipe
from granary.synth.feedback.summary import Resemblance, SampleFacts, Trace, Traces

CLASSES = 200  # rows of the table
SIDE = 128  # pixels of a thumbnail
LEFT, WIDTH, FLOOR, HEIGHT = 56, 480, 204, 188  # pixels of the curves
Point = tuple[float, float]


class Tile(TypedDict):
    """What is shown of a drawn sample; `source` is a data: URI."""

    row_id: str
    value: float
    predicted: str
    probability: float
    width: int
    source: str


class Pair(TypedDict):
    """Pictures of the same seed, with feedback and without."""

    label: str
    group: str
    guided: Tile
    unguided: Tile


class Close(TypedDict):
    """A sample beside the real picture it resembles most; `real` is a data: URI, None where it cannot be read."""

    sample: Tile
    real: str | None
    similarity: float
    copy: bool


class Line(TypedDict):
    """A curve: its outline, and x, y and value of each point."""

    path: str
    points: list[tuple[float, float, float]]


class Curves(TypedDict):
    """The mean criterion along the steps in a 560 x 240 box; ticks are places and texts."""

    lines: dict[str, Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def write_report(url: str, recipe: SampleRecipe, facts: SampleFacts) -> str:
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
        facts,
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        classes=sorted(facts["classes"], key=lambda row: (-row["real"], row["label"], row["group"]))[:CLASSES],
        most=max((row["real"] + row["kept"] for row in facts["classes"]), default=1) or 1,
        drawing=curves(facts["trace"]),
        pairs=list(pairs(run)),
        closest=list(closest(run, facts["closest"], recipe)),
    )
    return write_page(run, html)


def pairs(run: Run) -> Iterator[Pair]:
    """Yield pictures of the same seed, with feedback and without, with what is known of both."""
    unguided = {row["row_id"]: row for url in run.parts("unguided") for row in read_table(url).to_pylist()}
    if not unguided:
        return
    for unit in range(len(run.rows("draw"))):
        ids = run.read("draw", unit, ["row_id"])["row_id"].to_pylist()
        if unguided.keys() & set(ids):
            for row in sample_rows(run, unit):
                plain = unguided.get(row["row_id"])
                if plain and row["image"] and plain["image"]:
                    yield Pair(label=row["label"], group=row["group"], guided=tile(row), unguided=tile(plain))


def closest(run: Run, places: Sequence[Resemblance], recipe: SampleRecipe) -> Iterator[Close]:
    """Yield the samples that resemble a real picture most, beside that picture."""
    for place in places:
        row: DrawnRow = run.read("draw", place["unit"]).slice(place["row"], 1).to_pylist()[0]
        compared: NearestRow = run.read("nearest", place["unit"]).slice(place["row"], 1).to_pylist()[0]
        [real] = read_pictures(run, [compared["nearest_index"]], recipe.decode)
        shown = data_uri(real) if isinstance(real, Image.Image) else None
        yield Close(sample=tile(row), real=shown, similarity=place["similarity"], copy=compared["copy"])


def tile(row: DrawnRow | SampleRow) -> Tile:
    """Return what is shown of a drawn sample."""
    return Tile(
        row_id=row["row_id"],
        value=row["value"],
        predicted=row["predicted"],
        probability=row["probability"],
        width=row["width"],
        source=data_uri(Image.open(io.BytesIO(row["image"])).convert("RGB")),
    )


def data_uri(image: Image.Image) -> str:
    """Return a thumbnail as a data: URI; pictures of fewer than 64 pixels stay as they are."""
    small = shrink(image, SIDE)
    if max(small.size) < 64:
        buffer = io.BytesIO()
        small.save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(small, quality=72)).decode()}"


def curves(traces: Traces) -> Curves | None:
    """Return the mean criterion along the steps as outlines; None when there are no two points."""
    lines = {"guided": _finite(traces["guided"]), "unguided": _finite(traces["unguided"])}
    points = [point for line in lines.values() for point in line]
    last = max((step for step, _ in points), default=0)
    if not last:
        return None
    values = [value for _, value in points]
    low, high = min(0.0, *values), max(values)
    ticks = [low + (high - low) * part / 4 for part in range(5)]

    def placed(step: float, value: float) -> Point:
        x = round(LEFT + WIDTH * step / last, 1)
        return x, round(FLOOR - HEIGHT * (value - low) / ((high - low) or 1), 1)

    return Curves(
        lines={
            name: Line(
                path="M" + "L".join("{} {}".format(*placed(*point)) for point in line),
                points=[(*placed(*point), point[1]) for point in line],
            )
            for name, line in lines.items()
            if len(line) > 1
        },
        x_ticks=[(placed(step, low)[0], str(step + 1)) for step in range(0, int(last), 1 + int(last) // 12)]
        + [(placed(last, low)[0], "final")],
        y_ticks=[(placed(0, value)[1], f"{value:.2f}") for value in ticks],
    )


def _finite(trace: Trace) -> list[Point]:
    return [(step, value) for step, value in enumerate(trace) if value is not None]
