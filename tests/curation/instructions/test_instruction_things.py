"""What rows show, what is asked of them, and which pictures are grouped, against what was drawn."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from made_scenes import NAMES, png, scene
from PIL import Image

from granary.curation.dense import rle
from granary.curation.instructions.asking import instructions_of
from granary.curation.instructions.groups import Place, draw_groups, sharers
from granary.curation.instructions.recipe import TASKS, Groups
from granary.curation.instructions.things import things_of, words_of

TEXTURES = ("character_texture", "character2_texture")
SIZE = (32, 32)


def pixels_of(thing: Any, size: tuple[int, int] = SIZE) -> np.ndarray:
    return rle.mask_of(rle.decompress(thing["counts"]), size[1], size[0])


@pytest.mark.parametrize("number", range(8))
def test_things_of_a_render_are_those_that_were_drawn(number: int) -> None:
    row = scene(number, (40, 32))
    things, problems = things_of(row, (40, 32), TEXTURES)
    assert problems == []
    mask = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
    for slot, (thing, told) in enumerate(zip(things, row["objects"], strict=True)):
        assert (thing["name"], thing["box"]) == (told["name"].lower(), told["box"])
        assert thing["texture"] == row[TEXTURES[slot]].lower()
        np.testing.assert_array_equal(pixels_of(thing, (40, 32)), mask == slot + 1)
        middle = (told["box"][0] + told["box"][2]) / 2
        assert thing["position"] == ("" if abs(middle - 20) < 4 else "left" if middle < 20 else "right")


def test_things_of_packed_masks_have_the_box_of_their_pixels_and_crowds_are_passed_over() -> None:
    region = np.zeros((32, 32), bool)
    region[3:20, 5:30] = True
    counts = rle.compress(rle.run_lengths(region))
    mask = {"key": "1", "label": "fire_hydrant", "quality": 0, "box": [0, 0, 1, 1], "size": [32, 32]}
    masks = [
        {**mask, "counts": counts, "png": None},
        {**mask, "key": "2", "counts": None, "png": png(region)},
        {**mask, "key": "3", "counts": None, "png": None, "box": [1, 2, 3, 4]},
        {**mask, "key": "4", "counts": counts, "png": None, "quality": 1},
        {**mask, "key": "5", "counts": counts, "png": None, "label": ""},
        {**mask, "key": "6", "counts": "broken", "png": None},
        {**mask, "key": "7", "counts": None, "png": None, "box": [1, 2, 3, 40]},
        {**mask, "key": "8", "counts": counts, "png": None, "size": [16, 64]},
    ]
    things, problems = things_of({"masks": masks}, SIZE, TEXTURES)
    assert [(thing["name"], thing["box"]) for thing in things] == [
        ("fire hydrant", [5, 3, 30, 20]), ("fire hydrant", [5, 3, 30, 20]), ("fire hydrant", [1, 2, 3, 4]),
    ]  # fmt: skip
    assert things[2]["counts"] is None
    np.testing.assert_array_equal(pixels_of(things[1]), region)
    assert [(problem.part, problem.error) for problem in problems] == [(key, "InvalidMask") for key in "678"]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"mask": {"bytes": b"no picture"}}, "InvalidMask"),
        ({"mask": {"bytes": png(np.zeros((4, 4), np.uint8))}}, "InvalidMask"),
        ({"mask": {"bytes": png(np.zeros((32, 32), np.uint8))}}, "InvalidMask"),
        ({"mask": None, "objects": [{"name": "Ball", "box": [0, 0, 99, 5]}]}, "InvalidBox"),
        ({"mask": None, "objects": [{"name": "Ball", "box": None}]}, "InvalidBox"),
        ({"mask": None, "objects": [{"name": "Ball", "box": [5, 0, 5, 5]}]}, "InvalidBox"),
    ],
)
def test_things_without_a_right_place_are_problems(changed: dict[str, Any], error: str) -> None:
    things, problems = things_of(scene(0) | changed, SIZE, TEXTURES)
    assert things == []
    assert {problem.error for problem in problems} == {error}


def test_names_become_words() -> None:
    assert [words_of(name) for name in ("PolarBear", "polar_bear", " Cat ", None)] == ["polar bear"] * 2 + ["cat", ""]


# -- what is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(12))
def test_everything_there_and_one_that_is_not_is_asked_for_by_box_mask_and_number(number: int) -> None:
    row = scene(number)
    things, _ = things_of(row, SIZE, TEXTURES)
    names = sorted(name.lower() for name in NAMES)
    asked = instructions_of(row, things, SIZE, names, TASKS, 1, f"0/{row['id']}")
    shown = Counter(thing["name"] for thing in things)
    for task in ("box", "mask", "count"):
        of_task = [one for one in asked if one["task"] == task]
        told = {next(name for name in names if name in one["question"]): one for one in of_task}
        assert len(told) == len(of_task) == len(shown) + 1
        assert shown.keys() < told.keys()
        for name, one in told.items():
            if task == "count":
                assert (one["form"], one["answer"], one["targets"]) == ("text", str(shown[name]), [])
            else:
                assert [target["box"] for target in one["targets"]] == [t["box"] for t in things if t["name"] == name]
                assert one["answer"] == ""
    said = [(one["task"], one["question"], one["answer"]) for one in asked if one["task"] in ("question", "caption")]
    assert ("question", "Is there a ball?", "yes" if shown["ball"] else "no") in said
    assert [answer for task, _, answer in said if task == "caption"] == row["captions"]
    assert asked == instructions_of(row, things, SIZE, names[::-1], TASKS, 1, f"0/{row['id']}")


def test_masks_are_not_asked_for_where_one_has_none_and_tasks_are_chosen() -> None:
    row = scene(1) | {"mask": None, "questions": [{"question": "x", "answer": ""}], "polls": None, "captions": [" "]}
    things, _ = things_of(row, SIZE, TEXTURES)
    asked = instructions_of(row, things, SIZE, ["ball", "cone", "slab"], TASKS, 0, "draw")
    assert {one["task"] for one in asked} == {"box", "count"}
    assert instructions_of(row, things, SIZE, ["ball", "cone", "slab"], ("question", "caption"), 2, "draw") == []


# -- groups ------------------------------------------------------------------------------------------------------------

PICTURES = {Place(0, n): things_of(scene(n), SIZE, TEXTURES)[0] for n in range(60)}


@pytest.mark.parametrize("attribute", ["name", "texture", "position", "size"])
def test_who_shows_an_attribute_is_found_by_brute_force(attribute: Any) -> None:
    unclear = attribute in ("position", "size")
    for found in sharers(PICTURES, attribute):
        for place, things in PICTURES.items():
            values = [thing[attribute] for thing in things]
            sure = not (unclear and "" in values)
            assert (place in found.showing) == (found.value in values and sure)
            assert (place in found.lacking) == (found.value not in values and sure)


def test_groups_have_as_many_that_show_it_as_asked_for_and_none_comes_twice() -> None:
    options = Groups(count=50, pictures=5, showing=2, attributes=("name", "texture", "position"))
    drawn = draw_groups("train", PICTURES, options, 50, 3)
    assert len(drawn) == 50
    assert (
        drawn == draw_groups("train", dict(PICTURES), options, 50, 3) != draw_groups("train", PICTURES, options, 50, 4)
    )
    keys, places = set(), Counter[int]()
    for group in drawn:
        members = [Place(*pair) for pair in zip(group["shards"], group["rows"], strict=True)]  # type: ignore[call-overload]
        show = [any(t[group["attribute"]] == group["value"] for t in PICTURES[m]) for m in members]  # type: ignore[literal-required]
        assert sum(show) == 2
        assert len(set(members)) == 5
        places.update(place for place, shows in enumerate(show) if shows)
        keys.add((group["attribute"], group["value"], tuple(sorted(members))))
    assert len(keys) == 50
    assert min(places[place] for place in range(5)) > 8  # it stands anywhere
    few = {place: PICTURES[place] for place in list(PICTURES)[:3]}
    assert draw_groups("train", few, options, 50, 3) == []
