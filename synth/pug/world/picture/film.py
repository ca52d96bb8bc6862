"""The pixels of a picture: what they show, which light it gets, how they look on a display."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from granary.synth.pug.world.content.worlds import World
from granary.synth.pug.world.picture.instances import Instances, SceneHits
from granary.synth.pug.world.picture.lighting import Light, pattern_of, radiance, shade_of
from granary.synth.pug.world.picture.surface import Surface, surfaces
from granary.synth.pug.world.picture.tone import develop
from granary.synth.pug.world.shapes.geometry import FAR, Camera, dot, rows_of

SAMPLES = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))  # of a refined pixel
# Same surface: within 1 cm and 0.6 % of the distance, and less than 37 degrees apart.
NEAR, SLACK, ALIKE = 1.0, 0.006, 0.8
ONES = np.ones(3, np.float32)
BRIGHTNESS = np.array([0.3, 0.6, 0.1], np.float32)
REFINED = 0.12  # largest share of pixels that are refined
LEAST_EDGE = 0.07  # difference from a neighbour, of brightness 0..1, that is refined
Window = tuple[slice, slice]  # rows and columns of a picture


@dataclasses.dataclass(frozen=True)
class Film:
    """What the camera sees along n rays.

    Args:
        directions: (n, 3) float32 unit.
        hits: of the rays.
        points: (n, 3) float32 cm where they hit; the camera's own place for those that hit nothing.
        surface: there; zeros for rays that hit nothing.
    """

    directions: np.ndarray
    hits: SceneHits
    points: np.ndarray
    surface: Surface

    @staticmethod
    def exposed(
        instances: Instances, painted: dict[str, str], camera: Camera, directions: np.ndarray, hits: SceneHits
    ) -> Film:
        """Evaluate the surfaces where rays hit; `painted`: textures of objects that do not wear their own."""
        distance = np.where(hits.owner < 0, np.float32(0), hits.distance)
        points = np.array(camera.location, np.float32) + directions * distance[:, None]
        return Film(directions, hits, points, surfaces(instances, painted, hits, points, directions, camera.pixel))

    def replaced(self, rows: np.ndarray, other: Film, hits: SceneHits) -> Film:
        """Return this film with some rows from another one, and with hits of all rows."""
        points = self.points.copy()
        points[rows] = other.points
        return Film(self.directions, hits, points, self.surface.replaced(rows, other.surface))

    def display(self, rows: np.ndarray, light: Light, world: World, seen: np.ndarray) -> np.ndarray:
        """Return display values (k, 3) float32 in 0..1 of some rows.

        Args:
            seen: (k, 2) shares of sun and sky they see.
        """
        owner, directions = self.hits.owner.take(rows), rows_of(self.directions, rows)
        result = np.empty((len(rows), 3), np.float32)
        hit, empty = np.flatnonzero(owner >= 0), np.flatnonzero(owner < 0)
        if len(empty):
            result[empty] = light.background(rows_of(directions, empty))
        if len(hit):
            some = rows.take(hit)
            parts = (rows_of(directions, hit), self.hits.distance.take(some), seen[hit, 0], seen[hit, 1])
            result[hit] = radiance(light, self.surface.take(some), *parts)
        return develop(result, world)


@functools.lru_cache(maxsize=4)
def pixel_centres(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y (n,) float64 of the centres of pixels, row by row."""
    y, x = np.divmod(np.arange(width * height), width)
    return x + 0.5, y + 0.5


def origins_of(camera: Camera, directions: np.ndarray) -> np.ndarray:
    """Return the camera's place for each of its rays, (n, 3) float32."""
    origins = np.empty_like(directions)
    origins[:] = np.array(camera.location, np.float32)
    return origins


def smoothed(film: Film, raw: np.ndarray, camera: Camera, window: Window) -> np.ndarray:
    """Average what pixels see of sun and sky over neighbours on the same surface; 4 x 4 pixels cast different rays.

    Args:
        film: through all pixels.
        raw: (n, 2) float32, 0 or 1.
        camera: whose pixels they are.
        window: the part of the picture to average.

    Returns:
        (h, w, 2) float32 of the window.
    """
    grid = (camera.height, camera.width)
    tops, lefts = (slice(max(0, window[i].start - 2), min(window[i].stop + 2, grid[i])) for i in (0, 1))
    cut = lambda values: np.ascontiguousarray(values.reshape(*grid, *values.shape[1:])[tops, lefts])  # noqa: E731
    place, normal, owner = cut(film.points), cut(film.surface.normal), cut(film.hits.owner)
    bound, values = NEAR + SLACK * cut(film.hits.distance), cut(raw)
    for axis in (0, 1):
        values = _smooth_axis(values, owner, place, normal, bound, axis)
    top, left = window[0].start - tops.start, window[1].start - lefts.start
    return values[top : top + window[0].stop - window[0].start, left : left + window[1].stop - window[1].start]


def _smooth_axis(
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


def _shifted(step: int, axis: int) -> tuple[Window, Window]:
    """Indices of pixels that have a neighbour `step` further along an axis, and of those neighbours."""
    whole = slice(None)
    a, b = slice(None, -step), slice(step, None)
    return ((a, whole), (b, whole)) if axis == 0 else ((whole, a), (whole, b))


def edges(
    film: Film, shown: np.ndarray, camera: Camera, window: Window, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Return pixels that differ from a neighbour in object, depth or brightness: at most a share, the strongest.

    Args:
        film: through all pixels.
        shown: (n, 3) float32, their display values.
        camera: whose pixels they are.
        window: the part of the picture to look at.
        allowed: (h, w) bool, of the whole picture: which pixels may be chosen; None for all.

    Returns:
        (k,) int64, indices into the n pixels.
    """
    grid = (camera.height, camera.width)
    owner = film.hits.owner.reshape(grid)[window]
    inverse = 1 / np.minimum(film.hits.distance.reshape(grid)[window], np.float32(FAR))
    luminance = shown.reshape(*grid, 3)[window] @ BRIGHTNESS
    score = np.zeros(owner.shape, np.float32)
    for axis in (0, 1):
        a, b = _shifted(1, axis)
        jump = np.abs(inverse[a] - inverse[b]) > 0.06 * np.maximum(inverse[a], inverse[b])
        step = np.abs(luminance[a] - luminance[b]) + 0.5 * (owner[a] != owner[b]) + 0.02 * jump
        score[a] = np.maximum(score[a], step)
        score[b] = np.maximum(score[b], step)
    if allowed is not None:
        score *= allowed[window]
    flat, most = score.ravel(), int(REFINED * grid[0] * grid[1])
    least = np.partition(flat, -most)[-most] if 0 < most < flat.size else (0.0 if most else np.inf)
    rows, columns = np.divmod(np.flatnonzero(flat > max(least, LEAST_EDGE)), owner.shape[1])
    return (rows + window[0].start) * camera.width + columns + window[1].start


class Setting(NamedTuple):
    """What pixels are of: what was traced, the textures that objects wear by name, light, world and camera."""

    instances: Instances
    painted: dict[str, str]
    light: Light
    world: World
    camera: Camera


def refined(film: Film, seen: np.ndarray, setting: Setting, chosen: np.ndarray) -> np.ndarray:
    """Average four samples in each chosen pixel; they share the light that its surroundings were found to see.

    Args:
        film: through all pixels; seen: (n, 2) float32 shares of sun and sky they see.
        setting: of the film.
        chosen: (k,) indices of pixels.

    Returns:
        (k, 3) float32 display values.
    """
    instances, painted, light, world, camera = setting
    offsets = np.array(SAMPLES)
    row, column = np.divmod(chosen, camera.width)
    x, y = (column[:, None] + offsets[:, 0]).ravel(), (row[:, None] + offsets[:, 1]).ravel()
    directions = camera.rays(x, y)
    hits = instances.closest(origins_of(camera, directions), directions)
    fine = Film.exposed(instances, painted, camera, directions, hits)
    sides = np.sign(offsets - 0.5).astype(int)
    near = [np.clip(column[:, None] + shift * sides[:, 0], 0, camera.width - 1) for shift in (0, 1)]
    over = [np.clip(row[:, None] + shift * sides[:, 1], 0, camera.height - 1) for shift in (0, 1)]
    candidates = [(over[j] * camera.width + near[i]).ravel() for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    borrowed = _borrowed(fine, film, seen, candidates, light, instances, pattern_of(x * 2, y * 2))
    shown = fine.display(np.arange(len(x)), light, world, borrowed)
    return shown.reshape(-1, len(SAMPLES), 3).mean(axis=1)


def _borrowed(fine: Film, film: Film, seen, candidates, light, instances, pattern) -> np.ndarray:
    """Take what samples see of sun and sky from pixels that hit the same surface close by, and cast rays elsewhere."""
    source = np.full(len(fine.directions), -1)
    for candidate in candidates:
        open_ = np.flatnonzero((source < 0) & (fine.hits.owner >= 0))
        other = candidate.take(open_)
        fits = np.flatnonzero(_alike(fine, open_, film, other))
        source[open_.take(fits)] = other.take(fits)
    result = seen.take(np.maximum(source, 0), axis=0)
    alone = np.flatnonzero((source < 0) & (fine.hits.owner >= 0))
    if len(alone):
        parts = (rows_of(fine.points, alone), fine.hits.distance.take(alone), pattern.take(alone))
        shade = shade_of(light, instances, fine.surface.take(alone), *parts)
        result[alone, 0], result[alone, 1] = shade.sun, shade.sky
    return result


def _alike(fine: Film, rows: np.ndarray, film: Film, others: np.ndarray) -> np.ndarray:
    normal = rows_of(fine.surface.normal, rows)
    same = (fine.hits.owner.take(rows) == film.hits.owner.take(others)) & (
        dot(normal, rows_of(film.surface.normal, others)) > ALIKE
    )
    away = np.abs(dot(rows_of(fine.points, rows) - rows_of(film.points, others), normal))
    return same & (away < NEAR + SLACK * fine.hits.distance.take(rows))
