"""Uniform sampling without replacement by hash: the same choice whatever the order, block or worker."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray


def hashed(text: str) -> int:
    """Hash one text to a number uniform over 64 bits, the same on every machine; `priority` does so for many.

    Args:
        text: names the draw and what is drawn, and holds the seed of the run.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def priority(seed: int, ids: ArrayLike, purpose: str = "") -> NDArray[np.uint64]:
    """Hash (seed, purpose, id) to a number uniform over 64 bits; the smallest are drawn first.

        >>> import numpy as np
        >>> names = np.array(["a", "b", "c", "d"])
        >>> names[np.argsort(priority(0, names))][:2].tolist()  # a sample of two, whatever the order of the names
        ['c', 'a']

    Args:
        seed: seed of the run.
        ids: (n,) str or int; an integer hashes as its decimal digits.
        purpose: names the draw. Draws that follow one another need different purposes: what a first draw
            kept has small priorities under its own hash, so a second draw by the same hash is not uniform.

    Returns:
        (n,) uint64.
    """
    key = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=32).digest()
    keyed = hashlib.blake2b(key=key, digest_size=8)

    def digest(item: object) -> bytes:
        hasher = keyed.copy()
        hasher.update(str(item).encode())
        return hasher.digest()

    return np.frombuffer(b"".join(map(digest, np.asarray(ids).tolist())), "<u8").astype(np.uint64)


def bounded_sample(ids: ArrayLike, n: int, seed: int, purpose: str = "") -> NDArray[np.int64]:
    """Draw n of the ids uniformly without replacement: the n smallest priorities.

    The draw depends on the set of ids alone. It is mergeable (the draw of a union is the draw of the parts'
    draws) and nested (a larger n keeps all that a smaller one kept).

    Args:
        ids: (m,) distinct str or int.
        n: how many to draw; all when m <= n.
        seed: seed of the run.
        purpose: names the draw, see `priority`.

    Returns:
        (min(n, m),) int64 positions in `ids`, by priority.

    Raises:
        ValueError: n is negative.
    """
    if n < 0:
        raise ValueError(f"a sample cannot have {n} members")
    ids = np.asarray(ids)
    priorities = priority(seed, ids, purpose)
    if n >= len(ids):
        candidates = np.arange(len(ids))
    elif n == 0:
        candidates = np.arange(0)
    else:
        candidates = np.flatnonzero(priorities <= np.partition(priorities, n - 1)[n - 1])
    order = np.lexsort((ids[candidates].astype(str), priorities[candidates]))
    return candidates[order][:n].astype(np.int64)


def rank_in_group(groups: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number the members of each group from 0; `groups` is sorted."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups, side="left")


@dataclass
class StratifiedSample:
    """A bounded sample of every cell at once, filled from blocks of the pool in any order.

    Keeps for each cell its `limits[cell]` members that come first by (key, priority, id), so that the order of the
    blocks changes nothing. Without keys the draw of a cell is uniform.

    Attributes:
        limits: (k,) int64, how many to keep of each cell.
        seed: seed of the run.
        purpose: names the draw, see `priority`.
        cells: (m,) int64, cell of each kept member, ascending.
        keys: (m,) float32, what comes before the hash in the order (a distance), or 0.
        priorities: (m,) uint64.
        ids: (m,) str.
        indices: (m,) int64, place of the member in the pool.
    """

    limits: NDArray[np.int64]
    seed: int
    purpose: str = ""
    cells: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    keys: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    priorities: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    ids: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, "U1"))
    indices: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def add(
        self, cells: ArrayLike, ids: ArrayLike, indices: ArrayLike, keys: ArrayLike | None = None
    ) -> StratifiedSample:
        """Add a block: (n,) cells (below 0: none), ids, places in the pool and, optionally, sort keys."""
        cells, ids, indices = np.asarray(cells, np.int64), np.asarray(ids), np.asarray(indices, np.int64)
        drawable = np.flatnonzero((cells >= 0) & (self.limits[cells] > 0))
        ids = ids[drawable]
        key_of = np.zeros(len(cells), np.float32) if keys is None else np.asarray(keys, np.float32)
        priorities = priority(self.seed, ids, self.purpose)
        self._keep(cells[drawable], key_of[drawable], priorities, ids.astype(str), indices[drawable])
        return self

    def _keep(
        self,
        cells: NDArray[np.int64],
        keys: NDArray[np.float32],
        priorities: NDArray[np.uint64],
        ids: NDArray[np.str_],
        indices: NDArray[np.int64],
    ) -> None:
        cells, keys = np.concatenate([self.cells, cells]), np.concatenate([self.keys, keys])
        priorities = np.concatenate([self.priorities, priorities])
        ids, indices = np.concatenate([self.ids, ids]), np.concatenate([self.indices, indices])
        order = np.lexsort((ids, priorities, keys, cells))
        order = order[rank_in_group(cells[order]) < self.limits[cells[order]]]
        self.cells, self.keys, self.priorities = cells[order], keys[order], priorities[order]
        self.ids, self.indices = ids[order], indices[order]
