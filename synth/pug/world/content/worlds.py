"""The worlds: ground, backdrop, sky, sun and grading of each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from granary.synth.pug.world.content import props
from granary.synth.pug.world.content.sky import Ridge, Sky
from granary.synth.pug.world.shapes.colours import linear
from granary.synth.pug.world.shapes.geometry import Triple, rotation_matrix
from granary.synth.pug.world.shapes.mesh import Mesh, Skin, face_normals, join, make_mesh, placed
from granary.synth.pug.world.shapes.noise import fractal, smoothstep

SECTORS = 128  # of the ground's disc


@dataclasses.dataclass(frozen=True)
class Sun:
    """A directional light.

    Args:
        yaw, pitch: degrees, where its light goes; pitch -90 is straight down.
        intensity: 1 dim, 3 a clear day.
        colour: linear RGB 0..1.
        softness: degrees from the middle of its disc to the edge.
    """

    yaw: float = 240.0
    pitch: float = -45.0
    intensity: float = 3.0
    colour: Triple = (1.0, 0.95, 0.86)
    softness: float = 1.5


@dataclasses.dataclass(frozen=True)
class World:
    """A level.

    Args:
        name: of the level.
        sky, sun: its light.
        parts: meshes of ground and backdrop by object name.
        haze: cm at which a third of a surface's light is left.
        exposure, saturation: grading.
    """

    name: str
    sky: Sky
    sun: Sun
    parts: Mapping[str, Mesh]
    haze: float = 20000.0
    exposure: float = 0.5
    saturation: float = 1.05


def hills(height: float, seed: int, near: float = 900, far: float = 6000) -> Callable[[np.ndarray], np.ndarray]:
    """Return the height (n,) of ground at points (n, 2): flat round the origin, `height` cm of relief far out."""

    def relief(flat: np.ndarray) -> np.ndarray:
        shape = fractal(np.column_stack([flat / 2600, np.zeros(len(flat))]), 3, seed) + 0.3
        return height * shape * smoothstep(near, far, np.linalg.norm(flat, axis=1))

    return relief


def terrain(
    colours: tuple[str, str],
    skin: Skin,
    relief: Callable[[np.ndarray], np.ndarray] | None = None,
    seed: int = 1,
    gloss: float = 0.0,
    tint: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Mesh:
    """A disc of ground with radius 400 m, its colour varying between two; `tint(points, colours)` may repaint it."""
    radii = np.concatenate([[0], np.geomspace(30, 40000, 130)])
    angles = np.linspace(0, 2 * np.pi, SECTORS, endpoint=False)
    flat = (radii[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], 1)).reshape(-1, 2)
    points = np.column_stack([flat, np.zeros(len(flat)) if relief is None else relief(flat)])
    share = np.clip(0.5 + 0.6 * fractal(points / 380 + 9.5, 4, seed + 5), 0, 1)[:, None]
    low, high = linear(colours[0]), linear(colours[1])
    paint = low + (high - low) * share
    paint = paint if tint is None else tint(points, paint)
    i, j = np.arange(len(radii) - 1)[:, None] * SECTORS, np.arange(SECTORS)
    k = (j + 1) % SECTORS
    quads = np.stack([i + j, i + k, i + SECTORS + k, i + SECTORS + j], -1).reshape(-1, 4)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    normals = face_normals(points, triangles)
    normals = normals * np.where(normals[:, 2:] < 0, -1, 1) + (0, 0, 1e-9)
    return make_mesh(points, triangles, paint, normals, gloss, skin=skin)


def _meadow() -> World:
    relief = hills(420, 3)
    ground = terrain(("#4c6130", "#7c8a48"), Skin("turf", 260, 0.6, 0.1), relief, 3)
    trees = [props.broadleaf("#4f7a30", 1), props.broadleaf("#668a3a", 2), props.broadleaf("#3f6a34", 3)]
    parts = {"Ground": ground, **props.forest(trees, 26, (1900, 7000), (3.5, 7.0), 5, ground=relief)}
    parts["Flowers"] = props.tufts(
        900, 80, 1500, 13, ("#4a6a2a", "#a3b860"), 7, ("#f4f0e6", "#e9c63c", "#d9657a", "#8c78c8")
    )
    ridges = (Ridge("#8ea8c8", 3.6, 2.2, 9, 5), Ridge("#6d8c7c", 1.6, 0.9, 17, 8))
    sky = Sky("#2a66b8", "#6ea4de", "#cfe0ee", clouds=0.5, ridges=ridges, ground="#3f5028", seed=3)
    return World("Meadow", sky, Sun(240, -40), parts, 26000)


def _desert() -> World:
    relief = hills(900, 11, 1100, 7000)
    ground = terrain(("#b97f48", "#d3a066"), Skin("sand", 240, 0.8), relief, 11)
    cacti = props.scatter([props.cactus(1), props.cactus(2)], 22, (900, 5200), (2.6, 5.0), 13, ground=relief)
    rocks = props.scatter(
        [props.rock("#9a6038", 3), props.rock("#aa7044", 4)], 26, (750, 6000), (0.5, 3.0), 15, ground=relief
    )
    parts = {"Ground": ground, "Cacti": join(cacti, Skin("grain", 120, 0.3)), "Rocks": join(rocks, props.ROCK)}
    ridges = (Ridge("#b98a78", 5.5, 3, 6, 4), Ridge("#a8623c", 3.4, 2.0, 11, 12, square=False))
    sky = Sky("#2f6fc0", "#7db2e2", "#ecd9bd", clouds=0.14, ridges=ridges, ground="#9a6a3c", seed=9)
    return World("Desert", sky, Sun(228, -38, 3.3, (1.0, 0.92, 0.78)), parts, 22000, 0.46)


def _snow() -> World:
    relief = hills(520, 21)
    ground = terrain(("#c9d4e4", "#e6edf5"), Skin("drift", 300, 0.5, 0.1, 0.2), relief, 21)
    trees = [props.pine("#2f4f3a", True, 1), props.pine("#35573f", True, 2)]
    parts = {"Ground": ground, **props.forest(trees, 46, (950, 6500), (2.6, 6.0), 23, ground=relief)}
    parts["Rocks"] = join(
        props.scatter([props.rock("#8b9097", 5)], 8, (800, 4000), (0.5, 1.5), 25, ground=relief), props.ROCK
    )
    ridges = (Ridge("#b9cce4", 8, 4.5, 10, 14), Ridge("#7f94ae", 2.2, 0.9, 40, 16))
    sky = Sky("#2c62ac", "#78abe2", "#e6eef6", 1.15, 0.3, ridges=ridges, ground="#aebccf", seed=13)
    return World("Snow", sky, Sun(250, -28, 2.6, (1.0, 0.92, 0.80)), parts, 20000, 0.36, 1.05)


def _beach() -> World:
    def shore(flat: np.ndarray) -> np.ndarray:
        wave = 120 * fractal(np.column_stack([flat[:, 1:] / 900, np.zeros((len(flat), 2))]), 2, 31)
        return 950 + wave + flat[:, 0]  # cm from the water's edge, positive on land

    def relief(flat: np.ndarray) -> np.ndarray:
        land = shore(flat)
        return np.where(land < 300, (land - 300) * 0.06, 0) + 300 * smoothstep(2500, 9000, land)

    def tint(points: np.ndarray, colours: np.ndarray) -> np.ndarray:
        wet = smoothstep(230, -60, shore(points[:, :2]))[:, None]
        return colours * (1 - 0.5 * wet)

    ground = terrain(("#d3b686", "#e6cfa3"), Skin("sand", 260, 0.5), relief, 31, tint=tint)
    parts = {"Ground": ground, "Sea": _sea(shore)}
    parts |= props.forest([props.palm(1), props.palm(2)], 9, (900, 2600), (4.5, 7.0), 37, ground=relief)
    parts["Rocks"] = join(props.scatter([props.rock("#8d7f70", 7)], 9, (800, 2600), (0.4, 1.6), 39), props.ROCK)
    sky = Sky(
        "#1f66c4",
        "#6fb1ea",
        "#d9ecf4",
        clouds=0.42,
        ground="#a8905f",
        seed=19,
        ridges=(Ridge("#7f9bb0", 0.7, 1.2, 5, 20),),
    )
    return World("Beach", sky, Sun(215, -46, 3.1, (1.0, 0.95, 0.84)), parts, 30000, 0.45, 1.1)


def _sea(shore: Callable[[np.ndarray], np.ndarray]) -> Mesh:
    radii = np.concatenate([np.linspace(0, 2500, 120), np.geomspace(2600, 40000, 50)])
    angles = np.linspace(-np.pi / 2, np.pi / 2, 120)
    flat = (radii[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], 1)).reshape(-1, 2) * (-1, 1) - (500, 0)
    out = -shore(flat)
    foam = smoothstep(60, 20, np.abs(out - 10 - 25 * fractal(np.column_stack([flat / 160, out]), 3, 33)))
    foam = np.maximum(
        foam,
        0.7 * smoothstep(0.45, 0.6, fractal(np.column_stack([flat / 120, out * 0]), 3, 35)) * smoothstep(500, 100, out),
    )
    depth = smoothstep(0, 1500, out)[:, None]
    colours = linear("#4fb3b3") * (1 - depth) + linear("#12507f") * depth
    colours = colours * (1 - foam[:, None]) + linear("#f4f8f8") * foam[:, None]
    z = -19.0 + 6 * np.sin(out / 140 + fractal(np.column_stack([flat / 500, out * 0]), 2, 34)) * smoothstep(0, 700, out)
    i, j = (g.ravel() for g in np.meshgrid(np.arange(len(radii) - 1), np.arange(119), indexing="ij"))
    corner = i * 120 + j
    quads = np.stack([corner, corner + 1, corner + 121, corner + 120], 1)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    normals = np.tile([0.0, 0, 1], (len(flat), 1))
    return make_mesh(
        np.column_stack([flat, z]), triangles, colours, normals, 0.95 - 0.8 * foam, skin=Skin("water", 380, 0.35)
    )


def _town(lit: float) -> dict[str, Mesh]:
    walls = ("#c98f6a", "#d9c3a0", "#b5705a", "#c9b38c", "#a8b0b0", "#d2a27a")
    roofs = ("#6d3f34", "#53585e", "#7a4a38")
    houses: list[Mesh] = []
    for side in range(4):
        offset = -2600.0
        for k in range(6):
            width = (760, 900, 820, 1000, 700, 1020)[(k + side) % 6]
            height = (1150, 1450, 1300, 1000, 1600, 1250)[(2 * k + side) % 6]
            house = props.house(
                width, 700, height, walls[(k + 2 * side) % 6], roofs[(k + side) % 3], 10 * side + k, lit
            )
            spot = np.array([2500.0, offset + width / 2, 0])
            turn = rotation_matrix(0, 90 * side, 0)
            houses += [placed(piece, turn, spot @ turn) for piece in house]
            offset += width
    lamps = [
        placed(piece, np.eye(3), np.array([1150 * np.cos(a), 1150 * np.sin(a), 0]))
        for a in np.arange(8) * np.pi / 4 + 0.3
        for piece in props.lamp(lit > 0)
    ]
    leaf = "#55783a" if lit == 0 else "#3c5630"
    trees = props.forest([props.broadleaf(leaf, 4), props.broadleaf(leaf, 5)], 12, (1350, 1900), (3.2, 4.6), 43)
    return {"Houses": join(houses, Skin("grain", 200, 0.15)), "Lamps": join(lamps, Skin()), **trees}


def _city_square() -> World:
    ground = terrain(("#8d857a", "#aba294"), Skin("pavers", 320, 0.5), None, 41)
    sky = Sky("#3a76c0", "#86b4e0", "#dfe6ea", clouds=0.45, ground="#7c746a", seed=23)
    return World("CitySquare", sky, Sun(235, -46, 2.8, (1.0, 0.94, 0.84)), {"Ground": ground, **_town(0.0)}, 30000, 0.5)


def _night() -> World:
    ground = terrain(("#6a6a70", "#83828a"), Skin("pavers", 320, 0.5), None, 45, 0.45)
    ridges = (Ridge("#10152a", 7, 3.5, 70, 24, square=True, lights=0.25),)
    sky = Sky(
        "#050a1e", "#0c1734", "#2b3350", 1.0, 0.18, "#39456a", "#141c36", "#2c3a66", 9, 900, True, ridges, "#20222c", 29
    )
    return World(
        "Night", sky, Sun(215, -40, 0.75, (0.62, 0.74, 1.0), 1.2), {"Ground": ground, **_town(0.45)}, 14000, 1.5, 1.1
    )


def _forest() -> World:
    relief = hills(260, 51)

    def tint(points: np.ndarray, colours: np.ndarray) -> np.ndarray:
        path = smoothstep(130, 60, np.abs(points[:, 1] + 60 * np.sin(points[:, 0] / 420)))[:, None]
        return colours * (1 - 0.55 * path) + linear("#8a6a48") * 0.55 * path

    ground = terrain(("#3f5224", "#6b5a34"), Skin("litter", 240, 0.7), relief, 51, tint=tint)
    trees = [
        props.broadleaf("#4a7330", 6),
        props.broadleaf("#5d8038", 7),
        props.pine("#2c4a2c", False, 3),
        props.pine("#35552f", False, 4),
    ]
    parts = {"Ground": ground, **props.forest(trees, 190, (820, 4600), (3.5, 7.5), 53, ground=relief)}
    parts["Ferns"] = props.tufts(650, 110, 1600, 26, ("#24401c", "#6a9440"), 55)
    parts["Rocks"] = join(
        props.scatter([props.rock("#6f7264", 8)], 14, (420, 2500), (0.3, 1.2), 57, ground=relief), props.ROCK
    )
    sky = Sky(
        "#5d9ad0",
        "#a8cfe2",
        "#d8e6cf",
        clouds=0.3,
        ground="#3a4826",
        seed=31,
        ridges=(Ridge("#4f7048", 6, 1.5, 90, 26),),
    )
    return World("Forest", sky, Sun(230, -48, 3.4, (1.0, 0.93, 0.74), 1.2), parts, 5200, 0.56, 1.05)


def _savanna() -> World:
    relief = hills(260, 61)
    ground = terrain(("#9c8048", "#c2a668"), Skin("turf", 280, 0.6), relief, 61)
    parts = {
        "Ground": ground,
        **props.forest([props.acacia(1), props.acacia(2)], 22, (1300, 8000), (5.0, 9.0), 63, ground=relief),
    }
    parts["Grass"] = props.tufts(900, 90, 1900, 22, ("#8a7038", "#dcc47c"), 65)
    parts["Rocks"] = join(
        props.scatter([props.rock("#8a5a3c", 9)], 10, (900, 5000), (0.4, 2.4), 67, ground=relief), props.ROCK
    )
    ridges = (Ridge("#9a6a74", 3.6, 1.6, 7, 28), Ridge("#7a4c44", 1.4, 0.7, 14, 30))
    sky = Sky(
        "#4a72b4",
        "#dcae8c",
        "#ffdca6",
        1.0,
        0.4,
        "#ffe6c8",
        "#b98a90",
        "#ffca80",
        22,
        ridges=ridges,
        ground="#8a5a2c",
        seed=37,
    )
    return World("Savanna", sky, Sun(250, -20, 3.3, (1.0, 0.78, 0.54), 1.8), parts, 16000, 0.5, 1.0)


def _museum() -> World:
    ground = terrain(("#9a6a3c", "#a87848"), Skin("parquet", 210, 0.12), None, 71, 0.55)
    size, height = 900.0, 620.0
    pieces: list[Mesh] = []
    for side in range(4):
        turn = rotation_matrix(0, 90 * side, 0)
        wall = [
            props.slab((size, -size - 20, 0), (size + 20, size + 20, height), "#a8473c" if side % 2 == 0 else "#3f6a72")
        ]
        wall.append(props.slab((size - 6, -size, 0), (size, size, 105), "#efe8da", 0.2))
        wall += [
            props.slab((size - 10, -size, z), (size, size, z + 10), "#f6f1e6", 0.2)
            for z in (0, 100, height - 40, height - 14)
        ]
        wall += [
            props.slab((size - 8, y - 90, 22), (size - 5, y + 90, 84), "#e3dac8", 0.2) for y in range(-700, 701, 280)
        ]
        for k, (y, w, h) in enumerate(((-560, 240, 300), (-130, 360, 250), (350, 280, 330), (690, 170, 220))):
            wall += [
                placed(piece, np.eye(3), np.array([size, y, 320.0])) for piece in props.painting(w, h, 7 * side + k)
            ]
        pieces += [placed(piece, turn, np.zeros(3)) for piece in wall]
    for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        column = (
            props.Body("#ece4d4", 0.5, 0.35)
            .tube((0, 0, 0), (0, 0, 62), 4.2)
            .box((0, 0, 2), (6, 6, 2.4), 0.4)
            .box((0, 0, 60), (6, 6, 2), 0.4)
            .mesh(0.9)
        )
        pieces.append(placed(column, np.eye(3) * 10, np.array([x * 820.0, y * 820.0, 0])))
    sky = Sky("#fff4e2", "#f6ead8", "#e8d8c4", 0.85, 0.0, glow="#000000", ground="#7a5a3c")
    return World(
        "Museum",
        sky,
        Sun(245, -58, 1.7, (1.0, 0.94, 0.84), 5.0),
        {"Ground": ground, "Walls": join(pieces, Skin())},
        1e6,
        0.56,
    )


def _ocean_floor() -> World:
    relief = hills(300, 81, 700, 3500)
    ground = terrain(("#b9ab84", "#d8cda4"), Skin("caustics", 330, 0.6), relief, 81)
    models = [
        props.coral("#e0604a", 1),
        props.coral("#e8a13c", 2),
        props.coral("#b45ac0", 3),
        props.coral("#e8768a", 4),
    ]
    corals = props.scatter(models, 46, (430, 2600), (0.7, 2.4), 83, 0.05, relief)
    weeds = props.scatter([props.kelp(1), props.kelp(2)], 60, (480, 2600), (1.6, 4.5), 85, 0.02, relief)
    rocks = props.scatter(
        [props.rock("#5f7078", 10), props.rock("#6a7a72", 11)], 22, (520, 3000), (0.7, 3.2), 87, 0.1, relief
    )
    parts = {
        "Ground": ground,
        "Corals": join(corals, Skin("hide", 90, 0.5, 0.2, 0.2)),
        "Kelp": join(weeds, Skin(wrap=0.4)),
        "Rocks": join(rocks, props.ROCK),
    }
    sky = Sky("#7fd8ee", "#2f9fc8", "#12689c", 0.9, 0.0, glow="#b8f2ff", glow_size=26, ground="#3a7a86", seed=41)
    return World("OceanFloor", sky, Sun(220, -66, 2.3, (0.62, 0.94, 1.0), 2.0), parts, 2300, 0.56, 1.15)


WORLDS: dict[str, Callable[[], World]] = {
    "Beach": _beach,
    "CitySquare": _city_square,
    "Desert": _desert,
    "Forest": _forest,
    "Meadow": _meadow,
    "Museum": _museum,
    "Night": _night,
    "OceanFloor": _ocean_floor,
    "Savanna": _savanna,
    "Snow": _snow,
}

LIGHTS: dict[str, Sun] = {
    "Noon": Sun(220, -75, 3.2, (1.0, 0.98, 0.94)),
    "Morning": Sun(120, -35, 2.8, (1.0, 0.90, 0.74)),
    "Evening": Sun(300, -22, 2.8, (1.0, 0.72, 0.45)),
    "Sunset": Sun(255, -10, 2.6, (1.0, 0.50, 0.24)),
    "Overcast": Sun(240, -70, 0.7, (0.93, 0.96, 1.0)),
    "Moonlight": Sun(220, -50, 0.6, (0.55, 0.68, 1.0)),
    "Studio": Sun(240, -50, 2.2, (1.0, 1.0, 1.0)),
}


@functools.cache
def load_world(name: str) -> World:
    """Make a world; raises KeyError for a name that is not one of `WORLDS`."""
    return WORLDS[name]()
