"""What stands about in the worlds: trees, rocks, cacti, houses, pictures on a wall."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from granary.synth.pug.world.content.coats import bands, paint, tinted
from granary.synth.pug.world.shapes.colours import linear
from granary.synth.pug.world.shapes.geometry import rotation_matrix
from granary.synth.pug.world.shapes.mesh import Mesh, Skin, join, make_mesh, placed
from granary.synth.pug.world.shapes.noise import fractal
from granary.synth.pug.world.shapes.sdf import Body

LEAVES = Skin("leaves", 130, 0.5, 0.15, 0.35)
BARK = Skin("bark", 160, 0.4)
ROCK = Skin("hide", 220, 0.6)


@functools.cache
def broadleaf(leaf: str, seed: int) -> tuple[Mesh, Mesh]:
    """A tree 100 units high: trunk, crown."""
    rng = np.random.default_rng(seed)
    trunk = Body("#6b4d33", 4).chain([(0, 0, -4), (1, 1, 30), (0, 0, 55)], [6, 4, 2.4])
    trunk.cone((0, 1, 32), (14, 8, 56), 2.4, 1.2).cone((0, 0, 34), (-13, -8, 58), 2.4, 1.2)
    crown = Body(leaf, 6).ball((0, 0, 70), (24, 24, 24))
    for k in range(9):
        angle, height = 2.4 * k + rng.uniform(-0.4, 0.4), rng.uniform(52, 88)
        reach = rng.uniform(12, 24) * (1.1 - abs(height - 64) / 50)
        crown.ball((reach * np.cos(angle), reach * np.sin(angle), height), rng.uniform(10, 15))
    return trunk.mesh(4), crown.mesh(4.2, _leafy(seed))


@functools.cache
def pine(leaf: str, snow: bool, seed: int) -> tuple[Mesh, Mesh]:
    """A conifer 100 units high: trunk, crown; with snow on its upper sides or not."""
    trunk = Body("#5b4330", 3).cone((0, 0, -4), (0, 0, 50), 4.5, 2.2)
    crown = Body(leaf, 2)
    rng = np.random.default_rng(seed)
    for k in range(6):
        z, r = 22 + 13 * k, 25 - 3.9 * k
        crown.cone((0, 0, z), (0, 0, z + 17), r, 1, blend=2)
        for angle in np.arange(7) * 2 * np.pi / 7 + rng.uniform(0, 1):
            crown.ball((r * np.cos(angle), r * np.sin(angle), z - 3), (0.34 * r, 0.34 * r, 4), blend=4)
    crown.cone((0, 0, 92), (0, 0, 102), 4, 0.8)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        colours = tinted(points, colours, 7, 0.35, seed)
        cover = np.clip((normals[:, 2] - 0.05 + 0.25 * fractal(points / 6, 2, seed)) * 3, 0, 1) * snow
        return paint(colours, cover, "#f2f6fb")

    return trunk.mesh(4), crown.mesh(4.2, coat)


@functools.cache
def palm(seed: int) -> tuple[Mesh, Mesh]:
    """A palm 100 units high: trunk, fronds."""
    trunk = Body("#8a6a48", 2).chain([(0, 0, -4), (5, 0, 28), (8, 0, 58), (8, 0, 88)], [4.4, 3, 2.6, 2.4])
    for k in range(4):
        trunk.ball((8 + 3 * np.cos(k * 1.6), 3 * np.sin(k * 1.6), 86), 2.6, colour="#5d3f22")
    fronds = Body("#4d8a35", 1)
    for k in range(11):
        a, rise = k * 2 * np.pi / 11, 8 * np.sin(k * 2.1)
        path = [
            (8 + r * np.cos(a), r * np.sin(a), 88 + rise * r / 30 + 9 * np.sin(r / 13) - 0.016 * r * r)
            for r in (0, 12, 24, 36)
        ]
        for start, end in itertools.pairwise(path):
            middle = tuple((np.array(start) + end) / 2)
            slope = float(np.degrees(np.arctan2(end[2] - start[2], 12)))
            fronds.ball(middle, (8.5, 4.2, 0.9), (slope, float(np.degrees(a)), 0), blend=2)
    return trunk.mesh(3), fronds.mesh(2.0, _leafy(seed))


@functools.cache
def acacia(seed: int) -> tuple[Mesh, Mesh]:
    """An acacia 100 units wide: trunk, flat crown."""
    trunk = Body("#5a4433", 4).chain([(0, 0, -4), (2, 0, 26), (0, 0, 42)], [4.4, 3.2, 2.4])
    crown = Body("#6f7a2c", 5)
    for k in range(5):
        a = k * 2.5 + seed
        tip = (26 * np.cos(a), 26 * np.sin(a), 58.0)
        trunk.cone((0, 0, 36), tip, 2.4, 1)
        crown.ball((tip[0], tip[1], 62), (21, 21, 5.5)).ball((tip[0] * 1.4, tip[1] * 1.4, 60), (12, 12, 4))
    crown.ball((0, 0, 66), (27, 27, 6))
    return trunk.mesh(3.4), crown.mesh(3.6, _leafy(seed))


@functools.cache
def cactus(seed: int) -> Mesh:
    """A saguaro 100 units high."""
    body = Body("#4d7a45", 3).cone((0, 0, -4), (0, 0, 90), 9, 8)
    body.chain([(0, 0, 38), (0, 20, 42), (0, 23, 52), (0, 23, 74)], [5.5, 6, 6, 5.5]).chain(
        [(0, 0, 52), (0, -17, 55), (0, -19, 64), (0, -19, 82)], [5, 5.4, 5.4, 5]
    )

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        angle = np.arctan2(normals[:, 1], normals[:, 0]) * 12 / np.pi
        return paint(tinted(points, colours, 12, 0.2, seed), bands(angle, 1.0, 0.4) * 0.55, "#24452a")

    return body.mesh(2.2, coat)


@functools.cache
def rock(colour: str, seed: int) -> Mesh:
    """A boulder about 100 units wide."""
    rng = np.random.default_rng(seed)
    body = Body(colour, 4)
    for _ in range(5):
        x, y = rng.uniform(-18, 18, 2)
        turn = tuple(rng.uniform(-40, 40, 3))
        body.box((x, y, rng.uniform(2, 16)), tuple(rng.uniform(16, 32, 3)), 7, turn)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        return tinted(points, colours, 14, 0.45, seed) * (0.75 + 0.35 * normals[:, 2:])

    return body.mesh(4, coat)


@functools.cache
def coral(colour: str, seed: int) -> Mesh:
    """A branching coral about 100 units high."""
    rng = np.random.default_rng(seed)
    body = Body(colour, 4).ball((0, 0, 0), (16, 16, 8))
    tips = [((0.0, 0.0, 0.0), np.array([0, 0, 1.0]), 6.5)]
    for _ in range(3):
        grown = []
        for start, way, radius in tips:
            for _ in range(3):
                turn = way + rng.normal(0, 0.55, 3)
                turn[2] = abs(turn[2]) + 0.2
                turn /= np.linalg.norm(turn)
                end = tuple(np.array(start) + turn * rng.uniform(20, 32))
                body.cone(start, end, radius, radius * 0.75)
                grown.append((end, turn, radius * 0.72))
        tips = grown
    return body.mesh(3.6, lambda p, n, c: paint(tinted(p, c, 9, 0.2, seed), np.clip(p[:, 2] / 140, 0, 0.6), "#fff0e0"))


@functools.cache
def kelp(seed: int) -> Mesh:
    """A strand of kelp 100 units high."""
    body = Body("#5d7a2a", 1.5)
    wave = [(5 * np.sin(z / 13 + seed), 5 * np.cos(z / 17 + seed), float(z)) for z in range(-4, 101, 12)]
    body.chain(wave, [1.2] * len(wave))
    for k, (x, y, z) in enumerate(wave):
        a = 2.4 * k + seed
        body.ball((x + 7 * np.cos(a), y + 7 * np.sin(a), z + 5), (8, 3, 1.2), (35, float(np.degrees(a)), 0), blend=1)
    return body.mesh(2.2, lambda p, n, c: tinted(p, c, 10, 0.35, seed))


def _leafy(seed: int) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        shade = 0.72 + 0.3 * normals[:, 2:] + 0.35 * fractal(points / 6, 3, seed)[:, None]
        return colours * np.clip(shade, 0.25, 1.6)

    return coat


def scatter(
    models: list[Mesh],
    count: int,
    ring: tuple[float, float],
    size: tuple[float, float],
    seed: int,
    sink: float = 0.02,
    ground: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[Mesh]:
    """Place copies at random in a ring round the origin; the same seed, the same places.

    `ring` is its inner and its outer radius in cm; `size` is the least and the most a model of 100 cm is enlarged;
    `ground` gives heights of points (n, 2); `sink` is the share of the size that is under it.
    """
    rng = np.random.default_rng(seed)
    result = []
    inner, outer = ring
    for _ in range(count):
        radius, angle = np.sqrt(rng.uniform(inner**2, outer**2)), rng.uniform(0, 2 * np.pi)
        scale, yaw, model = rng.uniform(*size), rng.uniform(0, 360), models[rng.integers(len(models))]
        spot = np.array([radius * np.cos(angle), radius * np.sin(angle)])
        height = 0.0 if ground is None else float(ground(spot[None])[0])
        place = np.array([*spot, height - sink * 100 * scale])
        result.append(placed(model, scale * rotation_matrix(0, yaw, 0), place))
    return result


def forest(trees: Sequence[tuple[Mesh, Mesh]], *where, **options) -> dict[str, Mesh]:
    """Scatter trees; returns their trunks and crowns as two meshes."""
    trunks = join(scatter([trunk for trunk, _ in trees], *where, **options), BARK)
    crowns = join(scatter([crown for _, crown in trees], *where, **options), LEAVES)
    return {"Trunks": trunks, "Trees": crowns}


def tufts(
    count: int,
    inner: float,
    outer: float,
    height: float,
    colours: tuple[str, str],
    seed: int,
    flowers: Sequence[str] = (),
) -> Mesh:
    """Blades of grass in tufts round the origin, denser near it, some of them with a flower."""
    rng = np.random.default_rng(seed)
    radius, angle = inner + (outer - inner) * rng.random(count) ** 1.6, rng.uniform(0, 2 * np.pi, count)
    centres = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    blades = 9
    foot = np.repeat(centres, blades, axis=0) + rng.normal(0, 3.5, (count * blades, 2))
    lean, turn = rng.uniform(0.1, 0.75, len(foot)), rng.uniform(0, 2 * np.pi, len(foot))
    tall = height * rng.uniform(0.5, 1.1, len(foot))
    way = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    side = np.stack([-way[:, 1], way[:, 0]], axis=1) * 0.9
    points = np.zeros((len(foot), 5, 3))
    points[:, 0, :2], points[:, 1, :2] = foot - side, foot + side
    middle = foot + way * (0.3 * lean * tall)[:, None]
    points[:, 2, :2], points[:, 3, :2] = middle - side * 0.75, middle + side * 0.75
    points[:, 2:4, 2] = 0.6 * tall[:, None]
    points[:, 4, :2], points[:, 4, 2] = foot + way * (lean * tall)[:, None], tall
    low, high = linear(colours[0]), linear(colours[1])
    rise = np.array([0, 0, 0.55, 0.55, 1])[None, :, None]
    paints = (low + (high - low) * rise) * rng.uniform(0.7, 1.2, (len(foot), 1, 1))
    normals = np.concatenate([np.repeat(way[:, None] * 0.4, 5, axis=1), np.full((len(foot), 5, 1), 0.9)], axis=2)
    faces = np.array([[0, 1, 3], [0, 3, 2], [2, 3, 4]])
    triangles = (np.arange(len(foot))[:, None, None] * 5 + faces).reshape(-1, 3)
    grass = make_mesh(
        points.reshape(-1, 3), triangles, paints.reshape(-1, 3), normals.reshape(-1, 3), skin=Skin(wrap=0.4)
    )
    return join([grass, _flowers(centres, height, flowers, rng)], Skin(wrap=0.4)) if flowers else grass


def _flowers(centres: np.ndarray, height: float, colours: Sequence[str], rng: np.random.Generator) -> Mesh:
    blooms = centres[: len(centres) // 3]
    heads = np.column_stack([blooms, height * rng.uniform(0.8, 1.25, len(blooms))])
    shape = np.array(
        [[1, 0, 0.4], [0.3, 0.95, 0.4], [-0.8, 0.6, 0.4], [-0.8, -0.6, 0.4], [0.3, -0.95, 0.4], [0, 0, 0], [0, 0, 0.75]]
    )
    ring = np.arange(5)
    faces = np.concatenate([np.stack([ring, (ring + 1) % 5, np.full(5, tip)], 1) for tip in (5, 6)])
    points = heads[:, None] + shape * rng.uniform(2.2, 3.8, (len(heads), 1, 1))
    table = np.stack([linear(colour) for colour in colours])[rng.integers(len(colours), size=len(heads))]
    paints = np.repeat(table[:, None], 7, axis=1)
    paints[:, 6] = linear("#f3c32a")
    triangles = (np.arange(len(heads))[:, None, None] * 7 + faces).reshape(-1, 3)
    return make_mesh(
        points.reshape(-1, 3), triangles, paints.reshape(-1, 3), np.tile([0.0, 0, 1], (points.size // 3, 1))
    )


def slab(low: Sequence[float], high: Sequence[float], colour: str, gloss: float = 0.0, glow: float = 0.0) -> Mesh:
    """A box between two corners, with flat faces."""
    low_, high_ = np.array(low, float), np.array(high, float)
    points, normals = [], []
    for axis in range(3):
        one, two = (k for k in range(3) if k != axis)
        for side in (0, 1):
            face = np.tile(low_, (4, 1))
            face[:, axis] = (low_, high_)[side][axis]
            face[[1, 2], one], face[[2, 3], two] = high_[one], high_[two]
            points.append(face)
            normals.append(np.tile(np.eye(3)[axis] * (2 * side - 1), (4, 1)))
    quads = np.arange(24).reshape(6, 4)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    colours = np.tile(linear(colour), (24, 1))
    return make_mesh(np.concatenate(points), triangles, colours, np.concatenate(normals), gloss, glow)


def house(width: float, depth: float, height: float, wall: str, roof: str, seed: int, lit: float = 0.0) -> list[Mesh]:
    """A town house with rows of windows, `lit` of which glow; its front looks along -X, its middle is at the origin."""
    rng = np.random.default_rng(seed)
    x, y = depth / 2, width / 2
    pieces = [
        slab((-x, -y, -20), (x, y, height), wall),
        slab((-x - 25, -y - 25, height), (x + 25, y + 25, height + 35), roof),
    ]
    pieces.append(slab((-x - 8, -y - 4, 0), (x, y + 4, 70), "#8c8378"))
    floors, columns = max(2, round(height / 330)), max(2, round(width / 260))
    for floor in range(floors):
        for column in range(columns):
            middle, sill = -y + (column + 0.5) * width / columns, 110 + floor * (height - 90) / floors
            glow = float(rng.random() < lit) * rng.uniform(0.7, 2.2)
            glass = "#ffd08a" if glow else "#2b3a4a"
            pieces.append(slab((-x - 7, middle - 58, sill - 8), (-x, middle + 58, sill + 168), "#efe8da"))
            pieces.append(slab((-x - 10, middle - 46, sill), (-x, middle + 46, sill + 158), glass, 0.9, glow))
            pieces.append(slab((-x - 14, middle - 64, sill - 18), (-x, middle + 64, sill - 6), "#d8d0c0"))
    return pieces


def lamp(lit: bool) -> list[Mesh]:
    """A street lamp four metres high."""
    post = (
        Body("#23292b", 1, 0.4)
        .cone((0, 0, 0), (0, 0, 36), 1.1, 0.8)
        .cone((0, 0, 0), (0, 0, 4), 2.2, 1.4)
        .ball((0, 0, 41), (2.2, 2.2, 0.9))
    )
    globe = Body("#ffe6b0", 1, 0.6).ball((0, 0, 38), 2.7)
    head = globe.mesh(0.7)
    glowing = Mesh(**{**head.__dict__, "glow": np.full(len(head.vertices), 3.0 if lit else 0.15, np.float32)})
    return [placed(mesh, np.eye(3) * 10, np.zeros(3)) for mesh in (post.mesh(0.5), glowing)]


def painting(width: float, height: float, seed: int) -> list[Mesh]:
    """A framed abstract picture in the plane x = 0 that looks along -X; its middle is at the origin."""
    rng = np.random.default_rng(seed)
    rows, columns = 60, 80
    v, u = np.meshgrid(np.linspace(-0.5, 0.5, rows), np.linspace(-0.5, 0.5, columns), indexing="ij")
    palette = np.stack(
        [
            linear(c)
            for c in rng.choice(
                ["#c8402f", "#e2a93b", "#2f5f8f", "#f0e6d2", "#1f2a38", "#5a8f6a", "#d98a6a"], 5, replace=False
            )
        ]
    )
    flat = np.column_stack([u.ravel() * 3, v.ravel() * 3, np.full(u.size, seed * 1.7)])
    value = (fractal(flat, 3, seed) * 0.5 + 0.5) * 4.99
    colours = palette[np.clip(value.astype(int), 0, 4)]
    points = np.column_stack([np.full(u.size, -4.0), u.ravel() * width, v.ravel() * height])
    i, j = (g.ravel() for g in np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij"))
    corner = i * columns + j
    quads = np.stack([corner, corner + 1, corner + columns + 1, corner + columns], 1)
    canvas = make_mesh(
        points,
        np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]),
        colours,
        np.tile([-1.0, 0, 0], (len(points), 1)),
        0.15,
    )
    w, h = width / 2, height / 2
    gold, rim = "#b08a3e", 14
    frame = [
        slab((-10, -w - rim, h), (0, w + rim, h + rim), gold, 0.6),
        slab((-10, -w - rim, -h - rim), (0, w + rim, -h), gold, 0.6),
        slab((-10, -w - rim, -h), (0, -w, h), gold, 0.6),
        slab((-10, w, -h), (0, w + rim, h), gold, 0.6),
    ]
    return [canvas, *frame]
