"""Tiling textures, made from noise, with the pyramid that filters them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from granary.synth.pug.world.shapes.colours import linear
from granary.synth.pug.world.shapes.noise import smoothstep, tiled_fractal, tiled_noise

SIZE = 512  # texels along an edge of the finest level
BLUR = 0.1  # levels; more is softer and shimmers less
CHANNELS = 5  # red, green, blue (linear), slope along u, slope along v


@dataclasses.dataclass(frozen=True, eq=False)
class Texture:
    """A tiling texture.

    Args:
        texels: (sum of squares of level sizes, 5) float32, level after level from the finest.
        starts: (levels,) int64, first row of each level.
        scale: cm that one tile covers on an object.
        gloss: of the surface.
        bump: strength of its relief.
    """

    texels: np.ndarray
    starts: np.ndarray
    scale: float = 60.0
    gloss: float = 0.0
    bump: float = 0.0

    def sample(self, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Return (n, 5) float32 at tile coordinates, filtered over `footprint` tiles: bilinear on the nearest level."""
        level = np.rint(np.log2(np.maximum(footprint * np.float32(SIZE), 1)) + np.float32(BLUR)).astype(np.int64)
        level = np.minimum(level, len(self.starts) - 1)
        size = np.int64(SIZE) >> level
        edge = size.astype(np.float32)
        x, y = (u - np.floor(u)) * edge - np.float32(0.5), (v - np.floor(v)) * edge - np.float32(0.5)
        x0, y0 = np.floor(x), np.floor(y)
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        mask = size - 1
        left, top = x0.astype(np.int64) & mask, y0.astype(np.int64) & mask
        right, bottom = (left + 1) & mask, (top + 1) & mask
        start = self.starts.take(level)
        upper, lower = start + top * size, start + bottom * size
        texels = self.texels
        result = texels.take(upper + left, axis=0) * ((1 - fx) * (1 - fy))
        result += texels.take(upper + right, axis=0) * (fx * (1 - fy))
        result += texels.take(lower + left, axis=0) * ((1 - fx) * fy)
        result += texels.take(lower + right, axis=0) * (fx * fy)
        return result


def make_texture(
    colour: np.ndarray, height: np.ndarray, scale: float, gloss: float = 0.0, bump: float = 0.0
) -> Texture:
    """Build the pyramid of a (512, 512, 3) linear colour and the slopes of a (512, 512) height in texels."""
    slopes = [(np.roll(height, -1, axis) - np.roll(height, 1, axis)) / 2 for axis in (1, 0)]
    level: np.ndarray = np.dstack([np.clip(colour, 0.002, 1), *slopes]).astype(np.float32)
    levels = [level]
    while len(level) > 1:
        level = (level[0::2, 0::2] + level[1::2, 0::2] + level[0::2, 1::2] + level[1::2, 1::2]) / 4
        levels.append(level)
    starts = np.cumsum([0, *(len(mip) ** 2 for mip in levels[:-1])])
    return Texture(np.concatenate([mip.reshape(-1, CHANNELS) for mip in levels]), starts, scale, gloss, bump)


def _noise(cells: int, octaves: int, seed: int, gain: float = 0.5, aspect: float = 1.0) -> np.ndarray:
    return tiled_fractal(SIZE, SIZE, cells, octaves, seed, gain, aspect)


def ramp(values: np.ndarray, *stops: tuple[float, str]) -> np.ndarray:
    """Colour values by linear interpolation between (value, hex colour) stops, in linear light."""
    at = [stop for stop, _ in stops]
    table = np.stack([linear(colour) for _, colour in stops])
    return np.stack([np.interp(values, at, table[:, channel]) for channel in range(3)], axis=-1)


def _sky() -> Texture:
    cloud = smoothstep(-0.15, 0.9, _noise(3, 6, 11) + 0.25 * _noise(2, 1, 12))
    return make_texture(
        ramp(cloud, (0, "#3f86d8"), (0.35, "#78b0ea"), (0.7, "#e4effa"), (1, "#ffffff")), cloud, 110, 0.15
    )


def _grass() -> Texture:
    blades = _noise(22, 3, 21, 0.75, 0.25) + _noise(22, 3, 22, 0.75, 4) + _noise(22, 3, 23, 0.75, 1)
    tint = 0.45 * blades + 0.5 * _noise(4, 3, 24)
    colour = ramp(tint, (-1.6, "#1c3a10"), (-0.4, "#3d6f1f"), (0.4, "#63962b"), (1.3, "#a3c452"), (2.2, "#d3dd84"))
    return make_texture(colour, blades * 2.2, 70, 0.0, 0.8)


def _asphalt() -> Texture:
    grain = _noise(90, 2, 31, 0.9)
    stones = smoothstep(0.75, 1.3, _noise(64, 2, 32, 0.8))
    colour = ramp(0.5 * grain + 0.4 * _noise(5, 4, 33), (-1.2, "#1f2022"), (0, "#3a3b3e"), (1, "#56575a"))
    return make_texture(colour + stones[..., None] * 0.16, grain * 1.5 + stones * 2, 55, 0.12, 0.8)


def _plain(colour: str, dark: str, seed: int) -> Callable[[], Texture]:
    def build() -> Texture:
        grain = 0.5 * _noise(5, 5, seed, 0.6)
        return make_texture(ramp(grain, (-0.9, dark), (0.2, colour)), grain, 80, 0.45, 0.25)

    return build


def _stone() -> Texture:
    distance, edge, number = _paving(6, 41)
    relief = smoothstep(0.02, 0.09, edge)
    rough = _noise(7, 6, 42, 0.6)
    colour = ramp(0.5 * rough + 0.7 * number, (-1.2, "#5f5a53"), (0, "#8f8a80"), (1.1, "#bdb6a8"))
    return make_texture(colour * (0.25 + 0.75 * relief[..., None]), relief * 9 + rough * 2 + distance, 75, 0.08, 0.9)


def _wood() -> Texture:
    warp = 0.35 * _noise(3, 3, 51, 0.5, 5)
    rings = np.sin((np.linspace(0, 1, SIZE, endpoint=False)[:, None] * 9 + warp * 1.6) * 2 * np.pi)
    grain = _noise(60, 2, 52, 0.8, 14)
    colour = ramp(0.6 * rings + 0.5 * grain, (-1.2, "#4d2a12"), (-0.2, "#8a5526"), (0.6, "#b47a3c"), (1.3, "#d2a062"))
    return make_texture(colour, grain + rings, 70, 0.35, 0.35)


def _checker() -> Texture:
    i, j = np.indices((SIZE, SIZE)) * 8 // SIZE
    dark = ((i + j) % 2).astype(float)
    grain = 0.12 * _noise(6, 5, 61)
    colour = ramp(dark + grain, (-0.2, "#f6f3ea"), (0.2, "#ece6d8"), (0.8, "#2b2f38"), (1.2, "#1b1e25"))
    return make_texture(colour, grain, 100, 0.5, 0.1)


def _paving(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiling Worley cells: distance to the cell's point, distance to its edge (in cells), a random number per cell."""
    rng = np.random.default_rng(seed)
    jitter, numbers = rng.uniform(0.15, 0.85, (count, count, 2)), rng.uniform(-1, 1, (count, count))
    grid = np.indices((SIZE, SIZE)).transpose(1, 2, 0) * count / SIZE + 0.18 * _noise(8, 3, seed + 1)[..., None]
    base = np.floor(grid).astype(int)
    nearest_two, number = np.full((2, SIZE, SIZE), 9.0), np.zeros((SIZE, SIZE))
    for di, dj in np.ndindex(3, 3):
        cell = base + np.array([di - 1, dj - 1])
        key = tuple((cell % count).transpose(2, 0, 1))
        away = np.linalg.norm(grid - cell - jitter[key], axis=-1)
        closer = away < nearest_two[0]
        number = np.where(closer, numbers[key], number)
        nearest_two = np.sort(np.stack([*nearest_two, away]), axis=0)[:2]
    return nearest_two[0], nearest_two[1] - nearest_two[0], number


def _detail(values: np.ndarray, strength: float, scale: float, bump: float) -> Texture:
    """A grey texture of mean one, for multiplying."""
    return make_detail(_mean_one(np.clip(1 + strength * values, 0.05, 3)), values, scale, bump)


def make_detail(grey: np.ndarray, height: np.ndarray, scale: float, bump: float) -> Texture:
    """Build a texture that multiplies colours by (512, 512) values round one."""
    texture = make_texture(np.zeros((SIZE, SIZE, 3)), height, scale, 0.0, bump)
    level: np.ndarray = grey.astype(np.float32)
    levels = [level]
    while len(level) > 1:
        level = (level[0::2, 0::2] + level[1::2, 0::2] + level[0::2, 1::2] + level[1::2, 1::2]) / 4
        levels.append(level)
    texture.texels[:, :3] = np.concatenate([mip.reshape(-1) for mip in levels])[:, None]
    return texture


def _fur() -> Texture:
    return _detail(_noise(40, 3, 71, 0.8, 0.3) + 0.5 * _noise(6, 3, 72), 0.16, 45, 0.5)


def _hide() -> Texture:
    _, edge, _ = _paving(16, 74)
    return _detail(smoothstep(0, 0.16, edge) * 1.2 + 0.6 * _noise(6, 4, 75), 0.16, 50, 0.9)


def _scales() -> Texture:
    i, j = np.indices((SIZE, SIZE)) * 16 / SIZE
    j = j + 0.5 * (np.floor(i) % 2)
    shape = 1 - np.hypot((i % 1) - 0.1, ((j % 1) - 0.5) * 1.4)
    return _detail(shape, 0.3, 40, 1.2)


def _grain() -> Texture:
    return _detail(_noise(40, 4, 77, 0.8), 0.10, 60, 0.4)


def _bark() -> Texture:
    return _detail(_noise(24, 4, 78, 0.7, 0.12) + 0.4 * tiled_noise(SIZE, SIZE, 4, 4, 79), 0.4, 120, 1.4)


def _leaves() -> Texture:
    _, edge, number = _paving(24, 80)
    return _detail(0.8 * number + smoothstep(0, 0.3, edge), 0.45, 110, 1.6)


def _turf() -> Texture:
    blades = _noise(48, 2, 81, 0.8, 0.3) + _noise(48, 2, 82, 0.8, 3.3)
    return _detail(0.6 * blades + 0.7 * _noise(4, 4, 83), 0.3, 200, 1.0)


def _sand() -> Texture:
    warp = 0.5 * _noise(3, 3, 84)
    ripples = np.sin((np.linspace(0, 1, SIZE, endpoint=False)[:, None] * 14 + warp * 1.7) * 2 * np.pi)
    return _detail(
        0.35 * ripples * smoothstep(-0.6, 0.8, _noise(3, 2, 85)) + 0.5 * _noise(70, 2, 86, 0.9), 0.16, 240, 1.0
    )


def _drift() -> Texture:
    return _detail(_noise(3, 5, 87, 0.55, 2) * 1.5 + 0.25 * _noise(90, 1, 88), 0.05, 300, 1.0)


def _pavers() -> Texture:
    return _tiles(8, 5, 0.025, 89)


def _parquet() -> Texture:
    texture = _tiles(12, 3, 0.012, 90)
    grain = _noise(64, 2, 91, 0.7, 12).T
    for start, size in zip(texture.starts, SIZE >> np.arange(len(texture.starts)), strict=True):
        step = SIZE // size
        shrunk = grain.reshape(size, step, size, step).mean(axis=(1, 3)).reshape(-1, 1)
        texture.texels[start : start + size * size, :3] *= 1 + 0.10 * shrunk
    return texture


def _tiles(rows: int, columns: int, joint: float, seed: int) -> Texture:
    """Bricks in running bond, each of its own brightness."""
    i, j = np.indices((SIZE, SIZE)) / SIZE
    row = np.floor(i * rows).astype(int)
    across = j * columns + 0.5 * (row % 2)
    column = np.floor(across).astype(int) % columns
    number = np.random.default_rng(seed).uniform(-1, 1, (rows, columns))[row, column]
    edge = np.minimum(np.abs(i * rows % 1 - 0.5) * -1 + 0.5, (0.5 - np.abs(across % 1 - 0.5)) * rows / columns)
    flat = smoothstep(joint, 3 * joint, edge)
    rough = _noise(9, 5, seed + 1, 0.6)
    return make_detail(
        _mean_one((0.72 + 0.12 * number + 0.09 * rough) * (0.45 + 0.55 * flat)), flat * 5 + rough, 300, 1.0
    )


def _litter() -> Texture:
    _, edge, number = _paving(30, 92)
    return _detail(0.8 * number + 0.7 * smoothstep(0, 0.25, edge) + 0.6 * _noise(5, 3, 93), 0.3, 220, 1.2)


def _water() -> Texture:
    waves = _noise(7, 4, 94, 0.6, 0.6)
    return _detail(waves * 6, 0.012, 380, 1.0)


def _caustics() -> Texture:
    grey = np.zeros((SIZE, SIZE))
    for seed, count in ((95, 5), (97, 7)):
        _, edge, _ = _paving(count, seed)
        grey += np.exp(-edge * 11)
    ripples = np.sin((np.linspace(0, 1, SIZE, endpoint=False)[:, None] * 12 + 0.7 * _noise(3, 3, 99)) * 2 * np.pi)
    return make_detail(
        _mean_one(0.62 + 0.62 * grey + 0.05 * ripples + 0.05 * _noise(70, 2, 96)), ripples + _noise(6, 4, 98), 330, 1.0
    )


def _mean_one(values: np.ndarray) -> np.ndarray:
    return values / values.mean()


OBJECT_TEXTURES: dict[str, Callable[[], Texture]] = {
    "Sky": _sky,
    "Grass": _grass,
    "Asphalt": _asphalt,
    "Blue": _plain("#2a5fd0", "#153a94", 34),
    "Red": _plain("#d0322a", "#8f1712", 35),
    "Stone": _stone,
    "Wood": _wood,
    "Checker": _checker,
}
DETAILS: dict[str, Callable[[], Texture]] = {
    "fur": _fur,
    "hide": _hide,
    "scales": _scales,
    "grain": _grain,
    "bark": _bark,
    "leaves": _leaves,
    "turf": _turf,
    "sand": _sand,
    "drift": _drift,
    "pavers": _pavers,
    "parquet": _parquet,
    "litter": _litter,
    "water": _water,
    "caustics": _caustics,
}


@functools.cache
def texture(name: str) -> Texture:
    """Return an object texture or a detail texture by name; raises KeyError."""
    return (OBJECT_TEXTURES.get(name) or DETAILS[name])()
