"""Four-legged animals, each a body of blended parts about a metre long, standing on z = 0 and looking along +X."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from granary.synth.pug.world.content.coats import bands, paint, patches, spots, stripes, tinted
from granary.synth.pug.world.shapes.mesh import Mesh, Skin
from granary.synth.pug.world.shapes.sdf import Body

CELL = 1.25  # cm between corners of a mesh
FUR = Skin("fur", 40, 0.35, 0.35, 0.15)
HIDE = Skin("hide", 42, 0.5, 0.08, 0.1)


def _elephant() -> Mesh:
    body = Body("#8f8c8e", 7)
    body.ball((-8, 0, 62), (42, 27, 29)).ball((-30, 0, 62), (22, 25, 28))
    body.chain([(28, 0, 72), (44, 0, 80)], [22, 19]).ball((48, 0, 82), (18, 17, 19))
    body.chain([(60, 0, 78), (69, 0, 58), (70, 0, 34), (76, 0, 18), (85, 0, 17)], [9, 7, 5, 4, 3.4], blend=4)
    body.ball((35, 27, 80), (4, 19, 23), (0, -28, 14), blend=3, mirror=True, colour="#9b9496")
    body.cone((20, 15, 45), (21, 15, 9), 11, 9.5, mirror=True).cone((-30, 15, 45), (-29, 15, 9), 12, 9.5, mirror=True)
    body.cone((-51, 0, 70), (-57, 0, 38), 3, 1.5, blend=3)
    body.cone((57, 9, 67), (76, 13, 58), 2.7, 1.1, blend=1, colour="#f4ecd6", gloss=0.4, mirror=True)
    for toe in (-5, 0, 5):
        body.bead((30.5 - abs(toe) * 0.25, 15 + toe, 3), 2.1, "#d8cfc4", 0.2, mirror=True)
    body.eyes((60.5, 13, 86), 2.3)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        return tinted(points, colours, 30, 0.18, 3)

    return body.mesh(CELL, coat, HIDE)


def _giraffe() -> Mesh:
    body = Body("#e2b96f", 5)
    body.ball((-6, 0, 62), (24, 11.5, 13)).ball((10, 0, 66), (14, 11, 14))
    body.chain([(15, 0, 70), (24, 0, 95), (31, 0, 118)], [10, 6.5, 5])
    body.ball((36, 0, 124), (8, 5.6, 6)).cone((41, 0, 122), (52, 0, 116), 4.6, 3.6, colour="#e8c88c")
    body.ball((30, 7.5, 127), (2, 6, 2.6), (0, -20, 20), blend=2, mirror=True)
    body.cone((33, 2.6, 128), (31, 3, 137), 1.2, 1.0, blend=1, mirror=True)
    body.cone((31, 3, 137), (31, 3, 138.4), 1.8, 1.8, blend=0.5, colour="#3a2616", mirror=True)
    for x, shift in ((13, 1), (-21, -1)):
        body.cone((x, 6.5, 56), (x + shift, 6.5, 30), 5, 3, mirror=True)
        body.cone((x + shift, 6.5, 30), (x + shift, 6.5, 4), 3, 2.4, mirror=True)
        body.cone(
            (x + shift + 0.6, 6.5, 3.2), (x + shift + 1.2, 6.5, 2.6), 3.2, 3.2, blend=1, colour="#4a3524", mirror=True
        )
    body.chain([(-29, 0, 64), (-34, 0, 50), (-34, 0, 40)], [1.8, 1.2, 1])
    body.ball((-34, 0, 36), (2, 2, 5), blend=2, colour="#3a2616")
    body.eyes((41, 5, 126), 1.6).bead((54.6, 1.6, 117), 0.6, "#5a3a24", 0.2, mirror=True)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        body_only = (points[:, 2] > 28) & (points[:, 0] < 38) & (normals[:, 2] > -0.8)
        mane = (np.abs(points[:, 1]) < 1.3) & (normals[:, 0] < -0.5) & (points[:, 2] > 78) & (points[:, 2] < 126)
        colours = paint(colours, patches(points, 8.5, 5) * body_only, "#8a4a1c")
        return paint(colours, mane, "#5c3417")

    return body.mesh(CELL, coat, FUR)


def _horse_body(body: Body) -> Body:
    body.ball((-8, 0, 66), (32, 15.5, 16)).ball((-28, 0, 68), (17, 15, 16.5)).ball((16, 0, 68), (17, 14, 17))
    body.chain([(24, 0, 76), (37, 0, 92), (43, 0, 102)], [14, 9.5, 8])
    body.ball((46, 0, 103), (9, 7.5, 9)).cone((50, 0, 100), (65, 0, 86), 7, 5.2)
    for x, lean in ((20, 1.5), (-32, -2)):
        body.cone((x, 9, 58), (x + lean, 9, 33), 7.5, 4, mirror=True)
        body.cone((x + lean, 9, 33), (x + lean * 0.7, 9, 8), 3.8, 3.2, mirror=True)
        body.cone(
            (x + lean * 0.8, 9, 5), (x + lean + 1, 9, 3), 4, 4.4, blend=1.5, colour="#2c2420", gloss=0.3, mirror=True
        )
    body.cone((43, 4.5, 110), (43, 6, 117), 2.8, 1.0, blend=2, mirror=True)
    return body.eyes((53, 6.9, 101), 1.9)


def _zebra() -> Mesh:
    body = _horse_body(Body("#f1eee8", 5))
    for k in range(9):
        t = k / 8
        body.ball((41 - 22 * t, 0, 113 - 30 * t), (4.5, 1.8, 5.5), (30, 0, 0), blend=3, colour="#1d1a1a")
    body.chain([(-44, 0, 74), (-51, 0, 60), (-52, 0, 46)], [2.6, 1.6, 1.4]).ball(
        (-52, 0, 38), (2.8, 2.8, 8), blend=2, colour="#1d1a1a"
    )

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        along = np.where(points[:, 2] < 52, points[:, 2] * 1.15, points[:, 0] - 0.35 * points[:, 2])
        head = (points[:, 0] > 57) & (points[:, 2] > 70)
        colours = paint(colours, stripes(points, along, 7.6, 2.4, 8) * (points[:, 2] > 9) * ~head, "#1a1718")
        return paint(colours, (points[:, 0] > 63) & (points[:, 2] > 70), "#2a2423")

    return body.mesh(CELL, coat, FUR)


def _horse() -> Mesh:
    body = _horse_body(Body("#7a4522", 5))
    for k in range(9):
        t = k / 8
        body.ball((41 - 21 * t, 1.2, 112 - 31 * t), (5.5, 4.4, 8), (30, 0, 0), blend=3, colour="#24150d")
    body.chain([(-44, 0, 76), (-54, 0, 64), (-57, 0, 44), (-55, 0, 24)], [4, 5.5, 5, 1.6], colour="#24150d", blend=3)
    body.ball((50, 0, 110), (4, 2.6, 4), blend=2, colour="#24150d")

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        blaze = (np.abs(points[:, 1]) < 2.3) & (points[:, 0] > 54) & (normals[:, 2] > 0.25)
        socks = (points[:, 2] > 6.5) & (points[:, 2] < 20)
        colours = tinted(points, colours, 26, 0.25, 9)
        colours = paint(colours, (points[:, 0] > 64) & (points[:, 2] > 70) & (normals[:, 2] < 0.2), "#4a2c1b")
        return paint(paint(colours, blaze, "#efe6da"), socks, "#efe6da")

    return body.mesh(CELL, coat, Skin("fur", 40, 0.2, 0.2, 0.1))


def _dog() -> Mesh:
    body = Body("#c08a48", 5)
    body.ball((-6, 0, 46), (29, 13, 13.5)).ball((15, 0, 48), (17, 14, 17)).ball((-24, 0, 47), (14, 13, 14))
    body.chain([(24, 0, 56), (36, 0, 73)], [12, 10]).ball((41, 0, 79), (13.5, 12, 12))
    body.cone((50, 0, 75), (61, 0, 73), 7.4, 5.6, blend=3).ball((56, 0, 70), (7, 5, 3.4), blend=2)
    body.ball((36, 12.5, 75), (6, 2.6, 12), (14, -12, -10), blend=2, colour="#7a4a22", mirror=True)
    for x in (17, -26):
        body.cone((x, 8.5, 40), (x - 1, 8.5, 8), 6.4, 4.4, mirror=True).ball(
            (x + 2.5, 8.5, 4), (6.4, 5, 4), blend=2, mirror=True
        )
    body.chain([(-35, 0, 53), (-46, 0, 64), (-50, 0, 78)], [4.2, 3.4, 2.4])
    body.cone((40, 0, 64), (33, 0, 62), 10.6, 11, blend=0.6, colour="#c0392b", gloss=0.2)
    body.bead((66.5, 0, 75.5), 3.1, "#17110f", 0.7).eyes((50.5, 6.8, 82.5), 2.4).bead(
        (44, 0, 53.5), 2.2, "#d9b64a", 0.8
    )

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        white = (
            ((z < 20) & (z > -5))
            | ((x > 26) & (x < 36) & (z < 58) & (normals[:, 0] > 0.2))
            | ((x > 50) & (np.abs(y) < 9) & (z < 80))
        )
        white |= ((np.abs(y) < 2.0) & (x > 46) & (z > 74)) | (z > 72) & (x < -40)
        saddle = (z > 52) & (x < 20) & (x > -38) & (normals[:, 2] > 0.2)
        red = (colours[:, 0] > 3.5 * colours[:, 1]) & (colours[:, 0] > 0.2)
        return np.where(red[:, None], colours, paint(paint(colours, saddle, "#3b2a20"), white, "#f2ebe0"))

    return body.mesh(CELL, coat, FUR)


def _cat() -> Mesh:
    body = Body("#dd8a3d", 5)
    body.ball((-6, 0, 38), (26, 11.5, 12)).ball((13, 0, 39), (13, 11, 13)).ball((-22, 0, 39), (13, 12, 13))
    body.cone((20, 0, 46), (28, 0, 58), 9.5, 9).ball((32, 0, 63), (13, 14.5, 12))
    body.ball((42.5, 3.2, 58.5), (4.6, 4.6, 4), blend=2, colour="#f6e7d3", mirror=True).ball(
        (42, 0, 55), (4, 4, 3), blend=2, colour="#f6e7d3"
    )
    body.cone((30, 8.5, 71), (30, 11, 81), 5.6, 0.9, blend=2, mirror=True)
    body.cone((32.6, 8.7, 71), (31.6, 10.8, 78), 3.6, 0.6, blend=0.8, colour="#e9a08e", mirror=True)
    for x in (14, -23):
        body.cone((x, 6.5, 32), (x, 6.5, 7), 5, 3.8, mirror=True).ball(
            (x + 2, 6.5, 3.4), (5.4, 4.4, 3.4), blend=2, mirror=True
        )
    body.chain([(-33, 0, 44), (-46, 0, 52), (-50, 0, 68), (-44, 0, 82)], [4, 3.7, 3.5, 2.8])
    body.bead((46.6, 0, 61.3), 1.5, "#d9736a", 0.5)
    body.bead((41.8, 5.9, 66), 3.4, "#b8d04a", 0.95, mirror=True).bead(
        (44.2, 6.2, 66.2), 1.75, "#0c0a08", 0.95, mirror=True
    )
    body.bead((45.6, 6.9, 67.5), 0.6, "#ffffff", 0.3, mirror=True)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        along = np.where(z < 28, z * 1.2, np.where(x > 22, np.abs(y) * 1.3 + 2, np.where(x < -36, z * 0.9 + x, x)))
        dark = stripes(points, along, 7.2, 2.2, 13) * ((normals[:, 2] > -0.2) & ~((x > 36) & (z < 63))) * 0.8
        white = (z < 7) | ((normals[:, 2] < -0.55) & (z > 20)) | ((x > 18) & (z < 52) & (normals[:, 0] > 0.45))
        coloured = colours[:, 2] > 0.2
        return np.where(coloured[:, None], colours, paint(paint(colours, dark, "#a04f16"), white, "#f7ead8"))

    return body.mesh(1.1, coat, FUR)


def _rabbit() -> Mesh:
    body = Body("#b49c84", 6)
    body.ball((-12, 0, 30), (26, 19, 24)).ball((10, 0, 34), (17, 14, 20)).cone((16, 0, 44), (24, 0, 58), 11, 11)
    body.ball((27, 0, 63), (15, 13, 13)).ball((38, 4, 58), (5.5, 5.5, 5), blend=3, mirror=True, colour="#d9cbbb")
    body.ball((15, 7, 88), (4.6, 3, 20), (-14, 0, 10), blend=3, mirror=True)
    body.ball((17.6, 7.4, 88), (3, 1.8, 16), (-14, 0, 10), blend=0.6, mirror=True, colour="#e0a99b")
    body.ball((-14, 15, 17), (17, 8, 15), (10, 0, 0), mirror=True).ball((3, 14, 4), (16, 6, 4.4), blend=3, mirror=True)
    body.cone((16, 8, 26), (19, 8, 5), 5.6, 4.4, mirror=True).ball((21, 8, 4), (6.4, 4.6, 4), blend=2, mirror=True)
    body.ball((-38, 0, 24), 9, blend=2, colour="#f6f1ea")
    body.bead((43.6, 0, 61.5), 1.7, "#c77a72", 0.5).eyes((33.5, 10.3, 67), 3)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        chest = ((points[:, 0] > 18) & (points[:, 2] < 50) & (normals[:, 0] > 0.3)) | (normals[:, 2] < -0.6)
        return paint(tinted(points, colours, 16, 0.35, 15), chest * (points[:, 2] > 6) * 0.8, "#efe6da")

    return body.mesh(CELL, coat, Skin("fur", 30, 0.5, 0.5, 0.2))


def _bear() -> Mesh:
    body = Body("#6b4426", 8)
    body.ball((-10, 0, 52), (38, 24, 25)).ball((14, 0, 55), (22, 22, 25)).ball((-32, 0, 52), (20, 22, 23))
    body.cone((26, 0, 62), (38, 0, 72), 17, 15).ball((44, 0, 75), (17, 17, 16))
    body.cone((55, 0, 70), (65, 0, 68), 8.6, 6.6, blend=4, colour="#b98d5e")
    body.ball((38, 13.5, 89), (3.6, 5.8, 5.6), blend=2.5, mirror=True).ball(
        (40.6, 13.5, 89), (2, 3.6, 3.4), blend=1, mirror=True, colour="#3d2615"
    )
    for x in (18, -30):
        body.cone((x, 14, 42), (x, 14, 11), 12, 9.5, mirror=True).ball((x + 5, 14, 6), (12, 9, 6), blend=4, mirror=True)
    for claw in (-4.5, 0, 4.5):
        body.bead((34.5 - abs(claw) * 0.3, 14 + claw, 3.4), 1.7, "#17110d", 0.6, mirror=True)
        body.bead((-13.5 - abs(claw) * 0.3, 14 + claw, 3.4), 1.7, "#17110d", 0.6, mirror=True)
    body.ball((-51, 0, 62), 6).bead((70.6, 0, 71), 3.6, "#120d0b", 0.7).eyes((57.5, 7.6, 79), 2.3)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        return tinted(points, colours, 20, 0.4, 17)

    return body.mesh(1.4, coat, Skin("fur", 36, 0.7, 0.45, 0.15))


def _camel() -> Mesh:
    body = Body("#c99a5c", 6)
    body.ball((-8, 0, 62), (32, 15, 15)).ball((14, 0, 62), (14, 13, 15))
    body.ball((5, 0, 80), (10, 9, 15), blend=9, colour="#b5834a").ball(
        (-23, 0, 80), (10, 9, 15), blend=9, colour="#b5834a"
    )
    body.chain([(24, 0, 62), (38, 0, 56), (45, 0, 70), (49, 0, 92)], [10, 8.5, 7.5, 6.5])
    body.ball((53, 0, 98), (9.5, 7, 7.5)).cone((59, 0, 96), (69, 0, 91), 5.6, 4.8).ball(
        (69, 0, 88), (4, 4, 2.4), blend=2
    )
    body.ball((47, 7, 104), (2, 2.2, 4), (0, 0, 20), blend=2, mirror=True).ball(
        (51, 0, 105), (6, 5, 4), blend=3, colour="#9a6a38"
    )
    for x in (17, -31):
        body.cone((x, 8, 54), (x, 8, 31), 7, 3.6, mirror=True).cone((x, 8, 31), (x, 8, 7), 3.8, 3, mirror=True)
        body.ball((x + 1.6, 8, 3.2), (6.2, 5.2, 3.2), blend=2, mirror=True)
    body.chain([(-40, 0, 66), (-46, 0, 52), (-46, 0, 40)], [2.4, 1.6, 2.4]).eyes((59, 6.2, 101), 1.9)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        beard = (points[:, 0] > 32) & (points[:, 0] < 52) & (points[:, 2] < 66) & (normals[:, 2] < 0.1)
        return paint(tinted(points, colours, 18, 0.3, 19), beard * 0.7, "#86592c")

    return body.mesh(CELL, coat, Skin("fur", 34, 0.5, 0.35, 0.15))


def _pig() -> Mesh:
    body = Body("#eaa6a0", 6)
    body.ball((-8, 0, 42), (36, 23, 23)).ball((16, 0, 43), (20, 20, 21)).ball((38, 0, 48), (18, 17, 17))
    body.tube((50, 0, 44), (61, 0, 43.5), 8.2, 2.4, blend=4, colour="#f0b3ab")
    body.ball((34, 13, 64), (7, 6, 2.2), (-38, 25, 20), blend=2, mirror=True)
    for x in (16, -26):
        body.cone((x, 12, 28), (x, 12, 7), 7.6, 5.4, mirror=True)
        body.cone((x + 0.5, 12, 4.6), (x + 1, 12, 3.6), 5.4, 5.4, blend=1, colour="#6b4a44", mirror=True)
    body.chain(
        [(-43, 0, 46), (-49, 0, 50), (-50, 4, 54), (-47, 4, 57), (-46, 0, 54)], [2, 1.8, 1.6, 1.5, 1.2], blend=1.5
    )
    body.bead((60.6, 3.2, 44), 1.7, "#8d4c48", 0.2, mirror=True).eyes((52, 9, 54), 2.3)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        return tinted(points, colours, 24, 0.16, 21)

    return body.mesh(1.35, coat, Skin("grain", 30, 0.2, 0.25, 0.3))


def _cow() -> Mesh:
    body = Body("#f3efe8", 6)
    body.ball((-8, 0, 62), (38, 20, 21)).ball((18, 0, 63), (19, 18, 22)).ball((-34, 0, 63), (17, 19, 20))
    body.cone((30, 0, 72), (44, 0, 82), 14, 11).ball((48, 0, 84), (12, 11, 12)).cone((54, 0, 79), (66, 0, 70), 9, 7.6)
    body.ball((68, 0, 68), (6.4, 8.4, 6.4), blend=3, colour="#e9b4a6")
    body.ball((42, 15, 88), (3, 8.5, 4), (0, -15, 12), blend=2, mirror=True, colour="#2a2423")
    body.chain(
        [(44, 6, 94), (45, 11, 98), (49, 12.5, 103)], [2.4, 1.9, 0.9], blend=1, mirror=True, colour="#d8c9a8", gloss=0.3
    )
    for x in (20, -36):
        body.cone((x, 11, 50), (x, 11, 27), 8.4, 5, mirror=True).cone((x, 11, 27), (x, 11, 8), 5, 4.4, mirror=True)
        body.cone((x + 0.6, 11, 5.4), (x + 1.4, 11, 4), 5, 5.2, blend=1, colour="#3a2e28", mirror=True)
    body.ball((-26, 0, 42), (10, 9, 7), blend=4, colour="#eeb5a9")
    body.chain([(-50, 0, 72), (-56, 0, 55), (-56, 0, 36)], [2.4, 1.5, 1.3]).ball(
        (-56, 0, 30), (3, 3, 6), blend=2, colour="#2a2423"
    )
    body.eyes((57, 8.6, 87), 2.2).bead((73, 3.2, 69.5), 1.3, "#7d4b43", 0.2, mirror=True)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        pale = colours.min(axis=1) > 0.55
        face = (points[:, 0] > 40) & (np.abs(points[:, 1]) > 4.2) & (points[:, 2] > 72) & (points[:, 0] < 62)
        dark = np.maximum(spots(points, 24, 23, 0.02) * (points[:, 2] > 24) * (points[:, 0] < 40), face)
        return paint(colours, dark * pale, "#241f1f")

    return body.mesh(1.4, coat, FUR)


def _lion() -> Mesh:
    body = Body("#cf9a50", 5)
    body.ball((-10, 0, 50), (32, 14, 15)).ball((14, 0, 53), (18, 16, 19)).ball((-30, 0, 50), (15, 14, 16))
    mane = "#7c4519"
    rng = np.random.default_rng(25)
    for angle in np.linspace(0, 2 * np.pi, 15, endpoint=False):
        y, z, r = 17 * np.sin(angle), 18 * np.cos(angle), rng.uniform(8.5, 11)
        body.ball((33 + rng.uniform(-2, 3), y, 74 + z), (9, r, r), blend=3, colour=mane)
        body.ball((22, 0.8 * y, 66 + 0.9 * z), (9, r, r), blend=4, colour=mane)
    body.ball((44, 0, 75), (14, 14, 14.5)).cone((54, 0, 70), (60, 0, 69), 7.6, 6.6, blend=3, colour="#e6c48c")
    body.ball((57, 0, 63.5), (5, 5, 3.6), blend=2, colour="#f0dcb8").ball((40, 13, 88), (3, 5, 5), blend=2, mirror=True)
    for x in (16, -30):
        body.cone((x, 9.5, 42), (x, 9.5, 9), 7.6, 5.6, mirror=True).ball(
            (x + 3.5, 9.5, 4.6), (8, 6.2, 4.6), blend=2.5, mirror=True
        )
    body.chain([(-43, 0, 56), (-54, 0, 44), (-60, 0, 30), (-66, 0, 30)], [3, 2.2, 2, 2]).ball(
        (-70, 0, 31), (6, 4, 4), blend=2, colour=mane
    )
    body.bead((65.6, 0, 72), 3, "#3a201a", 0.6).eyes((54.5, 6.6, 79.5), 2.1, "#3a2208")

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        belly = (normals[:, 2] < -0.5) & (points[:, 2] > 20) & (points[:, 0] < 20)
        return paint(tinted(points, colours, 12, 0.35, 27), belly * 0.7, "#ecd6a8")

    return body.mesh(1.35, coat, FUR)


def _fox() -> Mesh:
    body = Body("#cf5f1e", 5)
    body.ball((-6, 0, 42), (27, 11, 12)).ball((14, 0, 44), (14, 11.5, 14)).ball((-24, 0, 43), (12, 11, 12.5))
    body.cone((22, 0, 50), (31, 0, 64), 10, 8.5).ball((36, 0, 68), (11.5, 11.5, 10))
    body.ball((38, 7, 64), (7, 6, 6), blend=4, mirror=True, colour="#f5e9dc").cone(
        (45, 0, 65), (59, 0, 62), 6, 2.8, blend=4
    )
    body.cone((33, 7, 76), (33, 9, 89), 5.2, 0.9, blend=2, mirror=True)
    body.cone((35, 7.1, 77), (34.4, 8.8, 85.5), 3.4, 0.6, blend=0.6, mirror=True, colour="#2a1a14")
    for x in (15, -24):
        body.cone((x, 6.8, 36), (x, 6.8, 7), 5.2, 3.2, mirror=True).ball(
            (x + 2, 6.8, 3.2), (5, 3.8, 3.2), blend=2, mirror=True
        )
    body.chain([(-34, 0, 44), (-48, 0, 36), (-64, 0, 32), (-80, 0, 36)], [4, 8, 9.5, 3], blend=4)
    body.bead((62, 0, 63), 2.1, "#120d0b", 0.7).eyes((45.4, 6, 70.5), 1.9)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        x, _, z = points.T
        white = (
            (x < -70)
            | ((x > 20) & (x < 32) & (normals[:, 0] > 0.3) & (z < 60))
            | ((x > 38) & (z < 63))
            | ((normals[:, 2] < -0.6) & (z > 25) & (x > -36))
        )
        socks = (z < 22) & (x > -40)
        coloured = colours[:, 2] > 0.3
        colours = np.where(coloured[:, None], colours, paint(tinted(points, colours, 14, 0.25, 29), white, "#f5ece0"))
        return paint(colours, socks * np.clip((24 - z) / 8, 0, 1), "#251813")

    return body.mesh(1.15, coat, Skin("fur", 34, 0.45, 0.45, 0.15))


def _armadillo() -> Mesh:
    body = Body("#b08a72", 4)
    body.ball((-4, 0, 36), (40, 25, 28), colour="#9c7a5e").ball((30, 0, 31), (13, 13, 13)).cone(
        (40, 0, 32), (62, 0, 23), 9, 3.6
    )
    body.ball((38, 8, 47), (2.6, 4.2, 9), (-10, 0, 15), blend=1.5, mirror=True, colour="#c39a82")
    for x in (18, -22):
        body.cone((x, 14, 20), (x + 2, 15, 6), 7, 5, mirror=True).ball(
            (x + 5, 15, 3.4), (7, 5, 3.4), blend=2, mirror=True
        )
    body.chain([(-38, 0, 24), (-54, 0, 13), (-74, 0, 6)], [7, 4.6, 1.8], colour="#8e6e54")
    body.bead((65, 0, 23.5), 2, "#2a1a16", 0.6).eyes((47, 7, 34.5), 1.8)

    def coat(points: np.ndarray, normals: np.ndarray, colours: np.ndarray) -> np.ndarray:
        shell = (np.linalg.norm((points - (-4, 0, 36)) / (40, 25, 28), axis=1) < 1.05) & (points[:, 2] > 17)
        dark = np.maximum(
            bands(points[:, 0], 5.2, 0.22), 0.6 * bands(np.arctan2(points[:, 1], points[:, 2] - 20) * 25, 6, 0.2)
        )
        tail = bands(points[:, 0], 4, 0.3) * (points[:, 0] < -44)
        return paint(tinted(points, colours, 20, 0.2, 31), np.maximum(dark * shell, tail) * 0.75, "#4c3626")

    return body.mesh(1.25, coat, Skin("hide", 30, 0.6, 0.05, 0.05))


FOUR_LEGGED: dict[str, Callable[[], Mesh]] = {
    "Armadillo": _armadillo,
    "Bear": _bear,
    "Camel": _camel,
    "Cat": _cat,
    "Cow": _cow,
    "Dog": _dog,
    "Elephant": _elephant,
    "Fox": _fox,
    "Giraffe": _giraffe,
    "Horse": _horse,
    "Lion": _lion,
    "Pig": _pig,
    "Rabbit": _rabbit,
    "Zebra": _zebra,
}
