"""What every group of options and every recipe is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, BeforeValidator, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from granary.curation.values import as_written


class Options(BaseModel, frozen=True, extra="forbid"):
    """A group of options; unknown keys are errors. A list of plain values may be written with commas: `64,128`.

    Attributes:
        FORMER: another name of a field, of version 0.1 or of the Hub -> its name; a recipe may use either.
    """

    FORMER: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, tree: object) -> object:
        """Read lists that are written with commas; raise for a list where one value is right. Runs after `_renamed`."""
        if not isinstance(tree, dict):
            return tree
        wrong, read = list[InitErrorDetails](), dict(tree)
        for name, info in cls.model_fields.items():
            key = info.alias or name
            if key in tree:
                try:
                    read[key] = as_written(tree[key], info)
                except ValueError as error:
                    problem = PydanticCustomError("value_error", "{text}", {"text": str(error)})
                    wrong.append({"type": problem, "loc": (key,), "input": tree[key]})
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return read

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, tree: object) -> object:
        """Give fields the names they have now."""
        if not isinstance(tree, dict) or not cls.FORMER.keys() & tree.keys():
            return tree
        twice = next((former for former, name in cls.FORMER.items() if former in tree and name in tree), None)
        if twice:
            raise ValueError(f"{twice} is another name of {cls.FORMER[twice]}; give one of them")
        return {cls.FORMER.get(name, name): value for name, value in tree.items()}


def kind_where_none_is_named(kind: str) -> BeforeValidator:
    """Return what lets a recipe leave out the `kind` of a group that is one of several.

    Such a group is `Annotated[A | B, Field(discriminator="kind"), kind_where_none_is_named("a")]`, where A, B are
    `Options` whose field `kind` is a `Literal` of one word.

    Args:
        kind: what is meant without one.
    """
    return BeforeValidator(lambda tree: {"kind": kind, **tree} if isinstance(tree, dict) else tree)


class RunRecipe(Options, frozen=True):
    """The recipe of a kind of run: each has these fields, in its own place and with its own description.

    Attributes:
        name: title of the dataset.
        out: the run directory to write, a path or URL.
        seed: decides every random choice.
        licence: of the dataset, as the Hub names it.
    """

    FORMER: ClassVar[Mapping[str, str]] = {"license": "licence"}

    if TYPE_CHECKING:  # declared here, they would come first in every recipe.yaml and --help
        name: str
        out: str
        seed: int
        licence: str


def named_sources(value: object, role: str) -> object:
    """Return what a user wrote for the sources of a role as a list; those without a name are named after the role.

    Args:
        value: a path, the fields of one source, or a list of them; anything else is left for pydantic to refuse.
        role: for example "pool".
    """
    entries = [] if value is None else value if isinstance(value, list) else [value]
    named = []
    for number, entry in enumerate(entries):
        entry = {"path": entry} if isinstance(entry, str) else entry
        if isinstance(entry, dict) and not entry.get("name"):
            entry = {**entry, "name": role if len(entries) == 1 else f"{role}-{number + 1}"}
        named.append(entry)
    return named
