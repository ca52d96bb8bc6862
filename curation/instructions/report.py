"""The report of a pack run of instructions: some pictures with what is asked of them, and what was lost."""

from __future__ import annotations

import base64
import io
from typing import Any

from granary.curation.images.decode import decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.report.page import render_page, write_page
from granary.curation.report.thumbnails import shrink
from granary.curation.runs.chosen import image_shards
from granary.curation.runs.facts import Facts
from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_groups

PICTURES, ASKED, LETTERS, SIDE = 12, 12, 40, 200
COLUMNS = ["image", "split", "instructions", "source"]


def write_report(run: Run, facts: Facts, recipe: str) -> str:
    """Write report/index.html of a finished run; returns its URL.

    Args:
        run: its directory.
        facts: run.json.
        recipe: as YAML.
    """
    values = {"pictures": _pictures(run), "groups": _groups(run), "letters": _letters(run), "most": ASKED}
    return write_page(
        run, render_page("granary.curation.instructions", "instructions.html.j2", facts, recipe, **values)
    )


def _shown(data: bytes) -> str:
    """Return a small copy of a picture as a data URL."""
    file = io.BytesIO()
    shrink(decode(data, DecodeLimits(), SIDE).image, SIDE).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _pictures(run: Run) -> list[dict[str, Any]]:
    """Return the first pictures with their instructions."""
    shown: list[dict[str, Any]] = []
    for url in image_shards(run):
        for table in read_groups(url, COLUMNS):
            for row in table.slice(0, PICTURES - len(shown)).to_pylist():
                shown.append({**row, "pictures": [_shown(row["image"]["bytes"])]})
            if len(shown) == PICTURES:
                return shown
    return shown


def _groups(run: Run) -> list[dict[str, Any]]:
    """Return the first groups of pictures with their instructions."""
    for part in run.parts("groups")[:1]:
        for table in read_groups(run.path("dataset", "groups", part.rsplit("/", 1)[-1])):
            rows = table.slice(0, PICTURES).to_pylist()
            return [{**row, "pictures": [_shown(file["bytes"]) for file in row["images"]]} for row in rows]
    return []


def _letters(run: Run) -> list[dict[str, Any]]:
    """Return the first dead letters."""
    letters: list[dict[str, Any]] = []
    for part in run.parts("dead-letter"):
        for table in read_groups(part):
            letters += table.slice(0, LETTERS - len(letters)).to_pylist()
    return letters
