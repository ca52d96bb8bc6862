"""The facts of a row that language can name: what is there, where in the picture, of which colour, in which world."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from granary.synth.pug.plan.factors import Value
from granary.synth.pug.plan.scenes import BLANK, DEFAULT, SLOTS, Actor, SceneOptions, SceneSpec, rotation_matrix

MARGIN = 0.15  # of half the width of the picture: things less than that apart stand nowhere in particular
COLOURS = frozenset(
    {
        *("black", "blue", "brown", "cyan", "gold", "gray", "green", "grey", "magenta", "orange", "pink", "purple"),
        *("red", "silver", "turquoise", "white", "yellow"),
    }
)
RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
PLACES = {"above": "top", "below": "bottom"}
NUMBERS = ("0", "1", "2")
FIELDS: Mapping[str, str] = {
    "world": "the world",
    "things": "everything that stands there",
    "number": "how many things stand there",
    "thing": "the thing that is spoken of, where no other is called the same",
    "other": "the other thing of two",
    "side": "where the thing is: left, right, top or bottom",
    "relation": "where it is to the other one, for example `to the left of`",
    "beside": "left or right: where it is to the other one",
    "over": "above or below: where it is to the other one",
    "colour": "of the thing, where its texture is one",
    "texture": "of the thing, where it is no colour",
    "other_colour": "of the other one",
    "other_texture": "of the other one",
}
"""What a template may name in braces beside the columns of the factors; with a_ before it, its article too."""


@dataclasses.dataclass(frozen=True)
class Thing:
    """A character of a picture.

    Args:
        words: for it.
        across: where its middle is, half widths to the right of the middle of the picture.
        up: how far above, in the same unit.
        colour, texture: words for its texture, which is one or the other; "" where it is the thing's own.
    """

    words: str
    across: float
    up: float
    colour: str = ""
    texture: str = ""


@dataclasses.dataclass(frozen=True)
class PictureFacts:
    """What language can say of a picture.

    Args:
        world: words for it; "" where it has none.
        things: at most two.
    """

    world: str
    things: tuple[Thing, ...]


def facts_of(
    row: Mapping[str, Value], scene: SceneSpec, options: SceneOptions, words: Mapping[str, str]
) -> PictureFacts:
    """Return the facts of a row.

    Args:
        row: factor values.
        scene: what the row asks of the renderer.
        options: what the factors leave open.
        words: names of worlds, characters and textures, and what they are called.
    """
    defaults = (options.character, BLANK)
    names = [str(row.get(f"{slot}_name", default)) for slot, default in zip(SLOTS, defaults, strict=True)]
    things = [_thing(names[actor.slot], actor, row, scene, options, words) for actor in scene.actors]
    return PictureFacts(words_for(str(row.get("world_name", options.world)), words), tuple(things))


def _thing(
    name: str,
    actor: Actor,
    row: Mapping[str, Value],
    scene: SceneSpec,
    options: SceneOptions,
    words: Mapping[str, str],
) -> Thing:
    across, up = projected(actor, scene, options.pivot)
    texture = str(row.get(f"{SLOTS[actor.slot]}_texture", DEFAULT))
    look = "" if texture == DEFAULT else words_for(texture, words)
    colour = look if look in COLOURS else ""
    return Thing(words_for(name, words), across, up, colour, "" if colour else look)


def words_for(name: str, words: Mapping[str, str]) -> str:
    """Return what a name is called: as `words` has it, else its parts, which capitals and underscores tell apart.

    >>> words_for("OceanFloor", {}), words_for("red_panda", {}), words_for("Goldfish", {"Goldfish": "fish"})
    ('ocean floor', 'red panda', 'fish')
    """
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W_A-Z]+", name)
    return words.get(name) or " ".join(parts).lower() or name


def projected(actor: Actor, scene: SceneSpec, pivot: float) -> tuple[float, float]:
    """Return where the middle of a character is in the picture: to the right and above its middle, in half widths.

    Args:
        actor: the character; its location is the point of the ground below it.
        scene: whose camera sees it.
        pivot: cm above the base of a character of scale 1 that its middle is.
    """
    middle = np.asarray(actor.location) + np.array([0.0, 0.0, pivot * actor.scale])
    ahead, across, up = rotation_matrix(scene.rotation) @ (middle - np.asarray(scene.location))
    half = ahead * math.tan(math.radians(scene.fov) / 2)
    return (float(across / half), float(up / half)) if half > 0 else (math.nan, math.nan)


def relation_of(thing: Thing, other: Thing) -> str:
    """Return where a thing is to another one: left, right, above, below, or "" where neither is clear."""
    across, up = thing.across - other.across, thing.up - other.up
    if max(abs(across), abs(up)) < MARGIN or math.isnan(across + up):
        return ""
    if abs(across) >= abs(up):
        return "left" if across < 0 else "right"
    return "above" if up > 0 else "below"


def side_of(thing: Thing, others: tuple[Thing, ...] = ()) -> str:
    """Return where a thing is in the picture: left or right, of two above one another top or bottom; "" for neither."""
    if abs(thing.across) >= MARGIN:
        return "left" if thing.across < 0 else "right"
    return next((PLACES[place] for other in others if (place := relation_of(thing, other)) in PLACES), "")


def views_of(facts: PictureFacts) -> Iterator[dict[str, str]]:
    """Yield what a template may name, with each thing in turn as the one that is spoken of; once where there is none.

    Of two things with the same words neither is named: nobody could tell which one is meant.
    """
    common = {"number": NUMBERS[len(facts.things)], "world": facts.world, "things": _all_of(facts.things)}
    if not facts.things:
        yield _filled(common)
    for thing, others in _turns(facts.things):
        yield _filled(common | _fields_of(thing, others))


def _turns(things: tuple[Thing, ...]) -> Iterator[tuple[Thing, tuple[Thing, ...]]]:
    for place, thing in enumerate(things):
        yield thing, (*things[:place], *things[place + 1 :])


def _fields_of(thing: Thing, others: tuple[Thing, ...]) -> dict[str, str]:
    fields = {"side": side_of(thing, others), "colour": thing.colour, "texture": thing.texture, "thing": thing.words}
    for other in others:
        place = relation_of(thing, other)
        fields |= {"other": other.words, "other_colour": other.colour, "other_texture": other.texture}
        fields |= {"relation": RELATIONS.get(place, ""), "over" if place in PLACES else "beside": place}
        if side_of(other, (thing,)) == fields["side"]:
            fields["side"] = ""  # it would not tell the two apart
        if other.words == thing.words:
            fields |= {"thing": "", "other": ""}
    return fields


def _filled(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that say something, and each with its article."""
    said = {name: text for name, text in fields.items() if text}
    return said | {f"a_{name}": with_article(text) for name, text in said.items()}


def _all_of(things: tuple[Thing, ...]) -> str:
    names = [with_article(thing.words) for thing in things]
    if len(set(names)) < len(names):
        return f"{names[0]} and another {things[0].words}"
    return " and ".join(names)


def with_article(words: str) -> str:
    """Return words with the article that goes before them, by their first letter: an elephant, a cat."""
    return f"{'an' if words[:1] in 'aeiou' else 'a'} {words}"


def answer_of(facts: PictureFacts, view: Mapping[str, str], field: str) -> str:
    """Return what a field says of a view; of the thing, its words even where they would not tell it from the other."""
    if field == "thing" and "thing" not in view and len({thing.words for thing in facts.things}) == 1:
        return facts.things[0].words
    return view.get(field, "")
