"""Pictures of a scene: one trace of primary rays serves the lit picture, the mask, the depth and the normals."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from synth.pug.world.geometry import FAR, Camera, dot, rows_of
from synth.pug.world.instances import Instances, SceneHits
from synth.pug.world.lighting import Light, shade, visibility
from synth.pug.world.scene import Scene
from synth.pug.world.surface import Surface, surfaces
from synth.pug.world.tone import develop
from synth.pug.world.tracing import choose_tracer

SAMPLES = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))  # of a refined pixel
NEAR, SLACK, ALIKE = (
    1.0,
    0.006,
    0.8,
)  # same surface: within 1 cm and 0.6 % of the distance, and less than 37 degrees apart
ONES = np.ones(3, np.float32)
BRIGHTNESS = np.array([0.3, 0.6, 0.1], np.float32)
REFINED = 0.12  # largest share of pixels that are refined
LEAST_EDGE = 0.05  # difference from a neighbour, of brightness 0..1, that is refined


@dataclasses.dataclass(frozen=True)
class View:
    """What a camera sees through the centres of its pixels, row by row.

    Args:
        instances: what was traced.
        directions: (n, 3) float32 of the rays.
        hits: of all n rays.
    """

    instances: Instances
    directions: np.ndarray
    hits: SceneHits


class Renderer:
    """Draws a scene; keeps the last view and the last pictures as long as nothing changes.

    Args:
        tracer: "embree", "numpy" or "auto".
    """

    def __init__(self, tracer: str = "auto") -> None:
        self._tracer, self.tracer = choose_tracer(tracer)
        self._views: dict[Any, View] = {}
        self._lit: dict[Any, np.ndarray] = {}

    def view(self, scene: Scene, camera: Camera) -> View:
        """Trace the primary rays, or return them if they were traced already."""
        key = (scene.number, scene.shape, camera)
        if key not in self._views:
            instances = Instances(scene, self._tracer)
            x, y = _pixel_centres(camera.width, camera.height)
            directions = camera.rays(x, y)
            self._views = {key: View(instances, directions, _cast(instances, camera, directions))}
        return self._views[key]

    def lit(self, scene: Scene, camera: Camera) -> np.ndarray:
        """Return the picture: (h, w, 3) uint8 sRGB."""
        key = (scene.number, scene.version, camera)
        if key not in self._lit:
            self._lit = {key: _lit(scene, camera, self.view(scene, camera))}
        return self._lit[key]

    def mask(self, scene: Scene, camera: Camera) -> np.ndarray:
        """Return (h, w, 3) uint8: the mask colour of the object in the middle of each pixel, black for the sky."""
        table = np.array([*(thing.colour for thing in scene.things.values()), (0, 0, 0)], np.uint8)
        return table.take(self.view(scene, camera).hits.owner, axis=0, mode="wrap").reshape(
            camera.height, camera.width, 3
        )

    def owners(self, scene: Scene, camera: Camera) -> np.ndarray:
        """Return (h, w) int32: index of the object in the middle of each pixel, -1 for the sky."""
        return self.view(scene, camera).hits.owner.reshape(camera.height, camera.width)

    def depth(self, scene: Scene, camera: Camera) -> np.ndarray:
        """Return (h, w) float32: cm along the direction of view (planar depth), 65504 for the sky."""
        view = self.view(scene, camera)
        depth = view.hits.distance * (view.directions @ camera.forward)
        return np.minimum(depth, np.float32(FAR)).reshape(camera.height, camera.width)

    def normal(self, scene: Scene, camera: Camera) -> np.ndarray:
        """Return (h, w, 3) uint8: world normals times 0.5 plus 0.5, and 0.5 for the sky."""
        view = self.view(scene, camera)
        normals = np.zeros((len(view.directions), 3), np.float32)
        rows = np.flatnonzero(view.hits.owner >= 0)
        normals[rows] = _surfaces(scene, camera, view.instances, view.hits.take(rows), view.directions[rows])[0].normal
        return np.rint(normals * 127.5 + 127.5).astype(np.uint8).reshape(camera.height, camera.width, 3)


@functools.lru_cache(maxsize=4)
def _pixel_centres(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.divmod(np.arange(width * height), width)
    return x + 0.5, y + 0.5


def _cast(instances: Instances, camera: Camera, directions: np.ndarray) -> SceneHits:
    origins = np.empty_like(directions)
    origins[:] = np.array(camera.location, np.float32)
    return instances.closest(origins, directions)


def _surfaces(
    scene: Scene, camera: Camera, instances: Instances, hits: SceneHits, directions: np.ndarray
) -> tuple[Surface, np.ndarray]:
    points = np.array(camera.location, np.float32) + directions * hits.distance[:, None]
    painted = {name: thing.texture for name, thing in scene.things.items() if thing.texture != "Default"}
    return surfaces(instances, painted, hits, points, directions, camera.pixel), points


def _lit(scene: Scene, camera: Camera, view: View) -> np.ndarray:
    light, grid = Light.of(scene), (camera.height, camera.width)
    x, y = _pixel_centres(camera.width, camera.height)
    base = _Pass(scene, camera, light, view.instances, view.hits, view.directions)
    sun, sky = base.cast_visibility(x, y)
    sun, sky = _filtered(sun, sky, base, grid)
    picture = develop(base.radiance(sun, sky), scene.world)
    chosen = _edges(view, picture, grid)
    if len(chosen):
        picture[chosen] = _refined(scene, camera, base, sun, sky, chosen)
    return np.rint(picture * 255).astype(np.uint8).reshape(*grid, 3)


def _refined(scene, camera, base: _Pass, sun, sky, chosen) -> np.ndarray:
    """Average four samples in each chosen pixel; they share the light that its surroundings were found to see."""
    offsets = np.array(SAMPLES)
    row, column = np.divmod(chosen, camera.width)
    x, y = (column[:, None] + offsets[:, 0]).ravel(), (row[:, None] + offsets[:, 1]).ravel()
    directions = camera.rays(x, y)
    hits = _cast(base.instances, camera, directions)
    fine = _Pass(scene, camera, base.light, base.instances, hits, directions)
    sides = np.sign(offsets - 0.5).astype(int)
    near = [np.clip(column[:, None] + shift * sides[:, 0], 0, camera.width - 1) for shift in (0, 1)]
    over = [np.clip(row[:, None] + shift * sides[:, 1], 0, camera.height - 1) for shift in (0, 1)]
    candidates = [(over[j] * camera.width + near[i]).ravel() for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    radiance = fine.radiance(*fine.borrow_visibility(base, sun, sky, candidates, x, y))
    return develop(radiance, scene.world).reshape(-1, len(SAMPLES), 3).mean(axis=1)


class _Pass:
    """The shading of n rays from the camera.

    Attributes:
        rows: indices of the rays that hit something; `seen`, `surface`, `points` belong to those.
    """

    def __init__(self, scene, camera, light, instances, hits, directions) -> None:
        self.light, self.instances, self.directions = light, instances, directions
        self.rows = np.flatnonzero(hits.owner >= 0)
        self.seen = hits.take(self.rows)
        self.surface, self.points = _surfaces(scene, camera, instances, self.seen, rows_of(directions, self.rows))

    def cast_visibility(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cast rays to the sun and the sky; x, y (n,) choose which."""
        rows = self.rows
        return visibility(self.light, self.instances, self.surface, self.points, self.seen.distance, x[rows], y[rows])

    def borrow_visibility(self, base: _Pass, sun, sky, candidates, x, y):
        """Take visibility from rays of another pass that hit the same surface close by, and cast it elsewhere."""
        index = np.full(len(base.directions), -1)
        index[base.rows] = np.arange(len(base.rows))
        source = np.full(len(self.rows), -1)
        for candidate in candidates:
            open_ = np.flatnonzero(source < 0)
            other = index.take(candidate.take(self.rows.take(open_)))
            fits = (other >= 0) & self._alike(open_, base, other)
            source[open_[fits]] = other[fits]
        own_sun, own_sky = sun[source], sky[source]
        alone = np.flatnonzero(source < 0)
        if len(alone):
            cast = visibility(
                self.light,
                self.instances,
                self.surface.take(alone),
                self.points[alone],
                self.seen.distance[alone],
                x[self.rows[alone]] * 2,
                y[self.rows[alone]] * 2,
            )
            own_sun[alone], own_sky[alone] = cast
        return own_sun, own_sky

    def _alike(self, rows: np.ndarray, base: _Pass, other: np.ndarray) -> np.ndarray:
        normal = rows_of(self.surface.normal, rows)
        same = (self.seen.owner[rows] == base.seen.owner[other]) & (
            dot(normal, rows_of(base.surface.normal, other)) > ALIKE
        )
        away = np.abs(dot(rows_of(self.points, rows) - rows_of(base.points, other), normal))
        return same & (away < NEAR + SLACK * self.seen.distance[rows])

    def radiance(self, sun: np.ndarray, sky: np.ndarray) -> np.ndarray:
        """Return the (n, 3) light along the rays."""
        result = np.empty((len(self.directions), 3), np.float32)
        empty = np.ones(len(result), bool)
        empty[self.rows] = False
        result[empty] = self.light.background(self.directions[empty])
        if len(self.rows):
            views = rows_of(self.directions, self.rows)
            result[self.rows] = shade(self.light, self.surface, views, self.seen.distance, sun, sky)
        return result


def _filtered(sun: np.ndarray, sky: np.ndarray, base: _Pass, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Average visibility over neighbours on the same surface; each 4 x 4 pixels cast different rays."""

    def field(values: np.ndarray) -> np.ndarray:
        whole = np.full((grid[0] * grid[1], *values.shape[1:]), -1, values.dtype)
        whole[base.rows] = values
        return whole.reshape(*grid, *values.shape[1:])

    place, normal, owner = field(base.points), field(base.surface.normal), field(base.seen.owner)
    bound = field(NEAR + SLACK * base.seen.distance)
    values = field(np.stack([sun, sky], axis=1))
    for axis in (0, 1):
        values = _filter_axis(values, owner, place, normal, bound, axis)
    smooth = values.reshape(-1, 2).take(base.rows, axis=0)
    return smooth[:, 0], smooth[:, 1]


def _filter_axis(
    values: np.ndarray, owner: np.ndarray, place: np.ndarray, normal: np.ndarray, bound: np.ndarray, axis: int
) -> np.ndarray:
    """Average with up to two neighbours on either side; weights 1, 1, 1/2 count every residue modulo 4 once."""
    total, weight = values.copy(), np.ones(values.shape[:2], np.float32)
    for step, share in ((1, 1.0), (2, 0.5)):
        a, b = _shifted(step, axis)
        away = np.abs(((place[b] - place[a]) * normal[a]) @ ONES)
        alike = (normal[a] * normal[b]) @ ONES
        same = (owner[a] == owner[b]) & (away < bound[a]) & (alike > ALIKE)
        part = same.astype(np.float32) * np.float32(share)
        total[a] += values[b] * part[..., None]
        total[b] += values[a] * part[..., None]
        weight[a] += part
        weight[b] += part
    return total / weight[..., None]


def _shifted(step: int, axis: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Indices of pixels that have a neighbour `step` further along an axis, and of those neighbours."""
    whole = slice(None)
    a, b = slice(None, -step), slice(step, None)
    return ((a, whole), (b, whole)) if axis == 0 else ((whole, a), (whole, b))


def _edges(view: View, picture: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Pixels that differ from a neighbour in object, depth or brightness: at most a share of all, the strongest."""
    height, width = grid
    owner = view.hits.owner.reshape(grid)
    inverse = (1 / np.minimum(view.hits.distance, np.float32(FAR))).reshape(grid)
    luminance = (picture @ BRIGHTNESS).reshape(grid)
    score = np.zeros(grid, np.float32)
    for axis in (0, 1):
        a, b = _shifted(1, axis)
        step = np.abs(luminance[a] - luminance[b])
        jump = np.abs(inverse[a] - inverse[b]) > 0.06 * np.maximum(inverse[a], inverse[b])
        step = step + 0.5 * (owner[a] != owner[b]) + 0.02 * jump
        score[a] = np.maximum(score[a], step)
        score[b] = np.maximum(score[b], step)
    flat, most = score.ravel(), int(REFINED * height * width)
    least = np.partition(flat, -most)[-most] if most else np.inf
    return np.flatnonzero(flat > max(least, LEAST_EDGE))
