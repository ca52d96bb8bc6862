"""Things: a car, a chair, a teapot and others; all look along +X and stand on z = 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from granary.synth.pug.world.content.coats import bands, paint, tinted
from granary.synth.pug.world.shapes.mesh import Mesh, Skin
from granary.synth.pug.world.shapes.noise import cells, smoothstep
from granary.synth.pug.world.shapes.sdf import Body

PLAIN = Skin("grain", 60, 0.05)


def _car() -> Mesh:
    body = Body("#c9302c", 2.5, 0.9)
    body.box((0, 0, 27), (60, 25, 13), 9).box((44, 0, 30), (18, 23, 9), 8, (-4, 0, 0), blend=6)
    body.box((-6, 0, 46), (31, 20.5, 15), 11, blend=5)
    for x in (36, -36):
        body.tube((x, 30, 15), (x, 15, 15), 15.5, 0.5, cut=True, blend=1, colour="#161616", gloss=0.1, mirror=True)
        body.tube((x, 27, 13), (x, 16, 13), 13, 3.5, blend=0, colour="#1b1b1d", gloss=0.15, mirror=True)
        body.tube((x, 27.6, 13), (x, 20, 13), 7.2, 1, blend=0, colour="#c8ccd2", gloss=0.9, mirror=True)
    body.box((60, 0, 20), (3, 24, 4), 2.4, blend=0.5, colour="#c8ccd2").box(
        (-60, 0, 20), (3, 24, 4), 2.4, blend=0.5, colour="#c8ccd2"
    )
    body.bead((59.6, 16, 29), 4.6, "#fff6d8", 0.9, mirror=True).bead((-59, 17, 30), 3.4, "#7a0d0d", 0.9, mirror=True)
    body.ball((18, 25, 45), (2.6, 3.2, 2.2), blend=0.8, mirror=True)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        red = (colours[:, 0] > 0.35) & (colours[:, 1] < 0.12)
        cabin = (z > 41) & (z < 56)
        sides = cabin & (np.abs(y) > 17) & (np.abs(x + 6) < 25) & (np.abs(x + 7) > 1.6) & (np.abs(normals[:, 1]) > 0.5)
        ends = cabin & (np.abs(y) < 16.5) & (np.abs(normals[:, 0]) > 0.45) & (np.abs(x + 6) > 19)
        return paint(colours, (sides | ends) * red, "#1a2630")

    return body.mesh(1.15, coat, Skin())


def _chair() -> Mesh:
    wood = "#a8673a"
    body = Body(wood, 1.2, 0.35)
    body.box((2, 0, 46), (25, 25, 3), 2.6).box((4, 0, 50.5), (22, 22, 4), 3.8, colour="#2f7f86", gloss=0.0, blend=0.5)
    for x in (22, -18):
        body.cone((x, 20, 45), (x + np.sign(x) * 3, 22, 2.2), 3, 2.2, mirror=True)
    body.cone((-19, 20, 46), (-29, 20, 104), 2.8, 2.4, mirror=True)
    body.box((-28, 0, 98), (2.2, 22, 6), 2, (-10, 0, 0)).box((-25, 0, 79), (1.6, 20, 3), 1.4, (-10, 0, 0)).box(
        (-22.6, 0, 65), (1.6, 20, 3), 1.4, (-10, 0, 0)
    )
    body.cone((22, 20, 22), (-20, 20, 22), 1.6, mirror=True).cone((0, 20, 22), (0, -20, 22), 1.6)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        wooden = colours[:, 0] > colours[:, 2]
        grain = bands(points[:, 0] * 0.7 + points[:, 1] * 0.5 + points[:, 2] * 0.16, 3.4, 0.4) * 0.3
        return paint(tinted(points, colours, 10, 0.14, 61), grain * wooden, "#5a3116")

    return body.mesh(1.1, coat, PLAIN)


def _teapot() -> Mesh:
    body = Body("#f4f1e8", 3, 0.85)
    body.ball((0, 0, 36), (38, 38, 34)).tube((0, 0, 2), (0, 0, 8), 24, 2)
    body.chain([(30, 0, 32), (50, 0, 42), (60, 0, 62)], [9, 6, 4.6], blend=6).cone(
        (60, 0, 62), (64, 0, 67), 3, 3, cut=True, blend=0.5, colour="#3a2c22"
    )
    body.ring((-40, 0, 42), 18, 4.2, (0, 0, 90), blend=4)
    body.ball((0, 0, 64), (24, 24, 9), blend=1).ball((0, 0, 76), 6.4, blend=2, colour="#2d5fa8")

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        angle = np.arctan2(y, x)
        belt = smoothstep(1.6, 0.9, np.abs(z - 52)) + smoothstep(1.4, 0.8, np.abs(z - 19))
        flat = np.column_stack([angle * 5.5 / np.pi * 2, z / 11, np.zeros(len(x))])
        nearest, _ = cells(flat, 63)
        petals = (nearest < 0.34) & (nearest > 0.12) & (np.abs(z - 35.5) < 14)
        seed = nearest <= 0.12
        body_only = (np.hypot(x, y) < 40) & (np.abs(z - 36) < 30)
        colours = paint(colours, (belt + petals).clip(0, 1) * body_only, "#2d5fa8")
        return paint(colours, seed * (np.abs(z - 35.5) < 14) * body_only, "#e0a82e")

    return body.mesh(1.1, coat, Skin())


def _mushroom() -> Mesh:
    body = Body("#f3ead8", 4, 0.1)
    body.cone((0, 0, 10), (0, 0, 62), 15, 10).ball((0, 0, 7), (19, 19, 8)).ring((0, 0, 50), 10, 3.4, blend=3)
    body.ball((0, 0, 68), (48, 48, 34), blend=3, colour="#c8281e", gloss=0.6)
    body.ball((0, 0, 50), (52, 52, 17), cut=True, blend=4, colour="#eadfc6", gloss=0)
    body.cone((0, 0, 40), (0, 0, 70), 11, 9.5, blend=3).ring((0, 0, 48), 10.5, 3, blend=2)
    rng = np.random.default_rng(65)
    for k in range(26):
        up, around = 0.12 + 0.85 * (k + 0.5) / 26, k * 2.39996 + rng.uniform(-0.3, 0.3)
        flat = np.sqrt(1 - up * up)
        body.ball(
            (47.6 * flat * np.cos(around), 47.6 * flat * np.sin(around), 68 + 33.6 * up),
            rng.uniform(3, 6),
            blend=1.2,
            colour="#fbf6ea",
            gloss=0.1,
        )

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        under = (normals[:, 2] < -0.3) & (points[:, 2] > 50) & (np.hypot(points[:, 0], points[:, 1]) > 13)
        gills = bands(np.arctan2(points[:, 1], points[:, 0]) * 30, 3.4, 0.4)
        return paint(paint(colours, under, "#efe4cc"), under * gills * 0.5, "#a8977a")

    return body.mesh(1.35, coat, PLAIN)


def _sailboat() -> Mesh:
    body = Body("#2b5c8f", 2, 0.6)
    body.ball((0, 0, 26), (60, 21, 24)).box((0, 0, 54), (70, 40, 25), 1, cut=True, blend=1, colour="#b98a52", gloss=0.3)
    body.ball((0, 0, 31), (52, 16, 16), cut=True, blend=1, colour="#b98a52", gloss=0.3)
    body.cone((6, 0, 14), (6, 0, 132), 2.2, 1.4, blend=0.5, colour="#8a5a30").cone(
        (6, 0, 42), (-46, 0, 42), 1.5, blend=0.5, colour="#8a5a30"
    )
    for k in range(24):
        t = (k + 0.5) / 24
        body.cone(
            (3, 2 * np.sin(np.pi * t) * 1.6, 45 + 80 * t),
            (-44 * (1 - t) + 2, 5 * np.sin(np.pi * t), 45 + 80 * t),
            2.1,
            blend=2.5,
            colour="#f8f4ea",
            gloss=0,
        )
        body.cone(
            (9, 1, 44 + 74 * t),
            (9 + 44 * (1 - t), -4 * np.sin(np.pi * t), 44 + 74 * t),
            2,
            blend=2.5,
            colour="#e2503c",
            gloss=0,
        )
    body.ball((6, 0, 133), 2.6, blend=0, colour="#e0b030", gloss=0.8)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        hull = (points[:, 2] < 29) & (colours[:, 2] > 0.15)
        return paint(colours, hull * smoothstep(1.4, 0.9, np.abs(points[:, 2] - 22)), "#f8f4ea")

    return body.mesh(1.25, coat, PLAIN)


def _airplane() -> Mesh:
    body = Body("#f3f4f6", 3, 0.8)
    body.cone((-46, 0, 48), (36, 0, 42), 6, 13).ball((44, 0, 42), (18, 12.6, 12.6))
    body.ball((4, 32, 40), (13, 44, 2.6), (0, 8, 4), blend=3, colour="#2676c8", mirror=True)
    body.ball((-48, 13, 52), (8, 20, 2), (0, 10, 0), blend=2, colour="#2676c8", mirror=True).ball(
        (-50, 0, 64), (9, 2.2, 19), (-18, 0, 0), blend=2, colour="#2676c8"
    )
    body.ball((20, 0, 54), (17, 8.6, 9), blend=1, colour="#1c2a38", gloss=0.95)
    body.tube((60, 0, 42), (66, 0, 42), 3.4, 1.4, blend=0.5, colour="#e0b030")
    body.ball((64, 0, 42), (1.4, 3.6, 24), (0, 0, 25), blend=0.5, colour="#7a4a26")
    body.cone((12, 9, 36), (14, 17, 12), 1.8, blend=1.5, colour="#8d949c", mirror=True)
    body.tube((14, 15, 9), (14, 20, 9), 9, 2.4, blend=0, colour="#1b1b1d", gloss=0.2, mirror=True)
    body.cone((-46, 0, 44), (-50, 0, 30), 1.4, blend=1, colour="#8d949c").tube(
        (-50, -2, 27), (-50, 2, 27), 4.6, 1.4, blend=0, colour="#1b1b1d"
    )
    body.cone((-50, 0, 26), (-50, 0, 26), 0.5)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        white = colours.min(axis=1) > 0.6
        line = smoothstep(2.4, 1.8, np.abs(points[:, 2] - 45 + 0.07 * points[:, 0])) * (np.abs(points[:, 1]) > 3)
        return paint(colours, line * white, "#d23b30")

    return body.mesh(1.2, coat, Skin())


THINGS: dict[str, Callable[[], Mesh]] = {
    "Airplane": _airplane,
    "Car": _car,
    "Chair": _chair,
    "Mushroom": _mushroom,
    "Sailboat": _sailboat,
    "Teapot": _teapot,
}
