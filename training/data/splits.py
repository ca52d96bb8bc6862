"""Which rows of a dataset are read: those of one or several splits, or with some values in a column.

`train`, `train,shared`, `place=sea,moon`, and several at once: `train & place=sea`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from granary.curation.errors import UserError
from granary.curation.sources.contents import same_split, split_of
from granary.curation.store.sampling import priority

MOST = 20  # values that a message names


class Term(NamedTuple):
    """Rows whose value in a column is one of some; column None is the split, whoever says it."""

    column: str | None
    values: tuple[str, ...]

    def among(self, splits: Collection[str]) -> Term:
        """Return the same with the names that splits have: the Hub takes val, dev and validation for one."""
        names = [
            value if value in splits else next((split for split in splits if same_split(value, split)), value)
            for value in self.values
        ]
        return Term(self.column, tuple(names))

    def check(self, there: Sequence[str], path: str) -> None:
        """Raise UserError where a value that was asked for is not among those of a dataset."""
        for value in self.values:
            if value not in there:
                names = ", ".join(there[:MOST]) + (f" and {len(there) - MOST} more" if len(there) > MOST else "")
                place = f"in split {value!r}" if self.column is None else f"with {self.column} {value!r}"
                raise UserError(f"data: {path} has no rows {place}; it has {names or 'none'}")


def terms_of(split: str) -> list[Term]:
    """Return what a split, as it is written, asks for; every term must hold."""
    terms = []
    for part in split.split("&"):
        column, equals, values = part.rpartition("=")
        names = tuple(name.strip() for name in values.split(",") if name.strip())
        if not names or (equals and not column.strip()):
            raise UserError(f"split: {split!r} is not right: write SPLIT, SPLIT,SPLIT or COLUMN=VALUE,VALUE")
        terms.append(Term(column.strip() or None, names))
    return terms


def named_splits(urls: Sequence[str]) -> dict[str, str] | None:
    """Return the split that each shard is of by its name or its folder's; None where they do not name several."""
    splits = {url: split for url in urls if (split := split_of("/".join(url.rsplit("/", 2)[-2:])))}
    return splits if len(splits) == len(urls) and len(set(splits.values())) > 1 else None


def held_out(ids: NDArray[np.str_], holdout: float) -> NDArray[np.bool_]:
    """Say for each id whether it is in the share drawn for testing: equal ids fall on the same side."""
    return priority(0, ids, "holdout") < np.uint64(min(holdout * 2.0**64, 2.0**64 - 2048))
