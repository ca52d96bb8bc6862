"""The page of `granary compare`: maps, curves and tables of what `compared` gives, in one file that needs no network.

It is made from the numbers alone, without torch, so that it can be written again from the JSON file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from granary.curation.report.page import environment
from granary.curation.report.plot import Plot, plots

HERE = "granary.training.report"
LEVELS = 20  # shades of a map
SIDE, EDGE = 260, 34  # of the longer side of a map, and the room for its numbers


@dataclass(frozen=True)
class Heat:
    """A map of numbers as squares: `shades` are (opacity, outline of all squares of that shade).

    Args:
        empty: outline of the squares without a number.
        rows, columns: (place, text) of the ticks.
        told: what it shows, in words.
    """

    width: float
    height: float
    shades: list[tuple[float, str]]
    empty: str
    rows: list[tuple[float, str]]
    columns: list[tuple[float, str]]
    told: str


@dataclass(frozen=True)
class Lines:
    """Curves of several models in one box: (name, number of its colour, its drawing)."""

    title: str
    unit: str
    box: Plot
    curves: list[tuple[str, int, Plot]]


def compare_page(tree: Mapping[str, Any]) -> str:
    """Return the page as HTML, UTF-8; the same numbers give the same text.

    Args:
        tree: what `granary.training.evaluation.comparison.compared` returns.
    """
    html = (
        environment(HERE)
        .get_template("compare.html.j2")
        .render(
            settings=tree["settings"],
            models=tree["models"],
            pairs=[{**pair, "heat": heat(pair)} for pair in tree["pairs"]],
            depth=[lines for reduction in ("cls", "mean") if (lines := _depth(tree, reduction)) is not None],
            layers=list(_layers(tree)),
            attention=list(_attention(tree)),
            kinds=list(dict.fromkeys(kind for pair in tree["pairs"] for kind in pair["kinds"])),
        )
    )
    return html.encode("utf-8", "replace").decode("utf-8")


def heat(pair: Mapping[str, Any]) -> Heat:
    """Draw the map of two models, darker for what is more alike; numbers below 0 are drawn as 0."""
    values: Sequence[Sequence[float | None]] = pair["values"]
    high, wide = len(values), len(values[0])
    cell = SIDE / max(high, wide)
    squares: dict[int | None, list[str]] = {}
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            level = None if value is None else round(LEVELS * min(max(value, 0.0), 1.0))
            squares.setdefault(level, []).append(
                f"M{EDGE + j * cell:.1f} {i * cell:.1f}h{cell:.2f}v{cell:.2f}h-{cell:.2f}z"
            )
    known = [value for row in values for value in row if value is not None]
    told = f"CKA from {min(known):.2f} to {max(known):.2f}" if known else "no CKA"
    return Heat(
        EDGE + wide * cell,
        high * cell + EDGE,
        [(level / LEVELS, "".join(squares[level])) for level in sorted(key for key in squares if key)],
        "".join(squares.get(None, [])),
        [(place * cell, text) for place, text in _ticks(pair["rows"], cell)],
        [(EDGE + place * cell, text) for place, text in _ticks(pair["columns"], cell)],
        f"{told}; {pair['one']} downwards, {pair['other']} to the right",
    )


def _ticks(sites: Sequence[str], cell: float) -> list[tuple[float, str]]:
    """Return the middle of the sites of each layer and its number, as many as there is room for."""
    layers = [site.partition(".")[0] for site in sites]
    middles = [(layers.index(layer) + layers.count(layer) / 2, layer) for layer in dict.fromkeys(layers)]
    every = max(1, math.ceil(12 * len(middles) / (cell * len(sites))))
    return middles[::every]


def _depth(tree: Mapping[str, Any], reduction: str) -> Lines | None:
    """Return the curves of CKA by depth of all pairs of different models."""
    pairs = [pair for pair in tree["pairs"] if pair["reduction"] == reduction and pair["one"] != pair["other"]]
    named = {f"{pair['one']} × {pair['other']}": pair["depth"] for pair in pairs}
    return _lines(f"CKA by layer, {WORDS[reduction]}", "", named)


WORDS = {"cls": "class token", "mean": "mean patch"}


def _layers(tree: Mapping[str, Any]) -> list[Lines]:
    """Return the curves of linear probe and kNN by layer."""
    found = []
    for column, title in ((1, "Linear probe"), (2, "kNN")):
        for reduction in ("cls", "mean"):
            named = {
                name: [(row[0], 100 * row[column]) for row in model["layers"].get(reduction, [])]
                for name, model in tree["models"].items()
            }
            found.append(_lines(f"{title} by layer, {WORDS[reduction]}", "%", named))
    return [lines for lines in found if lines is not None]


def _attention(tree: Mapping[str, Any]) -> list[Lines]:
    """Return the curves of attention by layer."""
    found = []
    for key, title, unit in (
        ("distance", "Mean attention distance", "px"),
        ("entropy", "Entropy of attention", "nats"),
    ):
        named = {name: model["attention"].get(key, []) for name, model in tree["models"].items()}
        found.append(_lines(title, unit, named))
    return [lines for lines in found if lines is not None]


def _lines(title: str, unit: str, named: Mapping[str, Sequence[Sequence[float | None]]]) -> Lines | None:
    """Return curves of (layer, value) in one box; None where no value is known."""
    curves = {
        name: [(float(layer or 0), math.nan if value is None else float(value)) for layer, value in points]
        for name, points in named.items()
    }
    drawn = plots(list(curves.values()))
    kept = [
        (name, number, one) for number, (name, one) in enumerate(zip(curves, drawn, strict=True)) if one is not None
    ]
    return Lines(title, unit, kept[0][2], kept) if kept else None


def pairs_table(tree: Mapping[str, Any]) -> str:
    """Return the mean CKA of the outputs of matched layers of every pair as a Markdown table."""
    rows = [["models", "tokens", "CKA"]]
    for pair in tree["pairs"]:
        value = "-" if pair["mean"] is None else f"{pair['mean']:.3f}"
        rows.append([f"{pair['one']} x {pair['other']}", WORDS[pair["reduction"]], value])
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    rows.insert(1, ["-" * widths[0], "-" * widths[1], "-" * (widths[2] - 1) + ":"])
    return "\n".join(f"| {a.ljust(widths[0])} | {b.ljust(widths[1])} | {c.rjust(widths[2])} |" for a, b, c in rows)
