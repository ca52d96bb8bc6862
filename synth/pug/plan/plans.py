"""Sampling plans: which combinations of factor values become rows. Row i is computed from i alone."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Literal, overload

from pydantic import Field

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.curation.store.sampling import hashed
from granary.synth.pug.plan.covering import TooManyTuples, covering_array
from granary.synth.pug.plan.factors import Axis, Level, Value

Row = dict[str, Value]
VARIED = "varied_factor"  # column of a one-factor plan: the factor that may differ from its default
ROUNDS = 3  # of two half rounds


class PlanOptions(Options, frozen=True):
    """Which rows of the factor table are rendered."""

    kind: Literal["grid", "random", "covering", "list", "one_factor"] = Field(
        "grid",
        description="grid: every combination; random: `count` of them; covering: few rows that hold every combination "
        "of the values of any `strength` factors; list: `rows`; one_factor: one factor at a time leaves its default",
    )
    count: int | None = Field(None, ge=1, description="random: number of rows")
    strength: int = Field(2, ge=1, description="covering: number of factors whose combinations all occur")
    rows: tuple[Row, ...] = Field((), description="list: the rows, mappings of columns to values")
    each: tuple[str, ...] = Field((), description="one_factor: factors of which every value gets all the variations")


class Plan(Sequence[Row]):
    """A sequence of rows; `columns` are the keys of each."""

    columns: tuple[str, ...]

    def row(self, index: int) -> Row:
        """Return row `index`, 0 <= index < len."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self.row(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.row(index % len(self))


class Grid(Plan):
    """Every combination: the index is a mixed-radix number whose last digit, the last factor, runs fastest."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = tuple(axes)
        self.size = math.prod(len(axis.levels) for axis in axes)
        self.columns = tuple(itertools.chain.from_iterable(axis.columns for axis in axes))

    def __len__(self) -> int:
        return self.size

    def row(self, index: int) -> Row:
        """Decode an index."""
        chosen: list[Level] = []
        for axis in reversed(self.axes):
            index, digit = divmod(index, len(axis.levels))
            chosen.append(axis.levels[digit])
        return {column: value for level in reversed(chosen) for column, value in level.items()}


class Random(Plan):
    """Rows of the grid in a pseudo-random order without repetition; continuous factors are drawn uniformly.

    With continuous factors the grid of the others may be gone through more than once.
    """

    def __init__(self, axes: Sequence[Axis], count: int, seed: int) -> None:
        self.grid = Grid([axis for axis in axes if not axis.continuous])
        self.free = tuple(axis for axis in axes if axis.continuous)
        self.length, self.seed = count, seed
        self.columns = tuple(itertools.chain.from_iterable(axis.columns for axis in axes))
        if not self.free and count > len(self.grid):
            raise UserError(f"plan.count: {count} is more than the {len(self.grid)} combinations there are; give fewer")

    def __len__(self) -> int:
        return self.length

    def row(self, index: int) -> Row:
        """Draw row `index`."""
        turn, place = divmod(index, len(self.grid))
        row = self.grid.row(permuted(place, len(self.grid), f"{self.seed}/{turn}"))
        for axis in self.free:
            row[axis.name] = round(axis.low + (axis.high - axis.low) * uniform(self.seed, axis.name, index), 6)
        return {column: row[column] for column in self.columns}


class Listed(Plan):
    """Rows written out, or chosen by digits of the axes."""

    def __init__(self, rows: Sequence[Row], columns: tuple[str, ...]) -> None:
        self.rows, self.columns = rows, columns

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        """Return a row, its columns in order."""
        return {column: self.rows[index][column] for column in self.columns}


class OneFactor(Plan):
    """For each combination of the `each` factors, every value of every other factor with the rest at their defaults."""

    def __init__(self, axes: Sequence[Axis], each: Sequence[str]) -> None:
        self.outer = Grid([axis for axis in axes if axis.name in each])
        self.varied = [axis for axis in axes if axis.name not in each]
        self.ends = list(itertools.accumulate(len(axis.levels) for axis in self.varied))
        self.columns = (*itertools.chain.from_iterable(axis.columns for axis in axes), VARIED)
        missing = [axis.name for axis in self.varied if axis.default is None]
        if missing or not self.varied:
            what = f"factors.{missing[0]}.default: missing" if missing else "plan.each: it names every factor"
            raise UserError(f"{what}; a one_factor plan varies the factors outside of `each` around their defaults")
        self.defaults = {column: value for axis in self.varied for column, value in (axis.default or {}).items()}

    def __len__(self) -> int:
        return len(self.outer) * self.ends[-1]

    def row(self, index: int) -> Row:
        """Decode an index: the varied value runs fastest."""
        place, variation = divmod(index, self.ends[-1])
        which = bisect.bisect_right(self.ends, variation)
        axis = self.varied[which]
        level = axis.levels[variation - (self.ends[which - 1] if which else 0)]
        row = {**self.outer.row(place), **self.defaults, **level, VARIED: axis.name}
        return {column: row[column] for column in self.columns}


def plan_of(options: PlanOptions, axes: Sequence[Axis], seed: int) -> Plan:
    """Return the plan; raises UserError when the factors do not allow it."""
    continuous = [axis.name for axis in axes if axis.continuous]
    if continuous and options.kind != "random":
        raise UserError(f"factors.{continuous[0]}.steps: missing; a {options.kind} plan counts the values of a factor")
    unknown = [name for name in options.each if name not in {axis.name for axis in axes}]
    if unknown:
        raise UserError(f"plan.each: {unknown[0]} is no factor; the factors are {', '.join(a.name for a in axes)}")
    if options.kind == "random":
        if options.count is None:
            raise UserError("plan.count: missing; a random plan needs the number of rows")
        return Random(axes, options.count, seed)
    if options.kind == "covering":
        return _covering(options, axes)
    if options.kind == "list":
        return _listed(options, axes)
    return OneFactor(axes, options.each) if options.kind == "one_factor" else Grid(axes)


def _covering(options: PlanOptions, axes: Sequence[Axis]) -> Plan:
    if options.strength > len(axes):
        raise UserError(f"plan.strength: {options.strength} is more than the {len(axes)} factors; give fewer")
    try:
        digits = covering_array([len(axis.levels) for axis in axes], options.strength)
    except TooManyTuples as error:
        raise UserError(f"plan.strength: {error}; lower it, or take a random plan") from None
    levels = [[axis.levels[digit] for axis, digit in zip(axes, line, strict=True)] for line in digits.tolist()]
    rows = [{column: value for level in line for column, value in level.items()} for line in levels]
    return Listed(rows, Grid(axes).columns)


def _listed(options: PlanOptions, axes: Sequence[Axis]) -> Plan:
    fixed = {column: value for axis in axes if len(axis.levels) == 1 for column, value in axis.levels[0].items()}
    rows = [{**fixed, **row} for row in options.rows]
    if not rows:
        raise UserError("plan.rows: missing; a list plan needs its rows")
    columns = tuple(rows[0])
    for number, row in enumerate(rows):
        if set(row) != set(columns):
            raise UserError(f"plan.rows: row {number} has the columns {', '.join(row)}, row 0 {', '.join(columns)}")
    if len({row_id(row) for row in rows}) < len(rows):
        raise UserError("plan.rows: a row stands there twice; give each once")
    return Listed(rows, columns)


def row_id(row: Mapping[str, Value]) -> str:
    """Return the identity of a row: 32 hex characters of a hash of its columns and values, in any order."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def uniform(seed: int, name: str, index: int) -> float:
    """Return a number of [0, 1) from a hash of its arguments."""
    return (hashed(f"{seed}/{name}/{index}") >> 11) / 2**53


def permuted(index: int, size: int, key: str) -> int:
    """Return the place of `index` in a pseudo-random permutation of range(size).

    A Feistel network over pairs of digits, a x b >= size, walked until it falls below size (Black, Rogaway 2002).
    """
    b = math.isqrt(size - 1) + 1
    a = -(-size // b)
    keys = _round_keys(key)
    while True:
        left, right = divmod(index, b)
        for even, odd in keys:
            left = (left + _mixed(right ^ even)) % a
            right = (right + _mixed(left ^ odd)) % b
        index = left * b + right
        if index < size:
            return index


@functools.lru_cache(maxsize=64)
def _round_keys(key: str) -> tuple[tuple[int, int], ...]:
    data = hashlib.blake2b(key.encode(), digest_size=16 * ROUNDS).digest()
    return tuple(struct.iter_unpack(">QQ", data))


def _mixed(value: int) -> int:
    """Mix 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
