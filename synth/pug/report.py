"""The report of a render: a contact sheet for each factor, and what was quarantined. One HTML file, bounded in size."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from granary.curation.images.limits import DecodeLimits
from granary.curation.report.page import render_page, write_page
from granary.curation.report.survey import rank
from granary.curation.report.thumbnails import Thumbnail, Thumbnails
from granary.curation.runs.facts import Facts
from granary.curation.runs.run import Run
from granary.curation.store import storage

VALUES = 16  # values of a factor that are pictured
EXAMPLES = 12  # rows of a kind of failure that are listed
SAMPLE = 500_000  # rows looked at for the contact sheets
Place = tuple[str, int, int]  # shard, row group, row in it


def write_report(run: Run, facts: Facts, factors: Mapping[str, Sequence[str]]) -> str:
    """Write report/index.html of a run; returns its URL.

    Args:
        run: its directory.
        facts: run.json.
        factors: for each factor the columns that it sets.
    """
    sheets = contact_sheets(run, factors, int(facts.get("seed", 0)))
    pictures = dict(_pictures(run, {cell for sheet in sheets.values() for _, _, cell in sheet}))
    thumbnail = Thumbnails(lambda uri: pictures[uri], DecodeLimits())
    dead = _dead(run)
    html = render_page(
        "granary.synth.pug",
        "report.html.j2",
        facts,
        storage.read_bytes(run.path("recipe.yaml")).decode(),
        sheets=sheets,
        picture=lambda cell: thumbnail(_name(cell)),
        flow=facts["flow"][0],
        errors=Counter(row["error"] for row in dead),
        examples=_examples(dead),
        quarantined=lambda row_id: _quarantined(run, row_id),
        shown=VALUES,
    )
    return write_page(run, html)


def contact_sheets(
    run: Run, factors: Mapping[str, Sequence[str]], seed: int
) -> dict[str, list[tuple[str, int, Place]]]:
    """Choose pictures that show one factor at a time.

    Returns:
        For each factor and value the value as text, how many pictures have it, and the picture that differs least in
        the other factors from one picture drawn by the seed.
    """
    columns = list(dict.fromkeys(itertools.chain.from_iterable(factors.values())))
    rows = list(itertools.islice(_rows(run, columns), SAMPLE))
    if not rows:
        return {}
    anchor = min(rows, key=lambda item: rank(seed, item[1]["row_id"]))[1]
    sheets = {}
    for factor, owned in factors.items():
        counts: Counter[tuple[Any, ...]] = Counter()
        best: dict[tuple[Any, ...], tuple[tuple[int, int], Place]] = {}
        others = [column for column in columns if column not in owned]
        for cell, row in rows:
            value = tuple(row[column] for column in owned)
            counts[value] += 1
            if len(best) < VALUES or value in best:
                key = (sum(row[column] != anchor[column] for column in others), rank(seed, row["row_id"]))
                best[value] = min(best.get(value, (key, cell)), (key, cell))
        sheets[factor] = [
            (", ".join(map(_text, value)), counts[value], best[value][1]) for value in sorted(best, key=_order)
        ]
    return sheets


def _rows(run: Run, columns: Sequence[str]) -> Iterator[tuple[Place, dict[str, Any]]]:
    for name in storage.names(run.path("dataset", "data")):
        if name.endswith(".parquet"):
            with storage.open_read(run.path("dataset", "data", name)) as file:
                shard = pq.ParquetFile(file)
                for group in range(shard.num_row_groups):
                    table = shard.read_row_group(group, columns=["row_id", *columns])
                    yield from (((name, group, i), row) for i, row in enumerate(table.to_pylist()))


def _pictures(run: Run, cells: set[Place]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of pictures, each row group read once."""
    for (name, group), some in itertools.groupby(sorted(cells), key=lambda cell: cell[:2]):
        with storage.open_read(run.path("dataset", "data", name)) as file:
            images = pq.ParquetFile(file).read_row_group(group, columns=["image"])["image"]
            for cell in some:
                yield _name(cell), images[cell[2]].as_py()["bytes"]


def _name(cell: Place) -> str:
    return f"{cell[0]}:{cell[1]}:{cell[2]}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _order(value: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple((isinstance(part, str), part) for part in value)


def _dead(run: Run) -> list[dict[str, Any]]:
    return run.read_all("dead-letter").to_pylist() if run.parts("dead-letter") else []


def _examples(dead: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    examples: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in dead:
        if len(examples[row["error"]]) < EXAMPLES:
            examples[row["error"]].append(row)
    return dict(examples)


def _quarantined(run: Run, row_id: str) -> Thumbnail:
    """Return what a refused frame looked like."""
    return Thumbnails(lambda uri: storage.read_bytes(uri), DecodeLimits())(run.path("quarantine", f"{row_id}.png"))
