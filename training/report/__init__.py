"""The report of a training, OUT/report/index.html: one page that needs no network, as those of the runs are.

It is made from what the training directory holds: run.json, recipe.yaml, the curves, the dead letters and the sheet of
views, so it can be written again at any time, without torch, the data or the model.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from granary.curation.report.page import render_page
from granary.curation.report.plot import Plot, plot
from granary.curation.runs.facts import Facts, Timing
from granary.curation.store import storage
from granary.curation.store.trees import mapping

HERE = "granary.training.report"
PAGE = "report/index.html"
SHEET = "report/views.jpg"
ROWS = 40  # of a table of numbers
DEAD = 100  # dead letters that are listed
MORE = (1, 2, 10)  # times as many steps, for the cost
COLLAPSE = ("relative_std", "effective_rank", "rank_me", "projection_std", "teacher_entropy", "teacher_mean_entropy")
Rows = list[dict[str, str]]


class Chart(TypedDict):
    """A column of a curve: its drawing, and its first, lowest, highest and last number."""

    name: str
    plot: Plot


class Section(TypedDict):
    """Some curves with a title."""

    key: str
    title: str
    charts: list[Chart]


def training_facts(url: str) -> dict[str, Any] | None:
    """Return run.json of a training directory; None where there is none, it is damaged, or of another kind of run.

    Args:
        url: the directory.
    """
    path = storage.join(url, "run.json")
    try:
        facts = mapping(path, storage.read_bytes(path))
    except (OSError, ValueError):
        return None
    return facts if facts.get("kind") == "train" else None


def write_report(url: str, facts: Mapping[str, Any]) -> str:
    """Write the report of a training; returns its URL.

    Args:
        url: the training directory.
        facts: its run.json.
    """
    page = storage.join(url, PAGE)
    storage.write_bytes(page, report_page(url, facts).encode())
    return page


def report_page(url: str, facts: Mapping[str, Any]) -> str:
    """Return the report of a training as HTML; arguments as above."""
    curves = {name: _rows(storage.join(url, f"{name}.csv")) for name in ("metrics", "probe", "validation")}
    recipe, sheet = storage.join(url, "recipe.yaml"), storage.join(url, SHEET)
    dead = _rows(storage.join(url, "dead-letter.csv"))
    return render_page(
        HERE,
        "train.html.j2",
        cast(Facts, {**facts, "stages": [_timing(facts)] if facts.get("seconds") else []}),
        storage.read_bytes(recipe).decode("utf-8", "replace") if storage.exists(recipe) else "",
        sections=[section for section in sections(curves) if section["charts"]],
        table=thinned(curves["metrics"], ROWS),
        columns=list(dict.fromkeys(name for row in curves["metrics"] for name in row)),
        ahead=_ahead(facts),
        views=base64.b64encode(storage.read_bytes(sheet)).decode() if storage.exists(sheet) else "",
        dead=dead[:DEAD],
        dead_count=len(dead),
    )


def sections(curves: Mapping[str, Rows]) -> list[Section]:
    """Return the curves of a report by what they tell, each column of a file once.

    Args:
        curves: rows of metrics, probe and validation.
    """
    metrics = charts(curves["metrics"])
    losses = [chart for chart in metrics if "loss" in chart["name"]]
    collapse = [chart for chart in metrics if chart["name"] in COLLAPSE]
    steering = [chart for chart in metrics if chart["name"].endswith(("lr", "weight_decay", "_norm"))]
    told = {chart["name"] for group in (losses, collapse, steering) for chart in group}
    return [
        Section(key="loss", title="Loss", charts=losses),
        Section(key="validation", title="Validation: rows not trained on", charts=charts(curves["validation"])),
        Section(key="probe", title="Probe: accuracy of frozen features", charts=charts(curves["probe"])),
        Section(key="collapse", title="Collapse: do features differ?", charts=collapse),
        Section(key="steering", title="Learning rate, weight decay, gradients", charts=steering),
        Section(key="others", title="What else was watched", charts=[c for c in metrics if c["name"] not in told]),
    ]


def charts(rows: Rows) -> list[Chart]:
    """Return a chart for each column of a curve but the step."""
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    drawn = ((name, plot([(_number(row.get("step")), _number(row.get(name))) for row in rows])) for name in names)
    return [Chart(name=name, plot=drawing) for name, drawing in drawn if drawing is not None]


def thinned(rows: Sequence[dict[str, str]], count: int) -> Rows:
    """Return at most so many rows, evenly spread, with the first and the last."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(at * (len(rows) - 1) / (count - 1))] for at in range(count)]


def _rows(url: str) -> Rows:
    """Return the rows of a CSV file; none where there is no file."""
    if not storage.exists(url):
        return []
    text = storage.read_bytes(url).decode("utf-8", "replace")
    return [{name: value or "" for name, value in row.items() if name} for row in csv.DictReader(io.StringIO(text))]


def _number(text: str | None) -> float:
    """Return the number that a cell holds; not a number where it holds none."""
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _timing(facts: Mapping[str, Any]) -> Timing:
    """Return the steps of a training as a stage, for the section on cost."""
    return Timing(
        stage="train",
        units=facts["step"],
        rows=facts.get("pictures", 0),
        noun="pictures",
        seconds=facts["seconds"],
        workers=facts.get("processes"),
    )


def _ahead(facts: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Return steps and the seconds they would take at the rate of the last session; nothing where that did none."""
    rate = facts.get("pictures_per_second", 0.0)
    if not rate or not facts["step"]:
        return []
    seconds = facts.get("pictures", 0) / facts["step"] / rate  # of a step
    return [(factor * facts["steps"], factor * facts["steps"] * seconds) for factor in MORE]
