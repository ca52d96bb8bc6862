"""Templates: texts with names in braces, and which of them fit what is known of a picture."""

from __future__ import annotations

import functools
import string
from collections.abc import Collection, Iterable, Mapping, Sequence

from granary.curation.errors import UserError
from granary.curation.store.sampling import hashed

CAPTIONS = (
    "a picture of {things}",
    "a picture of {things} in the {world}",
    "{things} in the {world}",
    "the picture shows {things}",
    "{a_thing} on the {side} of the picture",
    "{a_thing} {relation} {a_other}",
    "{a_colour} {thing}",
    "{a_colour} {thing} in the {world}",
    "{a_thing} covered in {texture}",
    "{a_colour} {thing} and {a_other_colour} {other}",
    "{a_thing} covered in {texture} and {a_other} covered in {other_texture}",
    "a picture of the {world}",
)
QUESTIONS: Mapping[str, Sequence[str]] = {
    "what": (
        "What is in the picture?",
        "What does the picture show?",
        "What is on the {side} of the picture?",
        "What is {relation} the {other}?",
    ),
    "world": ("Where was the picture taken?", "Which place does the picture show?"),
    "where": ("Where in the picture is the {thing}?", "On which side of the picture is the {thing}?"),
    "count": ("How many things are in the picture?", "How many things does the picture show?"),
    "side": ("Is the {thing} to the left or to the right of the {other}?",),
    "height": ("Is the {thing} above or below the {other}?",),
    "colour": ("What colour is the {thing}?", "Which colour does the {thing} have?"),
    "texture": ("What is the {thing} covered in?",),
}
ANSWERS = {
    "what": "thing",
    "world": "world",
    "where": "side",
    "count": "number",
    "side": "beside",
    "height": "over",
    "colour": "colour",
    "texture": "texture",
}  # the field that answers each kind of question
GIVEN_AWAY = {"side": ("relation", "side"), "height": ("relation", "side"), "what": ("things",), "count": ("things",)}
OF_ONE = frozenset({"what", "where", "side", "height", "colour", "texture"})  # kinds that ask about one of the things
POINTERS = frozenset({"thing", "other", "side"})  # fields that tell which of two things is meant
QUADS: Mapping[str, str] = {
    "relation": "{a_thing} {relation} {a_other}",
    "colour": "{a_colour} {thing} and {a_other_colour} {other}",
    "texture": "{a_thing} covered in {texture} and {a_other} covered in {other_texture}",
}
VIDEOS: Mapping[str, Sequence[str]] = {
    "what": ("What is in the {world}?", "What can be seen in the {world}?"),
    "world": ("Where is the {thing}?", "In which place is the {thing}?"),
    "colour": ("What colour is the {thing}?",),
    "texture": ("What is the {thing} covered in?",),
}
SOUGHT = ("thing", "world")  # what a question about a needle may say of it
POLL = "Is there {a_object} in the image?"


@functools.cache
def names_in(template: str) -> frozenset[str]:
    """Return the names that a template has in braces; raises ValueError where it is no template."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(template) if name is not None)


def plain(name: str) -> str:
    """Return a field without its article: a_thing is thing."""
    return name.removeprefix("a_")


def fits(template: str, known: Mapping[str, object]) -> bool:
    """Say whether all that a template names is known."""
    return names_in(template) <= known.keys()


def in_turn(texts: Iterable[str], draw: str) -> list[str]:
    """Return texts once each, in an order drawn by a hash, the same whatever else is drawn.

    Args:
        texts: in any order.
        draw: names the draw, and holds seed and row.
    """
    return sorted(dict.fromkeys(texts), key=lambda text: (hashed(f"{draw}/{text}"), text))


def check_template(key: str, template: str, fields: Collection[str], columns: Sequence[str]) -> None:
    """Raise UserError when a template names something else than fields and columns, {like_this}.

    Args:
        key: of the recipe, for the message.
        template: the text.
        fields: what it may name beside the columns.
        columns: of the factors.
    """
    try:
        names = names_in(template)
    except ValueError as error:
        raise UserError(f"{key}: {template!r} is no template ({error}); write columns as {{name}}") from None
    known = {*fields, *(f"a_{field}" for field in fields), *columns}
    if wrong := sorted(names - known):
        also = f"; it may also name {', '.join(fields)}, each with a_ before it too" if fields else ""
        raise UserError(f"{key}: {{{wrong[0]}}} is no column; the columns are {', '.join(columns)}{also}")


def check_question(kind: str, template: str) -> None:
    """Raise UserError when a question of a kind would give its own answer away."""
    answers = {ANSWERS[kind], *GIVEN_AWAY.get(kind, ())}
    if given := sorted(answers & {plain(name) for name in names_in(template)}):
        raise UserError(
            f"questions.templates.{kind}: {template!r} gives its answer away by {{{given[0]}}}; leave that out"
        )


def check_sought(kind: str, template: str) -> None:
    """Raise UserError when a question about a needle says nothing to find it by, or gives its own answer away."""
    names, key = {plain(name) for name in names_in(template)}, f"videos.templates.{kind}"
    if ANSWERS[kind] in names:
        raise UserError(f"{key}: {template!r} gives its answer away by {{{ANSWERS[kind]}}}; leave that out")
    if not names:
        raise UserError(f"{key}: {template!r} does not say what to look for; write {{thing}} or {{world}} in it")
