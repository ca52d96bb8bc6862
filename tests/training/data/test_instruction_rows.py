"""Instructions of a run: how answers are written, what is drawn, what of a cell is left out, and the grammar."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_scenes import scene

from granary.curation.dense import rle
from granary.curation.instructions.asking import asked, target_of
from granary.curation.instructions.asking import instructions_of as made_of
from granary.curation.instructions.recipe import TASKS
from granary.curation.instructions.things import things_of
from granary.training.data.bins import mask_of, parsed, parsed_group, picture_token, points_of, vocabulary, written
from granary.training.data.contours import SAMPLERS
from granary.training.data.grammar import Grammar
from granary.training.data.instructions import Coding, Form, draw_instructions, instructions_of
from granary.training.evaluation.davis import region_similarity
from granary.training.method import Moment

SIZE = (40, 32)
TEXTURES = ("character_texture", "character2_texture")


def cell_of(number: int) -> list[Any]:
    row = scene(number, SIZE)
    things, _ = things_of(row, SIZE, TEXTURES)
    group = asked(
        "group", "Which pictures show it?", targets=[target_of(t, 2 * n + 1, SIZE) for n, t in enumerate(things)]
    )
    return [*made_of(row, things, SIZE, ["ball", "cone", "slab"], TASKS, 1, str(number)), group]


# -- how answers are written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("number", range(6))
def test_what_is_written_is_read_again_and_lies_where_it_was(sampler: str, number: int) -> None:
    coding = Coding(101, 24, sampler)
    for one in instructions_of(cell_of(number)):
        text = coding.answer(one)
        if one.form == "text":
            assert text == one.answer
        elif one.form == "box":
            items = parsed(text, "box", bins=101)
            assert items is not None
            corners = [points_of(item, *SIZE, 101).ravel() for item in items]
            np.testing.assert_allclose(
                np.reshape(corners, (-1, 4)), np.reshape([t.box for t in one.targets], (-1, 4)), atol=0.21
            )
        else:
            masks = parsed_group(text, 24, 101) if one.form == "group" else {0: parsed(text, "mask", 24, 101) or []}
            assert masks is not None
            for picture in {target.picture for target in one.targets}:
                truth = np.logical_or.reduce([target.mask for target in one.targets if target.picture == picture])
                assert region_similarity(mask_of(masks[picture], *SIZE, 101), truth) > 0.8
            assert set(masks) - {0} == {target.picture for target in one.targets} - {0}
        assert (text == "") == (not one.answer and not one.targets)


@pytest.mark.parametrize(
    "text", ["<i_2>", "<i_2><m_st><m_ed>", "x<i_1>{m}", "<i_2>{m}<i_1>{m}", "<i_1>{m}<i_1>{m}", "{m}", "<i_1>{m}<i_2>"]
)
def test_a_broken_answer_about_several_pictures_is_no_answer(text: str) -> None:
    mask = written("mask", [[1, 2, 3, 4]])
    assert parsed_group(text.replace("{m}", mask), 2, 9) is None
    assert parsed_group(f"<i_1>{mask} <i_3>{mask}", 2, 9) == {0: [[1, 2, 3, 4]], 2: [[1, 2, 3, 4]]}
    assert parsed_group(" ", 2, 9) == {}


# -- what is drawn -----------------------------------------------------------------------------------------------------


def test_tasks_are_drawn_alike_and_the_same_for_a_row_in_any_batch() -> None:
    cells = [cell_of(n) for n in range(40)]
    batch = {"id": [str(n) for n in range(40)], "instructions": cells}
    tasks = list[str]()
    for step in range(50):
        drawn = draw_instructions(batch, Moment(step, 50, 3))
        tasks += [one.task for one in drawn if one]
        alone = draw_instructions({"id": ["7"], "instructions": [cells[7]]}, Moment(step, 50, 3))
        assert alone == [drawn[7]]
    shares = {task: tasks.count(task) / len(tasks) for task in set(tasks)}
    assert set(shares) == {*TASKS, "group"}
    assert all(share == pytest.approx(1 / 6, abs=0.03) for share in shares.values())
    only = draw_instructions(batch, Moment(0, 50, 3), ("mask",))
    assert {one.task for one in only if one} == {"mask"}
    assert draw_instructions({"id": ["0"], "instructions": [None]}, Moment(0, 1, 0)) == [None]


def test_what_lacks_a_part_or_points_nowhere_is_left_out() -> None:
    region = rle.compress(rle.run_lengths(np.ones((4, 4), bool)))
    empty = rle.compress(rle.run_lengths(np.zeros((4, 4), bool)))
    target = {"picture": 0, "box": [0, 0, 4, 4], "size": [4, 4], "counts": region}
    right = {"task": "mask", "form": "mask", "question": "q", "answer": "", "targets": [target]}
    wrong = [
        {**right, "question": " "}, {**right, "form": "poem"}, {**right, "form": "text"}, "no struct", None,
        *({**right, "targets": [{**target, **change}]} for change in (
            {"counts": None}, {"counts": "0"}, {"counts": empty}, {"size": [4, 5]}, {"box": [0, 0, 5, 4]},
            {"box": [2, 0, 2, 4]}, {"box": None}, {"size": [4]},
        )),
    ]  # fmt: skip
    assert [one.task for one in instructions_of([*wrong, right])] == ["mask"]
    assert instructions_of(None) == []


# -- the grammar -------------------------------------------------------------------------------------------------------

BINS, POINTS, ITEMS, PICTURES, END = 9, 2, 2, 3, 1
NAMES = [*(f"word{n}" for n in range(5)), *vocabulary(BINS), *map(picture_token, range(PICTURES)), "<answer>"]
NUMBERS = {name: n + 2 for n, name in enumerate(NAMES)}
GRAMMAR = Grammar(NUMBERS, len(NAMES) + 2, END, frozenset([0, NUMBERS["<answer>"]]), BINS, POINTS, ITEMS, PICTURES)


def said(numbers: list[int]) -> str:
    names = {number: name for name, number in NUMBERS.items()}
    return "".join(names[number] for number in numbers)


@pytest.mark.parametrize("form", ["box", "mask", "group"])
def test_whatever_is_drawn_from_the_grammar_is_an_answer(form: Form) -> None:
    """Random walks end within the bound, are read, and show all there is: nothing, one, several."""
    random, counts, lengths = np.random.default_rng(0), set(), set()
    for _ in range(400):
        tokens = list[int]()
        while not tokens or tokens[-1] != END:
            tokens.append(int(random.choice(GRAMMAR.allowed(form, tokens, PICTURES))))
        lengths.add(len(tokens))
        text = said(tokens[:-1])
        read = parsed_group(text, POINTS, BINS) if form == "group" else parsed(text, form, POINTS, BINS)
        assert read is not None
        counts.add(len(read))
    assert max(lengths) == GRAMMAR.longest(form, 7)
    assert counts == ({0, 1, 2, 3} if form == "group" else {0, 1, 2})


@pytest.mark.parametrize("form", ["box", "mask", "group"])
def test_every_answer_that_can_be_written_is_allowed(form: Form) -> None:
    random = np.random.default_rng(1)
    for _ in range(200):
        count = 4 if form == "box" else 2 * POINTS

        def items(count: int = count) -> list[list[int]]:
            return random.integers(0, BINS, (1 + int(random.integers(ITEMS)), count)).tolist()

        if form == "group":
            shown = [n for n in range(PICTURES) if random.random() < 0.5]
            text = "".join(picture_token(n) + written("mask", items()) for n in shown)
        else:
            text = written("box" if form == "box" else "mask", items() if random.random() < 0.8 else [])
        tokens = [NUMBERS[name + ">"] for name in text.split(">")[:-1]]
        for place, token in enumerate([*tokens, END]):
            assert token in GRAMMAR.allowed(form, tokens[:place], PICTURES)


def test_texts_are_of_words_alone_and_only_pictures_that_are_shown_are_named() -> None:
    assert GRAMMAR.allowed("text", [3]) == [END, *range(2, 7)]
    assert GRAMMAR.longest("text", 7) == 7
    first = GRAMMAR.allowed("group", [], 2)
    assert set(first) == {END, NUMBERS["<i_1>"], NUMBERS["<i_2>"]}
    assert GRAMMAR.allowed("box", []) == [END, NUMBERS["<b_st>"]]
