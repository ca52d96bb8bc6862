"""Pictures in two layers: the fixed parts of a world, drawn once for a camera and a light, and what stands in it.

A grid of factors shows many objects before few backdrops. The second layer draws again only the pixels that an object
covers, or whose sun or sky it takes. A backdrop is always drawn whole, kept or not, so a picture is the same bytes
whatever was drawn before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from granary.synth.pug.world.content.worlds import World
from granary.synth.pug.world.picture.film import Film, Setting, Window, edges, pixel_centres, refined, smoothed
from granary.synth.pug.world.picture.instances import Instances
from granary.synth.pug.world.picture.lighting import Light, Shade, deepened, pattern_of, shade_of
from granary.synth.pug.world.shapes.geometry import Camera, rows_of

DARK = np.float32(1 / 255)  # display value below which one cannot tell how much darker a pixel has become


@dataclasses.dataclass(frozen=True)
class Shot:
    """What both layers are drawn with.

    Args:
        world, light, camera: of the scene.
        painted: textures of the objects that do not wear their own, by name.
    """

    world: World
    light: Light
    camera: Camera
    painted: Mapping[str, str]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.camera.height, self.camera.width


@dataclasses.dataclass(frozen=True)
class Backdrop:
    """The fixed parts of a world in n pixels.

    Args:
        film: through the pixels' centres.
        shade: of what they show.
        seen: (n, 2) float32, shares of the sun and of the sky, averaged over neighbours.
        shown: (n, 3) float32 display values in 0..1, one sample for each pixel.
        chosen: (k,) pixels that were refined.
        fine: (k, 3) their display values.
    """

    film: Film
    shade: Shade
    seen: np.ndarray
    shown: np.ndarray
    chosen: np.ndarray
    fine: np.ndarray


def backdrop(shot: Shot, instances: Instances, film: Film) -> Backdrop:
    """Draw the fixed parts of a world; `instances` has nothing else."""
    shade = _whole_shade(shot, instances, film)
    seen = smoothed(film, _raw(shade), shot.camera, _all(shot)).reshape(-1, 2)
    shown = film.display(np.arange(len(seen)), shot.light, shot.world, seen)
    chosen = edges(film, shown, shot.camera, _all(shot))
    return Backdrop(film, shade, seen, shown, chosen, _refined(shot, film, seen, instances, chosen))


def picture(shot: Shot, behind: Backdrop, instances: Instances, film: Film) -> np.ndarray:
    """Draw what stands before a backdrop: returns (h, w, 3) uint8.

    Args:
        shot: of the scene.
        behind: its backdrop.
        instances: the whole scene.
        film: of it, through the same pixels.
    """
    front = film.hits.instance >= instances.fixed
    shade = _front_shade(shot, behind, instances, film, front)
    changed = front | (shade.sun != behind.shade.sun) | (shade.sky != behind.shade.sky)
    seen = behind.seen.copy()
    if (window := _bounds(changed.reshape(shot.grid), 2)) is not None:
        seen.reshape(*shot.grid, 2)[window] = smoothed(film, _raw(shade), shot.camera, window)
    changed = front | (seen != behind.seen).any(axis=1)
    shown, rows = behind.shown.copy(), np.flatnonzero(changed)
    shown[rows] = film.display(rows, shot.light, shot.world, rows_of(seen, rows))
    shown = _antialiased(shot, behind, instances, film, seen, shown, _spread(front.reshape(shot.grid)))
    return np.rint(shown * 255).astype(np.uint8).reshape(*shot.grid, 3)


def _antialiased(
    shot: Shot,
    behind: Backdrop,
    instances: Instances,
    film: Film,
    seen: np.ndarray,
    shown: np.ndarray,
    touched: np.ndarray,
) -> np.ndarray:
    """Refine the edges of objects; those of the backdrop have been refined, and get as much darker as their pixels."""
    chosen = np.zeros(0, np.int64)
    if (window := _bounds(touched, 1)) is not None:
        chosen = edges(film, shown, shot.camera, window, touched)
    kept = np.flatnonzero(~touched.ravel().take(behind.chosen))
    rows = behind.chosen.take(kept)
    now, before = (np.maximum(values.take(rows, axis=0), DARK) for values in (shown, behind.shown))
    fine = _refined(shot, film, seen, instances, chosen)
    shown[rows] = behind.fine.take(kept, axis=0) * np.minimum(now / before, 1)
    shown[chosen] = fine
    return shown


def _refined(shot: Shot, film: Film, seen: np.ndarray, instances: Instances, chosen: np.ndarray) -> np.ndarray:
    setting = Setting(instances, dict(shot.painted), shot.light, shot.world, shot.camera)
    return refined(film, seen, setting, chosen) if len(chosen) else np.zeros((0, 3), np.float32)


def _whole_shade(shot: Shot, instances: Instances, film: Film) -> Shade:
    pattern = pattern_of(*pixel_centres(shot.camera.width, shot.camera.height))
    rows = np.flatnonzero(film.hits.owner >= 0)
    computed = _shade_at(shot, instances, film, pattern, rows)
    starts, sun, sky = np.zeros_like(film.points), np.zeros(len(pattern), bool), np.zeros(len(pattern), bool)
    starts[rows], sun[rows], sky[rows] = computed.starts, computed.sun, computed.sky
    return Shade(starts, pattern, sun, sky)


def _front_shade(shot: Shot, behind: Backdrop, instances: Instances, film: Film, front: np.ndarray) -> Shade:
    surface, distance = behind.film.surface, behind.film.hits.distance
    shade = deepened(shot.light, instances, surface.normal, distance, behind.shade, front)
    rows = np.flatnonzero(front)
    computed = _shade_at(shot, instances, film, shade.pattern, rows)
    shade.sun[rows], shade.sky[rows] = computed.sun, computed.sky
    return shade


def _shade_at(shot: Shot, instances: Instances, film: Film, pattern: np.ndarray, rows: np.ndarray) -> Shade:
    places = (rows_of(film.points, rows), film.hits.distance.take(rows), pattern.take(rows))
    return shade_of(shot.light, instances, film.surface.take(rows), *places)


def _raw(shade: Shade) -> np.ndarray:
    return np.stack([shade.sun, shade.sky], axis=1).astype(np.float32)


def _all(shot: Shot) -> Window:
    return slice(0, shot.camera.height), slice(0, shot.camera.width)


def _bounds(chosen: np.ndarray, margin: int) -> Window | None:
    """Return the smallest part of a picture that holds all chosen pixels (h, w), and a margin; None for none."""
    rows, columns = np.flatnonzero(chosen.any(axis=1)), np.flatnonzero(chosen.any(axis=0))
    if not len(rows):
        return None
    return _range(rows, margin, chosen.shape[0]), _range(columns, margin, chosen.shape[1])


def _range(places: np.ndarray, margin: int, end: int) -> slice:
    return slice(max(0, int(places[0]) - margin), min(end, int(places[-1]) + 1 + margin))


def _spread(chosen: np.ndarray) -> np.ndarray:
    """Return chosen pixels (h, w) and their eight neighbours."""
    for axis in (0, 1):
        wide = chosen.copy()
        forward, backward = (slice(1, None), slice(None, -1))
        if axis == 0:
            wide[forward] |= chosen[backward]
            wide[backward] |= chosen[forward]
        else:
            wide[:, forward] |= chosen[:, backward]
            wide[:, backward] |= chosen[:, forward]
        chosen = wide
    return chosen
