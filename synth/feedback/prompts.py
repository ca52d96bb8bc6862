"""Prompts from templates: `a photo of a {class}`, with `{group}` where the dataset has groups."""

from __future__ import annotations

import string
from collections.abc import Sequence

from granary.curation.store.sampling import hashed

FIELDS = ("class", "group")


def check_template(template: str) -> str:
    """Return the template; raises ValueError unless it is text with `{class}` and perhaps `{group}`."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{template!r} is no template: {error}") from None
    unknown = [name for name in names if name not in FIELDS]
    if unknown or "class" not in names:
        what = f"the field {{{unknown[0]}}}" if unknown else "no {class}"
        raise ValueError(f"{template!r} has {what}; its fields are {{class}}, which must be there, and {{group}}")
    return template


def prompt_of(templates: Sequence[str], row_id: str, name: str, group: str = "") -> str:
    """Return the prompt of a row: one of the templates, chosen by the hash of the row.

    Args:
        templates: with `{class}` and `{group}`.
        row_id: of the planned row.
        name: of the class; underscores become spaces.
        group: likewise.
    """
    number = hashed(f"template/{row_id}")
    words = {"class": name.replace("_", " "), "group": group.replace("_", " ")}
    return templates[number % len(templates)].format(**words)
