from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from granary.curation.errors import UserError
from granary.synth.feedback.classes import match_labels
from granary.synth.feedback.plan import (
    Cell,
    choose,
    class_of,
    group_of,
    plan_rows,
    row_id,
    row_seed,
    shortfalls,
)
from granary.synth.feedback.prompts import check_template, prompt_of
from granary.synth.feedback.recipe import FillOptions, Groups, SampleRecipe

COUNTS = {Cell("cat"): 1400, Cell("dog"): 1300, Cell("eel"): 20, Cell("fox"): 1}


# -- counts ----------------------------------------------------------------------------------------------------------


def test_a_hand_made_histogram_is_filled_up() -> None:
    found = shortfalls(COUNTS, 1300)
    assert found == {Cell("cat"): 0, Cell("dog"): 0, Cell("eel"): 1280, Cell("fox"): 1299}
    assert sum(shortfalls(COUNTS, None).values()) == 100 + 1380 + 1399  # up to the largest


def test_the_plan_of_imagenet_lt_has_the_published_size() -> None:
    counts = {Cell(f"n{i:04d}"): 115 + (i < 846) for i in range(1000)}  # 115,846 images, every class below 1300
    assert sum(shortfalls(counts, 1300).values()) == 1_184_154


def test_groups_fill_up_cell_by_cell() -> None:
    counts = {Cell("dog", "grass"): 9, Cell("dog", "snow"): 2, Cell("cat", "grass"): 4}
    assert shortfalls(counts) == {Cell("dog", "grass"): 0, Cell("dog", "snow"): 7, Cell("cat", "grass"): 5}
    assert shortfalls(counts, 10, empty=True)[Cell("cat", "snow")] == 10


@given(st.dictionaries(st.text("abc", min_size=1).map(Cell), st.integers(0, 50)), st.integers(1, 60))
def test_every_cell_ends_at_the_level_or_above(counts: dict[Cell, int], level: int) -> None:
    found = shortfalls(counts, level)
    assert all(counts[cell] + found[cell] == max(level, counts[cell]) for cell in counts)


# -- rows ------------------------------------------------------------------------------------------------------------


def test_a_larger_plan_keeps_the_rows_of_a_smaller_one() -> None:
    small = {(r.row_id, r.cell) for r in plan_rows(shortfalls(COUNTS, 30), 7)}
    large = {(r.row_id, r.cell) for r in plan_rows(shortfalls(COUNTS, 40), 7)}
    assert small < large
    assert len(large) == 20 + 39


def test_rows_are_told_apart_by_everything_they_are_made_of() -> None:
    ids = {
        row_id(seed, Cell(label, group), number)
        for seed in (0, 1)
        for label in ("a", "ab")
        for group in ("", "b", "ab")
        for number in (0, 1, 11)
    }
    assert len(ids) == 2 * 2 * 3 * 3
    assert row_id(0, Cell("a", "bc"), 0) != row_id(0, Cell("ab", "c"), 0)


def test_a_row_is_pinned_for_ever() -> None:
    """A change here would give every user other pictures for the same recipe."""
    first = row_id(0, Cell("cat"), 0)
    assert first == "9516100d736dad75c4a62d2969f96c1b"
    assert row_seed(0, first) == 7924277739829733017


def test_seeds_are_a_hash_of_run_and_row() -> None:
    seeds = [row_seed(run, f"row {i}", attempt) for run in (0, 1) for i in range(200) for attempt in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    assert 0.45 < sum(seeds) / len(seeds) / 2**63 < 0.55


def test_conditioning_pictures_are_chosen_evenly() -> None:
    found = Counter(choose("abcde", 0, f"row {i}") for i in range(5000))
    assert set(found) == set("abcde")
    assert max(found.values()) < 1.15 * min(found.values())
    assert choose(["only"], 0, "row") == "only"


# -- groups, classes, prompts ----------------------------------------------------------------------------------------


def test_groups_are_told_by_source_path_or_metadata() -> None:
    uri, pattern = "nico/train/autumn/bird/0.jpg", r"train/(?P<group>[^/]+)/(?P<class>[^/]+)/"
    by_path, by_key = Groups(by="path", pattern=pattern), Groups(by="metadata", key="context")
    assert group_of(Groups(), uri, "nico", None) == ""
    assert group_of(Groups(by="source"), uri, "nico", None) == "nico"
    assert group_of(by_path, uri, "nico", None) == "autumn"
    assert class_of(by_path, uri, "train") == "bird"
    assert group_of(by_path, "elsewhere", "nico", None) is None
    assert group_of(by_key, uri, "nico", '{"context": 3}') == "3"
    assert group_of(by_key, uri, "nico", "[1]") is None
    assert group_of(by_key, uri, "nico", "no json") is None


def test_classes_match_by_name_and_never_by_place() -> None:
    names = ["great white shark, white shark", "tench, Tinca tinca", "Barn_owl"]
    labels = ["Tinca tinca", "barn owl", "white-shark"]
    assert match_labels(labels, names, {}, "model") == {"Tinca tinca": 1, "barn owl": 2, "white-shark": 0}
    assert match_labels(["n01"], names, {"n01": "tench"}, "model") == {"n01": 1}


def test_an_unknown_class_is_named_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"classifier.*'owl'.*plan\.names"):
        match_labels(["tench", "owl"], ["tench", "shark"], {}, "classifier")


def test_prompts_come_from_all_templates_by_hash() -> None:
    templates = ["a photo of a {class}", "a {class} in the {group}"]
    found = Counter(prompt_of(templates, f"row {i}", "polar_bear", "snow") for i in range(400))
    assert set(found) == {"a photo of a polar bear", "a polar bear in the snow"}
    assert min(found.values()) > 150


@pytest.mark.parametrize("template", ["a photo", "a {class} of {colour}", "a {class", "{}"])
def test_templates_are_checked(template: str) -> None:
    with pytest.raises(ValueError, match=r"template|fields"):
        check_template(template)


@pytest.mark.parametrize(
    "tree",
    [
        {"groups": {"by": "path", "pattern": "no names"}},
        {"groups": {"by": "path", "pattern": "(?P<group>"}},
        {"groups": {"by": "metadata"}},
        {"templates": ["a {class} in {group}"]},
        {"fill": 0},
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(tree: dict) -> None:
    with pytest.raises(ValidationError):
        FillOptions.model_validate(tree)


@pytest.mark.parametrize("omega", ["nan", "inf"])
def test_omega_must_be_a_number(omega: str) -> None:
    tree = {"data": "d", "model": "m", "classifier": "c", "out": "o", "guidance": {"omega": omega}}
    with pytest.raises(ValidationError, match="omega"):
        SampleRecipe.model_validate(tree)
