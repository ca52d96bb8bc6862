"""Choose what a report shows from a ledger of any length, in memory that does not grow with it.

Every choice is the smallest few under a fixed key (a similarity, or a hash of seed and id), so it does not
depend on the order of the ledger or on how it is cut into tables.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from granary.curation.images.filters import Filters
from granary.curation.report import quality
from granary.curation.store.sampling import hashed

Row = dict[str, Any]
Similar = tuple[float, str]  # a similarity, and a uri for ties
Drawn = tuple[int, str]  # a hash, and a uri for ties
Ledger = Callable[[], Iterator[pa.Table]]

KEPT = 64
COMPONENTS = 12
TIED_COMPONENTS = 1024  # components of equal tightness whose sizes are compared
STRIPS = 12
LEAKS = 9  # of each kind
WEAKEST = 9  # retrievals
CLUSTERS = 10
LABELS = 200
PER_ROW = 7  # pictures beside the first of a row, or in a row of their own
ROWS_AT_ONCE = 4096
OTHER = "(other)"
VARIABLE = re.compile(r"\b[0-9a-f]{16,64}\b|[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
COLUMNS = [
    *("uri", "id", "role", "status", "stage", "reason", "representative", "similarity", "component"),
    *("tightness", "seed_ids", "similarities", "cluster", "leaked_reference", "leak_path"),
]


def rank(seed: int, text: str) -> int:
    """Return a 64-bit hash of (seed, text): sorting by it draws a uniform sample that can be repeated."""
    return hashed(f"report/{seed}/{text}")


def generalise(reason: str) -> str:
    """Replace the numbers and ids of a reason by an ellipsis, so that equal causes are counted together."""
    return VARIABLE.sub("…", reason)


class Ordered(Protocol):
    """What can be sorted."""

    def __lt__(self, other: Any, /) -> bool: ...


K = TypeVar("K", bound=Ordered)


class Smallest(Generic[K]):
    """The `limit` rows of smallest key of a stream; `count` is how many went past."""

    def __init__(self, limit: int) -> None:
        self.limit, self.count = limit, 0
        self._bound: K | None = None
        self._entries: list[tuple[K, Row]] = []

    def add(self, key: K, row: Row) -> None:
        """Offer a row; keys must differ, or which of two equal ones stays depends on the order."""
        self.count += 1
        if self._bound is None or key < self._bound:
            self._entries.append((key, row))
            if len(self._entries) > 2 * self.limit:
                self._trim()

    def rows(self) -> list[Row]:
        """Return the rows, smallest key first."""
        self._trim()
        return [row for _, row in self._entries]

    def _trim(self) -> None:
        self._entries = sorted(self._entries, key=lambda entry: entry[0])[: self.limit]
        if len(self._entries) == self.limit:
            self._bound = self._entries[-1][0]


class Groups(Generic[K]):
    """A count and a few rows for each label, a tuple; past `LABELS` labels the last part becomes (other)."""

    def __init__(self) -> None:
        self.groups: dict[tuple[str, ...], Smallest[K]] = {}

    def add(self, label: tuple[str, ...], key: K, row: Row) -> None:
        """Offer a row to the group of `label`."""
        if label not in self.groups and len(self.groups) >= LABELS:
            label = (*label[:-1], OTHER)
        self.groups.setdefault(label, Smallest(PER_ROW)).add(key, row)

    def largest_first(self) -> list[tuple[tuple[str, ...], Smallest[K]]]:
        """Return (label, rows) pairs, the most frequent label first."""
        return sorted(self.groups.items(), key=lambda item: (-item[1].count, item[0]))


class Strips:
    """What each of a few hash-chosen seeds retrieved, most similar first."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chosen: dict[tuple[int, str], Smallest[Similar]] = {}

    def add(self, seed_id: str, similarity: float | None, uri: str) -> None:
        """Offer an image that `seed_id` retrieved."""
        key = (rank(self.seed, seed_id), seed_id)
        if key not in self.chosen:
            # Chosen seeds are pushed out only by smaller ranks: one that stays to the end was never missing.
            if len(self.chosen) == STRIPS and key > max(self.chosen):
                return
            self.chosen[key] = Smallest(PER_ROW)
            if len(self.chosen) > STRIPS:
                del self.chosen[max(self.chosen)]
        order = math.inf if similarity is None else -similarity
        self.chosen[key].add((order, uri), {"uri": uri, "similarity": similarity})

    def items(self) -> list[tuple[str, Smallest[Similar]]]:
        """Return (seed id, images) pairs in the order of the hash."""
        return [(seed_id, images) for (_, seed_id), images in sorted(self.chosen.items())]


@dataclass
class Component:
    """A near-duplicate component. size counts its distinct images, the representative among them."""

    id: str
    tightness: float | None
    representative: str
    size: int = 1
    members: Smallest[Similar] = field(default_factory=lambda: Smallest(PER_ROW))


class Survey:
    """What one pass over a ledger says: counts, and the rows to picture.

    Sizes of components, uris of representatives and pictures of clusters need a second pass: see `locate`.
    """

    def __init__(self, ledger: Ledger, seed: int, filters: Filters | None = None) -> None:
        self.seed = seed
        self.looks = quality.Looks(filters or Filters())
        self.counts: Counter[tuple[str, str]] = Counter()  # (role, status)
        self.kept = Smallest[Drawn](KEPT)
        self.dropped, self.dead = Groups[Drawn](), Groups[str]()
        self.leaks = {path: Smallest[Similar](LEAKS) for path in ("direct", "through another image")}
        self.strips = Strips(seed)
        self.weakest = Smallest[Similar](WEAKEST)  # images by the seed that they resemble most
        self.cluster_pool: Counter[int] = Counter()
        self.cluster_kept: Counter[int] = Counter()
        self._loosest: dict[str, tuple[float, Row]] = {}
        for batch in batches(ledger, quality.COLUMNS):
            self.looks.add(batch)
            for row in batch.select(COLUMNS).to_pylist():
                self._add(row)

    def key(self, row: Row) -> Drawn:
        """Return the sort key of hash-chosen rows."""
        return rank(self.seed, row["id"] or row["uri"]), row["uri"]

    def components(self) -> list[Component]:
        """Return the components of lowest tightness: `COMPONENTS`, and those tied with the last of them."""
        self._trim_components()
        worst = list(self._loosest.values())
        limit = worst[COMPONENTS - 1][0] if len(worst) >= COMPONENTS else math.inf
        return [
            Component(row["component"], row["tightness"], row["representative"])
            for tightness, row in worst
            if tightness <= limit
        ]

    def _add(self, row: Row) -> None:
        status, stage = row["status"], row["stage"] or ""
        self.counts[row["role"], status] += 1
        if status == "dead":
            self._add_dead(row)
        elif row["role"] == "pool":
            self._add_pool(row, status, stage)

    def _add_pool(self, row: Row, status: str, stage: str) -> None:
        seed_ids, similarities = row.pop("seed_ids") or (), row.pop("similarities") or ()
        for i, seed_id in enumerate(seed_ids):
            self.strips.add(seed_id, similarities[i] if i < len(similarities) else None, row["uri"])
        if len(seed_ids) == len(similarities) > 0:
            best = max(range(len(seed_ids)), key=similarities.__getitem__)
            nearest = {"uri": row["uri"], "similarity": similarities[best], "seed_id": seed_ids[best]}
            self.weakest.add((similarities[best], row["uri"]), nearest)
        if row["cluster"] is not None:
            self.cluster_pool[row["cluster"]] += 1
            self.cluster_kept[row["cluster"]] += status == "kept"
        if status == "kept":
            self.kept.add(self.key(row), row)
        elif stage == "dedup":
            self._add_duplicate(row)
        elif stage == "leaks":
            path = "through another image" if row["leak_path"] else "direct"
            self.leaks[path].add((ascending(row["similarity"]), row["uri"]), row)
        else:
            self.dropped.add((stage, generalise(row["reason"] or "")), self.key(row), row)

    def _add_dead(self, row: Row) -> None:
        reason = row["reason"] or "unknown"
        error, colon, message = reason.partition(": ")
        if not colon or not error.replace(".", "_").isidentifier():
            error, message = generalise(reason), reason
        self.dead.add((row["stage"] or "", error), row["uri"], {"uri": row["uri"], "message": message})

    def _add_duplicate(self, row: Row) -> None:
        if row["component"] is None or row["representative"] is None or row["component"] in self._loosest:
            return
        self._loosest[row["component"]] = (ascending(row["tightness"]), row)
        if len(self._loosest) > 2 * TIED_COMPONENTS:
            self._trim_components()

    def _trim_components(self) -> None:
        loosest = sorted(self._loosest.items(), key=lambda item: (item[1][0], item[0]))
        self._loosest = dict(loosest[:TIED_COMPONENTS])


@dataclass
class Located:
    """What the second pass found: components worst first, uris by id, kept images by cluster."""

    components: list[Component]
    uris: dict[str, str]
    clusters: dict[int, Smallest[Drawn]]


def locate(ledger: Ledger, survey: Survey) -> Located:
    """Read the ledger again for the members of the chosen components and clusters."""
    components = {component.id: component for component in survey.components()}
    representatives = {component.representative for component in components.values()}
    largest = sorted(survey.cluster_kept.items(), key=lambda item: (-item[1], item[0]))[:CLUSTERS]
    clusters = {cluster: Smallest[Drawn](PER_ROW) for cluster, _ in largest}
    uris: dict[str, str] = {}
    for batch in batches(ledger):
        pool = batch.filter(pc.equal(batch["role"], "pool"))
        for row in select(pool, "component", components):
            if row["status"] == "dropped" and row["stage"] == "dedup":
                components[row["component"]].size += 1
                components[row["component"]].members.add((ascending(row["similarity"]), row["uri"]), row)
        for row in select(pool, "id", representatives):
            uris[row["id"]] = min(row["uri"], uris.get(row["id"], row["uri"]))
        for row in select(pool, "cluster", clusters):
            if row["status"] == "kept":
                clusters[row["cluster"]].add(survey.key(row), row)
    worst = sorted(components.values(), key=lambda c: (ascending(c.tightness), -c.size, c.id))
    return Located(worst[:COMPONENTS], uris, clusters)


def select(batch: pa.RecordBatch, column: str, values: Collection[str] | Collection[int]) -> list[Row]:
    """Return the rows of a batch whose `column` is one of `values`."""
    chosen = pa.array(values, batch[column].type)
    return batch.filter(pc.is_in(batch[column], value_set=chosen)).to_pylist()


def ascending(similarity: float | None) -> float:
    """Return a sort key by which unknown similarities come last."""
    return math.inf if similarity is None else similarity


def batches(ledger: Ledger, more: Collection[str] = ()) -> Iterator[pa.RecordBatch]:
    """Read a ledger in small batches of the columns a report needs.

    Args:
        ledger: of a run.
        more: columns that not every ledger has.
    """
    for table in ledger():
        names = [*COLUMNS, *(name for name in more if name in table.column_names)]
        yield from table.select(names).to_batches(max_chunksize=ROWS_AT_ONCE)
