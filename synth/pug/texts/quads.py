"""Quads: two rows of a plan that differ in what two things exchange, and two captions of the same words.

Winoground (Thrush et al. 2022, arXiv 2204.03162). A caption is true of its own picture and wrong of the other one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from granary.synth.pug.plan.factors import Value
from granary.synth.pug.plan.scenes import PLACES, SLOTS
from granary.synth.pug.texts.facts import PictureFacts, views_of
from granary.synth.pug.texts.options import QuadKind
from granary.synth.pug.texts.templates import fits

Pair = tuple[str, str]  # a column of the first thing, and the same of the second
ANGLES = ("rotation_yaw", "rotation_pitch", "rotation_roll")


def _columns(*names: str) -> tuple[Pair, ...]:
    return tuple((f"{SLOTS[0]}_{name}", f"{SLOTS[1]}_{name}") for name in names)


WHERE = ((PLACES[0], PLACES[1]), *_columns("x", "y", "z"))
NAME, TEXTURE = _columns("name"), _columns("texture")
WHAT = (*NAME, *TEXTURE, *_columns("scale", *ANGLES))
EXCHANGES: Mapping[QuadKind, Sequence[tuple[Pair, ...]]] = {
    "relation": (WHERE, WHAT),
    "colour": (TEXTURE, NAME),
    "texture": (TEXTURE, NAME),
}
"""For each kind the columns that lead from one picture to the other, in one way or another."""


@dataclasses.dataclass(frozen=True)
class Captioned:
    """The texts of a quad: a caption for each picture, and what was exchanged, in words."""

    captions: tuple[str, str]
    exchange: str


def exchanged(row: Mapping[str, Value], columns: Sequence[Pair]) -> dict[str, Value] | None:
    """Return a row with the values of the two things exchanged in some columns; twice is the row itself.

    Returns:
        None where nothing would change, or where the row has the column of one thing alone.
    """
    changed = dict(row)
    for one, other in columns:
        if (one in row) != (other in row):
            return None
        if one in row:
            changed[one], changed[other] = row[other], row[one]
    return changed if changed != dict(row) else None


def partners_of(row: Mapping[str, Value], kind: QuadKind) -> Iterator[dict[str, Value]]:
    """Yield the rows that could be the other picture of a quad."""
    yield from filter(None, (exchanged(row, columns) for columns in EXCHANGES[kind]))


def captioned(kind: QuadKind, pictures: tuple[PictureFacts, PictureFacts], template: str) -> Captioned | None:
    """Return the captions of two pictures; None where the template does not fit, or the captions tell nothing.

    Args:
        kind: of the quad.
        pictures: their facts.
        template: names what the pictures exchange.
    """
    views = [_view_of(facts, kind) for facts in pictures]
    if not all(fits(template, view) for view in views):
        return None
    one, other = (template.format_map(view) for view in views)
    if one == other or sorted(one.split()) != sorted(other.split()):
        return None
    relation = views[0].get("relation", "")
    return Captioned((one, other), relation if kind == "relation" else kind)


def _view_of(facts: PictureFacts, kind: QuadKind) -> dict[str, str]:
    """Return the view that names the things of both pictures in the same way: the left or upper one first, or by name.

    Where the captions name places, both begin with the thing at the same place; else with the same thing.
    """
    views = [view for view in views_of(facts) if "thing" in view and "other" in view]
    if kind == "relation":
        first = {"left", "above"}
        return next((view for view in views if first & {view.get("beside"), view.get("over")}), {})
    return min(views, key=lambda view: view["thing"], default={})
