"""What a report is made from, whichever pipeline wrote the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from granary.curation.images.filters import Filters
from granary.curation.images.limits import DecodeLimits
from granary.curation.runs.facts import Facts
from granary.curation.steps.doubtful import Doubtful


@dataclass(frozen=True)
class RunView:
    """A finished run, seen through plain data and three functions.

    Args:
        summary: run.json; `flow` is the only key that must be there. `seed` (0 when absent) decides which samples are
            pictured.
        recipe: the recipe as YAML text.
        ledger: called for a fresh iterator over the ledger's tables; it is read twice.
        read: uri of a pool, seed or reference file to its original bytes; may raise OSError or KeyError.
        seed_uri: id of a seed to its uri, or None when it is not known.
        limits: the limits under which originals are decoded for their thumbnails.
        filters: those of the recipe.
        doubtful: pairs near the threshold of near duplicates; None where it is not known or there is none.
    """

    summary: Facts
    recipe: str
    ledger: Callable[[], Iterator[pa.Table]]
    read: Callable[[str], bytes]
    seed_uri: Callable[[str], str | None]
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    filters: Filters = field(default_factory=Filters)
    doubtful: Doubtful | None = None
