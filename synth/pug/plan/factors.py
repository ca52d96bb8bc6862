"""Factors of variation: what may change from one picture to the next, and the values each change goes through."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.curation.store import storage

Value = str | int | float
Level = dict[str, Value]  # the columns that one value of a factor sets
LARGEST = 10_000_000  # values a factor may list


class Factor(Options, frozen=True):
    """One factor of variation; give `values`, or `low` and `high`, or `file`, or `count`. A plain list is `values`."""

    values: tuple[Value | Level, ...] = Field(
        (), description="the values; a mapping of columns to values sets several linked columns at once"
    )
    low: float | None = Field(None, description="numeric: the smallest value")
    high: float | None = Field(None, description="numeric: the largest value")
    steps: int | None = Field(
        None, ge=1, le=LARGEST, description="numeric: equally spaced values; none: continuous, for a random plan"
    )
    file: str | None = Field(None, description="a text file, one value a line, or a .csv whose columns are linked")
    count: int | None = Field(None, ge=1, le=LARGEST, description="placeholders: NAME-0, NAME-1, ... stand for values")
    placeholder: str = Field("", description="NAME of the placeholders; default: the factor's own name")
    default: Value | Level | None = Field(None, description="the value of the rows where another factor varies")

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, data: Any) -> Any:
        if isinstance(data, Factor | Mapping):
            return data
        if isinstance(data, str) and "," in data:
            raise ValueError("is it one value or several? write it as a list: [..., ...]")
        return {"values": data if isinstance(data, list | tuple) else [data]}

    @field_validator("values", mode="before")
    @classmethod
    def _no_booleans(cls, values: Any) -> Any:
        if isinstance(values, list | tuple) and any(isinstance(value, bool) for value in values):
            raise ValueError("YAML reads yes, no, on and off as true or false: put the value in quotes")
        return values

    @model_validator(mode="after")
    def _one_kind(self) -> Factor:
        numeric = self.low is not None or self.high is not None
        if sum((bool(self.values), numeric, self.file is not None, self.count is not None)) != 1:
            raise ValueError("give exactly one of values, low and high, file, count")
        if numeric and (self.low is None or self.high is None or not self.low <= self.high):
            raise ValueError("give low and high, low not above high")
        return self

    @property
    def continuous(self) -> bool:
        """Whether the factor takes any number between low and high."""
        return self.low is not None and self.steps is None


@dataclasses.dataclass(frozen=True)
class Axis:
    """A factor ready to be enumerated.

    Args:
        name: of the factor.
        levels: for each value the columns it sets, all the same; empty for a continuous factor.
        low, high: of a continuous factor.
        default: the columns of the default, or None.
    """

    name: str
    levels: tuple[Level, ...]
    low: float = 0.0
    high: float = 0.0
    default: Level | None = None

    @property
    def continuous(self) -> bool:
        """Whether there are no levels to count."""
        return not self.levels

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the factor sets."""
        return tuple(self.levels[0]) if self.levels else (self.name,)


def inlined(name: str, factor: Factor) -> Factor:
    """Return the factor with the values of its file, so that the recipe says all; raises UserError."""
    if factor.file is None:
        return factor
    try:
        text = storage.read_bytes(factor.file).decode("utf-8-sig")
        if factor.file.endswith(".csv"):
            values: list[Any] = [dict(row) for row in csv.DictReader(io.StringIO(text))]
        else:
            values = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"factors.{name}.file: cannot read {factor.file}: {error}; give a text or .csv file") from None
    if not values or any(None in value or None in value.values() for value in values if isinstance(value, dict)):
        raise UserError(f"factors.{name}.file: {factor.file} holds no values, or lines of different lengths")
    return factor.model_copy(update={"values": tuple(values), "file": None})


def axis_of(name: str, factor: Factor) -> Axis:
    """Return what a plan enumerates; raises UserError when values repeat or set different columns."""
    default = None if factor.default is None else _level(name, factor.default)
    if factor.continuous:
        return Axis(name, (), float(factor.low or 0.0), float(factor.high or 0.0), default)
    levels = tuple(_level(name, value) for value in _values(name, factor))
    for other in (*levels, *([default] if default else [])):
        if set(other) != set(levels[0]):
            raise UserError(f"factors.{name}: {other} sets other columns than {levels[0]}; give each the same columns")
    seen: set[tuple[Value, ...]] = set()
    for level in levels:
        key = tuple(level.values())
        if key in seen:
            raise UserError(f"factors.{name}: the value {_shown(level)!r} stands there twice; give each value once")
        seen.add(key)
    return Axis(name, levels, default=default)


def _values(name: str, factor: Factor) -> tuple[Value | Level, ...]:
    if factor.count is not None:
        digits = len(str(factor.count - 1))
        return tuple(f"{factor.placeholder or name}-{i:0{digits}d}" for i in range(factor.count))
    if factor.low is not None and factor.high is not None and factor.steps is not None:
        gap = (factor.high - factor.low) / max(1, factor.steps - 1)
        return tuple(round(factor.low + gap * i, 9) for i in range(factor.steps))
    return factor.values


def _level(name: str, value: Value | Level) -> Level:
    level = dict(value) if isinstance(value, dict) else {name: value}
    if not level:
        raise UserError(f"factors.{name}: a value sets no column; give a mapping of columns to values")
    return level


def _shown(level: Level) -> str:
    return ", ".join(str(value) for value in level.values())


def axes_of(factors: Mapping[str, Factor]) -> tuple[Axis, ...]:
    """Return the axes of all factors; raises UserError when two set the same column."""
    axes = tuple(axis_of(name, factor) for name, factor in factors.items())
    for one, other in itertools.combinations(axes, 2):
        for column in set(one.columns) & set(other.columns):
            raise UserError(f"factors.{other.name}: it sets {column}, as {one.name} does; leave one of them out")
    return axes
