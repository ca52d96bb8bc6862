"""The report of a pack run of videos: a picture, the times and the clips of some of them, and what was lost."""

from __future__ import annotations

import base64
from typing import Any

from granary.curation.report.page import render_page, write_page
from granary.curation.runs.chosen import image_shards
from granary.curation.runs.facts import Facts
from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_groups

VIDEOS, CLIPS, LETTERS = 24, 12, 40
COLUMNS = ["name", "image", "label", "width", "height", "frames", "seconds", "codec", "clips", "split"]


def write_report(run: Run, facts: Facts, recipe: str) -> str:
    """Write report/index.html of a finished run; returns its URL.

    Args:
        run: its directory.
        facts: run.json.
        recipe: as YAML.
    """
    limits = {"clips": CLIPS, "letters": LETTERS}
    values = {"videos": _videos(run), "letters": _letters(run), "limits": limits}
    return write_page(run, render_page("granary.curation.videos", "videos.html.j2", facts, recipe, **values))


def _videos(run: Run) -> list[dict[str, Any]]:
    """Return the first videos, their pictures as data URLs; the files themselves are not read."""
    shown: list[dict[str, Any]] = []
    for url in image_shards(run):
        for table in read_groups(url, COLUMNS):
            for row in table.to_pylist():
                picture = "data:image/jpeg;base64," + base64.b64encode(row["image"]["bytes"]).decode()
                shown.append({**row, "picture": picture})
                if len(shown) == VIDEOS:
                    return shown
    return shown


def _letters(run: Run) -> list[dict[str, Any]]:
    """Return the first dead letters."""
    letters: list[dict[str, Any]] = []
    for part in run.parts("dead-letter"):
        for table in read_groups(part):
            letters += table.slice(0, LETTERS - len(letters)).to_pylist()
    return letters
