"""A server's world and its answers to UnrealCV's commands."""

from __future__ import annotations

import json

from granary.synth.pug.world.commands import (
    blueprint as director,
)
from granary.synth.pug.world.commands import (
    camera as camera_commands,
)
from granary.synth.pug.world.commands import (
    objects as object_commands,
)
from granary.synth.pug.world.commands.registry import COMMANDS, INVALID, CommandError, command
from granary.synth.pug.world.content.worlds import WORLDS
from granary.synth.pug.world.picture.render import Renderer
from granary.synth.pug.world.scene import Scene, Thing
from granary.synth.pug.world.shapes.geometry import Camera
from granary.synth.pug.world.shapes.mesh import Mesh

VERSION = "1.1.0+world.2"  # of UnrealCV's plugin, whose commands these are; after the +, of what pictures look like
FIRST_WORLD = "Meadow"
MOST_ARGUMENTS = 8  # of a blueprint function

__all__ = ["Session", "camera_commands", "object_commands"]  # the two modules register their commands


class Session:
    """The world of one server: its scene, its cameras, and the answers to commands.

    Args:
        tracer: "embree", "numpy" or "auto".
        save_to: folder where pictures may be saved; None refuses it.

    Attributes:
        port: of the server, for the status.
    """

    def __init__(self, tracer: str = "auto", save_to: str | None = None) -> None:
        self.renderer = Renderer(tracer)
        self.tracer = self.renderer.tracer
        self.scene = Scene.load(FIRST_WORLD)
        self.cameras = [Camera()]
        self.meshes: dict[str, Mesh] = {}
        self.save_to = save_to
        self.port = 0

    def answer(self, command: str) -> bytes:
        """Return the body of the reply to a command; commands registered last are tried first."""
        for known in reversed(COMMANDS):
            match = known.pattern.fullmatch(command)
            if match:
                try:
                    body = known.handler(self, *match.groups())
                except CommandError as error:
                    body = f"error {error}"
                except MemoryError:
                    body = "error Out of memory"
                return body if isinstance(body, bytes) else (body or "ok").encode()
        return f"error No handler found for URI '{command}'".encode()

    def camera(self, number: str) -> Camera:
        """Return a camera by its number."""
        if int(number) >= len(self.cameras):
            raise CommandError("Invalid sensor id")
        return self.cameras[int(number)]

    def thing(self, name: str, movable: bool = False) -> Thing:
        """Return an object by name; `movable` refuses the parts of the world."""
        if name not in self.scene.things:
            raise CommandError("Cannot find object")
        thing = self.scene.things[name]
        if movable and thing.fixed:
            raise CommandError(f"{name} is part of the world and cannot be changed")
        return thing


@command("vget /unrealcv/status")
def _status(session: Session) -> str:
    """Get the status of the server"""
    lines = ["Is Listening", "Client Connected", str(session.port), "Configuration", f"Port: {session.port}"]
    camera = session.cameras[0]
    return "\n".join([*lines, f"Width: {camera.width}", f"Height: {camera.height}", f"FOV: {camera.fov:f}"])


@command("vget /unrealcv/version")
def _version(session: Session) -> str:
    """Get the version of the commands"""
    return VERSION


@command("vget /unrealcv/echo [str]")
def _echo(session: Session, text: str) -> str:
    """Return the argument"""
    return text


@command("vget /unrealcv/commands")
def _commands(session: Session) -> str:
    """List the templates of all commands"""
    return "\n".join(dict.fromkeys(known.template for known in COMMANDS))


@command("vget /unrealcv/help")
def _help(session: Session) -> str:
    """List all commands, each followed by what it does"""
    return "\n".join(line for known in COMMANDS for line in (known.template, known.help))


@command("vget /scene/name", "vget /level/name")
def _level_name(session: Session) -> str:
    """Get the name of the level"""
    return session.scene.world.name


@command("vset /action/game/level [str]")
def _set_level(session: Session, name: str) -> None:
    """Load a level; everything spawned is gone, light is the level's own"""
    if name not in WORLDS:
        raise CommandError(f"Cannot find level {name}")
    session.scene = Scene.load(name)


@command("vset /action/game/pause", "vset /action/game/resume")
def _pause(session: Session) -> None:
    """Accepted; nothing moves by itself here"""


@command("vget /action/game/is_paused")
def _is_paused(session: Session) -> str:
    """Tell whether the game is paused; nothing moves by itself here"""
    return "true"


@command("vbatch [uint]")
def _batch(session: Session, count: str) -> None:
    """Run the next requests in one tick: here nothing happens between requests anyway"""
    if not int(count):
        raise CommandError(INVALID)


@command(*("vbp [str] [str]" + " [str]" * count for count in range(MOST_ARGUMENTS + 1)))
def _blueprint(session: Session, name: str, function: str, *arguments: str) -> str:
    """Call a function of the Director, who changes textures and light and knows the assets; returns JSON"""
    if name != "Director":
        raise CommandError("Cannot find object")
    return json.dumps(director.call(session, function, list(arguments)))
