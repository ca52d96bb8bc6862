"""Birds, fish and other animals that do not walk on four legs, and things; all look along +X and stand on z = 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from granary.synth.pug.world.content.coats import bands, paint, patches, tinted
from granary.synth.pug.world.shapes.mesh import Mesh, Skin
from granary.synth.pug.world.shapes.noise import cells, fractal, smoothstep
from granary.synth.pug.world.shapes.sdf import Body

SMOOTH = Skin("grain", 40, 0.1, 0.05, 0.05)
FEATHERS = Skin("fur", 26, 0.35, 0.3, 0.15)


def _penguin() -> Mesh:
    body = Body("#1f2530", 6)
    body.ball((0, 0, 42), (22, 24, 36)).ball((2, 0, 62), (19, 20, 26)).ball((4, 0, 88), (17, 17, 17))
    body.cone((19, 0, 88), (32, 0, 85), 4.4, 1.2, blend=2, colour="#f0932b", gloss=0.4)
    body.ball((-2, 25, 54), (9, 3.4, 26), (6, 0, -16), blend=3, mirror=True)
    body.ball((9, 11, 3.6), (15, 9, 3.6), blend=2, colour="#f0932b", mirror=True).cone((-16, 0, 16), (-28, 0, 6), 8, 3)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        dark = colours.max(axis=1) < 0.2
        belly = smoothstep(-2, 2, x - 4 - 0.018 * (np.abs(y) ** 2)) * (z < 78) * (z > 6) * (np.abs(y) < 21)
        cheek = np.hypot(y * 0 + np.abs(y) - 8.5, z - 89) < 6.8
        patch = smoothstep(9, 4, np.hypot(np.abs(y) - 13, z - 78)) * (x > 0)
        colours = paint(colours, belly * dark, "#f7f5ef")
        colours = paint(colours, cheek * (x > 12) * dark * 0.0, "#f7f5ef")
        return paint(colours, patch * dark, "#f5b841")

    body.bead((18, 8, 93), 3.3, "#f7f5ef", 0.5, mirror=True).eyes((20, 8.2, 93), 2.2)
    return body.mesh(1.25, coat, FEATHERS)


def _duck() -> Mesh:
    body = Body("#a89c8e", 6)
    body.ball((-6, 0, 40), (38, 23, 21)).ball((16, 0, 44), (20, 19, 19)).ball(
        (-34, 0, 47), (17, 12, 8), (22, 0, 0), colour="#3a312c"
    )
    body.chain([(24, 0, 52), (29, 0, 66), (32, 0, 78)], [11, 8.4, 9]).ball(
        (34, 0, 82), (13.5, 12, 12.5), colour="#1d6b3f"
    )
    body.ball((51, 0, 78), (12, 7, 2.6), (-6, 0, 0), blend=2.5, colour="#eeb02c", gloss=0.4)
    body.ball((-8, 20, 45), (27, 4.6, 13), (8, 4, 0), blend=2, colour="#857565", mirror=True)
    body.cone((2, 9, 22), (3, 9, 5), 3, 2.4, blend=2, colour="#e67e22", mirror=True)
    body.ball((9, 9, 2.6), (11, 7, 2.6), blend=2, colour="#e67e22", mirror=True)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        bill = (x > 44) & (z > 70)
        colours = paint(colours, smoothstep(68, 70, z) * (x < 46) * (x > 15), "#14603a")
        colours = paint(colours, (smoothstep(65.5, 66.5, z) - smoothstep(68.5, 69.5, z)) * ~bill * (x > 10), "#f4f1ea")
        breast = smoothstep(65.5, 63, z) * smoothstep(10, 20, x) * (z > 24)
        colours = paint(colours, breast, "#6e3a22")
        speculum = (np.abs(y) > 18) & (x < -14) & (x > -30) & (np.abs(z - 42) < 5)
        return paint(tinted(points, colours, 8, 0.16, 41), speculum, "#2c4fae")

    body.eyes((42.5, 9, 86), 2.2)
    return body.mesh(1.25, coat, FEATHERS)


def _flamingo() -> Mesh:
    body = Body("#ef8fa0", 5)
    body.ball((-4, 0, 70), (23, 14, 13.5), (8, 0, 0)).ball((-26, 0, 67), (13, 8, 6.5), (12, 0, 0), colour="#e76f87")
    body.ball((-6, 12, 72), (19, 4, 9), (6, 3, 0), blend=2, colour="#e8758c", mirror=True)
    body.chain(
        [(15, 0, 72), (27, 0, 76), (32, 0, 89), (24, 0, 101), (22, 0, 113), (29, 0, 122)], [8, 5, 4.2, 3.9, 3.9, 4.2]
    )
    body.ball((33, 0, 123), (8, 5.8, 6)).chain([(39, 0, 122), (46, 0, 118)], [3.6, 3.2], blend=2, colour="#f7d9d4")
    body.chain([(46, 0, 118), (50, 0, 111)], [3.1, 1.4], blend=1, colour="#231a1c", gloss=0.3)
    for y, knee in ((5, 34), (-5, 34)):
        body.chain([(0, y, 60), (-4, y, knee), (0, y, 3)], [2.6, 1.7, 1.5], blend=2, colour="#e5808f")
        body.ball((-4, y, knee), 2.5, blend=1, colour="#d9667a")
        body.ball((4, y, 1.6), (7, 4.6, 1.6), blend=1.5, colour="#d9667a")
    body.bead((36.6, 5.2, 125), 1.7, "#f4d35e", 0.8, mirror=True).bead(
        (37.4, 5.8, 125.2), 1.0, "#120d0a", 0.95, mirror=True
    )

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        return tinted(points, colours, 9, 0.18, 43)

    return body.mesh(1.15, coat, FEATHERS)


def _goldfish() -> Mesh:
    body = Body("#f2761b", 4, 0.55)
    body.ball((0, 0, 62), (34, 15, 22)).ball((16, 0, 62), (22, 14, 18)).cone((-22, 0, 62), (-40, 0, 63), 11, 5)
    fin = "#ffb35c"
    body.ball((-58, 0, 76), (22, 2, 11), (-32, 0, 0), blend=3, colour=fin).ball(
        (-58, 0, 50), (22, 2, 11), (32, 0, 0), blend=3, colour=fin
    )
    body.ball((-4, 0, 86), (22, 1.9, 12), (-14, 0, 0), blend=3, colour=fin).ball(
        (-14, 0, 42), (10, 1.8, 9), (34, 0, 0), blend=3, colour=fin
    )
    body.ball((10, 17, 52), (5, 12, 1.8), (25, 25, 32), blend=2, colour=fin, mirror=True)
    body.ball((37, 0, 59), (4, 4.4, 3.6), blend=2, colour="#ffcf9a")
    body.bead((27, 11.5, 68), 4.6, "#fff6e0", 0.8, mirror=True).eyes((28.6, 13.4, 68.4), 3)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        rays = (np.abs(y) < 3.2) & ((x < -42) | (z > 82) | (z < 42))
        along = np.arctan2(z - 62, -(x + 30)) * 40
        belly = smoothstep(56, 42, z) * (x > -34) * ~rays
        colours = paint(colours, 0.55 * bands(along, 3.2, 0.4) * rays, "#e8590c")
        colours = paint(colours, belly * 0.8, "#ffd9a0")
        gill = smoothstep(1.6, 0.6, np.abs(np.hypot(x - 27, (z - 61) * 0.9) - 13)) * (x < 20) * (np.abs(y) > 6)
        return paint(colours, gill * 0.7, "#b34a0a")

    return body.mesh(1.2, coat, Skin("scales", 34, 0.5, 0.1, 0.25))


def _turtle() -> Mesh:
    body = Body("#7c9a4a", 4)
    body.ball((-4, 0, 30), (40, 32, 27), blend=2, colour="#6a5a2c", gloss=0.25).ball(
        (-4, 0, 22), (41.5, 33.5, 7), blend=2, colour="#8a7838"
    )
    body.ball((-4, 0, 19), (36, 29, 8), blend=2, colour="#d8c98a")
    body.cone((32, 0, 26), (47, 0, 37), 9, 9).ball((53, 0, 41), (12, 10, 9.5)).ball((60, 0, 38), (6, 7, 5), blend=3)
    for x, turn in ((24, 40), (-28, 140)):
        body.ball((x, 27, 14), (15, 8, 7), (-18, turn, 0), mirror=True)
        body.cone(
            (x + 7 * np.cos(np.radians(turn)), 32, 11), (x + 9 * np.cos(np.radians(turn)), 34, 4), 6.6, 5, mirror=True
        )
    body.cone((-42, 0, 18), (-54, 0, 12), 5, 1.4).eyes((58, 7.6, 45.5), 2.3)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        shell = (np.linalg.norm((points - (-4, 0, 30)) / (40, 32, 27), axis=1) < 1.04) & (z > 27) & (x < 37)
        flat = np.column_stack([(x + 4) / 17, y / 17, np.full(len(x), 0.5)])
        nearest, second = cells(flat + 0.03 * fractal(points / 8, 2, 45)[:, None], 47)
        colours = paint(colours, shell * smoothstep(0.55, 0.1, nearest), "#a8893f")
        colours = paint(colours, shell * smoothstep(0.13, 0.05, second - nearest), "#2f2a14")
        skin = ~shell & (z < 60) & ((x > 30) | (np.abs(y) > 24) | (x < -40))
        spots_ = patches(points, 3.2, 49)
        return paint(colours, skin * (1 - spots_) * 0.55, "#3c5a22")

    return body.mesh(1.25, coat, Skin("hide", 34, 0.5, 0.05, 0.1))


def _frog() -> Mesh:
    body = Body("#5fae3a", 6, 0.45)
    body.ball((-6, 0, 34), (32, 25, 20), (24, 0, 0)).ball((22, 0, 46), (22, 25, 15)).ball(
        (10, 0, 24), (20, 20, 14), colour="#e9e8b0"
    )
    body.ball((22, 15, 62), (8.5, 8.5, 8.5), blend=4, mirror=True)
    body.ball((-18, 28, 22), (24, 10, 13), (24, -18, 0), mirror=True).ball(
        (-10, 36, 8), (24, 7, 6), (-6, 22, 0), mirror=True
    )
    body.ball((12, 44, 3.4), (17, 7, 3.2), (0, 24, 0), blend=2, mirror=True)
    body.cone((18, 22, 30), (26, 28, 6), 6.4, 4.6, mirror=True).ball(
        (32, 29, 3.2), (10, 6.4, 3), (0, 16, 0), blend=2, mirror=True
    )
    for spread in (-7, 0, 7):
        body.bead((41 - abs(spread) * 0.3, 30.5 + spread, 2.7), 2.6, "#8cc85a", 0.4, mirror=True)
        body.bead((27 - abs(spread) * 0.3, 49 + spread, 2.7), 2.6, "#8cc85a", 0.4, mirror=True)
    body.bead((27, 17.5, 64), 6.3, "#e9c537", 0.95, mirror=True).bead((31, 19.4, 65), 3.5, "#0f0c06", 0.95, mirror=True)
    body.bead((33.4, 20.4, 67.2), 1.1, "#ffffff", 0.2, mirror=True)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        blots = smoothstep(0.22, 0.34, fractal(points / 12, 2, 53)) * (normals[:, 2] > -0.1)
        mouth = smoothstep(0.9, 0.3, np.abs(z - 43.5 - 0.004 * y**2)) * (x > 22) * (normals[:, 0] > 0.1)
        pale = smoothstep(42, 34, z) * (x > 16) * (np.abs(y) < 20)
        colours = paint(paint(colours, pale, "#e9e8b0"), blots * 0.75, "#2f6e22")
        return paint(colours, mouth, "#24471a")

    return body.mesh(1.3, coat, SMOOTH)


def _crab() -> Mesh:
    body = Body("#d9482b", 3, 0.45)
    body.ball((0, 0, 28), (26, 37, 14)).ball((4, 0, 23), (22, 33, 10), colour="#f2b48a")
    for x, fan in ((13, 16), (3, 3), (-8, -12), (-18, -26)):
        knee, foot = (x + fan, 54, 36), (x + 1.5 * fan, 72 - 0.2 * abs(fan), 2)
        body.chain([(x, 28, 26), knee, foot], [5, 4.2, 1.4], blend=2, mirror=True)
    body.chain([(16, 30, 28), (34, 46, 32), (48, 38, 36)], [5.4, 5.4, 6], blend=2, mirror=True)
    body.ball((58, 34, 41), (15, 8, 9), (14, -18, 0), blend=2, mirror=True)
    body.chain([(64, 33, 48), (76, 25, 47), (80, 17, 43)], [5, 3.6, 1.2], blend=2, mirror=True, colour="#e86a4a")
    body.chain([(64, 30, 36), (74, 23, 35), (79, 16, 38)], [4.4, 3, 1], blend=2, mirror=True, colour="#f08c66")
    body.cone((20, 8, 36), (25, 9, 50), 2.4, 2, blend=1.5, mirror=True).eyes((26.5, 9.2, 52.5), 4)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        speckle = smoothstep(0.25, 0.4, fractal(points / 6, 2, 57)) * (normals[:, 2] > 0)
        return paint(tinted(points, colours, 14, 0.2, 59), speckle * 0.5, "#8f2415")

    return body.mesh(1.2, coat, SMOOTH)


BIRDS_AND_OTHERS: dict[str, Callable[[], Mesh]] = {
    "Crab": _crab,
    "Duck": _duck,
    "Flamingo": _flamingo,
    "Frog": _frog,
    "Goldfish": _goldfish,
    "Penguin": _penguin,
    "Turtle": _turtle,
}
