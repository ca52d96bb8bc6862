"""The report of a curation run: one HTML file that needs no network, no script and no other file.

Everything in it is bounded (rows, pictures, bytes), so a pool of a million images gives a page of a few
megabytes, made in two passes over the ledger with memory that does not grow.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2

from granary.curation.report.charts import bands, curve, discrepancies, start, totals
from granary.curation.report.cost import cost_section
from granary.curation.report.survey import Survey, locate
from granary.curation.report.thumbnails import Thumbnails, contact_sheet
from granary.curation.report.view import RunView

__all__ = ["RunView", "build_report", "contact_sheet"]

RECIPE_CHARACTERS = 100_000


def build_report(run: RunView) -> str:
    """Return the report of a run as HTML (UTF-8, at most about 8 MB).

    The same run gives the same text. Files that cannot be read or decoded leave an empty tile with the
    reason. Sums that do not add up are said so at the top.
    """
    flow = run.summary["flow"]
    survey = Survey(run.ledger, int(run.summary.get("seed", 0)))
    located = locate(run.ledger, survey)
    statuses = {status: n for (role, status), n in survey.counts.items() if role == "pool"}
    template = environment().get_template("report.html.j2")
    html = template.render(
        run=run.summary,
        recipe=run.recipe[:RECIPE_CHARACTERS],
        start=start(flow),
        bands=bands(flow),
        removed={row["stage"]: row["dropped"] for row in flow},
        roles={source["role"] for source in run.summary.get("sources", [])},
        totals=totals(flow),
        problems=discrepancies(flow, statuses),
        curve=curve(run.summary.get("removed_at") or []),
        cost=cost_section(run.summary),
        survey=survey,
        located=located,
        seeds_kept=survey.counts["seed", "kept"],
        seed_uri=run.seed_uri,
        examples=examples(survey),
        thumbnail=Thumbnails(run.read, run.limits),
    )
    # Messages of the operating system may hold lone surrogates, which UTF-8 has no bytes for.
    return html.encode("utf-8", "replace").decode("utf-8")


def examples(survey: Survey) -> list[tuple[str, str]]:
    """Return (what happened to it, id) of a few images worth asking `granary explain` about."""
    leaks = [row for leak in survey.leaks.values() for row in leak.rows()[:1]]
    chosen = [("kept", survey.kept.rows()[:1]), ("removed as a leak", leaks[:1])]
    duplicates = [{"id": component.representative} for component in survey.components()[:1]]
    chosen.insert(1, ("kept for its near duplicates", duplicates))
    return [(what, row["id"]) for what, rows in chosen for row in rows if row["id"]]


@cache
def environment() -> jinja2.Environment:
    """Return the template environment: everything is escaped, and a missing value is an error."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("granary.curation.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(clip=clip, name=name, number=number, percent=percent, duration=duration)
    return found


def clip(text: object, characters: int = 300) -> str:
    """Shorten a text in its middle, where names differ least."""
    whole = str(text)
    half = (characters - 1) // 2
    return whole if len(whole) <= characters else f"{whole[:half]}…{whole[-half:]}"


def name(uri: str) -> str:
    """Return the last part of a uri, short enough to stand under a picture."""
    return clip(uri.rstrip("/").rsplit("/", 1)[-1], 60)


def number(value: Any) -> str:
    """Write a count with thousands separators."""
    return f"{value:,}"


def percent(part: float, whole: float) -> str:
    """Write part of whole in percent; small shares keep a digit and never read as 0 %."""
    share = 100 * part / whole if whole else 0.0
    return "<0.1 %" if 0 < share < 0.1 else f"{share:.1f} %" if share % 100 else f"{share:.0f} %"


def duration(seconds: float) -> str:
    """Write seconds in the unit that reads best."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02d} min" if hours < 72 else f"{hours / 24:,.0f} days"
