"""Rays against a whole scene: every object keeps its own tracer, rays are carried into its coordinates.

Moving an object costs nothing that way, and no hierarchy is ever rebuilt. All fixed parts of a world share one tracer.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from granary.synth.pug.world.picture.rays import Tracer, TracerClass
from granary.synth.pug.world.scene import Scene, Thing
from granary.synth.pug.world.shapes.geometry import dot, rows_of
from granary.synth.pug.world.shapes.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class Instance:
    """Meshes that share one tracer and one place.

    Args:
        names: of the scene's objects; parts[k] belongs to names[k].
        parts: meshes.
        starts: (len(parts) + 1,) first triangle of each part, and their number.
        tracer: of all triangles.
        matrix, inverse: (3, 3) float32 to the world and back; None where the mesh stands in the world's coordinates.
        offset: (3,) float32.
        centre, radius: of a ball round it, in the world.
    """

    names: tuple[str, ...]
    parts: tuple[Mesh, ...]
    starts: np.ndarray
    tracer: Tracer
    matrix: np.ndarray | None
    inverse: np.ndarray | None
    offset: np.ndarray
    centre: np.ndarray
    radius: float

    @functools.cached_property
    def shrink(self) -> float:
        """Length in the mesh's coordinates of one cm of the world."""
        return 1.0 if self.matrix is None else float(1 / np.cbrt(abs(np.linalg.det(self.matrix))))

    def localise(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Carry rays into the mesh's coordinates; lengths along them stay the same."""
        if self.inverse is None:
            return origins, directions
        return (origins - self.offset) @ self.inverse, directions @ self.inverse


@dataclasses.dataclass(frozen=True)
class SceneHits:
    """First hits of n rays in a scene; `owner` is the index of the object's name in `names`, -1 for the sky.

    `instance`, `part` and `triangle` say which triangle it is; u, v are barycentric coordinates.
    """

    distance: np.ndarray
    owner: np.ndarray
    instance: np.ndarray
    part: np.ndarray
    triangle: np.ndarray
    u: np.ndarray
    v: np.ndarray

    @staticmethod
    def none(count: int) -> SceneHits:
        """Return hits of `count` rays that meet nothing."""
        return SceneHits(
            np.full(count, np.inf, np.float32),
            *(np.full(count, -1, np.int32) for _ in range(4)),
            *(np.zeros(count, np.float32) for _ in range(2)),
        )

    def take(self, rows: np.ndarray | slice) -> SceneHits:
        """Return some of the hits."""
        return SceneHits(*(rows_of(getattr(self, field.name), rows) for field in dataclasses.fields(self)))

    def copy(self) -> SceneHits:
        """Return hits that may be changed."""
        return SceneHits(*(getattr(self, field.name).copy() for field in dataclasses.fields(self)))


class Instances:
    """A scene ready for rays.

    Args:
        scene: what to trace.
        tracer: class of the tracers.
        movable: with what stands in the world, or the fixed parts alone.

    Attributes:
        instances: the fixed parts, if any, first; then one for each movable object.
        fixed: 1 with fixed parts, 0 without: the index of the first movable object.
    """

    def __init__(self, scene: Scene, tracer: TracerClass, movable: bool = True) -> None:
        shown = {name: thing for name, thing in scene.things.items() if thing.visible}
        fixed = [name for name, thing in shown.items() if thing.fixed]
        self.names = list(scene.things)
        self.instances = [_world_instance(fixed, [shown[name].mesh for name in fixed], tracer)] if fixed else []
        self.fixed = len(self.instances)
        for name, thing in shown.items():
            if not thing.fixed and movable:
                self.instances.append(_thing_instance(name, thing, tracer))
        number = {name: index for index, name in enumerate(self.names)}
        self._owners = [np.array([number[name] for name in instance.names], np.int32) for instance in self.instances]

    def closest(self, origins: np.ndarray, directions: np.ndarray, behind: SceneHits | None = None) -> SceneHits:
        """Return the first hits of rays, (n, 3) float32 each; `behind`: their hits of the fixed parts, if known."""
        hits = SceneHits.none(len(directions)) if behind is None else behind.copy()
        for index in range(0 if behind is None else self.fixed, len(self.instances)):
            instance = self.instances[index]
            rows = _near(instance, origins, directions)
            nearest = instance.tracer.closest(*instance.localise(rows_of(origins, rows), rows_of(directions, rows)))
            closer = np.flatnonzero(nearest.distance < rows_of(hits.distance, rows))
            nearest, rows = nearest.take(closer), closer if isinstance(rows, slice) else rows.take(closer)
            triangle = nearest.triangle
            part = np.searchsorted(instance.starts, triangle, side="right").astype(np.int32) - 1
            hits.distance[rows], hits.u[rows], hits.v[rows] = nearest.distance, nearest.u, nearest.v
            hits.owner[rows], hits.instance[rows] = self._owners[index][part], index
            hits.part[rows], hits.triangle[rows] = part, triangle - instance.starts[part]
        return hits

    def occluded(self, origins: np.ndarray, directions: np.ndarray, reach: float, movable: bool = False) -> np.ndarray:
        """Return (n,) bool: whether rays meet anything, or any movable object, within `reach` cm."""
        met = np.zeros(len(origins), bool)
        for instance in reversed(self.instances[self.fixed if movable else 0 :]):
            rows = _near(instance, origins, directions)
            rows = np.flatnonzero(~met) if isinstance(rows, slice) else rows[~met[rows]]
            if len(rows):
                met[rows] = instance.tracer.occluded(
                    *instance.localise(rows_of(origins, rows), rows_of(directions, rows)), reach
                )
        return met

    def around(self, points: np.ndarray, reach: float) -> np.ndarray:
        """Return (n,) bool: whether points may be within `reach` cm of a movable object."""
        close = np.zeros(len(points), bool)
        for instance in self.instances[self.fixed :]:
            away = points - instance.centre
            close |= dot(away, away) < np.float32((instance.radius + reach) ** 2)
        return close


@functools.lru_cache(maxsize=64)
def _tracer(parts: tuple[Mesh, ...], tracer: TracerClass) -> Tracer:
    offsets = np.cumsum([0, *(len(mesh.vertices) for mesh in parts)])
    triangles = [mesh.triangles + np.int32(offset) for mesh, offset in zip(parts, offsets[:-1], strict=True)]
    return tracer(np.concatenate([mesh.vertices for mesh in parts]), np.concatenate(triangles).astype(np.int32))


def _world_instance(names: list[str], meshes: list[Mesh], tracer: TracerClass) -> Instance:
    parts = tuple(meshes)
    starts = np.cumsum([0, *(len(mesh.triangles) for mesh in parts)]).astype(np.int32)
    nowhere = np.zeros(3, np.float32)
    return Instance(tuple(names), parts, starts, _tracer(parts, tracer), None, None, nowhere, nowhere, np.inf)


def _thing_instance(name: str, thing: Thing, tracer: TracerClass) -> Instance:
    mesh, matrix, location = thing.mesh, thing.matrix, np.array(thing.location)
    centre, radius = mesh.ball
    radius = radius * max(map(abs, thing.scale)) * 1.001 + 0.01
    return Instance(
        (name,),
        (mesh,),
        np.array([0, len(mesh.triangles)], np.int32),
        _tracer((mesh,), tracer),
        matrix.astype(np.float32),
        np.linalg.inv(matrix).astype(np.float32),
        location.astype(np.float32),
        (centre @ matrix + location).astype(np.float32),
        float(radius),
    )


def _near(instance: Instance, origins: np.ndarray, directions: np.ndarray) -> np.ndarray | slice:
    """Indices of the rays (unit directions) that pass the ball round an instance."""
    if np.isinf(instance.radius):
        return slice(0, len(origins))
    away = instance.centre - origins
    along = dot(away, directions)
    square = dot(away, away)
    limit = np.float32(instance.radius**2)
    return np.flatnonzero((square - along * along <= limit) & ((along > 0) | (square <= limit)))
