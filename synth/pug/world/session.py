"""The state of one server: its scene, its cameras, and the meshes that its client added."""

from __future__ import annotations

from granary.synth.pug.world.picture.render import WorldRenderer
from granary.synth.pug.world.scene import Scene, Thing
from granary.synth.pug.world.shapes.geometry import Camera
from granary.synth.pug.world.shapes.mesh import Mesh

FIRST_WORLD = "Meadow"


class CommandError(Exception):
    """A command cannot be done; the client gets `error ` and the message."""


class Session:
    """The world of one server; the commands read and change it.

    Args:
        tracer: "embree", "numpy" or "auto".
        save_to: folder where pictures may be saved; None refuses it.

    Attributes:
        renderer: draws the scene.
        scene: what there is now.
        cameras: by number.
        meshes: of the client, by name.
        port: of the server, for the status.
        eyes: cm between camera 0 and camera 1 beside it; None where they are not two eyes.
        saved: pictures that got a name from us.
    """

    def __init__(self, tracer: str = "auto", save_to: str | None = None) -> None:
        self.renderer = WorldRenderer(tracer)
        self.scene = Scene.load(FIRST_WORLD)
        self.cameras = [Camera()]
        self.meshes: dict[str, Mesh] = {}
        self.save_to = save_to
        self.port = 0
        self.eyes: float | None = None
        self.saved = 0

    def camera(self, number: str) -> Camera:
        """Return a camera by its number; raises CommandError."""
        if int(number) >= len(self.cameras):
            raise CommandError("Invalid sensor id")
        return self.cameras[int(number)]

    def thing(self, name: str, movable: bool = False) -> Thing:
        """Return an object by name; `movable` refuses the parts of the world. Raises CommandError."""
        if name not in self.scene.things:
            raise CommandError("Cannot find object")
        thing = self.scene.things[name]
        if movable and thing.fixed:
            raise CommandError(f"{name} is part of the world and cannot be changed")
        return thing
