"""Light: a sun with soft shadows, the sky from all sides with ambient occlusion, highlights, haze."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from granary.synth.pug.world.content.sky import Panorama, Sky, irradiance, toward_sun
from granary.synth.pug.world.picture.instances import Instances
from granary.synth.pug.world.picture.surface import Surface
from granary.synth.pug.world.scene import Scene
from granary.synth.pug.world.shapes.geometry import blocks, dot, unit

PATTERN = 16  # pixels of a 4 x 4 block cast different rays, which a filter averages
SKY_REACH = 260.0  # cm; what is farther away does not darken
NO_OCCLUSION = 3500.0  # cm from the viewer, beyond which nobody sees it
LONGEST = 1e6  # cm
GOLDEN = np.pi * (3 - np.sqrt(5))


@dataclasses.dataclass(frozen=True)
class Light:
    """The light of a scene.

    Args:
        sun: (3,) float32 unit direction towards it; colour: (3,) float32 of its light; spread: tangent of its radius.
        panorama: the sky; sky: factor on it.
        haze: cm at which a third of a surface's light is left.
        bounce: (3,) float32, light that comes back from the ground.
    """

    sun: np.ndarray
    colour: np.ndarray
    spread: float
    panorama: Panorama
    sky: np.float32
    haze: float

    @staticmethod
    def of(scene: Scene) -> Light:
        """Collect the light of a scene."""
        sun = scene.sun
        home = scene.world.sun
        return Light(
            toward_sun(sun.pitch, sun.yaw),
            (np.array(sun.colour) * sun.intensity).astype(np.float32),
            float(np.tan(np.radians(sun.softness))),
            _panorama(scene.world.sky, home.pitch, home.yaw),
            np.float32(scene.sky),
            scene.world.haze,
        )

    def background(self, directions: np.ndarray) -> np.ndarray:
        """Return the (n, 3) light of the sky behind everything."""
        return self.panorama.look(directions) * self.sky


@functools.lru_cache(maxsize=16)
def _panorama(sky: Sky, pitch: float, yaw: float) -> Panorama:
    return Panorama(sky, toward_sun(pitch, yaw))


@dataclasses.dataclass(frozen=True)
class Shade:
    """Where surface points stand in the shade, and the rays that tell.

    Args:
        starts: (n, 3) float32 cm, where rays begin.
        pattern: (n,) int64 in 0..15: which of the rays of its 4 x 4 block a point casts.
        sun, sky: (n,) bool: whether the ray to the sun, and the one to the sky, is free.
    """

    starts: np.ndarray
    pattern: np.ndarray
    sun: np.ndarray
    sky: np.ndarray


def pattern_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which rays the points in pixels (n,) cast."""
    return (x.astype(np.int64) & 3) + 4 * (y.astype(np.int64) & 3)


def shade_of(
    light: Light,
    instances: Instances,
    surface: Surface,
    points: np.ndarray,
    distance: np.ndarray,
    pattern: np.ndarray,
) -> Shade:
    """Cast one ray to the sun and one to the sky from each surface point.

    Args:
        light: of the scene.
        instances: what is in the way.
        surface: normals of the points.
        points: (n, 3) cm.
        distance: (n,) cm from the viewer.
        pattern: (n,) as `pattern_of` gives it.
    """
    starts = points + surface.normal * (np.float32(0.05) + distance * np.float32(2e-4))[:, None]
    sun, sky = np.zeros(len(points), bool), np.ones(len(points), bool)
    if light.colour.max() > 0:
        sun = dot(surface.normal, light.sun) > -surface.wrap
    for block in blocks(len(points)):
        lit = np.flatnonzero(sun[block]) + block.start
        sun[lit] = ~instances.occluded(starts.take(lit, axis=0), sun_rays(light, pattern.take(lit)), LONGEST)
        near = np.flatnonzero(distance[block] < NO_OCCLUSION) + block.start
        rays = sky_rays(surface.normal.take(near, axis=0), pattern.take(near))
        sky[near] = ~instances.occluded(starts.take(near, axis=0), rays, SKY_REACH)
    return Shade(starts, pattern, sun, sky)


def deepened(
    light: Light, instances: Instances, normal: np.ndarray, distance: np.ndarray, shade: Shade, hidden: np.ndarray
) -> Shade:
    """Return the shade when the movable objects stand in the way too.

    Args:
        light: of the scene; instances: with the movable objects.
        normal: (n, 3) of the points; distance: (n,) cm from the viewer.
        shade: of the points when there are only the fixed parts.
        hidden: (n,) bool, points for which nothing is asked; they come out dark.
    """
    sun, sky = shade.sun & ~hidden, shade.sky & ~hidden
    lit = np.flatnonzero(sun)
    rays = sun_rays(light, shade.pattern.take(lit))
    sun[lit] = ~instances.occluded(shade.starts.take(lit, axis=0), rays, LONGEST, movable=True)
    near = np.flatnonzero(sky & (distance < NO_OCCLUSION) & instances.around(shade.starts, SKY_REACH))
    rays = sky_rays(normal.take(near, axis=0), shade.pattern.take(near))
    sky[near] = ~instances.occluded(shade.starts.take(near, axis=0), rays, SKY_REACH, movable=True)
    return dataclasses.replace(shade, sun=sun, sky=sky)


@functools.cache
def _disc() -> np.ndarray:
    """(16, 2) float32 points that fill the unit disc."""
    index = np.arange(PATTERN)
    radius, angle = np.sqrt((index + 0.5) / PATTERN), index * GOLDEN
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    # Neighbours in the 4 x 4 block get points far apart (Bayer's order).
    return points[[0, 8, 2, 10, 12, 4, 14, 6, 3, 11, 1, 9, 15, 7, 13, 5]].astype(np.float32)


def sun_rays(light: Light, pattern: np.ndarray) -> np.ndarray:
    """Return (n, 3) float32 unit directions to points of the sun's disc."""
    one = np.cross(light.sun, [0.0, 0.0, 1.0] if abs(light.sun[2]) < 0.9 else [1.0, 0.0, 0.0])
    one /= np.linalg.norm(one)
    frame = np.stack([one, np.cross(light.sun, one)]).astype(np.float32)
    rays = light.sun + (_disc() * np.float32(light.spread)) @ frame
    return unit(rays).astype(np.float32).take(pattern, axis=0)


def sky_rays(normal: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Return (n, 3) float32 directions round the normals, more of them where a surface sees more light (cosine)."""
    sign = np.where(normal[:, 2] < 0, np.float32(-1), np.float32(1))
    a = -1 / (sign + normal[:, 2])
    b = normal[:, 0] * normal[:, 1] * a
    one, two = np.empty_like(normal), np.empty_like(normal)
    one[:, 0], one[:, 1], one[:, 2] = 1 + sign * normal[:, 0] ** 2 * a, sign * b, -sign * normal[:, 0]
    two[:, 0], two[:, 1], two[:, 2] = b, sign + normal[:, 1] ** 2 * a, -normal[:, 1]
    p = _disc() * np.float32(0.985)
    up = np.sqrt(1 - dot(p, p))
    p, up = p.take(pattern, axis=0), up.take(pattern)
    return one * p[:, :1] + two * p[:, 1:] + normal * up[:, None]


def radiance(
    light: Light, surface: Surface, directions: np.ndarray, distance: np.ndarray, sun: np.ndarray, sky: np.ndarray
) -> np.ndarray:
    """Return the (n, 3) float32 light that surfaces send to the viewer.

    Args:
        light: of the scene.
        surface: where rays hit.
        directions: (n, 3) unit, of the rays.
        distance: (n,) cm along them.
        sun, sky: (n,) shares of both that the points see.
    """
    result = np.empty((len(directions), 3), np.float32)
    for rows in blocks(len(directions)):
        result[rows] = _shade(light, surface.take(rows), directions[rows], distance[rows], sun[rows], sky[rows])
    return result


def _shade(light, surface, directions, distance, sun, sky):
    normal = surface.bumped
    facing = np.clip(-dot(normal, directions), 0, 1)
    away = 1 - facing
    fresnel = away * away
    fresnel = fresnel * fresnel * away
    slope = (dot(normal, light.sun) + surface.wrap) / (1 + surface.wrap)
    direct = (np.maximum(slope, 0) * sun)[:, None] * light.colour
    around = np.maximum(irradiance(light.panorama.harmonics, normal), 0) * light.sky
    # Light that goes to and fro in a bright corner brightens and colours it (Jimenez et al. 2016, simplified).
    open_sky = sky[:, None] / (1 - surface.colour * np.float32(0.85) * (1 - sky[:, None]))
    result = surface.colour * (direct + around * open_sky)
    rim = surface.sheen * away * away * away * sky
    result += rim[:, None] * (around + np.float32(0.25) * direct) * (surface.colour + np.float32(0.15))
    _polish(result, light, surface, _View(directions, facing, fresnel), sun, sky)
    result += surface.colour * surface.glow[:, None]
    clear = np.exp(-distance / np.float32(light.haze))[:, None]
    return result * clear + light.panorama.fade(directions) * light.sky * (1 - clear)


class _View(NamedTuple):
    """How n surfaces are looked at: (n, 3) rays, (n,) cosine with the normal, (n,) fifth power of what lacks to one."""

    directions: np.ndarray
    facing: np.ndarray
    fresnel: np.ndarray


def _polish(result: np.ndarray, light: Light, surface: Surface, seen: _View, sun: np.ndarray, sky: np.ndarray) -> None:
    """Add highlights of the sun (Blinn and Phong, normalised) and mirrored sky to glossy points."""
    rows = np.flatnonzero(surface.gloss > 0.02)
    if not len(rows):
        return
    normal, gloss, view = (values.take(rows, axis=0) for values in (surface.bumped, surface.gloss, seen.directions))
    half = unit(light.sun - view)
    power = np.exp2(2 + 8 * gloss)
    strength = (power + 8) / 25 * np.maximum(dot(normal, half), 0) ** power * np.float32(0.05) * (0.3 + gloss)
    mirror = view + 2 * seen.facing[rows, None] * normal
    reflect = np.float32(0.04) + np.float32(0.7) * seen.fresnel[rows]
    result[rows] += (strength * sun[rows])[:, None] * light.colour
    result[rows] += (reflect * gloss * sky[rows])[:, None] * light.panorama.reflect(mirror) * light.sky
