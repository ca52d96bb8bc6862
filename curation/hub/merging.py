"""Two cards become one: that of the run, and the one that stands on the Hub, in which somebody may have written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import yaml

from granary.curation.errors import UserError
from granary.curation.hub.card import GENERATED, Tree, parse_card

FIRST_SECTION = "about"  # where the words of a card that granary did not write go


def merge_cards(ours: str, theirs: str) -> str:
    """Return a card with the header keys and the user's sections of both: what `write_card` takes as `earlier`.

    Keys that follow the run are ours alone. Of other keys that both have, lists are joined and else ours stays, but
    for a licence that is "unknown". Sections are joined; all words of a card that granary did not write are one.

    Args:
        ours: README.md of the run's dataset.
        theirs: README.md of the repository.

    Raises:
        UserError: the header on the Hub cannot be read.
    """
    header, sections = parse_card(ours)
    hub_header, hub_sections = _their_card(theirs)
    kept = {key: value for key, value in hub_header.items() if key not in GENERATED}
    merged = {**kept, **{key: _joined(value, kept.get(key)) for key, value in header.items()}}
    words = {name: _words(sections.get(name, ""), hub_sections.get(name, "")) for name in {**sections, **hub_sections}}
    slots = (f"<!-- yours: begin {name} -->\n{text}<!-- yours: end {name} -->\n" for name, text in words.items())
    return f"---\n{yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)}---\n{''.join(slots)}"


def _their_card(text: str) -> tuple[Tree, dict[str, str]]:
    text = _plain(text)
    try:
        header, sections = parse_card(text)
    except ValueError as error:
        raise UserError(f"card: the header of README.md on the Hub is not YAML ({error}); correct it there") from None
    if sections or "granary" in (header.get("tags") or []):
        return header, sections
    body = _body(text).strip()
    return header, {FIRST_SECTION: f"{body}\n"} if body else {}


def _joined(ours: object, theirs: object) -> object:
    if isinstance(ours, list) and isinstance(theirs, list):
        return [*ours, *(value for value in theirs if value not in ours)]
    unstated = ours in (None, "", "unknown") and theirs is not None
    return theirs if unstated else ours


def _words(ours: str, theirs: str) -> str:
    """Return the words of a section; those that one has and the other lacks are kept."""
    if ours.strip() in theirs:
        return theirs
    return ours if theirs.strip() in ours else f"{ours.rstrip()}\n\n{theirs}"


def check_kept(card: str, earlier: str) -> None:
    """Raise UserError for a user's section that a card written over it has no place for.

    Args:
        card: as it was written.
        earlier: what it took the place of, see `merge_cards`.
    """
    for name, words in parse_card(earlier)[1].items():
        if words.strip() not in card:
            raise UserError(
                f"card: the template card.md.j2 of the run has no place for the section {name!r} that somebody wrote; "
                f"put {{{{ slot({name!r}) }}}} into it"
            )


def difference(theirs: str, card: str) -> list[str]:
    """Return the lines by which a card differs from the one on the Hub, marked as `diff -u` does; none where equal.

    How YAML is quoted and in which order its keys stand is no difference.
    """
    names = ("README.md on the Hub", "README.md as it would be")
    before = _in_the_order_of(theirs, list(parse_card(card)[0]))
    return list(difflib.unified_diff(before.splitlines(), card.splitlines(), *names, n=1, lineterm=""))


def _in_the_order_of(theirs: str, keys: Sequence[str]) -> str:
    """Return a card whose header is written as `write_card` writes it, its keys in an order."""
    text = _plain(theirs)
    header = parse_card(text)[0]
    if not header:
        return text
    ordered = {key: header[key] for key in (*keys, *header) if key in header}
    return f"---\n{yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True)}---\n{_body(text)}"


def _plain(text: str) -> str:
    """Return a text without a byte-order mark and with the line ends of Unix."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _body(text: str) -> str:
    return re.sub(r"\A---\n.*?---\n", "", text, flags=re.DOTALL)
