"""What the headers of an answer ask for: patience, and to be left out."""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Iterable, Iterator

# Rules of an X-Robots-Tag with a value of their own; any other `name:` in front names whom the rules are for.
VALUED_RULES = {"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"}


def seconds_to_wait(retry_after: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, a number or a date; None where it says nothing."""
    if retry_after is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", retry_after):
        return float(retry_after)
    try:
        then = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    now = datetime.datetime.now(then.tzinfo and datetime.UTC)
    return max(0.0, (then - now).total_seconds())


def robots_tags(values: Iterable[str], user_agent: str) -> set[str]:
    """Return the rules of the X-Robots-Tag headers that are for everybody or for us, in lower case.

        >>> sorted(robots_tags(["noindex, NoAI", "otherbot: noimageai"], "granary/1.0"))
        ['noai', 'noindex']

    Args:
        values: of the headers.
        user_agent: what we call ourselves; the first word of it is our name.
    """
    name = re.split(r"[/\s]", user_agent, maxsplit=1)[0].lower()
    return {rule for value in values for whom, rule in _rules(value.lower()) if whom in ("", name)}


def _rules(value: str) -> Iterator[tuple[str, str]]:
    """Yield (whom, rule); a name holds for the rules after it, up to the next name."""
    whom = ""
    for part in value.split(","):
        before, colon, after = (piece.strip() for piece in part.partition(":"))
        if colon and before not in VALUED_RULES:
            whom, before = before, after
        yield whom, before
