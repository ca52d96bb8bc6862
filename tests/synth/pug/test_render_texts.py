"""What is said and asked of rendered pictures, against the rows themselves, and against brute force."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from granary.curation.errors import UserError
from granary.synth.pug.planning import Planned, PlannedRow, planned
from granary.synth.pug.recipe import RenderRecipe
from granary.synth.pug.texts.facts import words_for
from granary.synth.pug.texts.options import Polls
from granary.synth.pug.texts.polls import Commonness, polls_of
from granary.synth.pug.texts.quads import exchanged
from granary.synth.pug.texts.templates import QUESTIONS, names_in

THINGS = ["blank", "Cat", "RedPanda", "Elephant"]
LAYOUTS = [
    {"character1_pos": one, "character2_pos": two, "character_texture": first, "character2_texture": second}
    for one, two in (("left", "right"), ("bottom", "top"))
    for first, second in (("Default", "Default"), ("Blue", "Red"), ("Red", "Blue"), ("Grass", "Stone"))
]
FACTORS: dict[str, Any] = {
    "world_name": ["Desert", "OceanFloor"],
    "layout": LAYOUTS,
    "character_name": THINGS,
    "character2_name": THINGS,
}
KINDS = list(QUESTIONS)
WORDS = {"Cat": "cat", "RedPanda": "red panda", "Elephant": "elephant"}


def work_of(**changes: Any) -> Planned:
    plain: dict[str, Any] = {
        "out": "-",
        "factors": FACTORS,
        "captions": {"style": "sentences", "count": 100},
        "questions": {"kinds": KINDS, "count": 100},
        "polls": {"kinds": ["random", "popular", "adversarial"]},
        "quads": {"kinds": ["relation", "colour", "texture"]},
        **changes,
    }
    return planned(RenderRecipe.model_validate(plain))


def rows_of(work: Planned) -> list[PlannedRow]:
    return [work.row(index) for index in range(len(work.plan))]


def things(row: PlannedRow) -> list[tuple[str, str, str]]:
    """Return words, place and texture of each thing of a row, read from its columns alone."""
    values = row.values
    slots = (("character_name", "character1_pos", "character_texture"),)
    slots += (("character2_name", "character2_pos", "character2_texture"),)
    return [
        (WORDS[str(values[name])], str(values[place]), str(values[look]).lower())
        for name, place, look in slots
        if values[name] != "blank"
    ]


def is_true(caption: str, row: PlannedRow) -> bool:
    """Say whether a shipped caption is true of a row: its claims, one by one, against the columns."""
    there, text = things(row), caption
    names = "|".join(WORDS.values())
    world = {"Desert": "desert", "OceanFloor": "ocean floor"}[str(row.values["world_name"])]
    if match := re.search(r" ?(?:in|of) the ((?:desert|ocean floor))$", text):
        if match[1] != world:
            return False
        text = text[: match.start()]
    if text == "a picture":
        return True
    text = re.sub(r"^(a picture of|the picture shows) ", "", text)
    if match := re.fullmatch(rf"an? ({names}) on the (\w+) of the picture", text):
        return (match[1], match[2]) in {(name, place) for name, place, _ in there}
    if match := re.fullmatch(rf"an? ({names}) (to the left of|to the right of|above|below) an? ({names})", text):
        places = {"to the left of": "left right", "to the right of": "right left"}
        pair = (places | {"above": "top bottom", "below": "bottom top"})[match[2]].split()
        return sorted(thing[:2] for thing in there) == sorted([(match[1], pair[0]), (match[3], pair[1])])
    claims = []
    for part in re.split(r" and ", text):
        part = part.replace("another", "a")
        match = re.fullmatch(rf"an? (?:(red|blue) )?({names})(?: covered in (\w+))?", part)
        if match is None:
            raise AssertionError(caption)
        claims.append((match[2], match[1] or match[3]))
    looks = {(name, texture) for name, _, texture in there} | {(name, None) for name, _, _ in there}
    return all(claim in looks for claim in claims) and len(claims) <= len(there)


def test_every_caption_is_true_and_false_ones_are_seen_by_the_same_check() -> None:
    work = work_of()
    rows, checked = rows_of(work), 0
    for row in rows:
        captions = work.captions(row)
        assert len(set(captions)) == len(captions) > 0
        assert all(is_true(caption, row) for caption in captions)
        checked += len(captions)
    assert checked > 1000
    cat = next(row for row in rows if [thing[0] for thing in things(row)] == ["cat", "elephant"])
    assert is_true("a cat to the left of an elephant", cat)
    assert not is_true("an elephant to the left of a cat", cat)
    assert not is_true("a cat on the right of the picture", cat)
    assert not is_true("a picture of the ocean floor", cat)


def test_every_question_has_its_answer() -> None:
    work = work_of()
    kinds = Counter()
    for row in rows_of(work):
        there = things(row)
        of = {name: (place, texture) for name, place, texture in there}
        at = {place: name for name, place, _ in there}
        for asked in work.questions(row):
            question, answer = asked["question"], asked["answer"]
            kinds[asked["kind"]] += 1
            assert asked["answers"] == [answer]
            if asked["kind"] == "world":
                assert answer == {"Desert": "desert", "OceanFloor": "ocean floor"}[str(row.values["world_name"])]
            elif asked["kind"] == "count":
                assert answer == str(len(there))
            elif asked["kind"] == "what":
                place = re.search(r"on the (\w+) of", question)
                if place:
                    assert at[place[1]] == answer
                elif len(there) == 2:
                    assert {answer, re.search(r"the (\w+(?: panda)?)\?$", question)[1]} == set(of)  # type: ignore[index]
                else:
                    assert [answer] == list(of)
            else:
                name = next(name for name in of if f"the {name}" in question)
                if asked["kind"] == "where":
                    assert of[name][0] == answer
                elif asked["kind"] in ("colour", "texture"):
                    assert of[name][1] == answer
                    assert (answer in ("red", "blue")) == (asked["kind"] == "colour")
                else:
                    first = re.search(r"Is the ([\w ]+?) (?:to the|above)", question)[1]  # type: ignore[index]
                    assert {"top": "above", "bottom": "below"}.get(of[first][0], of[first][0]) == answer
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 10


def test_two_things_of_one_name_are_never_told_apart_by_it() -> None:
    work = work_of()
    for row in rows_of(work):
        names = [name for name, _, _ in things(row)]
        if len(names) == 2 and names[0] == names[1]:
            assert not [asked for asked in work.questions(row) if f"the {names[0]}" in asked["question"]]
            assert {"count", "world"} <= {asked["kind"] for asked in work.questions(row)}
            shown = {asked["answer"] for asked in work.questions(row) if asked["kind"] == "what"}
            assert shown <= {names[0]}


def test_texts_depend_on_seed_and_row_alone() -> None:
    few = {"captions": {"style": "sentences", "count": 2}, "questions": {"kinds": KINDS}}
    one = {row.id: row for row in rows_of(work_of(**few))}
    turned = work_of(**few, factors=dict(reversed(FACTORS.items())))  # the same rows at other places of the plan
    fewer = work_of(**few, factors={**FACTORS, "world_name": ["Desert"]})
    work, moved = work_of(**few), 0
    for other in (turned, fewer):
        for row in rows_of(other):
            assert other.captions(row) == work.captions(one[row.id])
            assert other.questions(row) == work.questions(one[row.id])
            moved += row.index != one[row.id].index
    assert moved > 100
    reseeded = work_of(**few, seed=1)
    assert any(reseeded.captions(row) != work.captions(row) for row in one.values())
    counts = Counter(len(work.captions(row)) for row in one.values())
    assert set(counts) == {1, 2}  # of an empty world there is one thing to say


def test_wordings_of_the_recipe_take_the_place_of_the_shipped_ones() -> None:
    work = work_of(
        captions={"style": "sentences", "templates": ["here {a_thing}, there {a_other}, {character_name}"]},
        questions={"kinds": ["what", "side"], "templates": {"what": ["What, on the {side}?"]}},
        words={"Cat": "tom cat"},
    )
    row = next(row for row in rows_of(work) if [name for name, _, _ in things(row)] == ["cat", "elephant"])
    both = {"here a tom cat, there an elephant, Cat", "here an elephant, there a tom cat, Cat"}
    assert set(work.captions(row)) == both
    what, side = work.questions(row)
    assert (what["question"], what["answer"]) in {
        ("What, on the left?", "tom cat"),
        ("What, on the right?", "elephant"),
    }
    assert side["answer"] in ("left", "right")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": {"style": "sentences", "templates": ["a {thin}"]}}, r"\{thin\} is no column.*thing"),
        ({"captions": {"style": "templates", "templates": ["a {thing}"]}}, r"\{thing\} is no column"),
        ({"captions": {"style": "templates"}}, "captions.templates: missing"),
        ({"captions": {"style": "spar", "templates": ["a {character_name}"]}}, "spar reads no captions.templates"),
        ({"questions": {"templates": {"what": ["Is it {a_thing}?"]}}}, "gives its answer away by {thing}"),
        ({"questions": {"templates": {"side": ["Is it {relation} the {other}?"]}}}, "gives its answer away"),
        ({"questions": {"templates": {"world": ["Where {is it?"]}}}, "is no template"),
        (
            {"polls": {"kinds": ["random"], "template": "Is there a {thing}?"}},
            r"\{thing\} is no column",
        ),
        ({"quads": {"kinds": ["relation"]}, "factors": {"world_name": ["Desert"], "character_name": ["Cat"]}}, "two"),
    ],
)
def test_what_cannot_be_said_stops_the_run_before_any_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        work_of(**changes)


def test_sides_follow_the_camera_and_not_the_axes_of_the_world() -> None:
    factors = {
        "world_name": ["Desert"],
        "character_name": ["Cat"],
        "character2_name": ["Elephant"],
        "place": [{"character1_pos": "left", "character2_pos": "right"}],
        "camera_yaw": [0, 90, 200, 315],
        "camera_roll": [0, 180],
    }
    work = work_of(factors=factors, quads={}, captions={"style": "sentences", "templates": ["{a_thing} {relation}"]})
    for row in rows_of(work):
        upside_down = row.values["camera_roll"] == 180
        cat = "a cat to the right of" if upside_down else "a cat to the left of"
        assert cat in work.captions(row)


def test_names_become_words() -> None:
    names = {"OceanFloor": "ocean floor", "SciFiCity": "sci fi city", "grey-wolf_2": "grey wolf 2", "UFO": "ufo"}
    assert {name: words_for(name, {}) for name in names} == names
    assert words_for("---", {}) == "---"
    assert names_in("{a} and {b}") == {"a", "b"}


# -- polls -----------------------------------------------------------------------------------------------------------

PICTURES = [["cat", "dog"]] * 5 + [["cat", "fox"]] * 3 + [["dog"]] * 9 + [["owl", "fox"]] * 2 + [["ant"], []]


@pytest.mark.parametrize("kind", ["random", "popular", "adversarial"])
def test_polls_are_those_of_brute_force(kind: str) -> None:
    common, counts = Commonness.of(PICTURES), Counter(name for there in PICTURES for name in there)
    options = Polls.model_validate({"kinds": [kind]})
    chosen = Counter()
    for number, there in enumerate(PICTURES * 4):
        polls = polls_of(there, common, options, f"0/{number}")
        assert [poll["answer"] for poll in polls] == ["yes", "no"] * len(there)
        assert [poll["object"] for poll in polls[::2]] == there
        left = set(counts) - set(there)
        for yes, no in zip(polls[::2], polls[1::2], strict=True):
            beside = {
                name: sum(yes["object"] in other and name in other for other in PICTURES) for name in sorted(left)
            }
            score = {"random": dict.fromkeys(left, 0), "popular": counts, "adversarial": beside}[kind]
            assert no["object"] in left
            assert score[no["object"]] == max(score[name] for name in left)
            left.remove(no["object"])
            chosen[no["object"]] += 1
    assert polls_of(["owl"], common, options, "0/x")[0]["question"] == "Is there an owl in the image?"
    if kind == "random":
        assert set(chosen) == set(counts)  # every object is asked for where it is not


def test_polls_without_an_absent_object_are_left_out_so_that_yes_and_no_are_as_many() -> None:
    common = Commonness.of([["cat", "dog"]])
    options = Polls.model_validate({"kinds": ["random"]})
    assert polls_of(["cat", "dog"], common, options, "0/0") == []
    assert [poll["answer"] for poll in polls_of(["cat"], common, options, "0/0")] == ["yes", "no"]


def test_an_exchange_is_undone_by_itself() -> None:
    row: dict[str, Any] = {"character_name": "Cat", "character2_name": "Dog", "character_scale": 1.0}
    columns = [("character_name", "character2_name"), ("character_x", "character2_x")]
    changed = exchanged(row, columns)
    assert changed == {**row, "character_name": "Dog", "character2_name": "Cat"}
    assert changed is not None
    assert exchanged(changed, columns) == row
    assert exchanged({**row, "character2_name": "Cat"}, columns) is None  # nothing would change
    assert exchanged(row, [("character_scale", "character2_scale")]) is None  # one of them has no scale of its own
