"""The report of a curation run.

Everything in it is bounded (rows, pictures, bytes), so a pool of a million images gives a page of a few
megabytes, made in two passes over the ledger with memory that does not grow.
"""

from __future__ import annotations

from granary.curation.report.charts import bands, curve, discrepancies, start, totals
from granary.curation.report.page import HERE, render_page
from granary.curation.report.survey import Survey, locate
from granary.curation.report.thumbnails import Thumbnails, contact_sheet
from granary.curation.report.view import RunView

__all__ = ["RunView", "build_report", "contact_sheet"]


def build_report(run: RunView) -> str:
    """Return the report of a run as HTML (UTF-8, at most about 8 MB).

    The same run gives the same text. Files that cannot be read or decoded leave an empty tile with the
    reason. Sums that do not add up are said so at the top.
    """
    flow, below = run.summary["flow"], run.doubtful.removed if run.doubtful else []
    survey = Survey(run.ledger, int(run.summary.get("seed", 0)), run.filters)
    located = locate(run.ledger, survey)
    statuses = {status: n for (role, status), n in survey.counts.items() if role == "pool"}
    return render_page(
        HERE,
        "report.html.j2",
        run.summary,
        run.recipe,
        start=start(flow),
        bands=bands(flow),
        removed={row["stage"]: row["dropped"] for row in flow},
        totals=totals(flow),
        problems=discrepancies(flow, statuses),
        curve=curve([*below, *(run.summary.get("removed_at") or [])], run.summary.get("thresholds", {}).get("dedup")),
        doubtful=run.doubtful,
        below=below,
        survey=survey,
        located=located,
        roles={source["role"] for source in run.summary.get("sources", [])},
        seeds_kept=survey.counts["seed", "kept"],
        seed_uri=run.seed_uri,
        examples=examples(survey),
        thumbnail=Thumbnails(run.read, run.limits),
    )


def examples(survey: Survey) -> list[tuple[str, str]]:
    """Return (what happened to it, id) of a few images worth asking `granary explain` about."""
    leaks = [row for leak in survey.leaks.values() for row in leak.rows()[:1]]
    chosen = [("kept", survey.kept.rows()[:1]), ("removed as a leak", leaks[:1])]
    duplicates = [{"id": component.representative} for component in survey.components()[:1]]
    chosen.insert(1, ("kept for its near duplicates", duplicates))
    return [(what, row["id"]) for what, rows in chosen for row in rows if row["id"]]
