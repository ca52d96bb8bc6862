"""Rays without a compiled dependency: a bounding volume hierarchy walked by all rays at once in NumPy."""

from __future__ import annotations

import numpy as np

from granary.synth.pug.world.picture.rays import Hits

LEAF = 4  # triangles
TINY = np.float32(1e-12)


class WavefrontTracer:
    """The interface of `EmbreeTracer` in plain NumPy.

    The hierarchy is a perfect binary tree over triangles in Morton order: node i has children 2i + 1 and 2i + 2, so
    it needs no pointers and is built level by level. Rays descend breadth first as (ray, node) pairs.

    Args:
        vertices: (v, 3) float32.
        triangles: (t, 3) int32.
    """

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray) -> None:
        corners = np.asarray(vertices, np.float32)[triangles]
        order = _morton_order(corners.mean(axis=1))
        leaves = max(1, -(-len(order) // LEAF))
        self._depth = int(np.ceil(np.log2(leaves)))
        # Padding repeats the last triangle: it changes no first hit, since ties go to the first one.
        padded = np.concatenate([order, np.full((LEAF << self._depth) - len(order), order[-1])])
        self._ids = padded.astype(np.int32)
        self._a, self._ab, self._ac = _edges(corners[padded])
        boxes = corners[padded].reshape(1 << self._depth, LEAF * 3, 3)
        self._low, self._high = _tree(boxes.min(axis=1), boxes.max(axis=1), self._depth)

    def closest(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Return the first hits of rays."""
        n = len(origins)
        distance, slot = np.full(n, np.inf, np.float32), np.full(n, -1, np.int64)
        u, v = np.zeros(n, np.float32), np.zeros(n, np.float32)
        for rays, slots in self._leaf_pairs(origins, directions, np.inf):
            t, pu, pv = self._intersect(origins[rays], directions[rays], slots)
            order = np.lexsort((slots, t, rays))
            first = order[np.unique(rays[order], return_index=True)[1]]
            first = first[t[first] < distance[rays[first]]]
            hit = rays[first]
            distance[hit], slot[hit], u[hit], v[hit] = t[first], slots[first], pu[first], pv[first]
        triangle = np.where(slot < 0, np.int32(-1), self._ids[slot])
        return Hits(distance, triangle, u, v)

    def occluded(self, origins: np.ndarray, directions: np.ndarray, reach: float) -> np.ndarray:
        """Return whether rays meet the mesh within reach."""
        met = np.zeros(len(origins), bool)
        for rays, slots in self._leaf_pairs(origins, directions, reach):
            t, _, _ = self._intersect(origins[rays], directions[rays], slots)
            met[rays[t <= reach]] = True
        return met

    def _leaf_pairs(self, origins, directions, reach):
        """Yield (ray, triangle slot) pairs whose leaf box the ray enters, in blocks that bound memory."""
        with np.errstate(divide="ignore"):
            inverse = np.float32(1) / np.where(np.abs(directions) < TINY, TINY, directions)
        for start in range(0, len(origins), 16384):
            rays = np.arange(start, min(start + 16384, len(origins)))
            nodes = np.zeros(len(rays), np.int64)
            rays, nodes = self._entered(rays, nodes, origins, inverse, reach)
            for _ in range(self._depth):
                rays, nodes = np.repeat(rays, 2), np.stack([2 * nodes + 1, 2 * nodes + 2], 1).ravel()
                rays, nodes = self._entered(rays, nodes, origins, inverse, reach)
            leaf = nodes - ((1 << self._depth) - 1)
            slots = (leaf[:, None] * LEAF + np.arange(LEAF)).ravel()
            yield np.repeat(rays, LEAF), slots

    def _entered(self, rays, nodes, origins, inverse, reach):
        """Keep the pairs whose ray enters the node's box (slab test)."""
        o, i = origins[rays], inverse[rays]
        near, far = (self._low[nodes] - o) * i, (self._high[nodes] - o) * i
        enter = np.minimum(near, far).max(axis=1)
        leave = np.maximum(near, far).min(axis=1)
        keep = (leave >= np.maximum(enter, 0)) & (enter <= reach)
        return rays[keep], nodes[keep]

    def _intersect(self, o, d, slots):
        """Möller and Trumbore's test, two-sided: distances (infinite for a miss) and barycentric coordinates."""
        ab, ac = self._ab[slots], self._ac[slots]
        p = np.cross(d, ac)
        det = np.einsum("ij,ij->i", ab, p)
        inverse = np.float32(1) / np.where(np.abs(det) < TINY, TINY, det)
        s = o - self._a[slots]
        u = np.einsum("ij,ij->i", s, p) * inverse
        q = np.cross(s, ab)
        v = np.einsum("ij,ij->i", d, q) * inverse
        t = np.einsum("ij,ij->i", ac, q) * inverse
        hit = (np.abs(det) >= TINY) & (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
        return np.where(hit, t, np.float32(np.inf)), u, v


def _morton_order(points: np.ndarray) -> np.ndarray:
    span = np.maximum(np.ptp(points, axis=0), 1e-9)
    cells = ((points - points.min(axis=0)) / span * 1023).astype(np.int64)
    code = np.zeros(len(points), np.int64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return np.argsort(code, kind="stable")


def _edges(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = np.ascontiguousarray(corners[:, 0])
    return a, corners[:, 1] - a, corners[:, 2] - a


def _tree(low: np.ndarray, high: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    lows, highs = [low], [high]
    for _ in range(depth):
        lows.insert(0, np.minimum(lows[0][0::2], lows[0][1::2]))
        highs.insert(0, np.maximum(highs[0][0::2], highs[0][1::2]))
    return np.concatenate(lows), np.concatenate(highs)
