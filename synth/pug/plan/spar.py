"""Captions in the manner of PUG: SPAR, and the sets of captions a vision-language model chooses from.

Bordes et al. 2023, arXiv 2308.03977: scene, position, attribute and relation, each with and without the environment.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from granary.synth.pug.plan.factors import Value
from granary.synth.pug.plan.scenes import BLANK, DEFAULT

Task = Literal["scene", "single", "single_position", "pair", "pair_relation", "pair_attribute"]
TASKS: tuple[Task, ...] = ("scene", "single", "single_position", "pair", "pair_relation", "pair_attribute")
SWAPPED: dict[str, tuple[str, str]] = {
    "single_position": ("character1_pos", "character2_pos"),
    "pair_relation": ("character1_pos", "character2_pos"),
    "pair_attribute": ("character_texture", "character2_texture"),
}  # the columns that a hard negative exchanges


def scene_caption(world: str) -> str:
    """Return the caption of an environment."""
    return f"This is a photo in a {world} environment"


def single_caption(animal: str, position: str | None = None, world: str | None = None) -> str:
    """Return the caption of one animal."""
    place = f" on the {position} of the picture" if position else ""
    return f"This is a photo of a {animal}{place}{_environment(world)}"


def pair_caption(
    animals: tuple[str, str],
    positions: tuple[str, str] | None = None,
    textures: tuple[str, str] | None = None,
    world: str | None = None,
) -> str:
    """Return the caption of two animals; without positions and textures their names are sorted."""
    one, other = animals
    if positions:
        pair = f"{one} on the {positions[0]} and a {other} on the {positions[1]} of the picture"
    elif textures:
        pair = f"{one} textured with {textures[0]} and a {other} textured with {textures[1]}"
    else:
        pair = " and a ".join(sorted(animals))
    return f"This is a photo of a {pair}{_environment(world)}"


def _environment(world: str | None) -> str:
    return f" in a {world} environment" if world else ""


def animals_of(row: Mapping[str, Value]) -> tuple[str, str]:
    """Return the names of both places of a row; blank where there is no animal."""
    return str(row.get("character_name", BLANK)), str(row.get("character2_name", BLANK))


def tasks_of(row: Mapping[str, Value]) -> tuple[Task, ...]:
    """Return the tasks a row can pose. Relations and attributes of two equal animals have no wrong order: left out."""
    one, other = animals_of(row)
    placed = "character1_pos" in row and "character2_pos" in row
    if one == other == BLANK:
        return ("scene",)
    if BLANK in (one, other):
        return ("single", "single_position") if placed else ("single",)
    if one == other:
        return ("pair",)
    textured = DEFAULT not in (_text(row, "character_texture"), _text(row, "character2_texture"))
    return ("pair", *(("pair_relation",) if placed else ()), *(("pair_attribute",) if textured else ()))


def caption(row: Mapping[str, Value], task: Task, environment: bool = False) -> str:
    """Return the true caption of a row for one of its tasks, with or without its environment."""
    world = str(row["world_name"]) if environment else None
    one, other = animals_of(row)
    if task == "scene":
        return scene_caption(str(row["world_name"]))
    if task in ("single", "single_position"):
        animal, column = (other, "character2_pos") if one == BLANK else (one, "character1_pos")
        return single_caption(animal, str(row[column]) if task == "single_position" else None, world)
    positions = (str(row["character1_pos"]), str(row["character2_pos"])) if task == "pair_relation" else None
    textures = (_text(row, "character_texture"), _text(row, "character2_texture")) if task == "pair_attribute" else None
    return pair_caption((one, other), positions, textures, world)


def row_captions(row: Mapping[str, Value]) -> list[str]:
    """Return every true caption of a row: of each of its tasks, without and with its environment."""
    with_world = (False, True) if "world_name" in row else (False,)
    tasks = [task for task in tasks_of(row) if task != "scene" or "world_name" in row]
    captions = [caption(row, task, environment) for task in tasks for environment in with_world]
    if "world_name" in row:
        captions.append(scene_caption(str(row["world_name"])))
    return list(dict.fromkeys(captions))


def hard_negative(row: Mapping[str, Value], task: Task, environment: bool = False) -> str:
    """Return the caption with the positions or textures of the two places exchanged; twice is the true caption.

    Raises:
        ValueError: the task has no hard negative.
    """
    if task not in SWAPPED:
        raise ValueError(f"{task} has no hard negative; {', '.join(SWAPPED)} have")
    first, second = SWAPPED[task]
    return caption({**row, first: row[second], second: row[first]}, task, environment)


def candidates(
    animals: Sequence[str],
    task: Task,
    row: Mapping[str, Value],
    worlds: Sequence[str] = (),
    environment: bool = False,
    blank: bool = False,
) -> list[str]:
    """Return the captions a row's picture is compared with: the template with everything that could stand in it.

    Args:
        animals: the animals of the data set, without "blank".
        task: one of the row's.
        row: gives positions, textures and, for one world, the environment.
        worlds: environments the captions name; needed for the scene task and with `environment`.
        environment: put each world into the captions.
        blank: let "blank" be an animal, as the released single-animal list does: one candidate more.

    Returns:
        Distinct captions: with 32 animals 32 (33) single ones, 528 unordered and 992 ordered pairs, for each world.
    """
    if task == "scene":
        return [scene_caption(world) for world in worlds]
    named = [*animals, BLANK] if blank and task.startswith("single") else list(animals)
    texts: Iterator[str] = (
        text for world in (worlds if environment else [None]) for text in _template(named, task, row, world)
    )
    return list(dict.fromkeys(texts))


def _template(animals: Sequence[str], task: Task, row: Mapping[str, Value], world: str | None) -> Iterator[str]:
    if task == "single":
        yield from (single_caption(animal, None, world) for animal in animals)
    elif task == "single_position":
        places = (str(row["character1_pos"]), str(row["character2_pos"]))
        yield from (single_caption(animal, place, world) for animal in animals for place in places)
    elif task == "pair":
        pairs = itertools.combinations_with_replacement(sorted(animals), 2)
        yield from (pair_caption(pair, world=world) for pair in pairs)
    else:
        first, second = SWAPPED[task]
        values = (str(row[first]), str(row[second]))
        relation = task == "pair_relation"
        for pair in itertools.permutations(animals, 2):
            yield pair_caption(pair, values if relation else None, None if relation else values, world)


def _text(row: Mapping[str, Value], column: str) -> str:
    return str(row.get(column, DEFAULT))
