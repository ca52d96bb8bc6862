"""What a surface looks like where rays meet it: normal, reflectance, gloss."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from granary.synth.pug.world.picture.instances import Instance, Instances, SceneHits
from granary.synth.pug.world.shapes.geometry import blocks, dot, rows_of, unit
from granary.synth.pug.world.shapes.mesh import Mesh
from granary.synth.pug.world.shapes.textures import Texture, texture

FACES = ((1, 2), (0, 2), (0, 1))  # axes of the tile seen along x, y, z


@dataclasses.dataclass(frozen=True)
class Surface:
    """Properties of n hit points, float32: `normal` and `bumped` (n, 3) unit, `colour` (n, 3) linear, the rest (n,)."""

    normal: np.ndarray
    bumped: np.ndarray
    colour: np.ndarray
    gloss: np.ndarray
    glow: np.ndarray
    sheen: np.ndarray
    wrap: np.ndarray

    @staticmethod
    def empty(count: int) -> Surface:
        """Make room for `count` points."""
        vectors = [np.zeros((count, 3), np.float32) for _ in range(3)]
        return Surface(*vectors, *(np.zeros(count, np.float32) for _ in range(4)))

    def take(self, rows: np.ndarray | slice) -> Surface:
        """Return some of the points."""
        return Surface(*(rows_of(getattr(self, field.name), rows) for field in dataclasses.fields(self)))

    def replaced(self, rows: np.ndarray, other: Surface) -> Surface:
        """Return these points with those in `rows` taken from another surface."""
        fields = []
        for field in dataclasses.fields(self):
            values = getattr(self, field.name).copy()
            values[rows] = getattr(other, field.name)
            fields.append(values)
        return Surface(*fields)


def surfaces(
    instances: Instances,
    painted: dict[str, str],
    hits: SceneHits,
    points: np.ndarray,
    directions: np.ndarray,
    pixel: float,
) -> Surface:
    """Evaluate the surfaces at hits.

    Args:
        instances: what was traced.
        painted: name of the texture of objects that do not wear their own.
        hits: of n rays, none of them the sky.
        points: (n, 3) float32 where they hit.
        directions: (n, 3) float32 of the rays.
        pixel: width of a pixel at distance one.
    """
    result = Surface.empty(len(points))
    for index, instance in enumerate(instances.instances):
        for part, mesh in enumerate(instance.parts):
            all_rows = np.flatnonzero((hits.instance == index) & (hits.part == part))
            worn = painted.get(instance.names[part])
            for block in blocks(len(all_rows)):
                rows = all_rows[block]
                rays = _Rays(hits.take(rows), rows_of(points, rows), rows_of(directions, rows), pixel)
                _fill(result, rows, instance, mesh, worn, rays)
    return result


class _Rays(NamedTuple):
    """Rays that hit one part: hits, (n, 3) where they hit, (n, 3) directions, width of a pixel at distance one."""

    hits: SceneHits
    points: np.ndarray
    directions: np.ndarray
    pixel: float


class _Spots(NamedTuple):
    """Spots on a mesh: (n, 3) corners, weights, places and normals in its coordinates, (n,) size of a pixel in cm."""

    corners: np.ndarray
    weights: np.ndarray
    places: np.ndarray
    normals: np.ndarray
    footprint: np.ndarray


def _fill(result: Surface, rows: np.ndarray, instance: Instance, mesh: Mesh, worn: str | None, rays: _Rays) -> None:
    hits, points, directions, pixel = rays
    corners = mesh.triangles.take(hits.triangle, axis=0)
    weights = np.stack([1 - hits.u - hits.v, hits.u, hits.v], axis=1)
    values = _mix(mesh.corners, corners, weights)  # normal, gloss, glow, colours
    normal = unit(values[:, :3])
    local = points if instance.inverse is None else (points - instance.offset) @ instance.inverse
    facing = normal if instance.inverse is None else unit(normal @ instance.inverse.T)
    cosine = np.abs(dot(facing, directions))
    footprint = hits.distance * np.float32(pixel * instance.shrink) / np.sqrt(np.maximum(cosine, np.float32(0.02)))
    bumped, colour, gloss = _paint(mesh, worn, values, _Spots(corners, weights, local, normal, footprint))
    if instance.inverse is not None:
        bumped = bumped @ instance.inverse.T
    result.normal[rows] = _toward(facing, directions)
    result.bumped[rows] = _toward(unit(bumped), directions)
    result.colour[rows], result.gloss[rows], result.glow[rows] = colour, gloss, values[:, 4]
    result.sheen[rows] = mesh.skin.sheen if worn is None else 0.1
    result.wrap[rows] = mesh.skin.wrap


def _paint(
    mesh: Mesh, worn: str | None, values: np.ndarray, spots: _Spots
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bumped normal in the mesh's coordinates, colour and gloss."""
    corners, weights, local, normal, footprint = spots
    if worn is not None:
        cloth = texture(worn)
        sample = triplanar(cloth, local, normal, footprint, cloth.scale)
        gloss = np.full(len(local), cloth.gloss, np.float32)
        return normal - cloth.bump * sample[:, 3:], sample[:, :3], gloss
    if mesh.picture is not None and mesh.uv is not None:
        place = _mix(mesh.uv, corners, weights)
        size = footprint / np.float32(mesh.picture.scale)
        colour = mesh.picture.sample(place[:, 0], 1 - place[:, 1], size)[:, :3]
    else:
        colour = _own_colour(mesh, values[:, 5:], footprint)
    if not mesh.skin.detail:
        return normal, colour, values[:, 3]
    sample = triplanar(texture(mesh.skin.detail), local, normal, footprint, mesh.skin.scale)
    return normal - mesh.skin.bump * sample[:, 3:], colour * sample[:, :3], values[:, 3]


def triplanar(
    cloth: Texture, points: np.ndarray, normals: np.ndarray, footprint: np.ndarray, scale: float
) -> np.ndarray:
    """Project a texture along the three axes and mix by the normal: (n, 6) colour and gradient of the relief."""
    square = normals * normals
    share = np.maximum(square * square - np.float32(0.03), 0)
    total = share @ np.ones(3, np.float32)
    result = np.zeros((len(points), 6), np.float32)
    size = footprint / np.float32(scale)
    for axis, (one, two) in enumerate(FACES):
        rows = np.flatnonzero(share[:, axis] > 0)
        if not len(rows):
            continue
        weight = share[:, axis].take(rows) / total.take(rows)
        u, v = (points[:, k].take(rows) / np.float32(scale) for k in (one, two))
        seen = cloth.sample(u, v, size.take(rows)) * weight[:, None]
        if len(rows) == len(points):
            result[:, :3] += seen[:, :3]
            result[:, 3 + one] += seen[:, 3]
            result[:, 3 + two] += seen[:, 4]
        else:
            spread = np.zeros((len(rows), 6), np.float32)
            spread[:, :3], spread[:, 3 + one], spread[:, 3 + two] = seen[:, :3], seen[:, 3], seen[:, 4]
            result[rows] += spread
    return result


def _own_colour(mesh: Mesh, levels: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Choose between the smoothed colours (n, 3 levels) by the footprint (n,) cm of a pixel."""
    fine, size = levels[:, :3], np.log2(np.maximum(footprint, np.float32(1e-6)))
    for level in range(1, len(mesh.footprints)):
        low, high = np.log2(mesh.footprints[level - 1 : level + 1])
        share = np.clip((size - low) / (high - low), 0, 1)[:, None]
        fine = fine + (levels[:, 3 * level : 3 * level + 3] - fine) * share
    return fine


def _mix(values: np.ndarray, corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Interpolate (v, c) values at corners to (n, c)."""
    mixed = values.take(corners[:, 0], axis=0) * weights[:, :1]
    mixed += values.take(corners[:, 1], axis=0) * weights[:, 1:2]
    mixed += values.take(corners[:, 2], axis=0) * weights[:, 2:]
    return mixed


def _toward(normals: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Turn normals that look away from the viewer: by a little at silhouettes, wholly on the back of a sheet."""
    away = dot(normals, directions)
    flipped = np.where(away > 0.35, -1, 1).astype(np.float32)
    normals = normals * flipped[:, None]
    away = np.maximum(away * flipped, 0) + np.float32(1e-3) * (away > 0)
    return unit(normals - away[:, None] * directions)
