"""How a report writes names, counts, shares and times."""

from __future__ import annotations


def clip(text: object, characters: int = 300) -> str:
    """Shorten a text in its middle, where names differ least."""
    whole = str(text)
    half = (characters - 1) // 2
    return whole if len(whole) <= characters else f"{whole[:half]}…{whole[-half:]}"


def name(uri: str) -> str:
    """Return the last part of a uri, short enough to stand under a picture."""
    return clip(uri.rstrip("/").rsplit("/", 1)[-1], 60)


def folder(uri: str) -> str:
    """Return the folder of a uri without the name of its source, "" where there is none.

    >>> folder("seeds/cat/3.jpg"), folder("seeds/3.jpg")
    ('cat', '')
    """
    return clip("/".join(uri.split("/")[1:-1]), 40)


def number(value: float) -> str:
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
