"""What the page asks for, and what it is told: numbers as arrays of bytes, the rest as JSON."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import numpy as np

from granary.curation.errors import UserError
from granary.curation.images.limits import DecodeLimits
from granary.curation.store.addresses import stored
from granary.curation.view.answers import BYTES, Answer, Request, as_json, row_of
from granary.curation.view.catalogue import Catalogue
from granary.curation.view.curated import Curated
from granary.curation.view.export import exported
from granary.curation.view.facets import Facet, facets_of
from granary.curation.view.pictures import LARGE, SIDE, NotShown, Pictures
from granary.curation.view.stories import Story

SCRIPTS = ("page.js", "filters.js", "grid.js", "detail.js", "pairs.js", "map.js", "decisions.js")
TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(SCRIPTS, "text/javascript; charset=utf-8"),
}
MOST_AT_ONCE = 500  # rows of one answer
KEPT_SECONDS = 3600
TILE = ("uri", "id", "status", "stage", "reason", "label")


class Api:
    """Answers the requests of one page.

    Args:
        catalogue: the rows of the run.
        limits: on what is decoded.
        story: tells what became of a row.
        curated: answers what only a run of curate can; None of other runs.
    """

    def __init__(
        self, catalogue: Catalogue, limits: DecodeLimits, story: Story, curated: Curated | None = None
    ) -> None:
        self.catalogue, self.story, self.curated = catalogue, story, curated
        self.pictures = Pictures(catalogue, limits)
        self.facets = {facet.name: facet for facet in facets_of(catalogue)}
        self.routes: Mapping[tuple[str, str], Callable[[Request], Answer]] = {
            ("GET", "run"): self.run,
            ("GET", "facet"): self.facet,
            ("GET", "rows"): self.rows,
            ("GET", "row"): self.row,
            ("GET", "picture"): self.picture,
            ("GET", "search"): self.search,
            ("POST", "export"): self.export,
            **(curated.routes if curated else {}),
        }

    def __call__(self, request: Request) -> Answer:
        """Return the answer to a request; raises UserError for a question that has none."""
        name = request.path or "index.html"
        if request.method == "GET" and name in TYPES:
            return Answer(page_file(name), TYPES[name])
        route = self.routes.get((request.method, name))
        return route(request) if route else Answer.plain(HTTPStatus.NOT_FOUND, "there is nothing of that name")

    def run(self, request: Request) -> Answer:
        """Tell what the run is, and by what its rows are filtered."""
        facts = self.catalogue.facts
        facets = [
            {"name": facet.name, "values": facet.values, "many": facet.starts is not None}
            for facet in self.facets.values()
        ]
        return as_json(
            {
                "kind": facts["kind"],
                "name": facts["name"],
                "where": stored(self.catalogue.run.url),
                "rows": len(self.catalogue),
                "total": self.catalogue.total,
                "notes": facts.get("notes", []),
                "facets": facets,
                "spaces": list(self.curated.spaces) if self.curated else [],
                "own": bool(self.curated and self.curated.takes_files),
                "pairs": self.curated is not None,
                "decides": self.curated is not None,
            }
        )

    def facet(self, request: Request) -> Answer:
        """Give the values of a facet: of one value for each row its codes, else the starts of the rows before them."""
        facet: Facet | None = self.facets.get(request.query.get("name", ""))
        if facet is None:
            raise UserError(f"name: there are the facets {', '.join(self.facets)}")
        starts = b"" if facet.starts is None else facet.starts.astype("<u4").tobytes()
        return Answer(starts + facet.codes.astype("<u2").tobytes(), BYTES)

    def rows(self, request: Request) -> Answer:
        """Tell of some rows what stands below their pictures."""
        numbers = [row_of(self.catalogue, text) for text in request.query.get("rows", "").split(",")[:MOST_AT_ONCE]]
        rows = map(self.catalogue.row, numbers)
        return as_json([{name: row[name] for name in TILE} | {"caption": _first(row)} for row in rows])

    def row(self, request: Request) -> Answer:
        """Tell all that is known of a row."""
        number = row_of(self.catalogue, request.query.get("row", ""))
        return as_json({"row": self.catalogue.row(number), **self.story(number)})

    def picture(self, request: Request) -> Answer:
        """Give a picture, or say why there is none; of a row, or of a role's file that has no row."""
        side = LARGE if request.query.get("size") == "large" else SIDE
        try:
            if "uri" in request.query:
                data = self.pictures.of_file(request.query.get("role", ""), request.query["uri"], side)
            else:
                data = self.pictures.of_row(row_of(self.catalogue, request.query.get("row", "")), side)
        except NotShown as reason:
            return Answer.plain(HTTPStatus.NOT_FOUND, str(reason))
        return Answer(data, "image/jpeg", keep=KEPT_SECONDS)

    def search(self, request: Request) -> Answer:
        """Give the rows whose uri, id or captions hold every word of a text, as uint32."""
        return Answer(self.catalogue.find(request.query.get("text", "")).astype("<u4").tobytes(), BYTES)

    def export(self, request: Request) -> Answer:
        """Give the rows of the body, uint32, as a list to keep: CSV or JSON lines."""
        if len(request.body) % 4:
            raise UserError("export: the body holds rows as uint32")
        numbers = np.frombuffer(request.body, "<u4").astype(np.int64)
        if numbers.size and numbers.max() >= len(self.catalogue):
            raise UserError(f"export: the rows are below {len(self.catalogue)}")
        data, media = exported(self.catalogue, numbers, request.query.get("format", ""))
        return Answer(data, media)


def _first(row: Mapping[str, Any]) -> str | None:
    captions: Sequence[str] | None = row["captions"]
    return captions[0] if captions else None


@functools.cache
def page_file(name: str) -> bytes:
    """Return a file of the page."""
    return (importlib.resources.files("granary.curation.view") / "page" / name).read_bytes()
