"""How the value of a field may be written."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from granary.curation.options import Options
from granary.curation.values import Sentence


class Part(Options, frozen=True):
    path: str = "p"


class Group(Options, frozen=True):
    FORMER: ClassVar = {"widths": "numbers"}

    numbers: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    words: list[Literal["a", "b"]] = Field([])
    names: tuple[str, ...] | None = None
    texts: tuple[Sentence, ...] = ()
    one: int | None = None
    several: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    either: str | tuple[int, ...] = ""
    style: Literal["none", "plain"] = "plain"
    mapping: dict[str, object] = Field({})
    parts: list[Part] = Field([])


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("numbers", "64,128", (64, 128)),
        ("numbers", "64", (64,)),
        ("numbers", "", ()),
        ("numbers", [1, 2], (1, 2)),
        ("widths", "1,2", (1, 2)),
        ("pair", "0.2, 1", (0.2, 1.0)),
        ("words", "b,a", ["b", "a"]),
        ("names", "x,y", ("x", "y")),
        ("names", None, None),
        ("texts", "a {x}, in a {y}", ("a {x}, in a {y}",)),
        ("texts", ["a, b", "c"], ("a, b", "c")),
        ("either", "1,2", "1,2"),
        ("style", None, "none"),
        ("style", "none", "none"),
        ("mapping", {"a": [1, 2]}, {"a": [1, 2]}),
        ("parts", [{"path": "q"}], [Part(path="q")]),
    ],
)
def test_what_is_written_is_what_is_meant(name, written, value):
    assert getattr(Group.model_validate({name: written}), Group.FORMER.get(name, name)) == value


@pytest.mark.parametrize(
    ("name", "written", "said"),
    [
        ("one", [1, 2], "it takes one value, and 2 are given"),
        ("several", ["all", "all"], "it takes one value, and 2 are given"),
        ("pair", "0.2", "it takes 2 values, and 1 is given"),
        ("pair", [0.2, 0.3, 0.4], "it takes 2 values, and 3 are given"),
        ("numbers", "1,x", "valid integer"),
        ("words", "a,c", "'a' or 'b'"),
    ],
)
def test_what_cannot_be_meant_is_refused_where_it_stands(name, written, said):
    with pytest.raises(ValidationError) as error:
        Group.model_validate({name: written})
    (problem,) = error.value.errors()
    assert problem["loc"][0] == name
    assert said in problem["msg"]


def test_values_in_python_are_as_they_were():
    assert Group(numbers=(1, 2), one=3).numbers == (1, 2)
    assert Group.model_validate(Group(one=3)).one == 3
