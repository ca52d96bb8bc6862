"""The state of the world: objects, light, camera; every change counts, so that pictures are made once."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from granary.synth.pug.world.content.worlds import Sun, World, load_world
from granary.synth.pug.world.shapes.geometry import Triple, rotation_matrix
from granary.synth.pug.world.shapes.mesh import Mesh

LEVELS_OF_COLOUR = (255, 127, 63, 191, 95, 223, 31, 159)
MOST_OBJECTS = 400


@dataclasses.dataclass
class Thing:
    """An object of the scene.

    Args:
        kind: name of its asset; of the parts of a world "World".
        mesh: in its own coordinates.
        colour: of its mask, three of 0..255.
        location: cm; rotation: pitch, yaw, roll in degrees; scale: per axis.
        texture: name, "Default" for the asset's own.
        visible: drawn or not.
        fixed: part of the world, which cannot be moved or destroyed.
        speed: what a client set it to, cm/s; nothing moves by itself.
    """

    kind: str
    mesh: Mesh
    colour: tuple[int, int, int]
    location: Triple = (0.0, 0.0, 0.0)
    rotation: Triple = (0.0, 0.0, 0.0)
    scale: Triple = (1.0, 1.0, 1.0)
    texture: str = "Default"
    visible: bool = True
    fixed: bool = False
    speed: float = 0.0

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) float64; a point p of the mesh is at p @ matrix + location."""
        return np.diag(self.scale) @ rotation_matrix(*self.rotation)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the corners (3,) of the box round it, cm."""
        points = self.mesh.vertices @ self.matrix + np.array(self.location)
        return points.min(axis=0), points.max(axis=0)


@dataclasses.dataclass
class Scene:
    """Everything a picture depends on beside the camera.

    Args:
        world: the level.
        things: objects by name, in the order in which they came.
        sun: the directional light.
        sky: factor on the light of the sky.
        version: grows with every change; shape: with every change of what rays meet.
        number: of the scene in this process; no two scenes share one.
    """

    world: World
    things: dict[str, Thing]
    sun: Sun
    sky: float = 1.0
    version: int = 0
    shape: int = 0
    number: int = dataclasses.field(default_factory=itertools.count().__next__)

    @staticmethod
    def load(name: str) -> Scene:
        """Load a world, with nothing in it; raises KeyError."""
        world = load_world(name)
        scene = Scene(world, {}, world.sun)
        for part, mesh in world.parts.items():
            scene.things[part] = Thing("World", mesh, scene.free_colour(), fixed=True)
        return scene

    def free_colour(self) -> tuple[int, int, int]:
        """Return the first colour that no object has: the same for the same objects, whatever was there before."""
        taken = {thing.colour for thing in self.things.values()}
        for index in range(len(LEVELS_OF_COLOUR) ** 3):
            colour = _colour(index)
            if colour not in taken and len(set(colour)) > 1:
                return colour
        raise ValueError("no mask colour is free")

    def changed(self, shape: bool = False) -> None:
        """Note a change; `shape` when rays meet something else than before."""
        self.version += 1
        self.shape += shape


def _colour(index: int) -> tuple[int, int, int]:
    levels = LEVELS_OF_COLOUR
    # Small indices use few levels, so that the colours of a small scene are far apart.
    side = 2
    while side**3 <= index:
        side += 1
    cube = [c for c in np.ndindex(side, side, side) if max(c) == side - 1]
    r, g, b = cube[index - (side - 1) ** 3] if side > 2 else list(np.ndindex(2, 2, 2))[index]
    return levels[r], levels[g], levels[b]
