"""A contact sheet of the embedded world: `python -m granary.synth.pug.world.contact SHEET.jpg`."""

from __future__ import annotations

import itertools
import sys

import numpy as np
from PIL import Image

from granary.synth.pug.world.content.assets import ASSETS, load_asset
from granary.synth.pug.world.content.worlds import WORLDS
from granary.synth.pug.world.picture.render import WorldRenderer
from granary.synth.pug.world.scene import Scene, Thing
from granary.synth.pug.world.shapes.geometry import Camera

SIDE, COLUMNS, GAP = 200, 6, 4  # pixels, pictures, pixels
AT_HOME = {
    "Airplane": "Desert",
    "Bear": "Forest",
    "Camel": "Desert",
    "Car": "CitySquare",
    "Cat": "Night",
    "Chair": "Museum",
    "Cow": "Meadow",
    "Crab": "Beach",
    "Dog": "Beach",
    "Elephant": "Savanna",
    "Fox": "Forest",
    "Giraffe": "Savanna",
    "Goldfish": "OceanFloor",
    "Horse": "Meadow",
    "Lion": "Savanna",
    "Mushroom": "Forest",
    "Penguin": "Snow",
    "Rabbit": "Meadow",
    "Sailboat": "Beach",
    "Teapot": "Museum",
    "Turtle": "OceanFloor",
}
WORN = ("Stone", "Grass", "Wood")  # textures of the pictures at the end
VIEWS = ((0.0, -35.0), (90.0, 40.0), (20.0, -50.0), (-30.0, 30.0))  # yaw of the camera, of the asset before it


def contact_sheet() -> Image.Image:
    """Draw every asset in a world, the worlds in turn, and a few assets in other textures."""
    renderer, worlds, views = WorldRenderer(), itertools.cycle(WORLDS), itertools.cycle(VIEWS)
    shots = [(name, AT_HOME.get(name) or next(worlds), "Default") for name in ASSETS]
    shots += [("Elephant", "Meadow", WORN[0]), ("Teapot", "Museum", WORN[1]), ("Rabbit", "Snow", WORN[2])]
    pictures = [picture(renderer, *shot, *next(views)) for shot in shots]
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, rows * (SIDE + GAP) - GAP), "white")
    for index, thumbnail in enumerate(pictures):
        row, column = divmod(index, COLUMNS)
        sheet.paste(Image.fromarray(thumbnail), (column * (SIDE + GAP), row * (SIDE + GAP)))
    return sheet


def picture(renderer: WorldRenderer, name: str, world: str, texture: str, yaw: float, turn: float) -> np.ndarray:
    """Draw one asset that fills the frame: (side, side, 3) uint8."""
    mesh = load_asset(name)
    scene = Scene.load(world)
    scene.things[name] = Thing(name, mesh, scene.free_colour(), rotation=(0, yaw + turn, 0), texture=texture)
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    distance = 1.5 * float(np.linalg.norm(high - low))
    a = np.radians(yaw)
    place = (distance * np.cos(a), distance * np.sin(a), float(low[2] + high[2]) / 2 + 0.2 * distance)
    return renderer.lit(scene, Camera(place, (-10, yaw + 180, 0), 42, SIDE, SIDE))


if __name__ == "__main__":
    contact_sheet().save(sys.argv[1], quality=80)
