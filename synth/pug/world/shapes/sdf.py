"""Smooth bodies: blend round cones, balls and boxes as signed distances, then mesh them with surface nets.

Distances of the primitives follow Quilez, "Distance functions"; the blend is his polynomial smooth minimum; the mesh is
Gibson's surface nets (1998), with its corners moved onto the surface by Newton steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from granary.synth.pug.world.shapes.colours import linear
from granary.synth.pug.world.shapes.geometry import Triple, dot, rotation_matrix, unit
from granary.synth.pug.world.shapes.mesh import Mesh, Skin, join, make_mesh

BLOCK = 8  # cells along an edge of the blocks that are either empty or meshed
REACH = 12.0  # cm from the ball round a part, beyond which it changes nothing
SHARPNESS = 1.2  # cm over which colours of parts mix
Coat = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Part:
    """One primitive of a body.

    Args:
        distance: (n, 3) points to (n,) signed distances.
        centre, radius: of a ball round it.
        colour: linear reflectance.
        gloss: 0 to 1.
        blend: cm over which it flows into the rest; 0 for a crisp edge.
        cut: take it away instead of adding it.
    """

    distance: Callable[[np.ndarray], np.ndarray]
    centre: np.ndarray
    radius: float
    colour: np.ndarray
    gloss: float
    blend: float
    cut: bool


class Body:
    """Parts, in the order in which they were added; `mirror` adds a part's image in the plane y = 0 too.

    Args:
        colour: hex colour of parts that name none.
        blend: cm, of parts that name none.
        gloss: of parts that name none.
    """

    def __init__(self, colour: str, blend: float = 5.0, gloss: float = 0.0) -> None:
        self.colour, self.blend, self.gloss = colour, blend, gloss
        self.parts: list[Part] = []
        self.beads: list[Mesh] = []

    def cone(self, a: Triple, b: Triple, ra: float, rb: float | None = None, **options: Any) -> Body:
        """Add a cone from `a` to `b` with rounded ends of radius `ra` and `rb`."""
        rb = ra if rb is None else rb

        def add(flip: np.ndarray) -> None:
            start, end = np.array(a) * flip, np.array(b) * flip
            reach = float(np.linalg.norm(end - start)) / 2 + max(ra, rb)
            self._add(_cone(start, end, ra, rb), (start + end) / 2, reach, **options)

        return self._mirrored(add, options)

    def chain(self, points: Sequence[Triple], radii: Sequence[float], **options: Any) -> Body:
        """Add cones from point to point: a trunk, a tail, a neck."""
        for k in range(len(points) - 1):
            self.cone(points[k], points[k + 1], radii[k], radii[k + 1], **dict(options))
        return self

    def ball(self, centre: Triple, radii: Triple | float, turn: Triple = (0, 0, 0), **options: Any) -> Body:
        """Add an ellipsoid with half axes `radii`, turned by pitch, yaw, roll."""
        half = np.broadcast_to(np.array(radii, float), (3,))

        def add(flip: np.ndarray) -> None:
            axes = rotation_matrix(*turn) * flip
            self._add(_ball(np.array(centre) * flip, half, axes), np.array(centre) * flip, half.max(), **options)

        return self._mirrored(add, options)

    def box(self, centre: Triple, half: Triple, round: float = 1.0, turn: Triple = (0, 0, 0), **options: Any) -> Body:
        """Add a box with half edges `half`, its edges rounded."""

        def add(flip: np.ndarray) -> None:
            axes = rotation_matrix(*turn) * flip
            reach = float(np.linalg.norm(half))
            self._add(
                _box(np.array(centre) * flip, np.array(half), round, axes), np.array(centre) * flip, reach, **options
            )

        return self._mirrored(add, options)

    def ring(self, centre: Triple, radius: float, thickness: float, turn: Triple = (0, 0, 0), **options: Any) -> Body:
        """Add a torus round its own z axis."""

        def add(flip: np.ndarray) -> None:
            axes = rotation_matrix(*turn) * flip
            self._add(
                _ring(np.array(centre) * flip, radius, thickness, axes),
                np.array(centre) * flip,
                radius + thickness,
                **options,
            )

        return self._mirrored(add, options)

    def tube(self, a: Triple, b: Triple, radius: float, round: float = 0.5, **options: Any) -> Body:
        """Add a cylinder from `a` to `b` with flat, slightly rounded ends."""

        def add(flip: np.ndarray) -> None:
            start, end = np.array(a) * flip, np.array(b) * flip
            reach = float(np.linalg.norm(end - start)) / 2 + radius
            self._add(_tube(start, end, radius, round), (start + end) / 2, reach, **options)

        return self._mirrored(add, options)

    def _mirrored(self, add: Callable[[np.ndarray], None], options: dict[str, Any]) -> Body:
        mirror = options.pop("mirror", False)
        add(np.ones(3))
        if mirror:
            add(np.array([1.0, -1.0, 1.0]))
        return self

    def _add(self, distance, centre, radius, colour=None, gloss=None, blend=None, cut=False) -> None:
        self.parts.append(
            Part(
                distance,
                np.asarray(centre, float),
                float(radius),
                linear(colour or self.colour),
                self.gloss if gloss is None else gloss,
                self.blend if blend is None else blend,
                cut,
            )
        )

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Return (n,) float32 signed distances of (n, 3) points: negative inside."""
        total = np.full(len(points), 1e3, np.float32)
        for part, d in zip(self.parts, self._distances(points), strict=True):
            total = -_smooth_minimum(-total, d, part.blend) if part.cut else _smooth_minimum(total, d, part.blend)
        return total

    def _distances(self, points: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the distances (n,) of each part; far from it, where it cannot matter, those of the ball round it."""
        points = np.asarray(points, np.float32)
        centres = np.array([part.centre for part in self.parts], np.float32)
        norms = dot(points, points)
        for part, centre, product in zip(self.parts, centres, centres @ points.T, strict=True):
            square = norms - 2 * product + centre @ centre
            d = np.sqrt(np.maximum(square, 0, out=square), out=square) - np.float32(part.radius)
            near = np.flatnonzero(d < REACH)
            d[near] = part.distance(points.take(near, axis=0))
            yield d

    def looks(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return colours (n, 3) and gloss (n,) of points on the surface: those of the nearest parts, mixed at seams."""
        weights = np.stack([np.exp(-np.maximum(d, -6) / SHARPNESS) for d in self._distances(points)], axis=1)
        weights[:, [part.cut for part in self.parts]] *= 0.01
        weights = np.maximum(weights, 1e-30)
        weights /= weights.sum(axis=1, keepdims=True)
        table = np.array([[*part.colour, part.gloss] for part in self.parts])
        looks = (weights @ table).astype(np.float32)
        return looks[:, :3], looks[:, 3]

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return corners of a box that holds the body."""
        solid = [part for part in self.parts if not part.cut]
        low = np.min([part.centre - part.radius for part in solid], axis=0)
        high = np.max([part.centre + part.radius for part in solid], axis=0)
        return low, high

    def bead(self, centre: Triple, radius: float, colour: str, gloss: float = 0.9, mirror: bool = False) -> Body:
        """Add a small ball with a mesh of its own: an eye, a nose, a button."""
        for side in (1, -1) if mirror else (1,):
            self.beads.append(_bead(np.array(centre) * (1, side, 1), radius, linear(colour), gloss))
        return self

    def eyes(self, centre: Triple, radius: float, colour: str = "#120d0a") -> Body:
        """Add a pair of shining eyes."""
        x, y, z = centre
        self.bead(centre, radius, colour, 0.95, mirror=True)
        glint = (x + 0.62 * radius, y + 0.36 * radius, z + 0.56 * radius)
        return self.bead(glint, 0.3 * radius, "#ffffff", 0.3, mirror=True)

    def mesh(self, cell: float, coat: Coat | None = None, skin: Skin | None = None) -> Mesh:
        """Mesh the surface with cells of `cell` cm; `coat(points, normals, colours)` may repaint the corners."""
        vertices, triangles = surface_nets(self.distance, *self.bounds(), cell)
        value, slope = self._slope(vertices, cell)
        step = value[:, None] * slope / np.maximum((slope**2).sum(1, keepdims=True), 0.1)
        vertices = vertices - np.clip(step, -cell, cell)
        normals = unit(self._slope(vertices, cell)[1])
        colours, gloss = self.looks(vertices)
        colours = colours if coat is None else np.clip(coat(vertices, normals, colours), 0, 1)
        body = make_mesh(vertices, _outwards(vertices, triangles, normals), colours, normals, gloss, skin=skin)
        return join([body, *self.beads]) if self.beads else body

    def _slope(self, points: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
        """Value and gradient, from the corners of a small tetrahedron."""
        h = 0.3 * cell
        corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
        values = np.stack([self.distance(points + h * corner) for corner in corners], axis=1)
        return values.mean(axis=1), values @ corners / (4 * h)


def surface_nets(
    distance: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, cell: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mesh the zero set of a distance inside a box: vertices (v, 3) float64, triangles (t, 3) of no special winding."""
    low = np.asarray(low) - 2 * cell
    blocks = np.ceil((np.asarray(high) + 2 * cell - low) / (cell * BLOCK)).astype(int)
    values = np.full(blocks * BLOCK + 1, 1.0, np.float32)
    centres = np.indices(tuple(blocks)).reshape(3, -1).T
    coarse = distance(low + (centres + 0.5) * BLOCK * cell)
    # Twice the half diagonal: blends may bend the distance away from a true one.
    active = np.abs(coarse) < 1.75 * BLOCK * cell
    for block in centres[coarse < 0]:
        values[tuple(slice(s, s + BLOCK + 1) for s in block * BLOCK)] = -1.0
    local = np.indices((BLOCK + 1,) * 3).reshape(3, -1).T
    nodes = (centres[active][:, None] * BLOCK + local).reshape(-1, 3)
    occupied = np.zeros(values.size, bool)
    occupied[np.ravel_multi_index(tuple(nodes.T), values.shape)] = True
    keys = np.flatnonzero(occupied)
    values.reshape(-1)[keys] = distance(low + np.stack(np.unravel_index(keys, values.shape), 1) * cell)
    return _nets(values, low, cell)


def _nets(values: np.ndarray, low: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    inside = values < 0
    corners = [
        tuple(slice(o, s - 1 + o) for o, s in zip(corner, values.shape, strict=True)) for corner in np.ndindex(2, 2, 2)
    ]
    count = sum(inside[c].astype(np.int8) for c in corners)
    where = np.argwhere((count > 0) & (count < 8))
    number = np.full(np.array(values.shape) - 1, -1, np.int64)
    number[tuple(where.T)] = np.arange(len(where))
    vertices = _crossings(values, where)
    quads = []
    for axis in range(3):
        quads.append(_quads(inside, number, axis))
    quad = np.concatenate(quads)
    triangles = np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]])
    return low + vertices * cell, triangles


def _crossings(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean of the points where the twelve edges of each cell cross zero."""
    total, count = np.zeros((len(where), 3)), np.zeros(len(where))
    for axis in range(3):
        for other in np.ndindex(2, 2):
            start = np.insert(np.array(other), axis, 0)
            end = np.insert(np.array(other), axis, 1)
            a, b = values[tuple((where + start).T)], values[tuple((where + end).T)]
            crosses = (a < 0) != (b < 0)
            t = np.where(crosses, a / np.where(crosses, a - b, 1), 0)
            point = where + start + np.eye(3)[axis] * t[:, None]
            total += np.where(crosses[:, None], point, 0)
            count += crosses
    return total / count[:, None]


def _quads(inside: np.ndarray, number: np.ndarray, axis: int) -> np.ndarray:
    """The four cells round every edge along `axis` that crosses zero."""
    ahead = [slice(None)] * 3
    behind = [slice(None)] * 3
    ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
    edges = np.argwhere(inside[tuple(ahead)] != inside[tuple(behind)])
    one, two = (k for k in range(3) if k != axis)
    edges = edges[(edges[:, one] > 0) & (edges[:, two] > 0)]
    shifts = np.zeros((4, 3), int)
    shifts[[1, 2], one] = -1
    shifts[[2, 3], two] = -1
    quad = np.stack([number[tuple((edges + shift).T)] for shift in shifts], axis=1)
    return quad[(quad >= 0).all(axis=1)]


def _bead(centre: np.ndarray, radius: float, colour: np.ndarray, gloss: float) -> Mesh:
    rows, columns = 9, 16
    polar, around = np.linspace(0, np.pi, rows), np.linspace(0, 2 * np.pi, columns, endpoint=False)
    p, a = (grid.ravel() for grid in np.meshgrid(polar, around, indexing="ij"))
    normals = np.stack([np.sin(p) * np.cos(a), np.sin(p) * np.sin(a), np.cos(p)], axis=1)
    i, j = (grid.ravel() for grid in np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij"))
    k = (j + 1) % columns
    quads = np.stack([i * columns + j, (i + 1) * columns + j, (i + 1) * columns + k, i * columns + k], axis=1)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    colours = np.broadcast_to(colour, (len(normals), 3))
    return make_mesh(centre + radius * normals, triangles, colours, normals, gloss)


def _outwards(vertices: np.ndarray, triangles: np.ndarray, normals: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    inwards = (np.cross(b - a, c - a) * normals[triangles[:, 0]]).sum(axis=1) < 0
    return np.where(inwards[:, None], triangles[:, [0, 2, 1]], triangles)


def _smooth_minimum(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    if k <= 0:
        return np.minimum(a, b)
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * k / 4


def _cone(a: np.ndarray, b: np.ndarray, ra: float, rb: float) -> Callable[[np.ndarray], np.ndarray]:
    axis = b - a
    length2 = float(axis @ axis)
    slope = ra - rb
    a2 = length2 - slope * slope

    def distance(points: np.ndarray) -> np.ndarray:
        p = points - a
        y = p @ axis
        z = y - length2
        x2 = ((p * length2 - y[:, None] * axis) ** 2).sum(axis=1)
        y2, z2 = y * y * length2, z * z * length2
        k = np.sign(slope) * slope * slope * x2
        end = np.sqrt(x2 + z2) / length2 - rb
        start = np.sqrt(x2 + y2) / length2 - ra
        side = (np.sqrt(np.maximum(x2 * a2 / length2, 0)) + y * slope) / length2 - ra
        return np.where(np.sign(z) * a2 * z2 > k, end, np.where(np.sign(y) * a2 * y2 < k, start, side))

    if a2 <= 0:  # one ball holds the other
        centre, radius = (a, ra) if ra > rb else (b, rb)
        return lambda points: np.linalg.norm(points - centre, axis=1) - radius
    return distance


def _ball(centre: np.ndarray, half: np.ndarray, axes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def distance(points: np.ndarray) -> np.ndarray:
        local = (points - centre) @ axes.T
        k0 = np.linalg.norm(local / half, axis=1)
        k1 = np.linalg.norm(local / half**2, axis=1)
        return np.where(k1 > 1e-9, k0 * (k0 - 1) / np.maximum(k1, 1e-9), -half.min())

    return distance


def _box(centre: np.ndarray, half: np.ndarray, round: float, axes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def distance(points: np.ndarray) -> np.ndarray:
        q = np.abs((points - centre) @ axes.T) - (half - round)
        return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0) - round

    return distance


def _ring(centre: np.ndarray, radius: float, thickness: float, axes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def distance(points: np.ndarray) -> np.ndarray:
        local = (points - centre) @ axes.T
        return np.hypot(np.hypot(local[:, 0], local[:, 1]) - radius, local[:, 2]) - thickness

    return distance


def _tube(a: np.ndarray, b: np.ndarray, radius: float, round: float) -> Callable[[np.ndarray], np.ndarray]:
    length = float(np.linalg.norm(b - a))
    axis, middle = (b - a) / length, (a + b) / 2

    def distance(points: np.ndarray) -> np.ndarray:
        p = points - middle
        along = p @ axis
        across = np.linalg.norm(p - along[:, None] * axis, axis=1)
        q = np.stack([across - radius + round, np.abs(along) - length / 2 + round], axis=1)
        return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0) - round

    return distance
