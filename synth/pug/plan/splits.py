"""Splits of a rendered dataset: factor values, their combinations, or rows that are held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pydantic import Field, field_validator, model_validator

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.curation.runs.splits import TRAIN
from granary.synth.pug.plan.factors import Axis, Value
from granary.synth.pug.plan.plans import Row, permuted


class Holdout(Options, frozen=True):
    """Rows that are held out of training: those with certain values, or a number of rows."""

    split: str = Field("test", pattern=r"^\w+$", description="name of the split they go to")
    where: dict[str, tuple[Value, ...]] = Field(
        {}, description="columns and values; several columns hold out only their combinations"
    )
    draw: dict[str, int] = Field({}, description="factors, and how many of their values the seed chooses to hold out")
    rows: int | None = Field(None, ge=1, description="exactly this many rows, chosen by the seed")

    @field_validator("where", mode="before")
    @classmethod
    def _one_or_many(cls, where: object) -> object:
        if not isinstance(where, dict):
            return where
        return {column: value if isinstance(value, list | tuple) else [value] for column, value in where.items()}

    @model_validator(mode="after")
    def _something(self) -> Holdout:
        if bool(self.where or self.draw) == (self.rows is not None):
            raise ValueError("give where or draw, or rows")
        return self


@dataclasses.dataclass(frozen=True)
class Rule:
    """A holdout with its values chosen.

    Args:
        split: where its rows go.
        values: for each column the values, all of which a row must match.
        rows: instead, how many rows of `total`, chosen by `key`.
    """

    split: str
    values: Mapping[str, frozenset[Value]]
    rows: int = 0
    total: int = 0
    key: str = ""

    def holds(self, index: int, row: Row) -> bool:
        """Whether a row is held out."""
        if self.values:
            return all(row[column] in chosen for column, chosen in self.values.items())
        return permuted(index, self.total, self.key) < self.rows


def rules_of(
    holdouts: Sequence[Holdout], axes: Sequence[Axis], columns: Sequence[str], total: int, seed: int
) -> list[Rule]:
    """Return the rules of a recipe; raises UserError when they name what the factors do not have."""
    return [_rule(number, holdout, axes, columns, total, seed) for number, holdout in enumerate(holdouts)]


def _rule(number: int, holdout: Holdout, axes: Sequence[Axis], columns: Sequence[str], total: int, seed: int) -> Rule:
    key = f"{seed}/{number}/holdout"
    if holdout.rows is not None:
        if holdout.rows >= total:
            raise UserError(f"splits.rows: {holdout.rows} leaves nothing of the {total} rows; give fewer")
        return Rule(holdout.split, {}, holdout.rows, total, key)
    values = {column: frozenset(chosen) for column, chosen in holdout.where.items()}
    for column, chosen in values.items():
        known = {level[column] for axis in axes for level in axis.levels if column in level}
        missing = chosen - known
        if column not in columns or (known and missing):
            what = f"{next(iter(missing))!r} is no value of {column}" if column in columns else f"no column {column}"
            raise UserError(f"splits.where: there is {what}; give columns and values of the factors")
    for name, count in holdout.draw.items():
        values |= _drawn(name, count, axes, key)
    return Rule(holdout.split, values)


def _drawn(name: str, count: int, axes: Sequence[Axis], key: str) -> dict[str, frozenset[Value]]:
    axis = next((axis for axis in axes if axis.name == name and not axis.continuous), None)
    if axis is None:
        raise UserError(
            f"splits.draw: {name} is no factor with values; the factors are {', '.join(a.name for a in axes)}"
        )
    if not 0 < count < len(axis.levels):
        raise UserError(
            f"splits.draw: {count} of the {len(axis.levels)} values of {name} cannot be held out; give fewer"
        )
    column, size = axis.columns[0], len(axis.levels)
    return {column: frozenset(axis.levels[permuted(i, size, f"{key}/{name}")][column] for i in range(count))}


def split_of(rules: Sequence[Rule], index: int, row: Row) -> str:
    """Return the split of a row: that of the first rule that holds it out, else train."""
    return next((rule.split for rule in rules if rule.holds(index, row)), TRAIN)
