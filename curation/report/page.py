"""The page of a report: one HTML file that needs no network, no script and no other file.

Every kind of run extends page.html.j2 by its own sections; head, notes, cost and recipe are the same for all.
"""

from __future__ import annotations

from functools import cache

import jinja2
from markupsafe import Markup

from granary.curation.report.cost import ASSUMPTIONS, SIZES, projection
from granary.curation.report.writing import clip, duration, folder, name, number, percent
from granary.curation.runs.facts import Facts
from granary.curation.runs.run import Run
from granary.curation.store import storage
from granary.curation.store.addresses import without_secrets

HERE = "granary.curation.report"
RECIPE_CHARACTERS = 100_000


def render_page(package: str, template: str, facts: Facts, recipe: str, **values: object) -> str:
    """Return the report of a run as HTML, UTF-8; the same run gives the same text.

    Args:
        package: that holds the template, by its dotted name.
        template: its name; it extends page.html.j2.
        facts: run.json, in the template `run`.
        recipe: as YAML.
        values: what the template uses beside.
    """
    shared = {"run": facts, "recipe": without_secrets(recipe[:RECIPE_CHARACTERS]), "cost": cost_section(facts)}
    html = environment(package).get_template(template).render({**shared, **values})
    # Messages of the operating system may hold lone surrogates, which UTF-8 has no bytes for.
    return html.encode("utf-8", "replace").decode("utf-8")


def cost_section(facts: Facts) -> Markup:
    """Return the section of a report that tells seconds, rate and peak memory of every stage, as HTML."""
    values = {"stages": facts.get("stages", []), "projected": projection(facts)}
    template = environment().get_template("cost.html.j2")
    return Markup(template.render(values, sizes=SIZES, assumptions=ASSUMPTIONS))


def write_page(run: Run, html: str) -> str:
    """Write report/index.html of a run directory; returns its URL."""
    storage.write_bytes(run.report_page, html.encode())
    return run.report_page


@cache
def environment(package: str = HERE) -> jinja2.Environment:
    """Return the templates of a package and those every report shares: all is escaped, a missing value is an error."""
    loaders = [jinja2.PackageLoader(where, ".") for where in dict.fromkeys((package, HERE))]
    pages = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(clip=clip, folder=folder, name=name, number=number, percent=percent, duration=duration)
    return pages
