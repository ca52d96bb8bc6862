"""Skies as panoramas: what is seen at infinity, what lights a scene from all sides, what haze fades into."""

from __future__ import annotations

import dataclasses

import numpy as np

from granary.synth.pug.world.shapes.colours import linear
from granary.synth.pug.world.shapes.noise import smoothstep, tiled_fractal

HEIGHT, WIDTH = 384, 1536
LOWEST, HIGHEST = -6.0, 90.0  # degrees of elevation of the panorama's last and first row


@dataclasses.dataclass(frozen=True)
class Ridge:
    """A silhouette on the horizon: mountains, a tree line, a skyline.

    Args:
        colour: hex, of its top; it fades into the horizon's colour towards its foot.
        height: mean elevation of the crest in degrees.
        relief: how much the crest varies, degrees.
        cells: number of bumps round the horizon.
        seed: of the crest.
        square: a crest of steps, as houses have it.
        lights: share of lit windows.
    """

    colour: str
    height: float
    relief: float
    cells: int
    seed: int
    square: bool = False
    lights: float = 0.0


@dataclasses.dataclass(frozen=True)
class Sky:
    """Colours (hex) and contents of a sky.

    Args:
        zenith, middle, horizon: colours at 90, about 25 and 0 degrees.
        brightness: of the whole, 1 is a clear day.
        clouds: cover, 0 none to 1 overcast; cloud: their colour; shade: of their undersides.
        glow: colour round the sun; glow_size: degrees.
        stars: number of them.
        moon: draw the sun as a moon's disc.
        ridges: silhouettes, farthest first.
        ground: mean colour of the light the ground throws back.
        seed: of clouds and stars.
    """

    zenith: str
    middle: str
    horizon: str
    brightness: float = 1.0
    clouds: float = 0.3
    cloud: str = "#ffffff"
    shade: str = "#aab4c4"
    glow: str = "#fff2d0"
    glow_size: float = 14.0
    stars: int = 0
    moon: bool = False
    ridges: tuple[Ridge, ...] = ()
    ground: str = "#6b6250"
    seed: int = 1


class Panorama:
    """A painted sky.

    Args:
        sky: what to paint.
        sun: (3,) unit direction towards the sun.

    Attributes:
        pixels: (384, 1536, 3) float32 radiance; rows from the zenith down, columns by azimuth from +X to +Y.
        harmonics: (9, 3) float32; with `irradiance` the diffuse light of the whole sky and the ground.
    """

    def __init__(self, sky: Sky, sun: np.ndarray) -> None:
        elevation = np.radians(np.linspace(HIGHEST, LOWEST, HEIGHT))[:, None]
        azimuth = np.linspace(0, 2 * np.pi, WIDTH, endpoint=False)[None, :]
        direction = _directions(elevation, azimuth)
        self.pixels = (_paint(sky, sun, elevation, direction) * sky.brightness).astype(np.float32)
        self.blurred = _blur(self.pixels)
        row = int(HEIGHT * (HIGHEST - 1.0) / (HIGHEST - LOWEST))
        self.haze = _smooth_ring(self.pixels[row - 8 : row].mean(axis=0))
        self.harmonics = _harmonics(self.pixels, elevation, direction, linear(sky.ground) * sky.brightness)

    def look(self, directions: np.ndarray) -> np.ndarray:
        """Return (n, 3) float32 radiance in (n, 3) unit directions."""
        x, y = _place(directions, WIDTH, HEIGHT)
        x0, y0 = np.floor(x).astype(np.int64), np.minimum(y.astype(np.int64), HEIGHT - 2)
        fx, fy = (x - x0)[:, None].astype(np.float32), (y - y0)[:, None].astype(np.float32)
        left, right = x0 % WIDTH, (x0 + 1) % WIDTH
        pixels, upper = self.pixels.reshape(-1, 3), y0 * WIDTH
        over = pixels.take(upper + left, axis=0) * (1 - fx) + pixels.take(upper + right, axis=0) * fx
        upper += WIDTH
        under = pixels.take(upper + left, axis=0) * (1 - fx) + pixels.take(upper + right, axis=0) * fx
        return over * (1 - fy) + under * fy

    def reflect(self, directions: np.ndarray) -> np.ndarray:
        """Return (n, 3) float32 blurred radiance, as dull mirrors show it; below the horizon that of the ground."""
        height, width = self.blurred.shape[:2]
        x, y = _place(directions, width, height)
        place = np.rint(y).astype(np.int64) * width + np.rint(x).astype(np.int64) % width
        upper = self.blurred.reshape(-1, 3).take(place, axis=0)
        below = smoothstep(0.05, -0.25, directions[:, 2])[:, None].astype(np.float32)
        return upper * (1 - below) + irradiance(self.harmonics, np.array([[0, 0, -1]], np.float32)) * below

    def fade(self, directions: np.ndarray) -> np.ndarray:
        """Return (n, 3) float32: what haze looks like in (n, 3) directions."""
        x, _ = _place(directions, len(self.haze), 2)
        return self.haze.take(x.astype(np.int64) % len(self.haze), axis=0)


def irradiance(harmonics: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Return (n, 3) diffuse light, over pi, on surfaces with (n, 3) unit normals (Ramamoorthi, Hanrahan 2001)."""
    return _basis(normals) @ harmonics


def _directions(elevation: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    flat = np.cos(elevation)
    return np.stack(
        [
            flat * np.cos(azimuth),
            flat * np.sin(azimuth),
            np.broadcast_to(np.sin(elevation), (len(elevation), azimuth.size)),
        ],
        axis=-1,
    )


def _place(directions: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    azimuth = np.arctan2(directions[:, 1], directions[:, 0])
    elevation = np.degrees(np.arcsin(np.clip(directions[:, 2], -1, 1)))
    y = (HIGHEST - np.clip(elevation, LOWEST, HIGHEST)) / (HIGHEST - LOWEST) * (height - 1)
    return azimuth % (2 * np.pi) / (2 * np.pi) * width, y


def _paint(sky: Sky, sun: np.ndarray, elevation: np.ndarray, direction: np.ndarray) -> np.ndarray:
    height = np.sin(np.maximum(elevation, 0))[..., None]
    colour = linear(sky.horizon) + (linear(sky.middle) - linear(sky.horizon)) * (1 - np.exp(-height * 7))
    colour = colour + (linear(sky.zenith) - colour) * smoothstep(0.12, 0.95, height)
    colour = np.broadcast_to(colour, direction.shape).copy()
    toward = direction @ sun
    halo = np.exp(-np.degrees(np.arccos(np.clip(toward, -1, 1))) / sky.glow_size)
    colour += halo[..., None] * linear(sky.glow)
    if sky.stars:
        colour += _stars(sky)
    if sky.moon:
        colour += (
            6 * smoothstep(np.cos(np.radians(2.4)), np.cos(np.radians(2.1)), toward)[..., None] * linear("#f4f1e4")
        )
    if sky.clouds > 0:
        colour = _clouds(sky, colour, elevation, halo)
    for ridge in sky.ridges:
        colour = _ridge(ridge, colour, elevation, linear(sky.horizon))
    return colour


def _clouds(sky: Sky, colour: np.ndarray, elevation: np.ndarray, halo: np.ndarray) -> np.ndarray:
    # Knots are stretched along the rows: clouds near the horizon are seen from the side.
    field = tiled_fractal(HEIGHT, WIDTH, 5, 6, sky.seed, 0.55, 1.6)
    cover = smoothstep(0.75 - 1.25 * sky.clouds, 1.5 - 0.8 * sky.clouds, field)
    lit = smoothstep(-0.5, 0.9, field - np.roll(field, 10, axis=0) * 0.9 + 0.2)
    paint = linear(sky.shade) + (linear(sky.cloud) - linear(sky.shade)) * lit[..., None]
    paint = paint + halo[..., None] * linear(sky.glow) * 0.7
    weight = cover * smoothstep(np.radians(1.0), np.radians(14.0), elevation) * 0.95
    return colour + (paint - colour) * weight[..., None]


def _ridge(ridge: Ridge, colour: np.ndarray, elevation: np.ndarray, horizon: np.ndarray) -> np.ndarray:
    if ridge.square:
        rng = np.random.default_rng(ridge.seed)
        edges = np.sort(rng.choice(WIDTH, ridge.cells, replace=False))
        block = np.searchsorted(edges, np.arange(WIDTH), side="right") % ridge.cells
        crest = rng.uniform(-1, 1, ridge.cells)[block]
    else:
        crest = tiled_fractal(4, WIDTH, 1, 1, ridge.seed)[0] * 0
        for octave in range(6):
            crest = (
                crest
                + 0.52**octave
                * tiled_fractal(2, WIDTH, 2, 1, ridge.seed + octave, 1, 2 * WIDTH / 2 / (ridge.cells << octave))[0]
            )
    top = np.radians(ridge.height + ridge.relief * crest)[None, :]
    step = np.radians((HIGHEST - LOWEST) / HEIGHT)
    cover = np.clip((top - elevation) / step + 0.5, 0, 1)
    foot = np.exp(-np.maximum(elevation, 0) / np.radians(max(ridge.height, 0.5)))
    paint = linear(ridge.colour) + (horizon - linear(ridge.colour)) * (0.55 * foot)[..., None]
    if ridge.lights:
        paint = paint + _windows(ridge, elevation)[..., None] * linear("#ffc873") * 1.6
    return colour + (paint - colour) * cover[..., None]


def _windows(ridge: Ridge, elevation: np.ndarray) -> np.ndarray:
    rows, columns = np.floor(np.degrees(elevation) * 2.2).astype(int) + 20, np.arange(WIDTH) // 3
    lit = np.random.default_rng(ridge.seed + 1).random((300, WIDTH // 3)) < ridge.lights
    gap = (np.arange(WIDTH) % 3 != 0)[None, :] & ((np.degrees(elevation) * 2.2) % 1 < 0.6) & (elevation > 0.004)
    return lit[np.clip(rows, 0, 299), columns[None, :]] * gap


def _stars(sky: Sky) -> np.ndarray:
    rng = np.random.default_rng(sky.seed + 7)
    field = np.zeros((HEIGHT, WIDTH, 3))
    rows = (HEIGHT * np.arccos(rng.uniform(0, 1, sky.stars)) / (np.pi / 2) * 0.93).astype(int)
    np.add.at(field, (rows, rng.integers(0, WIDTH, sky.stars)), (rng.random(sky.stars) ** 4 * 2.5 + 0.08)[:, None])
    return field


def _blur(pixels: np.ndarray) -> np.ndarray:
    small = pixels.reshape(HEIGHT // 12, 12, WIDTH // 12, 12, 3).mean(axis=(1, 3))
    return ((small + np.roll(small, 1, 1) + np.roll(small, -1, 1)) / 3).astype(np.float32)


def _smooth_ring(ring: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft(ring, axis=0)
    spectrum[10:] = 0
    return np.maximum(np.fft.irfft(spectrum, len(ring), axis=0), 0).astype(np.float32)


def _basis(n: np.ndarray) -> np.ndarray:
    x, y, z = n[:, 0], n[:, 1], n[:, 2]
    columns = [np.ones_like(x), y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y]
    factors = np.array(
        [0.282095, 0.488603, 0.488603, 0.488603, 1.092548, 1.092548, 0.315392, 1.092548, 0.546274], np.float32
    )
    return np.stack(columns, axis=1) * factors


def _harmonics(pixels: np.ndarray, elevation: np.ndarray, direction: np.ndarray, ground: np.ndarray) -> np.ndarray:
    above = (elevation >= 0)[:, 0]
    step = np.radians((HIGHEST - LOWEST) / (HEIGHT - 1)) * 2 * np.pi / WIDTH
    weights = np.broadcast_to(np.cos(elevation[above]) * step, (above.sum(), WIDTH)).ravel()
    directions, light = direction[above].reshape(-1, 3), pixels[above].reshape(-1, 3)
    total = _basis(directions[::7]).T @ (light[::7] * weights[::7, None] * 7)
    mirrored = directions[::7] * (1, 1, -1)
    total += _basis(mirrored).T @ (weights[::7, None] * 7 * ground)
    bands = np.array([np.pi, *[2 * np.pi / 3] * 3, *[np.pi / 4] * 5]) / np.pi
    return (total * bands[:, None]).astype(np.float32)


def toward_sun(pitch: float, yaw: float) -> np.ndarray:
    """Return the (3,) float32 unit direction towards a light that shines along (pitch, yaw); -90 is straight down."""
    p, y = np.radians(pitch), np.radians(yaw)
    return -np.array([np.cos(p) * np.cos(y), np.cos(p) * np.sin(y), np.sin(p)], np.float32)
