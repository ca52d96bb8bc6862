"""Texts that are no tree: one line, whatever they hold."""

from __future__ import annotations

import pytest

from granary.curation.store.trees import json_tree, mapping, yaml_tree

NO_YAML = {
    "a month 99": "name: 2020-99-99",
    "an hour 99": "name: 2020-01-01 99:00:00",
    "5,000 digits": "seed: " + "9" * 5000,
    "nested 5,000 deep": "pool: " + "[" * 5000,
    "nested blocks": "\n".join(" " * depth + "a:" for depth in range(3000)),
    "a tag that does not fit": "a: !!bool maybe",
    "an empty number": "a: !!int ''",
    "a time that is none": "a: !!timestamp never",
    "a list as a key": "? [a]\n: b",
    "an object of Python": "a: !!python/object/apply:os.system ['true']",
    "a merge with a number": "<<: 3",
    "a control character": "a: \x01",
    "no text": b"\xff\xfe\xff",
    "an alias without an anchor": "a: *b",
}


@pytest.mark.parametrize("text", NO_YAML.values(), ids=NO_YAML)
def test_yaml_that_cannot_be_read_says_why_in_one_line(text):
    with pytest.raises(ValueError, match=r"^\S.*\S$") as caught:
        yaml_tree(text)
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 5000, "", b"\xff", "nan,", '{"a": 1} 2'])
def test_json_that_cannot_be_read_says_why_in_one_line(text):
    with pytest.raises(ValueError, match=r"^\S.*\S$") as caught:
        json_tree(text)
    assert type(caught.value) is ValueError


def test_what_can_be_read_is_read():
    assert yaml_tree("a: [1, 2.5, x]") == json_tree('{"a": [1, 2.5, "x"]}') == {"a": [1, 2.5, "x"]}
    assert mapping("recipe.yaml", "a: 1") == mapping("run.json", '{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match="it holds a list"):
        mapping("recipe.yaml", "- 1")
